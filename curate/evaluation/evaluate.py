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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import models
from curate.budget import Budget
from curate.evaluation import contenders as make
from curate.evaluation import costs, tables
from curate.evaluation.contenders import Contender, Share
from curate.evaluation.grid import Grid, Point, Wanted
from curate.evaluation.held_out import HeldOut, hold_out
from curate.evaluation.trial import Setting, trial, write_rows
from curate.evaluation.watch import Watch
from curate.exceptions import InputError, ModelError
from curate.models.measure import Asking
from curate.models.proxy import Training, tokens_of
from curate.numerics.evidence import Evidence, Results, evidence
from curate.numerics.validity import Validity, validity
from curate.pipelines.executor import Executor, Task, executor, usable_cores
from curate.pipelines.ledger import FinishedRun, recipe_of, score_of
from curate.pipelines.progress import Progress
from curate.pipelines.store import Store
from curate.recipe import Recipe
from curate.seeding import rng_for

UNTRAINED = "zero-shot"
TENTHS = 10
ENOUGH = 0.95
"""Share of the tokens asked that a run must hold: one with a budget in tokens ends up to a row below it."""


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
                grid = self._grid(setting, coder, held)
                missing = [key for key in grid.rows if not self.store.exists("trials", f"{key}.json")]
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

    # -- the grid ----------------------------------------------------------------------------------------------------

    def _grid(self, setting: Setting, coder: Any, held: HeldOut) -> Grid:
        settings, training = self.settings, setting.training
        contenders = [
            make.of_runs(draws, name, coder, held.allowed) for draws, name in zip(self.draws, self.names, strict=True)
        ]
        names = [name for name in settings.baselines if name != "full" or training.epochs > 1]
        notes = []
        if len(names) < len(settings.baselines):
            notes.append("no baseline 'full': in one epoch it is a uniform draw, as 'random' is; ask for more epochs")
        for name in set(names) & set(self.names):
            raise InputError(f"evaluate: a run is called {name!r}, which is a baseline's name; rename its directory.")
        contenders += make.baselines(self.finished[0], names, coder, held.allowed, self.seed)
        grid = Grid({UNTRAINED: "the proxy as it is"} | {c.name: c.about for c in contenders}, notes=notes)
        limit = _limit(setting)

        def lengths(contender: Contender, seed: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
            return tokens_of(contender.rows(seed, places), limit)

        def share(contender: Contender, at: Point, seed: int) -> Share:
            if at.tokens is None:
                return make.first_rows(contender, seed, at.rows or 0, training.epochs, lengths)
            return make.first_tokens(contender, seed, at.tokens, training.epochs, lengths)

        runs = [c for c in contenders if c.run]
        points = self._points(runs, lengths)
        for at in points:
            for seed in range(settings.seeds):
                grid.add(UNTRAINED, at, seed, setting, [], Share(_NONE, 0, 1))
                for c in contenders:
                    its = share(c, at, seed)
                    whole = c.run and its.places.size == c.order(seed).size
                    if at.rows is None and whole and its.tokens < ENOUGH * (at.tokens or 0):
                        raise InputError(
                            f"evaluate: {at.tokens:,} training tokens of each selection were asked, {c.name!r} has "
                            f"{its.tokens:,}; ask for fewer (evaluate.budgets)."
                        )
                    grid.add(c.name, at, seed, setting, c.rows(seed, its.places), its)
        sizes = self._sizes(runs)
        grid.notes += [
            f"{name}: {len(draws)} draws over {settings.seeds} seeds"
            for name, draws in zip(self.names, self.draws, strict=True)
            if 1 < len(draws) != settings.seeds
        ]
        if len(set(sizes.values())) > 1:
            grid.notes.append(
                "the runs kept "
                + ", ".join(f"{n:,} ({name})" for name, n in sizes.items())
                + "; of each the first rows of its choice are compared, as many as are equal"
            )
        for ref in settings.validity:
            self._tenths(grid, self.recipe.reference(ref, ("evaluate", "validity")), points, setting, held, runs, share)
        return grid

    def _sizes(self, runs: Sequence[Contender]) -> dict[str, int]:
        """Return how many rows each run has kept; of several draws the fewest."""
        return {c.name: min(c.order(seed).size for seed in range(len(c.texts))) for c in runs}

    def _points(self, runs: Sequence[Contender], lengths: Callable[..., Any]) -> list[Point]:
        """Return what is compared at: each budget in rows at equal rows, tokens or both, one in tokens as it is."""
        sizes = self._sizes(runs)
        smallest = min(sizes, key=lambda name: sizes[name])
        asked = self.recipe.evaluation_budgets or [Budget(rows=sizes[smallest])]
        rows = {b.limit(self.finished[0].index.n) for b in asked if b.tokens is None}
        points: list[Point] = []
        for budget in sorted(n for n in rows if n is not None):
            if not 0 < budget <= sizes[smallest]:
                raise InputError(
                    f"evaluate: {budget:,} rows of each selection were asked, {smallest!r} has {sizes[smallest]:,}; "
                    f"ask for {'more' if budget == 0 else 'fewer'} (evaluate.budgets)."
                )
            for equal in dict.fromkeys(self.settings.equal):
                tokens = None
                if equal == "tokens":
                    tokens = min(
                        int(lengths(c, draw, c.order(draw)[:budget]).sum())
                        for c in runs
                        for draw in range(len(c.texts))
                    )
                points.append(Point(equal, budget, tokens))
        points += [Point("tokens", None, n) for n in sorted({b.tokens for b in asked if b.tokens is not None})]
        if any(at.tokens == 0 for at in points):
            raise InputError("evaluate: 0 training tokens of each selection were asked; ask for more.")
        return points

    def _tenths(
        self,
        grid: Grid,
        score: str,
        points: Sequence[Point],
        setting: Setting,
        held: HeldOut,
        runs: Sequence[Contender],
        share: Callable[[Contender, Point, int], Share],
    ) -> None:
        """Add trainings on rows of each tenth of the pool, in the order of a score, at the smallest budget.

        In tokens where tokens are equal anywhere: a score that goes with length would else be held for one that tells
        good rows.
        """
        values, better = score_of(self.finished[0], self.recipe, score)
        if better is None:
            raise InputError(f"evaluate: {score!r} has no better direction; the validity of a score needs one.")
        able = np.flatnonzero(held.allowed & ~np.isnan(values))
        if able.size < TENTHS:
            raise InputError(f"evaluate: {able.size} rows have the score {score!r}; {TENTHS} at least were asked.")
        order = able[np.argsort(-values[able] if better else values[able], kind="stable")]

        def drawn(i: int, group: NDArray[np.int64]) -> Contender:
            def of(seed: int) -> NDArray[np.int64]:
                return rng_for(self.seed, "evaluate", "validity", score, seed, i).permutation(group)

            return Contender(f"{score} #{i + 1}", f"tenth {i + 1} of {score}", of, runs[0].texts)

        tenths = [drawn(i, group) for i, group in enumerate(np.array_split(order, TENTHS))]
        in_tokens = [at.tokens for at in points if at.tokens is not None]
        seeds = range(self.settings.seeds)
        if in_tokens:
            at = Point("tokens", None, min(in_tokens), score)
            least = min(share(c, at, seed).tokens for c in tenths for seed in seeds)
            at = replace(at, tokens=min(least, min(in_tokens)))
        else:
            at = Point("rows", min(*(at.rows or 0 for at in points), able.size // TENTHS, able.size), None, score)
        for seed in seeds:
            for c in tenths:
                its = share(c, at, seed)
                grid.add(c.name, at, seed, setting, c.rows(seed, its.places), its)

    # -- the trials --------------------------------------------------------------------------------------------------

    def _carry_out(
        self, work: Executor | None, setting: Setting, grid: Grid, missing: list[str], progress: Progress
    ) -> dict[str, dict[str, Any]]:
        """Carry out the trials that are not there; return what is known of each."""
        there = self.store.read_jsons("trials")
        accounts = {key: there[key] for key in grid.rows if key not in set(missing)}
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


_NONE = np.empty(0, dtype=np.int64)


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


def _limit(setting: Setting) -> int | None:
    known = [n for n in (setting.training.max_tokens, models.context(setting.model)) if n is not None]
    return min(known, default=None)


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
