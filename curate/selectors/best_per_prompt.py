from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.order import best_first, place_in_group


@dataclass(kw_only=True)
class BestPerPrompt(Selector):
    """The best response to each prompt (GRAPE's rule).  ``groups`` are the prompts.

    Of each prompt's rows the ``per_prompt`` best are kept, ties to the lowest row; the order of choice among the kept
    ones is by score over the whole pool.  The choice *within* a prompt is GRAPE's; a budget makes a further choice
    *between* prompts, by the same score, which is not (with a likelihood it prefers easy prompts): without a budget
    there is none.

    References
    ----------
    Zhang, Dai & Peng 2025, "The Best Instruction-Tuning Data are Those That Fit": with the mean response
    log-probability under the base model as the score, argmax per instruction (r_x best where an instruction had r_x
    responses).
    """

    name: ClassVar[str] = "best-per-prompt"
    reference: ClassVar[str] = 'Zhang, Dai & Peng 2025, "The Best Instruction-Tuning Data are Those That Fit" (GRAPE)'
    needs_groups: ClassVar[bool] = True

    per_prompt: int = 1
    """Responses to keep of each prompt, at most."""
    largest: bool = True
    """Whether a higher score is better."""

    def __post_init__(self) -> None:
        if self.per_prompt < 1:
            raise InputError(f"BestPerPrompt: per_prompt of at least 1 was asked, {self.per_prompt} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None and inputs.groups is not None
        order = best_first(inputs.x, largest=self.largest)
        winners = order[place_in_group(inputs.groups[order]) < self.per_prompt]
        return Ranking(
            winners,
            basis=inputs.x,
            descending=self.largest,
            # Not "a better one was kept": it may tie, and a budget may have cut it.
            why_not="another response to the same prompt came before it"
            if self.per_prompt == 1
            else f"{self.per_prompt} other responses to the same prompt came before it",
        )
