"""What stages learn before they score: from a sample of the pool, from targets, from benchmarks.

Each is fitted once, by one task, and keeps what it learned in ``.curate/fit`` under the stage's key, which names all
that it learned from.  A stage on the vectors of another is fitted when those are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.fingerprint import fingerprint
from curate.pipelines import gather
from curate.pipelines.benchmarks import Benchmarks, read_benchmarks
from curate.pipelines.executor import Task
from curate.pipelines.index import Index
from curate.pipelines.store import Store
from curate.pipelines.targets import Targets, draw, overlaps, read_targets
from curate.pipelines.worker import Stage, fit, look, read_state, write_state

if TYPE_CHECKING:
    from curate.pipelines.progress import Progress
    from curate.recipe import Recipe

Map = Callable[..., Iterator[tuple[str, Any]]]
"""Runs tasks on workers: ``map(tasks, model=False)``."""


@dataclass(frozen=True)
class Given:
    """What there is to learn from besides the pool."""

    targets: Targets | None = None
    benchmarks: Benchmarks | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Given:
        """Read the targets and benchmarks of a recipe."""
        return cls(
            read_targets(recipe) if recipe.targets else None, read_benchmarks(recipe) if recipe.benchmarks else None
        )

    def fingerprints(self, stage: Stage) -> list[str]:
        """Return what names the rows that a stage learns from besides the pool's."""
        if stage.scorer.fits_on in ("targets", "both"):
            assert self.targets is not None
            return [self.targets.fingerprint]
        if stage.scorer.fits_on == "benchmarks":
            assert self.benchmarks is not None
            return [self.benchmarks.fingerprint]
        return []

    def rows(self, stage: Stage) -> pa.Table | None:
        """Return these rows, with "group" and "drawn"."""
        if stage.scorer.fits_on == "benchmarks":
            assert self.benchmarks is not None
            return _labelled(self.benchmarks.sets, None)
        if stage.scorer.fits_on in ("targets", "both"):
            assert self.targets is not None
            return _labelled(self.targets.sets, self.targets.rows)
        return None


