"""MIG: by hand, and against the plain greedy search over all rows."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from curate.numerics import mig as module
from curate.numerics.mig import label_means, mig, spread
from curate.seeding import rng_for


def matrix(graph):
    count = graph.first.size - 1
    out = np.zeros((count, count))
    out[np.repeat(np.arange(count), np.diff(graph.first)), graph.tags] = graph.share
    return out


def reference(labels, p, k, quality, power):
    """Go by the definition: what every row would add to the objective, each time."""
    information, left, order, gains = np.zeros(len(p)), list(range(labels.size)), [], []
    for _ in range(k):
        gain = {i: float(((information + quality[i] * p[labels[i]]) ** power - information**power).sum()) for i in left}
        top = max(gain.values())
        best = min(i for i in left if gain[i] >= top - 1e-12)
        left.remove(best)
        order.append(best)
        gains.append(gain[best])
        information += quality[best] * p[labels[best]]
    return order, gains


def test_spread_by_hand():
    """Tags at 0°, 20° and 90°, a threshold at 0.9: the first two share, cos 20° = 0.94."""
    angle = np.deg2rad([0, 20, 90])
    graph = spread(np.c_[np.cos(angle), np.sin(angle)], 0.9, 0.5)
    passed = 0.5 * np.cos(angle[1]) / (1 + 0.5 * np.cos(angle[1]))
    np.testing.assert_allclose(matrix(graph), [[1 - passed, passed, 0], [passed, 1 - passed, 0], [0, 0, 1]], atol=1e-3)
    assert np.array_equal(matrix(spread(np.ones((3, 2)), 2.0, 1.0)), np.eye(3))
    assert np.array_equal(matrix(spread(np.zeros((3, 2)), 0.5, 1.0)), np.eye(3))


def test_spread_in_blocks(monkeypatch):
    means = rng_for(0, "means").normal(size=(50, 3))
    whole = matrix(spread(means, 0.6, 1.0))
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert np.array_equal(matrix(spread(means, 0.6, 1.0)), whole)
    np.testing.assert_allclose(whole.sum(axis=0), 1)
    assert 60 < np.count_nonzero(whole) < 1000


def test_label_means_do_not_depend_on_blocks(monkeypatch):
    rng = rng_for(1, "labels")
    x, labels = rng.normal(size=(500, 4)) * rng.lognormal(size=(500, 1)), rng.integers(0, 9, size=500)
    means = label_means(x, labels, 9)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for tag in range(9):
        np.testing.assert_allclose(means[tag], unit[labels == tag].sum(axis=0), atol=0.05)
    monkeypatch.setattr(module, "_BLOCK", 13)
    order = rng.permutation(500)
    assert np.array_equal(label_means(x[order], labels[order], 9), means)


def test_by_hand():
    """Two tags that share nothing; √ of the information.  Quality 1, 1, ¼ in tag 0 and ½ in tag 1.

    1, then √2 - 1 = 0.41 from tag 0 against √½ = 0.71 from tag 1, then 0.41, then √2¼ - √2 = 0.09.
    """
    graph = spread(np.eye(2), 0.9, 1.0)
    chosen = mig(np.array([0, 0, 0, 1]), graph, 4, quality=np.array([1.0, 1, 0.25, 0.5]), power=0.5)
    assert chosen.order.tolist() == [0, 3, 1, 2]
    np.testing.assert_allclose(chosen.gains, [1, 0.5**0.5, 2**0.5 - 1, 2.25**0.5 - 2**0.5])


@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.3, 0.8]), st.booleans(), st.booleans())
@example(1, 2, 0.3, False, True)  # two tags alike: gains that only rounding tells apart
def test_equals_the_plain_search(seed, tags, power, with_quality, linked):
    rng = rng_for(seed, "mig")
    n = int(rng.integers(1, 40))
    labels = rng.integers(0, tags, size=n)
    # Links of real numbers, so that no two tags tie but by being equal; levels of quality, with 0 among them.
    graph = spread(rng.normal(size=(tags, 3)), 0.2 if linked else 2.0, 1.0)
    quality = rng.integers(0, 5, size=n) / 4 if with_quality else np.ones(n)
    chosen = mig(labels, graph, n, quality=quality if with_quality else None, power=power)
    order, gains = reference(labels, matrix(graph), n, quality, power)
    np.testing.assert_allclose(chosen.gains, gains, atol=1e-10)
    assert chosen.order.tolist() == order
    assert mig(labels, graph, n // 2, quality=quality, power=power).order.tolist() == order[: n // 2]


def test_tags_take_turns_and_rare_ones_come_early():
    """900 rows of one tag, 9 of another, all of one quality: the objective is concave, so both are served."""
    labels = np.r_[np.zeros(900, dtype=np.int64), np.ones(9, dtype=np.int64)]
    order = mig(labels, spread(np.eye(2), 0.9, 1.0), 18).order
    assert labels[order].tolist() == [0, 1] * 9
    assert order.tolist() == [row for i in range(9) for row in (i, 900 + i)]


def test_linked_tags_stand_for_each_other():
    """Three tags of one direction: rows of any of them serve all three, and the lowest rows are taken."""
    means = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    labels = np.repeat(np.arange(4), 50)
    for threshold, counts in ((0.9, [30, 0, 0, 10]), (2.0, [10, 10, 10, 10])):
        order = mig(labels, spread(means, threshold, 1.0), 40).order
        assert np.bincount(labels[order]).tolist() == counts


def test_no_rows():
    graph = spread(label_means(np.empty((0, 3)), np.empty(0, dtype=np.int64), 0), 0.9, 1.0)
    assert mig(np.empty(0, dtype=np.int64), graph, 0).order.size == 0
