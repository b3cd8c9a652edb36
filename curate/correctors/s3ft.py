r"""Selective self-to-supervised fine-tuning: the model's own words wherever they say what the gold answer says.

    y ← ŷ                if c(ŷ, y) > t           ŷ: the model's own answer
    y ← ỹ                else if c(ỹ, y) > t      ỹ: its paraphrase of the gold answer y
    y                    else

Training on one's own words changes a model less, so that it forgets less (Gupta et al. 2025, §3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from curate.correction import Corrections, Corrector, Role
from curate.correctors._rules import Outcome, candidate, share_of, together


@dataclass(kw_only=True)
class S3FT(Corrector):
    """The model's own answer, or else its paraphrase of the gold one, if a check says that it is equivalent.

    A check is any scorer whose first column says, from 0 to 1, how far an answer agrees with the row's: ``equivalence``
    asks a model, ``consistency`` with ``similarity: numeric`` compares final numbers.  Without ``paraphrase`` only own
    answers are taken.  Gold answers that stay are left to the selection.

    The paper's checks are a task's own heuristic or a model as a judge; the paraphrase is checked like the own answer.
    """

    name: ClassVar[str] = "s3ft"
    reference: ClassVar[str | None] = (
        'Gupta et al. 2025, "Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models" '
        "(S3FT, arXiv:2502.08130)"
    )
    roles: ClassVar[Mapping[str, Role]] = {
        "candidates": Role("candidates", ("answers",)),
        "check": Role("equivalence", of="candidates"),
        "paraphrase": Role("candidates", ("answers",), optional=True, params={"prompt": "paraphrase"}),
        "paraphrase_check": Role("equivalence", of="paraphrase", optional=True),
    }

    threshold: float = 0.5
    """t: what a check must exceed."""

    def __post_init__(self) -> None:
        share_of("threshold", self.threshold, self.name)

    def _correct(self, rows: Sequence[Mapping[str, Any]]) -> Corrections:
        return together([self._outcome(row) for row in rows])

    def _outcome(self, row: Mapping[str, Any]) -> Outcome:
        own = self._tried(row, "candidates", "check", "own answer", "own answer, equivalent to the gold one")
        if own.action or row["paraphrase"] is None or own.rule == "the own answer is the answer itself":
            return own
        other = self._tried(row, "paraphrase", "paraphrase_check", "paraphrase", "paraphrase of the gold answer")
        return other if other.action else Outcome(f"{own.rule}; {other.rule}", other.confidence)

    def _tried(self, row: Mapping[str, Any], role: str, check: str, what: str, rule: str) -> Outcome:
        """Return what one of the two texts, and its check, come to."""
        text, wrong = candidate(row[role], row["answer"], what, self.name)
        if text is None:
            return Outcome(wrong)
        value = row[check]["value"]
        if value is None:
            return Outcome(f"no check of the {what}: {row[check]['reason'] or 'none was made'}")
        if value > self.threshold:
            return Outcome(rule, value, "replace", text)
        return Outcome(f"the {what} is not equivalent", value)
