"""Which rows a person should look at first, and what happens to what the person says."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.cli import main
from curate.exceptions import InputError, RecipeError, RunDirectoryError
from curate.pipelines.review import Listed, review
from curate.pipelines.run import Run
from curate.pipelines.store import Store
from curate.pipelines.why import tell, why
from curate.recipe import Recipe
from tests.conftest import conversation, write_jsonl
from tests.pipelines.sidecars import line, put

Make = Callable[..., Run]
FILTER = {"name": "filter", "use": "quantile", "on": "rating", "share": 0.5}


def rows_of_pool(n: int = 60) -> list[dict[str, Any]]:
    """Rows with ids of their own, whose rating is their number halved; a copy, and one that calls a tool."""
    rows = [
        {"id": f"r{i:02d}", "messages": conversation(f"What is {i}?", f"It is {i}."), "rating": i // 2, "loss": -i}
        for i in range(n)
    ]
    rows[4]["messages"] = [rows[4]["messages"][0], {"role": "assistant", "content": "", "tool_calls": CALLS}]
    rows[5]["rating"] = None
    rows[7]["messages"] = [{"role": "system", "content": "Be brief."}, *rows[7]["messages"]]
    return [*rows, rows[9]]


CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def finished(
    folder: Path, until: str = "write", to: str = "run", rows: Any = None, shard_rows: int = 32, **changes: Any
) -> Run:
    write_jsonl(folder / "pool.jsonl", rows or rows_of_pool())
    document = {
        "name": "reviewed",
        "sources": [{"path": "pool.jsonl", "id": "id"}],
        "scorers": {
            "rating": {"use": "column", "column": "rating"},
            "loss": {"use": "column", "column": "loss", "higher_is_better": False},
        },
        "combine": {"both": {"method": "mean", "of": {"rating": 1}}},
        "select": [FILTER],
        "execution": {"shard_rows": shard_rows},
        "report": False,
    }
    job = Run(Recipe.from_dict({**document, **changes}, folder), folder / to, "sync", quiet=True)
    job.execute(until)
    return job


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return functools.partial(finished, tmp_path)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without a review; a score of no direction besides."""
    scorers = {
        "rating": {"use": "column", "column": "rating"},
        "loss": {"use": "column", "column": "loss", "higher_is_better": False},
        "length": {"use": "text-heuristics"},
    }
    return finished(tmp_path_factory.mktemp("reviewed"), scorers=scorers)


def listed(job: Run, **how: Any) -> tuple[Listed, list[dict[str, Any]]]:
    found = review(job.store, **how)
    return found, [json.loads(text) for text in Path(found.path).read_text(encoding="utf-8").splitlines()]


def ids(job: Run, out: Path, **how: Any) -> list[str]:
    return [row["id"] for row in listed(job, out=out, **how)[1]]


def fill(path: Path, **said: tuple[str, str]) -> None:
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["verdict"], row["new_answer"] = said.get(row["id"], ("", ""))
    write_jsonl(path, rows)


# -- which rows --------------------------------------------------------------------------------------------------------


def test_the_worst_come_first(job: Run, tmp_path: Path) -> None:
    found, rows = listed(job, out=tmp_path / "r.jsonl", rows=6)
    assert [row["score"] for row in rows] == [0, 0, 1, 1, 3, 3]  # r04 calls a tool, r05 has no score
    assert {row["id"] for row in rows} == {"r00", "r01", "r02", "r03", "r06", "r07"}
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6] and {row["on"] for row in rows} == {"rating.value"}
    assert (found.rows, found.of, found.unscored, found.reviewed, found.passed) == (6, 59, 1, 0, 1)
    first = rows[0]
    assert first["question"] == f"What is {int(first['id'][1:])}?" and first["answer"].startswith("It is")
    assert "conversation" not in first and "proposal" not in first and first["verdict"] == ""


def test_by_a_combination_and_where_lower_is_better(job: Run, tmp_path: Path) -> None:
    assert ids(job, tmp_path / "a", on="both", rows=5) == ids(job, tmp_path / "b", rows=5)
    assert ids(job, tmp_path / "c", on="loss", rows=3) == ["r00", "r01", "r02"]  # the greatest loss is -0
    with pytest.raises(InputError, match=r"length.response_chars has no better direction, so that none of its values"):
        review(job.store, tmp_path / "d", on="length.response_chars")
    with pytest.raises(RecipeError, match=r"no scorer or combination is called 'ratng'; did you mean 'rating'\?"):
        review(job.store, tmp_path / "d", on="ratng")


