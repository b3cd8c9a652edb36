"""JSON documents, read as a stream: an array of rows, an object that holds one, or one object after another."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NoReturn

from curate.connectors.formats import (
    BATCH_BYTES,
    BATCH_ROWS,
    MAX_RECORD,
    Broken,
    FileFormat,
    Record,
    Slice,
    UnreadableError,
    open_binary,
    printable,
    refuse_utf16,
)
from curate.connectors.jsonl import broken_json

WRAPPERS = ("data", "examples", "rows", "records", "items", "samples", "train")
CHUNK = 2**20
RAW_CHARS = 16 * 1024

_decode = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\n\r]*+")
# A string (group 1 is empty if it has no end), or a bracket.  Possessive: no backtracking on megabytes.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(r"[^\s,\[\]{}\":]++")


@dataclass(kw_only=True)
class JSONDocument(FileFormat):
    """An array of rows; ``{"data": [...], ...}``; one object, which is one row; or several objects one after another.

    The file is decoded in chunks, so memory holds one record, not the file.  Row numbers count the elements, from 0.
    An element that is no valid JSON but ends where its brackets and quotes say (a bad escape, a bare word, nothing
    between two commas) is a broken record, and the next element is read.  Where brackets or quotes do not match, the
    rest of the file cannot be told apart: ``UnreadableError`` with line and column.  What follows the array in an
    object is not read.
    """

    name = "json"
    suffixes = (".json",)

    records_key: str | None = None
    """Key of the list that holds the rows; one of ``WRAPPERS`` if it is not given."""

    def records(self, piece: Slice) -> Iterator[list[Record]]:
        batch: list[Record] = []
        held = 0
        with open_binary(piece.url, piece.compression) as stream:
            cursor = _Cursor(stream, piece.url)
            layout = _layout(cursor, self.records_key)
        with open_binary(piece.url, piece.compression) as stream:
            cursor = _Cursor(stream, piece.url)
            try:
                for value, length in _rows(cursor, layout):
                    batch.append((cursor.row, value))
                    cursor.row += 1
                    held += length
                    if len(batch) >= BATCH_ROWS or held >= BATCH_BYTES:
                        yield batch
                        batch, held = [], 0
            except UnreadableError:
                if batch:
                    yield batch
                raise
        if batch:
            yield batch


class _Cursor:
    """A window over the text of a file; ``at`` is where reading stands in it."""

    def __init__(self, stream: IO[bytes], url: str) -> None:
        self._stream = stream
        # Bytes that are no UTF-8 become lone surrogates, and the row that holds them is rejected as such.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._lines = self._column = 0  # lines, and characters of the line, before the window
        self.text, self.at, self.end, self.row = "", 0, False, 0
        self.more()
        refuse_utf16(self.text[:2].encode("utf-8", "surrogateescape"), url)
        self.text = self.text.removeprefix("\ufeff")

    def more(self) -> None:
        """Lengthen the window, and drop what lies behind ``at``."""
        size = max(CHUNK, len(self.text) - self.at)  # doubles with a long record, so that the work stays linear
        if size > MAX_RECORD:
            self.fail(f"no end of a record within {MAX_RECORD >> 20} Mi characters")
        gone = self.text[: self.at]
        newlines = gone.count("\n")
        self._column = len(gone) - gone.rfind("\n") - 1 if newlines else self._column + len(gone)
        self._lines += newlines
        data = self._stream.read(size)
        self.end = not data
        self.text = self.text[self.at :] + self._decoder.decode(data, final=self.end)
        self.at = 0

    def place(self, at: int) -> str:
        behind = self.text[:at]
        newlines = behind.count("\n")
        column = len(behind) - behind.rfind("\n") if newlines else self._column + at + 1
        return f"line {self._lines + newlines + 1}, column {column}"

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        raw = printable(self.text[self.at : self.at + RAW_CHARS])
        raise UnreadableError(self.row, f"{self.place(at)}: {what}", raw)

    def peek(self) -> str:
        """Skip white space; return the next character, "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if self.end:
                return ""
            self.more()

    def after(self) -> str:
        """Return the character after the next one, white space apart; stay where we are."""
        while True:
            found = _SPACE.match(self.text, self.at + 1).end()  # type: ignore[union-attr]
            if found < len(self.text) or self.end:
                return self.text[found : found + 1]
            self.more()

    def value(self) -> tuple[Any, int]:
        """Read one value; return it (or ``Broken``) and its length in characters."""
        while True:
            if self.text[self.at] not in '"[{' and self._word_end() is None:
                self.more()  # "12" may go on as "12.5"
                continue
            try:
                value, end = _decode(self.text, self.at)
                if self.text[self.at] not in '"[{' and end != self._word_end():
                    raise ValueError(f"{self.text[self.at : self._word_end()][:20]!r} is no value")
            except (ValueError, RecursionError) as error:
                found = self._end_of_value()
                if found is None:
                    if not self.end:
                        self.more()
                        continue
                    self.fail(
                        f"{getattr(error, 'msg', error)}; the file ends inside this record", getattr(error, "pos", None)
                    )
                end = found
                raw = printable(self.text[self.at : min(end, self.at + RAW_CHARS)])
                value = broken_json(error, raw)
                where = self.place(getattr(error, "pos", self.at))
                value = Broken(value.reason, f"{where}: {getattr(error, 'msg', value.detail)}", raw)
            length, self.at = end - self.at, end
            return value, length

    def _word_end(self) -> int | None:
        """Return the end of a number or bare word; None if that is beyond the window."""
        word = _SCALAR.match(self.text, self.at)
        if word is None:
            self.fail(f"a value was expected, {self.text[self.at]!r} was found")
        return word.end() if word.end() < len(self.text) or self.end else None

    def _end_of_value(self) -> int | None:
        """Return where the brackets and quotes say that the value ends; None if that is beyond the window."""
        if self.text[self.at] not in '"[{':
            return self._word_end()
        open_brackets = ""
        for token in _TOKEN.finditer(self.text, self.at):
            first = self.text[token.start()]
            if first == '"':
                if token[1] != '"':
                    return None
            elif first in "[{":
                open_brackets += first
            elif open_brackets[-1:] != {"]": "[", "}": "{"}[first]:
                self.fail(f"{first!r} closes nothing", token.start())
            else:
                open_brackets = open_brackets[:-1]
            if not open_brackets:
                return token.end()
        return None


