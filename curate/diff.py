"""What became of a text, word by word: the words that stay, those that went, and those that came."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # scripts that put nothing between words
_WORDS = re.compile(rf"[{_IDEOGRAPH}]\s*|[^\W{_IDEOGRAPH}]+\s*|[^\w\s]\s*|\s+")
_LINES = re.compile(r"[^\n]*\n+|[^\n]+")
MOST = 150_000
"""Pairs of equal pieces that are looked at: about a second at worst, and 3,000 words of English."""


@dataclass(frozen=True)
class Piece:
    kind: Literal["same", "old", "new"]
    text: str


def diff(old: str, new: str, most: int = MOST) -> list[Piece]:
    """Return the pieces of a change; those that are "same" or "old" make the old text, "same" or "new" the new one.

    No two neighbours are of one kind, and "old" stands before "new".  A piece between two changes that holds neither a
    letter nor a digit goes with them; texts that share less than a quarter of the longer one are one change.  By words;
    by lines where more than ``most`` pairs of equal words would be looked at, and as a whole where the lines are too
    many too.
    """
    if old == new:
        return [Piece("same", old)] if old else []
    a, b = [], []
    for pattern in (_WORDS, _LINES):
        a, b = pattern.findall(old), pattern.findall(new)
        start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        rest = min(len(a), len(b)) - start
        end = next((i for i in range(rest) if a[-1 - i] != b[-1 - i]), rest)
        left, right = Counter(a[start : len(a) - end]), Counter(b[start : len(b) - end])
        if sum(n * right[piece] for piece, n in left.items()) <= most:
            break
    else:
        return _tidy([("", old, new)], "")
    # What both begin and end with needs no search, and is most of a text of which little was changed.
    inside = difflib.SequenceMatcher(None, a[start : len(a) - end], b[start : len(b) - end], autojunk=False)
    blocks = [(0, 0, start)]
    blocks += [(i + start, j + start, n) for i, j, n in inside.get_matching_blocks()[:-1]]
    blocks += [(len(a) - end, len(b) - end, end)]
    triples = []  # what stays, then what went and came after it
    for (i, j, n), (next_i, next_j, _) in itertools.pairwise(blocks):
        triples.append(("".join(a[i : i + n]), "".join(a[i + n : next_i]), "".join(b[j + n : next_j])))
    return _tidy(triples, "".join(a[len(a) - end :]))


def _tidy(triples: list[tuple[str, str, str]], tail: str) -> list[Piece]:
    old, new = ("".join(s + t[at] for s, *t in triples) + tail for at in (0, 1))
    if 4 * (sum(len(s) for s, _, _ in triples) + len(tail)) < max(len(old), len(new)):
        triples, tail = [("", old, new)], ""
    joined: list[list[str]] = []
    for same, gone, came in triples:
        if joined and not re.search(r"\w", same):
            joined[-1][1] += same + gone
            joined[-1][2] += same + came
        else:
            joined.append([same, gone, came])
    out, after = [], ""
    for same, gone, came in joined:
        start, end = _shared(gone, came)
        out += [Piece("same", after + same + gone[:start])]
        out += [Piece("old", gone[start : len(gone) - end]), Piece("new", came[start : len(came) - end])]
        after = gone[len(gone) - end :]
    return _joined([*out, Piece("same", after + tail)])


def _shared(a: str, b: str) -> tuple[int, int]:
    """Return with how many characters of whole words both texts begin, and end: ``("42", "42 or 43")`` → 2, 0."""
    most = min(len(a), len(b))
    start = next((i for i in range(most) if a[i] != b[i]), most)
    while start and any(text[start - 1 : start + 1].isalnum() and start < len(text) for text in (a, b)):
        start -= 1
    most -= start
    end = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
    while end and any(text[len(text) - end - 1 : len(text) - end + 1].isalnum() and end < len(text) for text in (a, b)):
        end -= 1
    return start, end


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces without empty ones, and with neighbours of one kind as one."""
    out: list[Piece] = []
    for kind, group in itertools.groupby((p for p in pieces if p.text), key=lambda piece: piece.kind):
        out.append(Piece(kind, "".join(piece.text for piece in group)))
    return out


def brief(pieces: list[Piece], context: int = 120, most: int = 3000) -> list[Piece]:
    """Return the pieces with long texts cut: of what stays ``context`` characters on either side of a change, of what
    went or came ``most``; a mark says how many are left out."""
    out = []
    for i, piece in enumerate(pieces):
        text = piece.text
        if piece.kind == "same":
            head = context if i else 0
            tail = context if i + 1 < len(pieces) else 0
            if len(text) > head + tail + 40:
                left = text[:head], text[len(text) - tail :]
                text = f"{left[0]}[… {len(text) - head - tail:,} characters …]{left[1]}"
        elif len(text) > most + 40:
            text = f"{text[:most]}[… {len(text) - most:,} characters …]"
        out.append(Piece(piece.kind, text))
    return out


def plain(pieces: list[Piece]) -> str:
    """Return a change as plain text: ``the [-cat-]{+dog+} sat``."""
    marks = {"same": "{}", "old": "[-{}-]", "new": "{{+{}+}}"}
    return "".join(marks[piece.kind].format(piece.text) for piece in pieces)
