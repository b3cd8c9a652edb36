"""Charts as Vega-Lite specifications, and their drawing as SVG.

The SVG is made when the page is made, by Vega itself (``vl-convert``), so a page carries pictures and no plotting code.
Colours and fonts are left to the page's style sheet: a specification says ``var(--kept)``, and the browser decides
between light and dark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.fingerprint import fingerprint
from curate.report.blocks import Chart, Share, Table
from curate.report.text import cut, number, percent, plural, short, visible

WIDE, NARROW = 1090, 340
"""Widths in pixels that charts are drawn at: the second in a column of its own, and on a phone."""
SERIES = 8
"""Colours for series that mean nothing by themselves; ``var(--c0)`` …"""

_AXIS = {
    "domainColor": "var(--line)",
    "gridColor": "var(--line)",
    "gridOpacity": 0.6,
    "labelColor": "var(--muted)",
    "labelFontSize": 11,
    "labelLimit": 0,
    "tickColor": "var(--line)",
    "titleColor": "var(--muted)",
    "titleFontSize": 11,
    "titleFontWeight": "normal",
}
_CONFIG = {
    "axis": _AXIS,
    "background": None,
    "font": "Helvetica, Arial, sans-serif",
    "legend": {
        "labelColor": "var(--muted)",
        "labelFontSize": 11,
        "labelLimit": 0,
        "symbolSize": 80,
        "symbolStrokeWidth": 0,
        "title": None,
    },
    "mark": {"color": "var(--kept)"},
    "text": {"color": "var(--muted)", "fontSize": 11},
    "view": {"stroke": None},
}
_SVG = "http://www.w3.org/2000/svg"
_ELEMENTS = {
    "svg",
    "g",
    "path",
    "line",
    "text",
    "tspan",
    "rect",
    "circle",
    "defs",
    "clipPath",
    "linearGradient",
    "stop",
}
_NEEDLESS = {
    "role",
    "aria-roledescription",
    "aria-hidden",
    "version",
    "font-family",
    "class",
    "stroke-miterlimit",
    "aria-label",
}
_LOCAL = re.compile(r"url\(#([^)]+)\)")
_DIGITS = re.compile(r"(\d\.\d{2})\d+")


def draw(spec: Mapping[str, Any], width: int) -> str:
    """Return a specification as SVG of ``width`` pixels, its own height, and nothing that runs or loads.

    Raises
    ------
    InputError
        If Vega cannot draw it, or if what it draws holds a link, an image or a script.
    """
    import vl_convert

    sized = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": width,
        "autosize": {"type": "fit-x", "contains": "padding"},
        **_clean(spec),
        "config": {**_CONFIG, **_clean(spec.get("config", {}))},
    }
    try:
        svg = str(vl_convert.vegalite_to_svg(sized, vl_version="5.20", allowed_base_urls=[]))
    except ValueError as error:
        raise InputError(f"a chart's specification cannot be drawn: {str(error).strip().splitlines()[0]}") from error
    return _plain(svg, fingerprint("chart", sized))


def _plain(svg: str, name: str) -> str:
    """Return an SVG of marks and texts alone, without what the page says better, and in hundredths of pixels.

    The page says what a chart shows, and gives its numbers as a table.  Of Vega's own words for screen readers only a
    mark's description stays, as ``data-tip``: it is what a reader sees on pointing at it.

    Vega numbers the ids of clips through the life of the process; on a page of many drawings, made again in another
    process, each chart's own ``name`` keeps them apart and the same.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    ids = {e.attrib["id"]: f"c{name}-{i}" for i, e in enumerate(e for e in root.iter() if "id" in e.attrib)}
    for element in root.iter():
        tag = element.tag.removeprefix(f"{{{_SVG}}}")
        if tag not in _ELEMENTS:
            raise InputError(f"a chart may hold marks and texts; an element {tag!r} was found in what it draws.")
        guide = re.search(r"role-(?:axis|legend|title)", element.get("class", ""))
        for key in list(element.attrib):
            if key.startswith("on") or key.endswith("href") or key == "style":
                raise InputError(f"a chart may hold marks and texts; an attribute {key!r} was found in what it draws.")
            if key == "aria-label" and element.attrib[key] and not guide:
                element.set("data-tip", element.attrib[key])
            if key in _NEEDLESS:
                del element.attrib[key]
            elif key in ("d", "transform"):
                element.set(key, _DIGITS.sub(r"\1", element.attrib[key]))
            elif key == "id":
                element.set(key, ids[element.attrib[key]])
            elif key in ("clip-path", "fill", "stroke"):
                element.set(key, _LOCAL.sub(lambda m: f"url(#{ids.get(m[1], m[1])})", element.attrib[key]))
    return ElementTree.tostring(root, encoding="unicode")


