from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest

from curate.exceptions import RunError, SchemaError, StageError
from curate.pipelines.run import Run
from tests.conftest import conversation, rows_of, write_jsonl
from tests.pipelines.helpers import SCORERS, computed, digests, kept_ids, ledger, recipe, run

PoolOf = Callable[..., Path]


def messy(n: int = 300) -> list[dict[str, Any]]:
    """Rows with copies, broken rows and rows without a score."""
    rows: list[dict[str, Any]] = rows_of(n)
    rows[7] = dict(rows[3])  # copies
    rows[n - 1] = {**rows[3], "source": "c"}
    rows[11]["messages"] = conversation("No answer to this.", "  ")
    rows[12]["messages"] = [{"role": "user", "content": "only a question"}]
    rows[20]["rating"] = None
    return rows


def test_every_input_row_ends_in_the_ledger_once(pool_of: PoolOf, tmp_path: Path) -> None:
    job = run(pool_of(messy(), 3), tmp_path / "run")
    table = ledger(job)
    assert table.height == 300
    assert table.select("file", "row", "part").is_unique().all()
    counts = dict(table.group_by("decision").len().iter_rows())
    assert counts == {"kept": 59, "dropped": 237, "duplicate": 2, "rejected": 2}
    assert job.manifest["rows"] == {"input": 300, "examples": 298, "rejected": 2, "duplicates": 2, "pool": 296}
    assert table["reason"].null_count() == 0
    assert kept_ids(job)[0] in set(table["id"])
    assert table.filter(pl.col("decision") == "kept")["order"].sort().to_list() == list(range(59))


def test_reasons_name_the_cause(pool_of: PoolOf, tmp_path: Path) -> None:
    job = run(pool_of(messy()), tmp_path / "run")
    table = ledger(job)
    rejected = table.filter(pl.col("decision") == "rejected").sort("row")
    assert [r.partition(":")[0] for r in rejected["reason"]] == ["empty-response", "no-response"]
    copy = table.filter(pl.col("row") == 7).row(0, named=True)
    first = table.filter(pl.col("row") == 3).row(0, named=True)
    assert (copy["decision"], copy["stage"], copy["duplicate_of"]) == ("duplicate", "dedup", first["id"])
    unscored = table.filter(pl.col("row") == 20).row(0, named=True)
    assert (
        unscored["decision"] == "dropped" and unscored["reason"].startswith("no rating: ") and unscored["score"] is None
    )
    beyond = table.filter(
        (pl.col("decision") == "dropped") & pl.col("reason").str.contains("^cluster [0-9]+, [0-9]+ of [0-9]+ kept: ")
    )
    assert beyond.height > 200 and beyond["cluster"].null_count() == 0


