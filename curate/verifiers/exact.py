"""Whether a text says what the reference says, word for word: labels, names, short answers."""

from __future__ import annotations

from typing import ClassVar

from curate.numerics.agreement import normalised
from curate.verifiers.base import Finding, Item, Verifier

WORDS = 6
"""Words of an answer that can still be asked for word for word."""


class Exact(Verifier):
    """The text, or what it announces as its answer, equals a reference, case, spaces and punctuation at the ends aside.

    Articles count, and so does every word beside the answer: "It is Oslo" is not "Oslo".  Rows whose first reference
    has more than six words are refused: nobody hits those.
    """

    name: ClassVar[str] = "exact"

    def refusal(self, item: Item) -> str | None:
        if not item.references:
            return "no reference answer"
        words = len(item.references[0].split())
        return None if words <= WORDS else f"the reference has {words} words: too many to be asked for word for word"

    def _check(self, item: Item, text: str, finished: bool) -> Finding:
        said = normalised(text)
        if not said:
            return Finding(False, "no answer")
        if not finished:
            return Finding(False, "cut", said)
        right = any(said == normalised(reference) for reference in item.references)
        return Finding(right, "right" if right else "wrong", said)
