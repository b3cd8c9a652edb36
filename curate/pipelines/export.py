"""The result: Parquet shards that trainers read, and beside them where each row came from.

``dataset/`` holds training columns only (``messages``, and ``tools`` when any row has some), because trainers read
meaning into every column they find.  ``provenance/`` holds, file by file and row by row,
the same rows' ids, sources, places in the order of choice and scores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate.example import MESSAGE_TYPE
from curate.pipelines.corrected import new_answers, with_answers
from curate.pipelines.index import Index
from curate.pipelines.store import Store
from curate.pipelines.worker import Stage

ROW_GROUP = 1_000
"""Rows per row group: a page of the Hub's viewer reads one."""


def training_type(fields: tuple[str, ...]) -> pa.DataType:
    """Return the type of ``messages`` with only the message fields that the pool uses."""
    return pa.list_(pa.struct([MESSAGE_TYPE.field(f) for f in ("role", "content", *fields) if f != "train"]))


def training_messages(column: pa.ChunkedArray, fields: tuple[str, ...]) -> pa.Array:
    """Return messages without the fields that no row of the pool uses, and without ``train`` marks."""
    array = column.combine_chunks()
    flat = array.flatten()
    names = [f for f in ("role", "content", *fields) if f != "train"]
    struct = pa.StructArray.from_arrays([flat.field(f) for f in names], fields=[MESSAGE_TYPE.field(f) for f in names])
    lengths = np.asarray(pa.compute.list_value_length(array).fill_null(0))
    offsets = pa.array(np.r_[0, np.cumsum(lengths)].astype(np.int32))
    return pa.ListArray.from_arrays(offsets, struct)


@dataclass(frozen=True)
class Piece:
    """Rows of one part."""

    part: str
    rows: NDArray[np.int64]
    scored: NDArray[np.int64]
    """The same rows' numbers in the part's score files."""
    order: NDArray[np.int64]
    """Their places in the order of choice."""
    corrected: NDArray[np.int16] | None
    """The step that replaced their answers, -1 for none; None without corrections."""


@dataclass(frozen=True)
class Shard:
    """One output file: which rows of which parts, in reading order."""

    name: str
    pieces: tuple[Piece, ...]


def cut_shards(
    index: Index,
    kept: NDArray[np.bool_],
    order: NDArray[np.int64],
    corrected: NDArray[np.int16] | None = None,
    *,
    split: str,
    shard_rows: int,
) -> list[Shard]:
    """Share the kept rows out over output files, in reading order."""
    total = int(kept.sum())
    files = max(1, -(-total // shard_rows))
    out: list[list[Any]] = [[] for _ in range(files)]
    written = 0
    for part in index.parts:
        place = index.place[part.start : part.start + part.rows]
        unique = place >= 0
        rows = np.flatnonzero(unique & kept[np.where(unique, place, 0)])
        scored = np.cumsum(unique) - 1
        done = 0
        while done < rows.size:
            number = written // shard_rows
            take = min(rows.size - done, (number + 1) * shard_rows - written)
            chosen = rows[done : done + take]
            by = None if corrected is None else corrected[place[chosen]]
            out[number].append(Piece(part.name, chosen, scored[chosen], order[place[chosen]], by))
            done += take
            written += take
    return [Shard(f"{split}-{i:05d}-of-{files:05d}.parquet", tuple(pieces)) for i, pieces in enumerate(out)]


def write_shard(
    store: Store,
    directory: str,
    shard: Shard,
    fields: tuple[str, ...],
    tools: bool,
    stages: list[Stage],
    corrections: Mapping[int, str],
) -> int:
    """Write one file of the dataset and its twin under provenance/; return its rows.

    ``corrections`` is the number of a step → where what it replaced is written down.
    """
    schema = pa.schema([("messages", training_type(fields)), *([("tools", pa.string())] if tools else [])])
    columns = ["id", "messages", "source", "group", "file", "row", *(["tools"] if tools else [])]
    twins = []
    rows = 0
    with store.writing(*f"{directory}/dataset".split("/"), shard.name) as handle:
        writer = pq.ParquetWriter(handle, schema, compression="zstd", write_page_index=True, **cdc_options())
        held: list[pa.Table] = []
        for piece in shard.pieces:
            table = store.read_table("examples", piece.part, columns=columns).take(pa.array(piece.rows))
            table = _corrected(store, piece, table, corrections)
            out = {"messages": training_messages(table.column("messages"), fields)}
            if tools:
                out["tools"] = table.column("tools")
            held = write_full_groups(writer, [*held, pa.table(out).cast(schema)])
            twin = table.select(["id", "source", "group", "file", "row"]).append_column("order", pa.array(piece.order))
            if piece.corrected is not None:
                by = [os.path.basename(corrections[i]).rpartition("-")[0] if i >= 0 else None for i in piece.corrected]
                twin = twin.append_column("corrected_by", pa.array(by, pa.string()))
            for stage in stages:
                if stage.wide:
                    continue
                scores = store.read_table(*stage.directory.split("/"), piece.part).take(pa.array(piece.scored))
                for name in scores.column_names:
                    if name not in ("id", "reason"):
                        twin = twin.append_column(f"{stage.name}.{name}", scores.column(name))
            twins.append(twin)
            rows += table.num_rows
        if held:
            writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=ROW_GROUP)
        writer.close()
    if twins:
        store.write_table(pa.concat_tables(twins).combine_chunks(), *f"{directory}/provenance".split("/"), shard.name)
    return rows


def _corrected(store: Store, piece: Piece, table: pa.Table, corrections: Mapping[int, str]) -> pa.Table:
    """Return the rows of a piece with the answers that corrections put into them."""
    if piece.corrected is None:
        return table
    for number in np.unique(piece.corrected[piece.corrected >= 0]).tolist():
        rows = np.flatnonzero(piece.corrected == number)
        ids = table.column("id").take(pa.array(rows)).to_pylist()
        table = with_answers(table, rows, ids, new_answers(store, corrections[number], piece.part))
    return table


def write_full_groups(writer: pq.ParquetWriter, held: list[pa.Table]) -> list[pa.Table]:
    """Write as many whole row groups as are held; return the rest.  So the cuts between parts leave no trace."""
    rows = sum(t.num_rows for t in held)
    if rows < ROW_GROUP:
        return held
    table = pa.concat_tables(held)
    full = rows // ROW_GROUP * ROW_GROUP
    writer.write_table(table.slice(0, full).combine_chunks(), row_group_size=ROW_GROUP)
    return [table.slice(full)]


def cdc_options() -> dict[str, bool]:
    """Content-defined chunking where this pyarrow has it: versions of a dataset then share storage on the Hub."""
    return {"use_content_defined_chunking": True} if int(pa.__version__.partition(".")[0]) >= 21 else {}
