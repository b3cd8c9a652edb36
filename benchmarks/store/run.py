"""What a run on an object store asks for: requests by kind and shard, and what fetching ahead saves.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/store/run.py

A server in this process speaks S3 (moto's) and answers every request 20 ms late, as a store in the same region does.
Beside each figure stands what was predicted before it was measured.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from curate.pipelines import store as store_module
from curate.pipelines.run import Run
from curate.pipelines.store import Store
from tests.conftest import rows_of
from tests.pipelines.helpers import STEPS, digests, recipe
from tests.pipelines.s3server import S3Server

SHARDS = 40
LATE = 0.02
FILES = 200


def fetching(url: str, server: S3Server) -> dict[str, Any]:
    """Read 200 marks, and one column of 200 shards, one after the other and eight at a time."""
    store = Store(url)
    names = [f"{i:05d}.parquet" for i in range(FILES)]
    table = pa.table({"id": [f"{i:032x}" for i in range(1000)], "value": [i / 7 for i in range(1000)]})
    for name in names:
        store.write_table(table, "scores", name)
        store.write_json({"rows": 1000}, "marks", name.replace("parquet", "json"))
    out: dict[str, Any] = {}
    server.delay = LATE
    for at_once in (1, store_module._AT_ONCE):
        store_module._AT_ONCE = at_once
        out[f"{FILES} marks, {at_once} at a time"] = seconds(lambda: store.read_jsons("marks"))
        out[f"a column of {FILES} shards, {at_once} at a time"] = seconds(
            lambda: list(store.read_tables("scores", names, ["value"]))
        )
    server.delay = 0.0
    return out


def seconds(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return round(time.perf_counter() - began, 2)


def runs(url: str, folder: Path, server: S3Server) -> dict[str, Any]:
    """Run a recipe of three scorers over 40 shards, again, and with another budget; count the requests."""
    pq.write_table(pa.Table.from_pylist(rows_of(SHARDS * 32)), folder / "pool.parquet", row_group_size=32)
    fewer = [{**STEPS[1], "budget": "10%"}]
    out: dict[str, Any] = {}
    for name, steps in (("first", STEPS), ("again", STEPS), ("another budget", fewer)):
        job = recipe(folder / "pool.parquet", shard_rows=32, select=steps)
        server.seen.clear()
        took = seconds(Run(job, url, "sync", quiet=True).execute)
        out[name] = {
            "seconds": took,
            "requests": len(server.seen),
            "per shard": round(len(server.seen) / SHARDS, 1),
            **server.count(),
        }
        out[name]["seconds, local"] = seconds(Run(job, str(folder / "run"), "sync", quiet=True).execute)
    there = Store(url)
    mine = digests(folder / "run", "decisions", "dataset", "provenance")
    assert [f"{d}/{n}" for d in ("decisions", "dataset", "provenance") for n in there.list(d)] == list(mine)
    assert all(there.read_bytes(name) == (folder / "run" / name).read_bytes() for name in mine)
    return out


def main() -> None:
    with S3Server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(server.environment)
        os.environ["CURATE_CACHE"] = f"{folder}/cache"
        fsspec.filesystem("s3").mkdir("pools")
        measured = {"runs": runs("s3://pools/run", Path(folder), server), "fetching": fetching("s3://pools/f", server)}
    text = json.dumps({"latency": LATE, "shards": SHARDS, **measured}, indent=1)
    (Path(__file__).parent / "results.json").write_text(text + "\n")
    print(text, file=sys.stdout)


if __name__ == "__main__":
    main()
