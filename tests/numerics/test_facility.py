"""Facility location: by hand, against the plain greedy search, and against the objective over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.numerics.facility import facility
from curate.numerics.neighbours import neighbours
from curate.numerics.unit_rows import UnitRows
from curate.seeding import rng_for


def dense(graph):
    """The graph as a matrix (r, n), float64."""
    out = np.zeros((len(graph.index), graph.n))
    np.maximum.at(out, (np.arange(len(graph.index))[:, None], graph.index), graph.similarity.astype(np.float64))
    return out


def reference(w, k, quality=None, alpha=0.0):
    """Go by the definition: the gain of every row afresh, each time."""
    nearest, left, order, gains = np.zeros(len(w)), list(range(w.shape[1])), [], []
    for _ in range(k):
        gain = {j: float(np.maximum(w[:, j] - nearest, 0).sum()) for j in left}
        highest = max(gain.values())
        share = (1 - alpha) / highest if highest > 0 else 0.0
        score = {j: gain[j] * share + (alpha * quality[j] if quality is not None else 0.0) for j in left}
        best = min(left, key=lambda j: (-score[j], j))
        left.remove(best)
        order.append(best)
        gains.append(gain[best])
        nearest = np.maximum(nearest, w[:, best])
    return order, gains


def cases(seed, levels):
    rng = rng_for(seed, "cases")
    n = int(rng.integers(1, 40))
    x = rng.integers(-levels, levels + 1, size=(n, 3)).astype(np.float32)[rng.integers(0, n, size=n)]
    rows = np.sort(rng.choice(n, int(rng.integers(1, n + 1)), replace=False)) if rng.random() < 0.4 else None
    return neighbours(x, int(rng.integers(1, 12)), rows=rows), rng.integers(0, 5, size=n) / 8


def test_by_hand():
    """Directions 0°, 60° (twice), 90°; cosines ½, √3/2, 0; m = all.

    Alone: 0° serves 1 + ½ + ½ + 0 = 2, 60° serves ½ + 1 + 1 + .87 = 3.37, 90° serves 0 + .87 + .87 + 1 = 2.73.  After 60°
    0° gains ½ and 90° gains 0.13.
    """
    x = np.array([[1, 0], [0.5, 3**0.5 / 2], [0.5, 3**0.5 / 2], [0, 1]])
    chosen = facility(neighbours(x, 4), 4)
    assert chosen.order.tolist() == [1, 0, 3, 2]
    np.testing.assert_allclose(chosen.alone, [2, 3.366, 3.366, 2.732], atol=2e-3)
    np.testing.assert_allclose(chosen.gains, [3.366, 0.5, 0.134, 0], atol=2e-3)
    np.testing.assert_allclose(chosen.nearest, 1, atol=1e-3)


@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]))
def test_equals_the_plain_search(seed, levels, alpha):
    graph, quality = cases(seed, levels)
    given_quality = {} if alpha is None else {"quality": quality, "alpha": alpha}
    chosen = facility(graph, graph.n, **given_quality)
    order, gains = reference(dense(graph), graph.n, **given_quality)
    assert chosen.order.tolist() == order
    assert (chosen.gains * graph.shrink**2).tolist() == pytest.approx(gains, rel=1e-14)
    for k in (0, graph.n // 2):
        assert facility(graph, k, **given_quality).order.tolist() == order[:k]


def test_equals_the_plain_search_on_reals():
    rng = rng_for(1, "reals")
    x = rng.normal(size=(200, 16)).astype(np.float32) + 2 * rng.normal(size=(10, 16))[rng.integers(10, size=200)]
    graph = neighbours(x, 30)
    assert facility(graph, 200).order.tolist() == reference(dense(graph), 200)[0]


def test_gains_add_up_to_the_objective():
    x = rng_for(2, "sum").normal(size=(300, 8))
    graph = neighbours(x, 12)
    chosen = facility(graph, 40)
    f = dense(graph)[:, chosen.order].max(axis=1) / graph.shrink**2
    np.testing.assert_allclose(chosen.nearest, f, rtol=1e-12)
    assert chosen.first_near.sum() == np.count_nonzero(f)
    assert chosen.gains.sum() == pytest.approx(f.sum(), rel=1e-12)
    assert (np.diff(chosen.gains) <= 0).all()


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_the_graph_loses_less_than_one_percent(share):
    """Judged by all pairs, against the greedy choice over all pairs."""
    rng = rng_for(3, "loss")
    x = rng.normal(size=(1000, 48)) + rng.normal(size=48) + 1.5 * rng.normal(size=(40, 48))[rng.integers(40, size=1000)]
    unit = UnitRows(x)
    s = np.maximum((unit[:] @ unit[:].T).astype(np.float64), 0)
    k = int(share * 1000)
    nearest, order = np.zeros(1000), []
    for _ in range(k):
        order.append(int(np.maximum(s - nearest[:, None], 0).sum(axis=0).argmax()))
        nearest = np.maximum(nearest, s[:, order[-1]])
    ours = s[:, facility(neighbours(x, 64), k).order].max(axis=1).sum()
    assert ours >= 0.99 * nearest.sum()
    assert s[:, rng.choice(1000, k, replace=False)].max(axis=1).sum() < 0.98 * nearest.sum()  # which is not easy


def test_quality_weighs_the_same_throughout():
    """With α = ½ the mean quality of the chosen stays high to the end, though gains have shrunk 100 times."""
    rng = rng_for(4, "quality")
    x, quality = rng.normal(size=(2000, 16)), rng.random(2000)
    graph = neighbours(x, 32)
    pure, mixed = facility(graph, 400), facility(graph, 400, quality=quality, alpha=0.5)
    assert pure.gains[0] > 20 * pure.gains[-1]
    assert abs(quality[pure.order].mean() - 0.5) < 0.06
    for part in (mixed.order[:200], mixed.order[200:]):
        assert 0.65 < quality[part].mean() < 0.95
    assert 0.85 * pure.gains.sum() < mixed.gains.sum() < pure.gains.sum()


def test_the_graph_is_left_as_it_was():
    graph, _ = cases(5, 1)
    before = graph.index.copy(), graph.similarity.copy()
    facility(graph, graph.n)
    assert np.array_equal(before[0], graph.index) and np.array_equal(before[1], graph.similarity)
