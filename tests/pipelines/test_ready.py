"""The ready-made recipes: found, printed, run; and what GRAPE's does with candidates from several generators."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate import models
from curate.exceptions import InputError, StageError
from curate.pipelines import ready
from curate.pipelines.run import Run
from curate.pipelines.view import view
from curate.recipe import Recipe
from curate.selectors.combine import combine
from tests.conftest import ROOT, conversation, rows_of, write_jsonl
from tests.pipelines.helpers import ledger
from tests.test_cli import curate

Pools = Callable[..., Path]
KNOWN = [
    "balanced",
    "bids",
    "clear",
    "clear-filter",
    "decontaminate",
    "dedup",
    "deita",
    "diversify-and-conquer",
    "diversity",
    "donod",
    "grape",
    "ifd",
    "less",
    "rds",
    "review",
    "s3ft",
]


@pytest.fixture(autouse=True, scope="module")
def _unload() -> Iterator[None]:
    yield
    models.unload()


def made(name: str, folder: Path, **changes: Any) -> Recipe:
    """Return a ready-made recipe from a file of one's own, parts of it overruled as by --set."""
    path = folder / f"{name}.yaml"
    path.write_text(ready.text(name), encoding="utf-8")
    return Recipe.load(path, {key.replace("__", "."): value for key, value in changes.items()})


def finished(recipe: Recipe, folder: Path) -> Run:
    job = Run(recipe, folder / "run", "sync", quiet=True)
    job.execute()
    return job


def scores(job: Run) -> pl.DataFrame:
    """The pool's rows with every score, and what became of them."""
    seen = view(job.store)
    columns = {name: seen.values(name) for name in seen.columns}
    rows = ledger(job).filter(pl.col("decision").is_in(["kept", "dropped"]))
    return rows.with_columns(**{name: pl.Series(x) for name, x in columns.items()})


# -- as files ------------------------------------------------------------------------------------------------------------


def test_they_are_listed_and_printed() -> None:
    assert ready.names() == KNOWN
    listed = curate("recipes")
    assert listed.returncode == 0 and [line.split()[0] for line in listed.stdout.splitlines()] == ready.names()
    assert re.search(r"^grape +GRAPE: of several responses to one instruction", listed.stdout, re.MULTILINE)
    printed = curate("recipes", "grape")
    assert printed.stdout == ready.text("grape") == ready.text("grape.yaml")


def test_one_that_is_not_there() -> None:
    with pytest.raises(InputError) as error:
        ready.text("grap")
    assert str(error.value) == (
        f"no ready-made recipe is called 'grap'; did you mean 'grape'? Known: {', '.join(KNOWN)}."
    )
    done = curate("recipes", "grap")
    assert done.returncode == 2 and done.stdout == "" and "did you mean 'grape'?" in done.stderr


