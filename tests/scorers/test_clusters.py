"""Clusters of another stage's vectors: trained on a sample, the same for any shards and order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from curate.exceptions import InputError, StageError
from curate.scorers import Clusters
from curate.seeding import rng_for
from curate.testing import check_scorer
from curate.testing.scorers import odd_examples


def table(vectors: np.ndarray, missing: tuple[int, ...] = ()) -> pa.Table:
    mask = np.isin(np.arange(len(vectors)), missing)
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=pa.array(mask))})


def blobs(n: int = 300, clusters: int = 3, d: int = 4, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    rng = rng_for(0, "clusters")
    truth = np.minimum(rng.integers(0, 2 * clusters, n), clusters - 1)  # the last is the largest
    return (10 * np.eye(max(d, clusters))[truth, :d] + rng.normal(size=(n, d)) / 5).astype(dtype), truth


def fitted(vectors: np.ndarray, missing: tuple[int, ...] = (), **params: object) -> Clusters:
    scorer = Clusters(of="vectors", **params)
    scorer.load(scorer.fit(table(vectors, missing)))
    return scorer


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_laws(dtype):
    examples = odd_examples()
    vectors, _ = blobs(examples.num_rows, dtype=dtype)
    vectors[3] = vectors[5]
    examples = examples.append_column("vector", table(vectors, (1, 4)).column("vector"))
    for params in ({"clusters": 3}, {"clusters": "auto"}, {}, {"clusters": 50, "iterations": 2}):
        check_scorer(Clusters(of="vectors", **params), examples)


def test_it_finds_the_clusters_and_the_distances_to_their_centroids():
    x, truth = blobs()
    scorer = fitted(x, clusters=3)
    out = scorer.score(table(x))
    cluster, distance = (out.column(name).to_numpy() for name in ("cluster", "distance"))
    assert len(set(zip(cluster.tolist(), truth.tolist(), strict=True))) == 3
    assert set(cluster[truth == 2]) == {0}  # numbered by size
    means = np.stack([x[cluster == c].astype(np.float64).mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(distance, np.linalg.norm(x - means[cluster], axis=1), rtol=1e-5)
    state = scorer.fit(table(x))
    assert state["rows"].tolist() == np.bincount(cluster).tolist()
    np.testing.assert_allclose(state["inertia"], np.bincount(cluster, weights=distance**2), rtol=1e-12)


def test_auto_tells_what_it_tried():
    x, _ = blobs(400, 8, 8)
    state = Clusters(of="vectors", clusters="auto", restarts=3).fit(table(x))
    assert state["silhouettes"][:, 0].tolist() == [2, 4, 8, 16]
    assert len(state["centroids"]) == 8 == state["silhouettes"][state["silhouettes"][:, 1].argmax(), 0]


def test_rows_without_a_vector():
    x, _ = blobs()
    x[7] = np.nan  # what stands where there is none means nothing
    scorer = fitted(x, missing=(7,), clusters=3)
    out = scorer.score(table(x, missing=(7,)))
    assert out.column("cluster").null_count == 1 and out.column("reason")[7].as_py() == "no vector"
    with pytest.raises(StageError, match="clusters: not one of the 5 sampled rows has a vector of 'vectors'"):
        Clusters(of="vectors").fit(table(x[:5], missing=tuple(range(5))))


@pytest.mark.parametrize("x", [np.zeros((200, 3), np.float32), np.full((200, 3), 0.1, np.float32)])
def test_rows_that_are_all_the_same(x):
    out = fitted(x, clusters=5).score(table(x))
    assert set(out.column("cluster").to_pylist()) == {0} and set(out.column("distance").to_pylist()) == {0.0}


def test_more_clusters_than_distinct_rows():
    x = np.repeat(np.arange(4, dtype=np.float32), [10, 20, 30, 40])[:, None]
    out = fitted(x, clusters=60).score(table(x))
    assert out.column("cluster").to_pylist() == [3] * 10 + [2] * 20 + [1] * 30 + [0] * 40
    assert set(out.column("distance").to_pylist()) == {0.0}


def test_how_many_rows_it_learns_from():
    assert Clusters(of="v").fit_rows == Clusters(of="v", clusters="auto").fit_rows == 1024 * 256
    assert Clusters(of="v", clusters=10, rows_per_cluster=100).fit_rows == 1000


def test_what_it_refuses():
    for params, said in (({"clusters": 0}, "clusters of at least 1"), ({"restarts": 0}, "restarts of at least 1")):
        with pytest.raises(InputError, match=f"clusters: {said} was asked, 0 was found"):
            Clusters(of="v", **params)
    x, _ = blobs()
    with pytest.raises(InputError, match="no centroids are there; a run trains them, or fit and load do"):
        Clusters(of="v").score(table(x))
    with pytest.raises(StageError, match="vectors of 2 numbers were found, the centroids have 4"):
        fitted(x, clusters=3).score(table(x[:, :2]))