def _labelled(sets: Mapping[str, pa.Table], drawn: int | None) -> pa.Table:
    """Return the rows of all sets, each with the name of its set, and whether it is among the first ``drawn``."""
    tables = []
    for name, table in sets.items():
        n = table.num_rows
        if "group" in table.column_names:
            table = table.drop_columns(["group"])
        table = table.append_column("group", pa.array([name] * n, pa.string()))
        first = np.arange(n) < (n if drawn is None else drawn)
        tables.append(table.append_column("drawn", pa.array(first)))
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def sample_rows(stage: Stage, index: Index, kept: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return the reading-order numbers of the rows of the pool that a stage is fitted on, drawn by content keys.

    ``kept`` are the places in the pool of the rows that the selection has kept so far, for a stage that wants those.
    """
    if stage.scorer.fits_on == "kept":
        assert kept is not None
        return np.sort(index.pool[kept])
    if stage.scorer.fits_on not in ("pool", "both"):
        return np.empty(0, dtype=np.int64)
    return np.sort(index.pool[stage.scorer.fit_sample(index.pool.size)])


def named(
    store: Store,
    stage: Stage,
    stages: Mapping[str, Stage],
    index: Index,
    given: Given,
    kept: NDArray[np.int64] | None = None,
) -> Stage:
    """Return a stage with all that it learns from and reads in its fingerprint."""
    of = None if stage.scorer.of is None else stages[stage.scorer.of]
    parts: list[Any] = [] if of is None else [of.key]
    if stage.fitted and stage.scorer.fits_on in ("pool", "both", "kept"):
        digests: list[str] = []
        for part, rows in _by_part(sample_rows(stage, index, kept), index):
            keys = store.read_table("examples", part, columns=["content_key"]).column(0)
            digests.extend(k.hex() for k in keys.take(rows).to_pylist())
        parts.append(sorted(digests))
    parts += given.fingerprints(stage) if stage.fitted else []
    if not parts:
        return stage
    mark = fingerprint(stage.fingerprint, *parts)
    return Stage(stage.name, stage.scorer, mark, fitted=stage.fitted, of=None if of is None else of.directory)


def _by_part(rows: NDArray[np.int64], index: Index) -> Iterable[tuple[str, list[int]]]:
    for part in index.parts:
        lo, hi = np.searchsorted(rows, [part.start, part.start + part.rows])
        if hi > lo:
            yield part.name, (rows[lo:hi] - part.start).tolist()


@dataclass(frozen=True)
class Fitting:
    """Fits the stages of a run."""

    store: Store
    index: Index
    given: Given
    map: Map
    progress: Progress
    kept: NDArray[np.int64] | None = None
    """Places in the pool of the rows that the selection has kept so far."""

    def fit(self, stage: Stage, stages: Mapping[str, Stage]) -> Stage:
        """Return the stage, named by all that it depends on, its state in the store."""
        stage = named(self.store, stage, stages, self.index, self.given, self.kept)
        if stage.fitted and not self.store.exists(".curate", "fit", f"{stage.key}.npz"):
            began = time.perf_counter()
            if stage.scorer.of is not None and stage.scorer.fits_on == "targets":
                self._on_vectors_of_targets(stage, stages)
            else:
                self._on_rows(stage)
            seconds = round(time.perf_counter() - began, 3)
            self.store.write_json({"seconds": seconds}, ".curate", "fit", f"{stage.key}.took.json")
        if stage.fitted and (stage.scorer.of is not None or stage.scorer.fits_on == "both"):
            stage.scorer.load(read_state(self.store, stage.key))  # its columns can depend on it
        return stage

    def _on_rows(self, stage: Stage) -> None:
        rows, more = sample_rows(stage, self.index, self.kept), self.given.rows(stage)
        total = int(rows.size) + (0 if more is None else more.num_rows)
        if stage.scorer.resource == "model":  # minutes without a sign of life otherwise
            steps = stage.scorer.fit_steps
            kept = f", in {steps} steps that are each kept" if steps > 1 else ""
            self.progress.say(f"{stage.name}: trains on {total:,} rows, on one worker{kept}")
        line = self.progress.stage(f"fit {stage.name}", total)
        task: Task = (f"fit {stage.name}", fit, (self.store, stage, dict(_by_part(rows, self.index)), more))
        for _, account in self.map([task], model=stage.scorer.resource == "model"):
            line.advance(account["rows"])
        line.finish()
        if stage.scorer.fits_on in ("targets", "both"):
            assert self.given.targets is not None
            sets, drawn = self.given.targets.sets, self.given.targets.rows
            accounts = [
                {
                    "task": task,
                    "rows": table.num_rows,
                    "drawn": min(drawn, table.num_rows),
                    "passed_over": {},
                    "rejected": self.given.targets.rejected.get(task, 0),
                }
                for task, table in sets.items()
            ]
            self.store.write_json(accounts, "targets", f"{stage.key}.json")

    def _on_vectors_of_targets(self, stage: Stage, stages: Mapping[str, Stage]) -> None:
        """Draw the targets and look at them by the stage whose vectors are read."""
        assert self.given.targets is not None and stage.scorer.of is not None
        made = stages[stage.scorer.of]
        scorer = made.scorer.for_targets()
        identity = fingerprint("targets", made.fingerprint, scorer.identity())
        aims = Stage(made.name, scorer, identity, fitted=made.fitted, learned=made.key)
        sample, drawn = draw(self.given.targets, partial(self._look, aims))
        state = stage.scorer.fit(sample.select(list(stage.scorer.reads)))
        self.store.write_table(sample.drop_columns(["vector"]), "targets", f"{stage.key}.parquet")
        self.store.write_json(drawn, "targets", f"{stage.key}.json")
        write_state(self.store, stage.key, state)

    def _look(self, stage: Stage, table: pa.Table) -> pa.Table:
        line = self.progress.stage(f"{stage.name} of targets", table.num_rows)
        task: Task = (f"{stage.name} of targets", look, (self.store, stage, table))
        (found,) = self.map([task], model=stage.scorer.resource == "model")
        line.advance(table.num_rows)
        line.finish()
        return found[1]

    def account(self, stage: Stage) -> list[dict[str, Any]]:
        """Return, once a stage that learns from targets has scored, what became of each set; tell of overlaps."""
        assert self.given.targets is not None
        overlap = overlaps(gather.reasons(self.store, self.index, stage), self.given.targets.sets)
        if any(overlap.values()):
            told = ", ".join(f"{n:,} of {task}" for task, n in overlap.items() if n)
            self.progress.say(f"{stage.name}: rows of the pool that ask what a target asks were left out: {told}")
        drawn = self.store.read_json("targets", f"{stage.key}.json") or []
        return [one | {"overlap": overlap[one["task"]]} for one in drawn]
