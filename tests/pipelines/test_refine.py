"""Rounds of refinement in a run: kept, resumed after a kill, the same however shards and workers are cut."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate import models
from curate.exceptions import ModelError, RecipeError, StageError
from curate.pipelines import ready, refine
from curate.pipelines.executor import Synchronous, Task
from curate.pipelines.plan import plan
from curate.pipelines.run import Run
from curate.recipe import Recipe
from tests.conftest import ROOT, conversation, rows_of, write_parquet
from tests.pipelines.helpers import digests, kept_ids
from tests.scorers.test_learner import save_reward_model

pytest.importorskip("peft")

Pools = Callable[..., Path]
WARM_UP = {"epochs": 2, "batch": 4, "rate": 1e-2, "lora": {"r": 2, "alpha": 4}}


@pytest.fixture(autouse=True, scope="module")
def _unload() -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(refine, "PIECE", 4)
        yield


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refine") / "pool"
    rows = [*({"messages": row["messages"]} for row in rows_of(40)), *map(mute, range(10))]
    for i in range(3):
        write_parquet(folder / f"{i}.parquet", rows[i::3])
    return folder


@pytest.fixture(scope="module")
def whole(pool: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing stopped."""
    return run(pool, tiny_model, tmp_path_factory.mktemp("whole") / "run")


def mute(i: int) -> dict[str, Any]:
    """A row that can be trained on, but whose last answer is not the model's to give."""
    last = conversation(f"And {i + 1}?", "Somebody else's answer.")
    return {"messages": [*conversation(f"What is {i}?", f"It is {i}."), last[0], {**last[1], "train": False}]}


def document(pool: Path, model: Path, **changes: Any) -> dict[str, Any]:
    learner = {"model": str(model), "device": "cpu", "new_tokens": 4, "warm_up": WARM_UP, **changes.pop("learner", {})}
    step = {"use": "iterative-kmq", "name": "diverse", "features": "ngrams", "clusters": 3, "budget": 18}
    return {
        "name": "refined",
        "sources": [{"path": str(pool)}],
        "scorers": {"ngrams": {"use": "hashed-ngrams", "dim": 16}},
        "select": [
            *changes.pop("before", []),
            {**step, "evaluate": 1.0, "learner": learner, **changes.pop("step", {})},
        ],
        "execution": {"shard_rows": changes.pop("shard_rows", 16), "workers": 2},
        "report": False,
    }


def run(pool: Path, model: Path, directory: Path, *, scheduler: str = "sync", **changes: Any) -> Run:
    job = Run(Recipe.from_dict(document(pool, model, **changes)), directory, scheduler, quiet=True)
    job.execute()
    return job


def step_of(job: Run) -> dict[str, Any]:
    return dict(job.manifest["select"][-1])


def untimed(step: dict[str, Any]) -> dict[str, Any]:
    rounds = [{k: v for k, v in one.items() if k != "seconds"} for one in step["learner"]["rounds"]]
    return {**step, "learner": {**step["learner"], "rounds": rounds}}


def pieces(job: Run) -> list[Path]:
    return sorted(Path(job.store.root).glob("scores/diverse-round-*/*.parquet"))


class Counted:
    """A task's function that counts its calls, and fails from one on."""

    def __init__(self, function: Callable[..., Any], fails_at: int | None = None) -> None:
        self.function, self.fails_at = function, fails_at
        self.calls: list[str] = []

    def __call__(self, store: Any, stages: Any, *rest: Any) -> Any:
        if len(self.calls) == self.fails_at:
            raise RuntimeError("the power is gone")
        self.calls.append((stages[0] if isinstance(stages, list) else stages).name)
        return self.function(store, stages, *rest)


