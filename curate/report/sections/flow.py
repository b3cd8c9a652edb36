"""Where the rows went: what left at each stage, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curate.report.blocks import Block, Chart, Section, Share, Table, Text
from curate.report.charts import values
from curate.report.text import percent, short

if TYPE_CHECKING:
    from curate.report.view import View

REASONS = 40
"""Reasons that the table lists; the others are counted."""
ALIKE = 5
"""Kinds of reason that may begin alike; more of them are one, by what stands before the colon: evidence varies."""


def sections(view: View) -> list[Section]:
    import polars as pl

    left = view.ledger.filter(~pl.col("decision").cast(pl.String).is_in(["kept", "corrected"]))
    by_stage = dict(left.group_by(pl.col("stage").cast(pl.String)).len().iter_rows())
    chart = _chart(view, by_stage)
    return [Section("Where the rows went", [chart, *_reasons(view)])]


def _chart(view: View, by_stage: dict[str, int]) -> Chart:
    """A bar a stage: the rows that go on, and those that leave there."""
    total = view.ledger.height
    kinds = {"read": "rejected", "dedup": "duplicate"}
    stages = ["read", "dedup", *(str(s["name"]) for s in view.steps)]
    stages = list(dict.fromkeys([*stages, *sorted(by_stage)]))
    label = dict(zip(stages, short(stages), strict=True))
    rows: list[dict[str, Any]] = []
    table: list[list[Any]] = []
    on = total
    for stage in stages:
        out = by_stage.get(stage, 0)
        kind = kinds.get(stage, "dropped")
        on -= out
        rows.append(
            {
                "stage": label[stage],
                "from": 0,
                "to": on,
                "what": "kept",
                "tip": f"{stage}: {on:,} rows go on ({percent(on / total)} of all)",
            }
        )
        if out:
            tip = f"{stage}: {out:,} rows {kind} ({percent(out / total)} of all)"
            rows.append({"stage": label[stage], "from": on, "to": on + out, "what": kind, "tip": tip})
        table.append([stage, on + out, out, kind if out else None, on])
    ends = [{"stage": label[r[0]], "to": r[1], "label": f"−{r[2]:,}" if r[2] else "", "tip": ""} for r in table]
    shown = [k for k in ("kept", "dropped", "duplicate", "rejected") if any(r["what"] == k for r in rows)]
    y = {
        "field": "stage",
        "type": "nominal",
        "sort": list(label.values()),
        "title": None,
        "axis": {"ticks": False, "domain": False},
    }
    x = {"field": "from", "type": "quantitative", "title": None, "axis": {"tickCount": 4, "format": "~s"}}
    x["scale"] = {"domain": [0, total * 1.08], "nice": False}  # room for the labels
    spec = {
        "height": {"step": 26},
        "layer": [
            {
                "data": values(rows),
                "mark": {"type": "bar", "height": 16},
                "encoding": {
                    "y": y,
                    "x": x,
                    "x2": {"field": "to"},
                    "color": {
                        "field": "what",
                        "type": "nominal",
                        "scale": {"domain": shown, "range": [f"var(--{k})" for k in shown]},
                        "legend": None,
                    },
                    "description": {"field": "tip"},
                },
            },
            {
                "data": values(ends),
                "mark": {"type": "text", "align": "left", "dx": 5, "color": "var(--muted)"},
                "encoding": {
                    "y": y,
                    "x": {"field": "to", "type": "quantitative"},
                    "text": {"field": "label"},
                    "description": {"value": ""},
                },
            },
        ],
    }
    numbers = Table("Rows by stage", ["stage", "rows in", "left here", "as", "go on"], table, folded=True)
    alt = f"Of {total:,} rows, {on:,} are left after {len(stages)} stages; the table has the rows of each."
    return Chart("Rows that go on, and rows that leave, stage by stage", spec, alt, numbers, key=shown, wide=True)


def _reasons(view: View) -> list[Block]:
    """Every kind of reason with its count, the most frequent first."""
    import polars as pl

    by = ["decision", "stage", "kind"]
    found = (
        view.ledger.group_by(by)
        .agg(rows=pl.len(), reasons=pl.col("reason").n_unique())
        .with_columns(pl.col(by).cast(pl.String))
    )
    kind = pl.col("kind")
    stem = kind.str.extract(r"(?s)^(.*?: )", 1) + "…"  # null where there is no colon
    crowded = (pl.len().over("decision", "stage", stem) > ALIKE) & stem.is_not_null()
    found = (
        found.with_columns(kind=pl.when(crowded).then(stem).otherwise(kind))
        .group_by(by)
        .agg(pl.col("rows").sum(), pl.col("reasons").sum())
        .sort("rows", *by, descending=[True, False, False, False])
    )
    rows: list[list[Any]] = [
        [decision, stage, kind, variants if variants > 1 else None, n, Share(n / view.ledger.height, decision)]
        for decision, stage, kind, n, variants in found.head(REASONS).iter_rows()
    ]
    blocks: list[Block] = [
        Table("Every decision and its reason", ["decision", "by", "reason", "variants", "rows", "share of all"], rows)
    ]
    rest = found.slice(REASONS)
    if rest.height:
        blocks.append(Text(f"And {rest.height:,} rarer reasons for {rest['rows'].sum():,} rows; decisions/ has all."))
    return blocks
