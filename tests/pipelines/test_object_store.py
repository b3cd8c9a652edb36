"""Whole runs on an object store: a real server that speaks S3, over HTTP; killed, cut off and continued."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.cli import _summary
from curate.exceptions import RunDirectoryError, StageError
from curate.pipelines.plan import plan
from curate.pipelines.run import Run
from curate.pipelines.store import Store
from curate.pipelines.why import why
from tests.conftest import rows_of, write_jsonl
from tests.pipelines.helpers import SCORERS, STEPS, digests, recipe, run
from tests.pipelines.s3server import KEYS, S3Server, s3

PoolOf = Callable[..., Path]
FEWER: list[dict[str, Any]] = [{**STEPS[1], "budget": "10%"}]


def remote(store: Store, *directories: str) -> dict[str, bytes]:
    """Contents of every file under some directories of a run, by the names that a local run gives them."""
    return {
        f"{d}/{path[len(store.path(d)) + 1 :]}": s3().cat_file(path)
        for d in directories
        for path in s3().find(store.path(d))
    }


def local(root: Path, *directories: str) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in digests(root, *directories)}


def same(store: Store, root: Path, *directories: str) -> None:
    ours, theirs = remote(store, *directories), local(root, *directories)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def computed_once(store: Store) -> None:
    done = [(e["stage"], e["part"]) for e in store.events() if e["event"] == "done"]
    assert done and len(done) == len(set(done))


ALL = ("examples", "rejected", "scores", "features", "decisions", "dataset", "provenance")


def messy(n: int = 300) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = rows_of(n)
    rows[7] = dict(rows[3])
    rows[11]["messages"] = [{"role": "user", "content": "only a question"}]
    rows[20]["rating"] = None
    return rows


# -- a run on S3 is a local run ----------------------------------------------------------------------------------------


def test_a_run_is_the_same_byte_for_byte_and_the_second_computes_nothing(
    bucket: str, pool_of: PoolOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = pool_of(messy(), 3)
    mine = run(pool, tmp_path / "run")
    job = Run(recipe(pool), f"s3://{bucket}/runs/one", "sync", quiet=True)
    job.execute()
    same(job.store, tmp_path / "run", *ALL)
    assert job.manifest["decisions"] == mine.manifest["decisions"]
    _summary(job, job.manifest)
    told = capsys.readouterr().out
    assert f"dataset    s3://{job.store.path('dataset')}  (" in told and f"curate why s3://{bucket}/runs/one ID" in told
    before = job.store.events()
    again = Run(recipe(pool), f"s3://{bucket}/runs/one", "sync", quiet=True)
    again.execute()
    assert again.store.events() == before
    assert len(s3().ls(f"{bucket}/runs/one/selections")) == 1
    assert plan(again).seconds == 0.0 and all(s.there == s.rows for s in plan(again).stages)
    computed_once(job.store)


def test_report_card_and_exports_are_there_too(bucket: str, pool_of: PoolOf, tmp_path: Path) -> None:
    import curate
    from curate.exporters import LlamaFactory

    pool = pool_of(messy(), 3)
    asked = {"report": True, "exports": [{"use": "trl"}]}
    mine = run(pool, tmp_path / "run", **asked)
    job = Run(recipe(pool, **asked), f"s3://{bucket}/runs/one", "sync", quiet=True)
    job.execute()
    assert job.manifest["report"] == {"file": "report.html", "problems": []}
    page = job.store.read_bytes("report.html").decode()
    assert page.startswith("<!doctype html>") and f"{job.manifest['decisions']['kept']:,}" in page
    assert job.store.read_bytes("README.md") == (Path(mine.store.root) / "README.md").read_bytes()
    same(job.store, tmp_path / "run", "exports/trl/data")
    made = curate.export(f"s3://{bucket}/runs/one", LlamaFactory(), f"s3://{bucket}/out", file="jsonl")
    here = curate.export(str(tmp_path / "run"), LlamaFactory(), str(tmp_path / "out"), file="jsonl")
    assert made.rows == here.rows == job.manifest["decisions"]["kept"]
    (name,) = [p.name for p in (tmp_path / "out/data").iterdir()]
    assert s3().cat_file(f"{bucket}/out/data/{name}") == (tmp_path / "out/data" / name).read_bytes()


def test_inputs_on_s3_have_the_ids_of_local_ones(bucket: str, tmp_path: Path) -> None:
    rows = rows_of(90)
    write_jsonl(tmp_path / "pool/a.jsonl", rows[:30])
    pq.write_table(pa.Table.from_pylist(rows[30:60]), tmp_path / "pool/b.parquet", row_group_size=10)
    import gzip

    (tmp_path / "pool/c.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows[60:]).encode()))
    s3().put(str(tmp_path / "pool"), f"{bucket}/in", recursive=True)
    mine = run(tmp_path / "pool", tmp_path / "run")
    sources = [{"path": f"s3://{bucket}/in/*.parquet"}, {"path": f"s3://{bucket}/in/*.jsonl*"}]
    job = Run(recipe(Path("x"), sources=sources), f"s3://{bucket}/run", "sync", quiet=True)
    job.execute()
    here = pl.read_parquet(f"{mine.store.root}/decisions/*.parquet").select("id", "decision", "order").sort("id")
    there = pl.concat([pl.from_arrow(t) for t in job.store.read_tables("decisions", job.store.list("decisions"))])
    assert there.select("id", "decision", "order").sort("id").equals(here)
    assert set(there["file"]) == {f"s3://{bucket}/in/{n}" for n in ("a.jsonl", "b.parquet", "c.jsonl.gz")}


def test_two_worker_processes(bucket: str, pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(messy(), 2)
    run(pool, tmp_path / "run")
    job = Run(recipe(pool), f"s3://{bucket}/run", workers=2, quiet=True)
    job.execute()
    same(job.store, tmp_path / "run", *ALL)
    computed_once(job.store)


def test_why_and_select_and_another_budget(bucket: str, pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(messy())
    url = f"s3://{bucket}/run"
    Run(recipe(pool), url, "sync", quiet=True).execute("score")
    store = Store(url)
    with pytest.raises(RunDirectoryError, match="holds no decisions yet"):
        why(store, "0")
    first = Run(recipe(pool), url, "sync", quiet=True)
    first.execute()
    events = store.events()
    kept = store.read_table("provenance", "train-00000-of-00001.parquet")["id"].to_pylist()
    (story,) = why(store, kept[0])
    assert story.decision["decision"] == "kept" and set(story.scores) == set(SCORERS) and story.example is not None
    second = Run(recipe(pool, select=FEWER), url, "sync", quiet=True)
    second.execute()
    assert store.events() == events
    run(pool, tmp_path / "run", select=FEWER)
    same(second.store, tmp_path / "run", "decisions", "dataset", "provenance")
    less = Run(recipe(pool), url, "sync", limit=100, quiet=True)
    less.execute()
    assert sum(t.num_rows for t in less.store.read_tables("decisions", less.store.list("decisions"))) == 100
    assert len(s3().ls(f"{bucket}/run/selections")) == 1


# -- killed at any moment ----------------------------------------------------------------------------------------------

_RUN = """
import sys, json
from curate.pipelines.run import Run
from curate.recipe import Recipe
if __name__ == "__main__":
    document, url, workers = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    options = {"workers": workers} if workers else {"scheduler": "sync"}
    Run(Recipe.from_dict(document), url, quiet=True, **options).execute()
