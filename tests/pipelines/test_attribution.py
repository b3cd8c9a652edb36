"""Targets in a run: drawn, looked at by a stage, held against the pool; what the selectors make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.exceptions import RecipeError, RunError, SchemaError, SourceError, StageError
from curate.numerics.attribution import Features, attribute
from curate.pipelines.plan import plan
from curate.pipelines.run import Run
from curate.recipe import Recipe
from curate.scorers.hashed_ngrams import HashedNgrams
from curate.seeding import rng_for
from tests.conftest import conversation, write_jsonl
from tests.pipelines.helpers import computed, kept_ids, ledger

TOPICS = {
    "maths": ["sum", "product", "number", "divide", "apples", "plus", "minus", "times", "equals", "seven"],
    "code": ["def", "return", "list", "string", "loop", "python", "index", "function", "test", "assert"],
    "chat": ["hello", "friend", "story", "weather", "feeling", "music", "travel", "cooking", "summer", "dream"],
}


def rows_about(topic: str, n: int, *, seed: int) -> list[dict[str, Any]]:
    rng = rng_for(seed, "attribution", topic)
    words = [" ".join(rng.choice(TOPICS[topic], size=12)) for _ in range(2 * n)]
    return [
        {"messages": conversation(f"{a} {i}?", f"{b}."), "source": topic}
        for i, (a, b) in enumerate(zip(words[:n], words[n:], strict=True))
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A pool of three topics, mostly chat, and targets of two of them."""
    pool = rows_about("maths", 40, seed=1) + rows_about("code", 40, seed=1) + rows_about("chat", 120, seed=1)
    write_jsonl(tmp_path / "pool.jsonl", pool)
    for topic, n in (("maths", 12), ("code", 7)):
        write_jsonl(tmp_path / f"{topic}.jsonl", rows_about(topic, n, seed=2))
    return tmp_path


def recipe(folder: Path, **changes: Any) -> Recipe:
    document: dict[str, Any] = {
        "name": "influence",
        "sources": [{"path": "pool.jsonl"}],
        "targets": {"sets": {task: {"path": f"{task}.jsonl"} for task in ("maths", "code")}, "rows": 5},
        "scorers": {
            "ngrams": {"use": "hashed-ngrams", "dim": 32, "buckets": 4096},
            "influence": {"use": "attribution", "of": "ngrams"},
        },
        "select": [{"use": "less", "features": "influence", "budget": 40}],
        "report": False,
        "execution": {"shard_rows": 64},
    }
    return Recipe.from_dict({**document, **changes}, folder)


def run(folder: Path, to: str = "run", scheduler: str = "sync", **changes: Any) -> Run:
    job = Run(recipe(folder, **changes), folder / to, scheduler, quiet=True)
    job.execute()
    return job


def influence(job: Run) -> tuple[np.ndarray, list[str | None]]:
    """The matrix and the reasons, in the order of the parts."""
    (folder,) = Path(job.store.root).glob("features/influence-*")
    parts = sorted(folder.glob("*.npy"))
    reasons = [r for f in sorted(folder.glob("*.parquet")) for r in pl.read_parquet(f)["reason"].to_list()]
    return np.concatenate([np.load(part) for part in parts]), reasons


def kept_sources(job: Run) -> dict[str, int]:
    ids = set(kept_ids(job))
    examples = pl.read_parquet(f"{job.store.root}/examples/*.parquet").filter(pl.col("id").is_in(ids))
    return dict(examples["source"].value_counts().iter_rows())


def test_rows_like_the_targets_are_chosen(data: Path) -> None:
    job = run(data)
    kept = kept_sources(job)
    assert kept.get("chat", 0) == 0 and sum(kept.values()) == 40
    told = job.manifest["stages"]["influence"]["targets"]
    assert [(t["task"], t["rows"], t["drawn"], t["rejected"], t["overlap"]) for t in told] == [
        ("maths", 12, 5, 0, 0),
        ("code", 7, 5, 0, 0),
    ]


