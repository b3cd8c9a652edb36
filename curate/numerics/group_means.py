"""Means of columns over groups of rows, in standard deviations of all rows, from one pass over blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class GroupMeans:
    r"""Sums that give μ_j, σ_j of every column, and of each group of rows its mean of Â_ij = (A_ij − μ_j) / σ_j.

    μ and σ (n − 1 in its denominator) are over all rows that were added, as in BIDS; a column that is constant to
    rounding has σ = ∞, so that Â is 0.  Groups may overlap.  Everything is summed in float64.
    """

    groups: int
    shift: NDArray[np.float64]
    """(M,) any one row: it is taken off before anything is squared, so that few digits cancel."""
    rows: int = 0
    count: NDArray[np.int64] = field(init=False)
    """(G,) rows of each group."""
    _total: NDArray[np.float64] = field(init=False)  # (G + 1, M); the last is of all rows
    _square: NDArray[np.float64] = field(init=False)
    _rounding: float = 0.0

    def __post_init__(self) -> None:
        self.count = np.zeros(self.groups, dtype=np.int64)
        self._total = np.zeros((self.groups + 1, self.shift.size))
        self._square = np.zeros(self.shift.size)

    def add(self, block: NDArray[np.floating], member: NDArray[np.bool_]) -> None:
        """Add rows (b, M), none of them NaN; ``member`` (G, b) says which groups each is of."""
        away = block - self.shift
        self.rows += len(block)
        self.count += member.sum(axis=1)
        self._total[:-1] += member.astype(np.float64) @ away
        self._total[-1] += away.sum(axis=0)
        self._square += np.einsum("nm,nm->m", away, away)
        self._rounding = max(self._rounding, float(np.finfo(block.dtype).eps))

    def merge(self, other: GroupMeans) -> None:
        """Add the rows that were added to another one of the same groups and shift."""
        self.rows += other.rows
        self.count += other.count
        self._total += other._total
        self._square += other._square
        self._rounding = max(self._rounding, other._rounding)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(M,) μ; NaN without a row."""
        with np.errstate(invalid="ignore"):
            return self.shift + self._total[-1] / self.rows

    @property
    def scale(self) -> NDArray[np.float64]:
        """(M,) σ."""
        with np.errstate(invalid="ignore"):
            spread = self._square - self._total[-1] ** 2 / self.rows
        scale = np.sqrt(np.maximum(spread, 0) / max(1, self.rows - 1))
        scale[scale <= self._rounding * np.abs(self.mean)] = np.inf
        return scale

    def normalised(self) -> NDArray[np.float64]:
        """Return (G, M) each group's mean Â; NaN for a group without a row."""
        with np.errstate(invalid="ignore"):
            return (self._total[:-1] / self.count[:, None] - self._total[-1] / self.rows) / self.scale
