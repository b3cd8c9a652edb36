"""BIDS: the greedy choice of rows for whichever target the rows chosen so far serve worst."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.best_rows import BestRows

_GRID = 2.0**24
_BLOCK = 2**18  # numbers that are standardised together: 2 MB of float64 stay in cache


@dataclass(frozen=True, eq=False)
class Standardised:
    r"""Â = (A - μ) / σ, by column, from the mean and the sample standard deviation over the rows that are there.

    Â is held in whole multiples of 2⁻²⁴ (6e-8 of a standard deviation; float32 is no finer from Â = 1 on).  Then any
    sum of its values is exact in float64, in any order, and so is the order of any two differences Â - m: a running
    mean is the mean, and the fast search compares the very numbers that the plain one does.
    """

    mean: NDArray[np.float64]
    """(M,)"""
    scale: NDArray[np.float64]
    """(M,) σ, with n - 1 in the denominator; infinity, which makes Â 0, for a column that is constant to rounding."""
    there: NDArray[np.bool_]
    """(n,) False for a row that is NaN: it enters neither mean nor scale."""
    clip: float | None = None
    """Limit on abs(Â)."""

    @classmethod
    def of(cls, a: NDArray, *, clip: float | None = None) -> Standardised:
        """Measure the columns of ``a`` (n, M) in one pass over blocks of rows, in float64.

        Raises
        ------
        InputError
            If a row is NaN in part, or a value infinite, or too large for its square.
        """
        n, m = a.shape
        there = np.empty(n, dtype=bool)
        count, shift, mean, square = 0, np.zeros(m), np.zeros(m), np.zeros(m)
        for start, block in _blocks(a):
            is_there = there[start : start + len(block)] = ~np.isnan(block[:, 0])
            block = block.astype(np.float64) if is_there.all() else block[is_there].astype(np.float64)
            if not len(block):
                continue
            # Means and squares of two parts make those of both (Chan, Golub & LeVeque 1983): no cancellation.
            if not count:
                shift = block[0].copy()  # then a constant column is 0 without rounding, however many rows are added up
            block -= shift
            own = block.mean(axis=0)
            block -= own
            with np.errstate(over="ignore", invalid="ignore"):
                away = own - mean
                total = count + len(block)
                mean += away * (len(block) / total)
                square += np.einsum("nm,nm->m", block, block) + away**2 * (count * len(block) / total)
            count = total
        if not np.isfinite(square).all():
            column = int(np.argmin(np.isfinite(square)))
            raise InputError(
                f"BIDS: finite numbers were asked, column {column} has NaN, infinity or values too large to square; "
                "a row that could not be attributed is NaN in every column."
            )
        scale = np.sqrt(square / max(1, count - 1))
        rounding = np.finfo(a.dtype if a.dtype.kind == "f" else np.float64).eps
        mean += shift
        scale[scale <= rounding * np.abs(mean)] = np.inf
        return cls(mean, scale, there, clip)

    def __call__(self, values: NDArray, columns: NDArray | slice = slice(None)) -> NDArray[np.float64]:
        """Return Â of values of A: (..., M), or of the columns named."""
        z = (values - self.mean[columns]) / self.scale[columns]
        if self.clip is not None:
            z = np.clip(z, -self.clip, self.clip)
        return np.rint(z * _GRID) / _GRID

    def highest(self, a: NDArray) -> NDArray[np.float64]:
        """Return max_j Â_ij of each row (n,); NaN for a row of NaN."""
        out = np.empty(len(a))
        for start, block in _blocks(a):
            out[start : start + len(block)] = self(block).max(axis=1)
        return out


def _blocks(a: NDArray) -> Iterator[tuple[int, NDArray]]:
    rows = max(1, _BLOCK // max(1, a.shape[1]))
    for start in range(0, len(a), rows):
        yield start, np.asarray(a[start : start + rows])


@dataclass(frozen=True, eq=False)
class Greedy:
    """Rows in order of choice."""

    order: NDArray[np.int64]
    """(k,)"""
    gains: NDArray[np.float64]
    """(k,) max_j (Â_ij - m_j) when the row was chosen, in standard deviations."""
    targets: NDArray[np.int64]
    """(k,) the column that attained it, the lowest of equal ones: the target that the row was chosen for."""


def bids(
    a: NDArray, k: int, *, clip: float | None = None, depth: int | None = None, standard: Standardised | None = None
) -> Greedy:
    r"""Choose ``k`` rows, each the one that does most for a single target beyond what the chosen do on average.

    With Â the columns of ``a`` standardised over the rows, T the rows chosen so far and m_j the mean of Â_ij over T
    (0 at first), the next row is

        argmax_{i ∉ T} max_j (Â_ij - m_j)  =  the row of  max_j ((max_{i ∉ T} Â_ij) - m_j),

    since the two maxima commute.  On the right each column needs its best open row only (``BestRows``): O(M) a choice
    where the left takes O(n·M).  The choices are the same, ties included: the maximum may be attained in several rows,
    and the lowest is taken.  That row is the lowest of some column's equal best rows, hence its best row by the
    tie rule of ``BestRows``, so the lowest best row among the columns that attain the maximum is the one.

    Parameters
    ----------
    a : array (n, M), the influence of each row on each target, higher is better; float16 to float64 or whole numbers,
        or a memory map.  A row of NaN (it could not be attributed) is not chosen, and enters no mean.
    k : at most the number of rows that are not NaN.
    clip : limit on abs(Â), for targets so noisy that outliers win; none in the paper.
    depth : see ``BestRows``; changes no answer.
    standard : the columns of ``a`` as they were measured before, with their clip; None: measure them.

    Notes
    -----
    A constant column has Â = 0: every row does the same for that target.  Rows chosen when every other gain is below 0
    are then taken from the lowest up.

    Memory beyond ``a``: see ``BestRows``, and 17 bytes a row.

    References
    ----------
    Dai, Zhang, Ma & Peng 2025, "Improving Influence-based Instruction Tuning Data Selection for Balanced Learning of
    Diverse Capabilities" (arXiv:2501.12147).  Its σ is read as the sample standard deviation.
    """
    a = np.asarray(a)
    standard = Standardised.of(a, clip=clip) if standard is None else standard
    usable = int(np.count_nonzero(standard.there))
    if not 0 <= k <= usable:
        raise InputError(f"BIDS: k={k} rows were asked, {usable} of {len(a)} rows can be chosen; lower k.")
    order, gains, targets = np.empty(k, dtype=np.int64), np.empty(k), np.empty(k, dtype=np.int64)
    if not k:
        return Greedy(order, gains, targets)
    best = BestRows(a, standard.there, k, by=standard, depth=depth)
    sums = np.zeros(a.shape[1])  # of Â over the chosen rows: exact
    for t in range(k):
        gain = best.key - sums / max(1, t)
        highest = gain.max()
        columns = np.flatnonzero(gain == highest)
        column = columns[best.row[columns].argmin()]
        row = int(best.row[column])
        order[t], gains[t], targets[t] = row, highest, column
        sums += standard(a[row])
        best.close(row)
    return Greedy(order, gains, targets)
