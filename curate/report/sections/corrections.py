"""What corrections did: how many answers, by which rule, how sure; and some of the changes, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.diff import brief, diff
from curate.report.blocks import Block, Changed, Changes, Chart, Section, Share, Table, Text
from curate.report.charts import values
from curate.report.text import cut, number, percent, plural

if TYPE_CHECKING:
    from curate.report.view import Change, Correction, View

TITLE = "Corrections"
BINS = 40
RULES = 30
"""Rules that a table lists; the others are counted."""
_CHARS, _QUESTION, _PAIRS = 6_000, 600, 20_000  # so that the changes shown take little room, and little time to find
_KINDS = {"replace": "corrected", "keep": "kept"}


def sections(view: View) -> list[Section]:
    blocks = [block for found in view.corrections for block in _blocks(found)]
    return [Section(TITLE, blocks)] if blocks else []


def _blocks(found: Correction) -> list[Block]:
    out: list[Block] = [Text(_summary(found)), _rules(found)]
    if (rest := len({rule for rule, *_ in found.counts})) > RULES:
        out.append(Text(f"And {plural(rest - RULES, 'rarer rule')}; corrections/ has every row's own."))
    if not np.isnan(found.confidence).all():
        out.append(_confidence(found))
    replaced = int(found.replaced.sum())
    if found.made:
        out.append(
            Changes(f"{found.name}: {len(found.made):,} of {replaced:,} answers replaced", _rows(found.made, found))
        )
    if found.refused:
        title = f"{found.name}: {plural(len(found.refused), 'candidate')} that it did not take"
        out.append(Changes(title, _rows(found.refused, found)))
    return out


def _summary(found: Correction) -> str:
    called = f"“{found.name}”" + ("" if found.use == found.name else f" ({found.use})")
    rows, replaced = found.replaced.size, int(found.replaced.sum())
    out = [f"{called} looked at {plural(rows, 'row')} and replaced the answers of {replaced:,} of them"]
    out.append(f" ({percent(replaced / rows)})." if rows else ".")
    decisions: dict[str, int] = {}
    for (_, done, decision), n in found.counts.items():
        if done == "replace":
            decisions[decision] = decisions.get(decision, 0) + n
    if gone := sum(n for decision, n in decisions.items() if decision != "corrected"):
        out.append(f" {plural(gone, 'row')} of these {'was' if gone == 1 else 'were'} dropped by a later step.")
    for what, text in (("model", "Models"), ("prompt", "Prompts")):
        if said := getattr(found, what):
            out.append(f" {text}: {said}.")
    return "".join(out)


def _rules(found: Correction) -> Table:
    """Each rule with what was done by it, its rows, and what became of them in the end."""
    by: dict[tuple[str, str], dict[str, int]] = {}
    for (rule, done, decision), n in found.counts.items():
        ends = by.setdefault((rule, done), {})
        ends[decision] = ends.get(decision, 0) + n
    rows: list[list[Any]] = []
    for (rule, done), ends in sorted(by.items(), key=lambda item: (-sum(item[1].values()), item[0]))[:RULES]:
        n = sum(ends.values())
        told = done or "as the selection says"
        share = Share(n / found.replaced.size, _KINDS.get(done, "dropped"))
        rows.append([rule, told, n, share, *(ends.get(word) for word in ("corrected", "kept", "dropped"))])
    columns = ["rule", "done", "rows", "share", "corrected in the end", "kept", "dropped"]
    return Table(f"{found.name}: every rule, and what became of its rows", columns, rows)


def _confidence(found: Correction) -> Chart:
    """The confidence of all rows that have one, those whose answers were replaced below; the threshold as a line."""
    there = ~np.isnan(found.confidence)
    limits = np.linspace(0.0, 1.0, BINS + 1)
    series = {"corrected": there & found.replaced, "others": there & ~found.replaced}
    rows: list[dict[str, Any]] = []
    below = np.zeros(BINS, dtype=np.int64)
    for what, mask in series.items():
        counts = np.histogram(found.confidence[mask], limits)[0]
        for i in np.flatnonzero(counts).tolist():
            span = f"{number(float(limits[i]))} to {number(float(limits[i + 1]))}"
            tip = f"{span}: {plural(int(counts[i]), 'row')}, {'replaced' if what == 'corrected' else 'not replaced'}"
            bar = {"from": limits[i], "to": limits[i + 1], "low": int(below[i]), "high": int(below[i] + counts[i])}
            rows.append({**bar, "what": what, "tip": tip})
        below += counts
    x = {"field": "from", "type": "quantitative", "title": "confidence", "scale": {"domain": [0, 1], "nice": False}}
    y = {"field": "low", "type": "quantitative", "title": None, "axis": {"tickCount": 4, "format": "~s"}}
    layers: list[dict[str, Any]] = [
        {
            "data": values([row for row in rows if row["what"] == what]),
            "mark": {"type": "rect", "color": color, "opacity": 0.8},
            "encoding": {
                "x": {**x, "axis": {"grid": False, "tickCount": 5}},
                "x2": {"field": "to"},
                "y": y,
                "y2": {"field": "high"},
                "description": {"field": "tip"},
            },
        }
        for what, color in (("corrected", "var(--corrected)"), ("others", "var(--dropped)"))
        if series[what].any()
    ]
    note = "Rows whose answers were replaced below, the others grey above them."
    if found.threshold is not None:
        tip = f"Dashed line: what it is held against, {number(found.threshold)}."
        note = f"{note} {tip}"
        layers.append(
            {
                "data": values([{"at": found.threshold, "tip": tip}]),
                "mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [4, 3], "strokeWidth": 1.5},
                "encoding": {"x": {"field": "at", "type": "quantitative"}, "description": {"field": "tip"}},
            }
        )
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    table = Table(
        f"{found.name}: quantiles of the confidence",
        ["", "rows", "mean", *(f"{q:.0%}" for q in quantiles)],
        [
            [said, sure.size, float(sure.mean()), *(float(q) for q in np.quantile(sure, quantiles))]
            for said, mask in (("replaced", series["corrected"]), ("not replaced", series["others"]))
            if (sure := found.confidence[mask]).size
        ],
        folded=True,
    )
    alt = (
        f"Distribution of the confidence of {found.name} over {int(there.sum()):,} rows, of which "
        f"{int(series['corrected'].sum()):,} were replaced."
    )
    return Chart(f"{found.name}: confidence", {"height": 130, "layer": layers}, alt, table, note, key=("corrected",))


def _rows(changes: Sequence[Change], found: Correction) -> list[Changed]:
    out = []
    for change in changes:
        against = "" if found.threshold is None else f" against {number(found.threshold)}"
        sure = "" if change.confidence is None else f" · confidence {number(change.confidence)}{against}"
        old, new = cut(change.old, _CHARS), cut(change.new, _CHARS)
        out.append(
            Changed(
                said=f"{change.rule}{sure}",
                origin=f"{change.id} · {change.decision}",
                question=cut(change.question, _QUESTION),
                pieces=brief(diff(old, new, _PAIRS), most=_CHARS // 4),
            )
        )
    return out
