"""Several score columns made into one: (n, m) float64 in, (n,) float64 out, higher is better in both.

No NaN; ``curate.selectors.combine.combine`` takes those away, and turns columns where lower is better.  Weights (m,)
are at least 0 and sum to 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.numerics.order import fractional_ranks

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


def unit_range(x: Matrix) -> Matrix:
    """Return (x − min) / (max − min) of each column, in [0, 1]; ½ for a constant column."""
    if not len(x):
        return x.copy()
    low = x.min(axis=0)
    width = x.max(axis=0) - low
    return np.where(width > 0, (x - low) / np.where(width > 0, width, 1), 0.5)


def winsorised(x: Matrix, share: float) -> Matrix:
    """Return x with the ⌊share · n⌋ lowest and as many of the highest values of each column brought to the next one.

    Every other value stays, and so does the order up to new ties at the ends.  With fewer than
    1 / share rows nothing moves.
    """
    k = int(share * len(x) * (1 + 1e-12))  # 0.29 · 100 is 28.999999999999996 in floats
    if not k:
        return x
    ends = np.partition(x, (k, len(x) - 1 - k), axis=0)
    return np.clip(x, ends[k], ends[-1 - k])


def rank(x: Matrix, weights: Vector) -> Vector:
    """Weighted mean of the columns' fractional ranks, in (0, 1); equal values share their mean rank."""
    total = np.zeros(len(x))
    for column, weight in zip(x.T, weights, strict=True):
        total += weight * fractional_ranks(column)
    return total


def zscore(x: Matrix, weights: Vector) -> Vector:
    """Weighted mean of z = (x − mean) / std (population, ddof 0); zeros for a constant column.

    A column is constant if its values are equal, not if its computed std is 0: the rounded mean of n times 0.1 is not
    0.1.  Columns are first brought to [0, 1], which changes no z and keeps large values from overflowing when squared.
    """
    if not len(x):
        return np.zeros(0)
    t = unit_range(x)
    std = t.std(axis=0)
    return np.where(std > 0, (t - t.mean(axis=0)) / np.where(std > 0, std, 1), 0.0) @ weights


def minmax(x: Matrix, weights: Vector) -> Vector:
    """Weighted mean of the columns brought to [0, 1]; ½ for a constant column."""
    return unit_range(x) @ weights


def topsis(x: Matrix, weights: Vector) -> Vector:
    """Relative closeness to the ideal row, in [0, 1].

    r_ij = x_ij / ‖x_·j‖₂,  v_ij = w_j r_ij,  v⁺ = max_i v_i,  v⁻ = min_i v_i  (column by column),
    d±_i = ‖v_i − v±‖₂,  C_i = d⁻_i / (d⁺_i + d⁻_i).

    0/0 cases: a column of zeros stays zero; if all rows coincide (d⁺ = d⁻ = 0), C = ½.  A column where lower is better
    comes negated, which swaps its part of v⁺ and v⁻ and leaves every distance as it is.  Scaling a column by a positive
    number changes nothing; shifting it does.

    References
    ----------
    Hwang & Yoon 1981, "Multiple Attribute Decision Making" (vector normalisation); DONOD (Hu et al. 2025).
    """
    if not len(x):
        return np.zeros(0)
    top = np.abs(x).max(axis=0)
    scaled = x / np.where(top > 0, top, 1)  # so that squares of large values cannot overflow
    norm = np.sqrt((scaled**2).sum(axis=0))
    v = scaled / np.where(norm > 0, norm, 1) * weights
    to_best = np.sqrt(((v - v.max(axis=0)) ** 2).sum(axis=1))
    to_worst = np.sqrt(((v - v.min(axis=0)) ** 2).sum(axis=1))
    total = to_best + to_worst
    return np.where(total > 0, to_worst / np.where(total > 0, total, 1), 0.5)


def product(x: Matrix, weights: Vector) -> Vector:
    """Weighted geometric mean Π_j x_ij^w_j of numbers of at least 0: with equal weights, the order of the product.

    Of whole numbers with equal weights equal products come out equal: powers are taken after multiplying.
    """
    if not len(x):
        return np.zeros(0)
    exponent = np.frexp(x.max(axis=0))[1]  # powers of two are taken out, which rounds nothing, against overflow
    highest = weights.max()
    inner = np.prod(np.ldexp(x, -exponent) ** (weights / highest), axis=1) ** highest
    return inner * 2.0 ** float(weights @ exponent)


def mean(x: Matrix, weights: Vector) -> Vector:
    """Weighted mean of the numbers as they are: Σ_j w_j x_ij.  For columns of one unit, such as shares in [0, 1]."""
    total = np.zeros(len(x))
    for column, weight in zip(x.T, weights, strict=True):  # in one order whatever the rows beside: each row to the bit
        total += weight * column
    return total


def mean_of_present(x: Matrix, weights: Vector) -> Vector:
    """Weighted mean over the numbers that a row has, its weights brought to sum to 1; NaN for a row without any.

    x may hold NaN where a number is missing.  A row that has all of them gets what ``mean`` gives, to the last bit.
    """
    there = ~np.isnan(x)
    whole = there.all(axis=1)
    share = there @ weights
    out = np.full(len(x), np.nan)
    out[whole] = mean(x[whole], weights)
    part = ~whole & (share > 0)
    out[part] = mean(np.where(there[part], x[part], 0.0), weights) / share[part]
    return out


METHODS = {"rank": rank, "zscore": zscore, "minmax": minmax, "topsis": topsis, "product": product, "mean": mean}
