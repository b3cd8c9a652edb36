"""Judgement-guided label verification: where a model's prediction and the label differ, a judge says which is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from curate.answers import MARKER, final_value
from curate.correction import Corrections, Corrector, Role
from curate.correctors._rules import Outcome, candidate, loss, marker_of, share_of, together


@dataclass(kw_only=True)
class LabelVerification(Corrector):
    """The prediction replaces a label that a judge finds wrong; nothing else changes a label.

    ===========================  ===================================================
    the judge, above ``eta``     the row
    ===========================  ===================================================
    the label is wrong           has the prediction in its place
    the prediction is wrong      is left to the selection
    both are right               is left to the selection: the label never flips
    both are wrong               is dropped, or left (``both_wrong``)
    ===========================  ===================================================

    A row whose prediction is its label is mastered and nothing is asked about it.  Zhang et al. 2025, LoopTool, JGLV;
    there for tool calls and with the judge's written word.  Here for answers of plain text, with its probability, in
    both orders.
    """

    name: ClassVar[str] = "label-verification"
    reference: ClassVar[str | None] = (
        'Zhang et al. 2025, "LoopTool: Closing the Data-Training Loop for Robust LLM Tool Calls" (arXiv:2511.09148)'
    )
    roles: ClassVar[Mapping[str, Role]] = {
        "candidates": Role("candidates", ("answers",)),
        "verdict": Role("verdict", ("confidence", "winner"), of="candidates", params={"prompt": "verification"}),
    }

    eta: float = 0.5
    """What the verdict's confidence must exceed; at 0.5 it is likelier than all the others together."""
    both_wrong: Literal["drop", "leave"] = "drop"
    """What becomes of a row where neither is right: dropped, as the paper does, or left to the selection."""
    match: Literal["text", "exact", "numeric"] = "text"
    """When prediction and label agree: the same text, the same but for case, spaces and punctuation at the ends, or the
    same final number."""
    marker: str = MARKER
    """What may stand before the final answer; what follows its last occurrence is compared (of exact and numeric)."""

    def __post_init__(self) -> None:
        share_of("eta", self.eta, self.name)
        marker_of(self.marker, self.name)

    @property
    def threshold(self) -> float:
        return self.eta

    def _correct(self, rows: Sequence[Mapping[str, Any]]) -> Corrections:
        return together([self._outcome(row) for row in rows])

    def _outcome(self, row: Mapping[str, Any]) -> Outcome:
        text, wrong = candidate(row["candidates"], row["answer"], "prediction", self.name)
        if wrong == "the prediction is the answer itself" or (text is not None and self._alike(text, row["answer"])):
            return Outcome("prediction and label agree")
        if text is None:
            return Outcome(wrong)
        winner, confidence = row["verdict"]["winner"], row["verdict"]["confidence"]
        if winner is None:
            return Outcome(f"no verdict: {row['verdict']['reason'] or 'none was given'}")
        sure = confidence is not None and confidence > self.eta
        if winner == "candidate":
            if sure:
                return Outcome("the label is wrong", confidence, "replace", text)
            return Outcome("the label is wrong, but not surely enough", confidence)
        if winner == "neither" and self.both_wrong == "drop":
            if sure:
                return Outcome("both are wrong", confidence, "drop")
            return Outcome("both are wrong, but not surely enough", confidence)
        said = {"answer": "the prediction is wrong", "tie": "both are right"}
        return Outcome(said.get(winner) or loss(winner, self.name), confidence)

    def _alike(self, prediction: str, label: str) -> bool:
        if self.match == "text":
            return False  # a prediction of the same text is no candidate
        value = final_value(prediction, self.match, self.marker)
        return value is not None and value == final_value(label, self.match, self.marker)
