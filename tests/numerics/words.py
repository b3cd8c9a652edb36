"""Words by one regular expression over Unicode categories: the plain reference of ``curate.numerics.ngrams``."""

from __future__ import annotations

import re
import unicodedata

from curate.numerics.ngrams import _UNSPACED_RANGES


def reference_words(text: str) -> list[tuple[int, int]]:
    """Words as (start, end), one character after another."""

    def kind(char: str) -> str:
        category = unicodedata.category(char)
        if category[0] not in "LMN":
            return " "
        if category[0] != "N" and any(low <= ord(char) <= high for low, high in _UNSPACED_RANGES):
            return "m" if category[0] == "M" else "u"
        return "w"

    return [match.span() for match in re.finditer(r"w+|[um]m*", "".join(map(kind, text)))]


def lower(text: str) -> str:
    return "".join(char.lower()[0] for char in text)
