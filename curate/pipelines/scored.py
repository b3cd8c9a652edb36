"""Every input row with its decision, its reason and its scores, as one table: the second config of a pushed dataset.

``decisions/`` has a row for every input row; ``scores/`` has those of the examples that are no copies, in the same
order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.exceptions import RunError
from curate.pipelines.store import LABELS, Store

SHARD_ROWS = 500_000
ROW_GROUP = 20_000


def write_scored(store: Store, accounts: dict[str, Any], folder: Path, *, shard_rows: int = SHARD_ROWS) -> list[Path]:
    """Write the table's files into a local folder; return them, in order.

    Parameters
    ----------
    accounts : the manifest's "stages": name of the scorer → account with its "fingerprint".

    Raises
    ------
    RunError
        If scores and decisions do not belong together.
    """
    names = [n for n in store.list("decisions") if n.endswith(".parquet")]
    stages, shorter = _stages(store, accounts), _shorter(store, names)
    total = sum(_rows(store, name) for name in names)
    files = [
        folder / f"train-{i:05d}-of-{max(1, -(-total // shard_rows)):05d}.parquet"
        for i in range(max(1, -(-total // shard_rows)))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    groups = _groups((_table(store, name, stages, shorter) for name in names), shard_rows)
    for path in files:
        writer: pq.ParquetWriter | None = None
        try:
            held = 0
            for table in groups:
                writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=LABELS)
                writer.write_table(table)
                held += table.num_rows
                if held == shard_rows:
                    break
        finally:
            if writer is not None:
                writer.close()
    return files


def _rows(store: Store, name: str) -> int:
    with store.fs.open(store.path("decisions", name), "rb") as handle:
        return pq.read_metadata(handle).num_rows


def _groups(tables: Iterator[pa.Table], shard_rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of ``ROW_GROUP``, cut where a file ends."""
    held: list[pa.Table] = []
    rows = done = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        while rows >= (size := min(ROW_GROUP, shard_rows - done % shard_rows)):
            whole = pa.concat_tables(held).combine_chunks()
            yield whole.slice(0, size)
            held, rows, done = [whole.slice(size)], rows - size, done + size
    if rows or not done:
        yield pa.concat_tables(held).combine_chunks()


@dataclass(frozen=True)
class _Stage:
    name: str
    folder: tuple[str, str]
    columns: pa.Schema
    """What its files hold besides the id."""


def _stages(store: Store, accounts: dict[str, Any]) -> list[_Stage]:
    """Return the stages that wrote numbers; those that wrote feature vectors are left out."""
    out = []
    for name, account in accounts.items():
        folder = ("scores", f"{name}-{account['fingerprint']}")
        files = store.list("/".join(folder))
        if files:
            with store.fs.open(store.path(*folder, files[0]), "rb") as handle:
                schema = pq.read_schema(handle)
            out.append(_Stage(name, folder, pa.schema([f for f in schema if f.name != "id"])))
    return out


def _table(store: Store, name: str, stages: list[_Stage], shorter: dict[str, str]) -> pa.Table:
    """Return one part of the ledger with its scores; null where a row was not scored (a copy, a rejected row)."""
    ledger = store.read_table("decisions", name)
    files = ledger.column("file").combine_chunks().dictionary_encode()
    spelt = pa.array([shorter[f] for f in files.dictionary.to_pylist()], pa.string())
    ledger = ledger.set_column(ledger.schema.get_field_index("file"), "file", spelt.take(files.indices))
    scored = pc.is_in(ledger.column("decision"), pa.array(["kept", "dropped", "corrected"])).to_numpy()
    place = pa.array(np.cumsum(scored) - 1, pa.int64(), mask=~scored)
    for stage in stages:
        scores = None
        if not name.endswith("-rejected.parquet"):
            scores = store.read_table(*stage.folder, name)
            if scores.num_rows != scored.sum() or not scores.column("id").equals(ledger.column("id").filter(scored)):
                raise RunError(
                    f"the scores of {stage.name!r} and the decisions of {name} do not belong together; run the recipe "
                    "again."
                )
        for column in stage.columns:
            values = (
                pa.nulls(ledger.num_rows, column.type) if scores is None else scores.column(column.name).take(place)
            )
            ledger = ledger.append_column(f"{stage.name}.{column.name}", values)
    return ledger


def _shorter(store: Store, names: list[str]) -> dict[str, str]:
    """Return file → what is told of it: nobody's folders, no passwords.

    Local files lose the folders that are above all of them; URLs their user, password and query.
    """
    files: set[str] = set()
    for name in names:
        files.update(store.read_table("decisions", name, columns=["file"]).column(0).unique().to_pylist())
    local = sorted(f for f in files if "://" not in f)
    above = os.path.commonpath([os.path.dirname(f) for f in local]) if local else ""
    return {f: public_url(f) if "://" in f else os.path.relpath(f, above or None) for f in files}


def public_url(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    if url.startswith("hf://"):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
