"""Benchmarks in a run: read in any schema, searched for in the pool, told in the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from curate.exceptions import RunError, SchemaError, SourceError, StageError
from curate.pipelines import ready
from curate.pipelines.benchmarks import read_benchmarks
from curate.pipelines.run import Run
from curate.recipe import Recipe
from tests.conftest import ROOT, conversation, write_jsonl
from tests.pipelines.helpers import kept_ids, ledger

LONG = "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins with four."


def recipe(folder: Path, benchmarks: dict[str, Any], **changes: Any) -> Recipe:
    document: dict[str, Any] = {
        "name": "clean",
        "sources": [{"path": "pool.jsonl", "id": "id"}],
        "benchmarks": benchmarks,
        "scorers": {"contamination": {}},
        "select": [{"use": "threshold", "on": "contamination", "max": 0}],
        "report": False,
    }
    return Recipe.from_dict({**document, **changes}, base=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [(f"How much is {i} and {i}?", f"It is {2 * i}.") for i in range(20)]
    rows[3] = (f"Riddle me this. {LONG.upper()} How much is left?", "9")
    rows[7] = ("what is the capital of france", "Paris.")
    pool = [{"id": f"row-{i}", "messages": conversation(q, a), "source": "s"} for i, (q, a) in enumerate(rows)]
    write_jsonl(tmp_path / "pool.jsonl", pool)
    write_jsonl(tmp_path / "eggs.jsonl", [{"id": "egg-1", "messages": [{"role": "user", "content": LONG}]}])
    write_jsonl(tmp_path / "quiz.jsonl", [{"question": "What is the capital of France?", "answer": "Paris"}])
    return tmp_path


BOTH = {"eggs": {"path": "eggs.jsonl"}, "quiz": {"path": "quiz.jsonl", "columns": {"prompt": "question"}}}


def test_leaks_are_dropped_and_the_ledger_tells_where_they_stand(folder: Path) -> None:
    job = Run(recipe(folder, BOTH), folder / "run", "sync", quiet=True)
    job.execute("write")
    assert len(kept_ids(job)) == 18
    told = {row["id"]: row["reason"] for row in ledger(job).filter(pl.col("decision") == "dropped").to_dicts()}
    assert set(told) == {"row-3", "row-7"}
    assert "eggs egg-1: 'JANET’S DUCKS LAY 16 EGGS" in told["row-3"]
    assert "quiz row 0: 'what is the capital of france'" in told["row-7"]


def test_the_ready_made_recipe(tmp_path: Path) -> None:
    path = tmp_path / "decontaminate.yaml"
    path.write_text(ready.text("decontaminate").replace("examples/", f"{ROOT}/examples/"), encoding="utf-8")
    job = Run(Recipe.load(path, {"report": False}), tmp_path / "run", "sync", quiet=True)
    job.execute("write")
    assert len(kept_ids(job)) == 3074
    told = [row["reason"] for row in ledger(job).to_dicts() if row["score"] and row["score"] > 0]
    assert len(told) == 3 and all(reason.startswith("contamination.overlap above 0: code mbpp-") for reason in told)


def test_a_pool_that_is_all_benchmark_keeps_nothing(folder: Path) -> None:
    pool = [json.loads(line) for line in (folder / "pool.jsonl").read_text(encoding="utf-8").splitlines()]
    write_jsonl(folder / "all.jsonl", [{"prompt": row["messages"][0]["content"]} for row in pool])
    job = Run(recipe(folder, {"all": {"path": "all.jsonl"}}), folder / "run", "sync", quiet=True)
    job.execute("write")
    assert kept_ids(job) == [] and ledger(job).height == 20
    budget = [{"use": "threshold", "on": "contamination", "max": 0, "budget": 5}]
    again = Run(recipe(folder, {"all": {"path": "all.jsonl"}}, select=budget), folder / "again", "sync", quiet=True)
    with pytest.raises(StageError, match="k=5 rows asked of a pool of n=20, of which 0 may be chosen"):
        again.execute("write")


def test_items_are_read_once_in_order_of_content_and_named(folder: Path) -> None:
    rows = [
        {"id": 7, "prompt": "b?"},
        {"id": 5, "prompt": "b?"},
        {"id": None, "prompt": "c?"},
        {"id": 1, "prompt": " "},
    ]
    write_jsonl(folder / "x.jsonl", rows)
    write_jsonl(folder / "y.jsonl", [{"prompt": "d?"}])
    found = read_benchmarks(recipe(folder, {"x": {"path": ["x.jsonl", "y.jsonl"]}}))
    table = found.sets["x"]
    assert isinstance(table, pa.Table) and set(table["group"].to_pylist()) == {"x"}
    asked = [m[0]["content"] for m in table["messages"].to_pylist()]
    assert dict(zip(asked, table["id"].to_pylist(), strict=True)) == {
        "b?": "5",
        "c?": "x.jsonl row 2",
        "d?": "y.jsonl row 0",
    }
    assert found.rejected == {"x": {"empty-prompt": 1}}
    write_jsonl(folder / "x.jsonl", rows[::-1])
    backwards = read_benchmarks(recipe(folder, {"x": {"path": ["x.jsonl", "y.jsonl"]}})).sets["x"]
    assert backwards["messages"].equals(table["messages"])


def test_the_fingerprint_names_questions_and_items(folder: Path) -> None:
    def mark(rows: list[dict[str, Any]], name: str = "x") -> str:
        write_jsonl(folder / "x.jsonl", rows)
        return read_benchmarks(recipe(folder, {name: {"path": "x.jsonl"}})).fingerprint

    rows = [{"id": "1", "prompt": "a?"}, {"id": "2", "prompt": "b?"}]
    assert mark(rows) == mark(rows[::-1])
    others = [rows[:1], [{**rows[0], "id": "3"}, rows[1]], [{**rows[0], "prompt": "c?"}, rows[1]]]
    marks = [mark(rows), mark(rows, "y"), *map(mark, others)]
    assert len(set(marks)) == 5


def test_what_cannot_be_read(folder: Path) -> None:
    write_jsonl(folder / "blank.jsonl", [{"prompt": " "}])
    with pytest.raises(RunError, match=r"benchmark 'x': no row of .*blank.jsonl asks anything \(empty-prompt\)"):
        read_benchmarks(recipe(folder, {"x": {"path": "blank.jsonl"}}))
    with pytest.raises(SourceError, match="benchmark 'x'"):
        read_benchmarks(recipe(folder, {"x": {"path": "absent.jsonl"}}))
    with pytest.raises(SchemaError, match=r"benchmark 'quiz'.*no schema fits"):
        read_benchmarks(recipe(folder, {"quiz": {"path": "quiz.jsonl"}}))
