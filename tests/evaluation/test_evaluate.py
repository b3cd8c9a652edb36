"""Evidence from a run: a proxy trained on what it kept and on what it must beat, and what comes of stopping and of mistakes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.evaluation import tables
from curate.evaluation.contenders import Share
from curate.evaluation.design import UNTRAINED
from curate.evaluation.evaluate import Evaluation, Outcome
from curate.evaluation.grid import Wanted
from curate.exceptions import InputError, ModelError, RunDirectoryError
from curate.pipelines.run import Run
from curate.recipe import Recipe, RecipeError
from tests.models.tiny import save_tiny_model

pytest.importorskip("torch")
pytest.importorskip("accelerate")

WORDS = ("north", "south", "east", "west", "up", "down", "left", "right")
TRAINING = {"tokens_per_step": 256, "epochs": 2, "rate": 3e-3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("proxy")
    save_tiny_model(folder)
    return str(folder)


def pool(folder: Path, rows: int = 80) -> None:
    """Write rows of two sources; the answer says the question's word again, or, of every fourth row, another word."""
    rng = np.random.default_rng(0)
    with (folder / "pool.jsonl").open("w") as file:
        for i in range(rows):
            word = WORDS[i % len(WORDS)]
            said = WORDS[int(rng.integers(len(WORDS)))] if i % 4 == 0 else word
            turns = [{"role": "user", "content": f"{i}: {word}?"}, {"role": "assistant", "content": f"{said} {i * 37}"}]
            line = {"messages": turns, "source": "ab"[i % 2], "right": int(said == word)}
            file.write(json.dumps(line) + "\n")


def made(folder: Path, name: str = "run", **changes: Any) -> Run:
    document: dict[str, Any] = {
        "name": name,
        "sources": [{"path": "pool.jsonl"}],
        "scorers": {"right": {"use": "column", "column": "right", "higher_is_better": True}},
        "select": [{"use": "random", "budget": 24}],
        "execution": {"shard_rows": 32},
        "report": False,
    }
    job = Run(Recipe.from_dict({**document, **changes}, folder), folder / name, "sync", quiet=True)
    job.execute()
    return job


def evaluated(*runs: Run, model: str, out: Path | None = None, **changes: Any) -> Outcome:
    settings = {"model": model, "training": TRAINING, "seeds": 2, "held_out": 6, "generate": False, **changes}
    directory = None if out is None else str(out)
    return Evaluation([run.store for run in runs], directory, settings, "sync", None, True).execute()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    pool(tmp_path)
    return made(tmp_path)


def test_a_run_and_what_it_must_beat(run: Run, model: str) -> None:
    found = evaluated(run, model=model)
    size = found.comparisons[0].at.rows  # 24, but for those that are held out
    assert 18 <= size <= 24 and [(c.at.equal, c.at.rows) for c in found.comparisons] == [
        ("rows", size),
        ("tokens", size),
    ]
    for c in found.comparisons:
        assert c.evidence.selections == (UNTRAINED, "run", "random", "balanced", "longest", "full")
        assert c.evidence.tasks == ("a", "b")
        assert np.isfinite(c.evidence.loss.mean).all()
        trained = c.evidence.loss.mean[1:, -1]
        assert (trained < c.evidence.loss.mean[0, -1]).all()  # everything has learned something
    rows, tokens = found.comparisons
    assert rows.shares["random"][0] == size and rows.shares["full"][0] == min(68, 2 * size)  # as many as in both epochs
    mean = rows.shares["run"][1] / size
    assert abs(tokens.shares["longest"][1] - tokens.shares["run"][1]) <= 2 * mean
    assert tokens.shares["longest"][0] < tokens.shares["random"][0]
    frame = pl.read_parquet(f"{run.store.root}/evaluation/selections.parquet")
    assert frame.height == 12 and {"equal", "budget", "rows", "loss", "gain", "verdict"} <= set(frame.columns)
    page = Path(f"{run.store.root}/evaluation/evidence.md").read_text()
    assert f"run, {size} rows of each: " in page
    assert found.costs[0]["run"] == "run" and found.costs[0]["everything_tokens"] > 0


