"""What several runs kept, side by side: the numbers, and the sections of their page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate.report.blocks import Block, Rows, Section, Share, Table, Text
from curate.report.charts import composition, intervals
from curate.report.text import number
from curate.report.view import Sample

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs."""

    name: str
    """What it is called here: its name, or its directory where two have the same name."""
    path: str
    pool: int
    """Different conversations that were read."""
    kept: int
    alone: int
    """Rows kept by no other of the runs."""


@dataclass(frozen=True)
class Spread:
    """A score among the rows that one run kept."""

    rows: int
    """Kept rows that have the score."""
    mean: float
    quantiles: Sequence[float]
    """At 5, 25, 50, 75 and 95%."""


@dataclass(frozen=True)
class Score:
    """A score, as one run computed it, among the rows that each of the runs kept."""

    name: str
    unit: str
    of: str
    """The run whose scores these are.  Rows that are not in its pool have none."""
    spreads: Sequence[Spread | None]
    """One a run; None where it kept no row that has the score."""


@dataclass(frozen=True)
class Comparison:
    """Runs by what they kept.  Rows are the same where their messages and tools are (their content key)."""

    runs: Sequence[ComparedRun]
    in_all_pools: int
    """Conversations that every run read."""
    in_any_pool: int
    kept_by_all: int
    kept_by_any: int
    overlap: Sequence[Sequence[int]]
    """[i][j]: rows that both run i and run j kept."""
    jaccard: Sequence[Sequence[float]]
    """[i][j]: rows that both kept, divided by rows that either kept; 1 where neither kept any."""
    composition: Mapping[str, Mapping[str, Sequence[int]]]
    """Label (source, group, language, length) → value → kept rows, one number a run."""
    scores: Sequence[Score] = ()
    notes: Sequence[str] = ()
    samples: Sequence[Sample] = field(default=(), repr=False)
    """Some rows that only one run kept; ``stage`` is the run."""

    @property
    def same_pool(self) -> bool:
        return self.in_all_pools == self.in_any_pool

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the rows' texts, as JSON knows it."""
        out = dataclasses.asdict(dataclasses.replace(self, samples=()))
        out["samples"] = [{"run": s.stage, "id": s.ledger["id"]} for s in self.samples]
        return out


def sections(found: Comparison) -> list[Section]:
    names = [run.name for run in found.runs]
    runs = Table(
        "Runs",
        ["run", "pool", "kept", "share of its pool", "kept by it alone"],
        [[r.name, r.pool, r.kept, Share(r.kept / max(1, r.pool)), r.alone] for r in found.runs],
    )
    matrix = Table(
        "Rows that both kept",
        ["", *names],
        [[name, *row] for name, row in zip(names, found.overlap, strict=True)],
    )
    jaccard = Table(
        "Jaccard: rows that both kept, of those that either kept",
        ["", *names],
        [[name, *map(Share, row)] for name, row in zip(names, found.jaccard, strict=True)],
    )
    notes = [Text(note) for note in found.notes]
    made = [Section("Overlap", [*notes, runs, matrix, jaccard])]
    parts: list[Block] = []
    for label, values in found.composition.items():
        counts = {name: np.array([v[i] for v in values.values()]) for i, name in enumerate(names)}
        parts.append(composition(label, list(values), counts, ordered=label == "length"))
    made.append(Section("What is kept", parts))
    if found.scores:
        made.append(Section("Scores of what is kept", [_score(score, names) for score in found.scores]))
    if found.samples:
        note = "Rows that one run alone kept: of each run those with the smallest content keys."
        made.append(Section("Rows that one run alone kept", [Rows(found.samples, note)]))
    return made


def _score(score: Score, names: Sequence[str]) -> Block:
    there = {name: s for name, s in zip(names, score.spreads, strict=True) if s is not None}
    table = Table(
        f"{score.name}, as {score.of} scored it",
        ["run", "rows", "mean", "5%", "25%", "50%", "75%", "95%"],
        [[name, s.rows, s.mean, *s.quantiles] for name, s in there.items()],
        folded=True,
    )
    chart = intervals(score.name, {name: s.quantiles for name, s in there.items()}, axis=score.unit, table=table)
    means = "; ".join(f"{name} {number(s.mean)}" for name, s in there.items())
    return dataclasses.replace(chart, note=f"Means: {means}.")
