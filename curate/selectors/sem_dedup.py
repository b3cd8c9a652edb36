from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.clusters import squares_to_means
from curate.numerics.kmeans import kmeans
from curate.numerics.order import best_first
from curate.numerics.unlike import unlike
from curate.selectors.near_duplicates import groups, kept

_ALL_PAIRS = 32_768  # rows up to which every pair is compared, unless a number of clusters is given
_CLUSTER = 4096


@dataclass(kw_only=True)
class SemDeDup(Selector):
    """Semantic duplicates: of rows whose vectors nearly coincide, the best stays.

    1. ``x``, the vectors (n, d), brought to length 1, is clustered by k-means.  Pairs across clusters are not seen: the
       fewer clusters, the fewer are missed.
    2. Within each cluster rows are walked by falling ``quality``, equal ones in row order; without quality by falling
       distance to the centroid, as in the paper.

           drop i  ⇔  max cos(x_i, x_j) > 1 - epsilon,  j over the rows of the cluster that were kept before

       The row with the highest cosine, the earliest of equal ones, stands for it.

    A row of zeros has no direction: it is a copy of other such rows and of no other.  Cosines are decided in float64,
    so neither blocks nor threads matter.  Without a budget all rows that stay are kept, in the order walked: by
    quality; without quality in row order.

    Where this differs from the paper and its code: a row is held against the rows that stay only, not against earlier
    ones that were dropped themselves, so the row named is itself near; small pools are compared as a whole; and "keep
    the better copy" is added.

    Time Σ |cluster|² · d / 2 multiply-adds; memory 8 · d bytes a row of the largest cluster, 60 bytes a row.

    References
    ----------
    Abbas, Tirumala, Simig, Ganguli & Morcos 2023, "SemDeDup: Data-efficient learning at web-scale through semantic
    deduplication", section 3 and appendix (arXiv:2303.09540).
    """

    name: ClassVar[str] = "sem-dedup"
    reference: ClassVar[str] = (
        'Abbas, Tirumala, Simig, Ganguli & Morcos 2023, "SemDeDup: Data-efficient learning at web-scale through '
        'semantic deduplication" (arXiv:2303.09540)'
    )
    x_name: ClassVar[str] = "features"

    epsilon: float = 0.05
    """A row whose cosine to a kept one is above 1 - epsilon is a copy.  What is right depends on the vectors: look at
    the pairs in the ledger.  (The paper has 0.001 to 0.1.)"""
    clusters: int | None = None
    """Number of clusters; 1 compares every pair.  None: 1 up to 32,768 rows, then one per 4,096 rows."""
    iterations: int = 20
    """Lloyd iterations at most."""
    seed: int = 0
    """Names the draws of k-means."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise InputError(f"SemDeDup: an epsilon between 0 and 1 was asked, {self.epsilon} was found.")
        for parameter, count in {"clusters": self.clusters, "iterations": self.iterations}.items():
            if count is not None and count < 1:
                raise InputError(f"SemDeDup: {parameter} of at least 1 was asked, {count} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        n = inputs.n
        clusters = self.clusters or (1 if n <= _ALL_PAIRS else -(-n // _CLUSTER))
        order = None if inputs.quality is None else best_first(inputs.quality)
        instead = np.full(n, -1, dtype=np.int64)
        cosine = np.full(n, np.nan)
        largest = 0
        for members in self._clusters(inputs.x, clusters, order):
            largest = max(largest, members.size)
            if members.size == 1:
                continue
            # A cluster's rows are gathered, but for one that is the whole pool.
            whole = members.size == n
            rows, walk = (inputs.x, members) if whole else (inputs.x[members], np.arange(members.size))
            found = unlike(rows, walk, 1 - self.epsilon, members.size)
            dropped = np.ones(len(rows), dtype=bool)
            dropped[found.accepted] = False
            nearest, at = found.nearest[dropped], np.flatnonzero(dropped)
            instead[at if whole else members[at]] = nearest if whole else members[nearest]
            cosine[at if whole else members[at]] = found.cosine[dropped]
        return Ranking(
            kept(instead >= 0, order),
            basis=cosine,
            basis_name="cosine",
            descending=None,
            why_not="nearly the same vector as that of a row that stays",
            bound=1 - self.epsilon,
            instead=instead,
            account={**groups(instead), "clusters": min(clusters, n), "largest_cluster": largest},
        )

    def _clusters(self, x: NDArray[Any], count: int, order: NDArray[np.int64] | None) -> Iterator[NDArray[np.int64]]:
        """Yield the rows of each cluster, in the order in which they are walked."""
        units = _UnitRows(x)
        if not len(x):
            return
        if count == 1 and order is not None:
            yield order
            return
        labels: NDArray[np.int64] = np.zeros(len(x), dtype=np.int64)
        if count > 1:
            found = kmeans(units, count, seed=self.seed, iterations=self.iterations)  # type: ignore[arg-type]
            labels = found.labels
        if order is None:
            order = np.argsort(-squares_to_means(units, labels), kind="stable")  # type: ignore[arg-type]
        order = order[np.argsort(labels[order], kind="stable")]
        ends = np.cumsum(np.bincount(labels))
        yield from (part for part in np.split(order, ends[:-1]) if part.size)


class _UnitRows:
    """The rows of an array, each of length 1 (a row of zeros: of length 0), made when they are looked at; float32."""

    def __init__(self, x: NDArray[Any]) -> None:
        self._x = np.asarray(x)  # a memory map as a plain array: taking rows of it is faster
        self.shape = x.shape

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        block = self._x[rows].astype(np.float64)
        block /= np.maximum(np.abs(block).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)  # no square overflows
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        return (block / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
