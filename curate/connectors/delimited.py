"""Comma- and tab-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

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
)

RAW_CHARS = 16 * 1024


@dataclass(kw_only=True)
class CSV(FileFormat):
    """Cells between commas, quoted as RFC 4180 says (quotes doubled, line ends allowed inside), after a header line.

    Every cell is text.  Row numbers count the records after the header, from 0; blank lines are no rows.  A record with
    fewer cells than the header lacks the last columns; one with more is rejected ("too-many-columns").  A header cell
    without text is called ``column_N`` (from 0); a name that occurs again becomes ``name.1``.
    """

    name = "csv"
    suffixes = (".csv",)

    delimiter: str = ","
    """The character between cells."""
    header: list[str] | None = None
    """Names of the columns of a file without a header line."""

    def records(self, piece: Slice) -> Iterator[list[Record]]:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD))
        # Bytes that are no UTF-8 become lone surrogates, and the row that holds them is rejected as such.
        stream = io.TextIOWrapper(
            open_binary(piece.url, piece.compression), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        with stream:
            lines = _Lines(stream)
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            names = self.header
            batch: list[Record] = []
            held, row = 0, 0
            while True:
                lines.start()
                try:
                    cells = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    if lines.over or "unexpected end" in str(error):
                        if batch:
                            yield batch
                        until = lines.over or "before the file ends"
                        detail = f"line {lines.first}: a quote is opened and not closed {until}"
                        raise UnreadableError(row, detail, lines.raw()) from None
                    value: Any = Broken("invalid-csv", f"line {lines.first}: {error}", lines.raw())
                else:
                    if not cells:
                        continue
                    if names is None:
                        names = _header(cells)
                        continue
                    if len(cells) > len(names):
                        detail = f"line {lines.first}: {len(cells)} cells, the header has {len(names)}"
                        value = Broken("too-many-columns", detail, lines.raw())
                    else:
                        value = dict(zip(names, cells, strict=False))
                batch.append((row, value))
                row += 1
                held += lines.held
                if len(batch) >= BATCH_ROWS or held >= BATCH_BYTES:
                    yield batch
                    batch, held = [], 0
        if batch:
            yield batch


@dataclass(kw_only=True)
class TSV(CSV):
    """As CSV, with tabs between the cells."""

    name = "tsv"
    suffixes = (".tsv",)

    delimiter: str = "\t"
    """The character between cells."""


class _Lines:
    """The lines of a text, of bounded length; remembers those of the record that is being read."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._number = 0
        self.over = ""
        self.start()

    def start(self) -> None:
        self.first, self.held = self._number + 1, 0
        self._kept: list[str] = []

    def raw(self) -> str:
        return printable("".join(self._kept)[:RAW_CHARS])

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_RECORD)
        if not line:
            raise StopIteration
        self._number += 1
        if self.held < RAW_CHARS:
            self._kept.append(line)
        self.held += len(line)
        if self.held >= MAX_RECORD:
            self.over = f"within {MAX_RECORD >> 20} Mi characters"
            raise csv.Error(self.over)
        return line


def _header(cells: list[str]) -> list[str]:
    names: list[str] = []
    for i, cell in enumerate(cells):
        name = base = cell.strip() or f"column_{i}"
        again = 0
        while name in names:
            again += 1
            name = f"{base}.{again}"
        names.append(name)
    return names
