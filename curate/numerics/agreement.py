r"""How far two texts agree: exactly, in their words, in their final number.

Every function is symmetric and gives 1 for a text and itself.  Nothing here reads a model; what models say of two texts
is in ``curate.scorers.consistency``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from curate.numerics.ngrams import Characters

_NUMBER = re.compile(r"[-+\u2212]?(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?|[-+\u2212]?\.\d+")
_FRACTION = re.compile(
    r"([-+\u2212]?)\s*\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|([-+\u2212]?)(?<![\d/.])(\d+)\s*/\s*(\d+)(?![\d/.])"
)

_ENDS = " .,;:!?\"'`*_“”„‘’«»。，；：！？、"
_DIGITS = 400  # of the longest number that is read


def normalised(text: str) -> str:
    """Return a text as exact match compares it.

    Compatibility forms are one (NFKC), case is folded, each run of white space is one blank, and blanks, quotation
    marks and punctuation at both ends are gone: "“Oslo.”" is "oslo".  Signs that carry meaning at an end ("-", "%",
    brackets) stay, and so do articles.
    """
    whole = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return whole.strip(_ENDS) or whole  # signs alone are what they are


def final_part(text: str, marker: str) -> str | None:
    """Return what stands behind the last occurrence of ``marker``, whatever its case; None where it does not occur."""
    found = list(re.finditer(re.escape(marker), text, re.IGNORECASE))
    return text[found[-1].end() :].strip() if found else None


def number(text: str) -> Fraction | None:
    r"""Return the number that a text ends in, exactly; None where it has none.

    It is looked for in what follows the last "####" (GSM8K's mark), else in the last ``\boxed{…}``, else in the whole
    text, and there the last one counts.  Commas between thousands, a sign, a decimal point and a fraction (3/4,
    ``\frac{3}{4}``) are read; a unit, a currency and a percent sign are not: "50%" is 50.
    """
    place = text.rpartition("####")[2]
    if "####" not in text and (boxed := _boxed(text)) is not None:
        place = boxed
    found: list[tuple[int, Fraction]] = []
    for match in _FRACTION.finditer(place):
        sign, top, bottom = match[1] or match[4], match[2] or match[5], match[3] or match[6]
        if len(match[0]) <= _DIGITS and int(bottom):
            found.append((match.end(), Fraction(int(top), int(bottom)) * (-1 if sign in ("-", "\u2212") else 1)))
    for match in _NUMBER.finditer(place):
        value = match[0].replace(",", "").replace("\u2212", "-")
        if value[0] in "+-" and match.start() and place[match.start() - 1].isalnum():
            value = value[1:]  # "12-5": a difference, or a range; the sign is no part of the number
        if len(value) <= _DIGITS:
            found.append((match.end(), Fraction(value)))
    # Of a fraction and its own denominator, which end at one place, the fraction was found first.
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _boxed(text: str) -> str | None:
    """Return the content of the last ``\\boxed{…}``, braces matched."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + 6, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return text[start + 7 : i]
    return None


def exact(a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
    """Return 1 where two texts are equal as ``normalised``, else 0: (n,)."""
    return np.array([float(normalised(x) == normalised(y)) for x, y in zip(a, b, strict=True)], dtype=np.float64)


def numeric(a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
    """Return 1 where two texts end in the same ``number``, else 0, also where one has none: (n,)."""
    pairs = [(number(x), number(y)) for x, y in zip(a, b, strict=True)]
    return np.array([float(x is not None and x == y) for x, y in pairs], dtype=np.float64)


def jaccard(a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
    r"""Return |A ∩ B| / |A ∪ B| of the sets of words of two texts: (n,), in [0, 1].

    What a word is stands in ``curate.numerics.ngrams``.  Two texts without a word: 1 if they are equal, else 0.
    O(characters) time and memory.
    """
    n = len(a)
    texts = [unicodedata.normalize("NFKC", text) for text in (*a, *b)]
    words = Characters.of(texts).words()
    rows = words.rows % max(n, 1)
    side = (words.rows >= n).astype(np.int64)
    # Distinct words of each pair; a word that both texts have is there once, with two sides.
    order = np.lexsort((side, words.hashes, rows))
    rows, side, hashes = rows[order], side[order], words.hashes[order]
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    sides = np.bincount(np.cumsum(fresh) - 1, weights=side, minlength=int(fresh.sum()))
    counts = np.bincount(np.cumsum(fresh) - 1, minlength=int(fresh.sum()))
    both = (sides > 0) & (sides < counts)
    union = np.bincount(rows[fresh], minlength=n)
    shared = np.bincount(rows[fresh], weights=both, minlength=n)
    same = np.array([x == y for x, y in zip(texts[:n], texts[n:], strict=True)], dtype=np.float64)
    return np.where(union > 0, shared / np.maximum(union, 1), same)


def mean_of_groups(values: NDArray[np.float64], groups: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return the mean of the values of each of n groups, (n,); NaN for a group without one."""
    counts = np.bincount(groups, minlength=n)
    total = np.bincount(groups, weights=values, minlength=n)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