def test_against_the_plain_order(make: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{**row, "rating": float(rng.integers(0, 8))} for row in rows_of_pool(60)]
    job = make(rows=rows)
    pool = {row["id"]: row["rating"] for row in rows if row["id"] != "r04"}
    threshold = job.manifest["select"][0]["threshold"]
    for order, key in (("worst", lambda v: v), ("nearest", lambda v: abs(v - threshold))):
        _, found = listed(job, out=tmp_path / order, rows=60, order=order)
        assert {row["id"] for row in found} == set(pool)
        assert [key(row["score"]) for row in found] == sorted(map(key, pool.values()))
        assert all(row["score"] == pool[row["id"]] for row in found)


def test_neither_shards_nor_files_matter(make: Make, tmp_path: Path) -> None:
    rows = [{**row, "rating": i % 3} for i, row in enumerate(rows_of_pool())]
    orders = []
    for i, (given, shard_rows) in enumerate(((rows, 16), (rows, 7), (rows[::-1], 100))):
        orders.append(ids(make(rows=given, shard_rows=shard_rows, to=f"run{i}"), tmp_path / "r.jsonl", rows=25))
    assert orders[0] == orders[1] == orders[2]


def test_the_nearest_to_the_threshold(job: Run, tmp_path: Path) -> None:
    threshold = job.manifest["select"][0]["threshold"]
    found, rows = listed(job, out=tmp_path / "r.jsonl", rows=4, order="nearest")
    assert found.threshold == threshold and [abs(row["score"] - threshold) for row in rows] == [0, 0, 1, 1]
    with pytest.raises(InputError, match=r"no one is known that loss\.value was held against by the step 'filter'"):
        review(job.store, tmp_path / "x", on="loss", order="nearest")
    with pytest.raises(InputError, match="order is worst or nearest; found 'nearst'; did you mean 'nearest'"):
        review(job.store, tmp_path / "x", order="nearst")


@pytest.mark.parametrize(("rows", "low", "high"), [("all", 0, 29), ("dropped", 0, 14), ("kept", 15, 29)])
def test_the_rows_that_the_correction_looks_at(make: Make, tmp_path: Path, rows: str, low: int, high: int) -> None:
    entry = {"use": "review", "file": "r.jsonl", "after": "filter", "rows": rows}
    steps = [FILTER, {"name": "few", "use": "top-k", "on": "rating", "budget": 5}]
    job = make(select=steps, correct=[entry])
    _, found = listed(job, out=tmp_path / "x.jsonl", rows=60)
    scores = [row["score"] for row in found]
    assert min(scores) == low and max(scores) == high
    assert len(found) == {"all": 58, "dropped": 28, "kept": 30}[rows]


def test_a_run_that_is_scored_only(make: Make, tmp_path: Path) -> None:
    job = make("score")
    assert ids(job, tmp_path / "r.jsonl", rows=3)[2] in ("r02", "r03")
    with pytest.raises(InputError, match="'curate run' first, name its score with --on, or take --order worst"):
        review(job.store, tmp_path / "x", order="nearest")


def test_a_run_without_a_score(make: Make, tmp_path: Path) -> None:
    job = make(select=[{"use": "random", "budget": 5}])
    with pytest.raises(InputError, match=r"name one with --on\. This run has rating\.value, loss\.value, both\."):
        review(job.store, tmp_path / "r.jsonl")
    assert len(ids(job, tmp_path / "r.jsonl", on="rating", rows=3)) == 3


def test_all_scores_equal_is_told(make: Make, tmp_path: Path) -> None:
    found, rows = listed(make(rows=[{**row, "rating": 1} for row in rows_of_pool()]), out=tmp_path / "r.jsonl", rows=3)
    assert found.warning == "all 60 rows are alike by rating.value, so that any of them could come first"
    assert len(rows) == 3 and f"warning: {found.warning}" in str(found)