def test_the_matrix_is_the_cosines_of_both_sides_vectors(data: Path) -> None:
    job = run(data)
    a, reasons = influence(job)
    assert a.shape == (200, 10) and a.dtype == np.float32 and set(reasons) == {None}
    (drawn,) = Path(job.store.root).glob("targets/*.parquet")
    rows = pl.read_parquet(drawn)
    assert rows.height == 19 and rows["group"].to_list() == ["maths"] * 12 + ["code"] * 7
    with np.load(next(Path(job.store.root).glob(".curate/fit/influence-*.npz"))) as state:
        targets, labels = state["targets"], state["labels"].tolist()
    assert labels == ["code"] * 5 + ["maths"] * 5
    vectors = np.concatenate([np.load(f) for f in sorted(Path(job.store.root).glob("features/ngrams-*/*.npy"))])
    expected = vectors.astype(np.float64) @ targets.astype(np.float64).T
    expected /= np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(targets, axis=1)
    assert np.abs(a - expected).max() < 1e-5
    (folder,) = Path(job.store.root).glob("features/ngrams-*")
    assert Features.open(folder).made["d"] == 32
    assert np.array_equal(attribute(folder, targets), a)
    assert isinstance(job.recipe.scorers["ngrams"], HashedNgrams)


@pytest.mark.parametrize("use", ["bids", "round-robin", "less"])
def test_every_selector_takes_the_matrix(data: Path, use: str) -> None:
    job = run(data, select=[{"use": use, "features": "influence", "budget": 20}])
    kept = kept_sources(job)
    assert sum(kept.values()) == 20 and kept.get("chat", 0) == 0
    if use == "round-robin":
        assert kept == {"maths": 10, "code": 10}  # the tasks are the labels: turn by turn


def test_shards_workers_and_order_of_files_change_nothing(data: Path) -> None:
    one = run(data)
    other = run(data, "other", scheduler="local", execution={"shard_rows": 17, "workers": 2})
    assert kept_ids(one) == kept_ids(other)
    rows = (data / "maths.jsonl").read_text().splitlines()
    (data / "maths.jsonl").write_text("\n".join(rows[::-1]) + "\n")
    assert kept_ids(run(data, "again")) == kept_ids(one)


def test_nothing_is_computed_twice_and_other_targets_cost_the_attribution_only(data: Path) -> None:
    run(data)
    before = computed(run(data))
    targets = {"sets": {"code": {"path": "code.jsonl"}}, "rows": 5}
    job = run(data, targets=targets)
    after = computed(job)
    assert after["ngrams"] == before["ngrams"] == 4
    assert after["influence"] == 2 * before["influence"] == 8
    assert influence_columns(job) == {5, 10}
    assert kept_sources(job) == {"code": 40}


def influence_columns(job: Run) -> set[int]:
    return {np.load(f).shape[1] for f in Path(job.store.root).glob("features/influence-*/*.npy")}


def test_a_plan_counts_the_stage_and_loads_nothing(data: Path) -> None:
    job = Run(recipe(data), data / "run", "sync", quiet=True)
    before = {s.name: (s.rows, s.there) for s in plan(job).stages}
    assert before["influence"][1] == 0
    job.execute()
    after = {s.name: (s.rows, s.there) for s in plan(Run(recipe(data), data / "run", "sync")).stages}
    assert after["influence"] == after["ngrams"] == (200, 200)


def test_a_plan_counts_the_warm_up(data: Path, tiny_model: Path) -> None:
    def planned() -> dict[str, tuple[int, int]]:
        job = Run(recipe(data, scorers=with_gradients(tiny_model)), data / "run", "sync")
        return {s.name: (s.rows, s.there) for s in plan(job).stages}

    before = planned()
    assert before["fit gradients"][1] == 0 < before["fit gradients"][0]
    run(data, scorers=with_gradients(tiny_model))
    assert planned()["fit gradients"] == (40, 40) and planned()["gradients"] == (200, 200)


# -- what is asked by both ---------------------------------------------------------------------------------------------


