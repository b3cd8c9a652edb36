"""Orders of choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_first(values: NDArray[np.float64], *, largest: bool = True) -> NDArray[np.int64]:
    """Return the row numbers (n,) from best to worst value; equal values in row order.  No NaN."""
    return np.argsort(-values if largest else values, kind="stable")


def place_in_group(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each of n positions how many earlier positions hold the same group: 0, 1, 2, … within each group."""
    n = groups.size
    together = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(groups[together]) != 0]) if n else np.empty(0, dtype=np.int64)
    place = np.empty(n, dtype=np.int64)
    place[together] = np.arange(n) - np.repeat(starts, np.diff(np.r_[starts, n]))
    return place


def fractional_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (rank − ½) / n of each value, in (0, 1): the lowest has rank 1, equal values share their mean rank.

    The mean is ½ whatever the values, and −values has the ranks 1 − r.  No NaN.
    """
    n = values.size
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - counts / 2)[which] / max(n, 1)
