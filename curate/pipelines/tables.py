"""What an evaluation found, in files: tables for machines, a page of Markdown, and a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curate import __version__
from curate.numerics import verdicts
from curate.pipelines.store import Store

if TYPE_CHECKING:
    import polars as pl

    from curate.pipelines.evaluate import Comparison, Outcome


def title(comparison: Comparison) -> str:
    """Return what was made equal, in words."""
    if comparison.tokens is None:
        return f"{comparison.budget:,} rows of each"
    return f"{comparison.tokens:,} training tokens of each (as many as {comparison.budget:,} rows have)"


def said(outcome: Outcome) -> list[str]:
    """Return the verdict on each run, in sentences."""
    lines = []
    for c in outcome.comparisons:
        for run in outcome.runs:
            for baseline in c.evidence.baselines:
                lines.append(f"{run}, {title(c)}: {verdicts.verdict(c.evidence, run, baseline)}")
    return lines


def selections(outcome: Outcome) -> pl.DataFrame:
    """Return a row for each selection of each comparison."""
    import polars as pl

    frames = []
    for c in outcome.comparisons:
        frame = verdicts.table(c.evidence)
        head = [pl.lit(c.equal).alias("equal"), pl.lit(c.budget).alias("budget"), pl.lit(c.tokens).alias("tokens")]
        rows = [c.shares[name][0] for name in frame["selection"]]
        tokens = [c.shares[name][1] for name in frame["selection"]]
        mine = [pl.Series("rows", rows, pl.Float64), pl.Series("tokens_of_epoch", tokens, pl.Float64)]
        frames.append(frame.select(*head, pl.all()).with_columns(*mine))
    return pl.concat(frames, how="vertical_relaxed")


def by_task(outcome: Outcome) -> pl.DataFrame:
    """Return a row for each measure, selection, baseline and task of each comparison."""
    import polars as pl

    frames = [
        verdicts.task_table(c.evidence).select(
            pl.lit(c.equal).alias("equal"), pl.lit(c.budget).alias("budget"), pl.all()
        )
        for c in outcome.comparisons
    ]
    return pl.concat(frames, how="vertical_relaxed")


def markdown(outcome: Outcome) -> str:
    """Return all of it as a page."""
    tasks = ", ".join(f"{a['task']} {a['measured']}" for a in outcome.held_out.account)
    lines = [
        f"# Evaluation of {', '.join(outcome.runs)}",
        "",
        f"Proxy: `{outcome.model}`, trained on each selection and measured on {outcome.held_out.examples.num_rows:,} "
        f"held-out rows ({tasks}).",
    ]
    if outcome.demonstration:
        lines += ["", DEMONSTRATION]
    lines += ["", "## Verdicts", "", *(f"- {line}." for line in said(outcome))]
    lines += [f"- {note}." for note in outcome.notes]
    for c in outcome.comparisons:
        lines += ["", f"## {title(c)}", "", verdicts.markdown(c.evidence)]
    if outcome.validities:
        lines += ["", "## Does training follow the score?", ""]
        lines += [f"- `{name}`: {found.said}" for name, found in outcome.validities.items()]
    lines += ["", "## Cost", "", *_cost_lines(outcome.costs)]
    return "\n".join(lines) + "\n"


DEMONSTRATION = (
    "The proxy is a very small model: this shows how the test works, and says little about the model that you will "
    "train. Name a larger one for that."
)


def _cost_lines(costs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| run | seconds of scoring | tokens | operations | training on everything, seconds | scoring / training |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in costs:
        flops = "–" if row["flops"] is None else f"{row['flops']:.2g}"
        whole = "–" if row["everything_seconds"] is None else f"{row['everything_seconds']:,.0f}"
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2g}"
        lines.append(f"| {row['run']} | {row['seconds']:,.0f} | {row['tokens']:,} | {flops} | {whole} | {ratio} |")
    return lines


def page(outcome: Outcome) -> str:
    """Return the report of an evaluation, an HTML page that needs nothing else."""
    from curate.report.evaluation import sections
    from curate.report.page import render

    about = f"The proxy {outcome.model}, trained on each selection. {DEMONSTRATION if outcome.demonstration else ''}"
    made = f"Made by curate {__version__}. This file holds all that it shows."
    heads = [title(c) for c in outcome.comparisons]
    rows = outcome.held_out.examples.num_rows
    summary = f"{len(outcome.trials):,} trainings, each measured on {rows:,} held-out rows."
    parts = sections(outcome, said(outcome), heads, about)
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
