"""Benchmarks: the test questions that a pool is searched for.

They are read in the run's own process, in any schema that pools have; a question counts with or without its answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curate.example import EXAMPLE_SCHEMA
from curate.exceptions import CurateError, RunError
from curate.fingerprint import fingerprint

if TYPE_CHECKING:
    from curate.connectors.source import Source
    from curate.recipe import Recipe


@dataclass(frozen=True)
class Benchmarks:
    """The items of every benchmark, each once, in order of their content."""

    sets: dict[str, pa.Table]
    """Benchmark → its items: "id", "messages" and "group" (the benchmark's name)."""
    fingerprint: str
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    """Benchmark → reason → rows that ask nothing."""


def read_benchmarks(recipe: Recipe) -> Benchmarks:
    """Read the benchmarks of a recipe.

    Raises
    ------
    SourceError, SchemaError
        If one is not there, or its columns are unknown.
    RunError
        If one has no item.
    """
    sets, rejected, keys = {}, {}, {}
    for name, source in recipe.benchmarks.items():
        sets[name], keys[name], rejected[name] = read_benchmark(name, source)
    return Benchmarks(sets, fingerprint("benchmarks", keys), rejected)


def read_benchmark(name: str, source: Source) -> tuple[pa.Table, list[list[str]], dict[str, int]]:
    """Return one benchmark's items, their names and content keys, and how many rows were rejected, by reason.

    An item goes by its ``id`` column: the one that the source names, or one called "id".  Without it, by its row.
    """
    from curate.connectors.discover import discover
    from curate.connectors.read import read
    from curate.connectors.recognise import recognise

    try:
        slices = discover([source])
        known = recognise(slices, source, unanswered=True)
        batches = [batch for piece in slices for batch in read(piece, source, known)]
    except CurateError as error:
        raise type(error)(f"benchmark {name!r}: {error}") from error
    rows = [row for batch in batches for row in batch.examples.to_pylist()]
    reasons = [reason for batch in batches for reason in batch.rejected.column("reason").to_pylist()]
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    if not rows:
        told = ", ".join(counts) or "the files are empty"
        raise RunError(f"benchmark {name!r}: no row of {source.path} asks anything ({told}).")
    several = len({row["file"] for row in rows}) > 1
    items = sorted((row["content_key"].hex(), _called(row, source, several), i) for i, row in enumerate(rows))
    first = {key: (called, i) for key, called, i in reversed(items)}  # of equal items, the one that is named first
    kept = [(key, *first[key]) for key in sorted(first)]
    columns = [[called for _, called, _ in kept], [rows[i]["messages"] for *_, i in kept], [name] * len(kept)]
    fields = [EXAMPLE_SCHEMA.field(column) for column in ("id", "messages", "group")]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, fields, strict=True)], pa.schema(fields))
    return table, [[called, key] for key, called, _ in kept], counts


def _called(row: dict[str, Any], source: Source, several: bool) -> str:
    if source.id is not None:
        return str(row["id"])
    own = json.loads(row["extra"] or "{}").get("id")
    if isinstance(own, (str, int)) and not isinstance(own, bool) and str(own).strip():
        return str(own)
    where = f"row {row['row']}" if row["part"] < 0 else f"row {row['row']}#{row['part']}"
    return f"{row['file'].rpartition('/')[2]} {where}" if several else where
