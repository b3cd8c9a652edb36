"""Recipes and readings that the run's tests share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl

from curate.pipelines.run import Run
from curate.recipe import Recipe

STEPS: list[dict[str, Any]] = [
    {"use": "threshold", "on": "heuristics.repetition", "max": 0.9},
    {"use": "kmq", "features": "ngrams", "quality": "rating", "clusters": 8, "budget": "20%"},
]
SCORERS: dict[str, dict[str, Any]] = {
    "heuristics": {"use": "text-heuristics"},
    "rating": {"use": "column", "column": "rating", "higher_is_better": True},
    "ngrams": {"use": "hashed-ngrams", "dim": 16},
}


def recipe(pool: Path, **changes: Any) -> Recipe:
    document: dict[str, Any] = {"name": "test", "sources": [{"path": str(pool)}], "scorers": SCORERS, "select": STEPS}
    execution = {"shard_rows": changes.pop("shard_rows", 64)}
    return Recipe.from_dict({**document, "execution": execution, "report": False, **changes})


def run(pool: Path, directory: Path, *, scheduler: str = "sync", until: str = "write", **changes: Any) -> Run:
    job = Run(recipe(pool, **changes), directory, scheduler, quiet=True)
    job.execute(until)
    return job


def ledger(job: Run) -> pl.DataFrame:
    return pl.read_parquet(f"{job.store.root}/decisions/*.parquet")


def kept_ids(job: Run) -> list[str]:
    """Ids in order of choice."""
    return ledger(job).filter(pl.col("decision") == "kept").sort("order")["id"].to_list()


def computed(job: Run) -> dict[str, int]:
    """Shards computed so far, by stage name."""
    out: dict[str, int] = {}
    for line in (Path(job.store.root) / ".curate/events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "done":
            name = event["stage"].rpartition("-")[0] or event["stage"]
            out[name] = out.get(name, 0) + 1
    return out


def digests(root: Path, *directories: str) -> dict[str, str]:
    """Content hash of every file under some directories of a run."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for d in directories
        for p in sorted((root / d).rglob("*"))
        if p.is_file()
    }
