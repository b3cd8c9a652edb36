from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

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

    With ``as_in`` each prompt keeps as many as it had responses in that source: the paper's r_x, for a data set that is
    to keep its size and shape while better fitting responses take the places of its own.  A prompt that the source does
    not have keeps none.  A recipe counts the source's rows in the whole pool, also those that lack a score; copies are
    counted once, where they were read first, so such a source stands first in the recipe.  With plain arrays the
    counts are ``limits``, and need no ``as_in``.

    References
    ----------
    Zhang, Dai & Peng 2025, "The Best Instruction-Tuning Data are Those That Fit": with the mean response
    log-probability under the base model as the score, argmax per instruction (r_x best where an instruction had r_x
    responses), among instructions of two different responses or more (``min_candidates=2``).
    """

    name: ClassVar[str] = "best-per-prompt"
    reference: ClassVar[str] = 'Zhang, Dai & Peng 2025, "The Best Instruction-Tuning Data are Those That Fit" (GRAPE)'
    needs_groups: ClassVar[bool] = True

    per_prompt: int = 1
    """Responses to keep of each prompt, at most."""
    as_in: str | None = None
    """The source whose rows say how many responses each prompt keeps, in place of ``per_prompt``."""
    min_candidates: int = 1
    """Prompts with fewer responses to choose among keep none."""
    largest: bool = True
    """Whether a higher score is better."""

    def __post_init__(self) -> None:
        for key in ("per_prompt", "min_candidates"):
            if getattr(self, key) < 1:
                raise InputError(f"BestPerPrompt: {key} of at least 1 was asked, {getattr(self, key)} was found.")
        if self.as_in is not None and self.per_prompt != 1:
            raise InputError(
                f"BestPerPrompt: as_in={self.as_in!r} and per_prompt={self.per_prompt}; one of them was asked."
            )

    @property
    def limits_from(self) -> str | None:
        return self.as_in

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None and inputs.groups is not None
        if self.as_in is not None and inputs.limits is None:
            raise InputError(
                f"BestPerPrompt: as_in={self.as_in!r} needs limits=, for each row the number of responses that its "
                "prompt had there; a recipe counts them."
            )
        limits = np.full(inputs.n, self.per_prompt) if inputs.limits is None else inputs.limits
        enough = np.bincount(inputs.groups, minlength=1)[inputs.groups] >= self.min_candidates
        order = best_first(inputs.x, largest=self.largest)
        order = order[enough[order]]
        winners = order[place_in_group(inputs.groups[order]) < limits[order]]
        # Not "a better one was kept": it may tie, and a budget may have cut it.
        beaten = "another response to the same prompt came before it"
        if inputs.limits is not None:
            beaten = "as many other responses to the same prompt as it may keep came before it"
        elif self.per_prompt > 1:
            beaten = f"{self.per_prompt} other responses to the same prompt came before it"
        why = [
            beaten,
            f"its prompt has fewer than {self.min_candidates} responses to choose among",
            f"its prompt has no response in {self.as_in}" if self.as_in else "its prompt may keep no response",
        ]
        return Ranking(
            winners,
            basis=inputs.x,
            descending=self.largest,
            why_not=why,
            which=np.where(limits < 1, 2, np.where(enough, 0, 1)),
        )
