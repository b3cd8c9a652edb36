"""An answer written anew by a rubric, taken where a model is sure that it is the better one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from curate.correction import Role
from curate.correctors.auto_correct import AutoCorrect


@dataclass(kw_only=True)
class Rewrite(AutoCorrect):
    """The rule of ``auto-correct``; the candidate is the row's own answer, rewritten as a prompt file asks.

    No reference answer is needed: the prompt ``rewrite`` shows question and answer, and asks for what a good answer
    needs.  Models like what models wrote, so a verdict that both orders agree on is asked for here too.
    """

    name: ClassVar[str] = "rewrite"
    reference: ClassVar[str | None] = None
    roles: ClassVar[Mapping[str, Role]] = {
        "candidates": Role("candidates", ("answers",), params={"prompt": "rewrite"}),
        "verdict": Role("verdict", ("confidence", "winner"), of="candidates"),
    }
