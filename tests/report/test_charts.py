from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.report.blocks import Chart, Share, Table
from curate.report.charts import NARROW, SERIES, bars, composition, count, draw, edges, histogram, intervals

BAR: dict[str, Any] = {
    "data": {"values": [{"a": "x", "n": 3, "tip": "three"}]},
    "mark": "bar",
    "encoding": {"x": {"field": "n", "type": "quantitative"}, "y": {"field": "a"}, "description": {"field": "tip"}},
}
VALUES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50).map(np.array)


def changed(spec: dict[str, Any], **row: Any) -> dict[str, Any]:
    return {**spec, "data": {"values": [{**spec["data"]["values"][0], **row}]}}


# -- bins --------------------------------------------------------------------------------------------------------------


@given(VALUES)
def test_every_value_falls_into_one_bin(x: np.ndarray) -> None:
    limits, _ = edges(x)
    assert (np.diff(limits) > 0).all()
    assert count(x, limits).sum() == x.size


def test_few_whole_numbers_have_a_bin_each():
    x = np.array([1.0, 2, 2, 5])
    limits, logarithmic = edges(x)
    assert limits.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5] and not logarithmic
    assert count(x, limits).tolist() == [1, 2, 0, 0, 1]


def test_what_lies_far_out_counts_in_the_last_bar():
    x = np.r_[np.linspace(0, 1, 1000), 1e6]
    limits, _ = edges(x)
    assert limits[-1] < 2
    assert count(x, limits)[-1] > count(x, limits)[-2]


def test_long_tails_above_zero_get_a_logarithmic_axis():
    limits, logarithmic = edges(np.geomspace(1, 1e5, 1000))
    assert logarithmic and np.allclose(np.diff(np.log(limits)), np.log(limits[1] / limits[0]))
    assert not edges(np.r_[0.0, np.geomspace(1, 1e5, 1000)])[1]  # zero has no logarithm


@pytest.mark.parametrize("value", [0.0, -3.0, 1e12, 1e-9])
def test_one_value_is_one_bar(value: float) -> None:
    limits, _ = edges(np.full(5, value))
    assert count(np.full(5, value), limits).tolist() == [5]


def test_a_histogram_holds_shares_of_each_side_that_sum_to_one():
    chart = histogram("s", np.arange(10.0), np.arange(200.0), axis="", thresholds={4.0: "Dashed line: step, 4."})
    layers = chart.spec["layer"]
    for layer, n in zip(layers[:2], (200, 10), strict=True):
        assert sum(row["share"] for row in layer["data"]["values"]) == pytest.approx(1)
        assert f"of {n} " in layer["data"]["values"][0]["tip"]
    assert layers[2]["data"]["values"] == [{"at": 4.0, "tip": "Dashed line: step, 4."}]
    assert "Dashed line: step, 4." in chart.note
    assert isinstance(chart.table, Table) and [row[:3] for row in chart.table.rows] == [
        ["kept", 10, 4.5],
        ["dropped", 200, 99.5],
    ]


@pytest.mark.parametrize(("kept", "dropped"), [([1.0], []), ([], [1.0]), ([1.0, 1.0], [1.0])])
def test_a_side_may_be_empty(kept: list[float], dropped: list[float]) -> None:
    chart = histogram("s", np.array(kept), np.array(dropped), axis="unit")
    assert "data-tip" in draw(chart.spec, NARROW)


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_a_mark_carries_its_description_and_the_pages_colours():
    root = ElementTree.fromstring(draw(BAR, NARROW))
    marks = [e for e in root.iter() if e.get("data-tip")]
    assert [m.get("data-tip") for m in marks] == ["three"]
    assert marks[0].get("fill") == "var(--kept)"
    assert float(root.get("width", "0")) == pytest.approx(NARROW, abs=2)


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet=st.characters(codec=None), max_size=30))
def test_any_text_is_text(text: str) -> None:
    root = ElementTree.fromstring(draw(changed(BAR, a=f"n{text}", tip=f"t{text}"), NARROW))
    assert {e.tag.rpartition("}")[2] for e in root.iter()} <= {
        "svg",
        "g",
        "path",
        "line",
        "text",
        "tspan",
        "rect",
        "defs",
        "clipPath",
    }
    assert not [a for e in root.iter() for a in e.attrib if a.startswith("on") or a in ("style", "href")]
    assert [e for e in root.iter() if (e.get("data-tip") or "").startswith("t")]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"mark": "image", "encoding": {"url": {"value": "data:image/png;base64,AAAA"}}}, "image"),
        ({"mark": {"type": "bar", "href": "https://example.org"}}, "an element 'a'"),
    ],
)
def test_what_loads_or_links_is_refused(change: dict[str, Any], found: str) -> None:
    with pytest.raises(InputError, match=f"a chart may hold marks and texts.*{found}"):
        draw({**BAR, **change}, NARROW)


def test_a_chart_fetches_nothing():
    spec = {**BAR, "data": {"url": "http://127.0.0.1:9/rows.json"}}
    with pytest.raises(InputError, match="cannot be drawn"):
        draw(spec, NARROW)


def test_nonsense_is_an_error_of_ours():
    with pytest.raises(InputError, match="a chart's specification cannot be drawn"):
        draw({"mark": 3}, NARROW)


# -- shares ------------------------------------------------------------------------------------------------------------


def test_more_values_than_colours_are_drawn_as_others():
    names = [f"s{i}" for i in range(12)]
    counts = {"pool": np.arange(12, 0, -1), "run": np.r_[5, np.zeros(11, dtype=int)]}
    chart = composition("source", names, counts)
    rows = chart.spec["data"]["values"]
    assert [r["name"] for r in rows if r["pick"] == "pool"] == [*names[: SERIES - 1], "5 others"]
    for pick, total in (("pool", 78), ("run", 5)):
        mine = [r for r in rows if r["pick"] == pick]
        assert sum(r["share"] for r in mine) == pytest.approx(1)
        assert sum(int(re.search(r": ([\d,]+) rows", r["tip"])[1]) for r in mine) == total  # type: ignore[index]
    assert chart.table is not None and len(chart.table.rows) == 12


def test_bars_have_one_mark_a_name_and_series():
    table = Table("", ["a"], [])
    chart = bars("by x", ["a", "b"], {"kept": [0.5, 0.5], "dropped": [1.0, 0.0]}, alt="", table=table)
    assert draw(chart.spec, NARROW).count("data-tip=") == 4


def test_intervals_tell_the_median():
    chart = intervals("s", {"one": [0, 1, 2, 3, 4], "two": [1, 1, 1, 1, 1]}, axis="unit")
    assert isinstance(chart, Chart) and "one: median 2, half of the rows in 1 to 3" in draw(chart.spec, NARROW)


def test_a_share_is_a_number_with_a_colour():
    assert Share(0.5).kind == "kept"


def test_drawings_are_the_same_whatever_was_drawn_before_and_their_ids_their_own():
    clipped = {**BAR, "mark": {"type": "bar", "clip": True}}
    one = draw(clipped, NARROW)
    other = draw(changed(clipped, n=5), NARROW)
    assert draw(clipped, NARROW) == one
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    for svg, own in zip((one, other), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= own
