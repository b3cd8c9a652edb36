"""Words and n-grams of many texts at once, as 64-bit numbers.

A batch of texts becomes one array of code points, and every span of it (a word, an n-gram of words or of characters)
becomes one hash, so counting and comparing n-grams is sorting of integers: no Python object per word.

What a word is -------------- A longest run of letters, combining marks and digits (Unicode categories L*, M*, N*),
lower-cased one code point at a time.  In scripts written without spaces between words (Han, Kana, Bopomofo, Thai,
Lao, Myanmar, Khmer, Tibetan) each letter, with the marks that follow it, is a word of its own: crude, but the same
text always gives the same words, and no dictionary is needed.  Everything else separates: "don't" is two words,
"snake_case" two, "3.14" two.

Hashes
------
A code point c has the random-looking value v(c) = mix(c + 1), mix being the finaliser of SplitMix64 (Steele, Lea and
Flood 2014).  The span [s, e) has mix(Σ_i v_i Bⁱ⁻ˢ mod 2⁶⁴), computed from prefix sums of v_i Bⁱ and the inverse of the
odd number B: exact integer arithmetic, so where a text stands in a batch cannot matter.  Two different spans get equal
hashes with a probability of about 2⁻⁶⁴; the tests compare with exact strings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LETTER, MARK, DIGIT, UPPER, SPACE, UNSPACED, WORD = (1 << bit for bit in range(7))
_KNOWN = 1 << 7  # the class of this code point has been looked up

# Blocks of the scripts that put no space between words; only letters and marks within them count.
_UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo extended
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9D),  # half-width Katakana
    (0x1B000, 0x1B16F),  # Kana supplements
    (0x20000, 0x3FFFF),  # Han extensions
)

_BASE = 0x9E3779B97F4A7C17  # odd, and 3 mod 4: 1 - B, which swapped letters multiply, has a single factor of two
_INVERSE = pow(_BASE, -1, 2**64)
_BLOCK = 2**16  # characters worked on at a time: the arrays stay in the cache, and memory does not grow with the batch

# Filled as code points turn up: classifying all 1.1 million at import would take a second.
_classes = np.zeros(0, dtype=np.uint8)
_values = np.zeros(0, dtype=np.uint64)
_powers = np.ones(1, dtype=np.uint64), np.ones(1, dtype=np.uint64)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the SplitMix64 finaliser of each number: a bijection of 64 bits that leaves no visible pattern."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _classify(char: str) -> int:
    category = unicodedata.category(char)
    flags = _KNOWN
    flags |= LETTER if category[0] == "L" else 0
    flags |= MARK if category[0] == "M" else 0
    flags |= DIGIT if category == "Nd" else 0
    flags |= UPPER if char.isupper() else 0
    flags |= SPACE if char.isspace() else 0
    flags |= WORD if category[0] in "LMN" else 0
    if category[0] in "LM" and any(low <= ord(char) <= high for low, high in _UNSPACED_RANGES):
        flags |= UNSPACED
    return flags


def _look_up(codes: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Return the class and the value v(lower case) of each code point."""
    global _classes, _values
    if not _classes.size:
        _values = np.zeros(0x110000, dtype=np.uint64)
        _classes = np.zeros(0x110000, dtype=np.uint8)
    classes = _classes[codes]
    if not classes.all():
        new = np.unique(codes[classes == 0])
        lower = np.array([ord(chr(code).lower()[0]) for code in new.tolist()], dtype=np.uint64)
        _values[new] = mix(lower + np.uint64(1))
        _classes[new] = [_classify(chr(code)) for code in new.tolist()]  # last: another thread may look in between
        classes = _classes[codes]
    return classes, _values[codes]


def _power_tables(length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return Bⁱ and B⁻ⁱ mod 2⁶⁴ for i < length."""
    global _powers
    if len(_powers[0]) >= length:
        return _powers
    size = max(length, _BLOCK + 1)
    tables = []
    for base in (_BASE, _INVERSE):
        table = np.full(size, base, dtype=np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    if size <= 4 * _BLOCK:  # one endless text should not leave its tables behind
        _powers = tables[0], tables[1]
    return tables[0], tables[1]


def span_hashes(values: NDArray[np.uint64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the hash of ``values[s:e]`` for each span; see the module's docstring.

    Parameters
    ----------
    values : (m,) uint64
    starts, ends : (w,) int64, with 0 <= start <= end <= m

    Returns
    -------
    (w,) uint64
    """
    powers, inverse = _power_tables(len(values) + 1)
    prefix = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * powers[: len(values)], out=prefix[1:])
    return mix((prefix[ends] - prefix[starts]) * inverse[starts])


