"""Whether a text names the right option: a letter of those that were offered, or yes and no, true and false."""

from __future__ import annotations

import re
from typing import ClassVar

from curate.numerics.agreement import normalised
from curate.verifiers.base import Finding, Item, Verifier, announced

_OFFERED = re.compile(r"(?:^|\n|\s)\(?([A-Z])[).:]\s*(\S[^\n]*)")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_WHOLE = re.compile(r"\W*([A-Za-z])\W*")
_FIRST = re.compile(r"\W*(?:([A-Z])\**[).:,]|([a-z])\))")  # "C. …", "(C) …", "c) …", and neither "A dog" nor "I think"
_ANNOUNCED = re.compile(r"\W*(?:(?:option|choice)\s+)?\(?([A-Z])\b(?!['’])")
_CALLED = re.compile(r"(?:option|choice)\s+\(?([A-Z])\b", re.IGNORECASE)
_PAIRS = ({"true", "false"}, {"yes", "no"})


class Option(Verifier):
    """The option that a text names is the reference's.

    A reference is an option if it is a letter in brackets ("(D)", also behind "the answer is"), a single letter that
    the prompt offers ("D. …" or "(D) …"), or one of True and False or of Yes and No.  What a text names is looked for
    where it announces its answer, then at its beginning, then as the only letter in brackets ("option C" counts, too),
    or as the only one of the two words; a text that is what an offered option says, in other case or not, names it.
    One that names several and announces none names none.
    """

    name: ClassVar[str] = "option"

    def refusal(self, item: Item) -> str | None:
        if not item.references:
            return "no reference answer"
        return None if _wanted(item) is not None else "the reference is no option"

    def _check(self, item: Item, text: str, finished: bool) -> Finding:
        wanted = _wanted(item)
        assert wanted is not None
        pair = next((pair for pair in _PAIRS if wanted in pair), None)
        found = _letter(text, item) if pair is None else _word(text, pair)
        if found is None:
            return Finding(False, "no option")
        return Finding(found == wanted, "right" if found == wanted else "wrong", found)


def _wanted(item: Item) -> str | None:
    """Return the reference's option: a capital letter, or a word of a pair; None if it is none."""
    text = item.references[0].strip()
    said = announced(text)
    for part in (text, said):
        if part is None:
            continue
        short = normalised(part)
        if any(short in pair for pair in _PAIRS):
            return short
        if match := re.fullmatch(r"\(([A-Z])\)\.?", part.strip()):
            return match[1]
        if match := re.fullmatch(r"([A-Z])[).:]?", part.strip()):
            return match[1] if match[1] in _offered(item.prompt) else None
    return None


def _offered(prompt: str) -> dict[str, str]:
    """Return what is offered: letter → what it says.  The last list counts, if there are examples before it."""
    return {letter: normalised(says) for letter, says in _OFFERED.findall(prompt)}


def _letter(text: str, item: Item) -> str | None:
    offered = _offered(item.prompt)
    said = announced(text)
    for part in (said, text):
        if part is None:
            continue
        match = _WHOLE.fullmatch(part) or _FIRST.match(part) or (_ANNOUNCED.match(part) if part is said else None)
        letter = next((group.upper() for group in match.groups() if group), None) if match else None
        if letter is not None and (not offered or letter in offered):
            return letter
        says = [letter for letter, what in offered.items() if what == normalised(part)]
        if len(says) == 1:
            return says[0]
        named = {letter.upper() for letter in (*_BRACKETED.findall(part), *_CALLED.findall(part))}
        if len(named) == 1:
            return named.pop()
    return None


def _word(text: str, pair: set[str]) -> str | None:
    said = announced(text)
    for part in (said, text):
        if part is None:
            continue
        words = [word for word in re.findall(r"[^\W\d_]+", part.casefold()) if word in pair]
        first = re.match(r"\W*([^\W\d_]+)", part.casefold())
        if first and first[1] in pair:
            return first[1]
        if len(set(words)) == 1:
            return words[0]
    return None
