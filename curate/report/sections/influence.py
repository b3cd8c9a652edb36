"""Influence on the targets: by source and task, how evenly a selection serves the tasks, the rows at both ends."""

from __future__ import annotations

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
    steps = ", ".join(map(number, SHADES))
    text = (
        f"“{found.stage}” holds each row against each target, by the cosine of their vectors ({found.use}). A row's "
        "influence on a task is its mean over the task's targets. Normalised, each target's numbers are first taken in "
        "standard deviations from their mean over the pool, so that tasks can be held against each other: a source or "
        "a selection at +1 is on average a deviation above the whole pool, which is at 0. Shades (blue above, orange "
        f"below) deepen at {steps}."
    )
    return text + (f" Rows without an influence take no part: {found.unknown:,}." if found.unknown else "")


def _targets(found: Influence) -> list[Block]:
    told = {str(account["task"]): account for account in found.targets}
    rows: list[list[Any]] = []
    why = []
    for task in found.tasks:
        one = told[task]
        passed = one["passed_over"]
        rows.append([task, one["rows"], one["drawn"], sum(passed.values()), one["rejected"], one["overlap"]])
        why += [f"{task}: {n:,} × {reason}" for reason, n in passed.items()]
    columns = ["task", "examples", "drawn", "passed over", "rejected", "left out of the pool"]
    note = (
        "Passed over: without a vector, so that the next was drawn. Rejected: rows of the set that are no examples. "
        "Left out of the pool: its rows that ask what a target asks; they have no influence."
    )
    note += f" Why targets were passed over: {'; '.join(why)}." if why else ""
    return [Table("Targets", columns, rows), Text(note)]


def _by_source(found: Influence) -> Table:
    rows = [[name, n, *_shades(means)] for name, (n, means) in found.by_source.items()]
    return Table("Mean normalised influence, by source and task", ["source", "rows", *found.tasks], rows)


def _balance(found: Influence) -> Table:
    columns = [_shades(means) for _, means in found.by_pick.values()]
    rows = [[task, Shade(0.0), *shades] for task, *shades in zip(found.tasks, *columns, strict=True)]
    return Table("Mean normalised influence of what is chosen", ["task", "pool", *found.by_pick], rows)


def _shades(means: NDArray[np.float64]) -> list[Shade | None]:
    return [None if np.isnan(mean) else Shade(float(mean)) for mean in means]


def _worst(found: Influence) -> str:
    """Say which task each selection serves best and worst."""
    out = []
    for name, (n, means) in found.by_pick.items():
        who = "This run" if name == "this run" else f"“{name}”"
        if not n:
            out.append(f"{who} has no row with an influence.")
        elif len(found.tasks) == 1:
            out.append(f"{who}: {signed(means[0])} on {found.tasks[0]}.")
        else:
            low, high = int(means.argmin()), int(means.argmax())
            out.append(
                f"{who} serves {found.tasks[low]} worst ({signed(means[low])}) and {found.tasks[high]} best "
                f"({signed(means[high])})."
            )
    return " ".join(out)


def _overlap(view: View) -> str:
    """Say how much of what is kept other selectors choose, too."""
    kept = int(view.kept.sum())
    told = []
    for baseline in view.baselines if kept else ():
        both = int((view.kept & baseline.chosen).sum())
        told.append(f"{both:,} ({percent(both / kept)}) by “{baseline.name}”")
    text = f"Of the {plural(kept, 'row')} kept, also chosen within the same budget: {', '.join(told)}." if told else ""
    if not any(baseline.name == "RDS+" for baseline in view.baselines):
        text += " No RDS+ beside it: this recipe has no attribution of hidden states."
    return text.strip()


def _ends(view: View, found: Influence) -> list[Block]:
    out: list[Block] = []
    for task in found.tasks:
        for most in (True, False):
            rows = [e for e in found.extremes if (e.task, e.most) == (task, most) and e.row in view.rows]
            if rows:
                title = f"{task}: the {plural(len(rows), 'row')} of {'most' if most else 'least'} influence"
                said = [f"influence {signed(e.influence, 4)}, normalised {signed(e.normalised)}" for e in rows]
                out.append(Examples(title, [(s, view.rows[e.row]) for s, e in zip(said, rows, strict=True)]))
    return out
