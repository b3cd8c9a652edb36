"""How the length of what is kept differs from the pool's, and from what other ways of choosing would have kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.report.blocks import Block, Section, Table, Text
from curate.report.sections.together import is_length
from curate.report.text import number, percent, plural

if TYPE_CHECKING:
    from curate.report.view import View

_MEASURES = 3  # lengths shown: of the conversation, and the first two that stages have counted


def sections(view: View) -> list[Section]:
    if not view.kept.any() or view.kept.all():
        return []
    picks = {"pool": np.ones_like(view.kept), "this run": view.kept, **{b.name: b.chosen for b in view.baselines}}
    measures = {"characters of the conversation": view.pool["chars"].to_numpy().astype(np.float64)}
    for name in (name for name in view.columns if is_length(view, name)):
        x = view.values(name)
        again = any(np.array_equal(x, other, equal_nan=True) for other in measures.values())
        if np.isfinite(x).any() and not again and len(measures) < _MEASURES:
            measures[f"{name} ({view.columns[name].unit})"] = x
    blocks: list[Block] = []
    for measure, x in measures.items():
        found = {pick: x[mask & np.isfinite(x)] for pick, mask in picks.items()}
        found = {pick: lengths for pick, lengths in found.items() if lengths.size}
        if "this run" not in found:
            continue
        missing = int((~np.isfinite(x)).sum())
        blocks.append(
            Text(f"{_sentence(measure, found)}" + (f" {plural(missing, 'row')} without it." if missing else ""))
        )
        blocks.append(Table(measure, ["", "rows", "mean", "median", "total", "mean to the pool's"], _rows(found)))
    return [Section("Length of what is kept", blocks)]


def _sentence(measure: str, found: dict[str, NDArray[np.float64]]) -> str:
    """Say how the mean of the run's lengths differs from the others'."""
    mine = float(found["this run"].mean())
    told = [
        f"{_shift(mine, float(x.mean()))} {_of(pick)}" for pick, x in found.items() if pick != "this run" and x.mean()
    ]
    return f"In {measure}: what is kept has {number(mine)} on average, " + ", ".join(told) + "."


def _shift(mine: float, other: float) -> str:
    change = mine / other - 1
    return "as many as" if abs(change) < 0.0005 else f"{percent(abs(change))} {'more' if change > 0 else 'less'} than"


def _of(pick: str) -> str:
    return "the pool" if pick == "pool" else f"“{pick}”"


def _rows(found: dict[str, NDArray[np.float64]]) -> list[list[Any]]:
    pool = float(found["pool"].mean())
    return [
        [pick, x.size, float(x.mean()), float(np.median(x)), int(x.sum()), float(x.mean()) / pool if pool else None]
        for pick, x in found.items()
    ]
