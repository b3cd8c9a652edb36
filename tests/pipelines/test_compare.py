"""Runs compared, against sets counted plainly from their ledgers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.exceptions import InputError, RunDirectoryError
from curate.pipelines.compare import compare, tell, write_page
from curate.pipelines.run import Run
from tests.conftest import rows_of
from tests.pipelines.helpers import run
from tests.test_cli import curate

Pools = Callable[..., Path]
SELECTIONS: dict[str, dict[str, Any]] = {
    "random": {"use": "random", "budget": "30%"},
    "longest": {"use": "longest", "on": "heuristics.response_chars", "budget": "20%"},
    "rated": {"use": "top-k", "on": "rating", "budget": 25},
}


def kept(job: Run) -> set[str]:
    return set(pl.read_parquet(f"{job.store.root}/decisions/*.parquet").filter(decision="kept")["id"])


@pytest.fixture
def jobs(pool_of: Pools, tmp_path: Path) -> list[Run]:
    pool = pool_of([*rows_of(100), rows_of(1)[0]])
    return [run(pool, tmp_path / name, name=name, select=[spec], report=False) for name, spec in SELECTIONS.items()]


def test_overlaps_are_those_of_the_sets(jobs: list[Run]) -> None:
    found = compare([job.store for job in jobs])
    sets = [kept(job) for job in jobs]
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            assert found.overlap[i][j] == len(a & b)
            assert found.jaccard[i][j] == pytest.approx(len(a & b) / len(a | b))
        others = set().union(*(s for s in sets if s is not a))
        assert found.runs[i].alone == len(a - others)
        shown = {s.ledger["id"] for s in found.samples if s.stage == found.runs[i].name}
        assert shown <= a - others and len(shown) == min(40, len(a - others))
    assert [r.name for r in found.runs] == list(SELECTIONS)
    assert found.kept_by_all == len(set.intersection(*sets)) and found.kept_by_any == len(set.union(*sets))
    assert found.same_pool and found.notes == [] and found.in_any_pool == 100


def test_composition_and_scores_are_those_of_the_kept_rows(jobs: list[Run]) -> None:
    found = compare([job.store for job in jobs])
    for i, job in enumerate(jobs):
        ledger = pl.read_parquet(f"{job.store.root}/decisions/*.parquet").filter(decision="kept")
        truth = dict(ledger.group_by("source").len().iter_rows())
        assert {name: n[i] for name, n in found.composition["source"].items() if n[i]} == truth
        assert sum(n[i] for n in found.composition["length"].values()) == ledger.height
        stage = f"rating-{job.manifest['stages']['rating']['fingerprint']}"
        scores = pl.read_parquet(f"{job.store.root}/scores/{stage}/*.parquet").filter(
            pl.col("id").is_in(ledger["id"].to_list())
        )
        (rating,) = (s for s in found.scores if s.name == "rating.value")
        spread = rating.spreads[i]
        assert spread is not None and spread.rows == scores.height
        assert spread.mean == pytest.approx(scores["value"].mean())
        assert spread.quantiles[2] == pytest.approx(scores["value"].median())


def test_pools_that_differ_are_told_and_compared_by_content(pool_of: Pools, tmp_path: Path) -> None:
    """The second pool has 20 of the first one's rows, in another file, order and cut, and 30 of its own."""
    a = run(pool_of(rows_of(50), 1, "a"), tmp_path / "one", name="same", select=[], report=False)
    b = run(
        pool_of(rows_of(80)[30:][::-1], 4, "b"), tmp_path / "two", name="same", select=[], shard_rows=8, report=False
    )
    found = compare([a.store, b.store])
    assert [r.name for r in found.runs] == ["one", "two"]  # one name twice: told apart by their directories
    assert found.overlap == [[50, 20], [20, 50]] and found.jaccard[0][1] == pytest.approx(20 / 80)
    assert not found.same_pool and (found.in_all_pools, found.in_any_pool) == (20, 80)
    assert "The pools differ: of 80 conversations 20 are in all of them." in tell(found)
    assert "The pools differ" in found.notes[0]
    (rating,) = (s for s in found.scores if s.name == "rating.value" and s.of == "one")
    assert [s and s.rows for s in rating.spreads] == [
        50,
        20,
    ]  # of the second run's rows, those that the first one scored


