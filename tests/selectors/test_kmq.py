"""kMQ: clusters in proportion, draws in proportion to quality, one order for every budget."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.budget import Quota
from curate.exceptions import InputError
from curate.seeding import rng_for
from curate.selectors import KMQ
from curate.testing import check_selector

SIZES = (60, 30, 10)


def blobs(sizes: tuple[int, ...] = SIZES, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(len(sizes)), sizes)
    truth = rng_for(0, "kmq", "rows").permutation(truth)
    centres = 10 * np.eye(max(d, len(sizes)), dtype=np.float32)[: len(sizes), :d]
    return centres[truth] + rng_for(1, "kmq").normal(size=(truth.size, d)).astype(np.float32) / 10, truth


def test_clusters_share_every_prefix_in_proportion_to_their_size():
    x, truth = blobs()
    chosen = KMQ(clusters=3).select(x)
    for k in (10, 20, 50, 100):
        assert np.bincount(truth[chosen.indices[:k]]).tolist() == [6 * k // 10, 3 * k // 10, k // 10]
    assert len(set(zip(truth.tolist(), chosen.labels.tolist(), strict=True))) == 3


def test_equal_balance_and_tokens():
    x, truth = blobs()
    equal = KMQ(clusters=3, balance="equal").select(x, 24)
    assert np.bincount(truth[equal.indices]).tolist() == [8, 8, 8]
    cost = np.array([10, 20, 60])[truth]  # 600 tokens in each cluster
    tokens = KMQ(clusters=3).select(x, "900 tokens", cost=cost)
    assert np.bincount(truth[tokens.indices]).tolist() == [30, 15, 5]
    free = KMQ(clusters=3).select(x, "0 tokens", cost=np.zeros(100))
    assert sorted(free.indices.tolist()) == list(range(100))


def test_the_ledger_can_tell_the_cluster():
    x, truth = blobs()
    chosen = KMQ(clusters=3).select(x, 10, quality=np.arange(100.0))
    row = int(chosen.order[-1])
    cluster = chosen.labels[row]
    size = SIZES[truth[row]]
    assert chosen.threshold is None and np.isnan(chosen.thresholds).all()
    assert (
        chosen.reasons()[row]
        == f"cluster {cluster}, {size // 10} of {size} kept: after the last row kept, in the order of choice"
    )
    assert chosen.explain(row).endswith(f"; cluster {cluster}, place {size} of {size} (quality {row}).")
    assert chosen.basis_name == "quality" and chosen.basis.tolist() == list(range(100))


def test_a_quota_keeps_the_order_inside_each_group():
    x, _ = blobs()
    sources = np.array(["a", "b"])[np.arange(100) % 2]
    plain, balanced = (KMQ(clusters=3).select(x, 30, quota=q, quota_groups=sources) for q in (None, Quota()))
    assert (sources[balanced.indices] == "a").sum() == 15
    for source in ("a", "b"):
        own = [i for i in plain.order.tolist() if sources[i] == source]
        assert [i for i in balanced.order.tolist() if sources[i] == source] == own
    assert balanced.reasons()[balanced.order[-1]].startswith("group ")


# -- the ways inside a cluster, and given clusters ---------------------------------------------------------------------


def test_closest_takes_the_nearest_to_the_mean_first():
    x = np.array([[0.0], [1.0], [5.0], [6.0], [20.0], [21.0], [22.0]])
    clusters = np.array([0, 0, 0, 0, 1, 1, 1])
    chosen = KMQ(within="closest").select(x, groups=clusters, quality=np.arange(7.0))
    assert [i for i in chosen.order.tolist() if i < 4] == [1, 2, 0, 3]  # 2 and 2, 3 and 3 from the mean, 3
    assert [i for i in chosen.order.tolist() if i > 3] == [5, 4, 6]
    assert chosen.basis.tolist() == [3, 2, 2, 3, 1, 0, 1]
    assert chosen.basis_name == "distance to the mean of its cluster"


def test_random_looks_at_no_quality():
    x, _ = blobs()
    chosen = KMQ(clusters=3, within="random").select(x, 30, quality=np.arange(100.0))
    np.testing.assert_array_equal(chosen.order, KMQ(clusters=3).select(x, 30).order)
    assert chosen.basis is None
    assert not np.array_equal(chosen.order, KMQ(clusters=3).select(x, 30, quality=np.arange(100.0)).order)


def test_given_clusters_stand_for_its_own():
    x, _ = blobs()
    own = KMQ(clusters=3).select(x, 10)
    given = KMQ(clusters=7).select(rng_for(0, "noise").normal(size=x.shape), 10, groups=own.labels)
    np.testing.assert_array_equal(given.order, own.order)
    np.testing.assert_array_equal(given.labels, own.labels)


@pytest.mark.parametrize(
    ("groups", "labels"), [([7, 7, 12, 3], [7, 7, 12, 3]), (["en", "en", "fr", "de"], [1, 1, 2, 0])]
)
def test_given_clusters_keep_their_numbers(groups, labels):
    chosen = KMQ().select(np.zeros((4, 1)), groups=np.array(groups))
    assert chosen.labels.tolist() == labels


def test_a_cluster_that_runs_out_leaves_the_rest_to_the_others():
    clusters = np.repeat([0, 1, 2], [2, 30, 30])
    chosen = KMQ(balance="equal").select(np.zeros((62, 1)), 30, groups=clusters)
    assert np.bincount(clusters[chosen.indices]).tolist() == [2, 14, 14]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=12), data=st.data())
def test_shares_are_those_of_largest_remainders_or_nearly(sizes, data):
    """Every budget is spent in full, and at most half of the clusters differ by a row."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    k = data.draw(st.integers(0, clusters.size))
    chosen = KMQ().select(np.zeros((clusters.size, 1)), k, groups=clusters)
    counts = np.bincount(clusters[chosen.indices], minlength=len(sizes))
    exact = k * np.array(sizes) / clusters.size
    remainders = np.floor(exact).astype(int)
    remainders[np.argsort(remainders - exact, kind="stable")[: k - remainders.sum()]] += 1
    assert counts.sum() == remainders.sum() == k
    assert np.abs(counts - remainders).sum() / 2 <= len(sizes) / 2


