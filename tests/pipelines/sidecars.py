"""Corrections as a run writes them down, put beside a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from curate.pipelines.run import Run

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("action", pa.string()),
        ("applied", pa.bool_()),
        ("old", pa.string()),
        ("new", pa.string()),
        ("confidence", pa.float64()),
        ("threshold", pa.float64()),
        ("rule", pa.string()),
        ("model", pa.string()),
        ("prompt", pa.string()),
    ]
)


def line(id: str, old: str, new: str | None = None, **more: Any) -> dict[str, Any]:
    """One row of a sidecar: replaced if there is a new answer, else left to the selection."""
    common = {"confidence": 0.9 if new else 0.4, "threshold": 0.8, "model": "candidates: tiny", "prompt": "verdict 1"}
    action = None if new is None else "replace"
    rule = "the candidate is better" if new else "the answer is better"
    return {"id": id, "action": action, "applied": bool(new), "old": old, "new": new, "rule": rule, **common, **more}


def put(job: Run, name: str, rows: list[dict[str, Any]], candidates: dict[str, list[str]] | None = None) -> None:
    """Write the sidecars of a correction, and the selection's pointer to them; corrected rows become so.

    ``candidates`` is id → what a stage of the correction's own wrote, for some rows.
    """
    root = Path(job.store.root)
    directory = f"corrections/{name}-{'0' * 16}"
    by_id = {row["id"]: row for row in rows}
    changed = {row["id"] for row in rows if row["applied"] and row["action"] == "replace"}
    for part in sorted((root / "decisions").glob("part-*.parquet")):
        ledger = pl.read_parquet(part)
        mine = [by_id[i] for i, d in ledger["id", "decision"].iter_rows() if i in by_id and d != "duplicate"]
        if mine:
            job.store.write_table(pa.Table.from_pylist(mine, SCHEMA), *directory.split("/"), part.name)
        corrected = pl.col("id").is_in(list(changed)) & ~pl.col("decision").is_in(["duplicate"])
        word = pl.when(corrected).then(pl.lit("corrected")).otherwise(pl.col("decision")).alias("decision")
        ledger.with_columns(word).write_parquet(part)
    pointer = root / ".curate/done/select.json"
    held = json.loads(pointer.read_text())
    held.setdefault("corrections", {})[name] = directory
    pointer.write_text(json.dumps(held))
    job.store.forget_selection()
    if candidates is not None:
        _write_candidates(job, f"{name}-candidates", candidates)


def _write_candidates(job: Run, stage: str, texts: dict[str, list[str]]) -> None:
    root = Path(job.store.root)
    for part in sorted((root / "examples").glob("part-*.parquet")):
        ledger = pl.read_parquet(root / "decisions" / part.name)
        ids = ledger.filter(pl.col("decision") != "duplicate")["id"].to_list()
        answers = [json.dumps([{"text": t, "finished": True} for t in texts[i]]) if i in texts else None for i in ids]
        columns = {"answers": answers, "tokens": [7] * len(ids), "reason": [None] * len(ids)}
        table = pa.table({"id": ids, **columns}).cast(
            pa.schema([("id", pa.string()), ("answers", pa.string()), ("tokens", pa.int64()), ("reason", pa.string())])
        )
        job.store.write_table(table, "scores", f"{stage}-{'1' * 16}", part.name)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["stages"][stage] = {"use": "candidates", "fingerprint": "1" * 16, "rows": 1, "unscored": 0, "columns": {}}
    (root / "manifest.json").write_text(json.dumps(manifest))
