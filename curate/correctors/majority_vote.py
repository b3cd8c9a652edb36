"""The final answer that most sampled solutions come to, with one of these solutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from curate.answers import MARKER, Kind, final_text, final_value
from curate.correction import Corrections, Corrector, Role
from curate.correctors._rules import Outcome, marker_of, share_of, together, written
from curate.exceptions import InputError
from curate.numerics.agreement import final_part


@dataclass(kw_only=True)
class MajorityVote(Corrector):
    """The first sample of the largest cluster replaces an answer that comes to something else.

    Samples that come to the same final answer are a cluster; the largest one counts if more than ``share`` of the
    samples that come to anything are in it, and these are ``least`` or more.  Samples that were cut have no vote.
    Two clusters of one size decide nothing.  Rows whose answer is in the cluster, or comes to nothing, are left to the
    selection.

    Liu et al. 2023, §3 (clusters of solutions by final answer); a vote among samples is the self-consistency of Wang
    et al. 2022.  A majority can be surely wrong: the vote is of one model, and its samples share its errors.
    """

    name: ClassVar[str] = "majority-vote"
    reference: ClassVar[str | None] = (
        'Liu et al. 2023, "Improving Large Language Model Fine-tuning for Solving Math Problems" (arXiv:2310.10047)'
    )
    roles: ClassVar[Mapping[str, Role]] = {"answers": Role("samples", ("answers",))}

    kind: Kind = "numeric"
    """What final answers are compared as: numbers ("####", boxed, else the last), or texts ("exact": case, spaces and
    punctuation at the ends aside), of samples only behind the marker."""
    share: float = 0.5
    """What the cluster's share of the votes must exceed."""
    least: int = 3
    """Votes without which nothing is decided."""
    put: Literal["solution", "final"] = "solution"
    """What replaces the answer: the sample as it was written, or its final answer alone."""
    marker: str = MARKER
    """What stands before a sample's final answer, as its prompt demands; the last occurrence counts, in any case."""

    def __post_init__(self) -> None:
        share_of("share", self.share, self.name)
        if self.least < 1:
            raise InputError(f"{self.name}: least={self.least}; it must be at least 1.")
        marker_of(self.marker, self.name)

    @property
    def threshold(self) -> float:
        return self.share

    def _correct(self, rows: Sequence[Mapping[str, Any]]) -> Corrections:
        return together([self._outcome(row) for row in rows])

    def _outcome(self, row: Mapping[str, Any]) -> Outcome:
        samples = [one.text for one in written(row["answers"], self.name) if one.finished]
        if self.kind == "exact":  # a whole solution is no final answer
            samples = [text for text in samples if final_part(text, self.marker) is not None]
        values = [final_value(text, self.kind, self.marker) for text in samples]
        votes = Counter(value for value in values if value is not None)
        if row["answers"]["answers"] is None:
            return Outcome(f"no samples: {row['answers']['reason'] or 'none were drawn'}")
        if votes.total() < self.least:
            return Outcome("too few samples come to an answer")
        (value, most), *others = votes.most_common(2)
        confidence = most / votes.total()
        if (others and others[0][1] == most) or confidence <= self.share:
            return Outcome("no majority", confidence)
        own = final_value(row["answer"], self.kind, self.marker)
        if own is None:
            return Outcome("the answer comes to nothing that can be compared", confidence)
        if own == value:
            return Outcome("the vote agrees", confidence)
        first = samples[values.index(value)]
        text = first.strip() if self.put == "solution" else final_text(first, self.marker)
        return Outcome("the vote is for another answer", confidence, "replace", text)
