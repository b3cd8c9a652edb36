from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.facility import facility
from curate.numerics.milestones import objective_after
from curate.numerics.neighbours import neighbours
from curate.numerics.order import fractional_ranks
from curate.seeding import rng_for


@dataclass(kw_only=True)
class FacilityLocation(Selector):
    """Rows that together are near every row of the pool (facility location), with quality: QDIT.

    Greedy choice for f(S) = Σ_i max_{j ∈ S} cosine(i, j), cosines below 0 counting as 0, over a graph of each row's
    nearest neighbours; with quality, for (1 - α) · gain + α · quality, the gain as a share of the highest one left and
    quality as its fractional rank in the pool, so that any score will do and both are in [0, 1] throughout.
    ``curate.numerics.facility`` has the formulas.  Equal rows: the lowest.

    A row of zeros has no cosine: nothing stands for it, it gains nothing and comes last.  So do, among rows of any
    quality, copies of rows that were chosen, and, where a sample is represented, rows that are no neighbour of any of
    it.  They are in the order, with gain 0; among equal gains and qualities the lowest row comes first.

    The account, after 1, 2, 5, 10, … rows: "objective", the mean cosine of the represented rows to the nearest chosen
    one, 0 for those that have none among their neighbours; "covered", the share of those that have one (where it stays
    well below 1, ``neighbours`` is too low for the budget).  "represented": how many rows these are.

    Where this differs from the paper: the graph instead of all n² similarities, both terms normalised.

    References
    ----------
    Bukharin & Zhao 2023, "Data Diversity Matters for Robust Instruction Tuning" (arXiv:2311.14736).
    """

    name: ClassVar[str] = "facility-location"
    reference: ClassVar[str] = (
        'Bukharin & Zhao 2023, "Data Diversity Matters for Robust Instruction Tuning" (QDIT, arXiv:2311.14736)'
    )
    x_name: ClassVar[str] = "features"

    neighbours: int = 64
    """How many of its nearest rows each row may be represented by.  More come closer to the objective over all pairs,
    and take as much more memory.  Where a row has three chosen ones among its neighbours on average (64, a budget of 5%
    of the pool) the loss is well below 1%; for smaller budgets take more."""
    alpha: float = 0.5
    """Weight α of quality, where quality is given; 0 looks at the features alone."""
    represent: int | None = None
    """How many rows of the pool, drawn by the seed, are to have a similar row among the chosen; None: all.  For pools
    of millions: time and memory are in proportion to it."""
    seed: int = 0
    """Names the draw of the represented rows."""

    def __post_init__(self) -> None:
        for parameter, count in (("neighbours", self.neighbours), ("represent", self.represent)):
            if count is not None and count < 1:
                raise InputError(f"FacilityLocation: {parameter} of at least 1 was asked, {count} was found.")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"FacilityLocation: alpha from 0 to 1 was asked, {self.alpha} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        n, rows = inputs.n, None
        if self.represent is not None and self.represent < n:
            draw = rng_for(self.seed, "facility-location", "represent")
            rows = np.sort(draw.choice(n, self.represent, replace=False))
        if not n:
            return Ranking(np.empty(0, dtype=np.int64))
        graph = neighbours(inputs.x, self.neighbours, rows=rows)
        quality = None if inputs.quality is None else fractional_ranks(inputs.quality)
        chosen = facility(graph, k, quality=quality, alpha=self.alpha)
        beyond = np.ones(n, dtype=bool)
        beyond[chosen.order] = False
        return Ranking(
            chosen.order,
            basis=chosen.alone,
            basis_name="cosines to the rows it is a neighbour of, summed",
            descending=None,  # what others already stand for is subtracted: that is in the gains
            gains=chosen.gains,
            beyond=beyond,
            account={
                "objective": objective_after(chosen.gains / len(chosen.nearest)),
                "covered": objective_after(chosen.first_near / len(chosen.nearest)),
                "represented": len(chosen.nearest),
            },
        )
