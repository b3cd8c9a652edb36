"""Quotas in a run: floors and ceilings, by any label, told in the manifest and in the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.exceptions import RecipeError, StageError
from curate.pipelines import ready
from curate.pipelines.run import Run
from curate.pipelines.view import view
from curate.recipe import Recipe
from curate.report.blocks import Table
from curate.report.sections.composition import sections
from tests.conftest import rows_of
from tests.pipelines.helpers import ledger

Pools = Callable[..., Path]
SOURCES = ("a", "a", "a", "a", "a", "a", "b", "b", "b", "c")


def kept(pool: Path, folder: Path, quota: dict[str, Any], **more: Any) -> tuple[dict[str, int], Run]:
    step = {"use": "random", "budget": 40, "quota": {"by": "source", **quota}}
    recipe = Recipe.from_dict({"sources": [{"path": str(pool)}], "select": [step], "report": False, **more})
    job = Run(recipe, folder / "run", "sync", quiet=True)
    job.execute()
    label = quota.get("by", "source").partition(".")[0]
    counts = ledger(job).filter(pl.col("decision") == "kept").group_by(label).len() if label == "source" else None
    return ({} if counts is None else dict(counts.sort("source").iter_rows())), job


@pytest.mark.parametrize(
    ("quota", "counts"),
    [
        ({"shares": "proportional", "floor": 8, "ceiling": "50%"}, {"a": 20, "b": 12, "c": 8}),
        ({"counts": {"c": 3}, "ceilings": {"b": 5}}, {"a": 32, "b": 5, "c": 3}),
        ({"floors": {"c": "90%"}, "short": "take"}, {"a": 10, "b": 10, "c": 20}),
    ],
)
def test_floors_and_ceilings(pool_of: Pools, tmp_path: Path, quota: dict[str, Any], counts: dict[str, int]) -> None:
    found, job = kept(pool_of(rows_of(200, sources=SOURCES)), tmp_path, quota)
    assert found == counts
    (step,) = job.manifest["select"]
    told = {"quota": {"short": {"c": {"asked": 36, "found": 20}}}}
    assert step.get("account") == (told if "short" in quota else None)


def test_how_mixed_it_was_before_and_after(pool_of: Pools, tmp_path: Path) -> None:
    _, job = kept(pool_of(rows_of(200, sources=SOURCES)), tmp_path, {"floor": "30%"})
    mixture = job.manifest["select"][0]["mixture"]["source"]
    assert mixture["before"] == {"values": 3, "entropy": 0.8979, "effective": 2.4546}  # of 0.6, 0.3 and 0.1
    assert mixture["after"]["effective"] > 2.99
    seen = view(job.store)
    (table,) = [
        b for s in sections(seen) for b in s.blocks if isinstance(b, Table) and b.caption.startswith("How mixed")
    ]
    row = next(r for r in table.rows if r[0] == "source")
    assert row[1:7] == [
        3,
        3,
        *(mixture[when][what] for what in ("entropy", "effective") for when in ("before", "after")),
    ]
    assert len(row) == len(table.columns) == 7 + len(seen.baselines)


def test_by_the_labels_of_a_scorer(pool_of: Pools, tmp_path: Path) -> None:
    rows = [{**row, "kind": f"k{i % 4 % 3}"} for i, row in enumerate(rows_of(200))]
    scorers = {"kind": {"use": "label", "column": "kind"}}
    _, job = kept(pool_of(rows), tmp_path, {"by": "kind", "ceilings": {"k0": 10}}, scorers=scorers)
    mixture = job.manifest["select"][0]["mixture"]["kind.label"]
    assert mixture["before"] == {"values": 3, "entropy": 1.0397, "effective": 2.8284}  # of 1/2, 1/4 and 1/4
    assert mixture["after"] == {"values": 3, "entropy": 1.0822, "effective": 2.9512}  # of 10, 15 and 15
    (table,) = [b for s in sections(view(job.store)) for b in s.blocks if isinstance(b, Table) and "mixed" in b.caption]
    row = next(r for r in table.rows if r[0] == "kind.label, 1-random")
    assert row[1:7] == [3, 3, 1.0397, 1.0822, 2.8284, 2.9512] and set(row[7:]) == {None}


def test_what_cannot_be_met_stops_the_run_by_name(pool_of: Pools, tmp_path: Path) -> None:
    pool = pool_of(rows_of(200, sources=SOURCES))
    with pytest.raises(
        StageError, match=r"select step '1-random': Random: the quota asks at least 30 of 'c', which holds 20"
    ):
        kept(pool, tmp_path, {"floors": {"c": 30}})
    with pytest.raises(StageError, match="the quota's floors sum to 60 rows, the budget is 40"):
        kept(pool, tmp_path / "2", {"floor": 20})


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        ({"floor": "much"}, "quota: floor: a count was asked, 'much' was found"),
        ({"counts": {"a": 1}, "floors": {"a": 1}}, r"quota: \['a'\] have a count"),
        ({"floors": 3}, "'select.0.quota.floors': input should be a valid dictionary"),
        ({"flor": 3}, "unknown key 'select.0.quota.flor'; did you mean 'floor'"),
        ({"short": "go"}, "'select.0.quota.short'"),
    ],
)
def test_quotas_are_checked_with_the_recipe(quota: dict[str, Any], said: str) -> None:
    step = {"use": "random", "budget": 40, "quota": quota}
    with pytest.raises(RecipeError, match=said):
        Recipe.from_dict({"sources": [{"path": "p"}], "select": [step]})


def test_the_ready_made_recipe(pool_of: Pools, tmp_path: Path) -> None:
    path = tmp_path / "balanced.yaml"
    path.write_text(ready.text("balanced"), encoding="utf-8")
    pool = pool_of(rows_of(400, sources=("a",) * 34 + ("b",) * 5 + ("c",)))
    job = Run(Recipe.load(path, {"sources.0.path": str(pool), "report": False}), tmp_path / "run", "sync", quiet=True)
    job.execute()
    rows = ledger(job)
    kept = rows.filter(pl.col("decision") == "kept")
    copies, chosen = job.manifest["select"]
    assert copies["use"] == "near-duplicates" and chosen["kept"] == kept.height == 40
    # Two ceilings of 40%, and the rest.
    assert dict(kept.group_by("source").len().iter_rows()) == {"a": 16, "b": 16, "c": 8}
    assert chosen["mixture"]["source"]["after"]["effective"] > chosen["mixture"]["source"]["before"]["effective"]
