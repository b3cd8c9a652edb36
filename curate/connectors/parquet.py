"""Parquet: row groups read on their own, in batches of bounded size."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.connectors.formats import BATCH_BYTES, SLICE_BYTES, Broken, FileFormat, Record, Slice, is_url, open_binary
from curate.exceptions import SourceError

BATCH_ROWS = 2048


@dataclass(kw_only=True)
class Parquet(FileFormat):
    """Row groups become slices of about 64 MiB (uncompressed).  Row numbers count from 0 in the file."""

    name = "parquet"
    suffixes = (".parquet", ".pq")

    def cut(self, whole: Slice) -> list[Slice]:
        with _open(whole.url) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        pieces: list[Slice] = []
        first = row = held = rows = stored = 0
        for i, group in enumerate(groups):
            held += group.total_byte_size
            rows += group.num_rows
            stored += sum(group.column(c).total_compressed_size for c in range(group.num_columns))
            if held >= SLICE_BYTES or i == len(groups) - 1:
                pieces.append(
                    dataclasses.replace(whole, row_groups=(first, i + 1), first_row=row, rows=rows, bytes=stored)
                )
                first, row, held, rows, stored = i + 1, row + rows, 0, 0, 0
        return pieces or [dataclasses.replace(whole, row_groups=(0, 0), rows=0)]

    def records(self, piece: Slice) -> Iterator[list[Record]]:
        for row, batch in self.batches(piece):
            yield list(zip(range(row, row + batch.num_rows), as_rows(batch), strict=True))

    def batches(self, piece: Slice) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (number of the first row, rows) in batches of at most ``BATCH_ROWS`` rows and about 16 MiB.

        Raises
        ------
        SourceError
            If a page does not decode.
        """
        with _open(piece.url) as file:
            meta = file.metadata
            span = range(*piece.row_groups) if piece.row_groups else range(meta.num_row_groups)
            size = sum(meta.row_group(i).total_byte_size for i in span)
            rows = sum(meta.row_group(i).num_rows for i in span)
            batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(1, size)))
            row = piece.first_row
            try:
                # One batch may end with a row group, so the batches of a slice do not depend on how the file is cut.
                for group in span:
                    for batch in file.iter_batches(batch_rows, row_groups=[group], use_threads=False):
                        if batch.num_rows:
                            yield row, batch
                            row += batch.num_rows
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if isinstance(error, OSError) and type(error) is not OSError:
                    raise
                raise SourceError(
                    f"{piece.url}: this Parquet file is damaged after row {row}: {error}. "
                    f"Write or download it again, or leave it out."
                ) from error


def as_rows(batch: pa.RecordBatch) -> list[Any]:
    """Return the rows as dictionaries; ``Broken`` where a text is no UTF-8 or a value has no Python form."""
    for i, field in enumerate(batch.schema):  # a nanosecond time has no exact Python form
        if pa.types.is_temporal(field.type):
            with contextlib.suppress(pa.ArrowException):
                batch = batch.set_column(i, field.name, batch.column(i).cast(pa.string()))
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        if batch.num_rows > 1:
            return [row for i in range(batch.num_rows) for row in as_rows(batch.slice(i, 1))]
        return [_broken(batch)]


def _broken(row: pa.RecordBatch) -> Broken:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError as error:
            return Broken(
                "invalid-utf8",
                f"column {name!r}: byte 0x{error.object[error.start]:02x} at byte {error.start}: {error.reason}",
            )
        except (ValueError, OverflowError) as error:
            return Broken("wrong-type", f"column {name!r}: {error}")
    return Broken("wrong-type", "two columns have the same name")


@contextlib.contextmanager
def _open(url: str) -> Iterator[pq.ParquetFile]:
    # A buffer, and no reading ahead: a row group of any size passes through in pages.
    source: Any = open_binary(url) if is_url(url) else url
    try:
        try:
            file = pq.ParquetFile(source, pre_buffer=False, buffer_size=2**20)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and type(error) is not OSError:  # the file system's; Arrow's own is bare
                raise
            raise SourceError(
                f"{url}: this is no whole Parquet file ({str(error).rstrip('.')}); it was cut short, or is something "
                f"else. Write or download it again, or leave it out."
            ) from error
        with file:
            yield file
    finally:
        if is_url(url):
            source.close()
