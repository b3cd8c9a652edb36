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


_LINES = 8
"""Lines of a chart, as many as there are colours."""


def sections(
    outcome: Outcome,
    said: Sequence[str],
    overview: tuple[Sequence[str], Sequence[Sequence[str]]],
    about: str,
) -> list[Section]:
    """Return the page of an evaluation.

    Parameters
    ----------
    said : the verdicts, in sentences.
    overview : heads and rows of a table of all comparisons.
    about : what is to be said of the proxy.
    """
    first: list[Block] = [Text(about), *(Text(f"{line}.") for line in (*said, *outcome.notes))]
    first.append(Table("A selection a row, best first; ▲ better, ▼ worse, over all tasks together", *overview))
    made = [Section("Verdicts", first)]
    for c in outcome.comparisons:
        made.append(Section(f"Equal {c.at.equal}: {c.at.amount}", [Text(f"{c.at.title}."), *_comparison(c)]))
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
    columns = [*head, "right answers", "forgetting"]
    # Best first; without a column that says nothing.
    rows.sort(key=lambda row: math.inf if row[3] is None else row[3])
    told = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    table = Table(
        f"A selection a row: {comparison.at.amount}",
        [columns[i] for i in told],
        [[row[i] for i in told] for row in rows],
    )
    chart = _gains(comparison, [name for name, share in comparison.shares.items() if not share[0]])
    drawn: list[Block] = [] if chart is None else [chart]
    return [table, *drawn, _against(comparison), _tasks(comparison), *(Text(f"{note}.") for note in found.notes)]


def _against(comparison: Comparison) -> Table:
    """Return the gain over all tasks on each baseline."""
    found = comparison.evidence
    rows: list[Any] = []
    for name in found.selections:
        rows.append([name, *(verdicts.short(found, name, baseline) for baseline in found.baselines)])
    caption = f"Gain on each baseline, nats per token, {comparison.at.amount}; ▲ better, ▼ worse over all tasks"
    return Table(caption, ["selection", *found.baselines], rows, folded=True)


def _gains(comparison: Comparison, without: Sequence[str]) -> Chart | None:
    """Return the gain of each selection on the first baseline, over all tasks, with its 95% interval.

    ``without`` are those that would stretch the scale: the untrained model lies far from all others.
    """
    found = comparison.evidence
    k, baseline = found.baseline(found.baselines[0]), found.baselines[0]
    rows: list[Any] = []
    for s, name in enumerate(found.selections):
        gain, half = float(found.loss.gain[s, k, -1]), float(found.loss.half[s, k, -1])
        if name == baseline or name in without or math.isnan(gain):
            continue
        half = 0.0 if math.isnan(half) else half
        tip = f"{name}: {number(gain)} ± {number(half)} nats per token"
        rows.append({"name": name, "gain": gain, "low": gain - half, "high": gain + half, "tip": tip})
    if not rows:
        return None
    rows.sort(key=lambda row: -row["gain"])
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
    cells = [[row["name"], row["gain"], row["low"], row["high"]] for row in rows]
    table = Table(
        f"Gain on {baseline}, {comparison.at.amount}", ["selection", "gain", "low", "high"], cells, folded=True
    )
    return Chart(f"Gain on {baseline}, mean over tasks", spec, alt, table)


def _tasks(comparison: Comparison) -> Table:
    """Return the gain on the first baseline by task; ▲ and ▼ where it is better or worse."""
    found = comparison.evidence
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
    caption = f"Gain on {found.baselines[0]} by task, nats per token, {comparison.at.amount}"
    return Table(caption, ["selection", *found.tasks], rows, folded=True)


def _curve(outcome: Outcome, equal: str) -> Chart | None:
    """Return the loss over budgets, a line a selection; None for one budget.

    Of more selections than there are colours: the baselines, and the best and the worst at the largest budget.  Without
    the untrained model, which lies far from all others.
    """
    its = [c for c in outcome.comparisons if c.at.equal == equal]
    if len(its) < 2:
        return None
    last = its[-1].evidence
    trained = [name for name in last.selections if its[-1].shares[name][0]]
    baselines = [name for name in trained if name in last.baselines]
    names = [name for name in trained if name not in baselines]
    left = _LINES - len(baselines)
    if len(names) > left:
        names.sort(key=lambda name: float(np.nan_to_num(last.loss.mean[last.place(name), -1], nan=np.inf)))
        names = names[: left - left // 2] + names[len(names) - left // 2 :]
    names = [name for name in trained if name in {*names, *baselines}]
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
    cells = [[r["name"], r["budget"], r["loss"]] for r in rows]
    table = Table(f"Loss by budget, equal {equal}", ["selection", unit, "loss"], cells, folded=True)
    alt = f"Loss of {len(names)} selections over budgets; the untrained model is in the numbers alone."
    return Chart(f"Loss over budgets, equal {equal}", spec, alt, table, wide=True)


def _costs(costs: Sequence[dict[str, Any]]) -> Table:
    head = ["run", "seconds of scoring", "tokens", "operations", "seconds of training on everything", "ratio"]
    keys = ("run", "seconds", "tokens", "flops", "everything_seconds", "ratio")
    rows = [[cost[key] for key in keys] for cost in costs]
    return Table("What the selection took, beside training on all of the pool", head, rows)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
