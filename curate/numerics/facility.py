"""Facility location over a sparse graph: rows chosen so that every row has a similar one among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.numerics.neighbours import Neighbours

_CHOSEN = -1e300  # below any gain; times 0 it is 0


@dataclass(frozen=True, eq=False)
class Facility:
    """Rows in order of choice."""

    order: NDArray[np.int64]
    """(k,)"""
    gains: NDArray[np.float64]
    """(k,) what each added to f, cosines."""
    alone: NDArray[np.float64]
    """(n,) f of each row alone: how much of the pool is near it."""
    first_near: NDArray[np.int64]
    """(k,) how many represented rows had no chosen row among their neighbours before."""
    nearest: NDArray[np.float64]
    """(r,) cosine of each represented row to the nearest chosen one, 0 where none is among its neighbours."""


def facility(graph: Neighbours, k: int, *, quality: NDArray[np.float64] | None = None, alpha: float = 0.0) -> Facility:
    r"""Choose ``k`` rows greedily for f(S) = Σ_i max_{j ∈ S} w_ij, over the represented rows i.

    w_ij is the cosine where j is among the neighbours of i and 0 elsewhere: f never overstates what it stands for, and
    is monotone and submodular, so that the greedy choice reaches 1 - 1/e of the best.  The next row is

        argmax_{j ∉ S} (1 - α) · gain_j / (highest gain of any row left) + α · quality_j,     gain_j = f(S + j) - f(S),

    the lowest of equal ones.  Gains shrink as rows are chosen; held against the highest one left they weigh the same
    throughout.  Where no row gains any more the rest follows by quality, then by row number.

    Gains are not searched for (lazily or otherwise) but kept: when i finds a nearer row, only the gains of its
    neighbours fall.  Similarities are multiples of 2⁻²⁴, so that the differences add up without any rounding, and the
    gains are those that a fresh sum would give, ties included.

    Parameters
    ----------
    graph : neighbours (r, m) of the represented rows.
    k : at most n.
    quality : (n,) in [0, 1], for ``alpha`` above 0.

    Notes
    -----
    Time of one choice: the rows that it serves times m, and n to find the highest.  Memory: 16·r·m bytes beyond the
    graph, and 25 bytes a row.

    References
    ----------
    Bukharin & Zhao 2023, "Data Diversity Matters for Robust Instruction Tuning" (arXiv:2311.14736), section 3: there
    gains are not normalised, so that quality decides alone once they have become small.  Nemhauser, Wolsey & Fisher
    1978 for the bound.
    """
    n = graph.n
    served, weight, first = _by_column(graph)
    gain = np.bincount(graph.index.ravel(), weights=graph.similarity.ravel(), minlength=n)
    alone = gain.copy()
    nearest = np.zeros(len(graph.index), dtype=np.float32)
    order, gains, first_near = np.empty(k, dtype=np.int64), np.zeros(k), np.zeros(k, dtype=np.int64)
    bonus = np.zeros(n) if quality is None else alpha * quality
    for t in range(k):
        if quality is None or not alpha:
            row = int(gain.argmax())
            highest = gain[row]
        else:
            highest = gain.max()
            row = int((gain * ((1 - alpha) / highest) + bonus).argmax()) if highest > 0 else 0
        if highest <= 0:  # nothing gains: what is left, best first
            left = np.flatnonzero(gain >= 0)
            order[t:] = left[np.argsort(-bonus[left], kind="stable")][: k - t]
            break
        order[t], gains[t] = row, gain[row]
        own = slice(first[row], first[row + 1])
        better = weight[own] > nearest[served[own]]
        rows, new = served[own][better], weight[own][better][:, None]
        old, around = nearest[rows][:, None], graph.similarity[rows]
        np.subtract.at(
            gain, graph.index[rows].ravel(), (np.maximum(around - old, 0) - np.maximum(around - new, 0)).ravel()
        )
        first_near[t] = np.count_nonzero(old == 0)
        nearest[rows] = new[:, 0]
        gain[row], bonus[row] = _CHOSEN, -np.inf  # and stay so, whatever is subtracted
    unit = graph.shrink**2
    return Facility(order, gains / unit, alone / unit, first_near, nearest.astype(np.float64) / unit)


def _by_column(graph: Neighbours) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """Return the graph turned around: whose neighbour each row is, at what similarity, and where its part begins."""
    from scipy.sparse import csr_matrix

    there = graph.similarity > 0
    first = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    rows = csr_matrix((graph.similarity[there], graph.index[there], first), shape=(len(there), graph.n))
    turned = rows.tocsc()
    return turned.indices, turned.data, turned.indptr.astype(np.int64)