def _layout(cursor: _Cursor, wanted: str | None) -> str:
    """Return "array", "objects", or "key:KEY" for an object that holds the rows under KEY.  Reads up to there."""
    first = cursor.peek()
    if first == "":
        return "objects"
    if first == "[":
        return "array"
    if first != "{":
        cursor.fail(f"a list or an object was expected, {cursor.text[cursor.at : cursor.at + 20]!r} was found")
    cursor.at += 1
    keys = (wanted,) if wanted else WRAPPERS
    found: list[str] = []
    while cursor.peek() == '"':
        key, _ = cursor.value()
        if cursor.peek() != ":":
            return "objects"
        cursor.at += 1
        if cursor.peek() == "[" and key in keys and (wanted or cursor.after() == "{"):
            return f"key:{key}"
        found.append(str(key))
        cursor.value()
        if cursor.peek() != ",":
            break
        cursor.at += 1
        cursor.peek()
    if wanted:
        cursor.fail(f"records: {wanted!r} holds no list; keys found: {', '.join(found[:12]) or 'none'}")
    return "objects"


def _rows(cursor: _Cursor, layout: str) -> Iterator[tuple[Any, int]]:
    if layout == "objects":
        while cursor.peek():
            yield cursor.value()
        return
    if layout.startswith("key:"):
        _enter(cursor, layout.removeprefix("key:"))
    cursor.peek()
    cursor.at += 1  # the bracket
    first = True
    while True:
        char = cursor.peek()
        if char == "]" and first:
            break
        if char in (",", "]"):
            yield Broken("invalid-json", f"{cursor.place(cursor.at)}: no value before {char!r}", ""), 1
        elif char == "":
            cursor.fail("the file ends inside the list")
        else:
            yield cursor.value()
            char = cursor.peek()
        first = False
        if char == "]":
            break
        if char != ",":
            what = "the file ends inside the list" if char == "" else f"',' or ']' was expected, {char!r} was found"
            cursor.fail(what)
        cursor.at += 1
    cursor.at += 1
    if layout == "array" and cursor.peek():
        cursor.fail(f"nothing was expected after the list, {cursor.text[cursor.at : cursor.at + 20]!r} was found")


def _enter(cursor: _Cursor, wanted: str) -> None:
    """Go to the list under a key that ``_layout`` has found."""
    cursor.peek()
    cursor.at += 1
    while True:
        cursor.peek()
        key, _ = cursor.value()
        cursor.peek()
        cursor.at += 1
        if cursor.peek() == "[" and key == wanted:
            return
        cursor.value()
        cursor.peek()
        cursor.at += 1
