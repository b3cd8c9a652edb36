"""Sharing out among groups, on arrays: an order of choice in which every prefix is a fair apportionment.

The divisor method of Sainte-Laguë (Webster), as an order: each row has a place, and places are sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def interleave(
    groups: NDArray[np.int64], weights: NDArray[np.float64], cost: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Re-order rows so that every prefix holds the groups in proportion to ``weights``.

    The rows come in order of choice.  The row that brings its group from cost c to c + w takes the place
    ``(c + w/2) / weight``, and places are sorted (ties: the earlier row).  With unit costs this is the Sainte-Laguë
    (Webster) divisor method, so a prefix of k rows apportions k without bias, sums to k exactly, and growing k never
    takes a row away.  A group that runs out leaves the rest to the others, by their weights.

    Exactness: with whole costs and weights, equal places compare equal (IEEE division rounds equal rationals alike),
    and two different ones, (2r+1)/2v and (2s+1)/2w, lie at least 1/((2r+1)·w) apart, relatively: they too compare right
    while rows times weight stays below 2⁵².  Beyond that, and with weights that are not whole (tempered shares), places
    closer than rounding count as a tie.  Rows of one group keep their order in every case.

    Parameters
    ----------
    groups : int array (n,), the group of each row, rows in order of choice.
    weights : float array (number of groups,); a group of weight 0 is left out.
    cost : float array (n,), at least 0; ones when None.

    Returns
    -------
    int array of positions into the input, at most n long.

    References
    ----------
    Balinski & Young 1982, "Fair Representation", on divisor methods.
    """
    return apportion(groups, weights, cost, None)[0]


def apportion(
    groups: NDArray[np.int64], weights: NDArray[np.float64], cost: NDArray[np.float64] | None, amounts: Amounts | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``interleave``'s order, and how many rows are floors and how many are not past a ceiling.

    Rows of floors come first, in proportion to the floors; then the others in their places, which count what the floor
    rows took; then those past their group's ceiling.  So a prefix that holds all floors is the apportionment with these
    minima and maxima: a divisor method hands out one seat after the other, and a group at its maximum gets none.
    """
    groups = np.asarray(groups, dtype=np.int64)
    n = groups.size
    if not n:
        return np.empty(0, dtype=np.int64), np.zeros(2, dtype=np.int64)
    cost = None if cost is None else np.asarray(cost, dtype=np.float64)
    sizes = np.bincount(groups, minlength=len(weights))
    by_group = np.argsort(groups, kind="stable")
    place = np.empty(n)
    tier = np.ones(0 if amounts is None else n, dtype=np.int8)  # floors, shares, past a ceiling, without a share
    end = taking_part = 0
    for group in np.flatnonzero(sizes):  # a group at a time: of what is as long as the pool, only the places are held
        rows = by_group[end : end + sizes[group]]
        end += sizes[group]
        running = np.arange(rows.size + 1.0) if cost is None else np.r_[0.0, np.cumsum(cost[rows])]
        # As a mean of two cumulative sums: each is monotone whatever the rounding, so the mean is.
        middle = (running[:-1] + running[1:]) / 2
        least = 0
        if amounts is not None:
            least, most = amounts.rows(int(group), running)
            tier[rows[:least]], tier[rows[most:]] = 0, 2
        # Without a weight: after everybody, then cut off.
        place[rows] = middle / weights[group] if weights[group] > 0 else np.inf
        if least:
            place[rows[:least]] = middle[:least] / max(running[least], 1e-300)  # a floor may be of rows without cost
        if weights[group] > 0 or least:
            taking_part += rows.size
        elif amounts is not None:
            tier[rows] = 3
    del by_group
    if amounts is None:
        return np.argsort(place, kind="stable")[:taking_part], np.array([0, taking_part])
    order = np.lexsort((place, tier))[:taking_part]
    return order, np.searchsorted(tier[order], [1, 2])


@dataclass(frozen=True, eq=False)
class Amounts:
    """What each group gets at least and at most, one number a group."""

    least: NDArray[np.float64]
    most: NDArray[np.float64]
    """Infinite where there is no ceiling."""
    shared: NDArray[np.bool_]
    """(2, number of groups) True where the floor, the ceiling is a share of the budget, met to within one row."""
    unit: str
    short: dict[str, dict[str, int]]
    """Groups that hold less than their floor, where that was allowed."""

    def rows(self, group: int, running: NDArray[np.float64]) -> tuple[int, int]:
        """Return how many rows of a group are its floor, and how many are within its ceiling.

        ``running`` is what the group's first 0, 1, 2, … rows cost.  In rows both are exact.
        """
        size = running.size - 1
        reach, within = (
            lambda amount: int(np.searchsorted(running, amount, side="left")),  # rows that it takes to reach it
            lambda amount: int(np.searchsorted(running, amount, side="right")) - 1,  # rows that it pays for
        )
        least = (within if self.shared[0, group] else reach)(self.least[group])
        most = (reach if self.shared[1, group] else within)(self.most[group])
        most = min(most, size)
        return min(least, most), most
