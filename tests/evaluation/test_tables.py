"""What is told of an outcome: sentences, the overview, the page."""

from __future__ import annotations

from curate.evaluation import tables
from curate.evaluation.grid import Point
from tests.evaluation.outcomes import made_up

POINTS = [Point("rows", 100), Point("tokens", 100, 23_456), Point("tokens", None, 50_000)]


def test_the_overview_is_best_first_and_marks_what_is_more_than_chance() -> None:
    heads, rows = tables.overview(made_up(4, POINTS))
    assert heads[1:4] == ["equal rows, 100 rows", "equal tokens, 23,456 tokens", "equal tokens, 50,000 tokens"]
    assert rows[0][0] == "run-1" and rows[-1][0] == "zero-shot" and rows[-2][0] == "run-4"
    assert all(cell.endswith(" ▲") for cell in rows[0][1:4]) and all(cell.endswith(" ▼") for cell in rows[-2][1:4])
    assert rows[0][4:] == ["13 s", "0.4%"] and rows[-1][4:] == ["–", "–"]


def test_of_many_runs_the_page_begins_with_the_first_baseline_alone() -> None:
    few, many = made_up(1, POINTS[:1]), made_up(12, POINTS)
    assert len(tables.headlines(few)) == len(tables.said(few)) == 4
    assert len(tables.headlines(many)) == 36 and len(tables.said(many)) == 144
    page = tables.markdown(many)
    assert page.count("## ") == 3 + 3  # verdicts, three comparisons, validity, cost
    assert page.count("- **run-1**: ") == 3 * 4  # in full below
    assert "- **run-1**" not in tables.markdown(few)  # once is enough
    assert tables.markdown(many, brief=True).count("## ") == 3


def test_no_column_of_right_answers_where_none_was_asked() -> None:
    assert "right answers" in tables.page(made_up(2, POINTS))
    assert "right answers" not in tables.page(made_up(2, POINTS, right=False))


def test_curves_have_as_many_lines_as_there_are_colours() -> None:
    page = tables.page(made_up(12, POINTS))
    assert "Loss of 8 selections over budgets" in page
    assert "Loss of 5 selections over budgets" in tables.page(made_up(2, POINTS))
