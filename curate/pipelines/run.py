"""The run: recipe → directory.

    sources ──read──► examples/ + rejected/ ──index──► pool (copies set aside)
                          │                             │
                          └──score, one stage each──► scores/ + features/ (sidecars, row by row)
                                                        │
    targets ──draw──► their vectors, by the same stage ─┤ attribution: one more stage of features
                                                        │
                              select (steps on plain arrays, canonical order)
                                                        │        ▲
                                                        │        └── correct (after a step: stages of its own, a rule)
                                                        │
                                 decisions/ (every input row) + dataset/ + provenance/

Each arrow can be cut at any moment and taken up again by the same command: a shard is finished when its mark is there,
and its mark names everything that its content depends on.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate import __version__
from curate.exceptions import AccountingError, ModelError, RunError
from curate.fingerprint import fingerprint
from curate.pipelines import decide, export, handover, publish
from curate.pipelines.correct import Correcting
from curate.pipelines.executor import Executor, Task, executor
from curate.pipelines.facts import write_card
from curate.pipelines.fitting import Fitting, Given
from curate.pipelines.index import Index, build_index
from curate.pipelines.ingest import Group, group_slices, ingest
from curate.pipelines.memory import give_back
from curate.pipelines.progress import Progress
from curate.pipelines.rates import remember_rate
from curate.pipelines.refine import Refinement
from curate.pipelines.scoring import Scoring
from curate.pipelines.select import Verdicts, select
from curate.pipelines.store import Store
from curate.pipelines.worker import Stage, sharing

if TYPE_CHECKING:
    from curate.connectors.recognised import Recognised
    from curate.recipe import Recipe
    from curate.recipe_parts import Step

SELECT_VERSION = 1
_PACKAGES = ("numpy", "pyarrow", "polars", "scikit-learn", "faiss-cpu", "dask", "distributed", "torch", "transformers")


@dataclass
class Run:
    """A recipe and the directory that it fills.  ``execute`` continues wherever an earlier one stopped."""

    recipe: Recipe
    directory: str | Path | None = None
    """Any fsspec URL; the recipe's ``run``, or ``runs/NAME`` here, when absent."""
    scheduler: str | None = None
    """None or "local", "sync", or the address of a Dask scheduler."""
    workers: int | None = None
    limit: int | None = None
    """Read only the first rows of the sources: a rehearsal."""
    quiet: bool = False
    store: Store = field(init=False)
    manifest: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        directory = self.directory or self.recipe.run_dir or f"runs/{self.recipe.name}"
        self.store = Store(str(directory) if "://" in str(directory) else str(Path(directory).absolute()))
        self.workers = self.workers or self.recipe.execution.workers
        self._executor: Executor | None = None
        self._checked: set[str] = set()

    # -- the whole ---------------------------------------------------------------------------------------------------

    def execute(self, until: str = "write") -> dict[str, Any]:
        """Do what is not done yet, and return the manifest.

        ``until`` is "read", "score" or "write".

        Raises
        ------
        RunDirectoryError
            If the directory cannot be written, holds something else, or is in use by another run.
        SchemaError, SourceError
            If the sources cannot be understood.
        StageError, SchedulerError, ModelError
            If a stage cannot go on; what is finished stays.
        AccountingError
            If input rows and decisions do not add up.
        """
        recognised, groups = self._discover()
        given = Given() if until == "read" else Given.of(self.recipe)
        stages = self._identify()
        progress = Progress(sys.stderr, quiet=self.quiet)
        try:
            self.store.claim(self.recipe.name)
            with self.store.lock(), self._cluster():
                self.store.sweep()
                publish.recover(self.store)
                self._begin(recognised)
                for text in (r.text for r in recognised):
                    progress.say(text)
                if until != "read":
                    self._check(stages)
                accounts = self._read(groups, recognised, progress)
                index = build_index(self.store, accounts)
                give_back()
                self._account_reading(accounts, index)
                scoring = Scoring(self.store, index, self._map, progress, self.manifest["stages"], self._checked)
                if until != "read":
                    self._make_scores(stages, index, given, scoring, progress)
                if until == "write":
                    self._write(accounts, index, stages, scoring, progress)
                    self._stop_workers()  # what follows takes memory of its own, and needs none of them
                    write_card(self.store, self.manifest, self.recipe, groups)
                    exports = handover.export_all(self.store, self.recipe.exports, self.recipe.name, progress)
                    self.manifest["exports"] = exports
                self.store.sweep()  # a worker that died in the middle of a file leaves it aside
                self._end("complete" if until == "write" else f"{until} complete")
                if until == "write":
                    self._report(progress)
        finally:
            progress.close()
        return self.manifest

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._stop_workers()

    def _stop_workers(self) -> None:
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _map(self, tasks: Iterable[Task], *, model: bool = False) -> Iterator[tuple[str, Any]]:
        """Run tasks; workers are started when there is something to do for the first time."""
        queue = iter(tasks)
        for first in queue:
            if self._executor is None:
                self._executor = executor(self.scheduler, self.workers, self.recipe.execution.gpus)
            yield from self._executor.map(itertools.chain([first], queue), model=model)

    # -- before anything runs ----------------------------------------------------------------------------------------

    def _discover(self) -> tuple[list[Recognised], list[Group]]:
        from curate.connectors.discover import discover
        from curate.connectors.recognise import recognise

        slices = discover(self.recipe.sources)
        recognised = [
            recognise([s for s in slices if s.source == i], source) for i, source in enumerate(self.recipe.sources)
        ]
        groups = group_slices(
            slices, self.recipe.sources, recognised, shard_rows=self.recipe.execution.shard_rows, limit=self.limit
        )
        return recognised, groups

    def _identify(self) -> dict[str, Stage]:
        """Name every scoring stage by all that its numbers depend on: finds its model, loads none."""
        stages = {}
        scorers = sorted(self.recipe.scorers.items(), key=lambda item: item[1].of is not None)  # what is read first
        for name, scorer in scorers:
            try:
                identity = scorer.identity()
            except ModelError as error:
                raise ModelError(f"scorer {name!r}: {error}") from error
            stages[name] = Stage(name, scorer, fingerprint("score", identity), fitted=scorer.fit_rows > 0)
        for step in self.recipe.steps:
            if step.learner is not None:
                try:
                    step.learner.identity()
                    step.learner.check()
                except ModelError as error:
                    raise ModelError(f"select step {step.name!r}: its learner: {error}") from error
        return stages

    def _check(self, stages: Mapping[str, Stage]) -> None:
        """Ask what has nothing to show yet whether it can work here."""
        new = [stage for stage in stages.values() if not self.store.list(f".curate/done/{stage.key}")]
        for stage in new:
            self._checked.add(stage.name)
            try:
                stage.scorer.check()
            except ModelError as error:
                raise ModelError(f"scorer {stage.name!r}: {error}") from error
        for correction in self.recipe.corrections:
            correction.corrector.check()

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_done(self, groups: list[Group]) -> dict[str, dict[str, Any]]:
        """Return the accounts of the groups that are read already."""
        done = self.store.read_jsons(".curate/done/read")
        return {g.name: done[g.name] for g in groups if done.get(g.name, {}).get("fingerprint") == g.fingerprint}

    def _read(self, groups: list[Group], recognised: list[Recognised], progress: Progress) -> dict[str, dict[str, Any]]:
        accounts = self.read_done(groups)
        before = set(accounts)
        cached = sum(a["rows"] for a in accounts.values())
        total = cached + sum(g.rows for g in groups if g.name not in accounts)
        total = total if self.limit is None else min(total, self.limit)
        line = progress.stage("read", total, cached)
        todo = [g for g in groups if g.name not in accounts]
        shard_rows = self.recipe.execution.shard_rows
        batches: list[list[Group]] = [todo] if self.limit is None else [[g] for g in todo]
        for batch in batches:
            if self.limit is not None:  # earlier groups may have held more or fewer rows than they promised
                had = sum(a["rows"] for name, a in accounts.items() if name < batch[0].name)
                if had >= self.limit:
                    break
                batch = [Group(g.number, g.slices, g.fingerprint, self.limit - had) for g in batch]
            tasks: list[Task] = [
                (
                    f"read {g.slices[0].url} (group {g.name})",
                    ingest,
                    (self.store, g, self.recipe.sources, recognised, shard_rows),
                )
                for g in batch
            ]
            names = {t[0]: g.name for t, g in zip(tasks, batch, strict=True)}
            for name, account in self._map(tasks):
                accounts[names[name]] = account
                line.advance(account["rows"])
        line.total = cached + line.rows
        line.finish()
        for name in self.store.list(".curate/done/read"):
            if name.removesuffix(".json") not in accounts:
                self._forget_group(name.removesuffix(".json"))
        remember_rate("read", line.rows, sum(a["seconds"] for n, a in accounts.items() if n not in before))
        return {name: accounts[name] for name in sorted(accounts)}

    def _forget_group(self, name: str) -> None:
        self.store.remove(".curate", "done", "read", f"{name}.json")
        self.store.remove(".curate", "keys", f"{name}.npy")
        for directory in ("examples", "rejected"):
            for file in self.store.list(directory):
                if file.startswith(f"part-{name}"):
                    self.store.remove(directory, file)

    def _account_reading(self, accounts: dict[str, dict[str, Any]], index: Index) -> None:
        rows, rejected = (sum(a[k] for a in accounts.values()) for k in ("rows", "rejected"))
        reasons: dict[str, int] = {}
        for account in accounts.values():
            for word, n in account["reasons"].items():
                reasons[word] = reasons.get(word, 0) + n
        self.manifest["rows"] = {
            "input": rows,
            "examples": index.rows,
            "rejected": rejected,
            "duplicates": index.rows - index.n,
            "pool": index.n,
        }
        self.manifest["rejected"] = dict(sorted(reasons.items(), key=lambda item: -item[1]))
        if index.n == 0:
            told = ", ".join(f"{n:,} {w}" for w, n in self.manifest["rejected"].items())
            self._end("stopped")
            raise RunError(
                f"no examples: {rows:,} rows were read and {rejected:,} rejected ({told or 'the files are empty'}); "
                f"see {self.store.path('rejected')}."
            )

    # -- scoring -----------------------------------------------------------------------------------------------------

    def _make_scores(
        self, stages: dict[str, Stage], index: Index, given: Given, scoring: Scoring, progress: Progress
    ) -> None:
        """Fit and score every stage, those on the vectors of others last; put the stages, named, into ``stages``.

        The stages of corrections wait for these.
        """
        fitting = Fitting(self.store, index, given, self._map, progress)
        early = [stage for name, stage in stages.items() if name not in self.recipe.stages_of_corrections]
        alone = [stage for stage in early if stage.scorer.of is None]
        for stage in alone:
            stages[stage.name] = fitting.fit(stage, stages)
        for together in sharing(stages[stage.name] for stage in alone):
            scoring.score(together)
        for stage in [stage for stage in early if stage.scorer.of is not None]:
            stages[stage.name] = fitting.fit(stage, stages)
            scoring.score([stages[stage.name]])
        for stage in early:
            if stage.scorer.fits_on in ("targets", "both"):
                self.manifest["stages"][stage.name]["targets"] = fitting.account(stages[stage.name])

    # -- selecting and writing ---------------------------------------------------------------------------------------

    def select_fingerprint(self, index: Index, stages: dict[str, Stage]) -> str:
        steps = [
            (
                s.name,
                s.selector.identity(),
                s.on,
                s.features,
                s.quality,
                s.groups,
                str(s.budget),
                s.cost,
                s.quota and s.quota.model_dump(),
                s.nulls,
                *([] if s.learner is None else [s.learner.identity()]),
            )
            for s in self.recipe.steps
        ]
        combine = {k: v.model_dump() for k, v in self.recipe.combine.items()}
        keys = {n: s.key for n, s in stages.items()}
        corrections = [
            (c.name, c.corrector.identity(), c.after, c.rows, dict(c.stages), c.revert) for c in self.recipe.corrections
        ]
        return fingerprint(
            "select",
            SELECT_VERSION,
            index.fingerprint,
            steps,
            combine,
            keys,
            self.recipe.output.model_dump(),
            *([corrections] if corrections else []),
        )

    def _refine(self, index: Index, progress: Progress, step: Step, rows: NDArray[np.int64]) -> Refinement:
        assert step.learner is not None
        return Refinement(self.store, index, step.learner, step.name, rows, self._map, progress)

    def _write(
        self,
        accounts: dict[str, dict[str, Any]],
        index: Index,
        stages: dict[str, Stage],
        scoring: Scoring,
        progress: Progress,
    ) -> None:
        mark = self.select_fingerprint(index, stages)
        done = self.store.read_json(".curate", "done", "select.json")
        if done and done["fingerprint"] == mark:
            self.manifest.update(done["account"])
            self.manifest["stages"] |= done.get("late", {})
            progress.say(f"select and write: nothing changed, {done['account']['dataset']['rows']:,} rows are there")
            return
        began = time.perf_counter()
        fitting = Fitting(self.store, index, Given(), self._map, progress)
        correcting = Correcting(self.store, index, stages, fitting, scoring)
        verdicts = select(self.store, index, self.recipe, stages, partial(self._refine, index, progress), correcting)
        give_back()
        for step in verdicts.steps:
            progress.say(_tell(step))
        draft = publish.draft(self.store)
        decisions = self._ledger(accounts, index, verdicts, draft.directory, progress)
        rows = self.manifest["rows"]
        self._check_accounts(decisions, rows)
        shards = export.cut_shards(
            index,
            verdicts.kept,
            verdicts.order,
            verdicts.corrected,
            split=self.recipe.output.split,
            shard_rows=self.recipe.output.shard_rows,
        )
        names = {number: verdicts.corrections.get(step["name"], "") for number, step in enumerate(verdicts.steps)}
        facts = index.fields, index.tools, list(stages.values()), names
        tasks: list[Task] = [
            (f"write {s.name}", export.write_shard, (self.store, draft.directory, s, *facts)) for s in shards
        ]
        staying = decisions.get("kept", 0) + decisions.get("corrected", 0)
        line = progress.stage("write", staying)
        for _, written in self._map(tasks):
            line.advance(written)
        line.finish()
        if line.rows != staying:
            raise AccountingError(f"{staying:,} rows were kept, {line.rows:,} were written to the dataset.")
        account = {
            "rows": rows,
            "decisions": decisions,
            "select": verdicts.steps,
            "dataset": {"files": len(shards), "rows": line.rows},
        }
        self.manifest.update(account)
        self.manifest["seconds_select_and_write"] = round(time.perf_counter() - began, 3)
        self.store.sweep(draft.directory)  # a worker that died in the middle of a file leaves it aside
        scored = {name: stage.directory for name, stage in stages.items()}
        late = {name: self.manifest["stages"][name] for name in self.recipe.stages_of_corrections}
        draft.publish(
            {
                "fingerprint": mark,
                "account": account,
                "stages": scored,
                "corrections": verdicts.corrections,
                **({"late": late} if late else {}),
            },
            {
                "decisions": [p.name for p in index.parts]
                + [f"part-{group}-rejected.parquet" for group, a in accounts.items() if a["rejected"]],
                "provenance": [s.name for s in shards if s.pieces],
                "dataset": [s.name for s in shards],
            },
        )

    def _ledger(
        self, accounts: dict[str, dict[str, Any]], index: Index, verdicts: Verdicts, aside: str, progress: Progress
    ) -> dict[str, int]:
        ids = decide.representative_ids(self.store, index, verdicts)
        verdict_file = f"{aside}/verdicts"
        of_ids: list[list[str]] = []
        with self.store.writing(verdict_file) as handle:
            for part in index.parts:
                rows, of = decide.lay_out(index, verdicts, part)
                handle.write(rows.tobytes())
                of_ids.append([ids[i] for i in of.tolist()])
        verdicts.forget_numbers()
        give_back()

        def tasks() -> Iterator[Task]:
            for part, of in zip(index.parts, of_ids, strict=True):
                yield (
                    f"decide {part.name}",
                    decide.write_part,
                    (self.store, f"{aside}/decisions", part, verdict_file, of, verdicts.reasons, verdicts.steps),
                )
            for group, account in accounts.items():
                if account["rejected"]:
                    yield f"decide rejected {group}", decide.write_rejected, (self.store, f"{aside}/decisions", group)

        decisions: dict[str, int] = {}
        line = progress.stage("decide", index.rows + self.manifest["rows"]["rejected"])
        for _, counts in self._map(tasks()):
            for word, n in counts.items():
                decisions[word] = decisions.get(word, 0) + n
            line.advance(sum(counts.values()))
        line.finish()
        self.store.remove(verdict_file)
        return dict(sorted(decisions.items()))

    @staticmethod
    def _check_accounts(decisions: dict[str, int], rows: dict[str, int]) -> None:
        """Every input row is kept, dropped, corrected, duplicate or rejected: no more, no fewer."""
        expected = {"duplicate": rows["duplicates"], "rejected": rows["rejected"]}
        total = sum(decisions.values())
        if total != rows["examples"] + rows["rejected"] or any(decisions.get(k, 0) != n for k, n in expected.items()):
            raise AccountingError(
                f"the ledger has {total:,} rows ({decisions}) for {rows['examples']:,} examples and "
                f"{rows['rejected']:,} "
                "rejected rows; this is a bug: please report it with manifest.json."
            )

    def _report(self, progress: Progress) -> None:
        """Write report.html; what goes wrong with it is told, and costs nothing of the run."""
        from curate.pipelines.report import refresh

        try:
            problems = refresh(self.store, wanted=self.recipe.report)
        except Exception as error:  # the selection stands, whatever keeps its picture from being drawn
            problems = [f"no report was written: {type(error).__name__}: {error}"]
        for text in problems:
            progress.say(f"report: {text}")
        if self.recipe.report:
            self.manifest["report"] = {"file": "report.html", "problems": problems}
            self.store.write_json(self.manifest, "manifest.json")

    # -- the manifest ------------------------------------------------------------------------------------------------

    def _begin(self, recognised: list[Recognised]) -> None:
        versions = {}
        for package in _PACKAGES:
            with contextlib.suppress(PackageNotFoundError):
                versions[package] = version(package)
        self.manifest = {
            "name": self.recipe.name,
            "status": "running",
            "curate": __version__,
            "python": platform.python_version(),
            "packages": versions,
            "seed": self.recipe.seed,
            "limit": self.limit,
            "started": _now(),
            "finished": None,
            "sources": [r.text for r in recognised],
            "stages": {},
        }
        self.store.write_bytes(self.recipe.to_yaml().encode(), "recipe.yaml")
        # Where "review" and "evaluate" look for the files that it names.
        self.store.write_json({"base": str(self.recipe.base)}, ".curate", "base.json")
        self.store.write_json(self.manifest, "manifest.json")

    def _end(self, status: str) -> None:
        self.manifest["status"], self.manifest["finished"] = status, _now()
        self.store.write_json(self.manifest, "manifest.json")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _tell(step: dict[str, Any]) -> str:
    if step.get("kind") == "correction":
        return _tell_correction(step)
    text = f"select {step['name']}: {step['kept']:,} of {step['in']:,} rows kept"
    if step["tokens"] is not None:
        text += f", {step['tokens']:,} tokens"
    if step["threshold"] is not None:
        text += (
            f"; {step['score']} down to {step['threshold']:.6g}"
            if step["use"] == "top-k"
            else f"; threshold {step['threshold']:.6g}"
        )
    for ref, rows in step.get("reweighted", {}).items():
        text += f"; {rows:,} rows lack a part of {ref}, the others re-weighted"
    if "warning" in step:
        text += f"; warning: {step['warning']}"
    return text


def _tell_correction(step: dict[str, Any]) -> str:
    text = f"correct {step['name']}: {step['corrected']:,} of {step['asked']:,} answers replaced"
    if step["brought_back"]:
        text += f", {step['brought_back']:,} {'row' if step['brought_back'] == 1 else 'rows'} brought back"
    if step["dropped"]:
        text += f", {step['dropped']:,} dropped"
    rules = list(step["rules"].items())
    text += "; " + ", ".join(f"{n:,} × {rule}" for rule, n in rules[:4]) + (", …" if len(rules) > 4 else "")
    if "warning" in step:
        text += f"; warning: {step['warning']}"
    return text
