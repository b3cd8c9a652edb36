"""What an evaluation found, in files: tables for machines, a page of Markdown, and a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from curate import __version__
from curate.numerics import verdicts
from curate.pipelines.store import Store

if TYPE_CHECKING:
    import polars as pl

    from curate.evaluation.evaluate import Outcome
    from curate.evaluation.grid import Point


def said(outcome: Outcome, baselines: Sequence[str] | None = None) -> list[str]:
    """Return the verdict on each run, in sentences; against all baselines, or those that are named."""
    lines = []
    for c in outcome.comparisons:
        for run in outcome.runs:
            for baseline in c.evidence.baselines if baselines is None else baselines:
                lines.append(f"{run}, {c.at.title}: {verdicts.verdict(c.evidence, run, baseline)}")
    return lines


def headlines(outcome: Outcome) -> list[str]:
    """Return as many of these sentences as a page begins with: of many, those against the first baseline alone."""
    lines = said(outcome)
    return lines if len(lines) <= MANY else said(outcome, outcome.comparisons[0].evidence.baselines[:1])


def overview(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Return a table of all comparisons and of what selections cost, best first: heads and rows.

    A row has the gain of a selection on the first baseline in each comparison; for a run, what its scores took, in
    seconds and as a share of training on everything.
    """
    first = outcome.comparisons[0].evidence.baselines[0]
    gains: dict[str, list[float]] = {}
    cells: dict[str, list[str]] = {}
    for c in outcome.comparisons:
        k = c.evidence.baseline(first)
        for s, name in enumerate(c.evidence.selections):
            if name != first:
                gains.setdefault(name, []).append(float(c.evidence.loss.gain[s, k, -1]))
                cells.setdefault(name, []).append(verdicts.short(c.evidence, name, first))

    def gain(name: str) -> float:
        known = [x for x in gains[name] if not math.isnan(x)]
        return sum(known) / len(known) if known else -math.inf

    cost = {row["run"]: [f"{row['seconds']:,.0f} s", _ratio(row["ratio"])] for row in outcome.costs}
    heads = [f"gain on {first}, nats per token", *(f"equal {c.at.equal}, {c.at.amount}" for c in outcome.comparisons)]
    rows = [[name, *cells[name], *cost.get(name, ["–", "–"])] for name in sorted(cells, key=gain, reverse=True)]
    return [*heads, "scoring", "of training on everything"], rows


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}" if value >= 0.095 else f"{value:.1%}"


def selections(outcome: Outcome) -> pl.DataFrame:
    """Return a row for each selection of each comparison."""
    import polars as pl

    frames = []
    for c in outcome.comparisons:
        frame = verdicts.table(c.evidence)
        rows = [c.shares[name][0] for name in frame["selection"]]
        tokens = [c.shares[name][1] for name in frame["selection"]]
        mine = [pl.Series("rows", rows, pl.Float64), pl.Series("tokens_of_epoch", tokens, pl.Float64)]
        frames.append(frame.select(*_at(c.at), pl.all()).with_columns(*mine))
    return pl.concat(frames, how="vertical_relaxed")


def by_task(outcome: Outcome) -> pl.DataFrame:
    """Return a row for each measure, selection, baseline and task of each comparison."""
    import polars as pl

    frames = [verdicts.task_table(c.evidence).select(*_at(c.at), pl.all()) for c in outcome.comparisons]
    return pl.concat(frames, how="vertical_relaxed")


def _at(at: Point) -> list[pl.Expr]:
    """Return the columns that tell what is equal: "rows" or "tokens", the budget in rows, and that in tokens."""
    import polars as pl

    return [
        pl.lit(at.equal).alias("equal"),
        pl.lit(at.rows, pl.Int64).alias("budget"),
        pl.lit(at.tokens, pl.Int64).alias("tokens"),
    ]


def markdown(outcome: Outcome, *, brief: bool = False) -> str:
    """Return all of it as a page; in brief, without the tables of each comparison."""
    tasks = ", ".join(f"{a['task']} {a['measured']}" for a in outcome.held_out.account)
    lines = [
        f"# Evaluation of {', '.join(outcome.runs)}",
        "",
        f"Proxy: `{outcome.model}`, trained on each selection and measured on {outcome.held_out.examples.num_rows:,} "
        f"held-out rows ({tasks}).",
    ]
    if outcome.demonstration:
        lines += ["", DEMONSTRATION]
    lines += ["", "## Verdicts", "", *(f"- {line}." for line in headlines(outcome))]
    lines += [f"- {note}." for note in outcome.notes]
    lines += ["", *_table(*overview(outcome)), "", "▲ better, ▼ worse, over all tasks together."]
    for c in () if brief else outcome.comparisons:
        lines += ["", f"## {c.at.title}", "", verdicts.markdown(c.evidence, sentences=len(said(outcome)) > MANY)]
    if outcome.validities:
        lines += ["", "## Does training follow the score?", ""]
        lines += [f"- `{name}`: {found.said}" for name, found in outcome.validities.items()]
    lines += ["", "## Cost", "", *_cost_lines(outcome.costs)]
    return "\n".join(lines) + "\n"


MANY = 16
"""Sentences that a page begins with, at most."""
DEMONSTRATION = (
    "The proxy is a very small model: this shows how the test works, and says little about the model that you will "
    "train. Name a larger one for that."
)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (heads, rule, *rows)]


def _cost_lines(costs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| run | seconds of scoring | tokens | operations | training on everything, seconds | scoring / training |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in costs:
        flops = "–" if row["flops"] is None else f"{row['flops']:.2g}"
        whole = "–" if row["everything_seconds"] is None else f"{row['everything_seconds']:,.0f}"
        cells = row["run"], f"{row['seconds']:,.0f}", f"{row['tokens']:,}", flops, whole, _ratio(row["ratio"])
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(outcome: Outcome) -> str:
    """Return the report of an evaluation, an HTML page that needs nothing else."""
    from curate.report.evaluation import sections
    from curate.report.page import render

    about = f"Proxy: {outcome.model}, trained on each selection. {DEMONSTRATION if outcome.demonstration else ''}"
    made = f"Made by curate {__version__}. This file holds all that it shows."
    rows = outcome.held_out.examples.num_rows
    summary = f"{len(outcome.trials):,} trainings, each measured on {rows:,} held-out rows."
    parts = sections(outcome, headlines(outcome), overview(outcome), about)
    return render(f"Evaluation of {', '.join(outcome.runs)}", summary, parts, made=made, problems=[])


def write(store: Store, outcome: Outcome) -> None:
    """Write the tables as Parquet, ``evidence.md``, ``evaluation.json`` and ``report.html``."""
    import polars as pl

    trials = pl.DataFrame(outcome.trials, infer_schema_length=None)
    for name, frame in (("selections", selections(outcome)), ("tasks", by_task(outcome)), ("trials", trials)):
        store.write_table(frame.to_arrow(), f"{name}.parquet")
    store.write_bytes(markdown(outcome).encode(), "evidence.md")
    store.write_bytes(page(outcome).encode(), "report.html")
    store.write_json(
        {
            "runs": outcome.runs,
            "model": outcome.model,
            "demonstration": outcome.demonstration,
            "tasks": outcome.held_out.account,
            "verdicts": said(outcome),
            "validity": {name: found.said for name, found in outcome.validities.items()},
            "costs": outcome.costs,
            "notes": outcome.notes,
        },
        "evaluation.json",
    )
