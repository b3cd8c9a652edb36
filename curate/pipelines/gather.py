"""Reads columns of the whole pool into plain arrays, in canonical order: what selectors are given.

Only the columns that a step names are read, one part at a time; texts are never read.  A score is 8 bytes a row.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.pipelines import vectors
from curate.pipelines.index import Index, Part
from curate.pipelines.store import Store
from curate.pipelines.worker import Stage


def _positions(index: Index, part: Part) -> NDArray[np.int64]:
    """Canonical places of a part's rows that are no copies, in the part's order."""
    place = index.place[part.start : part.start + part.rows]
    return place[place >= 0]


def score_column(store: Store, index: Index, stage: Stage, column: str) -> NDArray[np.float64]:
    """Return one score column, float64 (n,); NaN where a row was not scored."""
    out = np.full(index.n, np.nan)
    tables = store.read_tables(stage.directory, [p.name for p in index.parts], [column])
    for part, table in zip(index.parts, tables, strict=True):
        values = pc.cast(table.column(0), pa.float64())
        out[_positions(index, part)] = values.to_numpy()
    return out


def reasons(store: Store, index: Index, stage: Stage) -> tuple[NDArray[np.int32], list[str]]:
    """Return why rows were not scored: a code per row (-1: it was), and the words."""
    codes = np.full(index.n, -1, dtype=np.int32)
    words: dict[str, int] = {}
    tables = store.read_tables(stage.directory, [p.name for p in index.parts], ["reason"])
    for part, table in zip(index.parts, tables, strict=True):
        column = table.column(0).combine_chunks()
        if column.null_count == len(column):
            continue
        at = _positions(index, part)
        for i in np.flatnonzero(~np.asarray(column.is_null())):
            codes[at[i]] = words.setdefault(column[int(i)].as_py(), len(words))
    return codes, list(words)


def texts(store: Store, index: Index, stage: Stage, column: str, rows: NDArray[np.int64]) -> list[str | None]:
    """Return a text column of a stage for some rows of the pool, in their order; a part at a time."""
    wanted = np.full(index.n, -1, dtype=np.int64)
    wanted[rows] = np.arange(rows.size)
    out: list[str | None] = [None] * rows.size
    tables = store.read_tables(stage.directory, [p.name for p in index.parts], [column])
    for part, table in zip(index.parts, tables, strict=True):
        at = wanted[_positions(index, part)]
        here = np.flatnonzero(at >= 0)
        for place, value in zip(at[here].tolist(), table.column(0).take(pa.array(here)).to_pylist(), strict=True):
            out[place] = value
    return out


def labels(store: Store, index: Index, column: str, stages: Mapping[str, Stage] | None = None) -> NDArray[np.int64]:
    """Return what tells groups of rows as integer codes, (n,), and nothing else of it; see ``label_names``."""
    return label_names(store, index, column, stages)[0]


def label_names(
    store: Store, index: Index, column: str, stages: Mapping[str, Stage] | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Return integer codes (n,), and the name of each code, in sorted order of the names.

    ``column`` is one of the examples (source, group, prompt_key), or "STAGE.COLUMN" of a stage that wrote labels; rows
    without one are "(none)".
    """
    codes = np.empty(index.n, dtype=np.int64)
    seen: dict[object, int] = {}
    stage, _, label = column.partition(".")
    directory = stages[stage].directory if label and stages else "examples"
    tables = store.read_tables(directory, [p.name for p in index.parts], [label or column])
    for part, table in zip(index.parts, tables, strict=True):
        values = table.column(0)
        if not label:
            values = values.filter(pa.array(index.kept(part)))
        values = values.combine_chunks().dictionary_encode()
        local = np.array([seen.setdefault(v, len(seen)) for v in values.dictionary.to_pylist()], dtype=np.int64)
        missing = values.indices.is_null()
        idx = pc.fill_null(values.indices, 0).to_numpy(zero_copy_only=False)
        mapped = local[idx] if local.size else np.zeros(len(values), dtype=np.int64)
        if values.indices.null_count:
            mapped = np.where(np.asarray(missing), seen.setdefault(None, len(seen)), mapped)
        codes[_positions(index, part)] = mapped
    keys = list(seen)
    names = ["(none)" if k is None else k.hex() if isinstance(k, bytes) else str(k) for k in keys]
    numbers = all(isinstance(k, int) or k is None for k in keys)  # 2 before 10
    order = sorted(range(len(names)), key=lambda i: (keys[i] is None, keys[i] or 0) if numbers else names[i])
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    return (rank[codes] if names else codes), [names[i] for i in order]


def features(store: Store, index: Index, stage: Stage) -> NDArray[Any]:
    """Return the stage's vectors in canonical order, (n, d), as a memory map; see ``curate.pipelines.vectors``.

    float32 for vectors of floating-point numbers, else their own type.  NaN rows are examples without a vector; where
    whole numbers know no NaN, the reasons tell (``without_vector``).  The map is rebuilt when the pool or the stage
    changed.
    """
    assert stage.scorer.columns[0].vector is not None
    kind, dim = stage.scorer.columns[0].vector

    def fill(out: NDArray[Any]) -> None:
        stored = store.read_many(stage.directory, [f"{part.stem}.npy" for part in index.parts])
        for part, data in zip(index.parts, stored, strict=True):
            out[_positions(index, part)] = np.load(io.BytesIO(data), allow_pickle=False)

    name = f"{stage.key}-{index.fingerprint}.npy"
    return vectors.mapped(store, name, (index.n, dim), fill, np.float32 if kind.kind == "f" else kind)


def without_vector(
    store: Store, index: Index, stage: Stage, matrix: NDArray[Any], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return those of some rows of the pool that have no vector."""
    if matrix.dtype.kind == "f":
        return rows[np.isnan(matrix[rows, 0])] if rows.size else rows
    return rows[reasons(store, index, stage)[0][rows] >= 0]
