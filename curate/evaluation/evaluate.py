"""Does this selection beat random?  What runs have kept, and what anybody could have taken, train a proxy each.

    runs of one pool ──► contenders: orders of rows ──equal rows, equal tokens──► trials: selection × seed
                                                                                        │  (on workers, each kept)
    targets, or rows held out ──without those that the pool holds──► examples ──────────┤
                                                                                        ▼
                             losses and right answers of each example  ──►  evidence: tables, verdicts, a report

The directory holds all of it: ``trials/``, ``evaluation.json``, tables as Parquet, ``evidence.md``, ``report.html``.
The same command goes on where it was stopped; another seed or another run costs its own trials alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import models
from curate.evaluation import costs, tables
from curate.evaluation.design import UNTRAINED, Design
from curate.evaluation.grid import Grid, Point, Wanted
from curate.evaluation.held_out import HeldOut, hold_out
from curate.evaluation.trial import Setting, trial, write_rows
from curate.evaluation.watch import Watch
from curate.exceptions import InputError, ModelError
from curate.models.measure import Asking
from curate.models.proxy import Training
from curate.numerics.evidence import Evidence, Results, evidence
from curate.numerics.validity import Validity, validity
from curate.pipelines.executor import Executor, Task, executor, usable_cores
from curate.pipelines.ledger import FinishedRun, recipe_of
from curate.pipelines.progress import Progress
from curate.pipelines.store import Store
from curate.recipe import Recipe


@dataclass(frozen=True)
class Comparison:
    """The evidence at one budget."""

    at: Point
    """What is equal, and how much of it."""
    evidence: Evidence
    shares: dict[str, tuple[float, float]]
    """Selection → rows and tokens of an epoch, means over seeds."""


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found."""

    place: str
    runs: list[str]
    about: dict[str, str]
    """Selection → what it is."""
    model: str
    comparisons: list[Comparison]
    validities: dict[str, Validity]
    """Score → whether training follows it."""
    costs: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    held_out: HeldOut
    notes: list[str]
    demonstration: bool
    """Whether the proxy is so small that this shows how it works, and little more."""


