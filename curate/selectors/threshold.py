from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.budget import Budget
from curate.exceptions import InputError
from curate.numerics.order import best_first


@dataclass(kw_only=True)
class Threshold(Selector):
    """All rows with min ≤ score ≤ max, best first; the others may not be chosen."""

    name: ClassVar[str] = "threshold"

    min: float | None = None
    """Lowest score that is kept; None for no limit below."""
    max: float | None = None
    """Highest score that is kept; None for no limit above."""
    largest: bool = True
    """Whether a higher score is better: the order of choice, which counts when a budget cuts."""

    def __post_init__(self) -> None:
        low, high = self.limits
        if self.min is None and self.max is None:
            raise InputError("Threshold: min or max (or both) was asked, neither was found.")
        if not low <= high:  # also if one is NaN
            raise InputError(f"Threshold: min ≤ max was asked, min={self.min} and max={self.max} were found.")

    @property
    def limits(self) -> tuple[float, float]:
        return -math.inf if self.min is None else self.min, math.inf if self.max is None else self.max

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        low, high = self.limits
        order = best_first(inputs.x, largest=self.largest)
        if self.min is None:
            why_not = f"score above {high:.6g}"
        elif self.max is None:
            why_not = f"score below {low:.6g}"
        else:
            why_not = f"score outside {low:.6g} to {high:.6g}"
        return Ranking(
            order[(inputs.x[order] >= low) & (inputs.x[order] <= high)],
            basis=inputs.x,
            descending=self.largest,
            why_not=why_not,
            bound=self.max if self.min is None else self.min if self.max is None else None,
        )


@dataclass(kw_only=True)
class Quantile(Selector):
    """The best share of the scores, cut at a score: equal scores share one fate, unlike ``TopK`` with a budget of 10%.

    With n rows and m = ⌊share · n⌋ (at least 1), the cut is the m-th best score, always a score that occurs.  Kept are
    the rows at least as good as the cut (``ties="keep"``: m rows or more), or, with ``ties="drop"`` and a cut that the
    next row has too, only the better ones (m rows or fewer).  With distinct scores both keep exactly m.

    ``share=0.5, ties="drop"`` keeps exactly the rows above the median (of two rows or more): CLEAR's Auto-Filter.
    """

    name: ClassVar[str] = "quantile"

    share: float = 0.5
    """Share of the rows to keep, in (0, 1]; 0.1 cuts at the 0.9 quantile."""
    largest: bool = True
    """Whether a higher score is better."""
    ties: Literal["keep", "drop"] = "keep"
    """Whether rows that tie with the cut are all kept or, when not all of them fit, all dropped."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"Quantile: a share in (0, 1] was asked, {self.share} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        if not inputs.n:
            return Ranking(np.empty(0, dtype=np.int64), basis=inputs.x, descending=self.largest)
        m = Budget(fraction=self.share).limit(inputs.n)
        assert m is not None
        order = best_first(inputs.x, largest=self.largest)
        best = inputs.x[order]
        cut = best[m - 1]
        split = m < inputs.n and best[m] == cut  # the cut goes through a run of equal scores
        if self.ties == "drop" and split:
            kept = order[best > cut] if self.largest else order[best < cut]
            side = "not above" if self.largest else "not below"
        else:
            kept = order[best >= cut] if self.largest else order[best <= cut]
            side = "below" if self.largest else "above"
        return Ranking(
            kept,
            basis=inputs.x,
            descending=self.largest,
            why_not=f"score {side} {cut:.6g}, the cut of the best {self.share:.4g}",
            bound=float(cut),
        )
