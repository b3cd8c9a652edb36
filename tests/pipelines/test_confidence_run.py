"""CLEAR's filter as a run: samples are paid for once, missing parts are told, equal confidences are warned of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from curate import models
from curate.pipelines import ready
from curate.pipelines.run import Run
from curate.pipelines.view import view
from curate.recipe import Recipe, RecipeError
from tests.conftest import conversation, write_jsonl
from tests.models.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model, 11 rows, and one whose answer is too long to be asked about."""
    folder = tmp_path_factory.mktemp("clear")
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    save_tiny_model(folder / "model", config)
    rows = [{"messages": conversation(f"What is {i} and {i}?", f"It is {2 * i}.")} for i in range(11)]
    rows.append({"messages": conversation("Count.", " ".join(map(str, range(600))))})
    write_jsonl(folder / "pool.jsonl", rows)
    (folder / "clear.yaml").write_text(ready.text("clear-filter"), encoding="utf-8")
    yield folder
    models.unload()


def run(place: Path, **changes: Any) -> tuple[Run, list[dict[str, Any]]]:
    model = str(place / "model")
    given = {
        "sources": [{"path": str(place / "pool.jsonl")}],
        "scorers.samples.model": model,
        "scorers.samples.samples": 2,
        "scorers.samples.new_tokens": 5,
        "scorers.reflection.model": model,
        "execution.shard_rows": 5,
    }
    recipe = Recipe.load(place / "clear.yaml", given | {k.replace("__", "."): v for k, v in changes.items()})
    job = Run(recipe, place / "run", "sync", quiet=True)
    job.execute()
    return job, json.loads((place / "run/manifest.json").read_text())["select"]


def test_the_recipe_keeps_the_rows_above_the_median_and_samples_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, (step,) = run(place)
    assert step["kept"] == 6 and step["in"] == 12 and step["reweighted"] == {"confidence": 1} and "warning" not in step
    seen = view(job.store)
    consistency, certainty = seen.values("consistency.consistency"), seen.values("reflection.certainty")
    assert np.isnan(certainty).sum() == 1 and not np.isnan(consistency).any()
    assert not any(
        "answers" in name.partition(".")[2] and "samples" in name for name in seen.columns
    )  # a text is no score

    from curate.models.transformers_lm import TransformersLM

    def no_more(*_: Any) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(TransformersLM, "generate", no_more)
    monkeypatch.setattr(TransformersLM, "option_logprobs", no_more)
    again, (other,) = run(place, scorers__consistency__alpha=0.5, scorers__consistency__similarity="exact")
    assert other["in"] == 12 and np.all(view(again.store).values("consistency.consistency") <= 1)


def test_confidences_that_are_all_equal_are_warned_of(place: Path) -> None:
    only = {"combine__confidence__of": {"consistency": 1.0}, "scorers__consistency__similarity": "exact"}
    _, (strict,) = run(place, **only)
    assert strict["kept"] == 0
    assert strict["warning"] == "all 12 values of confidence are 0: they tell no row from another"
    _, (kept,) = run(place, **only, select__0__ties="keep")
    assert kept["kept"] == 12 and "warning" in kept


def test_only_a_mean_can_be_reweighted(place: Path) -> None:
    with pytest.raises(RecipeError, match="missing: reweight is for the plain mean, whose parts have one unit"):
        run(place, combine__confidence__method="rank")


def test_consistency_names_the_stages_that_have_answers(place: Path) -> None:
    with pytest.raises(RecipeError, match="reads the column 'answers' of a stage, and 'reflection' has none"):
        run(place, scorers__consistency__of="reflection")