def overlapping(data: Path) -> None:
    """Two rows of the pool that ask what targets ask; one of them is a target that is not drawn."""
    maths = [json.loads(line) for line in (data / "maths.jsonl").read_text().splitlines()]
    extra = [
        {"messages": conversation(m["messages"][0]["content"].upper().replace(" ", "  ") + "!", "42"), "source": "leak"}
        for m in (maths[0], maths[-1])
    ]
    with (data / "pool.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in extra)


def test_rows_that_ask_what_a_target_asks_are_left_out_and_told(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlapping(data)
    job = Run(recipe(data, select=[{"use": "less", "features": "influence", "budget": 200}]), data / "run", "sync")
    job.execute()
    reasons = ledger(job).filter(pl.col("decision") == "dropped")["reason"].to_list()
    assert reasons == ["no influence: it asks what a target of maths asks"] * 2
    assert [t["overlap"] for t in job.manifest["stages"]["influence"]["targets"]] == [2, 0]
    assert "rows of the pool that ask what a target asks were left out: 2 of maths" in capsys.readouterr().err


def test_they_may_be_kept_or_stop_the_run(data: Path) -> None:
    overlapping(data)
    scorers = {"ngrams": {"use": "hashed-ngrams", "dim": 32, "buckets": 4096}}
    keep = {**scorers, "influence": {"use": "attribution", "of": "ngrams", "overlap": "keep"}}
    everything = [{"use": "less", "features": "influence", "budget": "100%"}]
    assert kept_sources(run(data, scorers=keep, select=everything))["leak"] == 2
    stop = {**scorers, "influence": {"use": "attribution", "of": "ngrams", "overlap": "stop"}}
    with pytest.raises(StageError, match="a row of the pool asks what a target of maths asks, and overlap: stop"):
        run(data, "stopped", scorers=stop)


# -- what is wrong -----------------------------------------------------------------------------------------------------


def test_one_target_of_each_is_enough(data: Path) -> None:
    job = run(data, targets={"sets": {"code": {"path": "code.jsonl"}}, "rows": 1})
    assert influence(job)[0].shape == (200, 1) and kept_sources(job).get("chat", 0) == 0


def test_by_default_as_many_as_the_smallest_set_has(data: Path) -> None:
    sets = {task: {"path": f"{task}.jsonl"} for task in ("maths", "code")}
    assert influence(run(data, targets={"sets": sets}))[0].shape == (200, 14)


def test_sets_that_are_too_small_or_empty_or_not_there(data: Path) -> None:
    def with_sets(rows: int | None = None, **sets: str) -> Recipe:
        targets = {"sets": {task: {"path": path} for task, path in sets.items()}, "rows": rows}
        return recipe(data, targets=targets)

    with pytest.raises(RunError, match="targets: 9 rows of each set were asked, 'code' has 7; ask for fewer"):
        Run(with_sets(9, maths="maths.jsonl", code="code.jsonl"), data / "a", "sync", quiet=True).execute()
    write_jsonl(data / "asked.jsonl", [{"messages": conversation("what?", "x")[:1]}])
    with pytest.raises(RunError, match=r"targets of 'asked': no row of .*asked.jsonl can be a target \(no-response"):
        Run(with_sets(1, asked="asked.jsonl"), data / "b", "sync", quiet=True).execute()
    with pytest.raises(SourceError, match="targets of 'gone':"):
        Run(with_sets(1, gone="gone.jsonl"), data / "c", "sync", quiet=True).execute()
    write_jsonl(data / "odd.jsonl", [{"foo": 1}])
    with pytest.raises(SchemaError, match="targets of 'odd':"):
        Run(with_sets(1, odd="odd.jsonl"), data / "d", "sync", quiet=True).execute()


def test_targets_without_a_vector_are_passed_over_or_stop_the_run(data: Path, tiny_model: Path) -> None:
    long = [{"messages": conversation(f"{'why ' * 400}{i}", "because")} for i in range(3)]
    short = rows_about("maths", 3, seed=5)
    write_jsonl(data / "mixed.jsonl", long + short)
    scorers = {
        "states": {"use": "hidden-states", "model": str(tiny_model), "max_tokens": 150},
        "influence": {"use": "attribution", "of": "states"},
    }
    mixed = {"mixed": {"path": "mixed.jsonl"}}
    job = run(data, scorers=scorers, targets={"sets": mixed, "rows": 3})
    (told,) = job.manifest["stages"]["influence"]["targets"]
    assert told["drawn"] == 3 and set(told["passed_over"]) <= {"longer than max_tokens=150"}
    write_jsonl(
        data / "pool.jsonl", [{"messages": conversation("because " * 400, "why")}, *rows_about("chat", 9, seed=1)]
    )
    job = run(data, "reasons", scorers=scorers, targets={"sets": mixed, "rows": 3}, select=[])
    assert {r for r in influence(job)[1] if r} == {"no vector: longer than max_tokens=150"}
    with pytest.raises(StageError, match=r"targets of 'mixed': 4 were asked, 3 of 6 can be looked at \(3 × longer"):
        run(data, "more", scorers=scorers, targets={"sets": mixed, "rows": 4})


def test_recipes_that_cannot_mean_anything(data: Path) -> None:
    scorers = {"ngrams": {"use": "hashed-ngrams"}, "influence": {"use": "attribution", "of": "ngram"}}
    with pytest.raises(RecipeError, match="'ngram' is none; did you mean 'ngrams'"):
        recipe(data, scorers=scorers)
    with pytest.raises(RecipeError, match="'influence' needs targets; add"):
        recipe(data, targets=None)
    with pytest.raises(RecipeError, match=r"unknown key 'targets\.row'"):
        recipe(data, targets={"sets": {"a": {"path": "x"}}, "row": 3})
    with pytest.raises(RecipeError, match=r"unknown key 'targets.sets.a.pth'; did you mean 'path'"):
        recipe(data, targets={"sets": {"a": {"pth": "x"}}})
    chain = {
        "ngrams": {"use": "hashed-ngrams"},
        "a": {"use": "attribution", "of": "ngrams"},
        "b": {"use": "attribution", "of": "a"},
    }
    with pytest.raises(RecipeError, match="'b' reads the vectors of a stage, and 'a' is none"):
        recipe(data, scorers=chain, select=[])


# -- gradients ---------------------------------------------------------------------------------------------------------


def with_gradients(model: Path) -> dict[str, Any]:
    warm_up = {"epochs": 2, "batch": 16, "rate": 0.01, "lora": {"r": 2, "alpha": 4}}
    gradients = {"model": str(model), "sample": "20%", "dims": 128, "warm_up": warm_up}
    return {"gradients": gradients, "influence": {"use": "attribution", "of": "gradients"}}


def test_a_warm_up_that_was_stopped_goes_on_after_its_last_epoch(
    data: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import curate.models.warmup as warmup

    trained: list[int] = []
    train = warmup.train_epoch

    def stopping(model: str, rows: Any, settings: Any, before: Any, **more: Any) -> Any:
        trained.append(0 if before is None else before.steps)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(model, rows, settings, before, **more)

    whole = run(data, "whole", scorers=with_gradients(tiny_model))
    monkeypatch.setattr(warmup, "train_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(data, scorers=with_gradients(tiny_model))
    assert len(list((data / "run/.curate/fit").glob("gradients-*-step-1.npz"))) == 1
    job = run(data, scorers=with_gradients(tiny_model))
    assert trained == [0, 3, 3]  # the second epoch twice, the first once
    assert not list((data / "run/.curate/fit").glob("*-step-*"))
    assert kept_ids(job) == kept_ids(whole)
    assert np.array_equal(influence(job)[0], influence(whole)[0])
    told = job.manifest["stages"]["gradients"]
    assert told["engines"][0]["adapter"] == "2 epochs of warm-up" and told["fingerprint"]
    (stored,) = {np.load(f).dtype.str for f in Path(job.store.root).glob("features/gradients-*/*.npy")}
    assert stored == "<f2"


def test_gradients_on_workers_are_those_of_one_process(data: Path, tiny_model: Path) -> None:
    one = run(data, scorers=with_gradients(tiny_model))
    two = run(data, "two", "local", scorers=with_gradients(tiny_model), execution={"shard_rows": 40, "workers": 2})
    a, b = (influence(job)[0] for job in (one, two))
    assert a.shape == b.shape == (200, 10) and np.abs(a - b).max() < 5e-3  # float16, and batches of other company
    assert len(set(kept_ids(one)) & set(kept_ids(two))) >= 38
