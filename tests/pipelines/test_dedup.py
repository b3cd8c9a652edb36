"""Exact, near and semantic duplicates in a run: the ledger names the row that stands for each dropped one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from curate.seeding import rng_for
from tests.conftest import conversation, write_jsonl
from tests.pipelines.helpers import kept_ids, ledger, run

DEDUP: dict[str, Any] = {
    "scorers": {
        "rating": {"use": "column", "column": "rating", "higher_is_better": True},
        "digests": {"use": "text-digest"},
        "signatures": {"use": "minhash", "places": 64},
        "vectors": {"use": "hashed-ngrams", "text": "both", "dim": 16},
    },
    "select": [
        {"use": "exact-duplicates", "features": "digests", "quality": "rating", "name": "exact"},
        {"use": "near-duplicates", "features": "signatures", "quality": "rating", "name": "near"},
        {"use": "sem-dedup", "features": "vectors", "epsilon": 1e-6, "quality": "rating", "name": "semantic"},
    ],
}


def rows() -> list[dict[str, Any]]:
    """40 families: a row, the same in capitals, the same but for a word, the same words in another order."""
    out = []
    for i in range(40):
        words = [f"w{j}" for j in rng_for(i, "dedup").integers(0, 10**6, 120).tolist()]
        changed = [*words[:60], "changed", *words[61:]]
        variants = [words, [w.upper() for w in words], changed, words[::-1]]
        for v, variant in enumerate(variants):
            messages = conversation(" ".join(variant[:40]), " ".join(variant[40:]))
            out.append({"messages": messages, "rating": (i + v) % 4, "family": i, "variant": v})
    return out


def test_the_best_of_each_family_stays_and_is_named(tmp_path: Path) -> None:
    job = run(write_jsonl(tmp_path / "pool.jsonl", rows()), tmp_path / "run", **DEDUP)
    told = ledger(job)
    named = {r["id"]: r for r in rows_by_id(job)}
    near = told.filter(pl.col("stage").str.contains("near") & (pl.col("decision") == "dropped"))
    exact = told.filter(pl.col("stage").str.contains("exact") & (pl.col("decision") == "dropped"))
    assert exact.height == 40 and near.height == 40  # capitals; a changed word
    for row in [*exact.iter_rows(named=True), *near.iter_rows(named=True)]:
        dropped, stands = named[row["id"]], named[row["duplicate_of"]]
        assert dropped["family"] == stands["family"] and dropped["rating"] <= stands["rating"]
    assert (exact["score"] == 1).all() and near["score"].is_between(0.8, 1).all()
    steps = json.loads((tmp_path / "run" / "manifest.json").read_text())["select"]
    assert [s["account"]["groups"] for s in steps[:2]] == [40, 40] and steps[1]["account"]["standard_error"] == 0.05


def rows_by_id(job: Any) -> list[dict[str, Any]]:
    examples = pl.read_parquet(f"{job.store.root}/examples/*.parquet").select("id", "extra")
    return [{"id": i, **json.loads(extra)} for i, extra in examples.iter_rows()]


def test_neither_shards_nor_the_order_of_rows_matter(tmp_path: Path) -> None:
    jobs = [
        run(write_jsonl(tmp_path / f"{name}.jsonl", pool), tmp_path / name, shard_rows=shard, **DEDUP)
        for name, pool, shard in (("one", rows(), 1000), ("other", rows()[::-1], 23))
    ]
    assert kept_ids(jobs[0]) == kept_ids(jobs[1])
    columns = ["id", "decision", "stage", "score", "duplicate_of"]
    one, other = (ledger(job).select(columns).sort("id") for job in jobs)
    assert one.equals(other)


def test_a_row_without_words_is_told(tmp_path: Path) -> None:
    pool = [*rows()[::4], {"messages": conversation("?!", "…"), "rating": 1, "family": -1, "variant": 0}]
    told = ledger(run(write_jsonl(tmp_path / "pool.jsonl", pool), tmp_path / "run", **DEDUP))
    dropped = told.filter(pl.col("decision") == "dropped")
    assert dropped.height == 1 and "no words" in dropped["reason"][0]
