"""Clusters of another stage's vectors, and the selectors that look at vectors, in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.pipelines.helpers import SCORERS, kept_ids, ledger, run

WITH_CLUSTERS: dict[str, Any] = {**SCORERS, "clusters": {"of": "ngrams", "clusters": 5, "rows_per_cluster": 20}}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """150 rows on six topics; every fifth is the one before it but for a word."""
    verbs = ["cook", "paint", "repair", "translate", "measure", "plant"]
    with (tmp_path / "pool.jsonl").open("w") as out:
        for i in range(150):
            number, more = (i - 1, "please") if i % 5 == 4 else (i, "")
            verb = verbs[number % 6]
            asked = f"How do I {verb} {'a large' if number % 4 else 'the old'} thing no. {number} in {number % 11} steps? {more}"
            said = f"First {verb} slowly, then {verb} item {number * 7} again; {verb} it {number % 13} times."
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            out.write(json.dumps({"messages": messages, "rating": (i * 37) % 101}) + "\n")
    return tmp_path / "pool.jsonl"


def select(**step: Any) -> dict[str, Any]:
    return {"scorers": WITH_CLUSTERS, "select": [{"features": "ngrams", **step}]}


def test_clusters_do_not_depend_on_the_shards(pool: Path, tmp_path: Path) -> None:
    step = select(use="kmq", groups="clusters.cluster", quality="rating", budget="20%")
    few, many = (run(pool, tmp_path / str(rows), shard_rows=rows, **step) for rows in (1000, 32))
    scores = [
        pl.concat([pl.read_parquet(p) for p in sorted(Path(job.store.root).glob("scores/clusters-*/*.parquet"))])
        for job in (few, many)
    ]
    assert scores[0].equals(scores[1]) and scores[0]["cluster"].n_unique() == 5
    assert kept_ids(few) == kept_ids(many) and len(kept_ids(few)) > 20


def test_a_quota_by_cluster(pool: Path, tmp_path: Path) -> None:
    step = {"use": "top-k", "on": "rating", "quota": {"by": "clusters.cluster"}, "budget": 25}
    job = run(pool, tmp_path / "run", scorers=WITH_CLUSTERS, select=[step])
    assert len(kept_ids(job)) == 25


@pytest.mark.parametrize("use", ["kmq", "k-center"])
def test_vectors_alone(pool: Path, tmp_path: Path, use: str) -> None:
    job = run(pool, tmp_path / "run", **select(use=use, budget=20))
    assert len(kept_ids(job)) == 20


def test_the_filter_names_the_row_that_stands_for_another(pool: Path, tmp_path: Path) -> None:
    job = run(pool, tmp_path / "run", **select(use="repr-filter", quality="rating", threshold=0.7, name="alike"))
    rows = ledger(job)
    dropped = rows.filter(pl.col("reason").str.contains("too like a better row"))
    assert dropped.height > 0
    assert set(dropped["duplicate_of"]) <= set(kept_ids(job))
