"""The ledger: one row for every input row, saying what became of it, at which stage, why, and by which number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.pipelines.index import Index, Part
from curate.pipelines.select import Verdicts
from curate.pipelines.store import Store

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),  # null for a rejected row: it never became an example
        pa.field("decision", pa.string(), nullable=False),  # kept | dropped | corrected | duplicate | rejected
        pa.field("stage", pa.string(), nullable=False),  # read, dedup, or the selection step
        pa.field("reason", pa.string(), nullable=False),
        pa.field("score_name", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("cluster", pa.int32()),
        pa.field("order", pa.int64()),  # place in the order of choice, 0 first
        pa.field("duplicate_of", pa.string()),
        pa.field("source", pa.string()),
        pa.field("group", pa.string()),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
    ]
)


VERDICT = np.dtype(
    [
        ("copy", "?"),
        ("kept", "?"),
        ("corrected", "?"),
        ("of", "?"),
        ("step", "<i2"),
        ("reason", "<i4"),
        ("score", "<f8"),
        ("threshold", "<f8"),
        ("cluster", "<i4"),
        ("order", "<i8"),
    ]
)
"""One row's verdict, 38 bytes, as it lies in the file from which the workers write the ledger.

A file, and not an argument of the tasks: a scheduler keeps what it was sent for longer than the task lives."""


def lay_out(index: Index, verdicts: Verdicts, part: Part) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Return the verdicts of one part's rows, in the part's order, and the rows that stand for its copies ("of")."""
    span = slice(part.start, part.start + part.rows)
    place = index.place[span]
    own = index.place[index.representative[span]]
    at = np.where(place >= 0, place, own)
    rows = np.empty(part.rows, dtype=VERDICT)
    rows["copy"] = place < 0
    for name in ("kept", "step", "reason", "score", "threshold", "cluster", "order"):
        rows[name] = getattr(verdicts, name)[at]
    rows["corrected"] = False
    if verdicts.corrected is not None:  # what the correction said is told, and not that later steps kept the row
        by = verdicts.corrected[at]
        rows["corrected"] = new = (by >= 0) & rows["kept"]
        rows["step"][new] = by[new]
        for name, values in verdicts.correction.items():
            rows[name][new] = values[at][new]
    stand = index.representative[span].copy()
    if verdicts.instead is not None:
        near = (place >= 0) & (verdicts.instead[at] >= 0)
        stand[near] = index.pool[verdicts.instead[at[near]]]
    rows["of"] = stand != np.arange(part.start, part.start + part.rows)
    return rows, stand[rows["of"]]


def write_part(
    store: Store,
    directory: str,
    part: Part,
    verdicts: str,
    of_ids: list[str],
    reasons: list[str],
    steps: list[dict[str, Any]],
) -> dict[str, int]:
    """Write the ledger of one part of examples from its stretch of the file ``verdicts``; return how many of each."""
    examples = store.read_table("examples", part.name, columns=["id", "source", "group", "file", "row", "part"])
    n = examples.num_rows
    size = VERDICT.itemsize
    rows = np.frombuffer(store.read_range(verdicts, part.start * size, (part.start + part.rows) * size), dtype=VERDICT)
    copy, kept = rows["copy"], rows["kept"] & ~rows["copy"]
    stays = np.where(rows["corrected"], "corrected", "kept")
    decision = np.where(copy, "duplicate", np.where(kept, stays, "dropped"))
    step_names = np.array([*(s["name"] for s in steps), "select"], dtype=object)  # the last for step -1
    score_names = np.array([*(s["score"] for s in steps), None], dtype=object)
    reason_words = np.array(reasons, dtype=object)
    duplicate_of = np.full(n, None, dtype=object)
    duplicate_of[rows["of"]] = of_ids
    nothing = copy | np.isnan(rows["score"])

    def numbers(values: NDArray[Any], kind: pa.DataType, missing: NDArray[np.bool_]) -> pa.Array:
        return pa.array(values, kind, mask=missing)

    table = pa.table(
        {
            "id": examples.column("id"),
            "decision": pa.array(decision, pa.string()),
            "stage": pa.array(np.where(copy, "dedup", step_names[rows["step"]]), pa.string()),
            "reason": pa.array(
                np.where(copy, "the same conversation as an earlier row", reason_words[rows["reason"]]), pa.string()
            ),
            "score_name": pa.array(np.where(nothing, None, score_names[rows["step"]]), pa.string()),
            "score": numbers(rows["score"], pa.float64(), nothing),
            "threshold": numbers(rows["threshold"], pa.float64(), copy | np.isnan(rows["threshold"])),
            "cluster": numbers(rows["cluster"], pa.int32(), copy | (rows["cluster"] < 0)),
            "order": numbers(rows["order"], pa.int64(), ~kept | (rows["order"] < 0)),
            "duplicate_of": pa.array(duplicate_of, pa.string()),
            "source": examples.column("source"),
            "group": examples.column("group"),
            "file": examples.column("file"),
            "row": examples.column("row"),
            "part": examples.column("part"),
        }
    ).cast(LEDGER_SCHEMA)
    store.write_table(table.combine_chunks(), *directory.split("/"), part.name)
    words, counts = np.unique(decision, return_counts=True)
    return dict(zip(words.tolist(), counts.tolist(), strict=True))


def write_rejected(store: Store, directory: str, group: str) -> dict[str, int]:
    """Write the ledger of one group's rejected rows."""
    name = f"part-{group}.parquet"
    rejected = store.read_table("rejected", name, columns=["file", "row", "part", "reason", "detail"])
    n = rejected.num_rows
    reason = [
        r if d is None else f"{r}: {d}"
        for r, d in zip(*(rejected.column(c).to_pylist() for c in ("reason", "detail")), strict=True)
    ]
    columns = {f.name: pa.nulls(n, f.type) for f in LEDGER_SCHEMA}
    columns.update(
        decision=pa.array(["rejected"] * n),
        stage=pa.array(["read"] * n),
        reason=pa.array(reason, pa.string()),
        file=rejected.column("file"),
        row=rejected.column("row"),
        part=rejected.column("part"),
    )
    store.write_table(
        pa.table(columns).cast(LEDGER_SCHEMA).combine_chunks(), *directory.split("/"), f"part-{group}-rejected.parquet"
    )
    return {"rejected": n}


def representative_ids(store: Store, index: Index, verdicts: Verdicts) -> dict[int, str]:
    """Return reading-order number → id, for the examples that stand for copies."""
    wanted = np.unique(index.representative[index.place < 0])
    if verdicts.instead is not None:
        wanted = np.union1d(wanted, index.pool[verdicts.instead[verdicts.instead >= 0]])
    out: dict[int, str] = {}
    cuts = [np.searchsorted(wanted, [p.start, p.start + p.rows]) for p in index.parts]
    held = [(p, wanted[lo:hi]) for p, (lo, hi) in zip(index.parts, cuts, strict=True) if hi > lo]
    tables = store.read_tables("examples", [p.name for p, _ in held], ["id"])
    for (part, rows), table in zip(held, tables, strict=True):
        ids = table.column(0).take(pa.array(rows - part.start))
        out.update(zip(rows.tolist(), ids.to_pylist(), strict=True))
    return out
