"""How columns of numbers go together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.numerics.order import fractional_ranks


def spearman(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return Spearman's ρ of each pair of columns, and the number of rows that it is of.

    ρ is Pearson's correlation of the fractional ranks, ties averaged, over the rows that have both numbers.

    Parameters
    ----------
    x : (n, m); NaN where a row has no number.

    Returns
    -------
    (m, m) float64, symmetric, in [−1, 1]; NaN where fewer than three rows have both numbers, or one of the two columns
    is constant over them.  (m, m) int64.

    References
    ----------
    Spearman 1904, "The Proof and Measurement of Association between Two Things".
    """
    m = x.shape[1]
    there = ~np.isnan(x)
    patterns, pattern = np.unique(there, axis=1, return_inverse=True)  # few: the columns of a stage share their nulls
    pattern = pattern.reshape(m)
    rho = np.full((m, m), np.nan)
    rows = np.zeros((m, m), dtype=np.int64)
    for a in range(patterns.shape[1]):
        for b in range(a, patterns.shape[1]):
            both = patterns[:, a] & patterns[:, b]
            left, right = np.flatnonzero(pattern == a), np.flatnonzero(pattern == b)
            found = _standardised(x[both][:, left]).T @ _standardised(x[both][:, right])
            rho[np.ix_(left, right)] = np.clip(found, -1, 1)
            rho[np.ix_(right, left)] = rho[np.ix_(left, right)].T
            rows[np.ix_(left, right)] = rows[np.ix_(right, left)] = int(both.sum())
    return rho, rows


def _standardised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each column's ranks with mean 0 and norm 1; NaN for fewer than three rows and for a constant column."""
    out = np.full(x.shape, np.nan)
    for j in range(x.shape[1] if len(x) >= 3 else 0):
        ranks = fractional_ranks(x[:, j]) - 0.5
        if x[:, j].min() < x[:, j].max():
            out[:, j] = ranks / np.linalg.norm(ranks)
    return out if len(x) >= 3 else np.full((1, x.shape[1]), np.nan)
