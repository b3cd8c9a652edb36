"""What is told of an outcome: sentences, the overview, the page."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from curate.evaluation import costs, tables
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


def test_costs_count_fits_selection_and_a_shared_pass_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {
        "likelihood": {
            "use": "likelihood",
            "rows": 100,
            "tokens": 4000,
            "seconds_of_work": 5.0,
            "together_with": ["ifd"],
        },
        "ifd": {"use": "ifd", "rows": 100, "tokens": 4000, "seconds_of_work": 5.0, "together_with": ["likelihood"]},
        "length": {"use": "length", "rows": 100, "tokens": 9000, "seconds_of_work": 1.0, "seconds_of_fit": None},
        "gradients": {"use": "gradients", "rows": 100, "tokens": 4000, "seconds_of_work": 20.0, "seconds_of_fit": 30.0},
        "clusters": {"use": "clusters", "rows": 100, "tokens": None, "seconds_of_work": 0.5, "seconds_of_fit": 0.5},
    }
    run = SimpleNamespace(
        manifest={"stages": stages, "seconds_select_and_write": 8.0}, index=SimpleNamespace(n=100), store=None
    )
    model = {
        name: SimpleNamespace(params=lambda: {"model": "m"}) for name in ("likelihood", "ifd", "length", "gradients")
    }
    scorers = {**model, "clusters": SimpleNamespace(params=lambda: {})}
    monkeypatch.setattr(costs, "recipe_of", lambda store: SimpleNamespace(scorers=scorers))
    monkeypatch.setattr(costs, "parameters", lambda model: 10)
    drawn = {"selection": "random", "tokens": 1000, "rows": 5, "epochs": 2, "seconds_steps": 2.0, "flops": 6e4}
    recipe = SimpleNamespace(training=SimpleNamespace(epochs=2))
    (row,) = costs.of_runs([run], ["run"], [drawn], recipe)  # type: ignore[list-item, arg-type]
    assert row["seconds"] == 5 + 5 + 1 + 50 + 1 + 8
    read = 100 * 100  # rows of 100 tokens, as the training drew them
    assert row["tokens"] == read / 2 + read / 2 + read
    assert row["flops"] == 2 * 10 * read + 4 * 10 * read
    assert row["everything_tokens"] == 100 * 2 * 100 and row["everything_seconds"] == 40.0 and row["ratio"] == 70 / 40