def test_what_is_no_run_or_not_scored(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is no run of curate"):
        review(Store(str(tmp_path)))
    job = make("read")
    with pytest.raises(RunDirectoryError, match=r"not scored to the end \(its status is 'read complete'\)"):
        review(job.store)
    with pytest.raises(InputError, match="at least 1 row was asked to be listed, 0 was found"):
        review(job.store, rows=0)


# -- the recipe's review -----------------------------------------------------------------------------------------------


def test_the_recipe_says_how(make: Make, tmp_path: Path) -> None:
    entry = {"use": "review", "file": "mine/r.jsonl", "on": "loss", "rows_to_review": 4, "order": "worst"}
    job = make(correct=[entry])
    found, rows = listed(job)
    assert found.path == str(tmp_path / "mine/r.jsonl") and [row["id"] for row in rows] == ["r00", "r01", "r02", "r03"]
    assert found.file == found.path and str(found).endswith("then run the recipe again")
    assert listed(job, rows=2)[0].rows == 2  # nobody has said a thing: it may be written again


def test_reviewed_rows_do_not_come_again(make: Make, tmp_path: Path) -> None:
    job = make(correct=[{"use": "review", "file": "r.jsonl", "on": "loss", "rows_to_review": 4}])
    listed(job)
    fill(tmp_path / "r.jsonl", r00=("keep", ""), r02=("fix", "Two."))
    with pytest.raises(InputError) as error:
        review(job.store)
    assert str(error.value) == (
        f"review: {tmp_path}/r.jsonl holds 2 verdicts; write the new list elsewhere with --out and append it when it "
        "is filled in, or say --overwrite."
    )
    found, rows = listed(job, out=tmp_path / "next.jsonl")
    assert [row["id"] for row in rows] == ["r01", "r03", "r05", "r06"] and (found.reviewed, found.of) == (2, 58)
    assert str(found).splitlines()[1:] == [
        "  left out: 2 rows that are reviewed already",
        "  left out: 1 row that has no plain answer",
        'next: write keep, fix or drop into "verdict" (and "new_answer" for fix), a line a row;',
        f"then append them to {tmp_path}/r.jsonl, and run the recipe again",
    ]
    assert [row["id"] for row in listed(job, overwrite=True)[1]] == ["r01", "r03", "r05", "r06"]


def test_a_file_that_is_something_else_is_not_lost(job: Run, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"question": "mine"}\n')
    with pytest.raises(InputError, match=r"is no review file as it should be\. .*r\.jsonl:1: .* or say --overwrite\."):
        review(job.store, tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == '{"question": "mine"}\n'
    assert review(job.store, tmp_path / "r.jsonl", overwrite=True).rows == 58


def test_several_reviews_go_by_name(make: Make, tmp_path: Path) -> None:
    entries = [
        {"use": "review", "name": n, "file": f"{n}.jsonl", "on": on} for n, on in (("a", "loss"), ("b", "rating"))
    ]
    job = make(correct=entries)
    with pytest.raises(InputError, match="the recipe has 2: a, b; name one with --correction"):
        review(job.store)
    with pytest.raises(InputError, match=r"the recipe has no review called 'c'\. It has a, b\."):
        review(job.store, correction="c")
    found = review(job.store, correction="b")
    assert (found.path, found.on) == (str(tmp_path / "b.jsonl"), "rating.value")


# -- what a person says ------------------------------------------------------------------------------------------------


def test_from_the_list_to_the_dataset(make: Make, tmp_path: Path) -> None:
    entry = {"use": "review", "file": "r.jsonl", "on": "loss", "rows_to_review": 4}
    first = make(correct=[entry])
    listed(first)
    fill(tmp_path / "r.jsonl", r00=("keep", ""), r01=("fix", "It is one <b>."), r02=("drop", ""))
    job = make(correct=[entry])
    ledger = pl.read_parquet(f"{job.store.root}/decisions/*.parquet")
    said = {i: (d, r) for i, d, r in ledger["id", "decision", "reason"].iter_rows() if i in ("r00", "r01", "r02")}
    assert said == {
        "r00": ("kept", "kept by a person"),
        "r01": ("corrected", "fixed by a person"),
        "r02": ("dropped", "dropped by a person"),
    }
    told = tell(why(Store(str(tmp_path / "run")), "r01")[0])
    assert (
        "  review    replace: fixed by a person\n            | It is [-1-]{+one <b>+}.\n  text      as it was" in told
    )
    assert "CORRECTED  r01" in told
    again = make(correct=[entry])
    assert again.manifest["decisions"] == job.manifest["decisions"]


def test_a_row_that_was_changed_since_stops_the_run(make: Make, tmp_path: Path) -> None:
    entry = {"use": "review", "file": "r.jsonl", "on": "loss"}
    job = make(correct=[entry])
    listed(job)
    fill(tmp_path / "r.jsonl", r01=("keep", ""))
    rows = rows_of_pool()
    rows[1]["messages"][-1]["content"] = "It is 1, of course."
    with pytest.raises(Exception, match=r"r\.jsonl:2: the row 'r01' was changed since it was reviewed"):
        make(rows=rows, correct=[entry])
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] != "complete"


def test_the_last_word_is_a_persons(make: Make, tmp_path: Path) -> None:
    """A second review overrules the first: what it keeps is kept as it was."""
    entries = [{"use": "review", "name": name, "file": f"{name}.jsonl"} for name in ("one", "two")]
    lines = [{"id": f"r{i}", "answer": f"It is {i}."} for i in (40, 41, 42)]
    write_jsonl(tmp_path / "one.jsonl", [{**row, "verdict": "fix", "new_answer": "x"} for row in lines])
    verdicts = [{"verdict": "keep"}, {"verdict": "drop"}, {"verdict": "fix", "new_answer": "y"}]
    write_jsonl(tmp_path / "two.jsonl", [{**row, **said} for row, said in zip(lines, verdicts, strict=True)])
    job = make(correct=entries)
    ledger = pl.read_parquet(f"{job.store.root}/decisions/*.parquet").filter(pl.col("id").is_in(["r40", "r41", "r42"]))
    assert ledger["decision"].to_list() == ["kept", "dropped", "corrected"]
    data = pl.read_parquet(f"{job.store.root}/dataset/*.parquet")["messages"].to_list()
    answers = [messages[-1]["content"] for messages in data]
    assert "It is 40." in answers and "y" in answers and "x" not in answers and "It is 41." not in answers
    told = tell(why(job.store, "r42")[0])
    assert "one       replace, overruled by two: fixed by a person" in told and "two       replace: fixed" in told


# -- what other corrections have to propose ----------------------------------------------------------------------------


def test_proposals_and_the_confidence_of_a_correction(make: Make, tmp_path: Path) -> None:
    job = make()
    answers = {f"r{i:02d}": f"It is {i}." for i in range(60)}
    saw = [
        line(i, old, confidence=0.8 - n / 1000) for n, (i, old) in enumerate(answers.items()) if i not in ("r09", "r30")
    ]
    saw += [line("r30", answers["r30"], "Thirty.", confidence=0.9), line("r09", answers["r09"], confidence=None)]
    put(job, "auto-correct", saw, {"r30": ["Not this."], "r31": ["Candidate."], "r32": ["one", "two"], "r33": [" "]})
    found, rows = listed(job, out=tmp_path / "r.jsonl", rows=100, on="auto-correct")
    assert found.on == "auto-correct" and found.unscored == 1 and "auto-correct" in str(found)
    assert [row["score"] for row in rows] == sorted(row["score"] for row in rows) and rows[-1]["id"] == "r30"
    assert {row["id"]: row["proposal"] for row in rows if "proposal" in row} == {"r30": "Thirty.", "r31": "Candidate."}
    assert found.proposals == 2
    near, rows = listed(job, out=tmp_path / "r.jsonl", rows=2, on="auto-correct", order="nearest")
    assert near.threshold == 0.8 and [row["id"] for row in rows] == ["r00", "r01"]
    told = tell(why(job.store, "r31")[0])
    assert "auto-correct left to the selection: the answer is better, confidence 0.769 against 0.8" in told
    told = tell(why(job.store, "r30")[0])
    assert "model  candidates: tiny" in told and "prompt verdict 1" in told and "| [-It is 30-]{+Thirty+}." in told
    (copy,) = why(job.store, "pool.jsonl:60")
    assert copy.decision["decision"] == "duplicate" and copy.corrections == []


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def curate(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(list(args))
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    make(correct=[{"use": "review", "file": "r.jsonl", "rows_to_review": 3}])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the recipe's file is where the recipe is
    code, out, err = curate("review", "../run")
    assert code == 0, err
    assert out.splitlines()[0] == f"3 rows of 59 to look at, the worst by rating.value, in {tmp_path}/r.jsonl"
    fill(tmp_path / "r.jsonl", r00=("keep", ""))
    code, out, err = curate("review", "../run")
    assert code == 2 and "holds 1 verdict;" in err
    code, out, err = curate("review", "../run", "--out", "o.jsonl", "--rows", "2", "--order", "nearest")
    assert "2 rows of 58 to look at, those nearest to 15 by rating.value" in out, err
    assert len((tmp_path / "elsewhere/o.jsonl").read_text().splitlines()) == 2
    told = json.loads(curate("why", "../run", "r01", "--json")[1])
    assert [c["rule"] for c in told[0]["corrections"]] == ["no review file yet"]
