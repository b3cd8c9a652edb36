"""Corrections in a run: rows with another answer, in the ledger, the dataset, its provenance and the exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.exceptions import RecipeError
from curate.pipelines.handover import export_run
from curate.pipelines.plan import plan
from curate.pipelines.run import Run
from curate.recipe import Recipe, exporter_of

from .helpers import ledger

REVIEW = {"use": "review", "file": "review.jsonl"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a pool of 60 rows whose rating is their number."""
    with (tmp_path / "pool.jsonl").open("w") as file:
        for i in range(60):
            turns = [{"role": "user", "content": f"What is {i} + 1?"}, {"role": "assistant", "content": f"It is {i}."}]
            file.write(json.dumps({"id": f"row-{i:02d}", "messages": turns, "rating": i}) + "\n")
    return tmp_path


def reviewed(folder: Path, **verdicts: tuple[str, str | None]) -> None:
    with (folder / "review.jsonl").open("w") as file:
        for id, (verdict, answer) in verdicts.items():
            number = int(id[-2:])
            line = {
                "id": id.replace("_", "-"),
                "answer": f"It is {number}.",
                "verdict": verdict,
                "new_answer": answer or "",
            }
            file.write(json.dumps(line) + "\n")


def recipe(folder: Path, **changes: Any) -> Recipe:
    document: dict[str, Any] = {
        "name": "test",
        "sources": [{"path": "pool.jsonl", "id": "id"}],
        "scorers": {"rating": {"use": "column", "column": "rating", "higher_is_better": True}},
        "select": [{"name": "filter", "use": "quantile", "on": "rating", "share": 0.5}],
        "correct": [REVIEW],
        "execution": {"shard_rows": 16},
        "report": False,
    }
    return Recipe.from_dict({**document, **changes}, folder)


def run(folder: Path, **changes: Any) -> Run:
    job = Run(recipe(folder, **changes), folder / "run", "sync", quiet=True)
    job.execute()
    return job


def decisions(job: Run) -> dict[str, tuple[str, str, str]]:
    return {row["id"]: (row["decision"], row["stage"], row["reason"]) for row in ledger(job).iter_rows(named=True)}


def answers(job: Run) -> dict[str, str]:
    """Id → last answer, of the dataset and its provenance."""
    data = pl.read_parquet(f"{job.store.root}/dataset/*.parquet")["messages"].to_list()
    ids = pl.read_parquet(f"{job.store.root}/provenance/*.parquet")["id"].to_list()
    return {id: messages[-1]["content"] for id, messages in zip(ids, data, strict=True)}


def test_without_a_review_file_nothing_changes(source: Path) -> None:
    job = run(source)
    assert job.manifest["decisions"] == {"dropped": 30, "kept": 30}


def test_rows_are_replaced_kept_dropped_and_brought_back(source: Path) -> None:
    reviewed(
        source,
        row_05=("fix", "It is 6."),
        row_07=("keep", None),
        row_40=("fix", "It is 41."),
        row_50=("drop", None),
    )
    job = run(source)
    assert job.manifest["decisions"] == {"corrected": 2, "dropped": 29, "kept": 29}
    found = decisions(job)
    for id in ("row-05", "row-40"):
        assert found[id][:2] == ("corrected", "review")
    assert found["row-07"][:2] == ("kept", "review")
    assert found["row-50"][:2] == ("dropped", "review")
    assert found["row-06"][:2] == ("dropped", "filter")
    said = answers(job)
    assert len(said) == 31
    assert said["row-05"] == "It is 6." and said["row-40"] == "It is 41." and said["row-07"] == "It is 7."
    twin = pl.read_parquet(f"{job.store.root}/provenance/*.parquet")
    assert dict(zip(twin["id"], twin["corrected_by"], strict=True))["row-05"] == "review"
    assert twin["corrected_by"].null_count() == 29
    (step,) = [s for s in job.manifest["select"] if s.get("kind") == "correction"]
    assert (step["in"], step["kept"], step["dropped"], step["corrected"], step["brought_back"]) == (30, 31, 1, 2, 2)


def test_exports_hold_the_new_answers(source: Path) -> None:
    reviewed(source, row_05=("fix", "It is 6."))
    job = run(source)
    made = export_run(job.store, exporter_of("trl", {}), str(source / "exported"))
    table = pl.read_parquet(f"{made.path}/data/*.parquet")
    said = [messages[-1]["content"] for messages in table["messages"].to_list()]
    assert len(said) == 31 and "It is 6." in said and "It is 5." not in said


