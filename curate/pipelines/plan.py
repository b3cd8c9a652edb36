"""What a run would do: stages, rows, tokens, what is already there, and about how long the rest takes.

Loads no model and writes nothing.  Rows are exact once the sources were read, estimates before; times come, in this
order, from this run's own finished shards, from earlier runs on this machine, or from a rough count of operations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from curate.exceptions import RunDirectoryError
from curate.pipelines import fitting
from curate.pipelines.executor import usable_cores
from curate.pipelines.index import Index, build_index
from curate.pipelines.rates import known_rates, rate_key
from curate.pipelines.scoring import scores_there
from curate.pipelines.store import Store
from curate.pipelines.worker import Stage, sharing

if TYPE_CHECKING:
    from curate.base import Scorer
    from curate.pipelines.run import Run

CHARS_PER_TOKEN = 4.0
"""English text under a vocabulary of 32k and more; a small vocabulary or another script needs more tokens."""
_FLOPS_PER_CORE = 4e10
"""float32 multiply-adds of one CPU core in a small model, as operations per second: good to a factor of three."""
_ROWS_PER_CORE = 3_000.0
"""Rows per second and core of a scorer without a model: good to a factor of five."""


@dataclass(frozen=True)
class PlannedStage:
    name: str
    use: str
    rows: int
    """Rows that the stage covers."""
    there: int
    """Rows whose result is there already and fresh."""
    tokens: int | None
    """Tokens that it would read, for a stage with a model (an estimate)."""
    seconds: float | None
    """Estimated wall time of what is missing."""
    basis: Literal["nothing to do", "measured in this run", "measured on this machine", "rough"]
    together_with: list[str] = field(default_factory=list)
    """The stages that it shares a forward pass with; each counts its part of the time and of the tokens."""


@dataclass(frozen=True)
class Plan:
    recognised: list[str]
    exact: bool
    """Whether rows are counted (the sources were read) or estimated."""
    files: int
    stages: list[PlannedStage]
    steps: list[str]
    workers: int

    @property
    def seconds(self) -> float:
        return sum(s.seconds or 0.0 for s in self.stages)


def plan(run: Run) -> Plan:
    """Return what ``run.execute()`` would do now.

    Raises
    ------
    RunDirectoryError, SchemaError, SourceError, ModelError
        The same that the run would raise before its first shard.
    """
    recognised, groups = run._discover()
    stages = run._identify()
    store = run.store
    if (
        store.exists("")
        and any(n != ".curate" for n in store.list(""))
        and store.read_json(".curate", "run.json") is None
    ):
        raise RunDirectoryError(
            f"{store.root} is not empty and is no run of curate. Choose another directory with --run."
        )
    accounts = run.read_done(groups)
    there = sum(a["rows"] for a in accounts.values())
    workers = 1 if run.scheduler == "sync" else run.workers or usable_cores()
    complete = len(accounts) == len(groups) or (run.limit is not None and there >= run.limit)
    index: Index | None = build_index(store, accounts) if complete else None
    rates = known_rates()
    expected = there if complete else there + sum(g.rows for g in groups if g.name not in accounts)
    expected = expected if run.limit is None else min(expected, run.limit)
    read_seconds = (expected - there) / (rates.get("read") or 10_000.0) / workers
    rows = [
        PlannedStage(
            "read", "read", expected, there, None, read_seconds, _basis(expected - there, False, "read" in rates)
        )
    ]
    pool = index.n if index else expected
    chars = sum(p.chars for p in index.parts) if index else _chars(groups)
    given = fitting.Given.of(run.recipe)
    named: dict[str, Stage] = {}
    groups_of = {stage.name: group for group in sharing(stages.values()) for stage in group}
    for name, stage in stages.items():
        together = [other.scorer for other in groups_of[name]]
        share = len({view for scorer in together for view in scorer.passes}) / len(together)
        late = name in run.recipe.stages_of_corrections
        if index is not None:
            stage = _late(store, stage) if late else fitting.named(store, stage, named, index, given)
        named[name] = stage
        if stage.fitted and stage.scorer.fits_on == "pool" and stage.scorer.resource == "model":
            rows.append(_warm_up(run, stage, pool, chars, learned=index is not None))
        marks: dict[str, Any] = {}
        if late:
            marks = store.read_jsons(f".curate/done/{stage.key}")
        elif index is not None:
            marks = scores_there(store, stage, index)
        done = sum(m["rows"] for m in marks.values())
        left = pool - done
        own = sum(m["seconds"] for m in marks.values())
        tokens = int(share * chars / CHARS_PER_TOKEN) if stage.scorer.resource == "model" else None
        known = rates.get(rate_key(stage.scorer))
        if left <= 0:
            seconds = 0.0
        elif own and done:
            seconds = left * own / done / workers
        elif known:
            seconds = left / known / workers
        else:
            seconds = share * _rough(stage.scorer, left, chars * left / max(1, pool)) / workers
        basis = _basis(left, bool(own and done), bool(known))
        others = [other.name for other in groups_of[name] if other is not stages[name]]
        rows.append(PlannedStage(name, stage.scorer.name, pool, done, tokens, seconds, basis, others))
    steps = [
        f"{s.name}: {s.selector.name}"
        + "".join(
            f" {role} {ref}" for role, ref in (("on", s.on), ("features", s.features), ("quality", s.quality)) if ref
        )
        + (f", budget {s.budget}" if s.budget else "")
        + (f" by {s.cost}" if s.cost else "")
        + (f", quota by {s.quota.by}" if s.quota else "")
        + (
            f", in {s.selector.params()['rounds']} rounds, with {s.learner.model} trained after each but the last"
            if s.learner
            else ""
        )
        for s in run.recipe.steps
    ]
    for c in run.recipe.corrections:
        after = run.recipe.steps[c.after].name if c.after >= 0 else "the start"
        looks = "" if c.rows == "all" else f" on its {c.rows} rows"
        steps.append(f"{c.name}: {c.corrector.name} after {after}{looks}")
    files = len({p.url for g in groups for p in g.slices})
    return Plan([r.text for r in recognised], index is not None, files, rows, steps, workers)


def _late(store: Store, stage: Stage) -> Stage:
    """Return a stage of a correction under the name that it had last; how many rows it has to look at is not known."""
    last = store.read_json(".curate", "late", f"{stage.name}.json")
    if last is None or last["base"] != stage.fingerprint:
        return stage
    return Stage(stage.name, stage.scorer, last["fingerprint"], fitted=stage.fitted)


def _warm_up(run: Run, stage: Stage, pool: int, chars: float, *, learned: bool) -> PlannedStage:
    """Return the training of a model on rows of the pool, by one worker: three passes' work an epoch."""
    epochs = stage.scorer.fit_steps
    sample = len(stage.scorer.fit_sample(pool))
    there = learned and run.store.exists(".curate", "fit", f"{stage.key}.npz")
    own = chars * sample / max(1, pool)
    seconds = 0.0 if there else 3 * epochs * _rough(stage.scorer, sample, own)
    tokens = int(epochs * own / CHARS_PER_TOKEN)
    done = sample if there else 0
    return PlannedStage(
        f"fit {stage.name}", "warm-up", sample, done, tokens, seconds, _basis(sample - done, False, False)
    )


def _basis(left: int, own: bool, known: bool) -> Any:
    if left <= 0:
        return "nothing to do"
    return "measured in this run" if own else "measured on this machine" if known else "rough"


def _chars(groups: list[Any]) -> float:
    """Characters of all sources, from their sizes: Parquet is compressed about 2.5 times."""
    return sum(
        (p.bytes or 0) * (2.5 if p.format == "parquet" or p.compression else 1.0) for g in groups for p in g.slices
    )


def _rough(scorer: Scorer, rows: int, chars: float) -> float:
    """Seconds on one core: 2 operations per parameter and token for a model, a constant rate otherwise."""
    if scorer.resource != "model":
        return rows / _ROWS_PER_CORE
    folder = Path(str(scorer.params().get("model") or ""))
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 0
    parameters = size / 2 if size else 5e8
    return 2 * parameters * chars / CHARS_PER_TOKEN / _FLOPS_PER_CORE
