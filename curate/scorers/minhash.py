from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.base import Column, Scorer
from curate.exceptions import InputError
from curate.numerics.shingles import Unit
from curate.scorers._turns import Turns, turns

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class MinHash(Scorer):
    """A MinHash signature of a text's shingles, for ``near-duplicates``.

    The shingles are every ``size`` successive words (or characters) of the text, lower-cased, in Unicode's form NFKC; a
    text of fewer is one shingle as a whole.  Two signatures agree in each of their ``places`` with probability
    J = |A ∩ B| / |A ∪ B| of the two sets of shingles; see ``curate.numerics.minhash``.  A text without words is null
    ("no words"; "no characters").

    One changed word of a text changes ``size`` shingles: with 100 words and size 5, J falls to 0.90.  For prompts of a
    line or less take characters, of which there are more.

    Memory: some 10 MB, and 30 bytes a word of the longest text.
    """

    name: ClassVar[str] = "minhash"
    reference: ClassVar[str] = (
        'Broder 1997, "On the resemblance and containment of documents"; Dahlgaard, Knudsen & Thorup 2017, "Fast '
        'Similarity Sketching"'
    )

    text: Turns = "conversation"
    """What is compared: every turn, or the prompt, the response, or both.  Rows of one prompt with different responses
    are no copies, and worth keeping to choose between."""
    unit: Unit = "words"
    """What shingles are made of.  In scripts without spaces each letter is a word."""
    size: int = 5
    """Units a shingle."""
    places: int = 128
    """Length H of the signature; the standard error of a similarity J is at most √(J (1 - J) / H)."""
    seed: int = 0
    """Names the hash functions."""

    def __post_init__(self) -> None:
        for name, least in {"size": 1, "places": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"minhash: {name} of at least {least} was asked, {getattr(self, name)} was found.")

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("signature", "hashes", dtype=f"uint32[{self.places}]"),)

    def _score(self, examples: pa.Table) -> dict[str, Any]:
        from curate.numerics.minhash import signatures
        from curate.numerics.shingles import shingles

        texts, counts = turns(examples, self.text)
        ends = np.cumsum(counts).tolist()
        starts = [0, *ends[:-1]]
        whole = [texts[a] if b == a + 1 else "\n".join(texts[a:b]) for a, b in zip(starts, ends, strict=True)]
        hashes, offsets = shingles(whole, self.size, self.unit)
        reason = np.full(examples.num_rows, None, dtype=object)
        empty = np.diff(offsets) == 0
        reason[empty] = f"no {self.unit}"
        out = signatures(hashes, offsets, self.places, seed=self.seed)
        out[empty] = 0
        return {"signature": out, "reason": reason}
