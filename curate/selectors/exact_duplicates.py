from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.numerics.near import copies
from curate.numerics.order import best_first
from curate.selectors.near_duplicates import groups, kept


@dataclass(kw_only=True)
class ExactDuplicates(Selector):
    """Exact duplicates: of rows of equal numbers, the best stays.

    ``x`` is digests (n, 2), as the scorer ``text-digest`` makes them, or any numbers (n, d); 0.0 and -0.0 are equal.
    Of equal rows the one with the highest ``quality`` stays, of several such the lowest row; without quality the
    lowest row.  It stands for the others, whose similarity is 1.  Without a budget all rows that stay are kept, the
    best first (without quality: in row order); budgets are prefixes.

    Memory: 70 bytes a row, and some 30 MB.
    """

    name: ClassVar[str] = "exact-duplicates"
    x_name: ClassVar[str] = "features"
    codes: ClassVar[bool | None] = None

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        order = None if inputs.quality is None else best_first(inputs.quality)
        d = inputs.x.shape[1]
        found = copies(inputs.x, d, [slice(0, d)], order=order)
        dropped = found.instead >= 0
        return Ranking(
            kept(dropped, order),
            basis=np.where(dropped, 1.0, np.nan),
            basis_name="similarity",
            descending=None,
            why_not="the same as a row that stays",
            bound=1.0,
            instead=found.instead,
            account=groups(found.instead),
        )
