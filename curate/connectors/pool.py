"""A pool from Python, without a run: found, recognised, and read when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from curate.connectors.discover import discover
from curate.connectors.read import read as read_slice
from curate.connectors.recognise import recognise
from curate.connectors.source import Source
from curate.example import EXAMPLE_SCHEMA, REJECTED_SCHEMA


@dataclass
class Pool:
    """Examples of one or more sources, read when asked for."""

    sources: list[Source]
    recognised: list[Any] = field(repr=False)
    slices: list[Any] = field(repr=False)

    def __str__(self) -> str:
        return "\n".join(r.text for r in self.recognised)

    def batches(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield (examples, rejected) tables; memory holds one batch."""
        for piece in self.slices:
            for batch in read_slice(piece, self.sources[piece.source], self.recognised[piece.source]):
                yield batch.examples, batch.rejected

    def examples(self) -> pa.Table:
        """Return every example (copies included) as one table; see ``curate.example.EXAMPLE_SCHEMA``."""
        tables = [examples for examples, _ in self.batches()]
        return pa.concat_tables([EXAMPLE_SCHEMA.empty_table(), *tables])

    def rejected(self) -> pa.Table:
        """Return every row that could not become an example, with its reason."""
        tables = [rejected for _, rejected in self.batches()]
        return pa.concat_tables([REJECTED_SCHEMA.empty_table(), *tables])


def read(path: str | list[str], **options: Any) -> Pool:
    """Find and recognise a pool; nothing but a sample of rows is read yet.

    ``options`` are those of ``curate.connectors.source.Source``: ``schema``, ``columns``, ``id``, ``source`` …

    Raises
    ------
    SourceError, SchemaError
        If nothing is there, or the columns are unknown or ambiguous.
    """
    sources = [Source(path=path, **options)]
    slices = discover(sources)
    return Pool(sources, [recognise(slices, sources[0])], slices)
