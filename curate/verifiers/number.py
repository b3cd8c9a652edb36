r"""Whether a text ends in the right number: grade-school and competition mathematics, counting, sums."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import ClassVar

from curate.numerics.agreement import number
from curate.verifiers.base import Finding, Item, Verifier, announced

# Digits grouped in LaTeX (32,\!000, 32{,}000) and units in \text are not what a number is.
_SPACING = re.compile(r"\\[!,;: ]|\{,\}|~")
_UNIT = re.compile(
    r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}|\^\s*\\circ|\^\s*\{\s*\\circ\s*\}|\\(?=[%$])|\\(?:left|right)\b"
)
_SHORT_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)\s*(\d)")
_ALONE = re.compile(
    r"""\s*[$€£¥₹]?\s*[-+\u2212]?
        (?:\\[dt]?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}
           |(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?
           |\.\d+)
        \s*(?:[%°$€£¥]|(?<=\s)[^\W\d_]+(?:\s+[^\W\d_]+)?)?\s*[.。]?\s*""",
    re.VERBOSE,
)


class Number(Verifier):
    r"""The final numbers of the text and of the reference are equal, as fractions: 0.5 is 1/2, and not 0.50001.

    Of a reference the number stands behind "####", in the last ``\boxed{…}``, or is all that it says, a unit of at most
    two words aside; "3 or 4", an interval and √21 are no number, and such rows are refused.  Of a text it is looked
    for behind "####" and in a box, then in the sentence that last announces an answer ("The answer is 12."), then it is
    the last number of all.  Commas between thousands, signs, decimals and fractions are read, units, currencies and
    percent signs are not: 50% is 50.
    """

    name: ClassVar[str] = "number"

    def refusal(self, item: Item) -> str | None:
        if not item.references:
            return "no reference answer"
        return None if _reference(item) is not None else "the reference is no single number"

    def _check(self, item: Item, text: str, finished: bool) -> Finding:
        clean = _plain(text)
        part = _marked(clean) or announced(clean) or clean
        value = number(part)
        if value is None:
            part, value = clean, number(clean)
        if value is None:
            return Finding(False, "no number")
        if not finished and clean[-1:].isdigit() and clean.endswith(part):
            return Finding(False, "cut within its last number", str(value))
        # A box says all of the answer: {-4, 4} and \sqrt{4} are not 4.
        right = value == _reference(item) and (part != _boxed(clean) or _is_alone(part))
        return Finding(right, "right" if right else "wrong", str(value))


def _reference(item: Item) -> Fraction | None:
    text = _plain(item.references[0])
    marked = _marked(text)
    place = text if marked is None else marked
    return number(place) if _is_alone(place) else None


def _is_alone(text: str) -> bool:
    return _ALONE.fullmatch(text) is not None


def _plain(text: str) -> str:
    """Return a text with its numbers as plain mathematics spells them."""
    return _SHORT_FRACTION.sub(r"\1{\2}{\3}", _SPACING.sub("", _UNIT.sub("", text)))


def _marked(text: str) -> str | None:
    """Return what stands behind the last "####", to the end of the line, or in the last box; None where neither is."""
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0]
    return _boxed(text)


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    depth = 0
    for i in range(start + 6, len(text) if start >= 0 else 0):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return text[start + 7 : i].strip(" $")
    return None
