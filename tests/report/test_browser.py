"""The page in headless Chromium: what a reader sees, hears and does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from curate.pipelines.compare import compare, write_page
from tests.conftest import rows_of, write_jsonl
from tests.pipelines.helpers import run

Open = Callable[..., Any]
WIDTHS = (1280, 400)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a file; the test fails at its end if the page complained or asked for anything but itself."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def opened(path: Path, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: complaints.append(f"error: {e}"))
        page.on("request", lambda r: complaints.append(f"request: {r.url}") if r.url != path.as_uri() else None)
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    pool = write_jsonl(folder / "pool/rows.jsonl", rows_of(120))
    for name, use in (("one", {"use": "random"}), ("two", {"use": "longest", "on": "heuristics.response_chars"})):
        run(pool, folder / name, name=name, select=[{**use, "budget": "30%"}], report=False)
    return Path(write_page(compare([folder / "one", folder / "two"]), folder / "page.html"))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from curate.evaluation import tables
    from curate.evaluation.grid import Point
    from tests.evaluation.outcomes import made_up

    points = [Point("rows", 100), Point("rows", 400), Point("tokens", 100, 23_456), Point("tokens", None, 200_000)]
    path = tmp_path_factory.mktemp("evaluated") / "report.html"
    path.write_text(tables.page(made_up(9, points)), encoding="utf-8")
    return path


def test_no_row_runs_anything_or_loads_anything(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html")
    for mark in page.locator(".plot [data-tip]").all()[:60]:
        mark.dispatch_event("pointermove")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.scripts.length") == 1
    assert page.locator("main img, main iframe, main object, main a, main [onload], main [onerror]").count() == 0


def test_the_policy_stops_a_script_that_gets_in_all_the_same(nasty_run: Path, browser: Any, tmp_path: Path) -> None:
    text = (nasty_run / "report.html").read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("<main ", "<script>window.pwned = 1</script><main ", 1), encoding="utf-8")
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda m: refused.append(m.text))
    page.goto(broken.as_uri())
    assert page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in text for text in refused)
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_is_drawn_and_fits(nasty_run: Path, open_page: Open, width: int, scheme: str) -> None:
    page = open_page(nasty_run / "report.html", width, scheme)
    figures = page.locator("figure.chart")
    assert figures.count() > 20
    for figure in figures.all():
        shown = [plot for plot in figure.locator(".plot").all() if plot.is_visible()]
        title = figure.locator("h3").inner_text()
        assert len(shown) == 1, f"{title}: {len(shown)} drawings are shown"
        sizes = (
            shown[0]
            .locator("[data-tip]")
            .evaluate_all(
                "marks => marks.map(m => { const b = m.getBoundingClientRect(); return Math.max(b.width, b.height); })"
            )
        )
        assert sizes and max(sizes) > 1, f"{title}: no mark to be seen"
        box = shown[0].bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, f"{title} reaches out of the page"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"


@pytest.mark.parametrize("width", WIDTHS)
def test_no_labels_of_a_plot_overlap(nasty_run: Path, open_page: Open, width: int) -> None:
    page = open_page(nasty_run / "report.html", width)
    overlaps = page.evaluate(
        """() => {
          const out = [];
          for (const plot of document.querySelectorAll(".plot")) {
            const boxes = [...plot.querySelectorAll("text")].filter(t => t.textContent.trim() && t.getBoundingClientRect().width)
              .map(t => [t.textContent, t.getBoundingClientRect()]);
            boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
              const w = Math.min(p.right, q.right) - Math.max(p.left, q.left);
              const h = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
              if (w > 1 && h > 3) out.push(`${a} | ${b}`);
            }));
          }
          return out;
        }"""
    )
    assert not overlaps


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
@pytest.mark.parametrize("which", ["report", "comparison", "evaluation"])
def test_axe_finds_nothing(
    nasty_run: Path, comparison: Path, evaluation: Path, open_page: Open, which: str, width: int, scheme: str
) -> None:
    pages = {"report": nasty_run / "report.html", "comparison": comparison, "evaluation": evaluation}
    page = open_page(pages[which], width, scheme)
    for details in page.locator("main > section:not(#rows-and-reasons) details").all()[:6]:
        details.evaluate("d => { d.open = true; }")
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    told = [f"{v['impact']} {v['id']}: {v['help']}, e.g. {v['nodes'][0]['html'][:150]}" for v in found["violations"]]
    assert not told, "\n".join(told)


def test_search_and_filters_by_keyboard(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html")
    rows = page.locator("ol.rows > li")
    total = rows.count()
    told = page.locator("form.filter output")
    assert told.inner_text() == f"{total} of {total} rows" and total > 200

    page.locator("input[name=words]").focus()
    page.keyboard.type("ANSWER 4")  # every word, in any case
    answers = [text for text in rows.all_text_contents() if "answer" in text.lower() and "4" in text]
    assert 0 < len(answers) < total and told.inner_text() == f"{len(answers)} of {total} rows"
    page.keyboard.press("Tab")
    page.keyboard.press("r")  # a select takes the first letter: rejected
    assert page.locator("select[name=decision]").input_value() == "rejected"
    assert told.inner_text() == f"0 of {total} rows" and page.locator(".nothing").is_visible()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    visible = [row for row in rows.all() if row.is_visible()]
    assert len(visible) == 6 and all(row.get_attribute("data-decision") == "rejected" for row in visible)
    for _ in range(5):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "reset"
    page.keyboard.press("Enter")
    page.wait_for_timeout(50)
    assert told.inner_text() == f"{total} of {total} rows"


def test_each_filter_shows_its_rows_and_no_others(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html")
    for name in ("decision", "stage", "source", "kind"):
        select = page.locator(f"select[name={name}]")
        options = [o.get_attribute("value") for o in select.locator("option").all()][1:]
        assert len(options) > 1
        data = page.locator("ol.rows > li").evaluate_all(f"rows => rows.map(r => r.dataset.{name})")
        for value in options[:20]:
            select.select_option(value)
            count = int(page.locator("form.filter output").inner_text().split()[0])
            assert count == data.count(value) > 0, (name, value)
        select.select_option("")


def test_more_rows_are_shown_when_asked(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html")
    shown = "document.querySelectorAll('ol.rows > li:not([hidden])').length"
    assert page.evaluate(shown) == 25
    page.locator("button.more").focus()
    page.keyboard.press("Enter")
    assert page.evaluate(shown) == 50
    assert page.evaluate("[...document.querySelectorAll('ol.rows > li')].indexOf(document.activeElement)") == 25


def test_without_scripts_every_row_and_plot_is_there(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html", java_script_enabled=False)
    assert page.locator("ol.rows > li").last.is_visible()
    assert page.locator(".plot svg").first.is_visible()
    assert not page.locator("#theme").is_visible()  # a switch that cannot switch is not shown


def test_pointing_at_a_mark_tells_what_it_is(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html")
    mark = page.locator("#where-the-rows-went .plot.broad [data-tip]").first
    mark.hover()
    tip = page.locator("#tip")
    assert tip.is_visible() and tip.inner_text() == mark.get_attribute("data-tip")
    assert re.fullmatch(r"read: \d+ rows go on \([\d.]+% of all\)", tip.inner_text())
    page.locator("h1").hover()
    assert not tip.is_visible()


def test_the_switch_turns_light_into_dark_and_back(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    dark = page.evaluate(background)
    assert dark != light and page.locator("#theme").inner_text() == "Light"
    bar = page.locator(".plot .mark-rect path, .plot path[fill='var(--kept)']").first
    assert page.evaluate("m => getComputedStyle(m).fill", bar.element_handle()) == "rgb(90, 169, 230)"
    page.keyboard.press("Enter")
    assert page.evaluate(background) == light


def test_hidden_characters_are_spelt_out(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html")
    text = page.evaluate("document.documentElement.textContent")
    assert not re.findall("[\u202a-\u202e\u2066-\u2069\u200b\u2028\u2029\x00\x07]", text)
    for spelt in ("⟨U+202E⟩user⟨U+202C⟩", "line⟨U+2028⟩separator", "zero⟨U+200B⟩width", "bell ⟨U+0007⟩"):
        assert spelt in text
    assert "👨\u200d👩\u200d👧" in text  # joined by what must stay


def test_what_is_printed_has_no_buttons(nasty_run: Path, open_page: Open) -> None:
    page = open_page(nasty_run / "report.html", scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator("form.filter").is_visible() and not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_comparison_is_a_page_of_the_same_kind(comparison: Path, open_page: Open) -> None:
    page = open_page(comparison)
    assert page.locator("h1").inner_text() == "Runs compared: one · two"
    page.locator("select[name=stage]").select_option("two")
    shown = [row for row in page.locator("ol.rows > li").all() if row.is_visible()]
    assert shown and all(row.get_attribute("data-stage") == "two" for row in shown)


@pytest.mark.parametrize("width", WIDTHS)
def test_an_evaluation_fits_and_each_of_its_plots_is_drawn(evaluation: Path, open_page: Open, width: int) -> None:
    page = open_page(evaluation, width)
    assert page.locator("figure.chart").count() == 4 + 2  # gains of each comparison, and two curves
    for figure in page.locator("figure.chart").all():
        (shown,) = [plot for plot in figure.locator(".plot").all() if plot.is_visible()]
        box = shown.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("main details").first.is_visible()
    page.locator("main details summary", has_text="Gain on each baseline").first.click()
    assert page.locator("details[open] table").first.is_visible()
