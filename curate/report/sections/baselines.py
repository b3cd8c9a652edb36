"""What simple selectors would have chosen of the same pool within the same budget: random, and the longest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.report.blocks import Block, Section, Share, Table, Text
from curate.report.charts import composition

if TYPE_CHECKING:
    from curate.report.view import View


def sections(view: View) -> list[Section]:
    kept = int(view.kept.sum())
    if not view.baselines or not kept:
        return []
    told = "; ".join(f"“{b.name}” is {b.about}" for b in view.baselines)
    blocks: list[Block] = [Text(f"The same pool, the same budget, other selectors: {told}."), _overlaps(view)]
    picks = {"this run": view.kept, **{b.name: b.chosen for b in view.baselines}}
    for label in ("source", "group", "language"):
        if label in view.pool.columns and view.pool[label].n_unique() > 1:
            codes, names = _codes(view, label)
            masks = {"pool": np.ones_like(view.kept), **picks}
            counts = {pick: np.bincount(codes[mask], minlength=len(names)) for pick, mask in masks.items()}
            blocks.append(composition(label, names, counts))
    if view.columns:
        rows = [_means(view, name, picks) for name in view.columns]
        blocks.append(Table("Mean scores", ["score", "pool", *picks], rows))
    blocks += [Text(note) for note in view.notes]
    return [Section("Against random and longest", blocks)]


def _overlaps(view: View) -> Table:
    rows: list[list[Any]] = []
    n = view.pool.height
    for baseline in view.baselines:
        both = int((view.kept & baseline.chosen).sum())
        either = int((view.kept | baseline.chosen).sum())
        picked = int(baseline.chosen.sum())
        expected = int(view.kept.sum()) * picked / max(1, n)
        shares = [Share(both / max(1, int(view.kept.sum()))), Share(both / max(1, either))]
        rows.append([baseline.name, picked, both, round(expected), *shares])
    columns = ["selector", "chooses", "of this run's", "by chance", "share of this run's", "Jaccard"]
    return Table("Overlap of what is kept", columns, rows)


def _codes(view: View, label: str) -> tuple[NDArray[np.int64], list[str]]:
    import polars as pl

    text = view.pool[label].cast(pl.String).fill_null("(none)").to_arrow().dictionary_encode()
    return text.indices.to_numpy().astype(np.int64), text.dictionary.to_pylist()


def _means(view: View, name: str, picks: dict[str, NDArray[np.bool_]]) -> list[Any]:
    x = view.values(name)
    scored = ~np.isnan(x)
    masks = [scored, *(scored & mask for mask in picks.values())]
    return [name, *(float(x[mask].mean()) if mask.any() else None for mask in masks)]
