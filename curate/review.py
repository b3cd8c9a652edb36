"""The review file: rows that a person should look at, one JSON object a line, and what the person said of them.

What a person fills in stands first: ``verdict``, which is "keep", "fix" or "drop" ("" is not reviewed yet),
``new_answer``, which goes with "fix", and ``note``.  The rest says which row it is, what it says, and why it is here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.exceptions import InputError
from curate.fingerprint import fingerprint
from curate.registry import nearest

VERDICTS = ("keep", "fix", "drop")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a review file, under the keys of the file."""

    verdict: str = ""
    """One of ``VERDICTS``, or "" while nobody has looked."""
    new_answer: str = ""
    """What the answer should be; with "fix", and with nothing else."""
    note: str = ""
    """For people."""
    rank: int | None = None
    """Its place in the list, 1 first."""
    on: str | None = None
    """The score that the list goes by."""
    score: float | None = None
    id: str
    question: str | None = None
    """The last turn of the user before the answer."""
    answer: str
    """What the row said when the list was made."""
    proposal: str | None = None
    """What a correction would put in its place."""
    conversation: list[dict[str, str]] | None = None
    """All turns before the answer, where there are more of them than the question."""


_KEYS = tuple(f.name for f in dataclasses.fields(Line))
_TEXTS = ("verdict", "new_answer", "note", "id", "answer")


@dataclass(frozen=True)
class Review:
    """A review file that was read and found right."""

    lines: tuple[Line, ...]
    numbers: tuple[int, ...]
    """The line of the file that each stands on, from 1."""

    @property
    def reviewed(self) -> dict[str, tuple[Line, int]]:
        """Id → its line, and the number of it, of the rows that somebody has looked at."""
        return {line.id: (line, n) for line, n in zip(self.lines, self.numbers, strict=True) if line.verdict}

    @property
    def digest(self) -> str:
        """Of what was said of which answer: the same whatever the order, the notes, and the rows not looked at."""
        said = [(i, line.verdict, line.new_answer, line.answer) for i, (line, _) in self.reviewed.items()]
        return fingerprint("review", sorted(said))


def dump(lines: Iterable[Line]) -> str:
    """Return lines as the text of a review file; what a row does not have is left out."""
    out = []
    for line in lines:
        held = {key: value for key, value in dataclasses.asdict(line).items() if value is not None}
        out.append(json.dumps(held, ensure_ascii=False) + "\n")
    return "".join(out)


def read(path: str | Path) -> Review | None:
    """Read a review file and check every line; None where there is no file.

    Raises
    ------
    InputError
        With ``file:line``: for what is no JSON object of these keys, an unknown verdict, a fix without a new answer or
        with the old one, a new answer without a fix, a row with two verdicts; or for a file that cannot be read.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a review file in UTF-8 was asked; byte {error.start} is not. Save it so.") from None
    except OSError as error:
        raise InputError(f"{path}: the review file cannot be read: {error.strerror or error}.") from error
    lines, numbers = [], []
    first: dict[str, tuple[Line, int]] = {}
    for number, line_text in enumerate(text.split("\n"), 1):  # not splitlines: a text may hold U+2028
        if not line_text.strip():
            continue
        line = _line(line_text, f"{path}:{number}")
        if line.verdict:
            before, at = first.setdefault(line.id, (line, number))
            if (before.verdict, before.new_answer, before.answer) != (line.verdict, line.new_answer, line.answer):
                raise InputError(
                    f"{path}:{number}: one verdict a row was asked; {line.id!r} has {_said(line)} here and "
                    f"{_said(before)} on line {at}. Delete one of the lines."
                )
        lines.append(line)
        numbers.append(number)
    return Review(tuple(lines), tuple(numbers))


def _said(line: Line) -> str:
    return f"{line.verdict!r}" + (f" to {_brief(line.new_answer)}" if line.verdict == "fix" else "")


def _brief(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _line(text: str, where: str) -> Line:
    try:
        held = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, where))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: a JSON object was asked; this is none: {error}.") from None
    if not isinstance(held, dict):
        raise InputError(f"{where}: a JSON object was asked; found {_brief(text.strip())}.")
    if unknown := [key for key in held if key not in _KEYS]:
        raise InputError(
            f"{where}: unknown key {unknown[0]!r}{nearest(unknown[0], list(_KEYS))} What else is to be said goes into "
            "'note'."
        )
    for key in ("id", "answer"):
        if not isinstance(held.get(key), str):
            raise InputError(f"{where}: {key!r}, a text, was asked; found {held.get(key)!r}. Make the list again.")
    for key in _TEXTS[:3]:
        if not isinstance(given := held.get(key) or "", str):
            raise InputError(f"{where}: {key!r} is a text; found {given!r}.")
        held[key] = given
    held["verdict"] = held["verdict"].strip().lower()
    line = Line(**held)
    _check(line, where)
    return line


def _once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"{where}: the key {next(k for k in keys if keys.count(k) > 1)!r} stands there twice.")
    return out


def _check(line: Line, where: str) -> None:
    if line.verdict not in ("", *VERDICTS):
        raise InputError(
            f"{where}: the verdict is keep, fix or drop (or empty); found {line.verdict!r}"
            f"{nearest(line.verdict, list(VERDICTS))}"
        )
    written = bool(line.new_answer.strip())
    if line.verdict == "fix" and not written:
        raise InputError(f"{where}: verdict 'fix' asks for a new_answer, and there is none; write it, or say drop.")
    if line.verdict == "fix" and line.new_answer == line.answer:
        raise InputError(f"{where}: verdict 'fix', and the new_answer is the old one; change it, or say keep.")
    if written and line.verdict != "fix":
        said = f"verdict {line.verdict!r}" if line.verdict else "no verdict"
        raise InputError(f"{where}: a new_answer goes with verdict 'fix'; found {said}. Say fix, or empty new_answer.")
    try:
        line.new_answer.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the new_answer holds half a surrogate pair; write the character itself.") from None


def line_of(id: str, messages: Sequence[Mapping[str, Any]], **more: Any) -> Line | None:
    """Return a row as a line of the list; None if its last assistant turn calls tools or is not there."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
    if last < 0 or messages[last].get("tool_calls"):
        return None
    before = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages[:last]]
    asked = next((m["content"] for m in reversed(before) if m["role"] == "user"), None)
    alone = len(before) == 1 and asked is not None
    return Line(
        id=id,
        question=asked,
        answer=messages[last]["content"],
        conversation=None if alone or not before else before,
        **more,
    )
