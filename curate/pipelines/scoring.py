"""Scoring: the parts that a stage lacks are computed, marked one by one, and told of in the manifest.

A stage looks at every row of the pool that is no copy; a stage of a correction at the rows that this asks about.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import ModelError, StageError
from curate.fingerprint import fingerprint
from curate.pipelines.executor import Task
from curate.pipelines.index import Index, Part
from curate.pipelines.rates import rate_key, remember_rate
from curate.pipelines.store import Store
from curate.pipelines.worker import Stage, score

if TYPE_CHECKING:
    from curate.pipelines.progress import Progress

Map = Callable[..., Iterator[tuple[str, Any]]]
"""Runs tasks on workers: ``map(tasks, model=False)``."""
Asked = dict[str, NDArray[np.bool_]]
"""Part → (its rows that are no copies,) True for those that a stage is to look at."""


def scores_there(store: Store, stage: Stage, index: Index, asked: Asked | None = None) -> dict[str, dict[str, Any]]:
    """Return the marks of the parts whose scores are there and fresh."""
    done = store.read_jsons(f".curate/done/{stage.key}")
    digests = {p.stem: digest_of(index, p, asked) for p in index.parts}
    return {stem: done[stem] for stem, digest in digests.items() if done.get(stem, {}).get("digest") == digest}


def digest_of(index: Index, part: Part, asked: Asked | None) -> str:
    """Return the digest of the rows of a part that a stage looks at."""
    if asked is None:
        return index.digest(part)
    return fingerprint(index.digest(part), np.packbits(asked[part.stem]).tobytes().hex())


@dataclass
class Scoring:
    """Scores the pool of a run by its stages."""

    store: Store
    index: Index
    map: Map
    progress: Progress
    accounts: dict[str, Any]
    """The manifest's "stages": name → what is told of it."""
    checked: set[str] = field(default_factory=set)
    """Stages that were asked whether they can work here."""

    def check(self, stages: Iterable[Stage]) -> None:
        """Ask scorers that were not asked yet whether they can work here: an engine, a server."""
        for stage in stages:
            if stage.name not in self.checked:
                self.checked.add(stage.name)
                try:
                    stage.scorer.check()
                except ModelError as error:
                    raise ModelError(f"scorer {stage.name!r}: {error}") from error

    def score(self, stages: Sequence[Stage], asked: Asked | None = None) -> None:
        """Score by stages that share their work.  Each part is computed for the stages that lack it.

        Raises
        ------
        StageError
            If not one row of the pool could be scored.  (Of the rows that a correction asks about there may be none.)
        """
        index = self.index
        marks = {stage.name: scores_there(self.store, stage, index, asked) for stage in stages}
        before = {name: set(there) for name, there in marks.items()}
        kept = {p.stem: index.kept(p) for p in index.parts}
        rows = {stem: int((k if asked is None else asked[stem]).sum()) for stem, k in kept.items()}
        for stage in stages:
            directory = stage.directory.partition("/")[0]
            others = [d for d in self.store.list(directory) if d.rpartition("-")[0] == stage.name]
            if not marks[stage.name] and any(d != stage.key for d in others):
                self.progress.say(
                    f"{stage.name}: parameters, model or code differ from those of the scores that are there"
                )
        # A row counts as there when all the stages have it.
        there = sum(rows[p.stem] for p in index.parts if all(p.stem in m for m in marks.values()))
        line = self.progress.stage(" + ".join(marks), sum(rows.values()), there)
        line.unscored = sum(m["unscored"] for m in marks[stages[0].name].values())
        tasks: list[Task] = []
        for part in index.parts:
            todo = [stage for stage in stages if part.stem not in marks[stage.name]]
            if todo:
                packed = np.packbits(kept[part.stem]).tobytes()
                which = None if asked is None else np.packbits(asked[part.stem]).tobytes()
                name = f"{' + '.join(s.name for s in todo)} {part.stem}"
                digests = digest_of(index, part, asked), index.digest(part)
                tasks.append((name, score, (self.store, todo, part.name, packed, part.rows, digests, which)))
        if tasks:
            self.check(stages)
        began = time.perf_counter()
        for name, found in self.map(tasks, model=stages[0].scorer.resource == "model"):
            for stage_name, mark in found.items():
                marks[stage_name][name.rpartition(" ")[2]] = mark
            mark = next(iter(found.values()))
            line.advance(mark["rows"], mark["tokens"], mark["unscored"])
        line.finish()
        wall = round(time.perf_counter() - began, 3)
        for stage in stages:
            now = [m for stem, m in marks[stage.name].items() if stem not in before[stage.name]]
            remember_rate(rate_key(stage.scorer), sum(m["rows"] for m in now), sum(m["seconds"] for m in now))
            self._account(stage, marks[stage.name], before[stage.name], rows, wall, together=list(marks))
            if asked is None and self.accounts[stage.name]["unscored"] == sum(rows.values()):
                raise StageError(
                    f"{stage.name}: not one of {sum(rows.values()):,} rows could be scored; see the reasons in "
                    f"{self.store.path(stage.directory)}."
                )

    def _account(
        self,
        stage: Stage,
        marks: dict[str, dict[str, Any]],
        before: set[str],
        rows: dict[str, int],
        wall: float,
        *,
        together: list[str],
    ) -> None:
        """Tell the manifest what a stage's scores are and what they took."""
        total, cached = sum(rows.values()), sum(rows[stem] for stem in before)
        engines = {json.dumps(m["engine"], sort_keys=True): m["engine"] for m in marks.values() if m.get("engine")}
        if stage.wide:  # what ``curate.numerics.attribution.Features`` reads
            made = {key: stage.scorer.params().get(name) for key, name in (("law", "projection"), ("seed", "seed"))}
            width = (stage.scorer.columns[0].vector or (None, 0))[1]
            known = {key: value for key, value in made.items() if value is not None}
            self.store.write_json({"d": width, **known, "checkpoint": stage.key}, stage.directory, "features.json")
        took = self.store.read_json(".curate", "fit", f"{stage.key}.took.json") if stage.fitted else None
        self.accounts[stage.name] = {
            "use": stage.scorer.name,
            "fingerprint": stage.fingerprint,
            "identity": stage.scorer.identity(),
            "columns": {c.name: {"unit": c.unit, "higher_is_better": c.higher_is_better} for c in stage.scorer.columns},
            "rows": total,
            "unscored": sum(m["unscored"] for m in marks.values()),
            "tokens": sum(m["tokens"] or 0 for m in marks.values()) or None,
            "engines": list(engines.values()),
            "together_with": [name for name in together if name != stage.name],
            "computed_now": total - cached,
            "already_there": cached,
            "seconds_now": wall,
            "seconds_of_work": round(sum(m["seconds"] for m in marks.values()), 3),
            "seconds_of_fit": None if took is None else took["seconds"],
        }
