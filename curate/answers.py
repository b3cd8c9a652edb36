"""Answers that a model wrote for a row, as the stages that write them keep them, and the part of an answer that can be
verified.  Plain text in, plain text out: no model is asked here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from curate.numerics.agreement import final_part, normalised, number

MARKER = "Final answer:"
"""What stands before the final answer, as the prompt ``sample`` demands."""

Kind = Literal["numeric", "exact"]
"""What two final answers are compared as: numbers, or texts but for case, spaces and punctuation at the ends."""


@dataclass(frozen=True, slots=True)
class Written:
    """One answer that a model wrote."""

    text: str
    finished: bool
    """False where it was cut."""


def read(held: str) -> list[Written]:
    """Return the answers of a column "answers": a JSON list of {"text", "finished"}; one that does not say is finished.

    Raises
    ------
    ValueError
        If it is no such list; the message says at what that was seen.
    """
    try:
        return [Written(str(one["text"]), bool(one.get("finished", True))) for one in json.loads(held)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(str(error)) from error


def final_text(text: str, marker: str = MARKER) -> str:
    """Return what stands behind the last ``marker`` of an answer, or the whole of it, without blank ends."""
    part = final_part(text, marker)
    return text.strip() if part is None else part


def final_value(text: str, kind: Kind, marker: str = MARKER) -> Fraction | str | None:
    """Return what an answer comes to, so that two that come to the same are equal; None where it comes to nothing.

    A text and its own ``final_text`` come to the same.
    """
    part = final_text(text, marker)
    return number(part) if kind == "numeric" else normalised(part) or None