def test_the_dataset_holds_training_columns_only_and_is_read_by_others(pool_of: PoolOf, tmp_path: Path) -> None:
    job = run(pool_of(messy()), tmp_path / "run", output={"shard_rows": 25})
    files = sorted(p.name for p in (tmp_path / "run/dataset").iterdir())
    assert files == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    loaded = datasets.load_dataset(str(tmp_path / "run/dataset"), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.column_names == ["messages"]
    assert loaded[0]["messages"][0].keys() == {"role", "content"}
    assert pl.read_parquet(tmp_path / "run/dataset/*.parquet").height == len(loaded) == 59
    twins = pl.read_parquet(tmp_path / "run/provenance/*.parquet")
    assert twins.height == 59 and "heuristics.repetition" in twins.columns
    examples = pl.read_parquet(tmp_path / "run/examples/*.parquet").rows_by_key("id", named=True)
    for messages, id_ in zip(loaded["messages"], twins["id"], strict=True):
        assert [m["content"] for m in messages] == [m["content"] for m in examples[id_][0]["messages"]]
    assert set(twins["id"]) == set(kept_ids(job))


def test_scores_are_sidecars_row_by_row(pool_of: PoolOf, tmp_path: Path) -> None:
    run(pool_of(messy()), tmp_path / "run")
    scores = sorted((tmp_path / "run/scores").glob("rating-*/*.parquet"))
    parts = sorted((tmp_path / "run/examples").glob("*.parquet"))
    assert [p.name for p in scores] == [p.name for p in parts]
    seen: set[str] = set()
    for a, b in zip(scores, parts, strict=True):
        examples = pl.read_parquet(b)
        fresh = [i not in seen and not seen.add(i) for i in examples["id"]]  # copies, in any part, have no score
        expected = examples.filter(pl.Series(fresh))
        scored = pl.read_parquet(a)
        assert scored["id"].to_list() == expected["id"].to_list()
        assert scored["value"].to_list() == [json.loads(e or "{}").get("rating") for e in expected["extra"]]


@pytest.mark.parametrize("shards", [1, 7, 64])
def test_shards_change_nothing(shards: int, pool_of: PoolOf, tmp_path: Path) -> None:
    rows = rows_of(200)
    one = run(pool_of(rows, 1, "one"), tmp_path / "a", shard_rows=1000)
    many = run(pool_of(rows, shards, "many"), tmp_path / "b", shard_rows=31)
    assert kept_ids(one) == kept_ids(many)
    for mine, theirs in ((one, many), (many, one)):
        assert set(ledger(mine)["id"]) == set(ledger(theirs)["id"])
    assert digests(tmp_path / "a", "dataset") == digests(tmp_path / "b", "dataset")  # byte for byte


def test_the_order_of_the_rows_changes_no_choice(pool_of: PoolOf, tmp_path: Path) -> None:
    rows = rows_of(150)
    a = run(pool_of(rows, 2, "a"), tmp_path / "ra")
    b = run(pool_of(rows[::-1], 3, "b"), tmp_path / "rb")
    assert kept_ids(a) == kept_ids(b)


def test_a_second_run_computes_nothing(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(messy(), 3)
    first = run(pool, tmp_path / "run")
    before, files = computed(first), digests(tmp_path / "run", "scores", "features", "decisions", "dataset")
    second = run(pool, tmp_path / "run")
    assert computed(second) == before
    assert digests(tmp_path / "run", "scores", "features", "decisions", "dataset") == files
    assert second.manifest["decisions"] == first.manifest["decisions"]
    assert all(s["computed_now"] == 0 for s in second.manifest["stages"].values())


def test_another_budget_computes_no_score(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(messy(), 3)
    before = computed(run(pool, tmp_path / "run"))
    steps = [{"use": "kmq", "features": "ngrams", "clusters": 8, "budget": 10}]
    job = run(pool, tmp_path / "run", select=steps)
    assert computed(job) == before
    assert len(kept_ids(job)) == 10


def test_one_more_scorer_computes_only_that_one(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(messy(), 3)
    before = computed(run(pool, tmp_path / "run"))
    more = {**SCORERS, "again": {"use": "text-heuristics"}}
    after = computed(run(pool, tmp_path / "run", scorers=more))
    assert {k: v for k, v in after.items() if k != "again"} == before
    assert after["again"] == before["heuristics"]


def test_a_changed_parameter_is_computed_afresh_and_back_again_is_cached(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(rows_of(100))
    before = computed(run(pool, tmp_path / "run"))
    changed = {**SCORERS, "ngrams": {"use": "hashed-ngrams", "dim": 8}}
    after = computed(run(pool, tmp_path / "run", scorers=changed))
    assert after["ngrams"] == 2 * before["ngrams"] and after["rating"] == before["rating"]
    assert computed(run(pool, tmp_path / "run")) == after


def test_a_new_file_costs_only_itself(pool_of: PoolOf, tmp_path: Path) -> None:
    rows = rows_of(200)
    pool = pool_of(rows[:128], 1)
    scorers = {k: v for k, v in SCORERS.items() if k != "ngrams"}
    steps = [{"use": "top-k", "on": "rating", "budget": 5}]
    before = computed(run(pool, tmp_path / "run", scorers=scorers, select=steps))
    write_jsonl(pool / "zz.jsonl", rows[128:180])
    after = computed(run(pool, tmp_path / "run", scorers=scorers, select=steps))
    assert after["rating"] == before["rating"] + 1


def test_a_renamed_file_is_read_again_but_not_scored_again(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(rows_of(100))
    before = computed(run(pool, tmp_path / "run"))
    next(pool.iterdir()).rename(pool / "other.parquet")
    after = computed(run(pool, tmp_path / "run"))
    assert after["read"] == before["read"] + 1
    assert {k: v for k, v in after.items() if k != "read"} == {k: v for k, v in before.items() if k != "read"}


def test_a_token_budget(pool_of: PoolOf, tmp_path: Path) -> None:
    cost = "heuristics.response_words"
    job = run(pool_of(rows_of(200)), tmp_path / "run", select=[{"use": "random", "budget": "400 tokens", "cost": cost}])
    step = job.manifest["select"][0]
    words = pl.read_parquet(tmp_path / "run/provenance/*.parquet")[cost]
    assert words.sum() == step["tokens"] <= 400
    assert step["tokens"] + words.max() > 400  # a prefix: at most one row's cost is left unspent


def test_a_quota_by_source(pool_of: PoolOf, tmp_path: Path) -> None:
    rows = rows_of(200, sources=("a", "a", "a", "b"))
    job = run(pool_of(rows), tmp_path / "run", select=[{"use": "random", "budget": 40, "quota": {"by": "source"}}])
    kept = ledger(job).filter(pl.col("decision") == "kept")
    assert dict(kept.group_by("source").len().iter_rows()) == {"a": 20, "b": 20}


def test_best_response_per_prompt(tmp_path: Path) -> None:
    rows = [
        {"messages": conversation(f"q{i}", f"answer {j} to {i}"), "rating": (i * 7 + j * 3) % 5 + j / 10}
        for i in range(20)
        for j in range(3)
    ]
    write_jsonl(tmp_path / "pool/x.jsonl", rows)
    job = run(
        tmp_path / "pool",
        tmp_path / "run",
        scorers={"rating": SCORERS["rating"]},
        select=[{"use": "best-per-prompt", "on": "rating"}],
    )
    kept = set(ledger(job).filter(pl.col("decision") == "kept")["row"])
    best = {max(range(3 * i, 3 * i + 3), key=lambda r: rows[r]["rating"]) for i in range(20)}
    assert kept == best
    lost = ledger(job).filter(pl.col("decision") == "dropped")["reason"].unique().to_list()
    assert lost == ["another response to the same prompt came before it"]


def test_the_first_rows_only(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(messy(), 4)
    job = Run(recipe(pool, select=[]), tmp_path / "run", "sync", limit=90, quiet=True)
    job.execute()
    assert job.manifest["rows"]["input"] == 90
    table = ledger(job).sort("file", "row")
    assert table.height == 90 and table["file"].n_unique() == 2
    full = Run(recipe(pool, select=[]), tmp_path / "run", "sync", quiet=True)
    full.execute()
    assert ledger(full).height == 300
    less = Run(recipe(pool, select=[]), tmp_path / "run", "sync", limit=20, quiet=True)
    less.execute()
    assert ledger(less).height == 20
    assert pl.read_parquet(tmp_path / "run/examples/*.parquet").height == less.manifest["rows"]["examples"]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_the_first_rows_of_a_file_whose_length_is_a_guess(suffix: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {i}? " + "x" * (i % 50), "completion": f"it is {i}"} for i in range(500)]
    for n in range(3):
        path = tmp_path / "pool" / f"{n}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        piece = [{**r, "prompt": f"{n} {r['prompt']}"} for r in rows]
        path.write_text(json.dumps(piece)) if suffix == "json" else pl.DataFrame(piece).write_csv(path)
    job = Run(recipe(tmp_path / "pool", scorers={}, select=[]), tmp_path / "run", "sync", limit=700, quiet=True)
    job.execute()
    assert job.manifest["rows"]["input"] == 700


def test_without_steps_every_example_is_kept(pool_of: PoolOf, tmp_path: Path) -> None:
    job = run(pool_of(messy()), tmp_path / "run", select=[], scorers={})
    assert job.manifest["decisions"] == {"duplicate": 2, "kept": 296, "rejected": 2}


def test_a_budget_larger_than_the_pool(pool_of: PoolOf, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"select step '1-random': Random: k=500 rows asked of a pool of n=50"):
        run(pool_of(rows_of(50)), tmp_path / "run", select=[{"use": "random", "budget": 500}])
    job = run(pool_of(rows_of(50)), tmp_path / "run", select=[{"use": "random", "budget": 5}])  # the directory is fine
    assert len(kept_ids(job)) == 5


def test_nulls_can_stop_the_run(pool_of: PoolOf, tmp_path: Path) -> None:
    step = {"use": "top-k", "on": "rating", "budget": 5, "nulls": "stop"}
    with pytest.raises(StageError, match=r"1 rows have no rating\.\w+ \(1 × no rating: .*nulls: stop was asked"):
        run(pool_of(messy()), tmp_path / "run", select=[step])


def test_a_score_that_no_row_has(pool_of: PoolOf, tmp_path: Path) -> None:
    scorers = {"nothing": {"use": "column", "column": "nowhere"}}
    with pytest.raises(StageError, match="nothing: not one of 50 rows could be scored"):
        run(
            pool_of(rows_of(50)),
            tmp_path / "run",
            scorers=scorers,
            select=[{"use": "top-k", "on": "nothing", "budget": 5}],
        )


def test_nan_ratings_are_unscored_rows(tmp_path: Path) -> None:
    rows = rows_of(30)
    text = "".join(json.dumps({**r, "rating": float("nan")} if i % 3 == 0 else r) + "\n" for i, r in enumerate(rows))
    (tmp_path / "pool.jsonl").write_text(text)
    job = run(
        tmp_path / "pool.jsonl",
        tmp_path / "run",
        scorers={"rating": SCORERS["rating"]},
        select=[{"use": "top-k", "on": "rating", "budget": 20}],
    )
    dropped = ledger(job).filter(pl.col("decision") == "dropped")
    assert sorted(dropped["row"]) == list(range(0, 30, 3))
    assert all(r.startswith("no rating: ") for r in dropped["reason"])


def test_clashing_ids_stop_before_anything_is_scored(tmp_path: Path) -> None:
    rows = [{**r, "key": i % 10} for i, r in enumerate(rows_of(20))]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    with pytest.raises(
        SchemaError, match=r"the id '0' names two different conversations .*pool.jsonl row 0.*row 10.*10 ids clash"
    ):
        run(tmp_path / "x", tmp_path / "run", sources=[{"path": str(tmp_path / "pool.jsonl"), "id": "key"}])


def test_own_ids_are_used(tmp_path: Path) -> None:
    rows = [{**r, "key": f"row-{i}"} for i, r in enumerate(rows_of(20))]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    sources = [{"path": str(tmp_path / "pool.jsonl"), "id": "key"}]
    job = run(tmp_path / "x", tmp_path / "run", sources=sources, scorers={}, select=[{"use": "random", "budget": 3}])
    assert set(ledger(job)["id"]) == {f"row-{i}" for i in range(20)}


def test_an_empty_pool(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text("")
    with pytest.raises(RunError, match=r"no examples: 0 rows were read"):
        run(tmp_path / "pool.jsonl", tmp_path / "run", scorers={}, select=[])


def test_a_broken_shard_stops_and_a_mended_one_goes_on(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(rows_of(300), 3)
    files = sorted(pool.iterdir())
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=rf"{files[1].name}.*Parquet") as caught:
        run(pool, tmp_path / "run")
    assert getattr(caught.value, "exit_code", None) == 2
    files[1].write_bytes(whole)
    assert len(kept_ids(run(pool, tmp_path / "run"))) == 60


def test_a_memory_filesystem_serves_as_run_directory(pool_of: PoolOf, tmp_path: Path) -> None:
    pool = pool_of(rows_of(100))
    local = run(pool, tmp_path / "run")
    job = Run(recipe(pool), f"memory://{tmp_path.name}/run", "sync", quiet=True)
    job.execute()
    names = job.store.list("dataset")
    assert names == ["train-00000-of-00001.parquet"]
    assert job.store.read_bytes("dataset", names[0]) == (tmp_path / "run/dataset" / names[0]).read_bytes()
    assert local.manifest["decisions"] == job.manifest["decisions"]


def test_features_are_stored_in_step_with_their_ids(pool_of: PoolOf, tmp_path: Path) -> None:
    run(pool_of(rows_of(100)), tmp_path / "run")
    for file in (tmp_path / "run/features").glob("*/*.npy"):
        vectors = np.load(file, mmap_mode="r")
        assert vectors.dtype == np.float32
        assert vectors.shape == (pl.read_parquet(file.with_suffix(".parquet")).height, 16)
