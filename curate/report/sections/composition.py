"""Kept against dropped by source, group, language, length and cluster, and how mixed each is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.numerics.composition import effective_number, mixture
from curate.report.blocks import Block, Chart, Section, Share, Table
from curate.report.charts import bars, histogram, values
from curate.report.text import percent

if TYPE_CHECKING:
    import polars as pl

    from curate.report.view import View

_BARS, _ROWS = 12, 40  # categories drawn, and listed
_CLUSTERS = 1_500
_MISSING = "(none)"


def sections(view: View) -> list[Section]:
    blocks: list[Block] = []
    for label, words in (("source", "source"), ("group", "group"), ("language", "language")):
        if label in view.pool.columns and view.pool[label].n_unique() > 1:
            blocks.append(_categories(view, label, words))
    chars = view.pool["chars"].to_numpy().astype(np.float64)
    blocks.append(histogram("length", chars[view.kept], chars[~view.kept], axis="characters of the conversation"))
    if view.pool["cluster"].drop_nulls().n_unique() > 1:
        blocks.append(_clusters(view))
    mixed = _mixed(view)
    if mixed.rows:
        blocks.append(mixed)
    return [Section("Kept against dropped", blocks)]


def _mixed(view: View) -> Table:
    """Entropy and effective number of the sources, groups, languages and clusters: of the pool, of what is kept."""
    import polars as pl

    rows: list[list[Any]] = []
    for label in ("source", "group", "language", "cluster"):
        if label not in view.pool.columns:
            continue
        codes = view.pool[label].cast(pl.String).fill_null(_MISSING).rank("dense").to_numpy().astype(np.int64) - 1
        pool, kept = mixture(np.bincount(codes)), mixture(np.bincount(codes[view.kept]))
        if pool["values"] > 1:
            others = [effective_number(np.bincount(codes[b.chosen])) for b in view.baselines]
            rows.append(_mixture(label, pool, kept, *others))
    for step in view.steps:  # labels that a stage has found, by which a step had a quota
        for label, found in step.get("mixture", {}).items():
            if label not in ("source", "group"):
                told = f"{label}, {step['name']}"
                rows.append(_mixture(told, found["before"], found["after"], *([None] * len(view.baselines))))
    columns = ["", "values", "of them kept", "entropy, pool", "entropy, kept", "effective, pool", "effective, kept"]
    return Table(
        "How mixed: entropy in nats; its exponential is how many equally frequent values would be as mixed",
        [*columns, *(f"effective, “{b.name}”" for b in view.baselines)],
        rows,
    )


def _mixture(label: str, pool: Mapping[str, Any], kept: Mapping[str, Any], *others: float | None) -> list[Any]:
    numbers = [of[what] for what in ("values", "entropy", "effective") for of in (pool, kept)]
    return [label, *numbers, *others]


def by(view: View, label: str) -> pl.DataFrame:
    """Return (name, pool, kept) of every value of a label, the most frequent first."""
    import polars as pl

    name = pl.col(label).cast(pl.String).fill_null(_MISSING).alias("name")
    frame = view.pool.select(name).with_columns(kept=pl.Series(view.kept))
    found = frame.group_by("name").agg(pool=pl.len(), kept=pl.col("kept").sum())
    return found.sort("pool", "name", descending=[True, False])


def _categories(view: View, label: str, words: str) -> Chart:
    """Shares of the values of a label among the kept and among the dropped rows."""
    found = by(view, label)
    kept, pool = int(view.kept.sum()), view.pool.height
    head = found.head(_BARS)
    names = head["name"].to_list()
    shares = {
        "kept": (head["kept"] / max(1, kept)).to_list(),
        "dropped": ((head["pool"] - head["kept"]) / max(1, pool - kept)).to_list(),
    }
    rows: list[list[Any]] = [
        [name, n, k, Share(n / pool, "dropped"), Share(k / max(1, kept)), Share(k / n)]
        for name, n, k in found.head(_ROWS).iter_rows()
    ]
    more = found.height - _ROWS
    caption = f"Rows by {words}" + (f" (the {_ROWS} largest of {found.height:,})" if more > 0 else "")
    columns = [words, "pool", "kept", "share of the pool", "share of what is kept", "kept of it"]
    alt = f"Shares of {found.height:,} values of {words} among the kept and the dropped rows."
    chart = bars(f"by {words}", names, shares, alt=alt, table=Table(caption, columns, rows, folded=True))
    if found.height <= _BARS:
        return chart
    from dataclasses import replace

    return replace(chart, note=f"The {_BARS} largest of {found.height:,}.")


def _clusters(view: View) -> Chart:
    """A dot a cluster: its rows, and the share of them that was kept."""
    found = by(view, "cluster").filter(name_is_known())
    head = found.head(_CLUSTERS)
    rows = [
        {"rows": n, "share": k / n, "tip": f"cluster {name}: {k:,} of {n:,} kept ({percent(k / n)})"}
        for name, n, k in head.iter_rows()
    ]
    spec = {
        "data": values(rows),
        "height": 170,
        "mark": {"type": "circle", "color": "var(--kept)", "opacity": 0.6, "size": 36},
        "encoding": {
            "x": {
                "field": "rows",
                "type": "quantitative",
                "title": "rows of the cluster",
                "scale": {"type": "log", "nice": False},
                "axis": {"grid": False, "tickCount": 4, "format": "~s", "labelOverlap": True},
            },
            "y": {"field": "share", "type": "quantitative", "title": "kept", "axis": {"format": "~%", "tickCount": 4}},
            "description": {"field": "tip"},
        },
    }
    table = Table(
        f"Rows by cluster (the {min(_ROWS, found.height)} largest of {found.height:,})",
        ["cluster", "rows", "kept", "kept of it"],
        [[name, n, k, Share(k / n)] for name, n, k in found.head(_ROWS).iter_rows()],
        folded=True,
    )
    untouched = int((found["kept"] == 0).sum())
    note = f"{found.height:,} clusters; {f'of {untouched:,} no row was kept' if untouched else 'each has kept rows'}."
    return Chart("by cluster", spec, f"Rows of each of {found.height:,} clusters, and the share kept.", table, note)


def name_is_known() -> pl.Expr:
    import polars as pl

    return pl.col("name") != _MISSING