def test_a_later_step_sees_what_corrections_left(source: Path) -> None:
    reviewed(source, row_05=("fix", "It is 6."), row_50=("drop", None))
    steps = [
        {"name": "filter", "use": "quantile", "on": "rating", "share": 0.5},
        {"name": "least", "use": "top-k", "on": "rating", "largest": False, "budget": 3},
    ]
    job = run(source, select=steps, correct=[{**REVIEW, "after": "filter"}])
    assert job.manifest["decisions"] == {"corrected": 1, "dropped": 57, "kept": 2}
    found = decisions(job)
    assert found["row-05"] == ("corrected", "review", "fixed by a person")
    assert found["row-50"][:2] == ("dropped", "review") and found["row-59"][:2] == ("dropped", "least")
    order = ledger(job).filter(pl.col("order").is_not_null()).sort("order")["id"].to_list()
    assert order == ["row-05", "row-30", "row-31"]


def test_a_correction_before_the_selection(source: Path) -> None:
    reviewed(source, row_05=("fix", "It is 6."), row_40=("fix", "It is 41."))
    job = run(source, correct=[{**REVIEW, "after": "start"}])
    assert job.manifest["decisions"] == {"corrected": 1, "dropped": 30, "kept": 29}
    assert decisions(job)["row-05"][:2] == ("dropped", "filter")
    assert "row-40" in answers(job)


@pytest.mark.parametrize("rows, corrected", [("kept", ["row-40"]), ("dropped", ["row-05"])])
def test_which_rows_it_looks_at(source: Path, rows: str, corrected: list[str]) -> None:
    reviewed(source, row_05=("fix", "It is 6."), row_40=("fix", "It is 41."))
    job = run(source, correct=[{**REVIEW, "rows": rows}])
    assert [id for id, (decision, *_) in decisions(job).items() if decision == "corrected"] == corrected


def test_reverting_is_one_flag(source: Path) -> None:
    reviewed(source, row_05=("fix", "It is 6."), row_40=("fix", "It is 41."))
    run(source)
    job = run(source, correct=[{**REVIEW, "revert": ["row-40"]}])
    assert answers(job)["row-40"] == "It is 40." and answers(job)["row-05"] == "It is 6."
    assert decisions(job)["row-40"][:2] == ("kept", "filter")
    job = run(source, correct=[{**REVIEW, "revert": "all"}])
    assert job.manifest["decisions"] == {"dropped": 30, "kept": 30}
    files = sorted(Path(job.store.root).glob("corrections/*/*.parquet"))
    told = pl.concat([pl.read_parquet(file) for file in files]).filter(pl.col("action").is_not_null())
    assert set(told.filter(~pl.col("applied"))["rule"]) == {"reverted; else: fixed by a person"}


def test_a_second_run_does_nothing_and_shards_do_not_matter(source: Path) -> None:
    reviewed(source, row_05=("fix", "It is 6."), row_07=("keep", None))
    first = run(source)
    before = decisions(first)
    assert decisions(run(source)) == before
    other = Run(recipe(source, execution={"shard_rows": 7}), source / "other", "sync", quiet=True)
    other.execute()
    assert decisions(other) == before and answers(other) == answers(first)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"use": "reviw"}, "no corrector is called 'reviw'; did you mean 'review'?"),
        ({"file": "x"}, "correct.0 names no corrector"),
        ({**REVIEW, "after": "filtr"}, "no step of the selection is called 'filtr'; did you mean 'filter'?"),
        ({**REVIEW, "rows": "some"}, "rows is all, kept or dropped; found 'some'"),
        ({**REVIEW, "revert": 3}, "revert is a list of ids, or all; found 3"),
        ({**REVIEW, "fil": "x"}, "unknown key 'correct.0.fil'; did you mean 'file'?"),
        ({"use": "majority-vote", "answers": "sample"}, "no scorer is called 'sample'"),
        ({"use": "majority-vote", "answers": "rating"}, "'rating' writes no column 'answers'"),
        ({"use": "majority-vote"}, "'correct.0.answers.model' is missing"),
        ({"use": "majority-vote", "answers": 3}, "'answers' is the name of a scorer, or an entry like one"),
        ({**REVIEW, "name": "filter"}, "two corrections or steps are called 'filter'"),
    ],
)
def test_mistakes_in_the_recipe(source: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(source, correct=[entry])


def test_a_role_that_any_number_fills_is_not_filled_by_a_text(source: Path) -> None:
    drafts = {"use": "samples", "model": "./examples/model"}
    entry = {"use": "s3ft", "candidates": "drafts", "check": "drafts"}
    with pytest.raises(
        RecipeError, match="s3ft reads the first column of 'check', a number; that of 'drafts' is 'answ"
    ):
        recipe(source, scorers={"drafts": drafts}, select=[], correct=[entry])


def test_stages_of_a_correction_are_its_own(source: Path) -> None:
    model = {"model": "./examples/model"}
    entry = {"use": "majority-vote", "answers": model}
    with pytest.raises(RecipeError, match="belongs to the correction 'majority-vote'"):
        recipe(
            source,
            correct=[entry],
            select=[{"use": "top-k", "on": "majority-vote-answers.tokens", "budget": 1}],
        )


def test_the_plan_tells_of_corrections(source: Path) -> None:
    made = plan(Run(recipe(source), source / "run", "sync", quiet=True))
    assert made.steps[-1] == "review: review after filter"
