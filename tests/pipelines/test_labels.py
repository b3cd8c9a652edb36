"""Labels, evidence, and rows that stand for others: from a scorer's columns to the choice and the ledger."""

import json

import polars as pl
import pytest

from curate.exceptions import RecipeError
from tests.pipelines.helpers import kept_ids, ledger, recipe, run


@pytest.fixture
def pool(tmp_path):
    """60 rows of three tasks; every fifth has none."""
    file = tmp_path / "pool.jsonl"
    with file.open("w") as out:
        for i in range(60):
            row = {
                "messages": [
                    {"role": "user", "content": f"What is {i} and {i}?"},
                    {"role": "assistant", "content": f"It is {2 * i}."},
                ],
                "rating": i,
            }
            if i % 5:
                row["topic"] = "abc"[i % 3]
            out.write(json.dumps(row) + "\n")
    return file


SCORERS = {
    "rating": {"use": "column", "column": "rating"},
    "topic": {"use": "label", "column": "topic"},
}


def tasks(job):
    """Task → rows kept, from the run's own scores."""
    kept = set(kept_ids(job))
    (stage,) = [p for p in job.store.list("scores") if p.startswith("topic-")]
    labels = pl.read_parquet(f"{job.store.root}/scores/{stage}/*.parquet").filter(pl.col("id").is_in(kept))
    return dict(labels.group_by(pl.col("label").fill_null("(none)")).len().iter_rows())


@pytest.mark.parametrize("by", ["topic", "topic.label"])
def test_a_quota_by_a_label(pool, tmp_path, by):
    step = {"use": "top-k", "on": "rating", "budget": 20, "quota": {"by": by}}
    job = run(pool, tmp_path / "run", scorers=SCORERS, select=[step], shard_rows=7)
    assert tasks(job) == {"a": 5, "b": 5, "c": 5, "(none)": 5}
    whole = run(pool, tmp_path / "other", scorers=SCORERS, select=[step])
    assert kept_ids(whole) == kept_ids(job)


def test_groups_by_a_label(pool, tmp_path):
    step = {"use": "best-per-prompt", "on": "rating", "groups": "topic", "per_prompt": 2}
    job = run(pool, tmp_path / "run", scorers=SCORERS, select=[step])
    assert tasks(job) == {"a": 2, "b": 2, "c": 2, "(none)": 2}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            {"quota": {"by": "topics"}},
            r"'topics' tells no groups of rows; did you mean 'topic\.label'\? What does: source",
        ),
        ({"quota": {"by": "rating.value"}}, "'rating.value' tells no groups"),
        ({"on": "topic"}, "'topic' is a text; a score column was asked"),
    ],
)
def test_what_is_no_label_and_what_is_no_score(pool, step, words):
    with pytest.raises(RecipeError, match=words):
        recipe(pool, scorers=SCORERS, select=[{"use": "top-k", "on": "rating", "budget": 5, **step}])


def test_the_ledger_of_labels_is_like_any_other(pool, tmp_path):
    job = run(pool, tmp_path / "run", scorers=SCORERS, select=[{"use": "top-k", "on": "rating", "budget": 9}])
    rows = ledger(job)
    assert rows.height == 60 and rows["duplicate_of"].null_count() == 60


def test_a_selector_that_takes_rows_by_quality_asks_for_it_early(pool):
    scorers = {**SCORERS, "ngrams": {"use": "hashed-ngrams"}}
    with pytest.raises(RecipeError, match="repr-filter takes rows by a score; add 'quality: SCORER' "):
        recipe(pool, scorers=scorers, select=[{"use": "repr-filter", "features": "ngrams", "budget": 5}])


def test_signatures_are_no_vectors_and_vectors_no_signatures(pool):
    scorers = {"ngrams": {"use": "hashed-ngrams"}, "signatures": {"use": "minhash"}}
    steps = [{"use": "near-duplicates"}, {"use": "kmq", "budget": 5}]  # each finds its own
    made = recipe(pool, scorers=scorers, select=steps)
    assert [step.features for step in made.steps] == ["signatures", "ngrams"]
    with pytest.raises(RecipeError, match="kmq needs features: one of ngrams; found 'signatures'"):
        recipe(pool, scorers=scorers, select=[{"use": "kmq", "features": "signatures", "budget": 5}])
    del scorers["signatures"]
    with pytest.raises(
        RecipeError, match=r"needs digests or signatures: one of \(this recipe has no scorer that makes"
    ):
        recipe(pool, scorers=scorers, select=[{"use": "near-duplicates"}])
