from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.kmeans import kmeans
from curate.numerics.mig import label_means, mig, spread
from curate.numerics.milestones import objective_after
from curate.numerics.order import fractional_ranks


@dataclass(kw_only=True)
class MIG(Selector):
    """Rows that bring the most information on tags, quality and coverage in one objective (MIG).

    Each row has one tag: its label in ``groups`` (a tagger's, a cluster's of another stage), or the cluster that
    k-means on the features finds.  Tags whose mean vectors have a cosine of at least ``threshold`` share what a row
    brings.  Greedy choice for Σ over tags of information ** ``power``; ``curate.numerics.mig`` has the formulas.  Ties:
    the lowest row.

    The account: "objective", that sum after 1, 2, 5, 10, … rows; "tags"; "links", pairs of tags that share.

    Where this differs from the paper and its code: one tag a row instead of several; a row is valued by what it adds
    instead of by the slope of the objective; tags are placed by the mean of their rows' features instead of by an
    embedding of their names, for which 0.9 need not be the right threshold: look at "links".

    References
    ----------
    Chen et al. 2025, "MIG: Automatic Data Selection for Instruction Tuning by Maximizing Information Gain in Semantic
    Space".
    """

    name: ClassVar[str] = "mig"
    reference: ClassVar[str] = (
        'Chen et al. 2025, "MIG: Automatic Data Selection for Instruction Tuning by Maximizing Information Gain in '
        'Semantic Space"'
    )
    x_name: ClassVar[str] = "features"

    clusters: int | None = None
    """Clusters to make of the features where no groups are given; None: one per 64 rows, at most 1,024."""
    threshold: float = 0.9
    """Cosine from which on two tags share; 2 for none."""
    weight: float = 1.0
    """What a tag passes on to another, beside 1 to itself, before it is scaled by their cosine."""
    power: float = 0.8
    """φ(y) = y ** power: the lower, the sooner a tag has had enough."""
    quality_scale: Literal["rank", "proportional"] = "rank"
    """What a row brings, where quality is given: its fractional rank in the pool, in (0, 1), or quality as it is, at
    least 0, as in the paper."""
    seed: int = 0
    """Names the draws of k-means."""

    def __post_init__(self) -> None:
        if self.clusters is not None and self.clusters < 1:
            raise InputError(f"MIG: clusters of at least 1 was asked, {self.clusters} was found.")
        if not self.threshold > 0:
            raise InputError(f"MIG: a threshold above 0 was asked, {self.threshold} was found; take 2 for no links.")
        if not 0 < self.power < 1:
            raise InputError(f"MIG: a power above 0 and below 1 was asked, {self.power} was found.")
        if not 0 <= self.weight < np.inf:
            raise InputError(f"MIG: a weight of 0 or more was asked, {self.weight} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        n, made, labels = inputs.n, None, inputs.groups
        if labels is None:
            labels = made = self._clusters(inputs)
        count = int(labels.max(initial=-1)) + 1
        graph = spread(label_means(inputs.x, labels, count), self.threshold, self.weight)
        chosen = mig(labels, graph, k, quality=self._quality(inputs.quality), power=self.power)
        beyond = np.ones(n, dtype=bool)
        beyond[chosen.order] = False
        return Ranking(
            chosen.order,
            basis=inputs.quality,
            basis_name="quality",
            descending=None,
            labels=made,
            gains=chosen.gains,
            beyond=beyond,
            account={
                "objective": objective_after(chosen.gains),
                "tags": count,
                "links": (graph.tags.size - count) // 2,
            },
        )

    def _clusters(self, inputs: Inputs) -> NDArray[np.int64]:
        assert inputs.x is not None
        count = self.clusters or min(1024, max(1, inputs.n // 64))
        labels = kmeans(inputs.x, count, seed=self.seed).labels
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)  # no cluster without rows

    def _quality(self, quality: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        if quality is None:
            return None
        if self.quality_scale == "rank":
            return fractional_ranks(quality)
        if quality.size and quality.min() < 0:
            row = int(quality.argmin())
            raise InputError(
                f"MIG: quality_scale='proportional' asks for quality of at least 0, {quality[row]:.6g} was found "
                f"at row {row}; take quality_scale='rank' for any score."
            )
        return quality
