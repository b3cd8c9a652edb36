"""The greedy choice of rows whose vectors span the largest volume, in the space of the features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError

_CHUNK = 256  # rows whose gains are brought up to date together, at least
_BLOCK = 2048  # rows that are read together, at most
_LEAST = 1e-6
TOLERANCE = 1e-9  # gains that differ by less are equal: rounding moves the gains of equal rows by some 1e-12


@dataclass(frozen=True, eq=False)
class LogDet:
    """Rows in order of choice."""

    order: NDArray[np.int64]
    """(k,)"""
    gains: NDArray[np.float64]
    """(k,) what each added to the objective."""


def log_det(x: NDArray[Any], k: int, *, jitter: float = 1e-2, log_quality: NDArray[np.float64] | None = None) -> LogDet:
    r"""Choose ``k`` rows greedily for log det(I + U_S U_Sᵀ / λ) + 2 Σ_{i ∈ S} log q_i, U the rows of ``x`` at length 1.

    Up to k · log λ, the same for all sets of k rows, this is log det of diag(q) (U Uᵀ + λ I) diag(q) on S: the most
    probable set of k rows of a determinantal point process with the kernel of cosines, a jitter λ on its diagonal and
    the quality q.  A row's gain is

        log(1 + h_i) + 2 log q_i,    h_i = u_iᵀ P u_i,    P = (λ I + U_Sᵀ U_S)⁻¹,

    so the choice needs the matrix P (d, d) and one row at a time: no n × n kernel, and no n × k Cholesky factor as in
    the usual algorithm, whose pivots are λ (1 + h_i).  The factor would leave nothing but rounding once the chosen rows
    span all d dimensions, where pivots are near λ and found as differences of numbers near 1.  h_i is a sum of positive
    terms: the choice goes on past the rank, by how much a row adds to the directions that were served least (λ → 0:
    D-optimal design).

    h_i can only fall as rows are chosen.  So a gain found earlier bounds it, and only rows whose bound is above the
    best up-to-date gain are looked at again (Minoux 1978), those with the highest bounds first.  Gains within
    1e-9 of the highest are equal to it, and the lowest such row is taken.

    Parameters
    ----------
    x : array (n, d), finite; may be a read-only memory map, of which a few rows at a time are looked at.
    k : at most n.
    jitter : λ, at least 1e-6: rank-one changes of P leave an error of some 1e-16 / λ in the gains, also after 20,000.
    log_quality : (n,) log q_i; -inf for rows that come last.

    Notes
    -----
    A row of zeros adds nothing to the determinant, whatever is chosen: its gain is 2 log q.  Rows of log q = -inf
    follow when no other is left, by number.

    Time of one choice: d² for P and for each row that is looked at again, which are some hundred where rows differ in
    their gains (2,000 of 50,000 in 384 dimensions, at first) and all n where all are copies of one.  Float64.  Memory
    16 d² bytes, 25 bytes a row, blocks of 2,048 rows.

    References
    ----------
    Wang et al. 2024, "Diversity Measurement and Subset Selection for Instruction Tuning Datasets" (arXiv:2402.02318);
    Chen, Zhang & Zhou 2018, "Fast Greedy MAP Inference for Determinantal Point Process" for the usual algorithm.
    """
    if not jitter >= _LEAST:
        raise InputError(f"log_det: a jitter of at least {_LEAST} was asked, {jitter} was found.")
    n = len(x)
    state = _Gains(np.asarray(x), jitter, np.zeros(n) if log_quality is None else 2 * log_quality)
    order, gains = np.empty(k, dtype=np.int64), np.empty(k)
    for t in range(k):
        row = state.best()
        order[t], gains[t] = row, state.bound[row]
        state.take(row)
    return LogDet(order, gains)


class _Gains:
    """Upper bounds of all gains, and which of them are up to date."""

    def __init__(self, x: NDArray[Any], jitter: float, bonus: NDArray[np.float64]) -> None:
        self._x, self._bonus = x, bonus
        d = x.shape[1]
        self._inverse = np.eye(d) / jitter
        self._taken = 0
        self.bound = bonus + math.log1p(1 / jitter)
        self._fresh = np.full(len(x), -1)  # after how many choices the bound was found
        self._open = np.ones(len(x), dtype=bool)

    def best(self) -> int:
        """Return the lowest of the open rows whose gain is the highest to within the tolerance."""
        bound, rows = self.bound, np.array([self.bound.argmax()])
        if not self._open[rows[0]]:  # what is left has a gain of -inf, too
            rows = np.array([self._open.argmax()])
        while rows.size:
            self._look(rows)
            known = np.flatnonzero((self._fresh == self._taken) & self._open)
            highest = bound[known].max()
            row = int(known[bound[known] >= highest - TOLERANCE][0])
            stale = (self._fresh < self._taken) & self._open
            # Rows that may be better; when there are none, lower ones that may be as good.
            rows = np.flatnonzero(stale & (bound > highest + TOLERANCE))
            if not rows.size:
                rows = np.flatnonzero(stale[:row] & (bound[:row] >= highest - TOLERANCE))
            size = max(_CHUNK, rows.size // 8)  # of many a part, so that they are not gone over many times
            if rows.size > size:
                rows = rows[np.argpartition(-bound[rows], size)[:size]]
        return row

    def _look(self, rows: NDArray[np.int64]) -> None:
        for start in range(0, rows.size, _BLOCK):
            part = rows[start : start + _BLOCK]
            unit = self._unit(part)
            self.bound[part] = np.log1p(np.einsum("nd,nd->n", unit @ self._inverse, unit)) + self._bonus[part]
        self._fresh[rows] = self._taken

    def _unit(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        block = self._x[rows].astype(np.float64)
        peak = np.abs(block).max(axis=1, keepdims=True)
        np.divide(block, peak, out=block, where=peak > 1e-150)
        block[peak[:, 0] <= 1e-150] = 0
        length = np.sqrt(np.einsum("nd,nd->n", block, block))[:, None]
        return np.divide(block, length, out=block, where=length > 0)

    def take(self, row: int) -> None:
        self._open[row] = False
        self.bound[row] = -np.inf
        unit = self._unit(np.array([row]))[0]
        turned = self._inverse @ unit
        self._inverse -= np.outer(turned, turned / (1 + turned @ unit))
        self._taken += 1
