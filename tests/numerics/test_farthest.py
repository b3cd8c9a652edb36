"""Farthest-first traversal: many choices to a pass, and the order of the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.numerics import farthest
from curate.numerics.farthest import farthest_first
from curate.numerics.kmeans import column_means
from curate.seeding import rng_for


def reference(x: np.ndarray, k: int, first: int, eligible: np.ndarray) -> tuple[list[int], np.ndarray]:
    """One pass over all rows a choice, in float64."""
    x = x.astype(np.float64)
    nearest = np.full(len(x), np.inf)
    told = np.full(len(x), np.nan)
    order: list[int] = []
    left = eligible.copy()
    while len(order) < k:
        row = int(np.where(left, nearest, -1).argmax()) if order else first  # the first of equal ones
        told[row] = nearest[row]
        order.append(row)
        left[row] = False
        nearest = np.minimum(nearest, ((x - x[row]) ** 2).sum(axis=1))
    told[left] = nearest[left]
    told[np.isinf(told)] = np.nan
    return order, told


def made(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    rng = rng_for(seed, "farthest", kind)
    if kind == "whole":
        return rng.integers(0, 3, (n, d)).astype(np.float32)
    if kind == "copies":
        return rng.normal(size=(max(1, n // 5), d))[rng.integers(0, max(1, n // 5), n)].astype(np.float32)
    if kind == "alike":  # all about as far from one another: every choice is a near-tie
        return np.eye(n, max(n, d), dtype=np.float32) + 1e-8 * rng.normal(size=(n, max(n, d)))
    if kind == "far":
        return 1000 + rng.normal(size=(n, d)) * 1e-3
    centres = rng.normal(size=(4, d)) * 5
    return (centres[rng.integers(0, 4, n)] + rng.normal(size=(n, d))).astype(np.float16)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["whole", "copies", "alike", "far", "clustered"]),
    n=st.integers(1, 60),
    d=st.integers(1, 6),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_it_is_the_plain_definition(kind, n, d, seed, data):
    x = made(kind, n, d, seed)
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    first = data.draw(st.integers(0, n - 1))
    eligible[first] = True
    k = data.draw(st.integers(0, int(eligible.sum())))
    fewest, most = data.draw(st.sampled_from([(1, 1), (2, 8), (256, 4096)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(farthest, "BLOCK", data.draw(st.sampled_from([1, 7, 2048])))
        patch.setattr(farthest, "_FEWEST", fewest)
        patch.setattr(farthest, "_MOST", most)
        found = farthest_first(x, k, first=first, shift=column_means(x), eligible=eligible)
    order, squares = reference(x, k, first, eligible)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.squares, squares, rtol=1e-12)


def test_a_pass_serves_many_choices_and_threads_change_nothing():
    x = made("clustered", 5000, 16, 3)
    found = farthest_first(x, 500, first=0, shift=column_means(x))
    assert found.passes < 25
    np.testing.assert_array_equal(found.order, reference(x, 500, 0, np.ones(5000, dtype=bool))[0])
    for threads in (1, 3):
        again = farthest_first(x, 500, first=0, shift=column_means(x), threads=threads)
        np.testing.assert_array_equal(again.order, found.order)
        np.testing.assert_array_equal(again.squares, found.squares)


def test_a_tie_with_a_row_outside_of_the_candidates(monkeypatch):
    """Rows 2 and 3 are the candidates; once 2 is chosen, 3 is as far as row 1, which stands before it."""
    monkeypatch.setattr(farthest, "_FEWEST", 2)
    x = np.array([[0.0], [3.0], [-7.0], [-4.0]])
    assert farthest_first(x, 4, first=0, shift=column_means(x)).order.tolist() == [0, 2, 1, 3]


def test_copies_follow_in_row_order():
    x = np.array([[0.0], [2.0], [0.0], [2.0], [1.0]])
    found = farthest_first(x, 5, first=2, shift=column_means(x))
    assert found.order.tolist() == [2, 1, 4, 0, 3]
    np.testing.assert_array_equal(found.squares, [0, 4, np.nan, 0, 1])
