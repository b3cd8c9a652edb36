"""What a verifier is given and what it gives back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from curate.example import prompt_and_response


@dataclass(frozen=True, slots=True)
class Item:
    """One row, as far as verifying its answers goes."""

    prompt: str
    """What stands before the last answer."""
    references: tuple[str, ...]
    """Right answers: the row's own first, then those that its data lists ("references")."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns, and what a column "meta" holds in JSON."""

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], extra: str | None = None) -> Item:
        """Return the item of a conversation and its other columns, JSON as in the example schema."""
        prompt, answer = prompt_and_response(messages)
        data = _object(extra)
        data = {**data, **_object(data.get("meta"))}
        listed = data.get("references")
        more = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
        return cls(prompt, tuple(dict.fromkeys(text for text in (answer, *more) if text.strip())), data)


def _object(value: Any) -> dict[str, Any]:
    """Return a JSON object, spelt or as it is; an empty one for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return dict(value) if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one text."""

    correct: bool | None
    """None where it cannot be told."""
    outcome: str
    """"right", "wrong", "no number", "timeout" …: why."""
    found: str | None = None
    """What was taken for the answer."""


class Verifier(ABC):
    """Laws: a row that ``refusal`` lets pass has a ``check`` that says True of each of its references, and True or
    False of any text; both depend on the row and the text alone."""

    name: ClassVar[str]

    @abstractmethod
    def refusal(self, item: Item) -> str | None:
        """Return why answers to this row cannot be verified in this way; None where they can."""

    @abstractmethod
    def _check(self, item: Item, text: str, finished: bool) -> Finding:
        """Return what becomes of a text, of a row that is not refused."""

    @final
    def check(self, item: Item, text: str, *, finished: bool = True) -> Finding:
        """Return whether a text is right.

        Parameters
        ----------
        finished : False where the text was cut: an answer at its very end may be half of another one, and does not
            count.
        """
        refused = self.refusal(item)
        return Finding(None, refused) if refused is not None else self._check(item, text, finished)


CUES = ("answer is", "answer:", "answer：", "answers:")
"""What announces an answer, in any case; the last one counts."""


def announced(text: str) -> str | None:
    """Return the rest of the sentence or line in which a text last announces its answer; None where it does not."""
    folded = text.casefold()
    if len(folded) != len(text):  # a letter that folds into two: positions would shift
        folded = text.lower() if len(text.lower()) == len(text) else text
    at = max((folded.rfind(cue) + len(cue) for cue in CUES if cue in folded), default=-1)
    if at < 0:
        return None
    rest = text[at:].lstrip(" :\n\t*")
    line = rest.partition("\n")[0]
    return line.partition(". ")[0] or None
