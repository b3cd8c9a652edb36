from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.base import Inputs, Ranking, Selector
from curate.numerics.order import best_first


@dataclass(kw_only=True)
class Longest(Selector):
    """The longest responses first: a baseline that any selection should be held against (Zhao et al. 2024).

    ``x`` holds the lengths, in any unit; equal lengths in row order.  With a budget in tokens it keeps few, long rows.

    References
    ----------
    Zhao, Andriushchenko, Croce & Flammarion 2024, "Long Is More for Alignment".
    """

    name: ClassVar[str] = "longest"
    reference: ClassVar[str] = 'Zhao, Andriushchenko, Croce & Flammarion 2024, "Long Is More for Alignment"'

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        return Ranking(best_first(inputs.x), basis=inputs.x, basis_name="length")