@dataclass(frozen=True)
class Spans:
    """Spans of a batch of texts (words, or n-grams), in text order."""

    hashes: NDArray[np.uint64]
    """(w,) equal for equal spans."""
    rows: NDArray[np.int64]
    """(w,) the text that each lies in; ascending."""
    starts: NDArray[np.int64]
    """(w,) first character, counted over the whole batch."""
    ends: NDArray[np.int64]
    """(w,) one past the last character."""

    def __len__(self) -> int:
        return len(self.rows)

    def windows(self, n: int) -> NDArray[np.int64]:
        """Return the number of the first of every n successive spans of one text."""
        return np.flatnonzero(self.rows[n - 1 :] == self.rows[: max(len(self) - n + 1, 0)])

    def ngrams(self, n: int) -> Spans:
        """Return every n successive spans of one text, as one span each."""
        first = self.windows(n)
        hashes = self.hashes if n == 1 else span_hashes(self.hashes, first, first + n)
        return Spans(hashes, self.rows[first], self.starts[first], self.ends[first + n - 1])

    def keys(self) -> NDArray[np.uint64]:
        """Return a hash of (row, span) for each: equal only for equal spans of the same text."""
        return mix(self.hashes + self.rows.astype(np.uint64) * np.uint64(_BASE))


@dataclass(frozen=True)
class Characters:
    """The characters (code points) of a batch of texts, one after another."""

    codes: NDArray[np.uint32]
    classes: NDArray[np.uint8]
    """Flags: LETTER, MARK, DIGIT, UPPER, SPACE, UNSPACED, WORD."""
    values: NDArray[np.uint64]
    """Hash of the lower-case code point."""
    offsets: NDArray[np.int64]
    """(n + 1,) text i is ``codes[offsets[i]:offsets[i + 1]]``."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Characters:
        data = "".join(texts).encode("utf-32-le", "surrogatepass")
        codes = np.frombuffer(data, dtype="<u4")
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        classes, values = _look_up(codes)
        return cls(codes, classes, values, offsets)

    def count(self, where: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many characters of each text are marked in ``where`` (one bool per character)."""
        return np.diff(np.searchsorted(np.flatnonzero(where), self.offsets))

    def words(self) -> Spans:
        """Return the words, in order; see the module's docstring for what a word is."""
        word = (self.classes & WORD) != 0
        unspaced = (self.classes & UNSPACED) != 0
        mark = (self.classes & MARK) != 0
        fresh = np.zeros(len(self.codes) + 1, dtype=bool)  # the first character of a text follows nothing
        fresh[self.offsets] = True
        word_before, unspaced_before = (np.concatenate([[False], flags[:-1]]) for flags in (word, unspaced))
        begins = word & (fresh[:-1] | ~word_before | (unspaced & ~mark) | (unspaced != unspaced_before))
        # A word ends where the next begins or where a character that is in no word stands, whichever comes first.
        breaks = np.append(np.flatnonzero(begins | ~word), len(self.codes))
        at = np.flatnonzero(begins[breaks[:-1]])
        starts, ends = breaks[at], breaks[at + 1]
        rows = np.repeat(np.arange(len(self.offsets) - 1), np.diff(np.searchsorted(starts, self.offsets)))
        return Spans(span_hashes(self.values, starts, ends), rows, starts, ends)

    def ngrams(self, n: int) -> Spans:
        """Return every n successive characters of one text, lower-cased, as one span each."""
        lengths = np.maximum(np.diff(self.offsets) - n + 1, 0)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        starts = self.offsets[rows] + within
        return Spans(span_hashes(self.values, starts, starts + n), rows, starts, starts + n)


def blocks(*columns: Sequence[str], characters: int = _BLOCK) -> Iterator[slice]:
    """Cut rows into runs of at most ``characters`` characters over all columns (and at least one row each)."""
    start, held = 0, 0
    for row in range(len(columns[0])):
        size = sum(len(column[row]) for column in columns)
        if row > start and held + size > characters:
            yield slice(start, row)
            start, held = row, 0
        held += size
    if columns[0]:
        yield slice(start, len(columns[0]))
