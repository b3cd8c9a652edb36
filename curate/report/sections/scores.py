"""Score distributions: kept against dropped, with the thresholds that the steps held them against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curate.report.blocks import Block, Section, Text
from curate.report.charts import histogram
from curate.report.text import number, plural

if TYPE_CHECKING:
    from curate.report.view import View

_LINES = 12  # thresholds drawn in one chart: under a quota each group has its own


def sections(view: View) -> list[Section]:
    import polars as pl

    blocks: list[Block] = []
    empty = []
    for name, column in view.columns.items():
        x = view.values(name)
        scored = ~np.isnan(x)
        if not scored.any():
            empty.append(name)
            continue
        better = {True: "higher is better", False: "lower is better", None: ""}[column.higher_is_better]
        axis = ", ".join(filter(None, [column.unit, better]))
        missing = int((~scored).sum())
        note = f"{plural(missing, 'row')} without a score." if missing else ""
        kept, dropped = x[scored & view.kept], x[scored & ~view.kept]
        blocks.append(histogram(name, kept, dropped, axis=axis, thresholds=_thresholds(view, name), note=note))
    # Combinations are in no file of scores; the ledger has them for the rows that were judged by them.
    judged = view.pool.filter(pl.col("score").is_finite())
    for name in judged["score_name"].cast(pl.String).unique().sort().to_list():
        if name is not None and name not in view.columns:
            mine = judged.filter(pl.col("score_name").cast(pl.String) == name)
            stays = mine["decision"].cast(pl.String).is_in(["kept", "corrected"])
            values = mine["score"]
            note = f"Of the {mine.height:,} rows that were judged by it last."
            both = (values.filter(stays).to_numpy(), values.filter(~stays).to_numpy())
            blocks.append(histogram(name, *both, axis="", thresholds=_thresholds(view, name), note=note))
    if not blocks:
        blocks.append(Text("This run has no scores."))
    if empty:
        blocks.append(Text(f"Without a single score: {', '.join(empty)}."))
    intro = Text("Bars are shares of each side's own rows, so that a small selection shows beside a large rest.")
    return [Section("Scores", [intro, *blocks] if len(blocks) > 1 or view.columns else blocks)]


def _thresholds(view: View, name: str) -> dict[float, str]:
    """Return number → what it is, for the steps that judged by this score."""
    import polars as pl

    out: dict[float, str] = {}
    for step in view.steps:
        if step.get("score") == name and step.get("threshold") is not None:
            limit = float(step["threshold"])
            out[limit] = f"Dashed line: {step['name']}, {number(limit)}."
        elif step.get("score") == name:
            mine = view.pool.filter(
                (pl.col("stage").cast(pl.String) == str(step["name"])) & pl.col("threshold").is_finite()
            )
            found = mine["threshold"].unique().sort()
            if 0 < found.len() <= _LINES:
                text = f"Dashed lines: {step['name']}, one a group."
                out.update({float(t): text for t in found.to_list()})
    return out
