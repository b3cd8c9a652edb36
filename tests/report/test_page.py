"""The page as text: escaping, the policy, addresses, sections of other packages."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.report.blocks import Chart, Code, Facts, Section, Share, Table, Text
from curate.report.page import render
from curate.report.sections import sections
from curate.report.view import View
from tests.report.conftest import ATTACKS


class Reader(HTMLParser):
    """Collects elements, their attributes and their text; of a drawing, whose ticks go by its labels, the kinds alone."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.drawn: set[str] = set()
        self.inside = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if self.inside:
            self.drawn.add(tag)
        else:
            self.tags.append(tag)
        self.inside += tag == "svg"

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag == "svg"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def blocks_of(text: str) -> list[Any]:
    spec = {"data": {"values": [{"a": text, "n": 1, "tip": text}]}, "mark": "bar",
            "encoding": {"x": {"field": "n", "type": "quantitative"}, "y": {"field": "a"}, "description": {"field": "tip"}}}  # fmt: skip
    return [
        Text(text),
        Facts([(text, text), ("n", 3), ("none", None)]),
        Table(text, [text, "share"], [[text, Share(0.5)], [None, Share(1.0, "dropped")]]),
        Code(text, text),
        Chart(text, spec, text, Table(text, [text], [[text]], folded=True), note=text),
    ]


@pytest.mark.parametrize("attack", [a for a in ATTACKS if len(a) < 1000])
def test_the_elements_of_a_page_do_not_depend_on_its_texts(attack: str) -> None:
    plain = Reader(render("x", "x", [Section("x", blocks_of("x"))], made="x"))
    page = Reader(render(attack, attack, [Section(attack, blocks_of(attack))], made=attack))
    assert page.tags == plain.tags and page.drawn <= {"g", "path", "line", "text", "rect"}
    names = {(tag, name) for tag, name, _ in plain.attributes}
    assert {(tag, name) for tag, name, _ in page.attributes} <= names
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "style")]


@settings(max_examples=20, deadline=None)
@given(st.text(alphabet=st.characters(codec=None), min_size=1, max_size=40))
def test_any_text_comes_out_as_text(text: str) -> None:
    from curate.report.text import visible

    page = Reader(render("t", "s", [Section("x", [Code(f"<{text}>")])]))
    assert f"<{visible(text)}>" in "".join(page.texts)


def test_the_policy_names_the_style_and_the_script_and_nothing_else():
    page = render("t", "s", [])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    said = policy[1].replace("&#39;", "'")
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in said
    assert said.startswith("default-src 'none'; ") and "unsafe" not in said and "http" not in said


def test_nothing_is_named_that_would_have_to_be_loaded(nasty_run: Path) -> None:
    page = Reader((nasty_run / "report.html").read_text(encoding="utf-8"))
    assert not {"link", "img", "iframe", "object", "embed", "base", "source", "video"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "action", "background", "ping")]
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href" and value)


def test_sections_of_one_title_have_addresses_of_their_own():
    page = render("t", "s", [Section("Same"), Section("Same"), Section("Same 2"), Section("—")])
    assert re.findall(r'<section id="([^"]*)"', page) == ["same", "same-2", "same-2-2", "section"]


def test_numbers_and_bars_of_a_table():
    page = render("t", "s", [Section("x", [Table("c", ["a", "n", "s"], [["r", 1234567, Share(0.25, "dropped")]])])])
    assert "1,234,567" in page and '<rect class="dropped" width="25.00"' in page and "25%" in page


# -- sections of other packages ----------------------------------------------------------------------------------------


@pytest.fixture
def small_view() -> View:
    words = {"stage": "1-top", "reason": "r", "kind": "r", "score_name": "s", "source": "a", "group": None}
    decisions = ["kept", "corrected", "dropped", "dropped", "duplicate", "rejected"]
    frame = pl.DataFrame({"decision": decisions, **{k: [v] * 6 for k, v in words.items()}}).cast(pl.Categorical)
    numbers = {
        "score": [1.0, 2, 3, 4, None, None],
        "threshold": [2.0] * 6,
        "cluster": [None] * 6,
        "chars": [10, 20, 30, 40, 50, None],
    }
    frame = frame.with_columns(
        pl.Series(k, v, dtype=pl.Float64 if k in ("score", "threshold") else pl.Int64) for k, v in numbers.items()
    )
    steps = [
        {
            "name": "1-top",
            "use": "top-k",
            "in": 4,
            "kept": 2,
            "dropped": 2,
            "score": "s",
            "threshold": 2.0,
            "budget": "2 rows",
        }
    ]
    return View({"name": "small", "select": steps, "seed": 0}, "sources: []\n", frame, {}, lambda _: None)  # type: ignore[arg-type, return-value]


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, **entries: str) -> None:
    """Install a package, as pip leaves it: a module, and a folder of facts about it."""
    (folder / "section_plugin.py").write_text(code, encoding="utf-8")
    info = folder / "section_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: section-plugin\nVersion: 1.0\n", encoding="utf-8")
    lines = "\n".join(f"{name} = section_plugin:{attribute}" for name, attribute in entries.items())
    (info / "entry_points.txt").write_text(f"[curate.sections]\n{lines}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "section_plugin", raising=False)


def test_a_corrected_row_is_part_of_the_result(small_view: View) -> None:
    assert small_view.counts == {"kept": 1, "corrected": 1, "dropped": 2, "duplicate": 1, "rejected": 1}
    assert small_view.kept.tolist() == [True, True, False, False]
    made, problems = sections(small_view)
    page = render("t", "s", made, counts=small_view.counts)
    assert not problems and 'class="corrected"' in page


def test_another_package_adds_a_section(small_view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from curate.report.blocks import Section, Text\n"
        "def rows(view): return [Section('From outside', [Text(f'{view.pool.height} rows <b>')])]\n"
    )
    offer(tmp_path, monkeypatch, code, outside="rows")
    made, problems = sections(small_view)
    assert made[-1].title == "From outside" and not problems
    assert "4 rows &lt;b&gt;" in render("t", "s", made)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def rows(view): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def rows(view): return ['text']", "TypeError: a list of curate.report.blocks.Section was asked"),
        ("raise ImportError('no such thing')", "ImportError: no such thing"),
    ],
)
def test_a_section_that_fails_is_told_and_the_others_stand(
    small_view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    before = len(sections(small_view)[0])
    offer(tmp_path, monkeypatch, code, outside="rows")
    made, problems = sections(small_view)
    assert problems == [f"the section 'outside' could not be made: {told}"]
    assert len(made) == before + 1 and told.partition(":")[0] in render("t", "s", made)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (
            Chart(
                "c",
                {
                    "data": {"values": [{}]},
                    "mark": "image",
                    "encoding": {"url": {"value": "data:image/png;base64,AAAA"}},
                },
                "a",
            ),
            "InputError",
        ),
        (Table("c", ["a"], [[object()]]), None),
        (Table("c", ["a", "b"], 3), "UndefinedError"),  # type: ignore[arg-type]
    ],
)
def test_a_section_that_cannot_be_shown_costs_no_other(block: Any, told: str | None) -> None:
    problems: list[str] = []
    page = render("t", "s", [Section("Good", [Text("stands")]), Section("Bad", [block])], problems=problems)
    assert "stands" in page
    if told is not None:
        assert problems and problems[0].startswith(f"the section 'Bad' could not be shown: {told}: ")
        assert "could not be shown" in page
        with pytest.raises(Exception, match=r"found in what it draws|has no element"):
            render("t", "s", [Section("Bad", [block])])