def test_the_same_command_trains_nothing_again(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"baselines": ["random"], "equal": ["rows"]}
    first = evaluated(run, model=model, **settings)
    monkeypatch.setattr("curate.models.proxy.train", None)
    again = evaluated(run, model=model, **settings)
    assert [t["trial"] for t in again.trials] == [t["trial"] for t in first.trials]
    np.testing.assert_array_equal(again.comparisons[0].evidence.loss.gain, first.comparisons[0].evidence.loss.gain)


def test_stopped_in_the_middle_it_goes_on(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import curate.evaluation.trial as trials

    whole = evaluated(run, model=model, baselines=["random"], equal=["rows"], out=Path(run.store.root) / "whole")
    calls, train = 0, trials._trained

    def stops(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(trials, "_trained", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run, model=model, baselines=["random"], equal=["rows"])
    monkeypatch.setattr(trials, "_trained", train)
    resumed = evaluated(run, model=model, baselines=["random"], equal=["rows"])
    assert [t["last_loss"] for t in resumed.trials[1:3]] == [t["last_loss"] for t in whole.trials[1:3]]
    np.testing.assert_array_equal(resumed.comparisons[0].evidence.loss.mean, whole.comparisons[0].evidence.loss.mean)


def test_nothing_that_is_measured_is_trained_on(run: Run, model: str) -> None:
    found = evaluated(run, model=model, baselines=["full"], equal=["rows"], training={**TRAINING, "epochs": 4})
    held = set(found.held_out.examples.column("id").to_pylist())
    assert len(held) == 12
    place = np.flatnonzero(~found.held_out.allowed)
    assert len(place) == 12
    (step,) = found.comparisons
    assert step.shares["full"][0] == 68  # all but these


def test_targets_that_stand_in_the_pool_are_left_out(run: Run, model: str, tmp_path: Path) -> None:
    lines = (tmp_path / "pool.jsonl").read_text().splitlines()[:3]
    for i in range(5):
        turns = [
            {"role": "user", "content": f"Which way is number {i} then?"},
            {"role": "assistant", "content": f"It is {WORDS[i]} of here."},
        ]
        lines.append(json.dumps({"messages": turns}))
    (tmp_path / "targets.jsonl").write_text("\n".join(lines))
    targets = {"sets": {"ways": {"path": str(tmp_path / "targets.jsonl")}}}
    found = evaluated(run, model=model, baselines=["random"], equal=["rows"], targets=targets)
    assert found.held_out.account == [
        {"task": "ways", "rows": 8, "overlapping": 3, "how": {"the same conversation": 3}, "measured": 5}
    ]
    assert found.held_out.allowed.all()


def test_one_seed_is_a_look_without_a_verdict(run: Run, model: str) -> None:
    found = evaluated(run, model=model, baselines=["random"], equal=["rows"], seeds=1)
    assert all("no verdict" in line for line in tables.said(found))


def test_two_runs_of_different_sizes_are_made_equal(run: Run, model: str, tmp_path: Path) -> None:
    other = made(tmp_path, "other", select=[{"use": "top-k", "on": "right", "budget": 12}])
    found = evaluated(run, other, model=model, baselines=["random"], equal=["rows"])
    assert found.runs == ["run", "other"]
    (c,) = found.comparisons
    assert c.at.rows <= 12 and c.shares["run"][0] == c.shares["other"][0] == c.at.rows
    assert any("the runs kept" in note for note in found.notes)


def test_a_training_that_diverges_is_told_and_the_others_go_on(run: Run, model: str) -> None:
    found = evaluated(
        run, model=model, baselines=["random"], equal=["rows"], training={**TRAINING, "rate": 1e30, "clip": None}
    )
    assert all(t["diverged"] for t in found.trials if t["selection"] != UNTRAINED)
    (c,) = found.comparisons
    assert np.isfinite(c.evidence.loss.mean[0]).all() and np.isnan(c.evidence.loss.mean[1:]).all()
    assert any("diverged" in note for note in c.evidence.notes)


def test_the_validity_of_a_score(run: Run, model: str) -> None:
    found = evaluated(run, model=model, baselines=["random"], equal=["rows"], seeds=1, validity=["right"], budgets=[6])
    assert list(found.validities) == ["right.value"]
    assert found.validities["right.value"].outcome.shape == (10,)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"model": None}, InputError, "a proxy was asked, none is named"),
        ({"budgets": [500]}, InputError, "500 rows of each selection were asked, 'run' has 2"),
        ({"budgets": ["9k tokens"]}, InputError, "9,000 training tokens of each selection were asked, 'run' has"),
        ({"budgets": [0]}, InputError, "0 rows of each selection were asked"),
        ({"budgets": ["many"]}, RecipeError, "evaluate.budgets"),
        ({"baselines": ["randm"]}, RecipeError, "randm"),
        ({"training": {"epoch": 2}}, RecipeError, "unknown key 'evaluate.training.epoch'; did you mean 'epochs'"),
        ({"validity": ["wrong"]}, RecipeError, "no scorer or combination is called 'wrong'. Known: right"),
        ({"model": "/nowhere"}, ModelError, "/nowhere"),
    ],
)
def test_mistakes(run: Run, model: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluated(run, **{"model": model, "equal": ["rows"], **changes})


def test_runs_of_other_pools_are_refused(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    pool(tmp_path / "two", rows=40)
    with pytest.raises(InputError, match="runs of one pool were asked; 'other' has 40 rows"):
        evaluated(run, made(tmp_path / "two", "other"), model=model)
    with pytest.raises(InputError, match="named twice"):
        evaluated(run, run, model=model)
    with pytest.raises(RunDirectoryError, match="no run of curate"):
        Evaluation([str(tmp_path / "two")])


def test_budgets_in_tokens(run: Run, model: str) -> None:
    found = evaluated(run, model=model, baselines=["random"], budgets=["300 tokens", 12])
    assert [(c.at.equal, c.at.rows) for c in found.comparisons] == [("rows", 12), ("tokens", 12), ("tokens", None)]
    last = found.comparisons[-1]
    assert last.at.tokens == 300 and last.at.title == "300 training tokens of each"
    assert all(abs(last.shares[name][1] - 300) <= 20 for name in ("run", "random"))
    heads, rows = tables.overview(found)
    assert heads[1:] == [
        "equal rows, 12 rows",
        f"equal tokens, {found.comparisons[1].at.tokens} tokens",
        "equal tokens, 300 tokens",
        "scoring",
        "of training on everything",
    ]
    assert {row[0] for row in rows} == {UNTRAINED, "run"} and all(len(row) == 6 for row in rows)
    frame = pl.read_parquet(f"{run.store.root}/evaluation/tasks.parquet")
    assert frame["tokens"].drop_nulls().unique().sort().to_list() == sorted({300, found.comparisons[1].at.tokens})


def test_a_score_is_tried_at_equal_tokens(run: Run, model: str) -> None:
    found = evaluated(run, model=model, baselines=["random"], seeds=1, validity=["right"], budgets=["60 tokens"])
    (at,) = {(t["equal"], t["budget_tokens"]) for t in found.trials if t["score"]}
    assert at[0] == "tokens" and 0 < at[1] <= 60
    tokens = [t["tokens"] / t["epochs"] for t in found.trials if t["score"]]
    assert len(tokens) == 10 and max(tokens) - min(tokens) <= 30  # to half a row


def test_the_board_shows_every_training(run: Run, model: str) -> None:
    from rich.console import Console

    from curate.evaluation.grid import Grid, Point
    from curate.evaluation.watch import Watch
    from curate.pipelines.progress import Progress

    grid = Grid({})
    for name in ("ours", "random", "longest"):
        for seed in range(2):
            for tokens in (10, 20):
                key = f"{name} {tokens} {seed}"
                grid.rows[key] = []
                grid.wanted.append(
                    Wanted(name, Point("tokens", None, tokens), seed, key, Share(np.arange(3), tokens, 1))
                )
    account = {"diverged": None, "tokens": 10, "seconds_training": 4.0, "seconds_measuring": 1.0}
    watch = Watch(Progress(io.StringIO()), grid, {"random 10 0": account})

    def drawn(height: int = 40) -> list[str]:
        console = Console(file=io.StringIO(), width=80)
        console.print(watch.board(height))
        return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]

    assert drawn()[:4] == ["10 tokens 20 tokens", "ours ·· ··", "random ●· ··", "longest ·· ··"]
    assert drawn()[4] == "trainings: 1 of 12, 1 were there"
    watch.under_way("ours 10 0")
    watch.under_way("ours 10 1")
    watch.done("ours 10 0", account)
    watch.done("ours 10 1", {**account, "diverged": "its loss is no number"})
    assert drawn()[1] == "ours ●✕ ··" and "left" in drawn()[4]
    assert drawn(7)[-2] == "2 finished, 0 waiting" or drawn(7)[-2] == "0 finished, 2 waiting"


def test_draws_of_one_method_take_turns(run: Run, model: str, tmp_path: Path) -> None:
    other = made(tmp_path, "other", select=[{"use": "random", "budget": 20, "seed": 5}])
    settings: dict[str, Any] = {"model": model, "training": TRAINING, "held_out": 6, "generate": False, "seeds": 3}
    settings |= {"equal": ["rows"], "baselines": ["random"]}
    both = Evaluation([[run.store, other.store]], str(tmp_path / "both"), settings, "sync", None, True).execute()
    each = Evaluation([run.store, other.store], str(tmp_path / "each"), settings, "sync", None, True).execute()

    def trials(outcome: Outcome, name: str) -> list[str]:
        return [t["trial"] for t in outcome.trials if t["selection"] == name]

    assert both.runs == ["run"] and "other" in both.about["run"]
    assert trials(both, "run") == [trials(each, "run")[0], trials(each, "other")[1], trials(each, "run")[2]]
    assert "run: 2 draws over 3 seeds" in both.notes


def test_all_of_the_pool_at_equal_tokens_makes_equal_steps(run: Run, model: str) -> None:
    found = evaluated(run, model=model, baselines=["full"], equal=["tokens"], seeds=4)
    tokens = {(t["selection"], t["seed"]): t["tokens"] for t in found.trials}
    for seed in range(4):  # no second epoch for what is missing to a row
        assert abs(tokens["full", seed] - tokens["run", seed]) <= 40


def test_from_the_command_line(run: Run, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from curate.cli import main

    other = made(tmp_path, "other", select=[{"use": "random", "budget": 24, "seed": 5}])
    options = [
        "--model",
        model,
        "--scheduler",
        "sync",
        "--seeds",
        "2",
        "--set",
        "held_out=4",
        "--set",
        "generate=false",
    ]
    options += ["--set", "training.rate=3e-3", "--set", "baselines=[random]", "--out", str(tmp_path / "out")]

    def said(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as code:
            main(["evaluate", *arguments, *options])
        return code.value.code, *capsys.readouterr()  # type: ignore[return-value]

    code, out, err = said(f"{run.store.root},{other.store.root}", "--budgets", "8,100 tokens")
    assert code == 0, err
    assert "- run, 8 rows of each: " in out and "| gain on random, nats per token | equal rows, 8 rows |" in out
    assert "## 8 rows of each" not in out  # three comparisons: in brief
    assert f"evidence   {tmp_path}/out/evidence.md" in out and "trainings: " in err
    assert "## 8 rows of each" in (tmp_path / "out" / "evidence.md").read_text()
    code, out, err = said(str(run.store.root), "--budgets", "8", "-q")
    assert code == 0 and "## 8 rows of each" in out and not err
    code, out, err = said(str(run.store.root), "--budgets", "eight")
    assert code == 2 and "evaluate.budgets: a count was asked, 'eight' was found" in err
    code, out, err = said(str(tmp_path / "nothing"))
    assert code and "nothing" in err