def _clean(value: Any) -> Any:
    """Return plain JSON values in which every text is ``visible``."""
    if isinstance(value, str):
        return visible(cut(value, 400))
    if isinstance(value, Mapping):
        return {visible(str(k)): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def values(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows as a specification's ``data``."""
    return {"values": list(rows)}


# -- two distributions -------------------------------------------------------------------------------------------------

BINS = 40


def edges(x: NDArray[np.float64], bins: int = BINS) -> tuple[NDArray[np.float64], bool]:
    """Return the limits of the bins of a histogram, and whether they are even on a logarithmic scale.

    From the 0.5% to the 99.5% quantile; logarithmic where all values are above 0 and the quantiles lie a factor of 100
    apart.  What lies outside belongs to the first and the last bin.
    """
    low, high = (float(q) for q in np.quantile(x, [0.005, 0.995], method="inverted_cdf"))
    if low == high:
        low, high = float(x.min()), float(x.max())
    if low == high:
        pad = max(abs(low) * 0.05, 0.5)
        return np.array([low - pad, high + pad]), False
    if float(x.min()) > 0 and high / low > 100:
        return np.geomspace(low, high, bins + 1), True
    whole = bool((x == np.floor(x)).all())
    if whole and high - low < bins:  # one bin a whole number, in its middle
        return np.arange(low - 0.5, high + 1), False
    return np.linspace(low, high, bins + 1), False


def count(x: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many values fall into each bin; those outside count in the first and the last one."""
    return np.histogram(np.clip(x, limits[0], limits[-1]), limits)[0]


def histogram(
    title: str,
    kept: NDArray[np.float64],
    dropped: NDArray[np.float64],
    *,
    axis: str,
    thresholds: Mapping[float, str] | None = None,
    note: str = "",
) -> Chart:
    """Two distributions on one axis, each as shares of its own rows; thresholds as lines.

    ``thresholds`` maps a number to what it is.  NaN may not be among the values.
    """
    both = np.r_[kept, dropped]
    limits, logarithmic = edges(both)
    outside = int(((both < limits[0]) | (both > limits[-1])).sum())
    rows = []
    for name, x in (("dropped", dropped), ("kept", kept)):
        for i, n in enumerate(count(x, limits).tolist()):
            if n:
                share = n / x.size
                span = f"{number(limits[i])} to {number(limits[i + 1])}"
                tip = f"{span}: {n:,} of {x.size:,} {name} ({percent(share)})"
                rows.append({"from": limits[i], "to": limits[i + 1], "share": share, "what": name, "tip": tip})
    scale: dict[str, Any] = {"type": "log"} if logarithmic else {"zero": False}
    marks = {"field": "from", "type": "quantitative", "title": axis, "scale": {**scale, "nice": False}}
    marks["axis"] = {"grid": False, "tickCount": 5, "format": _format(limits), "labelOverlap": True}
    layers: list[dict[str, Any]] = [
        {
            "data": values([r for r in rows if r["what"] == name]),
            "mark": {"type": "rect", "color": f"var(--{name})", "opacity": opacity},
            "encoding": {
                "x": marks,
                "x2": {"field": "to"},
                "y": {
                    "field": "share",
                    "type": "quantitative",
                    "title": None,
                    "axis": {"format": "~%", "tickCount": 4},
                },
                "y2": {"datum": 0},
                "description": {"field": "tip"},
            },
        }
        for name, opacity in (("dropped", 0.55), ("kept", 0.6))
        if any(r["what"] == name for r in rows)
    ]
    lines = {v: t for v, t in (thresholds or {}).items() if limits[0] <= v <= limits[-1]}
    if lines:
        at = [{"at": v, "tip": t} for v, t in lines.items()]
        layers.append(
            {
                "data": values(at),
                "mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [4, 3], "strokeWidth": 1.5},
                "encoding": {"x": {"field": "at", "type": "quantitative"}, "description": {"field": "tip"}},
            }
        )
    notes = [note] if note else []
    notes += list(dict.fromkeys((thresholds or {}).values()))[:3]
    if outside:
        notes.append(f"{plural(outside, 'row')} beyond the axis, counted in the first and last bar.")
    table = Table(
        f"{title}: quantiles",
        ["", "rows", "mean", "5%", "25%", "50%", "75%", "95%"],
        [[name, x.size, *_quantiles(x)] for name, x in (("kept", kept), ("dropped", dropped)) if x.size],
        folded=True,
    )
    alt = f"Distribution of {title} among {kept.size:,} kept and {dropped.size:,} dropped rows."
    return Chart(title, {"height": 130, "layer": layers}, alt, table, " ".join(notes), key=("kept", "dropped"))


def _format(limits: NDArray[np.float64]) -> str:
    """Return d3's word for the numbers of an axis: 12k, 1,200, 0.25, 2e-5."""
    largest = float(np.abs(limits).max())
    return "~s" if largest >= 1e4 else ",~f" if largest >= 0.01 else "~g"


def _quantiles(x: NDArray[np.float64]) -> list[float]:
    return [float(x.mean()), *(float(q) for q in np.quantile(x, [0.05, 0.25, 0.5, 0.75, 0.95]))]


# -- shares of categories ----------------------------------------------------------------------------------------------


def bars(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]], *, alt: str, table: Table) -> Chart:
    """Horizontal bars, one for each name and series; ``series`` maps kept, dropped … to shares in [0, 1]."""
    labels = short(names)
    rows = [
        {"name": label, "what": what, "share": share, "tip": f"{name}: {percent(share)} of the {what}"}
        for what, shares in series.items()
        for label, name, share in zip(labels, names, shares, strict=True)
    ]
    spec = {
        "data": values(rows),
        "height": {"step": 9},
        "mark": "bar",
        "encoding": {
            "y": {
                "field": "name",
                "type": "nominal",
                "sort": labels,
                "title": None,
                "axis": {"ticks": False, "domain": False},
                "scale": {"paddingInner": 0.3},
            },
            "yOffset": {"field": "what", "sort": list(series)},
            "x": {"field": "share", "type": "quantitative", "title": None, "axis": {"format": "~%", "tickCount": 4}},
            "color": {
                "field": "what",
                "type": "nominal",
                "scale": {"domain": list(series), "range": [f"var(--{what})" for what in series]},
                "legend": None,
            },
            "description": {"field": "tip"},
        },
    }
    return Chart(title, spec, alt, table, key=tuple(series))


# -- several selections -----------------------------------------------------------------------------------------------


def composition(
    label: str, names: Sequence[str], counts: Mapping[str, NDArray[np.int64]], *, ordered: bool = False
) -> Chart:
    """Shares of a label's values in several selections: a bar each, the largest values in colours of their own.

    ``counts`` maps a selection to the rows that it has of each name; ``ordered`` says that the names stand in an order
    that means something, and are few.
    """
    total_of = np.sum(list(counts.values()), axis=0)
    order = list(range(len(names))) if ordered else sorted(range(len(names)), key=lambda i: (-total_of[i], names[i]))
    head = order if len(names) <= SERIES else order[: SERIES - 1]
    rest = [i for i in order if i not in set(head)]
    other = f"{len(rest):,} others"
    shown = short([*(names[i] for i in head), *([other] if rest else [])])
    picks = short(list(counts))
    rows = []
    for told, (pick, found) in zip(picks, counts.items(), strict=True):
        total = max(1, int(found.sum()))
        shares = [(names[i], int(found[i])) for i in head] + ([(other, int(found[rest].sum()))] if rest else [])
        for place, (name, n) in enumerate(shares):
            tip = f"{pick}: {n:,} rows of {name} ({percent(n / total)})"
            rows.append({"pick": told, "name": shown[place], "share": n / total, "place": place, "tip": tip})
    spec = {
        "data": values(rows),
        "height": {"step": 24},
        "mark": {"type": "bar"},
        "encoding": {
            "y": {
                "field": "pick",
                "type": "nominal",
                "sort": picks,
                "title": None,
                "axis": {"ticks": False, "domain": False},
            },
            "x": {
                "field": "share",
                "type": "quantitative",
                "title": None,
                "axis": {"format": "~%", "tickCount": 4},
                "scale": {"domain": [0, 1]},
            },
            "order": {"field": "place"},
            "color": {
                "field": "name",
                "type": "nominal",
                "scale": {"domain": shown, "range": [f"var(--c{i})" for i in range(len(shown))]},
                "legend": {"orient": "bottom", "columns": 2},
            },
            "description": {"field": "tip"},
        },
    }
    table = Table(
        f"Rows by {label}",
        [label, *(word for pick in counts for word in (pick, "share"))],
        [
            [
                names[i],
                *(cell for found in counts.values() for cell in (int(found[i]), Share(found[i] / max(1, found.sum())))),
            ]
            for i in order[:40]
        ],
        folded=True,
    )
    return Chart(f"by {label}", spec, f"Shares of {len(names):,} values of {label} in each selection.", table)


def intervals(title: str, spans: Mapping[str, Sequence[float]], *, axis: str, table: Table | None = None) -> Chart:
    """Where the middle of several distributions lies: ``spans`` maps a name to its quantiles 5, 25, 50, 75 and 95%."""
    labels = short(list(spans))
    rows = [
        {
            **dict(zip(("p5", "p25", "p50", "p75", "p95"), map(float, span), strict=True)),
            "name": label,
            "tip": f"{name}: median {number(span[2])}, half of the rows in {number(span[1])} to {number(span[3])}",
        }
        for label, (name, span) in zip(labels, spans.items(), strict=True)
    ]
    limits = np.array([span[i] for span in spans.values() for i in (0, 4)])
    y = {
        "field": "name",
        "type": "nominal",
        "sort": labels,
        "title": None,
        "axis": {"ticks": False, "domain": False},
    }
    scale = {"zero": False, "nice": False, "padding": 6}
    ticks = {"tickCount": 5, "format": _format(limits), "labelOverlap": True}

    def x(field: str) -> dict[str, Any]:
        return {"field": field, "type": "quantitative", "title": axis or None, "scale": scale, "axis": ticks}

    tip = {"description": {"field": "tip"}}
    spec = {
        "data": values(rows),
        "height": {"step": 24},
        "layer": [
            {
                "mark": {"type": "rule", "color": "var(--muted)"},
                "encoding": {"y": y, "x": x("p5"), "x2": {"field": "p95"}, **tip},
            },
            {
                "mark": {"type": "bar", "height": 10, "opacity": 0.7},
                "encoding": {"y": y, "x": x("p25"), "x2": {"field": "p75"}, **tip},
            },
            {
                "mark": {"type": "tick", "color": "var(--ink)", "thickness": 2, "height": 14},
                "encoding": {"y": y, "x": x("p50"), **tip},
            },
        ],
    }
    alt = f"Median, middle half and middle nine tenths of {title} in {len(rows)} selections."
    return Chart(title, spec, alt, table)


# -- how columns go together -------------------------------------------------------------------------------------------


def correlations(title: str, names: Sequence[str], rho: NDArray[np.float64], *, table: Table) -> Chart:
    """A square a pair of columns, the darker the nearer |ρ| is to 1; ``rho`` is (m, m), NaN where it is none."""
    numbers = [str(i) for i in range(1, len(names) + 1)]  # names stand once, in front: below, they would not fit
    labels = [f"{name} {number}" for name, number in zip(short(names), numbers, strict=True)]
    rows = []
    for i, line in enumerate(rho):
        for j, value in enumerate(line):
            if i == j or math.isnan(value):
                continue
            sign, said = "positive" if value >= 0 else "negative", f"{value:.2f}"
            tip = f"{names[i]} and {names[j]}: {said}"
            rows.append({"a": labels[i], "b": numbers[j], "size": abs(value), "sign": sign, "rho": said, "tip": tip})
    bare = {"ticks": False, "domain": False}
    place = {
        "y": {"field": "a", "type": "nominal", "title": None, "scale": {"domain": labels}, "axis": bare},
        "x": {
            "field": "b",
            "type": "nominal",
            "title": None,
            "scale": {"domain": numbers},
            "axis": {**bare, "orient": "top", "labelAngle": 0},
        },
        "description": {"field": "tip"},
    }
    colour = {
        "field": "sign",
        "type": "nominal",
        "scale": {"domain": ["positive", "negative"], "range": ["var(--c0)", "var(--c1)"]},
        "legend": {"orient": "bottom"},
    }
    shade = {
        "field": "size",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": [0.04, 0.85]},
        "legend": None,
    }
    layer: list[dict[str, Any]] = [{"mark": "rect", "encoding": {**place, "color": colour, "opacity": shade}}]
    if len(names) <= 9:  # more have no room for it on a narrow screen; the tips and the table have them all
        mark = {"type": "text", "color": "var(--ink)", "fontSize": 10}
        layer.append({"mark": mark, "encoding": {**place, "text": {"field": "rho"}}})
    spec = {"data": values(rows), "height": {"step": 26}, "layer": layer}
    alt = f"Rank correlations of {len(names)} columns with each other."
    return Chart(title, spec, alt, table, wide=True)
