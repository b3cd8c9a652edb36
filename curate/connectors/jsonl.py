"""JSON lines: one JSON value a line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from curate.connectors.formats import (
    BATCH_BYTES,
    BATCH_ROWS,
    MAX_RECORD,
    SLICE_BYTES,
    Broken,
    FileFormat,
    Record,
    Slice,
    is_url,
    open_binary,
    refuse_utf16,
)

BOM = b"\xef\xbb\xbf"
RAW_BYTES = 64 * 1024


@dataclass(kw_only=True)
class JSONLines(FileFormat):
    """One JSON value a line, lines ended by LF or CRLF.  Row numbers are line numbers, from 0; blank lines are no rows.

    A line that does not parse is a broken record, and the next line is read as if nothing had been.
    """

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    def cut(self, whole: Slice) -> list[Slice]:
        """Cut by whole lines, about 64 MiB each, with the number of the first line of each.

        This reads the file once, counting line ends (about 3 GB/s).  Remote files stay whole: counting would fetch them
        twice.  So do compressed ones, which cannot be read from the middle.
        """
        if whole.compression or whole.bytes is None or (is_url(whole.url) and not whole.url.startswith("memory://")):
            return [whole]
        pieces = []
        size, start, first = whole.bytes, 0, 0
        with open_binary(whole.url) as stream:
            while start < size:
                stop, lines = _end_of_lines(stream, start, min(start + SLICE_BYTES, size), size)
                pieces.append(
                    dataclasses.replace(whole, start=start, stop=stop, first_row=first, rows=lines, bytes=stop - start)
                )
                start, first = stop, first + lines
        return pieces or [dataclasses.replace(whole, stop=0, rows=0)]

    def records(self, piece: Slice) -> Iterator[list[Record]]:
        batch: list[Record] = []
        held = 0
        row = piece.first_row - 1
        left = None if piece.stop is None else piece.stop - piece.start
        with open_binary(piece.url, piece.compression) as stream:
            if piece.start:
                stream.seek(piece.start)
            while left is None or left > 0:
                line = stream.readline(MAX_RECORD + 1)
                if not line:
                    break
                length = len(line)
                row += 1
                if row == 0:
                    refuse_utf16(line, piece.url)
                    line = line.removeprefix(BOM)
                if length > MAX_RECORD:
                    raw = line[:RAW_BYTES].decode("utf-8", "backslashreplace")
                    batch.append((row, Broken("too-long", f"a line of more than {MAX_RECORD >> 20} MiB", raw)))
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(MAX_RECORD)
                        length += len(line)
                elif not line.isspace() and line:
                    batch.append((row, parse(line)))
                if left is not None:
                    left -= length
                held += length
                if len(batch) >= BATCH_ROWS or held >= BATCH_BYTES:
                    yield batch
                    batch, held = [], 0
        if batch:
            yield batch


def parse(line: bytes) -> Any:
    """Return the value of one line, or ``Broken``."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{line[error.start]:02x} at byte {error.start} of the line: {error.reason}"
        return Broken("invalid-utf8", detail, _cut(line))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return broken_json(error, _cut(line))


def broken_json(error: Exception, raw: str) -> Broken:
    """Return the broken record for an error of the JSON parser."""
    if isinstance(error, RecursionError):
        return Broken("invalid-json", "nested too deeply", raw)
    if isinstance(error, json.JSONDecodeError):
        escape = error.msg.startswith("Invalid \\")
        return Broken("invalid-escape" if escape else "invalid-json", f"{error.msg} at character {error.pos}", raw)
    return Broken("invalid-json", str(error), raw)  # an integer of thousands of digits


def _cut(line: bytes) -> str:
    return line[:RAW_BYTES].rstrip(b"\r\n").decode("utf-8", "backslashreplace")


def _end_of_lines(stream: Any, start: int, wanted: int, size: int) -> tuple[int, int]:
    """Return (the first start of a line at or after ``wanted``, lines from ``start`` to there)."""
    stream.seek(start)
    at, lines, last = start, 0, b"\n"
    while at < size:
        data = stream.read(min(2**20, wanted - at) if at < wanted else 2**16)
        if not data:
            break
        if at >= wanted:
            if last == b"\n":
                return at, lines
            end = data.find(b"\n")
            if end >= 0:
                return at + end + 1, lines + 1
        else:
            lines += data.count(b"\n")
        at, last = at + len(data), data[-1:]
    return at, lines + (last != b"\n")
