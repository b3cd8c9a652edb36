from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.base import Inputs, Ranking, Selector
from curate.numerics.order import best_first


@dataclass(kw_only=True)
class TopK(Selector):
    """The rows with the best scores, best first; equal scores in row order.  O(n log n)."""

    name: ClassVar[str] = "top-k"

    largest: bool = True
    """Whether a higher score is better."""

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        return Ranking(best_first(inputs.x, largest=self.largest), basis=inputs.x, descending=self.largest)
