r"""CLEAR's Auto-Correct: another answer where a model is sure that it is the better one.

    y ← ŷ     if both orders of the two answers give the verdict "ŷ is better", and q > η

ŷ is what a model, as a rule one trained on the rows that the filter kept, answers greedily to the row's prompt; q the
confidence of the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from curate.correction import Corrections, Corrector, Role
from curate.correctors._rules import Outcome, candidate, loss, share_of, together


@dataclass(kw_only=True)
class AutoCorrect(Corrector):
    """The candidate replaces the answer if it wins in both orders and the verdict's confidence is above ``eta``.

    Every other row is left to the selection: kept if the filter kept it, else dropped (Chen & Mueller 2024, CLEAR,
    Auto-Correct; there the model samples its verdict and reflects on it, here its probability is read).  A candidate
    that is empty, was cut, or is the answer itself replaces nothing, whatever the verdict.
    """

    name: ClassVar[str] = "auto-correct"
    reference: ClassVar[str | None] = (
        'Chen & Mueller 2024, "Automated Data Curation for Robust Language Model Fine-Tuning" (CLEAR, arXiv:2403.12776)'
    )
    roles: ClassVar[Mapping[str, Role]] = {
        "candidates": Role("candidates", ("answers",)),
        "verdict": Role("verdict", ("confidence", "winner"), of="candidates"),
    }

    eta: float = 0.8
    """η: the confidence that the verdict must exceed.  The paper's 0.8."""

    def __post_init__(self) -> None:
        share_of("eta", self.eta, self.name)

    @property
    def threshold(self) -> float:
        return self.eta

    def _correct(self, rows: Sequence[Mapping[str, Any]]) -> Corrections:
        return together([self._outcome(row) for row in rows])

    def _outcome(self, row: Mapping[str, Any]) -> Outcome:
        text, wrong = candidate(row["candidates"], row["answer"], "candidate", self.name)
        if text is None:
            return Outcome(wrong)
        winner, confidence = row["verdict"]["winner"], row["verdict"]["confidence"]
        if winner is None:
            return Outcome(f"no verdict: {row['verdict']['reason'] or 'none was given'}")
        if winner != "candidate":
            return Outcome(loss(winner, self.name), confidence)
        if confidence is not None and confidence > self.eta:
            return Outcome("the candidate is better", confidence, "replace", text)
        return Outcome("the candidate is better, but not surely enough", confidence)
