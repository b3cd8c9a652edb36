from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.order import best_first
from curate.numerics.unlike import unlike


@dataclass(kw_only=True)
class ReprFilter(Selector):
    """DEITA's filter: the best rows that are not too like a better one that was kept.

    Rows are walked by falling ``quality`` (the paper's: complexity times quality), equal ones in row order.  A row is
    kept if its cosine to every row kept before it is at most ``threshold``; the walk ends when the budget is full.

        keep i  ⇔  max_{j kept before i} cos(x_i, x_j) ≤ threshold,    ``x`` features (n, d)

    A row that is turned away has that cosine as its number, and the kept row that it was too like named beside it.  A
    budget that the walk cannot fill is an error: raise the threshold, or lower the budget.  Rows of zeros are like one
    another and like no other row.

    Where this differs from the published code: that works in batches, and also turns rows away that are like a row of
    their batch which itself was turned away.  This is the paper's sequence, whatever is computed together.

    References
    ----------
    Liu, Zeng, He, Jiang & He 2024, "What Makes Good Data for Alignment?", section 3.3 (Repr Filter).
    """

    name: ClassVar[str] = "repr-filter"
    reference: ClassVar[str] = (
        'Liu, Zeng, He, Jiang & He 2024, "What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data '
        'Selection in Instruction Tuning" (DEITA, arXiv:2312.15685)'
    )
    needs_quality: ClassVar[bool] = True
    x_name: ClassVar[str] = "features"

    threshold: float = 0.9
    """The highest cosine to a kept row that a row may have; the paper's 0.9 is for its own vectors."""

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise InputError(f"ReprFilter: a threshold from -1 to 1, a cosine, was asked; {self.threshold} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        assert inputs.quality is not None
        order = best_first(inputs.quality)
        found = unlike(inputs.x, order, self.threshold, k)
        beyond = np.zeros(inputs.n, dtype=bool)
        beyond[order[found.walked :]] = True
        turned_away = ~beyond
        turned_away[found.accepted] = False
        return Ranking(
            found.accepted,
            basis=found.cosine,
            basis_name="highest cosine to a row kept before",
            descending=None,
            why_not="too like a better row",
            beyond=beyond,
            bound=self.threshold,
            instead=np.where(turned_away, found.nearest, -1),
            account={"walked": found.walked, "kept": found.accepted.size, "turned away": int(turned_away.sum())},
        )