"""


def start(tmp_path: Path, document: dict[str, Any], url: str, workers: int = 0) -> subprocess.Popen[bytes]:
    script = tmp_path / "go.py"
    script.write_text(_RUN)
    here = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps(document), url, str(workers)],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": here},
        stderr=subprocess.PIPE,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def document(pool: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "sources": [{"path": str(pool)}],
        "scorers": SCORERS,
        "select": STEPS,
        "execution": {"shard_rows": 32},
        **changes,
    }


def consistent(url: str, sizes: set[int]) -> int:
    """Check what a reader sees now: nothing, or one whole selection; return its size."""
    store = Store(url)
    names = store.list("decisions")
    if not names:
        assert store.list("dataset") == []
        return 0
    decisions = pl.concat([pl.from_arrow(t) for t in store.read_tables("decisions", names)])
    kept = set(decisions.filter(pl.col("decision") == "kept")["id"])
    twins = [t["id"].to_pylist() for t in store.read_tables("provenance", store.list("provenance"))]
    assert {i for ids in twins for i in ids} == kept
    assert sum(store.read_table("dataset", n).num_rows for n in store.list("dataset")) == len(kept)
    assert len(kept) in sizes
    return len(kept)


def test_killed_processes_of_two_workers(bucket: str, server: S3Server, pool_of: PoolOf, tmp_path: Path) -> None:
    """kill -9 of the whole group after a seeded number of requests, three times; then the same command."""
    pool = pool_of(messy(), 2)
    url = f"s3://{bucket}/run"
    run(pool, tmp_path / "calm", shard_rows=32)
    kept = len(pl.read_parquet(tmp_path / "calm/provenance/*.parquet"))
    chance = random.Random(7)
    for _ in range(3):
        process = start(tmp_path, document(pool), url, 2)
        limit = len(server.seen) + chance.randrange(30, 350)
        while len(server.seen) < limit and process.poll() is None:
            time.sleep(0.005)
        kill(process)
        consistent(url, {kept})
    job = Run(recipe(pool, shard_rows=32), url, "sync", quiet=True)
    job.execute()
    same(job.store, tmp_path / "calm", *ALL)
    assert len(s3().ls(f"{bucket}/run/selections")) == 1


def test_the_endpoint_goes_away_in_the_middle_and_comes_back(
    bucket: str, pool_of: PoolOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(rows_of(100))
    run(pool, tmp_path / "calm")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with S3Server() as frail:
        monkeypatch.setenv("AWS_ENDPOINT_URL", frail.url)
        fsspec.filesystem("s3").clear_instance_cache()
        stop = threading.Event()

        def fault(kind: str, path: str, n: int) -> int | None:
            if "/scores/" in path:
                stop.set()
            return 0 if stop.is_set() else None

        frail.fault = fault
        with pytest.raises((RunDirectoryError, StageError)) as caught:
            Run(recipe(pool), f"s3://{bucket}/run", "sync", quiet=True).execute()
        assert caught.value.exit_code == 1 and "run the same command" in str(caught.value)
        port = frail.port
    with pytest.raises(RunDirectoryError, match=r"Could not connect|Connect"):
        Store(f"s3://{bucket}/run").read_json("manifest.json")
    with S3Server(port):
        job = Run(recipe(pool), f"s3://{bucket}/run", "sync", quiet=True)
        job.execute()
        same(job.store, tmp_path / "calm", *ALL)
        computed_once(job.store)


def test_why_never_shows_one_reading_s_decision_with_another_s_text(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(rows_of(60))
    job = run(pool, tmp_path / "run", scorers={}, select=[])
    (story,) = why(job.store, "train-00000-of-00001.parquet:7")
    pool_of(rows_of(80)[20:])
    assert why(job.store, str(story.decision["id"]))[0].example == story.example
    run(pool, tmp_path / "run", scorers={}, select=[], until="read")
    with pytest.raises(
        RunDirectoryError, match=r"read anew after these decisions were made. Run the recipe to its end"
    ):
        why(Store(job.store.url), str(story.decision["id"]))


def test_no_login_is_left_in_a_run(bucket: str, pool_of: PoolOf) -> None:
    job = Run(recipe(pool_of(rows_of(30)), scorers={}, select=[]), f"s3://{bucket}/run", "sync", quiet=True)
    job.execute()
    for path in s3().find(f"{bucket}/run"):
        data = s3().cat_file(path)
        assert not any(KEYS[k].encode() in data for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")), path
