"""Shingles of texts: every n successive words, or characters, as a 64-bit number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from curate.numerics.ngrams import Characters, blocks, span_hashes

Unit = Literal["words", "characters"]
_CHARACTERS = 2**16  # worked on at a time
_GAP = re.compile(r"[\s。，、！？；：]")  # where a long text may be cut without cutting a word


def shingles(texts: Sequence[str], size: int, unit: Unit) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the shingles of every text, and where each text's begin: (m,) uint64 and (n + 1,) int64.

    Texts are brought to the normal form NFKC and lower-cased.  What a word is says ``curate.numerics.ngrams``; of the
    characters, each run of white space counts as one space, none at the ends.  A text of fewer than ``size`` words
    (characters) is one shingle as a whole, one without any has none.

    Memory beside the result: 16 bytes a word (character) of the longest text, and some 5 MB; but 60 bytes a character
    where more than 65,536 of them stand without white space.
    """
    parts: list[NDArray[np.uint64]] = []
    counts: list[NDArray[np.int64]] = []
    for block in blocks(texts, characters=_CHARACTERS):
        several = [_plain(text, unit) for text in texts[block]]
        if len(several) == 1 and len(several[0]) > 2 * _CHARACTERS:
            pieces = _pieces(several[0], size, unit)
            units = np.concatenate([_units(Characters.of([piece]), unit)[0] for piece in pieces])
            found, count = _windows(units, np.array([0, units.size]), size)
        else:
            units, ends = _units(Characters.of(several), unit)
            found, count = _windows(units, ends, size)
        parts.append(found)
        counts.append(count)
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    if counts:
        np.cumsum(np.concatenate(counts), out=offsets[1:])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64), offsets


def _plain(text: str, unit: Unit) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split()) if unit == "characters" else text


def _pieces(text: str, size: int, unit: Unit) -> Iterator[str]:
    """Cut a long text where no word is: its words are those of the pieces."""
    start = 0
    while start < len(text):
        gap = _GAP.search(text, start + _CHARACTERS) if unit == "words" else None
        end = min(start + _CHARACTERS, len(text)) if unit == "characters" else gap.end() if gap else len(text)
        yield text[start:end]
        start = end


def _units(characters: Characters, unit: Unit) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of the words or characters, and where each text's begin."""
    if unit == "characters":
        return characters.values, characters.offsets
    words = characters.words()
    return words.hashes, np.searchsorted(words.rows, np.arange(len(characters.offsets)))


def _windows(
    units: NDArray[np.uint64], offsets: NDArray[np.int64], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of every ``size`` successive units of one text, or of all where it has fewer; and how many."""
    lengths = np.diff(offsets)
    counts = np.where(lengths > 0, np.maximum(lengths - size + 1, 1), 0)
    last = np.cumsum(counts)
    out = np.empty(int(counts.sum()), dtype=np.uint64)
    for lo in range(0, out.size, _CHARACTERS):
        nth = np.arange(lo, min(lo + _CHARACTERS, out.size))
        text = np.searchsorted(last, nth, side="right")
        starts = offsets[text] + nth - (last - counts)[text]
        stops = np.minimum(starts + size, offsets[text + 1])
        base, top = int(starts[0]), int(stops[-1])
        out[lo : lo + _CHARACTERS] = span_hashes(units[base:top], starts - base, stops - base)
    return out, counts
