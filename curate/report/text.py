"""How texts and numbers are shown: nothing invisible, nothing secret, nothing endless."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from unicodedata import east_asian_width

from curate.urls import redacted

_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls; a tab and a line's end stay
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e"  # soft hyphen, fillers, the Arabic letter mark
    "\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f"  # zero width, line separators, bidi overrides, isolates
    "\ufeff\ufff9-\ufffb\ud800-\udfff"  # byte order mark, interlinear marks, half surrogates
    "\U000e0000-\U000e007f"  # tags
    "]"
)
_TOKENS = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}|\bAKIA[A-Z0-9]{16}\b")


def visible(text: str) -> str:
    """Return the text with every character that shows nothing, or reorders what it shows, spelt as ``⟨U+202E⟩``.

    The joiners U+200C and U+200D stay: scripts and emoji need them.
    """
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text.replace("\r\n", "\n"))


def redact(text: str) -> str:
    """Return the text without what looks like a secret: a URL's password or signature, an access token."""
    return _TOKENS.sub("***", redacted(text))


def cut(text: str, limit: int) -> str:
    """Return at most ``limit`` characters of the text, and a mark that says how many are missing."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} […{len(text) - limit:,} more characters]"


def brief(text: str) -> str:
    """Return a name or a reason as a table has room for it: at most 200 characters, and a mark."""
    return cut(text, 200)


def short(names: Sequence[str], room: int = 20) -> list[str]:
    """Return the names as labels of a chart: one line of at most ``room`` columns each, all still different.

    Wide characters take two columns.  Vega would cut labels by its own count, and through the middle of an emoji.
    """
    out: dict[str, None] = {}
    for name in names:
        line = " ".join(visible(name).split()) or "(blank)"
        label, again = _fit(line, room), 2
        while label in out:
            label, again = f"{_fit(line, room - 1 - len(str(again)))} {again}", again + 1
        out[label] = None
    return list(out)


def _fit(line: str, room: int) -> str:
    widths = [2 if east_asian_width(character) in "WF" else 1 for character in line]
    if sum(widths) <= room:
        return line
    taken = end = 0
    while taken + widths[end] < room:  # one column is the mark's
        taken += widths[end]
        end += 1
    return f"{line[:end].rstrip()}…"


def number(value: float | int | None) -> str:
    """``1234567`` → ``1,234,567``; ``-0.123456`` → ``-0.1235``; None, NaN → ``–``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, int) or (abs(value) < 1e15 and value == int(value)):
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def signed(value: float, digits: int = 2) -> str:
    """``0.123`` → ``+0.12``; ``-1.5`` → ``−1.50``; what rounds to nothing → ``0.00``, NaN → ``–``."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return text[1:] if not text.strip("+-0.") else text.replace("-", "−")


def percent(share: float) -> str:
    """``0.1`` → ``10%``; ``0.0123`` → ``1.2%``.  Neither 0% nor 100% unless it is."""
    if math.isnan(share):
        return "–"
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}".replace(".0%", "%")


def plural(count: int, word: str) -> str:
    """``1, "copy"`` → ``1 copy``; ``42, "copy"`` → ``42 copies``."""
    if count == 1:
        return f"1 {word}"
    return f"{count:,} {word[:-1]}ies" if word.endswith("y") else f"{count:,} {word}s"