def test_rows_are_matched_whatever_file_and_order_they_came_in(pool_of: Pools, tmp_path: Path) -> None:
    rows = rows_of(60)
    select = [{"use": "top-k", "on": "rating", "budget": 20}]
    a = run(pool_of(rows[:45], 1, "a"), tmp_path / "run-a", name="a", select=select, report=False)
    select = [{"use": "longest", "on": "heuristics.response_chars", "budget": 25}]
    b = run(pool_of(rows[10:][::-1], 3, "b"), tmp_path / "run-b", name="b", select=select, report=False)
    one, two = kept(a), kept(b)
    found = compare([a.store, b.store])
    assert found.overlap[0][1] == len(one & two) and [r.alone for r in found.runs] == [len(one - two), len(two - one)]
    ratings = {}
    for job in (a, b):
        stage = f"rating-{job.manifest['stages']['rating']['fingerprint']}"
        ratings.update(pl.read_parquet(f"{job.store.root}/scores/{stage}/*.parquet").select("id", "value").iter_rows())
    read = set(pl.read_parquet(f"{a.store.root}/decisions/*.parquet")["id"])
    (rating,) = (s for s in found.scores if s.name == "rating.value" and s.of == "a")
    for spread, chosen in zip(rating.spreads, (one, two & read), strict=True):
        assert spread is not None and spread.rows == len(chosen)
        assert spread.mean == pytest.approx(sum(ratings[i] for i in chosen) / len(chosen))


def test_ids_of_the_users_do_not_matter(pool_of: Pools, tmp_path: Path) -> None:
    rows = rows_of(30)
    own = pool_of([{**row, "name": f"row {i}"} for i, row in enumerate(rows)], 1, "own")
    a = run(pool_of(rows), tmp_path / "a", name="a", select=[], report=False)
    b = run(own, tmp_path / "b", name="b", select=[], report=False, sources=[{"path": str(own), "id": "name"}])
    assert compare([a.store, b.store]).overlap == [[30, 30], [30, 30]]


def test_scores_of_another_kind_stand_beside(pool_of: Pools, tmp_path: Path) -> None:
    pool = pool_of([{**row, "other": i} for i, row in enumerate(rows_of(40))])
    scorers = {"value": {"use": "column", "column": "rating"}}
    a = run(pool, tmp_path / "a", name="a", scorers=scorers, select=[], report=False)
    scorers = {"value": {"use": "column", "column": "other"}}
    b = run(pool, tmp_path / "b", name="b", scorers=scorers, select=[], report=False)
    found = compare([a.store, b.store])
    assert [s.name for s in found.scores] == ["value.value", "value.value (b)"]
    assert any("Computed in more than one way" in note and "value.value" in note for note in found.notes)


def test_empty_selections_are_equal(pool_of: Pools, tmp_path: Path) -> None:
    select = [{"use": "random", "budget": 0}]
    jobs = [run(pool_of(rows_of(10)), tmp_path / n, name=n, select=select, report=False) for n in ("a", "b")]
    found = compare([job.store for job in jobs])
    assert found.overlap == [[0, 0], [0, 0]] and found.jaccard == [[1.0, 1.0], [1.0, 1.0]]
    write_page(found, tmp_path / "page.html")


def test_what_cannot_be_compared_is_told(jobs: list[Run], tmp_path: Path) -> None:
    one = jobs[0].store.root
    with pytest.raises(InputError, match="two or more runs were asked, 1 was found; name each run's directory"):
        compare([one])
    with pytest.raises(InputError, match="is named twice; a run is compared with others"):
        compare([one, f"{one}/"])
    with pytest.raises(RunDirectoryError, match="is no run of curate"):
        compare([one, tmp_path])


def test_the_command_prints_tables_and_writes_a_page(jobs: list[Run], tmp_path: Path) -> None:
    roots = [job.store.root for job in jobs]
    done = curate("compare", *roots, "--html", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    assert "both kept (Jaccard)" in done.stdout and f"page       {tmp_path}/page.html" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Runs compared: random · longest · rated" in page and page.count("<figure") > 5
    done = curate("compare", *roots, "--json")
    said = json.loads(done.stdout)
    assert said["overlap"] == compare(roots).overlap and "what is 3 times" not in done.stdout
    done = curate("compare", roots[0])
    assert done.returncode == 2 and "two or more runs were asked" in done.stderr
