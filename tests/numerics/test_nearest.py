"""The nearest centre: float32 products propose, float64 decides, and nothing of the proposal shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.numerics.kmeans import column_means
from curate.numerics.nearest import Centres, squared_distances
from curate.seeding import rng_for


def reference(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, squares = [], []
    for row in rows.astype(np.float64):
        own = [((row - centre) ** 2).sum() for centre in centres.astype(np.float64)]
        labels.append(int(np.argmin(own)))
        squares.append(min(own))
    return np.array(labels, dtype=np.int64), np.array(squares)


def made(kind: str, n: int, m: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = rng_for(seed, "nearest", kind)
    if kind == "whole":  # many ties, exact in every type
        return rng.integers(-2, 3, (n, d)).astype(np.float32), rng.integers(-2, 3, (m, d)).astype(np.float32)
    if kind == "far":  # far from the origin, close together: products alone lose all digits
        return 1000 + rng.normal(size=(n, d)) * 1e-3, 1000 + rng.normal(size=(m, d)) * 1e-3
    if kind == "half":
        return rng.normal(size=(n, d)).astype(np.float16), rng.normal(size=(m, d)).astype(np.float16)
    if kind == "small":  # squares vanish in float32, or keep a few bits
        return rng.normal(size=(n, d)) * 1e-22, rng.normal(size=(m, d)) * 1e-22
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(m, d)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["whole", "far", "half", "small", "normal"]),
    n=st.integers(0, 40),
    m=st.integers(1, 30),
    d=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_it_is_the_plain_definition(kind, n, m, d, seed):
    rows, centres = made(kind, n, m, d, seed)
    labels, squares = Centres(centres, column_means(centres)).nearest(rows)
    expected, lowest = reference(rows, centres)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(squares, lowest, rtol=1e-12)


def test_rows_that_come_along_change_no_bit():
    rows, centres = made("normal", 300, 64, 384, 0)
    search = Centres(centres, column_means(centres))
    labels, squares = search.nearest(rows)
    for step in (1, 7, 64):
        parts = [search.nearest(rows[at : at + step]) for at in range(0, len(rows), step)]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), labels)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), squares)


def test_float32_alone_would_get_it_wrong():
    """Two centres a float64 hair apart in their distance: the products cannot tell, and the answer does."""
    rows = np.array([[0.0, 0.0]])
    for first in (False, True):
        centres = np.array([[1.0, 1e-5], [1.0, 0.0]])[:: -1 if first else 1]
        search = Centres(centres, np.zeros(2, np.float32))
        products, _, _ = search.propose(rows)
        assert products[0, 0] == products[0, 1]
        assert search.nearest(rows)[0].tolist() == [0 if first else 1]


def test_the_bound_on_the_error_holds():
    for kind in ("whole", "far", "half", "normal"):
        rows, centres = made(kind, 50, 40, 30, 1)
        products, norms, error = Centres(centres, column_means(centres)).propose(rows)
        exact = ((rows.astype(np.float64)[:, None] - centres.astype(np.float64)) ** 2).sum(axis=2)
        assert (np.abs(products + norms[:, None] - exact) <= error[:, None]).all()
    assert (error < 1e-4 * (norms + 30)).all()  # and it is no bound that lets everything through


def test_below_leaves_out_what_is_no_nearer():
    rows = np.array([[0.0], [1.0], [5.0], [5.0]])
    labels, squares = Centres(np.array([[0.0], [4.0]]), np.zeros(1, np.float32)).nearest(
        rows, below=np.array([0.0, 2.0, 1.0, 1.1])
    )
    assert labels.tolist() == [-1, 0, -1, 1]
    assert squares.tolist() == [np.inf, 1.0, np.inf, 1.0]


def test_squared_distances_of_many_pairs(monkeypatch):
    monkeypatch.setattr("curate.numerics.nearest._TOGETHER", 8)
    rows, centres = made("whole", 5, 4, 3, 0)
    i, j = np.divmod(np.arange(20), 4)
    expected = ((rows[i].astype(np.float64) - centres[j]) ** 2).sum(axis=1)
    np.testing.assert_array_equal(squared_distances(rows, i, centres.astype(np.float64), j), expected)


@pytest.mark.parametrize("large", [1e19, 1e200])
def test_what_float32_cannot_square_is_refused(large):
    search = Centres(np.zeros((1, 2)), np.zeros(2, np.float32))
    with pytest.raises(InputError, match=r"features up to 1e\+\d+ were found, whose squares float32 cannot hold"):
        search.nearest(np.array([[1.0, large]]))