class OwnClusters(KMQ):
    """kMQ that is given no groups: check_selector gives them to every selector."""

    def _rank(self, inputs, k):
        return super()._rank(dataclasses.replace(inputs, groups=None), k)


@pytest.mark.parametrize("params", [{}, {"clusters": 3, "within": "closest"}, {"clusters": "auto", "balance": "equal"}])
def test_the_laws_with_its_own_clusters(params):
    check_selector(OwnClusters(**params))


# -- the draw ----------------------------------------------------------------------------------------------------------

POINT = np.zeros((4, 2))  # one cluster: rows that only their quality tells apart


def first_two(quality: list[float], scale: str, seeds: int) -> np.ndarray:
    """Count the ordered pairs of first choices over many seeds."""
    counts = np.zeros((4, 4))
    for seed in range(seeds):
        a, b = (
            KMQ(clusters=1, quality_scale=scale, seed=seed, iterations=1)
            .select(POINT, 2, quality=np.array(quality))
            .indices
        )
        counts[a, b] += 1
    return counts


@pytest.mark.parametrize(
    ("quality", "scale", "weights"),
    [
        ([1.0, 2.0, 3.0, 4.0], "proportional", [1, 2, 3, 4]),
        ([-9.0, 0.5, 0.5, 70.0], "rank", [1 / 8, 4 / 8, 4 / 8, 7 / 8]),
        ([-1.0, -2.0, -1.0, -3.0], "exp", np.exp([-1.0, -2.0, -1.0, -3.0])),
    ],
)
def test_draws_without_replacement_in_proportion_to_the_weights(quality, scale, weights):
    """P(a then b) = p_a · p_b / (1 - p_a); within four standard errors, pair by pair."""
    seeds, p = 2000, np.array(weights) / np.sum(weights)
    expected = p[:, None] * p[None] / (1 - p[:, None])
    np.fill_diagonal(expected, 0)
    error = np.sqrt(seeds * expected * (1 - expected))
    off = np.abs(first_two(quality, scale, seeds) - seeds * expected)
    assert (off <= 4 * error).all(), f"off by {(off / np.maximum(error, 1e-9)).round(1)} standard errors"


def test_quality_0_comes_last_in_its_cluster():
    x, _ = blobs()
    quality = rng_for(3, "quality").integers(0, 2, size=100).astype(float)
    chosen = KMQ(clusters=3, quality_scale="proportional").select(x, quality=quality)
    for cluster in range(3):
        own = quality[[i for i in chosen.indices if chosen.labels[i] == cluster]]
        assert (np.diff(own) <= 0).all() and own[0] == 1 and own[-1] == 0
    none = KMQ(clusters=1, quality_scale="proportional").select(POINT, quality=np.zeros(4))
    assert sorted(none.indices.tolist()) == [0, 1, 2, 3]


