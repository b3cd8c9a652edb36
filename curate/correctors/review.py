"""What people said of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate import review as review_file
from curate.correction import Action, Corrections, Corrector
from curate.exceptions import InputError


@dataclass(kw_only=True)
class Review(Corrector):
    """Does what a person wrote into a review file: keeps a row, fixes its answer, or drops it.

    ``curate review RUN`` writes the file: the ``rows_to_review`` rows that somebody should look at first.  It costs a
    person's time and no model, so the question is only where that time goes: to the rows worst by a score, or to those
    nearest to where the filter cut, about which the score knows least.  Rows with a verdict do not come again.

    In the work cited the budget goes to the rows whose given and predicted labels are farthest apart in the labels'
    hierarchy; here any score says how doubtful a row is.

    A line is for the answer that stands in it: where the row has another by now, the run stops and names the line.
    """

    name: ClassVar[str] = "review"
    reference: ClassVar[str] = (
        "Parekh, Anand & Awekar 2021, *Budget Sensitive Reannotation of Noisy Relation Classification Data Using Label "
        "Hierarchy* (arXiv:2112.13320)"
    )
    neutral: ClassVar[tuple[str, ...]] = ("file", "on", "rows_to_review", "order")
    overrules: ClassVar[bool] = True

    file: str
    """The review file.  It need not be there yet: then nothing is reviewed."""
    on: str | None = None
    """The score or combination that says how doubtful a row is; by default that of the step that it follows."""
    rows_to_review: int = 200
    """How many rows a person is asked to look at."""
    order: Literal["worst", "nearest"] = "worst"
    """Which come first: the worst by the score, or those nearest to the threshold of the step."""

    def __post_init__(self) -> None:
        if not self.file:
            raise InputError("review: file: the path of a review file was asked, an empty one was found.")
        if "://" in self.file:
            raise InputError(f"review: file: a path on this machine was asked, {self.file!r} was found.")
        if self.rows_to_review < 1:
            raise InputError(f"review: rows_to_review of at least 1 was asked, {self.rows_to_review} was found.")
        self.read_: review_file.Review | None = None
        self.looked_ = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel with what was read: a worker elsewhere may not see the file."""
        return _restored, (self.params(), self.read_, self.looked_)

    def _look(self) -> review_file.Review | None:
        self.read_, self.looked_ = review_file.read(self.file), True
        return self.read_

    def check(self) -> None:
        """Raise InputError for a review file with a line that means nothing."""
        self._look()

    def identity(self) -> dict[str, Any]:
        """Return what people said, not where it is written; what is corrected next goes by what is read now."""
        found = self._look()
        said = None if found is None or not found.reviewed else found.digest
        return {**super().identity(), "verdicts": said}

    def _correct(self, rows: Sequence[Mapping[str, Any]]) -> Corrections:
        found = self.read_ if self.looked_ else self._look()
        reviewed = {} if found is None else found.reviewed
        action: list[Action | None] = []
        answer: list[str | None] = []
        rule: list[str] = []
        stale = []
        for row in rows:
            line, number = reviewed.get(row["id"], (None, 0))
            act: Action | None = None
            new = None
            if line is None:
                why = "no review file yet" if found is None else "not reviewed"
            elif line.verdict == "fix" and row["answer"] == line.new_answer:
                act, why = "keep", "fixed by a person before"
            elif row["answer"] != line.answer:
                stale.append(number)
                why = ""
            elif line.verdict == "fix":
                act, new, why = "replace", line.new_answer, "fixed by a person"
            elif line.verdict == "keep":
                act, why = "keep", "kept by a person"
            else:
                act, why = "drop", "dropped by a person"
            action.append(act)
            answer.append(new)
            rule.append(why)
        if stale:
            self._refuse(sorted(stale), reviewed)
        return Corrections(action, answer, np.full(len(rows), np.nan), rule)

    def _refuse(self, stale: list[int], reviewed: Mapping[str, tuple[review_file.Line, int]]) -> None:
        which = next(i for i, (_, number) in reviewed.items() if number == stale[0])
        others = ", ".join(map(str, stale[1:6])) + (", …" if stale[6:] else "")
        more = f" So it is on {'lines' if stale[2:] else 'line'} {others}." if others else ""
        raise InputError(
            f"{self.file}:{stale[0]}: the row {which!r} was changed since it was reviewed: its answer is not the one "
            f"on this line.{more} Delete what no longer holds, and have it reviewed again: 'curate review RUN'."
        )


def _restored(params: dict[str, Any], read: review_file.Review | None, looked: bool) -> Review:
    made = Review(**params)
    made.read_, made.looked_ = read, looked
    return made
