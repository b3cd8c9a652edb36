from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.base import Column, Scorer
from curate.scorers._turns import Turns, turns

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class TextDigest(Scorer):
    """A 128-bit digest of the normalised text: equal for texts that differ in nothing that matters.

    Normalised: Unicode's form NFKC (full-width letters, ligatures, composed accents), case-folded, characters without
    a form of their own (zero-width spaces, byte order marks) left out, each run of white space one space, none at the
    ends; with ``punctuation`` or ``spaces`` off, these count for nothing.  Where one turn ends and the next begins
    counts.  A row without text after that is null ("no text").

    The digest is blake2b's.  Two different texts of a pool of n share one with a probability of about n² / 2¹²⁹.
    """

    name: ClassVar[str] = "text-digest"

    text: Turns = "conversation"
    """What is compared: every turn, or the prompt, the response, or both.  Rows of one prompt with different responses
    are no copies, and worth keeping to choose between."""
    case: bool = False
    """Whether upper and lower case tell texts apart."""
    punctuation: bool = True
    """Whether punctuation and symbols do; if not, they count as white space.  In code and in mathematics they do."""
    spaces: bool = True
    """Whether it matters that there is white space between two characters."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("digest", "digest", dtype="uint64[2]"),)

    def _score(self, examples: pa.Table) -> dict[str, Any]:
        texts, counts = turns(examples, self.text)
        out = np.zeros((examples.num_rows, 2), dtype=np.uint64)
        reason: list[str | None] = [None] * examples.num_rows
        start = 0
        for row, count in enumerate(counts.tolist()):
            parts = [self.normalised(text) for text in texts[start : start + count]]
            start += count
            if any(parts):
                spelt = "\x1e".join(parts).encode("utf-8", "surrogatepass")
                out[row] = np.frombuffer(hashlib.blake2b(spelt, digest_size=16).digest(), dtype="<u8")
            else:
                reason[row] = "no text"
        return {"digest": out, "reason": reason}

    def normalised(self, text: str) -> str:
        """Return the text that the digest is of."""
        once = self._pass(text)
        while not once.isascii() and (again := self._pass(once)) != once:  # what is left out can bring marks together
            once = again
        return once

    def _pass(self, text: str) -> str:
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
        if not self.case:
            text = text.casefold()
        if not self.punctuation:
            text = text.translate(_PUNCTUATION)
        return (" " if self.spaces else "").join(text.split())


class _Table(dict[int, int | str | None]):
    """What becomes of each character, found when it is first met."""

    def __init__(self, categories: str, becomes: str | None) -> None:
        self._categories, self._becomes = categories, becomes

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        self[code] = self._becomes if category in self._categories or category[0] in self._categories else code
        return self[code]


_INVISIBLE = _Table("Cf", None)
_PUNCTUATION = _Table("PS", " ")