def test_extreme_qualities_do_not_overflow():
    for scale, quality in [("exp", [-1e300, 1e300, 0, 1e5]), ("proportional", [5e-324, 1e308, 1.0, 0.0])]:
        chosen = KMQ(clusters=1, quality_scale=scale).select(POINT, quality=np.array(quality))
        assert sorted(chosen.indices.tolist()) == [0, 1, 2, 3] and chosen.indices[0] == 1


def test_ranks_need_no_unit():
    x, _ = blobs()
    loglik = rng_for(4, "quality").normal(size=100)
    a = KMQ(clusters=3).select(x, quality=loglik)
    b = KMQ(clusters=3).select(x, quality=np.exp(3 * loglik))
    assert a.indices.tolist() == b.indices.tolist()


def test_without_quality_it_is_uniform():
    x, _ = blobs()
    a, b = KMQ(clusters=3).select(x), KMQ(clusters=3, quality_scale="proportional").select(x, quality=np.full(100, 3.0))
    assert a.indices.tolist() == b.indices.tolist() and a.basis is None


# -- clusters ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 40), clusters=st.one_of(st.none(), st.just("auto"), st.integers(1, 60)), seed=st.integers(0, 9))
def test_any_pool_and_any_number_of_clusters(n, clusters, seed):
    x = rng_for(seed, "small").integers(0, 3, size=(n, 2))
    chosen = KMQ(clusters=clusters, seed=seed).select(x)
    assert sorted(chosen.indices.tolist()) == list(range(n))
    sizes = np.bincount(chosen.labels, minlength=1)
    for k in range(n + 1):
        off = np.abs(np.bincount(chosen.labels[chosen.indices[:k]], minlength=sizes.size) - k * sizes / max(n, 1))
        assert off.max(initial=0) <= max(1, (np.count_nonzero(sizes) - 1) / 2)


@pytest.mark.parametrize(("n", "count"), [(128, 2), (640, 10), (100_000, 1024)])
def test_the_default_number_of_clusters(n, count, monkeypatch):
    asked = []
    monkeypatch.setattr(
        KMQ, "_kmeans", lambda self, x, k: asked.append(k) or type("K", (), {"labels": np.zeros(len(x), np.int64)})
    )
    KMQ().select(np.ones((n, 1), dtype=np.float32))
    assert asked == [count]
    KMQ().select(np.ones((127, 1)))  # one cluster: no k-means
    assert asked == [count]


def test_auto_finds_the_number_of_blobs():
    for blobs_ in (4, 8):
        x, truth = blobs((40,) * blobs_, d=8)
        chosen = KMQ(clusters="auto").select(x)
        assert len(set(zip(truth.tolist(), chosen.labels.tolist(), strict=True))) == blobs_ == chosen.labels.max() + 1


def test_the_seed_names_the_draw():
    x, _ = blobs()
    orders = [KMQ(clusters=3, seed=seed).select(x, 20).indices.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_threads_change_nothing():
    program = (
        "import numpy as np; from curate.seeding import rng_for; from curate.selectors import KMQ\n"
        "x = rng_for(0, 'x').normal(size=(3000, 19)).astype('float32')\n"
        "print(KMQ(clusters=40).select(x, 100, quality=x[:, 0]).indices.tolist())"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": t},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for t in ("1", "2")
    }
    assert len(orders) == 1 and len(orders.pop()) > 300


@pytest.mark.parametrize(
    ("params", "quality", "said"),
    [
        ({"clusters": 0}, None, "KMQ: clusters of at least 1 was asked, 0 was found."),
        ({"restarts": 0}, None, "KMQ: restarts of at least 1 was asked, 0 was found."),
        (
            {"quality_scale": "proportional"},
            [1, 0, -0.25, -2],
            "KMQ: quality_scale='proportional' asks for quality of at least 0, -2 was found at row 3; "
            "take quality_scale='exp' for log-probabilities, or 'rank' for any score.",
        ),
    ],
)
def test_refusals(params, quality, said):
    with pytest.raises(InputError) as error:
        KMQ(**params).select(POINT, quality=quality)
    assert str(error.value) == said