@dataclass
class Evaluation:
    """Runs that are put to the test, and the directory that holds the outcome.

    Parameters
    ----------
    runs : finished runs of one pool: directories or URLs.  A list of several in the place of one are draws of one
        method, which take turns over the seeds.
    directory : by default ``evaluation`` in the directory of the first run.
    changes : keys of the section ``evaluate`` that take the place of what the first run's recipe says.
    """

    runs: Sequence[str | Store | Sequence[str | Store]]
    directory: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str | None = None
    workers: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        given = [[run] if isinstance(run, str | Store) else list(run) for run in self.runs]
        if not all(given) or not given:
            raise InputError("evaluate: a finished run was asked, none was found.")
        stores = [[run if isinstance(run, Store) else Store(_place(run)) for run in draws] for draws in given]
        roots = [store.root for draws in stores for store in draws]
        if len(set(roots)) < len(roots):
            twice = next(root for root in roots if roots.count(root) > 1)
            raise InputError(f"{twice} is named twice; a run is held against others.")
        self.draws = [[FinishedRun.open(store) for store in draws] for draws in stores]
        self.finished = [draws[0] for draws in self.draws]
        self.names = _names(self.finished)
        self.recipe = self._recipe(stores[0][0])
        self.settings = self.recipe.evaluate
        self.seed = self.recipe.seed if self.settings.seed is None else self.settings.seed
        self.store = Store(_place(self.directory) if self.directory else f"{stores[0][0].url.rstrip('/')}/evaluation")

    def _recipe(self, store: Store) -> Recipe:
        written = recipe_of(store).document().get("evaluate") or {}
        return recipe_of(store, evaluate={**written, **self.changes})

    # -- the whole ---------------------------------------------------------------------------------------------------

    def execute(self) -> Outcome:
        """Do what is not done yet, and return what was found.

        Raises
        ------
        InputError
            If no proxy is named, runs are of different pools, or a run has kept fewer rows than a budget asks.
        ModelError
            If the proxy cannot be loaded, or its training does not fit into memory: said before the first step.
        RunError
            If nothing is left to measure it on.
        """
        settings, training = self.settings, self.recipe.training
        if settings.model is None or training is None:
            raise InputError(
                "evaluate: a proxy was asked, none is named; add 'evaluate: {model: ORG/NAME}' to the recipe, or say "
                "--model."
            )
        self._check_pools()
        coder = models.encoder(settings.model, template=settings.template)
        asking = Asking(
            generate=settings.generate,
            verifiers=settings.verifiers,
            new_tokens=settings.new_tokens,
            run_code=settings.run_code,
        )
        self._check_memory(settings.model, training)
        progress = Progress(sys.stderr, quiet=self.quiet)
        work: Executor | None = None
        try:
            self.store.claim("evaluation")
            with self.store.lock():
                self.store.sweep()
                held = hold_out(self.recipe, self.finished[0], seed=self.seed)
                for line in held.told:
                    progress.say(line)
                self.store.write_table(held.examples, ".curate", "held-out", f"{held.digest}.parquet")
                setting = Setting(
                    model=settings.model,
                    identity=models.identify(settings.model),
                    template=settings.template,
                    template_identity=coder.identity(),
                    training=training,
                    asking=asking,
                    examples=held.digest,
                )
                grid = Design(self.recipe, self.draws, self.names, self.seed, setting, coder, held).grid()
                there = set(self.store.list("trials"))
                missing = [key for key in grid.rows if f"{key}.json" not in there]
                if missing:
                    work = executor(self.scheduler, self.workers, self.recipe.execution.gpus)
                accounts = self._carry_out(work, setting, grid, missing, progress)
                outcome = self._outcome(grid, accounts, held)
                tables.write(self.store, outcome)
        finally:
            if work is not None:
                work.close()
            progress.close()
        return outcome

    def _check_pools(self) -> None:
        """Raise unless all runs are of one pool."""
        first = np.sort(self.finished[0].keys(), axis=0)
        others = [(name, run) for name, draws in zip(self.names, self.draws, strict=True) for run in draws]
        for name, run in others[1:]:
            if not np.array_equal(first, np.sort(run.keys(), axis=0)):
                raise InputError(
                    f"evaluate: runs of one pool were asked; {name!r} has {run.index.n:,} rows that are no copies, "
                    f"{self.names[0]!r} {self.finished[0].index.n:,}, and not the same. Evaluate them one by one."
                )

    def _check_memory(self, model: str, training: Training) -> None:
        from curate.models.memory import fits, free

        device, workers = _device(), 1
        if device == "cpu":
            workers = 1 if self.scheduler == "sync" else self.workers or usable_cores()
        reason = fits(model, training, device, limit=free(device) // workers)
        if reason:
            beside = (
                f" ({workers} workers train side by side; --workers 1 leaves all of it to one)" if workers > 1 else ""
            )
            raise ModelError(f"{reason}{beside}")

    # -- the trials --------------------------------------------------------------------------------------------------

    def _carry_out(
        self, work: Executor | None, setting: Setting, grid: Grid, missing: list[str], progress: Progress
    ) -> dict[str, dict[str, Any]]:
        """Carry out the trials that are not there; return what is known of each."""
        there = self.store.read_jsons("trials")
        accounts = {key: there[key] for key in grid.rows.keys() - set(missing)}
        watch = Watch(progress, grid, accounts)
        of = {w.key: w for w in reversed(grid.wanted)}

        def tasks() -> Iterator[Task]:
            for key in missing:
                write_rows(self.store, key, grid.rows[key])
                watch.under_way(key)
                yield key, trial, (self.store, setting, key, of[key].share.epochs, self.seed + of[key].seed)

        for key, account in work.map(tasks(), model=True) if work is not None else ():
            accounts[key] = account
            watch.done(key, account)
        watch.finish()
        return accounts

    # -- what they say -----------------------------------------------------------------------------------------------

    def _outcome(self, grid: Grid, accounts: dict[str, dict[str, Any]], held: HeldOut) -> Outcome:
        measured = {key: self.store.read_table("trials", f"{key}.parquet") for key in grid.rows}
        tasks = list(dict.fromkeys(held.examples.column("group").to_pylist()))
        task = np.array([tasks.index(t) for t in held.examples.column("group").to_pylist()], dtype=np.int64)

        def results(wanted: list[Wanted], names: list[str]) -> Results:
            seeds = 1 + max(w.seed for w in wanted)
            shape = len(names), seeds, task.size
            nll, right, tokens = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(task.size)
            for w in wanted:
                if accounts[w.key]["diverged"]:
                    continue
                table = measured[w.key]
                at = names.index(w.name), w.seed
                nll[at] = table.column("nll").to_numpy()
                right[at] = table.column("correct").cast(pa.float64()).to_numpy()
                tokens = np.maximum(tokens, table.column("tokens").to_numpy())
            return Results(names, tasks, task, tokens, nll, None if np.isnan(right).all() else right)

        comparisons, validities = [], {}
        baselines = [n for n in grid.about if n not in self.names and n != UNTRAINED] + [UNTRAINED]
        targets = {name: recipe_of(run.store).targets for name, run in zip(self.names, self.finished, strict=True)}
        made_for = {name: [task for task in tasks if task in its] for name, its in targets.items()}
        for at, wanted in grid.groups().items():
            if at.score is not None:
                names = list(dict.fromkeys(w.name for w in wanted))
                validities[at.score] = validity(losses(results(wanted, names)).T)
                continue
            names = [name for name in grid.about if any(w.name == name for w in wanted)]
            found = evidence(results(wanted, names), baselines=baselines, zero_shot=UNTRAINED, made_for=made_for)
            shares = {
                name: tuple(
                    float(np.mean([x for w in wanted if w.name == name for x in [value(w)]]))
                    for value in (lambda w: w.share.places.size, lambda w: w.share.tokens)
                )
                for name in names
            }
            comparisons.append(Comparison(at, found, shares))  # type: ignore[arg-type]
        trials = [
            {
                "selection": w.name,
                "equal": w.at.equal,
                "budget": w.at.rows,
                "budget_tokens": w.at.tokens,
                "score": w.at.score,
                "seed": w.seed,
                "trial": w.key,
                **accounts[w.key],
            }
            for w in grid.wanted
        ]
        return Outcome(
            place=self.store.place(),
            runs=list(self.names),
            about=grid.about,
            model=_shown(str(self.settings.model)),
            comparisons=comparisons,
            validities=validities,
            costs=costs.of_runs(self.finished, self.names, trials, self.recipe),
            trials=trials,
            held_out=held,
            notes=grid.notes,
            demonstration=_small(accounts),
        )


def losses(found: Results) -> NDArray[np.float64]:
    """Return the loss per token of each selection and seed, the mean over tasks, (S, R); NaN without a result."""
    out = []
    for t in range(len(found.tasks)):
        its = found.task == t
        there = np.isfinite(found.nll[..., its])
        tokens = np.where(there, found.tokens[its], 0).sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            out.append(np.where(there, found.nll[..., its], 0).sum(axis=-1) / tokens)
    mean = np.nanmean(out, axis=0) if out else np.full(found.nll.shape[:2], np.nan)
    return np.asarray(mean)


def _small(accounts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the proxy has fewer parameters than a real study would: so few operations a token tell."""
    trained = [a for a in accounts.values() if a["tokens"]]
    return bool(trained) and min(a["flops"] / a["tokens"] for a in trained) < 6 * 100_000_000


def _device() -> str:
    import torch

    from curate.models.weights import find_device

    return find_device(torch, "auto")


def _shown(model: str) -> str:
    """Return a model's name, or of a folder its last part: nobody's other folders."""
    return os.path.basename(os.path.normpath(model)) if os.path.isdir(model) else model


def _place(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _names(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the runs' names: their recipes', or their folders' where two would be the same."""
    names = [str(run.manifest.get("name") or "run") for run in runs]
    if len(set(names)) < len(names):
        names = [os.path.basename(run.store.root.rstrip("/")) for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
