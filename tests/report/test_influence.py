"""Influence on the targets in a report: its numbers against a plain computation, its words, its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import curate.pipelines.influence as influence
from curate.pipelines.run import Run
from curate.pipelines.view import view
from curate.recipe import Recipe
from curate.report.blocks import Examples, Section, Shade, Table, Text
from curate.report.page import render
from curate.report.sections import influence as section
from curate.report.text import signed
from curate.report.view import Baseline, Extreme, Influence, Sample, View
from curate.seeding import rng_for
from tests.conftest import conversation, write_jsonl
from tests.report.conftest import ATTACKS

# -- of a run ----------------------------------------------------------------------------------------------------------

TOPICS = {
    "maths": ["sum", "product", "number", "divide", "apples", "plus", "minus", "times", "equals", "seven"],
    "code": ["def", "return", "list", "string", "loop", "python", "index", "function", "test", "assert"],
    "chat": ["hello", "friend", "story", "weather", "feeling", "music", "travel", "cooking", "summer", "dream"],
}


def about(topic: str, n: int, seed: int) -> list[dict[str, Any]]:
    rng = rng_for(seed, "influence", topic)
    words = [" ".join(rng.choice(TOPICS[topic], size=12)) for _ in range(2 * n)]
    return [
        {"messages": conversation(f"{a} {i}?", f"{b}."), "source": f"{topic} {i % 3}"}
        for i, (a, b) in enumerate(zip(words[:n], words[n:], strict=True))
    ]


def targets(folder: Path) -> dict[str, list[dict[str, Any]]]:
    sets = {task: about(task, n, 2) for task, n in (("maths", 12), ("code", 7))}
    for task, rows in sets.items():
        write_jsonl(folder / f"{task}.jsonl", rows)
    return sets


def pool(folder: Path) -> list[dict[str, Any]]:
    """150 rows of three topics; one asks what a target asks, two are copies, four say the same but for their source."""
    rows = about("maths", 40, 1) + about("code", 40, 1) + about("chat", 70, 1)
    asked = targets(folder)["maths"][3]["messages"][0]["content"]
    same = [{"messages": conversation("plus minus!" + " " * i, "seven."), "source": f"s{i}"} for i in range(4)]
    return [*rows, {"messages": conversation(asked.upper(), "42"), "source": "leak"}, rows[3], rows[9], *same]


def run(folder: Path, rows: list[dict[str, Any]], to: str = "run", **changes: Any) -> Run:
    write_jsonl(folder / "pool.jsonl", rows)
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
    job = Run(Recipe.from_dict({**document, **changes}, folder), folder / to, "sync", quiet=True)
    job.execute()
    return job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("influence")
    return run(folder, pool(folder))


def plain(job: Run, stage: str = "influence") -> tuple[np.ndarray, pl.DataFrame]:
    """The matrix and the ledger of the pool, in reading order, read without this package."""
    root = Path(job.store.root)
    matrix = np.concatenate([np.load(f) for f in sorted(root.glob(f"features/{stage}-*/*.npy"))])
    ledger = pl.concat([pl.read_parquet(f) for f in sorted(root.glob("decisions/*.parquet"))])
    ledger = ledger.with_row_index("place").filter(pl.col("decision") != "duplicate")
    assert len(matrix) == ledger.height
    return matrix.astype(np.float64), ledger


def columns_of(job: Run, task: str) -> list[int]:
    with np.load(next(Path(job.store.root).glob(".curate/fit/influence-*.npz"))) as state:
        return np.flatnonzero(state["labels"] == task).tolist()


def test_the_means_are_those_of_the_stored_matrix(job: Run) -> None:
    matrix, ledger = plain(job)
    seen = view(job.store)
    (found,) = seen.influences
    assert found.tasks == ["code", "maths"] and found.use == "hashed-ngrams" and found.unknown == 1
    z = (matrix - np.nanmean(matrix, axis=0)) / np.nanstd(matrix, axis=0, ddof=1)
    by_task = np.stack([z[:, columns_of(job, task)].mean(axis=1) for task in found.tasks], axis=1)
    there = ~np.isnan(matrix[:, 0])
    for source, (n, means) in found.by_source.items():
        mine = (ledger["source"] == source).to_numpy() & there
        assert n == mine.sum()
        if n:
            np.testing.assert_allclose(means, by_task[mine].mean(axis=0), atol=1e-9)
        else:
            assert source == "leak" and np.isnan(means).all()
    assert set(found.by_source) == set(ledger["source"])
    picks = {"this run": (ledger["decision"] == "kept").to_numpy(), **{b.name: b.chosen for b in seen.baselines}}
    assert list(found.by_pick) == ["this run", "random", "longest"]
    for name, mask in picks.items():
        n, means = found.by_pick[name]
        assert n == (mask & there).sum() > 0
        np.testing.assert_allclose(means, by_task[mask & there].mean(axis=0), atol=1e-9)
    assert found.by_pick["this run"][1].min() > 0.3 > found.by_pick["random"][1].max()  # it chose for them


def test_the_rows_at_the_ends_are_the_highest_and_the_lowest(job: Run) -> None:
    matrix, ledger = plain(job)
    seen = view(job.store)
    (found,) = seen.influences
    examples = pl.concat([pl.read_parquet(f) for f in sorted(Path(job.store.root).glob("examples/*.parquet"))])
    z = (matrix - np.nanmean(matrix, axis=0)) / np.nanstd(matrix, axis=0, ddof=1)
    for task in found.tasks:
        mean = matrix[:, columns_of(job, task)].mean(axis=1)
        for most in (True, False):
            rows = [e for e in found.extremes if (e.task, e.most) == (task, most)]
            expected = np.sort(mean[~np.isnan(mean)])
            expected = expected[::-1][:5] if most else expected[:5]
            np.testing.assert_allclose([e.influence for e in rows], expected, atol=1e-12)
            assert len({e.row for e in rows}) == 5
            for e in rows:
                (at,) = np.flatnonzero((ledger["place"] == e.row).to_numpy())
                assert abs(mean[at] - e.influence) < 1e-12
                assert abs(z[at, columns_of(job, task)].mean() - e.normalised) < 1e-5
                texts = [m["content"] for m in examples["messages"][e.row]]
                assert [text for _, text in seen.rows[e.row].turns] == texts
                assert seen.rows[e.row].decision == ledger["decision"][int(at)]


def test_equal_rows_go_by_content_however_the_run_was_cut(job: Run, tmp_path: Path) -> None:
    """The four rows of one text have one influence; which of them is shown may not depend on files and shards."""
    rows = [r for r in pool(tmp_path) if r["source"][0] == "s"]
    others = about("chat", 12, 1)
    ids = []
    for to, order, shard in (("one", rows + others, 64), ("two", others[::-1] + rows[::-1], 3)):
        changes = {
            "execution": {"shard_rows": shard},
            "select": [{"use": "less", "features": "influence", "budget": 4}],
        }
        seen = view(run(tmp_path, order, to, **changes).store)
        ends = [e for e in seen.influences[0].extremes if (e.task, e.most) == ("maths", True)]
        ids.append([seen.rows[e.row].ledger["id"] for e in ends])
        assert len({round(e.influence, 12) for e in ends[:4]}) == 1
    assert ids[0] == ids[1] and len(set(ids[0])) == 5


def test_many_sources_and_many_tasks_are_cut_openly(job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = view(job.store).influences[0]
    monkeypatch.setattr(influence, "SOURCES", 2)
    monkeypatch.setattr(influence, "ALL_ROWS", 8)
    found = view(job.store).influences[0]
    names = list(found.by_source)
    assert names == [*list(before.by_source)[:2], f"{len(before.by_source) - 2} smaller sources together"]
    assert sum(n for n, _ in found.by_source.values()) == sum(n for n, _ in before.by_source.values()) == 154
    rest = list(before.by_source.values())[2:]
    mean = sum(n * np.nan_to_num(m) for n, m in rest) / sum(n for n, _ in rest)
    np.testing.assert_allclose(found.by_source[names[2]][1], mean, atol=1e-9)
    assert len(found.extremes) == 8  # two at each end of two tasks


def test_a_report_without_texts_shows_none(job: Run) -> None:
    seen = view(job.store, samples=0)
    assert not seen.rows and not [b for s in section.sections(seen) for b in s.blocks if isinstance(b, Examples)]


def test_a_run_without_targets_has_no_such_section(tmp_path: Path) -> None:
    targets(tmp_path)
    scorers = {"ngrams": {"use": "hashed-ngrams", "dim": 8}}
    changes: dict[str, Any] = {"targets": None, "scorers": scorers, "select": [{"use": "random", "budget": 5}]}
    seen = view(run(tmp_path, about("chat", 20, 1), **changes).store)
    assert seen.influences == [] and section.sections(seen) == []


def test_rds_plus_is_a_baseline_where_hidden_states_are_held_against_targets(tmp_path: Path, tiny_model: Path) -> None:
    scorers = {
        "ngrams": {"use": "hashed-ngrams", "dim": 32, "buckets": 4096},
        "influence": {"use": "attribution", "of": "ngrams"},
        "states": {"use": "hidden-states", "model": str(tiny_model), "max_tokens": 400},
        "similarity": {"use": "attribution", "of": "states"},
    }
    rows = pool(tmp_path)
    less = view(run(tmp_path, rows, scorers=scorers).store)
    assert [i.stage for i in less.influences] == ["influence", "similarity"]
    assert [s.title.partition(": ")[2] for s in section.sections(less)] == ["influence", "similarity"]
    turns = run(
        tmp_path, rows, scorers=scorers, select=[{"use": "round-robin", "features": "similarity", "budget": 40}]
    )
    rds = view(turns.store)
    assert [b.name for b in rds.baselines] == [b.name for b in less.baselines] == ["random", "longest", "RDS+"]
    assert rds.baselines[2].chosen.tolist() == rds.kept.tolist()  # the selector itself, on the same numbers
    assert less.baselines[2].chosen.tolist() == rds.kept.tolist() != less.kept.tolist()
    told = " ".join(b.text for b in section.sections(rds)[1].blocks if isinstance(b, Text))
    assert "40 (100%) by “RDS+”" in told and "No RDS+" not in told
    assert "by similarity, 40 rows" in rds.baselines[2].about


# -- in words ----------------------------------------------------------------------------------------------------------


def made(found: dict[str, Any], *, kept: int = 4, n: int = 10, **changes: Any) -> View:
    decisions = ["kept"] * kept + ["dropped"] * (n - kept)
    ledger = pl.DataFrame({"decision": decisions})
    given: dict[str, Any] = {
        "stage": "influence",
        "use": "gradients",
        "tasks": ["code", "maths"],
        "targets": [account("maths", overlap=3), account("code", passed_over={"longer than max_tokens=9": 2})],
        "unknown": 0,
        "by_source": {"web": (6, np.array([0.5, -0.25])), "books": (0, np.array([np.nan, np.nan]))},
        "by_pick": {"this run": (4, np.array([1.5, 0.125])), "random": (4, np.array([0.0, -0.01]))},
        "extremes": [],
        **found,
    }
    return View({"name": "t"}, "", ledger, {}, lambda _: np.empty(0), influences=[Influence(**given)], **changes)


def account(task: str, **changes: Any) -> dict[str, Any]:
    return {"task": task, "rows": 60, "drawn": 50, "passed_over": {}, "rejected": 1, "overlap": 0, **changes}


def blocks(seen: View) -> tuple[dict[str, Table], list[str]]:
    (found,) = section.sections(seen)
    tables = {b.caption: b for b in found.blocks if isinstance(b, Table)}
    return tables, [b.text for b in found.blocks if isinstance(b, Text)]


def test_the_tables_say_what_was_measured() -> None:
    tables, texts = blocks(made({}))
    targets, sources, chosen = tables.values()
    assert targets.rows == [["code", 60, 50, 2, 1, 0], ["maths", 60, 50, 0, 1, 3]]
    assert texts[1].endswith("Why targets were passed over: code: 2 × longer than max_tokens=9.")
    assert sources.columns == ["source", "rows", "code", "maths"]
    assert sources.rows == [["web", 6, Shade(0.5), Shade(-0.25)], ["books", 0, None, None]]
    assert chosen.columns == ["task", "pool", "this run", "random"]
    assert chosen.rows == [["code", Shade(0), Shade(1.5), Shade(0)], ["maths", Shade(0), Shade(0.125), Shade(-0.01)]]
    assert texts[2] == (
        "This run serves maths worst (+0.12) and code best (+1.50). “random” serves maths worst (−0.01) and code best "
        "(0.00)."
    )


def test_overlap_by_hand() -> None:
    baselines = [Baseline("random", "", np.arange(10) >= 3), Baseline("RDS+", "", np.arange(10) < 4)]
    _, texts = blocks(made({}, baselines=baselines))
    assert (
        texts[3] == "Of the 4 rows kept, also chosen within the same budget: 1 (25%) by “random”, 4 (100%) by “RDS+”."
    )
    _, texts = blocks(made({}, baselines=baselines[:1]))
    assert texts[3].endswith("No RDS+ beside it: this recipe has no attribution of hidden states.")
    assert blocks(made({}, kept=0, baselines=baselines))[1][3] == ""


def test_one_task_and_selections_without_an_influence() -> None:
    none = (0, np.array([np.nan]))
    by_pick = {"this run": (3, np.array([0.5])), "longest": none}
    one = {"tasks": ["maths"], "by_source": {"web": none}, "by_pick": by_pick}
    tables, texts = blocks(made({**one, "unknown": 7}))
    assert texts[0].endswith("Rows without an influence take no part: 7.")
    assert texts[2] == "This run: +0.50 on maths. “longest” has no row with an influence."
    assert tables["Mean normalised influence of what is chosen"].rows == [["maths", Shade(0), Shade(0.5), None]]
    tables, texts = blocks(made({**one, "unknown": 10}))
    assert list(tables) == ["Targets"] and texts[-1] == "No row of the pool has an influence."


@pytest.mark.parametrize(
    ("value", "text", "tone"),
    [
        (0.0, "0.00", ""),
        (-0.004, "0.00", ""),
        (0.0949, "+0.09", ""),
        (0.0951, "+0.10", "up1"),
        (-0.1, "−0.10", "down1"),
        (0.3, "+0.30", "up2"),
        (-0.5, "−0.50", "down3"),
        (1.999, "+2.00", "up5"),
        (-123.456, "−123.46", "down5"),
    ],
)
def test_shades_say_what_the_number_says(value: float, text: str, tone: str) -> None:
    assert signed(value) == text and Shade(value).tone == tone
    page = render("t", "s", [Section("x", [Table("c", ["a", "n"], [["r", Shade(value)]])])])
    assert f'<td class="n shade {tone}">{text}</td>' in page and '<th scope="col" class="n">n</th>' in page


# -- on the page -------------------------------------------------------------------------------------------------------


def sample(text: str) -> Sample:
    line = {"id": text, "reason": text, "score": 0.5, "score_name": text, "threshold": None, "source": text}
    line |= {"group": None, "file": text, "row": 3, "part": -1, "cluster": None, "duplicate_of": None}
    return Sample("kept", "1-less", "kind", line, [("user", text), ("assistant", text)], {})


def hostile(text: str) -> View:
    found = {
        "stage": text,
        "tasks": [text, "b"],
        "targets": [account(text, passed_over={text: 1}), account("b")],
        "by_source": {text: (3, np.array([1.0, -1.0]))},
        "extremes": [Extreme(text, True, 0, 0.25, 1.5), Extreme(text, False, 0, -0.25, -1.5)],
    }
    return made(found, rows={0: sample(text)})


@pytest.mark.parametrize("attack", [a for a in ATTACKS if len(a) < 1000])
def test_texts_of_rows_sources_and_tasks_come_out_as_text(attack: str) -> None:
    from tests.report.test_page import Reader

    page, harmless = (Reader(render("t", "s", section.sections(hostile(text)))) for text in (attack, "x"))
    assert page.tags == harmless.tags and "details" in page.tags
    assert page.attributes and not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("style", "src")]


def test_the_rows_stand_behind_their_numbers() -> None:
    page = render("t", "s", section.sections(hostile("a task")))
    assert "<summary>a task: the 1 row of most influence</summary>" in page
    most, least = page.index("influence +0.2500, normalised +1.50"), page.index("influence −0.2500, normalised −1.50")
    assert page.index("of most influence") < most < page.index("of least influence") < least


Open = Callable[[int, str], Any]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    contexts: list[Any] = []
    many = {"by_source": {f"s{i}": (9, np.array([x, -x])) for i, x in enumerate((0.15, 0.3, 0.7, 1.5, 4.0))}}
    extremes = [Extreme("code", most, 0, 0.5, 2.0) for most in (True, False)]
    seen = made({**many, "extremes": extremes}, rows={0: sample("word " * 300)})
    (tmp_path / "page.html").write_text(render("t", "s", section.sections(seen)), encoding="utf-8")

    def opened(width: int, scheme: str) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        for details in page.locator("details.examples").all():
            details.evaluate("d => { d.open = true; }")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])
def test_axe_finds_nothing_and_the_page_fits(open_page: Open, width: int, scheme: str) -> None:
    page = open_page(width, scheme)
    shown = page.locator("td.shade").evaluate_all("cells => cells.map(c => getComputedStyle(c).backgroundColor)")
    assert len(set(shown)) >= 11  # ten shades, and none
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert not [json.dumps(v["nodes"][0])[:300] for v in found["violations"]]