def test_a_run_of_one_that_was_not_written_yet_is_told_how(tmp_path: Path) -> None:
    done = curate("run", "ifd.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "no recipe at ifd.yaml; for the ready-made one, 'curate recipes ifd > ifd.yaml' first." in done.stderr


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("donod", "donod"),
        ("grape", "grape"),
        ("ifd", "ifd"),
        ("less", "gradients"),
        ("bids", "gradients"),
        ("rds", "states"),
        ("diversify-and-conquer", "length"),
    ],
)
def test_as_they_stand_they_mean_the_shipped_example(name: str, stage: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    recipe = made(name, tmp_path)
    assert recipe.name == name
    assert recipe.sources[0].path == str(tmp_path / "examples/pool/*.parquet")
    assert recipe.scorers[stage].params()["model"] == str(tmp_path / "examples/model")
    assert ready.about(name).endswith(".") and f"curate run {name}.yaml" in ready.text(name)


# -- as runs -------------------------------------------------------------------------------------------------------------


def test_ifd_keeps_the_most_difficult_tenth_of_what_the_instruction_helps(
    pool_of: Pools, tiny_model: Path, tmp_path: Path
) -> None:
    changes = {"sources__0__path": str(pool_of(rows_of(60))), "scorers__ifd__model": str(tiny_model)}
    rows = scores(finished(made("ifd", tmp_path, **changes), tmp_path))
    good = rows.filter(pl.col("ifd.ifd") <= 1)
    assert 6 <= good.height < rows.height  # some are above 1
    expected = good.sort("ifd.ifd", descending=True).head(6)["id"]
    assert sorted(rows.filter(decision="kept")["id"]) == sorted(expected)


def test_donod_keeps_by_closeness_to_the_best_of_both(pool_of: Pools, tiny_model: Path, tmp_path: Path) -> None:
    """Directions come from the columns: a larger DON and a smaller NOD are better."""
    changes = {"sources__0__path": str(pool_of(rows_of(60))), "scorers__donod__model": str(tiny_model)}
    rows = scores(finished(made("donod", tmp_path, **changes), tmp_path))
    don, nod = rows["donod.don"].to_numpy(), rows["donod.nod"].to_numpy()
    a, b = don / np.sqrt((don**2).sum()) / 2, nod / np.sqrt((nod**2).sum()) / 2
    best = np.hypot(a - a.max(), b - b.min())
    worst = np.hypot(a - a.min(), b - b.max())
    np.testing.assert_allclose(rows["score"].to_numpy(), worst / (best + worst), rtol=1e-9)
    assert sorted(rows.filter(decision="kept")["score"]) == pytest.approx(np.sort(worst / (best + worst))[-18:])
    wrong = combine({"don": don, "nod": nod}, method="topsis")
    assert np.abs(wrong - rows["score"].to_numpy()).max() > 0.1  # the other direction would be seen


GOOD = ["It is {}, as one can see.", "The answer is {}, I think.", "One finds {} after a while."]


def generators(folder: Path) -> list[dict[str, str]]:
    """Write what three sources answer to five prompts; return them as a recipe's sources."""
    asked = [f"What is {i} times {i + 1}?" for i in range(5)]
    said = [[text.format(i * (i + 1)) for i in range(5)] for text in GOOD]
    original = [(asked[i], said[0][i]) for i in range(4)] + [(asked[0], "It is nothing at all, I am sure.")]
    first = list(zip(asked, said[1], strict=True))
    first[1] = (asked[1], "One is a number. Two is a number. And then there is the other one, which")
    second = list(zip(asked, said[2], strict=True))
    second[0] = original[0]  # a copy of another source's response
    second[2] = (asked[2], "it is six and " * 12)
    sources = {"original": original, "model-a": first, "model-b": second}
    out = []
    for name, rows in sources.items():
        path = write_jsonl(folder / f"{name}.jsonl", [{"messages": conversation(p, r)} for p, r in rows])
        out.append({"path": str(path), "name": name})
    return out


def prompts_of(job: Run) -> pl.DataFrame:
    examples = pl.read_parquet(f"{job.store.root}/examples/*.parquet", columns=["id", "prompt_key"])
    return scores(job).join(examples.unique("id"), on="id", how="left")


def best(rows: pl.DataFrame, counts: dict[bytes, int]) -> list[str]:
    out: list[str] = []
    for (key,), mine in rows.filter(pl.col("grape.mean_logprob").is_finite()).group_by("prompt_key"):
        out += mine.sort("grape.mean_logprob", descending=True).head(counts.get(key, 0))["id"].to_list()
    return sorted(out)


def test_grape_chooses_among_generators(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"sources": generators(tmp_path), "scorers__grape__model": str(tiny_model)}
    job = finished(made("grape", tmp_path, **changes), tmp_path)
    whole = ledger(job)
    (copy,) = whole.filter(decision="duplicate").iter_rows(named=True)
    assert copy["source"] == "model-b" and copy["id"] == whole.filter(source="original")["id"][0]
    rows = prompts_of(job)
    assert rows["prompt_key"].n_unique() == 5 and rows.height == 14
    unscored = rows.filter(pl.col("grape.mean_logprob").is_nan())
    assert sorted(unscored["reason"]) == [
        "no grape: cut off: the last sentence has no end, unlike those before it",
        "no grape: repetitive: above 0.5 of its trigrams occurred before",
    ]
    kept = rows.filter(decision="kept")
    assert kept["prompt_key"].n_unique() == kept.height == 5
    assert sorted(kept["id"]) == best(rows, dict.fromkeys(rows["prompt_key"], 1))


def test_as_many_as_the_prompt_had_in_the_original(tiny_model: Path, tmp_path: Path) -> None:
    """Two for the first prompt, none for the last, one for the others: the original's own counts, copies once."""
    select = [{"use": "best-per-prompt", "on": "grape", "as_in": "original"}]
    changes = {"sources": generators(tmp_path), "scorers__grape__model": str(tiny_model), "select": select}
    job = finished(made("grape", tmp_path, **changes), tmp_path)
    rows = prompts_of(job)
    counts = dict(rows.filter(source="original").group_by("prompt_key").len().iter_rows())
    assert sorted(counts.values()) == [1, 1, 1, 2]
    assert sorted(rows.filter(decision="kept")["id"]) == best(rows, counts)
    for baseline in view(job.store).baselines[2:]:  # of each prompt as many
        chosen = rows.filter(pl.Series(baseline.chosen))
        assert dict(chosen.group_by("prompt_key").len().iter_rows()) == counts
    left = rows.filter(~pl.col("prompt_key").is_in(list(counts)))
    assert set(left["reason"]) == {"its prompt has no response in original"} and left.height == 2


def test_what_the_original_had_is_counted_before_any_step(tiny_model: Path, tmp_path: Path) -> None:
    """The original's responses are all dropped first; every prompt still keeps as many as it had there."""
    select = [
        {"use": "threshold", "on": "length.response_chars", "max": 26},
        {"use": "best-per-prompt", "on": "length.response_chars", "as_in": "original"},
    ]
    sources = [
        {"path": str(write_jsonl(tmp_path / f"{name}.jsonl", [{"messages": conversation("Why?", r)} for r in said])), "name": name}
        for name, said in {"original": ["x" * 30, "y" * 40], "other": ["a" * 10, "b" * 20, "c" * 25]}.items()
    ]  # fmt: skip
    scorers = {"length": {"use": "text-heuristics"}}
    job = finished(Recipe(name="counts", sources=sources, scorers=scorers, select=select, report=False), tmp_path)
    kept = ledger(job).filter(decision="kept")
    assert sorted(kept["score"]) == [20, 25]


def test_an_original_that_is_not_there(tiny_model: Path, tmp_path: Path) -> None:
    select = [{"use": "best-per-prompt", "on": "grape", "as_in": "orignal"}]
    changes = {"sources": generators(tmp_path), "scorers__grape__model": str(tiny_model), "select": select}
    with pytest.raises(StageError) as error:
        finished(made("grape", tmp_path, **changes), tmp_path)
    assert str(error.value) == (
        "select step '1-best-per-prompt': no row of the pool is from 'orignal'; its sources are model-a, model-b, "
        "original."
    )


def test_the_report_says_how_length_and_scores_moved(tiny_model: Path, tmp_path: Path) -> None:
    from curate.report.sections import sections

    changes = {"sources": generators(tmp_path), "scorers__grape__model": str(tiny_model)}
    job = finished(made("grape", tmp_path, **changes), tmp_path)
    seen = view(job.store)
    names = [b.name for b in seen.baselines]
    assert names == ["random", "longest", "random of each prompt", "longest of each prompt"]
    rows = prompts_of(job)
    for baseline in seen.baselines[2:]:
        assert rows.filter(pl.Series(baseline.chosen))["prompt_key"].n_unique() == 5 == baseline.chosen.sum()
    mine = rows.with_columns(chosen=pl.Series(seen.baselines[3].chosen))
    able = mine.filter(pl.col("grape.tokens").is_finite())  # those that were counted
    longest = able.group_by("prompt_key").agg(pl.col("grape.tokens").max())
    assert sorted(mine.filter("chosen")["grape.tokens"]) == sorted(longest["grape.tokens"])
    titles = [s.title for s in sections(seen)[0]]
    assert "Length of what is kept" in titles and "How the scores go together" in titles
