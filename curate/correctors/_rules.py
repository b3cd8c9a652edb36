"""What the rules of correctors share: an outcome for each row, and the model's answer as what may replace the row's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from curate import answers
from curate.correction import Action, Corrections
from curate.exceptions import InputError, StageError


class Outcome(NamedTuple):
    """What is to become of one row."""

    rule: str
    confidence: float | None = None
    action: Action | None = None
    answer: str | None = None


def together(outcomes: Sequence[Outcome]) -> Corrections:
    """Return the outcomes of rows as one."""
    return Corrections(
        action=[one.action for one in outcomes],
        answer=[one.answer for one in outcomes],
        confidence=np.array([math.nan if o.confidence is None else o.confidence for o in outcomes], dtype=np.float64),
        rule=[one.rule for one in outcomes],
    )


def written(found: Mapping[str, Any], caller: str) -> list[answers.Written]:
    """Return the answers that a stage wrote for a row, none where it has a reason instead."""
    if found["answers"] is None:
        return []
    try:
        return answers.read(found["answers"])
    except ValueError as error:
        raise StageError(
            f"{caller}: a column 'answers' is no list of answers ({error}); name a stage that writes them: "
            "candidates, samples."
        ) from error


def candidate(found: Mapping[str, Any], answer: str, what: str, caller: str) -> tuple[str | None, str]:
    """Return the first of the answers that a stage wrote, without blank ends, or None; and what is wrong with it.

    Wrong is one that is not there, empty, cut, or what the row says already.
    """
    texts = written(found, caller)
    if not texts:
        return None, f"no {what}: {found['reason'] or 'none was written'}"
    text = texts[0].text.strip()
    if not text:
        return None, f"the {what} is empty"
    if text == answer.strip():
        return None, f"the {what} is the answer itself"
    return (text, "") if texts[0].finished else (None, f"the {what} was cut")


def share_of(name: str, value: float, caller: str) -> None:
    """Raise InputError unless a confidence that is to be exceeded is one: at least 0, below 1."""
    if not 0 <= value < 1:
        raise InputError(f"{caller}: {name}={value}; a number from 0 up to, but not including, 1 was asked.")


def marker_of(marker: str, caller: str) -> None:
    """Raise InputError unless a marker has a sign."""
    if not marker.strip():
        raise InputError(f"{caller}: a marker of at least one sign was asked, a blank one was found.")


def loss(winner: str, caller: str) -> str:
    """Return what a verdict says that is not for the candidate.  StageError for a word that is no verdict."""
    said = {
        "answer": "the answer is better",
        "tie": "neither is better",
        "neither": "both are wrong",
        "none": "the orders disagree",
    }
    if winner not in said:
        raise StageError(f"{caller}: a verdict is candidate, {', '.join(said)}; found {winner!r}.")
    return said[winner]
