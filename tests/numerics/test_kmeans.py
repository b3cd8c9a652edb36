"""k-means against a plain float64 Lloyd, its fixed point, its corner cases, and any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from curate.exceptions import InputError
from curate.numerics import kmeans as module
from curate.numerics.kmeans import kmeans, silhouette
from curate.seeding import rng_for


def lloyd(x: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Assign, average, repeat: loops in float64, ties to the lowest cluster, empty clusters to the furthest rows."""
    x, centroids, history = x.astype(np.float64), centroids.astype(np.float64), []
    for _ in range(iterations):
        square = ((x[:, None, :] - centroids[None]) ** 2).sum(axis=2)
        labels = square.argmin(axis=1)
        near = square[np.arange(len(x)), labels]
        history.append(near.sum())
        far = [row for row in np.argsort(-near, kind="stable") if near[row] > 0]
        moved = centroids.copy()
        for j in range(len(centroids)):
            if (labels == j).any():
                moved[j] = x[labels == j].mean(axis=0)
            elif far:
                moved[j] = x[far.pop(0)]
        if (moved == centroids).all():
            break
        centroids = moved
    return labels, centroids, history


def blobs(n: int, k: int, d: int, *, spread: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = rng_for(seed, "blobs", n, k, d)
    truth = rng.integers(0, k, n)
    return (rng.normal(size=(k, d))[truth] + spread * rng.normal(size=(n, d))).astype(np.float32), truth


def start(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    shift = module.column_means(x)
    return module._spread_rows(x, shift, k, rng_for(seed, "kmeans", "start", 0)) + shift


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(5, 60), k=st.integers(1, 5))
def test_parity_with_lloyd(seed, n, k):
    """Two iterations from the same start, on rows without ties (which float32 and float64 may see differently)."""
    x = rng_for(seed, "parity").normal(size=(n, 3)).astype(np.float32)
    found = kmeans(x, k, seed=seed, iterations=2, tolerance=0)
    _, _, history = lloyd(x, start(x, k, seed), 2)
    np.testing.assert_allclose(found.history, history[: len(found.history)], rtol=1e-4, atol=1e-6)
    assert history[len(found.history) - 1] - history[-1] <= 1e-6 * (1 + history[0])


@pytest.mark.parametrize("seed", range(5))
def test_well_separated_clusters_come_out_as_lloyd_finds_them(seed):
    x, _ = blobs(400, 7, 5, seed=seed)
    found = kmeans(x, 7, seed=seed, iterations=100, tolerance=0)
    labels, _, history = lloyd(x, start(x, 7, seed), 100)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(
        found.centroids, np.stack([x[labels == j].mean(axis=0, dtype=np.float64) for j in range(7)]), atol=1e-5
    )
    np.testing.assert_allclose(found.inertia, history[-1], rtol=1e-5)


def test_the_blobs_are_found():
    x, truth = blobs(600, 6, 16)
    found = kmeans(x, 6, restarts=8)
    pairs = set(zip(truth.tolist(), found.labels.tolist(), strict=True))
    assert len(pairs) == 6  # a renaming of the clusters
    np.testing.assert_allclose(found.inertia, found.history[-1], rtol=1e-6)
    exact = ((x - found.centroids[found.labels]).astype(np.float64) ** 2).sum()
    np.testing.assert_allclose(found.inertia, exact, rtol=1e-6)


def test_the_start_is_spread_out():
    """k-means++ meets every blob that is far from the others: a uniform draw of 6 does so once in 65 times."""
    x, truth = blobs(600, 6, 16, spread=1e-3)
    shift = np.zeros(16, dtype=np.float32)
    for seed in range(20):
        rows = module._spread_rows(x, shift, 6, rng_for(seed, "start"))
        met = {int(truth[(x == row).all(axis=1)][0]) for row in rows}
        assert met == set(range(6))


def test_copies_do_not_crowd_the_start():
    """900 copies of a row and 10 others: all 11 are met, though rounding puts the copies at distances other than 0."""
    rng = rng_for(0, "copies")
    x = np.concatenate([np.repeat(rng.normal(size=(1, 50)), 900, axis=0), rng.normal(size=(10, 50))]).astype(np.float32)
    for seed in range(20):
        rows = module._spread_rows(x * 1e3, np.zeros(50, dtype=np.float32), 11, rng_for(seed, "start"))
        assert len(np.unique(rows, axis=0)) == 11


def test_four_points_by_hand():
    x = np.array([[0, 0], [0, 2], [10, 0], [10, 2]], dtype=np.float32)
    found = kmeans(x, 2, restarts=4)
    assert sorted(found.centroids.tolist()) == [[0, 1], [10, 1]]
    assert found.inertia == 4
    assert found.labels[0] == found.labels[1] != found.labels[2] == found.labels[3]


def test_an_iteration_never_raises_the_inertia():
    """Of Lloyd's step itself, also where clusters are empty: ``kmeans`` stops as soon as one gains nothing."""
    for seed in range(10):
        x = rng_for(seed, "rise").normal(size=(200, 4)).astype(np.float32)
        centroids = np.concatenate([x[:6], np.full((3, 4), 50.0 + seed, dtype=np.float32)])  # three that no row is near
        shift, history = np.zeros(4, dtype=np.float32), []
        with module.Blocks(1) as blocks:
            for _ in range(15):
                labels, distances = module._assign(blocks, x, shift, centroids)
                history.append(distances.sum())
                centroids = module._means(x, shift, labels, distances, centroids)
        assert (np.diff(history) <= 1e-6 * history[0]).all()
        assert len(np.unique(labels)) == 9


def test_more_restarts_are_never_worse():
    x = rng_for(0, "restarts").normal(size=(300, 3)).astype(np.float32)
    inertia = [kmeans(x, 12, restarts=r, iterations=5).history[-1] for r in (1, 3, 9)]
    assert inertia[0] >= inertia[1] >= inertia[2] and inertia[0] > inertia[2]


@pytest.mark.parametrize(("n", "k", "distinct"), [(10, 4, 2), (5, 5, 5), (3, 9, 3), (6, 3, 1), (1, 1, 1), (1, 4, 1)])
def test_fewer_distinct_rows_than_clusters(n, k, distinct):
    x = np.repeat(np.arange(distinct, dtype=np.float32)[:, None] * 0.1, -(-n // distinct), axis=0)[:n]
    found = kmeans(x, k)
    assert found.inertia < 1e-12
    assert len(np.unique(found.labels)) == min(distinct, k)
    assert found.labels.max() < min(k, n)
    for value in np.unique(x):  # equal rows share a cluster: the lowest of those that lie on them
        assert len(np.unique(found.labels[x[:, 0] == value])) == 1


def test_equally_near_centroids_go_to_the_lowest():
    x = np.array([[0.0], [1.0], [0.5]], dtype=np.float32)
    with module.Blocks(1) as blocks:
        labels, _ = module._assign(
            blocks, x, np.zeros(1, np.float32), np.array([[1.0], [0.0], [0.0]], dtype=np.float32)
        )
    assert labels.tolist() == [1, 0, 0]


def test_no_rows_and_no_clusters():
    found = kmeans(np.empty((0, 3), dtype=np.float32), 4)
    assert found.labels.shape == (0,) and found.centroids.shape == (0, 3)
    with pytest.raises(InputError, match="at least 1 cluster was asked, k=0 was found"):
        kmeans(np.zeros((2, 2)), 0)


def test_far_from_the_origin():
    """‖c‖² - 2x·c in float32 would lose the blobs altogether at 10⁴: its rounding there is 4, the blobs are 1 apart."""
    x, _ = blobs(500, 5, 8)
    near, far = kmeans(x, 5, seed=3), kmeans(x.astype(np.float64) + 1e4, 5, seed=3)
    np.testing.assert_array_equal(near.labels, far.labels)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_other_dtypes(dtype):
    x = (blobs(300, 4, 6)[0] * 64).round().astype(dtype)
    np.testing.assert_array_equal(kmeans(x, 4).labels, kmeans(x.astype(np.float32), 4).labels)


def test_a_memory_map_is_read_in_place(tmp_path):
    x, _ = blobs(5000, 8, 12)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        kmeans(mapped, 8, rows_per_cluster=100).labels, kmeans(x, 8, rows_per_cluster=100).labels
    )


def test_trained_on_a_sample_of_the_pool():
    x, truth = blobs(4000, 5, 10)
    found = kmeans(x, 5, rows_per_cluster=40, restarts=5)
    assert found.history[-1] < found.inertia / 10  # 200 training rows of 4,000
    assert len(set(zip(truth.tolist(), found.labels.tolist(), strict=True))) == 5
    other = kmeans(x, 5, rows_per_cluster=40, restarts=5, seed=1)
    assert not np.array_equal(other.centroids, found.centroids)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    x = rng_for(1, "threads").normal(size=(7000, 24)).astype(np.float32)
    one, many = kmeans(x, 50, threads=1), kmeans(x, 50, threads=threads)
    np.testing.assert_array_equal(one.labels, many.labels)
    np.testing.assert_array_equal(one.centroids, many.centroids)
    assert one.inertia == many.inertia


def test_the_environment_changes_nothing():
    program = (
        "import hashlib\n"
        "from curate.numerics.kmeans import kmeans; from curate.seeding import rng_for\n"
        "found = kmeans(rng_for(2, 'threads').normal(size=(5000, 31)).astype('float32'), 40)\n"
        "print(hashlib.sha256(found.labels.tobytes() + found.centroids.tobytes()).hexdigest())"
    )
    digests = set()
    for threads in ("1", "2"):
        given = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        ran = subprocess.run([sys.executable, "-c", program], env=os.environ | given, capture_output=True, check=True)
        digests.add(ran.stdout)
    assert len(digests) == 1 and len(digests.pop().strip()) == 64


@pytest.mark.parametrize("seed", range(4))
def test_silhouettes_are_scikit_learns(seed):
    rng = rng_for(seed, "silhouette")
    x = rng.normal(size=(150, 4)).astype(np.float32)
    labelings = [rng.integers(0, k, size=150) for k in (2, 5, 60)]  # 60: clusters of one, and empty ones
    rows = np.sort(rng.choice(150, 70, replace=False))
    expected = [silhouette_samples(x.astype(np.float64), labels)[rows].mean() for labels in labelings]
    np.testing.assert_allclose(silhouette(x, labelings, rows), expected, rtol=0, atol=1e-6)
    assert silhouette(x, [np.zeros(150, dtype=np.int64)], rows) == [0.0]
    assert silhouette(x, labelings, rows[:0]) == [0.0, 0.0, 0.0]
    assert silhouette(np.ones((4, 2)), [np.array([0, 0, 1, 1])], np.arange(4)) == [0.0]  # a = b = 0