def counted(monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> tuple[Counted, Counted]:
    trains, answers = Counted(refine.train), Counted(refine.answer, fails_at)
    monkeypatch.setattr(refine, "train", trains)
    monkeypatch.setattr(refine, "answer", answers)
    return trains, answers


# -- what a run does -----------------------------------------------------------------------------------------------------


def test_a_run_trains_on_what_was_chosen_and_asks_about_it(
    pool: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains, answers = counted(monkeypatch)
    before = [{"use": "random", "budget": 45}]  # so that the selector sees a part of the pool
    job = run(pool, tiny_model, tmp_path / "run", before=before)
    step, ids = step_of(job), kept_ids(job)
    assert len(ids) == 18 and trains.calls == ["diverse-round-1", "diverse-round-2"]
    assert answers.calls == ["diverse-round-1"] * 2 + ["diverse-round-2"] * 3
    first, second, last = step["account"]["rounds"]
    assert (first["asked"], second["asked"], sum(last["chosen"])) == (6, 12, 6)
    for number, (told, rows) in enumerate(zip(step["learner"]["rounds"], (6, 12), strict=True)):
        found = pl.read_parquet([p for p in pieces(job) if f"round-{number + 1}" in str(p)])
        assert sorted(found["id"]) == sorted(ids[:rows]) and told["rows"] == rows
        silent, said = (found.filter(pl.col("reason").is_null() == there) for there in (False, True))
        assert told["unanswered"] == {"no token is in the loss": silent.height} and told["trained_on"] == rows
        assert [one["answered"] for one in (first, second)][number] == said.height > 0 and told["loss"] > 0
        assert silent["gap"].is_null().all() and said["own"].is_not_null().all()
    # the weights of the second round follow from the means of what was found in the first
    answered = pl.read_parquet([p for p in pieces(job) if "round-1" in str(p)]).drop_nulls("gap")
    clusters = pl.read_parquet(f"{job.store.root}/decisions/*.parquet", columns=["id", "cluster"])
    means = dict(answered.join(clusters, on="id").group_by("cluster").agg(pl.col("gap").mean()).iter_rows())
    assert {i: s for i, s in enumerate(first["score"]) if s is not None} == pytest.approx(means, rel=1e-5)

    again = run(pool, tiny_model, tmp_path / "run", before=before)
    assert untimed(step_of(again)) == untimed(step) and len(trains.calls) == 2 and len(answers.calls) == 5


def test_shards_and_workers_change_nothing(
    pool: Path, tiny_model: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(self: Synchronous, tasks: Iterable[Task], *, model: bool = False) -> Iterator[tuple[str, Any]]:
        """Run tasks as a worker would that gets copies, the last one first."""
        for task in list(tasks)[::-1]:
            name, function, args = pickle.loads(pickle.dumps(task))
            yield name, function(*args)

    monkeypatch.setattr(Synchronous, "map", elsewhere)
    cut = run(pool, tiny_model, tmp_path / "cut", shard_rows=5)
    assert kept_ids(cut) == kept_ids(whole)
    assert untimed(step_of(cut))["account"] == untimed(step_of(whole))["account"]
    assert [p.name for p in pieces(cut)] == [p.name for p in pieces(whole)]


def test_what_was_made_serves_whoever_asks_for_the_same(
    pool: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains, answers = counted(monkeypatch)
    run(pool, tiny_model, tmp_path / "run")
    run(pool, tiny_model, tmp_path / "run", step={"budget": 19, "round_rows": 6})  # the same rounds, one row more
    assert len(trains.calls) == 2 and len(answers.calls) == 5
    run(pool, tiny_model, tmp_path / "run", step={"seed": 5})  # as many rows, others
    assert trains.calls.count("diverse-round-1") == 2 and answers.calls.count("diverse-round-1") > 2
    trains.calls.clear()
    answers.calls.clear()
    run(pool, tiny_model, tmp_path / "run", learner={"new_tokens": 3})  # the first adapter serves; other answers
    assert trains.calls.count("diverse-round-1") == 0 and answers.calls.count("diverse-round-1") == 2
    run(pool, tiny_model, tmp_path / "run", learner={"max_tokens": 200}, step={"name": "../a step"})
    assert trains.calls[1:] == ["..-a-step-round-1", "..-a-step-round-2"]  # and a name that no folder has


def test_a_reward_model_judges_the_same_answers(
    pool: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = save_reward_model(tiny_model, tmp_path / "rewards", outputs=1)
    trains, answers = counted(monkeypatch)
    run(pool, tiny_model, tmp_path / "run")
    before = len(answers.calls)
    judged = {"judge": "reward-model", "reward_model": str(rewards)}
    job = run(pool, tiny_model, tmp_path / "run", learner=judged)
    assert answers.calls[before : before + 2] == ["diverse-round-1-rewards"] * 2
    assert trains.calls.count("diverse-round-1") == 1
    found = pl.read_parquet([p for p in pieces(job) if "round-1-rewards" in str(p)])
    told = found.filter(pl.col("reason").is_null())
    assert told.height == step_of(job)["account"]["rounds"][0]["answered"] > 0
    difference = told["given_reward"] - told["own_reward"]
    assert (told["gap"] - difference).abs().max() == 0 and told["gap"].n_unique() > 1
    assert set(found["reason"].drop_nulls()) == {"no token is in the loss"}


# -- stopped and continued -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_run_that_fails_goes_on_where_it_stood(
    fails_at: int, pool: Path, tiny_model: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        trains, answers = counted(patched, fails_at)
        with pytest.raises(StageError, match=r"answer diverse-round-\d piece-\S+: RuntimeError: the power is gone"):
            run(pool, tiny_model, tmp_path / "run")
    done = len(trains.calls), len(answers.calls)
    trains, answers = counted(monkeypatch)
    job = run(pool, tiny_model, tmp_path / "run")
    assert (done[0] + len(trains.calls), done[1] + len(answers.calls)) == (2, 5)
    scores = digests(Path(whole.store.root), "scores")
    assert digests(Path(job.store.root), "scores") == scores and scores
    assert kept_ids(job) == kept_ids(whole) and untimed(step_of(job)) == untimed(step_of(whole))


KILLED = """
import os, signal, sys
from curate.pipelines import refine, worker
from curate.pipelines.run import Run
from curate.recipe import Recipe

write_state, count = worker.write_state, 0

def killed(store, key, state):
    global count
    write_state(store, key, state)
    count += "round" in key
    if count == 3:  # the first epoch of the second round
        os.kill(os.getpid(), signal.SIGKILL)

worker.write_state, refine.PIECE = killed, 4
Run(Recipe.load(sys.argv[1]), sys.argv[2], "sync", quiet=True).execute()
"""


def test_a_process_that_is_killed_in_a_training_keeps_its_epochs(
    pool: Path, tiny_model: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.scorers.learner import Learner

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(document(pool, tiny_model)), encoding="utf-8")  # JSON is YAML
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(recipe), str(tmp_path / "run")], cwd=ROOT, capture_output=True, timeout=300
    )
    assert died.returncode == -9, died.stderr.decode()[-2000:]
    epochs: list[int] = []
    step = Learner.fit_step
    monkeypatch.setattr(Learner, "fit_step", lambda self, i, *rest: epochs.append(i) or step(self, i, *rest))
    job = Run(Recipe.load(recipe), tmp_path / "run", "sync", quiet=True)
    job.execute()
    assert epochs == [1]
    assert kept_ids(job) == kept_ids(whole) and untimed(step_of(job)) == untimed(step_of(whole))


def test_the_ready_made_recipe_means_the_shipped_model(tmp_path: Path) -> None:
    path = tmp_path / "diversify-and-conquer.yaml"
    path.write_text(ready.text("diversify-and-conquer"), encoding="utf-8")
    step = Recipe.load(path, {"seed": 7}).steps[-1]
    assert step.learner is not None and step.learner.model == str(tmp_path / "examples/model")
    assert step.learner.seed == 7 and step.selector.params()["seed"] == 7


# -- what goes wrong -----------------------------------------------------------------------------------------------------


def test_where_no_row_can_be_answered_the_run_stops(pool_of: Pools, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError) as error:
        run(pool_of(list(map(mute, range(30)))), tiny_model, tmp_path / "run")
    assert str(error.value) == (
        "diverse-round-1: not one of 6 rows that were asked about could be answered (6 × no token is in the loss)."
    )


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"learner": None}, "iterative-kmq trains a model between its rounds; add 'learner: {model: …"),
        ({"learner": "gpt2"}, "add 'learner: {model: …, warm_up: {…}}'; found 'gpt2'."),
        ({"learner": {"new_token": 1}}, "unknown key 'select.0.learner.new_token'; did you mean 'new_tokens'?"),
        ({"learner": {"model": "m", "warm_up": {"epoch": 1}}}, "unknown key 'select.0.learner.warm_up.epoch'"),
        ({"learner": {"model": "m", "judge": "reward-model"}}, "a reward_model belongs to judge: reward-model"),
        (
            {"quota": {"by": "source"}},
            "cannot tell how many rows a quota or a budget in tokens will keep; add round_rows",
        ),
        ({"use": "kmq"}, "kmq learns nothing while it chooses; drop 'learner'."),
    ],
)
def test_recipes_that_make_no_sense(step: dict[str, Any], said: str, pool: Path, tiny_model: Path) -> None:
    with pytest.raises(RecipeError) as error:
        made = document(pool, tiny_model)
        made["select"][0] |= step
        made["select"][0] = {k: v for k, v in made["select"][0].items() if step.get("use") != "kmq" or k != "evaluate"}
        Recipe.from_dict(made)
    assert said in str(error.value)


def test_a_model_that_is_not_there_stops_before_anything_runs(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"select step 'diverse': its learner: model .*: no such folder"):
        run(pool, tmp_path / "nowhere", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_plan_mentions_the_rounds(pool: Path, tiny_model: Path, tmp_path: Path) -> None:
    job = Run(Recipe.from_dict(document(pool, tiny_model)), tmp_path / "run", "sync", quiet=True)
    (told,) = plan(job).steps
    assert told.endswith(f"budget 18 rows, in 3 rounds, with {tiny_model} trained after each but the last")
