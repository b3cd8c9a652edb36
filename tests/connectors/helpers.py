"""Reads a path to the end, and checks on the way what every reading must keep."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from curate.connectors.discover import discover
from curate.connectors.normalise import REASONS
from curate.connectors.read import ReadBatch, read
from curate.connectors.recognise import recognise
from curate.connectors.recognised import Recognised
from curate.connectors.source import Source
from curate.example import EXAMPLE_SCHEMA, REJECTED_SCHEMA, keys

COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    ".bz2": bz2.compress,
}


class Result:
    """What became of the rows of a source."""

    def __init__(self, recognised: Recognised, batches: list[ReadBatch]) -> None:
        self.recognised = recognised
        self.rows = sum(b.rows for b in batches)
        self.table = pa.concat_tables([EXAMPLE_SCHEMA.empty_table(), *(b.examples for b in batches)])
        self.rejected_table = pa.concat_tables([REJECTED_SCHEMA.empty_table(), *(b.rejected for b in batches)])
        self.examples = self.table.to_pylist()
        self.rejected = self.rejected_table.to_pylist()

    @property
    def turns(self) -> list[list[tuple[str, str]]]:
        return [[(m["role"], m["content"]) for m in e["messages"]] for e in self.examples]

    @property
    def reasons(self) -> list[tuple[int, int, str]]:
        return [(r["row"], r["part"], r["reason"]) for r in self.rejected]


def read_all(path: Any, batch_rows: int = 2048, **options: Any) -> Result:
    """Discover, recognise and read; every row must be an example or rejected, and every table whole."""
    source = Source(path=[str(p) for p in path] if isinstance(path, list) else str(path), **options)
    slices = discover([source])
    recognised = recognise(slices, source)
    batches = []
    for piece in slices:
        last = -1
        for batch in read(piece, source, recognised, batch_rows=batch_rows):
            check(batch)
            numbers = {*batch.examples["row"].to_pylist(), *batch.rejected["row"].to_pylist()}
            assert min(numbers) > last, "a row came twice, or out of order"
            last = max(numbers)
            batches.append(batch)
    return Result(recognised, batches)


def check(batch: ReadBatch) -> None:
    """Nothing lost, nothing twice, schemas exact, keys and characters those of the messages."""
    assert batch.examples.schema == EXAMPLE_SCHEMA
    assert batch.rejected.schema == REJECTED_SCHEMA
    batch.examples.validate(full=True)
    batch.rejected.validate(full=True)
    examples, rejected = batch.examples.to_pylist(), batch.rejected.to_pylist()
    places = [(r["row"], r["part"]) for r in (*examples, *rejected)]
    assert len(places) == len(set(places))
    assert len({row for row, _ in places}) == batch.rows
    assert {r["reason"] for r in rejected} <= set(REASONS)
    for example in examples:
        messages = example["messages"]
        assert (example["content_key"], example["prompt_key"]) == keys(messages, example["tools"])
        assert example["chars"] == sum(len(m["content"]) for m in messages)
        assert messages[-1]["role"] == "assistant"


def write(path: Path, data: bytes | str) -> Path:
    """Write text or bytes, compressed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](data))
    return path
