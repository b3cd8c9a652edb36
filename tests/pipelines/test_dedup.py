"""Near-duplicates and leaks in a run: what is kept, what stands for what, and what the ledger shows of it."""

import json

import numpy as np
import polars as pl
import pytest

from curate.exceptions import StageError
from tests.pipelines.helpers import kept_ids, ledger, run

WORDS = "the quick brown fox jumps over one lazy dog while seven old owls sleep in the tall dark tree near a still lake"


def write(path, rows):
    with path.open("w") as out:
        for prompt, response in rows:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            out.write(json.dumps({"messages": turns}) + "\n")
    return path


@pytest.fixture
def pool(tmp_path):
    """A text with a near copy that says more, an exact copy, a text of its own, and one without any words."""
    own = "completely other words about mountains, rivers, bread, music and the price of a ticket to the moon"
    rows = [
        ("Tell it.", f"{WORDS} and nothing else happens there at all on that long quiet evening"),
        ("Tell it.", f"{WORDS} and nothing else happens there at all on that long quiet evening indeed"),
        ("Tell it.", f"{WORDS} and nothing else happens there at all on that long quiet evening"),
        ("Say it.", own),
        ("…", "!"),
    ]
    return write(tmp_path / "pool.jsonl", rows)


SCORERS = {
    "signatures": {"use": "minhash"},
    "heuristics": {"use": "text-heuristics"},
}
STEP = {"use": "near-duplicates", "features": "signatures", "quality": "heuristics.response_words"}


@pytest.mark.parametrize("shard_rows", [1, 64])
def test_the_better_copy_stays_and_is_named(pool, tmp_path, shard_rows):
    job = run(pool, tmp_path / "run", scorers=SCORERS, select=[STEP], shard_rows=shard_rows)
    rows = ledger(job).sort("row").to_dicts()
    assert [r["decision"] for r in rows] == ["dropped", "kept", "duplicate", "kept", "dropped"]
    assert rows[0]["duplicate_of"] == rows[1]["id"]
    assert rows[2]["duplicate_of"] == rows[0]["id"]  # to the letter, of a row that is itself a near copy
    assert rows[0]["score"] >= 0.8 and rows[0]["threshold"] == 0.8
    assert rows[3]["duplicate_of"] is None
    assert rows[4]["reason"].startswith("no signatures: ")


def test_a_row_without_a_signature_changes_no_type(pool, tmp_path):
    job = run(pool, tmp_path / "run", scorers=SCORERS, select=[STEP])
    (stage,) = job.store.list("features")
    (file,) = (tmp_path / "run/features" / stage).glob("*.npy")
    stored = np.load(file)
    assert stored.dtype == np.uint32 and not stored[-1].any() and stored[0].any()


def test_a_leak_is_shown_in_the_ledger(pool, tmp_path):
    test = write(tmp_path / "test.jsonl", [(f"Is it so that {WORDS.upper()}?", "yes")])
    select = [{"use": "threshold", "on": "leaks", "max": 0}]
    more = {"benchmarks": {"owls": {"path": str(test)}}, "scorers": {"leaks": {"use": "contamination"}}}
    job = run(pool, tmp_path / "run", select=select, **more)
    rows = ledger(job).filter(pl.col("decision") == "dropped")
    assert rows.height == 2 and rows["reason"].str.contains("owls").all()
    assert rows["reason"].str.contains("quick brown fox jumps over one lazy dog").all()
    other = write(
        tmp_path / "test.jsonl", [("Something else is asked here, at some length, about a very old tower", "no")]
    )
    again = run(
        pool, tmp_path / "run", select=select, benchmarks={"owls": {"path": str(other)}}, scorers=more["scorers"]
    )
    assert len(kept_ids(again)) == 4  # other benchmarks, other scores


def test_a_pool_of_leaks_alone(tmp_path):
    text = f"{WORDS} again"
    pool = write(tmp_path / "pool.jsonl", [(text, str(i)) for i in range(3)])
    more = {
        "benchmarks": {"owls": {"path": str(pool)}},
        "scorers": {"leaks": {"use": "contamination"}},
        "select": [{"use": "threshold", "on": "leaks", "max": 0}],
    }
    job = run(pool, tmp_path / "run", **more)
    assert job.manifest["decisions"] == {"dropped": 3} and kept_ids(job) == []
    with pytest.raises(StageError, match="of which 0 may be chosen"):
        steps = [{"use": "threshold", "on": "leaks", "max": 0, "budget": 1}]
        run(pool, tmp_path / "other", **more | {"select": steps})


def test_scores_towards_targets_that_are_there_already(pool, tmp_path):
    """A stage that learned from targets knows how many columns it has, though nothing of it is computed any more."""
    write(tmp_path / "pool.jsonl", [(f"Say {word} twice.", f"{word} {word}") for word in WORDS.split()])
    target = write(tmp_path / "target.jsonl", [("Who sleeps in the tree?", "owls sleep"), ("Who jumps?", "a fox")])
    more = {
        "targets": {"sets": {"animals": {"path": str(target)}}},
        "scorers": {"bm25": {"use": "bm25"}, "dsir": {"use": "dsir"}},
    }

    def choose(budget):
        step = {"use": "round-robin", "features": "bm25", "budget": budget}
        return run(pool, tmp_path / "run", select=[step], **more)

    first = kept_ids(choose(4))
    job = choose(2)
    assert kept_ids(job) == first[:2]
    assert [stage["computed_now"] for stage in job.manifest["stages"].values()] == [0, 0]
    assert job.manifest["stages"]["bm25"]["targets"][0]["drawn"] == 2
