"""What the sections of a report see of a run: numbers of every row, texts of a few.

``curate.pipelines.view`` makes it from a run directory.  A million rows take about 100 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

DECISIONS = ("kept", "corrected", "dropped", "duplicate", "rejected")
OUT = ("dropped", "duplicate", "rejected")
"""Decisions that leave a row out of the result."""


@dataclass(frozen=True)
class ScoreColumn:
    """A score column as the manifest knows it."""

    name: str
    """``stage.column``."""
    unit: str = ""
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Baseline:
    """What another selector chooses of the same pool within the same budget."""

    name: str
    about: str
    """The selector, its seed, the lengths that it went by."""
    chosen: NDArray[np.bool_]
    """(pool,) in the order of ``View.pool``."""


@dataclass(frozen=True)
class Sample:
    """One row with its text."""

    decision: str
    stage: str
    kind: str
    """The reason without the numbers and names that vary from row to row; what rows are filtered by."""
    ledger: Mapping[str, Any]
    """The row of ``decisions/``."""
    turns: Sequence[tuple[str, str]]
    """(role, text) of each message; ("raw", text) for a row that never became an example."""
    scores: Mapping[str, float]
    """``stage.column`` → value, where it has one."""


@dataclass(frozen=True)
class PoolMap:
    """A sample of the pool in two dimensions."""

    stage: str
    """The stage whose vectors these are."""
    xy: NDArray[np.float64]
    """(n, 2) coordinates along the two main axes of the pool's vectors."""
    explained: tuple[float, float]
    """Share of the vectors' variance along each axis."""
    kept: NDArray[np.bool_]
    """(n,)"""
    labels: Sequence[str]
    """(n,) source and beginning of each row's text."""
    of_kept: int
    """Rows kept of which the kept points are a sample."""
    of_dropped: int
    fitted_on: int
    """Rows of the pool that the axes were found on."""


@dataclass(frozen=True)
class Extreme:
    """A row at one end of its influence on a task."""

    task: str
    most: bool
    """Whether it is one of the most influential, or of the least."""
    row: int
    """Its number in the ledger."""
    influence: float
    """Mean over the task's targets."""
    normalised: float
    """Mean over the task's targets of the influence in deviations from the pool's mean."""


@dataclass(frozen=True, eq=False)
class Influence:
    """What an attribution says.  Of a task, in deviations: a mean over its targets and over rows that have numbers."""

    stage: str
    use: str
    """What its vectors were: gradients, hidden-states …"""
    tasks: Sequence[str]
    targets: Sequence[Mapping[str, Any]]
    """An account a task: task, rows, drawn, passed_over (reason → rows), rejected, overlap (rows of the pool)."""
    unknown: int
    """Rows of the pool without an influence."""
    by_source: Mapping[str, tuple[int, NDArray[np.float64]]]
    """Source → its rows, and (tasks,) their normalised influence; the largest first."""
    by_pick: Mapping[str, tuple[int, NDArray[np.float64]]]
    """The same of selections: "this run", and each of the baselines."""
    extremes: Sequence[Extreme]
    """By task: the most influential first, then the least influential first."""


@dataclass(frozen=True)
class Change:
    """One row's answer, and what a correction put in its place, or might have."""

    id: str
    decision: str
    """What became of the row in the end."""
    rule: str
    confidence: float | None
    question: str
    """The last turn of the user before the answer."""
    old: str
    new: str


@dataclass(frozen=True, eq=False)
class Correction:
    """What a correction did to the rows that it saw, (m,) of them."""

    name: str
    use: str
    model: str | None
    prompt: str | None
    """The models and the prompts behind it, with the roles that they had."""
    threshold: float | None
    """What its confidence is held against."""
    counts: Mapping[tuple[str, str, str], int]
    """(rule, what was done, the row's decision in the end) → rows.  Done is replace, keep or drop, "" where it was left
    to the selection, or "overruled" where a later correction did something else."""
    confidence: NDArray[np.float64]
    """(m,) NaN where there is none."""
    replaced: NDArray[np.bool_]
    """(m,) True where its answer stands."""
    made: Sequence[Change] = ()
    """A sample of the answers that it replaced."""
    refused: Sequence[Change] = ()
    """A sample of the candidates that it did not take."""


@dataclass(frozen=True, eq=False)
class View:
    """A finished run."""

    manifest: Mapping[str, Any]
    recipe: str
    """YAML, as the run keeps it."""
    ledger: pl.DataFrame
    """A row for every row of ``decisions/``: decision, stage, reason, kind, score_name, source, group, language
    (categories), score, threshold (float64), cluster (int32), chars (int64; null for rejected rows).  Examples
    in reading order, then rejected rows."""
    columns: Mapping[str, ScoreColumn]
    """``stage.column`` → what it is."""
    values: Callable[[str], NDArray[np.float64]]
    """``stage.column`` → (pool,) its values, NaN where a row was not scored; in the order of ``pool``."""
    baselines: Sequence[Baseline] = ()
    samples: Sequence[Sample] = ()
    pool_map: PoolMap | None = None
    influences: Sequence[Influence] = ()
    """One an attribution."""
    corrections: Sequence[Correction] = ()
    rows: Mapping[int, Sample] = field(default_factory=dict)
    """Ledger row → its text, of the rows at the ends of an influence."""
    notes: Sequence[str] = ()
    """What could not be read or computed, and why."""

    @property
    def name(self) -> str:
        return str(self.manifest.get("name", "run"))

    @property
    def steps(self) -> Sequence[Mapping[str, Any]]:
        """The account of each selection step: name, use, in, kept, dropped, score, threshold, budget."""
        return self.manifest.get("select", [])

    @cached_property
    def pool(self) -> pl.DataFrame:
        """The rows of the ledger that selectors saw: all but copies and rejected rows."""
        import polars as pl

        return self.ledger.filter(~pl.col("decision").cast(pl.String).is_in(["duplicate", "rejected"]))

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """(pool,) True for rows of the result: kept or corrected."""
        import polars as pl

        return self.pool.select(pl.col("decision").cast(pl.String).is_in(["kept", "corrected"])).to_series().to_numpy()

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows of the ledger by decision, those of no row left out."""
        import polars as pl

        found = dict(self.ledger.group_by(pl.col("decision").cast(pl.String)).len().iter_rows())
        return {word: found[word] for word in DECISIONS if word in found}
