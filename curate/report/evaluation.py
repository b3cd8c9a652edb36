"""What an evaluation found, as the sections of its page: gains with their intervals, curves over budgets, the tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.numerics import verdicts
from curate.report.blocks import Block, Chart, Section, Share, Table, Text
from curate.report.charts import values
from curate.report.text import number

if TYPE_CHECKING:
    from curate.evaluation.evaluate import Comparison, Outcome
    from curate.numerics.evidence import Evidence


_LINES = 8
"""Lines of a chart, as many as there are colours."""


def sections(
    outcome: Outcome,
    said: Sequence[str],
    overview: tuple[Sequence[str], Sequence[Sequence[str]]],
    titles: Sequence[str],
    about: str,
) -> list[Section]:
    """Return the page of an evaluation.

    Parameters
    ----------
    said : the verdicts, in sentences.
    overview : heads and rows of a table of all comparisons.
    titles : of each comparison: what was made equal.
    about : what is to be said of the proxy.
    """
    first: list[Block] = [Text(about), *(Text(f"{line}.") for line in (*said, *outcome.notes))]
    first.append(Table("A selection a row, best first; ▲ better, ▼ worse, over all tasks together", *overview))
    made = [Section("Verdicts", first)]
    for comparison, title in zip(outcome.comparisons, titles, strict=True):
        made.append(Section(f"Equal {comparison.at.equal}: {title}", _comparison(comparison)))
    curves = [_curve(outcome, equal) for equal in dict.fromkeys(c.at.equal for c in outcome.comparisons)]
    if drawn := [curve for curve in curves if curve is not None]:
        made.append(Section("Over budgets", drawn))
    if outcome.validities:
        rho: list[Any] = [[name, v.rho, v.low, v.high, v.p, v.said] for name, v in outcome.validities.items()]
        table = Table("Spearman's ρ of deciles and outcomes", ["score", "ρ", "low", "high", "p", "in words"], rho)
        made.append(Section("Does training follow the score?", [table]))
    made.append(Section("Cost", [_costs(outcome.costs)]))
    measured = [[a["task"], a["rows"], a["overlapping"], a["measured"]] for a in outcome.held_out.account]
    caption = "Rows to measure on; those that stand in the pool are left out"
    made.append(Section("What was measured on", [Table(caption, ["task", "rows", "left out", "measured"], measured)]))
    return made


def _comparison(comparison: Comparison) -> list[Block]:
    found = comparison.evidence
    k = found.baseline(found.baselines[0])
    loss, right = found.loss, found.accuracy
    rows: list[Any] = []
    for s, name in enumerate(found.selections):
        share = comparison.shares[name]
        rows.append(
            [
                name,
                share[0],
                share[1],
                _known(loss.mean[s, -1]),
                _known(loss.sd[s, -1]),
                _known(loss.gain[s, k, -1]),
                _known(loss.half[s, k, -1]),
                _known(loss.p[s, k, -1]),
                Share(float(loss.won[s, k])) if not math.isnan(loss.won[s, k]) else None,
                None if right is None else _known(right.mean[s, -1]),
                _known(found.forgetting[s]),
            ]
        )
    head = ["selection", "rows", "tokens", "loss", "sd", f"gain on {found.baselines[0]}", "±", "p", "cells won"]
    table = Table("A selection a row", [*head, "right answers", "forgetting"], rows)
    out: list[Block] = [table]
    for baseline in found.baselines:
        if (chart := _gains(found, baseline)) is not None:
            out.append(chart)
    return [*out, _tasks(found), *(Text(f"{note}.") for note in found.notes)]


def _gains(found: Evidence, baseline: str) -> Chart | None:
    """Return the gain of each selection on a baseline, over all tasks, with its 95% interval."""
    k = found.baseline(baseline)
    rows: list[Any] = []
    for s, name in enumerate(found.selections):
        gain, half = float(found.loss.gain[s, k, -1]), float(found.loss.half[s, k, -1])
        if name == baseline or math.isnan(gain):
            continue
        half = 0.0 if math.isnan(half) else half
        tip = f"{name}: {number(gain)} ± {number(half)} nats per token"
        rows.append({"name": name, "gain": gain, "low": gain - half, "high": gain + half, "tip": tip})
    if not rows:
        return None
    names = [row["name"] for row in rows]
    y = {"field": "name", "type": "nominal", "sort": names, "title": None, "axis": {"ticks": False, "domain": False}}
    title, tip_of = "nats per token; right of 0 is better", {"description": {"field": "tip"}}

    def x(field: str) -> dict[str, Any]:
        return {"field": field, "type": "quantitative", "title": title, "axis": {"tickCount": 5}}

    zero = {"mark": {"type": "rule", "color": "var(--muted)"}, "encoding": {"x": {"datum": 0}}}
    span = {"y": y, "x": x("low"), "x2": {"field": "high"}}
    rule = {"mark": {"type": "rule", "color": "var(--ink)"}, "encoding": span}
    point = {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"y": y, "x": x("gain"), **tip_of}}
    spec = {"data": values(rows), "height": {"step": 24}, "layer": [zero, rule, point]}
    alt = f"Gain of {len(rows)} selections on {baseline}, with 95% intervals."
    table = Table(f"Gain on {baseline}", ["selection", "gain", "low", "high"], [list(r.values())[:4] for r in rows])
    return Chart(f"Gain on {baseline}, mean over tasks", spec, alt, table)


def _tasks(found: Evidence) -> Table:
    """Return the gain on the first baseline by task; ▲ and ▼ where it is better or worse."""
    k = found.baseline(found.baselines[0])
    rows: list[list[Any]] = []
    for s, name in enumerate(found.selections):
        cells: list[Any] = [name]
        words = verdicts.task_words(found.loss, s, k)
        for t in range(len(found.tasks)):
            gain = float(found.loss.gain[s, k, t])
            mark = {"better": " ▲", "worse": " ▼"}.get(words[t] or "", "")
            cells.append(None if math.isnan(gain) else f"{number(gain)}{mark}")
        rows.append(cells)
    caption = f"Gain on {found.baselines[0]} by task, nats per token"
    return Table(caption, ["selection", *found.tasks], rows, folded=True)


def _curve(outcome: Outcome, equal: str) -> Chart | None:
    """Return the loss over budgets, a line a selection; None for one budget.

    Of more selections than there are colours: the baselines, and the best and the worst at the largest budget.
    """
    its = [c for c in outcome.comparisons if c.at.equal == equal]
    if len(its) < 2:
        return None
    last = its[-1].evidence
    names = [name for name in last.selections if name not in last.baselines]
    left = _LINES - len(last.baselines)
    if len(names) > left:
        names.sort(key=lambda name: float(np.nan_to_num(last.loss.mean[last.place(name), -1], nan=np.inf)))
        names = names[: left - left // 2] + names[len(names) - left // 2 :]
    names = [name for name in last.selections if name in {*names, *last.baselines}]
    rows: list[Any] = []
    for c in its:
        amount = c.at.rows if c.at.tokens is None else c.at.tokens
        for name in c.evidence.selections:
            loss = float(c.evidence.loss.mean[c.evidence.place(name), -1])
            if not math.isnan(loss):
                tip = f"{name}, {c.at.amount}: {number(loss)} nats per token"
                rows.append({"name": name, "budget": amount, "loss": loss, "tip": tip})
    drawn = [row for row in rows if row["name"] in names]
    colour = {
        "field": "name",
        "type": "nominal",
        "sort": names,
        "scale": {"domain": names, "range": [f"var(--c{i % 8})" for i in range(len(names))]},
        "legend": {"title": None, "orient": "bottom", "columns": 3},
    }
    scale, unit = {"type": "log", "nice": False}, "rows" if equal == "rows" else "tokens of an epoch"
    x = {"field": "budget", "type": "quantitative", "scale": scale, "title": unit, "axis": {"tickCount": 5}}
    y = {"field": "loss", "type": "quantitative", "scale": {"zero": False}, "title": "nats per token"}
    lines = {"x": x, "y": y, "color": colour}
    points = {**lines, "description": {"field": "tip"}}
    layer = [
        {"mark": "line", "encoding": lines},
        {"mark": {"type": "point", "filled": True}, "encoding": points},
    ]
    spec = {"data": values(drawn), "height": 240, "layer": layer}
    table = Table("Loss by budget", ["selection", unit, "loss"], [[r["name"], r["budget"], r["loss"]] for r in rows])
    alt = f"Loss of {len(names)} selections over budgets."
    return Chart(f"Loss over budgets, equal {equal}", spec, alt, table, wide=True)


def _costs(costs: Sequence[dict[str, Any]]) -> Table:
    head = ["run", "seconds of scoring", "tokens", "operations", "seconds of training on everything", "ratio"]
    keys = ("run", "seconds", "tokens", "flops", "everything_seconds", "ratio")
    rows = [[cost[key] for key in keys] for cost in costs]
    return Table("What the selection took, beside training on all of the pool", head, rows)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
