"""Spearman's correlation against a plain loop, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.numerics.correlation import spearman

COLUMN = st.lists(st.sampled_from([math.nan, -2.0, 0.0, 0.5, 1.0, 3.0]), min_size=8, max_size=8)


def reference(a: list[float], b: list[float]) -> tuple[float, int]:
    """Pearson's correlation of the ranks (ties averaged) of the rows that have both."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if not (math.isnan(x) or math.isnan(y))]
    n = len(both)
    if n < 3:
        return math.nan, n
    ranks = []
    for values in zip(*both, strict=True):
        ranks.append([sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values])
    (p, q) = ([r - (n + 1) / 2 for r in column] for column in ranks)
    scale = math.sqrt(sum(x * x for x in p) * sum(x * x for x in q))
    return (sum(x * y for x, y in zip(p, q, strict=True)) / scale if scale else math.nan), n


@given(st.lists(COLUMN, min_size=1, max_size=4))
def test_parity_with_the_loop(columns: list[list[float]]) -> None:
    rho, rows = spearman(np.array(columns).T)
    for i, a in enumerate(columns):
        for j, b in enumerate(columns):
            value, n = reference(a, b)
            assert rows[i, j] == n
            assert rho[i, j] == pytest.approx(value, abs=1e-12, nan_ok=True)
    np.testing.assert_array_equal(rho, rho.T)


def test_by_hand() -> None:
    """Ranks 1 2 3 against 1 3 2: ρ = 1 − 6 (0 + 1 + 1) / (3 · 8) = ½."""
    x = np.array([[1.0, 10.0, -1.0], [2.0, 30.0, -2.0], [5.0, 20.0, -5.0]])
    rho, rows = spearman(x)
    np.testing.assert_allclose(rho, [[1, 0.5, -1], [0.5, 1, -0.5], [-1, -0.5, 1]], atol=1e-15)
    assert (rows == 3).all()


def test_no_rows_and_too_few() -> None:
    for n in (0, 2):
        rho, rows = spearman(np.zeros((n, 2)))
        assert np.isnan(rho).all() and (rows == n).all()


@given(st.integers(0, 99))
def test_any_increasing_function_and_any_order_of_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 3)).round(1)
    bent = np.stack([np.exp(x[:, 0]), x[:, 1] ** 3, 7 * x[:, 2] - 4], axis=1)
    order = rng.permutation(30)
    np.testing.assert_allclose(spearman(bent[order])[0], spearman(x)[0], atol=1e-12)
