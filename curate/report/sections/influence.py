"""Influence on the targets: by source and task, how evenly the selection serves the tasks, and the rows at both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.report.blocks import SHADES, Block, Examples, Section, Shade, Table, Text
from curate.report.text import number, percent, plural, signed

if TYPE_CHECKING:
    from curate.report.view import Influence, View

TITLE = "Influence on the targets"


def sections(view: View) -> list[Section]:
    alone = len(view.influences) == 1
    return [_section(view, found, TITLE if alone else f"{TITLE}: {found.stage}") for found in view.influences]


def _section(view: View, found: Influence, title: str) -> Section:
    blocks: list[Block] = [Text(_meaning(found)), *_targets(found)]
    if found.unknown == view.pool.height:
        return Section(title, [*blocks, Text("No row of the pool has an influence.")])
    blocks += [_by_source(found), _balance(found), Text(_worst(found)), Text(_overlap(view))]
    return Section(title, [*blocks, *_ends(view, found)])


def _meaning(found: Influence) -> str:
    text = (
        f"“{found.stage}” holds each row against each target, by the cosine of their vectors ({found.use}). A row's influence on "
        "a task is its mean over the task's targets. Normalised, each target's numbers are first taken in standard "
        "deviations from their mean over the pool: 0 is the pool's average, +1 a deviation above it, and targets and "
        "tasks of different spread can be held against each other."
    )
    return text + (f" {plural(found.unknown, 'row')} of the pool without." if found.unknown else "")


def _targets(found: Influence) -> list[Block]:
    told = {str(account["task"]): account for account in found.targets}
    rows: list[list[Any]] = []
    why = []
    for task in found.tasks:
        one = told[task]
        passed = one["passed_over"]
        rows.append([task, one["rows"], one["drawn"], sum(passed.values()), one["rejected"], one["overlap"]])
        why += [f"{task}: {n:,} {reason}" for reason, n in passed.items()]
    columns = ["task", "examples", "drawn", "passed over", "rejected", "left out of the pool"]
    table = Table("Targets", columns, rows)
    note = (
        "Passed over: drawn, but without a vector. Rejected: rows of the set that are no examples. Left out of the pool: rows "
        "without an influence, because they ask what a target asks."
    )
    return [table, Text(note + (f" Why targets were passed over: {'; '.join(why)}." if why else ""))]


def _by_source(found: Influence) -> Table:
    steps = ", ".join(map(number, SHADES))
    return Table(
        f"Mean normalised influence by source and task (blue above the pool's, orange below; shades from {steps})",
        ["source", "rows", *found.tasks],
        [[name, n, *_shades(means)] for name, (n, means) in found.by_source.items()],
    )


def _balance(found: Influence) -> Table:
    picks = {name: means for name, (_, means) in found.by_pick.items()}
    rows = [
        [task, Shade(0.0), *(_shades(means)[i] for means in picks.values())] for i, task in enumerate(found.tasks)
    ]
    caption = "Mean normalised influence of what is chosen, by task (of the whole pool it is 0)"
    return Table(caption, ["task", "pool", *picks], rows)


def _shades(means: NDArray[np.float64]) -> list[Shade | None]:
    return [None if np.isnan(mean) else Shade(float(mean)) for mean in means]


def _worst(found: Influence) -> str:
    """Say which task each selection serves best and worst."""
    out = []
    for name, (n, means) in found.by_pick.items():
        who = "This run" if name == "this run" else f"“{name}”"
        if not n:
            out.append(f"{who} has no row with an influence.")
            continue
        worst, best = int(means.argmin()), int(means.argmax())
        if len(found.tasks) == 1:
            out.append(f"{who}: {signed(means[0])} on {found.tasks[0]}.")
        else:
            out.append(
                f"{who} serves {found.tasks[worst]} worst ({signed(means[worst])}) and {found.tasks[best]} best "
                f"({signed(means[best])})."
            )
    return " ".join(out)


def _overlap(view: View) -> str:
    """Say how much of what is kept other selectors choose, too."""
    kept = int(view.kept.sum())
    told = []
    for baseline in view.baselines:
        both = int((view.kept & baseline.chosen).sum())
        told.append(f"{number(both)} ({percent(both / max(1, kept))}) “{baseline.name}”")
    text = f"Of the {plural(kept, 'row')} kept, {', '.join(told)} would choose, too, within the same budget." if told else ""
    if not any(baseline.name == "RDS+" for baseline in view.baselines):
        text += " RDS+ is not among them: no attribution of this recipe is of hidden states."
    return text


def _ends(view: View, found: Influence) -> list[Block]:
    out: list[Block] = []
    for task in found.tasks:
        for most in (True, False):
            rows = [e for e in found.extremes if e.task == task and e.most == most and e.row in view.rows]
            if rows:
                title = f"{task}: the {plural(len(rows), 'row')} of {'most' if most else 'least'} influence"
                said = [f"influence {number(e.influence)}, normalised {signed(e.normalised)}" for e in rows]
                out.append(Examples(title, [(s, view.rows[e.row]) for s, e in zip(said, rows, strict=True)]))
    return out
