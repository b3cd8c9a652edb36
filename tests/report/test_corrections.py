"""Corrections in a report: its counts against plain ones, its changes word by word, and nothing that runs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.pipelines.run import Run
from curate.pipelines.store import Store
from curate.pipelines.view import view
from curate.report.blocks import Changes, Chart, Section, Table, Text
from curate.report.page import render
from curate.report.sections import corrections as section
from curate.report.sections import flow, sections
from curate.report.text import visible
from curate.report.view import View
from tests.conftest import conversation, write_jsonl
from tests.pipelines.helpers import run
from tests.pipelines.sidecars import line, put
from tests.report.conftest import ATTACKS

REFUSED = "the candidate is better, but not surely enough"


def pool_rows(n: int = 120) -> list[dict[str, Any]]:
    said = [ATTACKS[i % len(ATTACKS)][:200] if i % 3 == 0 else f"It is {i} of {n}." for i in range(n)]
    rows = [{"messages": conversation(f"Question {i} {a}", f"{a} {i}"), "rating": i} for i, a in enumerate(said)]
    return [*rows, rows[4]]


def told_of(examples: pl.DataFrame) -> list[dict[str, Any]]:
    """What a correction says of the first 100 rows: 60 replaced, 20 refused, 10 without a verdict, 10 lost."""
    out = []
    for i, (id, messages) in enumerate(examples["id", "messages"].head(100).iter_rows()):
        old = messages[-1]["content"]
        if i < 60:
            out.append(
                line(
                    id, old, f"{old} <b>{i}</b>", confidence=0.8 + i / 500, rule=f"the candidate is better {ATTACKS[0]}"
                )
            )
        elif i < 80:
            out.append(line(id, old, confidence=0.7, rule=REFUSED))
        elif i < 90:
            out.append(line(id, old, confidence=None, rule="no verdict: longer than max_tokens=99"))
        else:
            out.append(line(id, old, "undone", rule="reverted; else: the candidate is better", applied=False))
    return out


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("corrected")
    steps = [{"name": "filter", "use": "quantile", "on": "rating", "share": 0.5}]
    scorers = {"rating": {"use": "column", "column": "rating"}}
    made = run(write_jsonl(folder / "pool.jsonl", pool_rows()), folder / "run", select=steps, scorers=scorers)
    examples = pl.read_parquet(f"{made.store.root}/examples/*.parquet")
    rows = told_of(examples)
    wrote = {row["id"]: [f"Candidate of {row['id']} {ATTACKS[1]}"] for row in rows[40:75]}
    put(made, "auto-correct", rows, wrote)
    late = [
        line(
            row["id"],
            row["old"],
            action="keep",
            applied=True,
            rule="kept by a person",
            model=None,
            prompt=None,
            confidence=None,
            threshold=None,
        )
        for row in rows[:5]
    ]
    put(made, "review", late)
    return made


@pytest.fixture(scope="module")
def seen(job: Run) -> View:
    return view(Store(job.store.root))


def test_the_counts_are_the_plain_ones(job: Run, seen: View) -> None:
    first, second = seen.corrections
    assert (first.name, first.use, first.threshold) == ("auto-correct", "auto-correct", 0.8)
    assert (first.model, first.prompt, second.model) == ("candidates: tiny", "verdict 1", None)
    decisions = pl.read_parquet(f"{job.store.root}/decisions/*.parquet").filter(pl.col("decision") != "duplicate")
    end = dict(decisions["id", "decision"].iter_rows())
    examples = pl.read_parquet(f"{job.store.root}/examples/*.parquet")
    wanted: Counter[tuple[str, str, str]] = Counter()
    for i, row in enumerate(told_of(examples)):
        done = "" if not row["applied"] else "overruled" if i < 5 else "replace"
        wanted[row["rule"], done, end[row["id"]]] += 1
    assert first.counts == wanted and sum(wanted.values()) == 100
    assert first.replaced.sum() == 55 and first.confidence.size == 100
    assert sum(second.counts.values()) == 5 and not second.replaced.any()


def test_the_changes_are_those_that_were_made(job: Run, seen: View) -> None:
    first, second = seen.corrections
    examples = pl.read_parquet(f"{job.store.root}/examples/*.parquet")
    rows = {row["id"]: row for row in told_of(examples)}
    order = list(rows)
    assert len(first.made) == 30 and len({change.id for change in first.made}) == 30
    for change in first.made:
        row = rows[change.id]
        assert 5 <= order.index(change.id) < 60 and change.decision == "corrected"
        assert (change.old, change.new, change.rule, change.confidence) == tuple(
            row[key] for key in ("old", "new", "rule", "confidence")
        )
        assert change.question.startswith("Question ")
    assert len(first.refused) == 12 and {c.rule for c in first.refused} >= {REFUSED}
    for change in first.refused:
        assert order.index(change.id) >= 60 and change.new == f"Candidate of {change.id} {ATTACKS[1]}"
    assert not second.made and not second.refused


def test_what_is_shown_is_drawn_by_content(job: Run, seen: View) -> None:
    again = view(Store(job.store.root))
    assert [c.id for c in again.corrections[0].made] == [c.id for c in seen.corrections[0].made]
    none = view(Store(job.store.root), samples=0)
    assert not none.corrections[0].made and none.corrections[0].counts == seen.corrections[0].counts


def test_the_section_says_it(seen: View) -> None:
    (made,) = section.sections(seen)
    assert made.title == "Corrections" and made.anchor == "corrections"
    texts = [block.text for block in made.blocks if isinstance(block, Text)]
    assert texts == [
        "“auto-correct” looked at 100 rows and replaced the answers of 55 of them (55%). Models: candidates: tiny. "
        "Prompts: verdict 1.",
        "“review” looked at 5 rows and replaced the answers of 0 of them (0%).",
    ]
    table = next(block for block in made.blocks if isinstance(block, Table))
    assert table.rows[0][1:3] == ["replace", 55] and table.rows[1][:3] == [REFUSED, "as the selection says", 20]
    assert [row[2] for row in table.rows] == [55, 20, 10, 10, 5] and table.rows[4][1] == "overruled"
    (chart,) = [block for block in made.blocks if isinstance(block, Chart)]
    assert chart.alt == "Distribution of the confidence of auto-correct over 90 rows, of which 55 were replaced."
    assert "Dashed line: what it is held against, 0.8." in chart.note
    assert chart.table is not None and [row[:2] for row in chart.table.rows] == [["replaced", 55], ["not replaced", 35]]
    titles = [block.title for block in made.blocks if isinstance(block, Changes)]
    assert titles == [
        "auto-correct: 30 of 55 answers replaced",
        "auto-correct: 12 candidates that it did not take",
    ]
    said = {row.said for block in made.blocks if isinstance(block, Changes) for row in block.rows}
    assert f"{REFUSED} · confidence 0.7 against 0.8" in said


def test_the_page_marks_what_went_and_what_came(seen: View) -> None:
    made = section.sections(seen)
    page = render("A page", "", made)
    assert page.count("<ins>") >= 30 and "&lt;b&gt;" in page
    assert not re.search(r"<(script>window|img|svg onload|b>)", page.partition("<main")[2].partition("</main>")[0])
    for change in seen.corrections[0].made[:3]:
        assert visible(change.id) in page
    everything, problems = sections(seen)
    assert not problems and [s.title for s in everything][:2] == ["Where the rows went", "Corrections"]


def test_rows_of_the_report_have_their_new_answers(seen: View) -> None:
    corrected = [sample for sample in seen.samples if sample.decision == "corrected"]
    assert len(corrected) == 60  # the ledger of this test calls all so that the first correction replaced
    for sample in corrected:
        assert sample.turns[-1][0] == "corrected" and "<b>" in sample.turns[-1][1]
    assert all(sample.turns[-1][0] != "corrected" for sample in seen.samples if sample.decision != "corrected")


def test_nothing_is_shown_of_a_run_without_corrections(tmp_path: Path) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(30))
    scorers = {"rating": {"use": "column", "column": "rating"}}
    plain = view(run(pool, tmp_path / "run", scorers=scorers, select=[]).store)
    assert not plain.corrections and section.sections(plain) == []


def test_reasons_with_evidence_are_one_in_the_table() -> None:
    many = [f"score above 0.5: {word} was seen" for word in "abcdefgh"] + ["score above 0.5: a was seen"]
    few = [f"no likelihood: {word}" for word in "xyz"]
    reasons = [*many, *few, "after the last row kept"]
    columns = {"decision": "dropped", "stage": "1-threshold"}
    ledger = pl.DataFrame({"reason": reasons, "kind": reasons}).with_columns(
        *(pl.lit(value).alias(name) for name, value in columns.items())
    )
    ledger = ledger.with_columns(pl.col(pl.String).cast(pl.Categorical))
    (table,) = flow._reasons(View({}, "", ledger, {}, lambda name: pytest.fail(name)))
    assert isinstance(table, Table)
    assert [row[2:5] for row in table.rows] == [
        ["score above 0.5: …", 8, 9],
        ["after the last row kept", None, 1],
        ["no likelihood: x", None, 1],
        ["no likelihood: y", None, 1],
        ["no likelihood: z", None, 1],
    ]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(seen: View, browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    page_file = tmp_path / "page.html"
    made: list[Section] = section.sections(seen)
    page_file.write_bytes(render("A page", "", made).encode("utf-8", "backslashreplace"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(page_file.as_uri())
    for details in page.locator("details.examples").all():
        details.locator("> summary").click()
    assert page.locator("#corrections ins:visible").count() >= 30
    assert page.evaluate("window.pwned") is None and not complaints
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    struck = page.locator("#corrections del").first
    assert "line-through" in struck.evaluate("e => getComputedStyle(e).textDecorationLine")
    context.close()
