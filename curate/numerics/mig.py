"""The greedy choice of rows for the information on tags, spread over a graph of similar tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.numerics.unit_rows import UnitRows

_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Spread:
    """Where the information of a row goes: the matrix P (tags, tags), sparse, by row."""

    first: NDArray[np.int64]
    """(tags + 1,) where each tag's part begins."""
    tags: NDArray[np.int64]
    share: NDArray[np.float64]
    """P at (tag, tags): above 0, and summing to 1 over the tags that give to one."""


def label_means(x: NDArray[Any], labels: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return the mean direction (count, d) of the rows of each label: the sum of their unit vectors.

    Exact (``UnitRows``), so that neither blocks nor the order of the rows change it.
    """
    from scipy.sparse import csr_matrix

    unit = UnitRows(x)
    sums = np.zeros((count, x.shape[1]))
    for start in range(0, len(x), _BLOCK):
        own = labels[start : start + _BLOCK]
        member = csr_matrix((np.ones(own.size), (own, np.arange(own.size))), shape=(count, own.size))
        sums += member @ unit[start : start + _BLOCK].astype(np.float64)
    return sums


def spread(means: NDArray[Any], threshold: float, weight: float) -> Spread:
    """Return the graph of tags by the cosine of their vectors ``means`` (tags, d).

    W is 1 on the diagonal and ``weight`` · cosine for two tags whose cosine is at least ``threshold`` (above 0); P is W
    with each column divided by its sum: what reaches a tag is a weighted mean over the tags that give to it.

    Time tags²·d; memory: blocks of 1,024 · 1,024 cosines.
    """
    unit = UnitRows(means)
    n = len(means)
    if not n:
        return Spread(np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))
    rows, columns, shares = [], [], []
    for start in range(0, n, _BLOCK):
        block = unit[start : start + _BLOCK]
        for other in range(0, n, _BLOCK):
            cosine = _cosines(block, unit[other : other + _BLOCK])
            near = cosine >= threshold
            own = np.arange(start, start + len(block))[:, None] == np.arange(other, other + cosine.shape[1])
            row, column = np.nonzero(near | own)
            rows.append(row + start)
            columns.append(column + other)
            shares.append(np.where(own[row, column], 1.0, weight * cosine[row, column]))
    row, column, share = np.concatenate(rows), np.concatenate(columns), np.concatenate(shares)
    row, column, share = row[share > 0], column[share > 0], share[share > 0]
    by_row = np.lexsort((column, row))
    row, column, share = row[by_row], column[by_row], share[by_row]
    share /= np.bincount(column, weights=share, minlength=n)[column]
    return Spread(np.searchsorted(row, np.arange(n + 1)), column, share)


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosines of unit rows held against their own lengths: exactly 1 for equal ones, 0 for rows of zeros."""
    squares = [np.einsum("nd,nd->n", u, u).astype(np.float64) for u in (a, b)]
    length = np.sqrt(np.outer(*squares))
    return np.divide((a @ b.T).astype(np.float64), length, out=np.zeros(length.shape), where=length > 0)


def _that_share(graph: Spread) -> Any:
    """Return a sparse matrix (tags, tags) that has an entry where rows of two tags reach a tag in common."""
    from scipy.sparse import csr_matrix

    count = graph.first.size - 1
    reaches = csr_matrix((np.ones(graph.tags.size, dtype=np.int32), graph.tags, graph.first), shape=(count, count))
    return reaches @ reaches.T


_EQUAL = 1e-12
"""Relative difference below which two gains are one: the sums behind them run in another order."""


@dataclass(frozen=True, eq=False)
class MIG:
    """Rows in order of choice."""

    order: NDArray[np.int64]
    """(k,)"""
    gains: NDArray[np.float64]
    """(k,) what each added to the information."""


def mig(
    labels: NDArray[np.int64], graph: Spread, k: int, *, quality: NDArray[np.float64] | None = None, power: float = 0.8
) -> MIG:
    r"""Choose ``k`` rows greedily for the information Σ_t φ(Σ_{i ∈ S} q_i P_{l(i) t}), φ(y) = y^power.

    A row of tag l brings q_i of information to l and, by the graph, to tags like it; what a tag already has makes more
    of it worth less.  The objective is monotone and submodular, so that the greedy choice reaches 1 - 1/e of the best.

    Of one tag's rows the best is always the one of highest quality, of equal ones the lowest: one candidate a tag.  A
    tag's gain can only fall, and only when a row of a tag is chosen that reaches what it reaches; it is looked at again
    when the last one known is the highest (Minoux 1978).

    Parameters
    ----------
    labels : (n,) the tag of each row, below the number of tags in ``graph``.
    quality : (n,) at least 0; None: 1 for all.
    power : above 0, below 1: 1 would be the sum of quality, whatever the tags.

    Notes
    -----
    Ties go to the lowest row; gains that rounding alone tells apart are ties.  Time of one choice: the number of tags,
    and the links of the few that are looked at.

    References
    ----------
    Chen et al. 2025, "MIG: Automatic Data Selection for Instruction Tuning by Maximizing Information Gain in Semantic
    Space".  There a row is valued by the slope φ'(information + 1e-6), which at tags that have none yet is 16 times
    that at 1, whatever the row brings; here by what it adds, which is bounded.
    """
    n, count = labels.size, graph.first.size - 1
    quality = np.ones(n) if quality is None else quality
    queue = np.lexsort((np.arange(n), -quality, labels))  # each tag's rows, the best first
    place = np.searchsorted(labels[queue], np.arange(count + 1))
    end = place[1:].tolist()
    head = place[:-1].copy()
    information = np.zeros(count)
    order, gains = np.empty(k, dtype=np.int64), np.empty(k)
    bound = np.where(head < place[1:], np.inf, -np.inf)  # -inf: no row is left
    stale = np.ones(count, dtype=bool)
    touched = _that_share(graph)
    for t in range(k):
        while True:
            top = bound.max()
            best = np.flatnonzero(bound >= (top * (1 - _EQUAL) if np.isfinite(top) else top))
            old = best[stale[best]]
            if not old.size:
                break
            for tag in old.tolist():
                part = slice(graph.first[tag], graph.first[tag + 1])
                has = information[graph.tags[part]]
                brings = quality[queue[head[tag]]] * graph.share[part]
                bound[tag] = ((has + brings) ** power - has**power).sum()
                stale[tag] = False
        tag = int(best[queue[head[best]].argmin()])
        row = queue[head[tag]]
        order[t], gains[t] = row, bound[tag]
        part = slice(graph.first[tag], graph.first[tag + 1])
        information[graph.tags[part]] += quality[row] * graph.share[part]
        stale[touched.indices[touched.indptr[tag] : touched.indptr[tag + 1]]] = True
        head[tag] += 1
        if head[tag] == end[tag]:
            bound[tag] = -np.inf
    return MIG(order, gains)
