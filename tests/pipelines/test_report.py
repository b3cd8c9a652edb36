"""The report of a run: when it is written, what its numbers are, and what happens when it cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.exceptions import InputError, RunDirectoryError
from curate.pipelines.ledger import kind_of
from curate.pipelines.report import summary, write_report
from curate.pipelines.run import Run
from curate.pipelines.store import Store
from curate.pipelines.view import view
from curate.report.view import View
from curate.selectors.longest import Longest
from curate.selectors.random import Random
from tests.conftest import conversation, rows_of
from tests.pipelines.helpers import recipe, run
from tests.test_cli import curate

Pools = Callable[..., Path]


def finished(pool: Path, directory: Path, **changes: Any) -> Run:
    return run(pool, directory, **{"report": True, **changes})


def pool_rows(n: int = 150) -> list[dict[str, Any]]:
    """Return rows with two copies among them, and one that is no conversation at the end."""
    rows = rows_of(n)
    rows.insert(20, dict(rows[5]))
    rows.insert(90, dict(rows[7]))
    return [*rows, {"messages": [{"role": "user", "content": "no answer"}], "source": "a"}]


def by_id(job: Run) -> pl.DataFrame:
    """The ledger, plainly."""
    return pl.read_parquet(f"{job.store.root}/decisions/*.parquet")


# -- when it is written ------------------------------------------------------------------------------------------------


def test_a_run_ends_with_its_report(pool_of: Pools, tmp_path: Path) -> None:
    job = finished(pool_of(pool_rows()), tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Selection report: test" in page
    assert json.loads((tmp_path / "run/manifest.json").read_text())["report"] == {"file": "report.html", "problems": []}
    assert job.manifest["status"] == "complete"


def test_a_recipe_can_do_without(pool_of: Pools, tmp_path: Path) -> None:
    finished(pool_of(pool_rows()), tmp_path / "run", report=False)
    assert not (tmp_path / "run/report.html").exists()


def test_no_report_of_an_earlier_selection_is_left(pool_of: Pools, tmp_path: Path) -> None:
    pool = pool_of(pool_rows())
    finished(pool, tmp_path / "run")
    first = (tmp_path / "run/report.html").stat()
    finished(pool, tmp_path / "run")  # nothing changed: it stays
    assert (tmp_path / "run/report.html").stat().st_mtime_ns == first.st_mtime_ns
    finished(pool, tmp_path / "run", select=[{"use": "random", "budget": "10%"}])
    assert "1-random" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    finished(pool, tmp_path / "run", select=[{"use": "random", "budget": "20%"}], report=False)
    assert not (tmp_path / "run/report.html").exists()


def test_a_report_that_fails_costs_nothing_of_the_run(
    pool_of: Pools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    job = Run(recipe(pool_of(pool_rows()), report=True), directory, "sync")
    blocked = directory / "report.html"
    blocked.mkdir(parents=True)  # a folder stands where the page should
    (blocked / "x").write_text("x")
    (directory / ".curate").mkdir()
    (directory / ".curate/run.json").write_text(json.dumps({"format": 1, "name": "test", "curate": "0"}))
    job.store.remove = lambda *parts: None  # type: ignore[method-assign]
    manifest = job.execute()
    assert manifest["status"] == "complete" and (directory / "dataset").exists()
    (problem,) = manifest["report"]["problems"]
    assert problem.startswith("no report was written: ") and "report.html" in problem
    assert "no report was written" in capsys.readouterr().err


def test_the_command_writes_it_again_or_elsewhere(pool_of: Pools, tmp_path: Path) -> None:
    finished(pool_of(pool_rows()), tmp_path / "run", report=False)
    done = curate("report", str(tmp_path / "run"), "--out", str(tmp_path / "deep/er/page.html"), "--samples", "3")
    assert done.returncode == 0 and done.stdout.startswith(f"report     {tmp_path}/deep/er/page.html  (")
    page = (tmp_path / "deep/er/page.html").read_text(encoding="utf-8")
    assert page.count("<li data-decision=") == 3
    assert not list((tmp_path / "deep/er").glob("*.tmp")) and not (tmp_path / "run/report.html").exists()
    done = curate("report", str(tmp_path / "run"))
    assert done.returncode == 0 and (tmp_path / "run/report.html").exists()


def test_what_is_no_finished_run_is_told(pool_of: Pools, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = curate("report", str(tmp_path / "empty"))
    assert done.returncode == 1 and "is no run of curate; name the directory that 'curate run' filled" in done.stderr
    run(pool_of(rows_of(20)), tmp_path / "scored", until="score")
    with pytest.raises(RunDirectoryError, match=r"holds no decisions yet .its status is 'score complete'.; run it to"):
        write_report(Store(str(tmp_path / "scored")))
    run(pool_of(rows_of(20)), tmp_path / "run")
    with pytest.raises(InputError, match="a report shows 0 rows or more, -1 were asked"):
        write_report(Store(str(tmp_path / "run")), samples=-1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"cannot write .*/file/page.html"):
        write_report(Store(str(tmp_path / "run")), tmp_path / "file/page.html")


# -- what its numbers are ----------------------------------------------------------------------------------------------


@pytest.fixture
def job(pool_of: Pools, tmp_path: Path) -> Run:
    return finished(pool_of(pool_rows(), shards=3), tmp_path / "run", report=False)


def test_the_views_columns_are_the_ledgers(job: Run) -> None:
    seen, plain = view(job.store), by_id(job)
    names = ["decision", "stage", "reason", "score_name", "source", "group", "score", "threshold", "cluster"]
    key = [pl.col(n).cast(pl.String) for n in names]
    assert seen.ledger.select(key).sort(names).equals(plain.select(key).sort(names))
    assert seen.counts == {
        d: n for d, n in sorted(job.manifest["decisions"].items(), key=lambda i: list(seen.counts).index(i[0]))
    }


def test_scores_stand_at_their_rows(job: Run) -> None:
    seen, plain = view(job.store, samples=10_000), by_id(job)
    assert len(seen.samples) == plain.height  # all of them
    store = Path(job.store.root)
    stage = f"heuristics-{job.manifest['stages']['heuristics']['fingerprint']}"
    scores = pl.read_parquet(f"{store}/scores/{stage}/*.parquet").drop("reason")
    truth = {row["id"]: row for row in scores.to_dicts()}
    examples = {r["id"]: r for r in pl.read_parquet(f"{store}/examples/*.parquet").to_dicts()}
    for sample in seen.samples:
        if sample.decision in ("kept", "dropped"):
            for column, value in truth[sample.ledger["id"]].items():
                if column != "id":
                    assert sample.scores.get(f"heuristics.{column}") == value
        if sample.decision != "rejected":
            texts = [m["content"] for m in examples[sample.ledger["id"]]["messages"]]
            assert [text for _, text in sample.turns] == texts
    assert [s.turns[0][0] for s in seen.samples if s.decision == "rejected"] == ["raw"]


def test_the_tables_say_what_the_ledger_says(job: Run) -> None:
    from curate.report.sections import sections

    seen, plain = view(job.store), by_id(job)
    made, problems = sections(seen)
    assert not problems
    blocks = {b.title: b for s in made for b in s.blocks if hasattr(b, "title")}
    pool = plain.filter(pl.col("decision").is_in(["kept", "dropped"]))
    truth = {
        name: (n, k)
        for name, n, k in pool.group_by("source").agg(pl.len(), (pl.col("decision") == "kept").sum()).iter_rows()
    }
    table = next(b.table for s in made if s.title == "Kept against dropped" for b in s.blocks if b.title == "by source")
    assert {row[0]: (row[1], row[2]) for row in table.rows} == truth
    flow = blocks["Rows that go on, and rows that leave, stage by stage"].table.rows
    left = dict(plain.filter(pl.col("decision") != "kept").group_by("stage").len().iter_rows())
    assert {row[0]: row[2] for row in flow if row[2]} == left
    assert flow[-1][-1] == plain.filter(decision="kept").height
    reasons = next(b for s in made for b in s.blocks if getattr(b, "caption", "") == "Every decision and its reason")
    assert sum(row[4] for row in reasons.rows) == plain.height
    clusters = next(b.table for s in made for b in s.blocks if getattr(b, "title", "") == "by cluster")
    judged = pool.filter(pl.col("cluster").is_not_null())
    sizes = dict(judged.group_by(pl.col("cluster").cast(pl.String)).len().iter_rows())
    assert {row[0]: row[1] for row in clusters.rows} == sizes


def test_the_baselines_are_our_own_selectors_on_the_same_pool(job: Run) -> None:
    seen = view(job.store)
    k = int(seen.kept.sum())
    order = np.argsort([key for key in pl.read_parquet(f"{job.store.root}/examples/*.parquet").unique("content_key", keep="first", maintain_order=True)["content_key"].to_list()], kind="stable")  # fmt: skip
    n = order.size
    random, longest = seen.baselines
    expected = np.zeros(n, dtype=bool)
    expected[order[Random(seed=0).select(n, k).indices]] = True
    assert random.chosen.tolist() == expected.tolist()
    lengths = seen.values("heuristics.response_chars")
    expected = np.zeros(n, dtype=bool)
    expected[order[Longest().select(lengths[order], k).indices]] = True
    assert longest.chosen.tolist() == expected.tolist() and "heuristics.response_chars" in longest.about


def test_a_token_budget_is_matched_in_tokens(pool_of: Pools, tmp_path: Path, example_model: str) -> None:
    scorers = {"length": {"use": "length", "model": example_model}}
    select = [{"use": "random", "budget": "600 tokens"}]
    job = finished(pool_of(rows_of(60)), tmp_path / "run", report=False, scorers=scorers, select=select)
    seen = view(job.store)
    cost = seen.values("length.response_tokens")
    spent = int(cost[seen.kept].sum())
    assert 0 < spent <= 600
    for baseline in seen.baselines:
        assert cost[baseline.chosen].sum() <= spent and f"{spent:,} tokens" in baseline.about
    assert seen.baselines[1].chosen.sum() < seen.baselines[0].chosen.sum()  # long rows: fewer of them
    assert f"{spent:,} tokens" in summary(seen)


def test_shards_and_order_change_no_picture(pool_of: Pools, tmp_path: Path) -> None:
    rows = rows_of(150)

    def seen(name: str, rows: list[dict[str, Any]], files: int, shard_rows: int) -> View:
        pool = pool_of(rows, files, name)
        return view(finished(pool, tmp_path / f"run-{name}", report=False, shard_rows=shard_rows).store, samples=40)

    one, other = seen("one", rows, 1, 1000), seen("other", rows[::-1], 5, 16)
    assert [s.ledger["id"] for s in one.samples if s.decision in ("kept", "dropped")] == [
        s.ledger["id"] for s in other.samples if s.decision in ("kept", "dropped")
    ]
    assert one.pool_map is not None and other.pool_map is not None
    assert sorted(one.pool_map.labels) == sorted(other.pool_map.labels)
    np.testing.assert_allclose(np.sort(one.pool_map.xy, axis=0), np.sort(other.pool_map.xy, axis=0), atol=1e-5)
    for a, b in zip(one.baselines, other.baselines, strict=True):
        assert a.chosen.sum() == b.chosen.sum()
        assert (
            one.pool.filter(pl.Series(a.chosen))["chars"].sum() == other.pool.filter(pl.Series(b.chosen))["chars"].sum()
        )


def test_the_map_is_of_the_vectors(job: Run) -> None:
    seen = view(job.store)
    drawn = seen.pool_map
    assert drawn is not None and drawn.stage == "ngrams" and drawn.fitted_on == seen.pool.height
    assert (drawn.of_kept, drawn.of_dropped) == (int(seen.kept.sum()), int((~seen.kept).sum()))
    assert int(drawn.kept.sum()) == drawn.of_kept and len(drawn.labels) == seen.pool.height
    (folder,) = (Path(job.store.root) / "features").iterdir()
    vectors = np.concatenate([np.load(f) for f in sorted(folder.glob("*.npy"))]).astype(np.float64)  # in reading order
    centred = vectors - vectors.mean(axis=0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(drawn.xy), np.abs(centred @ vt[:2].T), atol=1e-5)
    np.testing.assert_allclose(drawn.explained, s[:2] ** 2 / (s**2).sum(), rtol=1e-6)


def test_samples_show_every_decision_and_rare_reasons(job: Run) -> None:
    seen = view(job.store, samples=24)
    found = [s.decision for s in seen.samples]
    assert len(found) == 24 and found.count("duplicate") == 2 and found.count("rejected") == 1
    assert abs(found.count("kept") - found.count("dropped")) <= 1
    assert view(job.store, samples=0).samples == []


def test_long_texts_and_long_conversations_are_cut_with_a_mark(pool_of: Pools, tmp_path: Path) -> None:
    turns = [m for i in range(20) for m in conversation(f"q{i}", f"a{i}")]
    rows = [
        *rows_of(30),
        {"messages": conversation("q", "ä" * 100_000), "rating": 1.0},
        {"messages": turns, "rating": 2.0},
    ]
    rows.append({"messages": [m for i in range(5) for m in conversation("長" * 9_000, "い" * 9_000)], "rating": 3.0})
    job = finished(pool_of(rows), tmp_path / "run", report=False)
    seen = view(job.store)
    shown = [text for s in seen.samples for _, text in s.turns]
    assert max(map(len, shown)) < 1_600 and any(t.endswith("[…98,500 more characters]") for t in shown)
    assert any(turn == ("more", "[…28 more messages]") for s in seen.samples for turn in s.turns)
    assert any(turn == ("more", "[…8 more messages]") for s in seen.samples for turn in s.turns)
    assert max(sum(len(text.encode()) for _, text in s.turns) for s in seen.samples) < 6_200


@pytest.mark.parametrize("key", ["language", "lang"])
def test_languages_are_taken_from_the_rows(pool_of: Pools, tmp_path: Path, key: str) -> None:
    rows = [{**row, key: ("en", "de", None)[i % 3]} for i, row in enumerate(rows_of(60))]
    seen = view(finished(pool_of(rows, 2), tmp_path / "run", report=False).store)
    assert dict(seen.ledger.group_by(pl.col("language").cast(pl.String)).len().iter_rows()) == {
        "en": 20,
        "de": 20,
        None: 20,
    }
    from curate.report.sections import sections

    made, problems = sections(seen)
    assert not problems and any(getattr(b, "title", "") == "by language" for s in made for b in s.blocks)


def test_the_summary_adds_up(job: Run) -> None:
    text = summary(view(job.store))
    total, kept = (int(x.replace(",", "")) for x in re.match(r"Of ([\d,]+) rows, ([\d,]+) \(", text).groups())  # type: ignore[union-attr]
    assert total == by_id(job).height and kept == by_id(job).filter(decision="kept").height
    assert "1 row could not be read as a conversation; 2 repeat an earlier row to the letter" in text


def test_hardly_anything_kept_or_scored_is_still_a_page(pool_of: Pools, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "nothing kept": {"select": [{"use": "random", "budget": 0}]},
        "one row": {"select": [{"use": "random", "budget": 1}]},
        "no steps, no scores": {"select": [], "scorers": {}},
    }
    for name, changes in cases.items():
        job = finished(pool_of(rows_of(30), name=name), tmp_path / f"run {name}", report=False, **changes)
        assert write_report(job.store).problems == [], name
    job = finished(pool_of(rows_of(1), name="single"), tmp_path / "run single", select=[], report=False)
    assert write_report(job.store).problems == []


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("cluster 54, 5 of 50 kept: after the last row", "cluster N, N of N kept: after the last row"),
        ("kept by 3-kmq", "kept by 3-kmq"),
        ("group 'web', 5 of 1,000 kept: x", "group ‘…’, N of N kept: x"),
        ("heuristics.repetition above 0.25", "heuristics.repetition above N"),
        ("rating below 0.05.", "rating below N."),
    ],
)
def test_like_reasons_are_of_one_kind(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind
    assert kind_of("empty-response: last message 3", rejected=True) == "empty-response"


def test_a_run_that_is_no_local_folder_has_the_same(pool_of: Pools, tmp_path: Path) -> None:
    import fsspec

    pool = pool_of(pool_rows())
    local = finished(pool, tmp_path / "run")
    away = Run(recipe(pool, report=True), f"memory://{tmp_path.name}/run", "sync", quiet=True)
    manifest = away.execute()
    assert manifest["report"] == {"file": "report.html", "problems": []}
    page = fsspec.filesystem("memory").cat_file(away.store.path("report.html")).decode()
    when = re.compile(r"20\d\d-\d\d-\d\dT[\d:]+Z")
    here = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    costs = re.compile(r'<section id="costs".*?</section>', re.DOTALL)
    assert when.sub("", costs.sub("", page)) == when.sub("", costs.sub("", here))
    assert local.manifest["decisions"] == manifest["decisions"]
