"""What a selection of several rounds learns from between them: a model that is trained on what was chosen so far.

    rows chosen ──train──► adapter ──answer──► the model's own answers, and their perplexities
                (one task,            (tasks of a few rows)       └──judge──► rewards, where a reward model judges
                 epoch by epoch)

Each arrow is kept under a name made of all that it depends on: the learner's parameters, the model's digest, the
content of the rows.  So a run that was stopped goes on where it stood, and another selection of the same rows asks for
nothing twice.  The adapter lies in ``.curate/fit``, the answers with their scores in ``scores/STEP-round-N-…``.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.exceptions import StageError
from curate.fingerprint import fingerprint
from curate.pipelines.executor import Task
from curate.pipelines.index import Index
from curate.pipelines.store import Store
from curate.pipelines.worker import Stage, close_scorers, fit, opened, read_state

if TYPE_CHECKING:
    from curate.pipelines.progress import Progress
    from curate.scorers.learner import Learner

PIECE = 32
"""Rows that one task answers: what a run that is stopped loses at most, for each worker."""

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")
"""What a step's name may hold and a folder's should not."""

Located = dict[str, list[int]]
"""File of examples → row numbers in it."""


@dataclass
class Refinement:
    """The ``learn`` of one selection step; see ``curate.base.Learn``."""

    store: Store
    index: Index
    learner: Learner
    step: str
    rows: NDArray[np.int64]
    """Place in the pool of each row that the selector sees."""
    map: Callable[..., Iterator[tuple[str, Any]]]
    """Runs tasks on workers: ``map(tasks, model=False)``."""
    progress: Progress
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """What happened in each round, for the account."""

    def __call__(self, number: int, chosen: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.float64]:
        """Train on the rows chosen, answer those asked about; return S, NaN where it cannot be told.

        Raises
        ------
        StageError
            If no row can be trained on, or not one of those asked about can be answered.
        """
        name = f"{_UNFIT.sub('-', self.step)}-round-{number + 1}"
        reading = np.sort(self.index.pool[self.rows[chosen]])
        keys = self._keys(reading)
        mark = fingerprint("train", self.learner.of_training(), sorted(keys))
        trained = Stage(name, self.learner, mark, fitted=True)
        facts = self._train(trained, reading)

        mark = fingerprint("answer", mark, self.learner.of_answers())
        stage = Stage(name, self.learner, mark, fitted=True, learned=trained.key)
        where = self.index.pool[self.rows[asked]]
        order = np.argsort(where)
        pieces = self._pieces(where[order], dict(zip(reading.tolist(), keys, strict=True)))
        found = self._work(f"answer {name}", answer, [stage], pieces)
        judge = self.learner.judging()
        if judge is not None:
            mark = fingerprint("judge", mark, judge.identity())
            found = self._work(f"judge {name}", answer, [Stage(f"{name}-rewards", judge, mark), stage], pieces)
        gaps = found.column("gap").to_numpy()
        reasons = Counter(reason for reason in found.column("reason").to_pylist() if reason is not None)
        told = "; ".join(f"{n:,} × {reason}" for reason, n in reasons.most_common(5))
        if asked.size and np.isnan(gaps).all():
            raise StageError(
                f"{name}: not one of {asked.size:,} rows that were asked about could be answered ({told})."
            )
        if reasons:
            self.progress.say(f"{name}: {sum(reasons.values()):,} of {asked.size:,} rows tell nothing: {told}")
        self.rounds.append({**facts, "unanswered": dict(reasons.most_common())})
        out = np.empty(asked.size)
        out[order] = gaps
        return out

    @property
    def account(self) -> dict[str, Any]:
        """What the run tells of the learner, as JSON."""
        return {"identity": self.learner.identity(), "rounds": self.rounds}

    # -- what the rounds are made of ---------------------------------------------------------------------------------

    def _train(self, stage: Stage, reading: NDArray[np.int64]) -> dict[str, Any]:
        """Train the adapter, unless it is there; return what is known of it."""
        done = self.store.read_json(".curate", "fit", f"{stage.key}.json")
        if done is not None:
            self.progress.say(f"train {stage.name}: on {reading.size:,} rows, was there")
            return done
        epochs = self.learner.fit_steps
        kept = f", in {epochs} epochs that are each kept" if epochs > 1 else ""
        self.progress.say(f"train {stage.name}: on {reading.size:,} rows, on one worker{kept}")
        line = self.progress.stage(f"train {stage.name}", int(reading.size))
        task: Task = (f"train {stage.name}", train, (self.store, stage, located(self.index, reading)))
        ((_, facts),) = self.map([task], model=True)
        line.advance(int(reading.size))
        line.finish()
        return facts

    def _pieces(self, reading: NDArray[np.int64], keys: dict[int, str]) -> dict[str, Located]:
        """Cut rows in reading order into pieces, named by the content of their rows."""
        out = {}
        for start in range(0, reading.size, PIECE):
            rows = reading[start : start + PIECE]
            name = fingerprint([keys[row] for row in rows.tolist()])
            out[f"piece-{start // PIECE:04d}-{name}.parquet"] = located(self.index, rows)
        return out

    def _work(
        self, what: str, function: Callable[..., Any], stages: list[Stage], pieces: dict[str, Located]
    ) -> pa.Table:
        """Do the pieces that are not there yet; return what was found for all of them, one after another."""
        directory = stages[0].directory
        there = set(self.store.list(directory))
        sizes = {name: sum(map(len, rows.values())) for name, rows in pieces.items()}
        line = self.progress.stage(what, sum(sizes.values()), sum(n for name, n in sizes.items() if name in there))
        tasks: list[Task] = [
            (f"{what} {name}", function, (self.store, stages, name, rows))
            for name, rows in pieces.items()
            if name not in there
        ]
        for _, done in self.map(tasks, model=True):
            line.advance(done["rows"], done["tokens"], done["unscored"])
        line.finish()
        return pa.concat_tables(self.store.read_tables(directory, list(pieces), ["gap", "reason"]))

    def _keys(self, reading: NDArray[np.int64]) -> list[str]:
        """Return the content keys of rows in reading order."""
        rows = located(self.index, reading)
        tables = self.store.read_tables("examples", rows, ["content_key"])
        return [
            key.hex()
            for table, at in zip(tables, rows.values(), strict=True)
            for key in table.column(0).take(pa.array(at)).to_pylist()
        ]


def located(index: Index, reading: NDArray[np.int64]) -> Located:
    """Return where rows lie, given their reading-order numbers, ascending."""
    out = {}
    for part in index.parts:
        low, high = np.searchsorted(reading, [part.start, part.start + part.rows])
        if high > low:
            out[part.name] = (reading[low:high] - part.start).tolist()
    return out


# -- in a worker -------------------------------------------------------------------------------------------------------


def train(store: Store, stage: Stage, rows: Located) -> dict[str, Any]:
    """Train the learner's adapter on rows, going on after the last epoch that is there; return what is known of it."""
    began = time.perf_counter()
    close_scorers()  # what an earlier round left open would hold memory beside the training
    if f"{stage.key}.npz" not in store.list(".curate/fit"):
        fit(store, stage, rows)
    told = json.loads(str(read_state(store, stage.key)["training"]))["told"]
    facts = {
        "rows": sum(map(len, rows.values())),
        "trained_on": told["rows"],
        "loss": told["loss"],
        "seconds": round(time.perf_counter() - began, 3),
    }
    store.write_json(facts, ".curate", "fit", f"{stage.key}.json")
    return facts


def answer(store: Store, stages: list[Stage], piece: str, rows: Located) -> dict[str, Any]:
    """Score the rows of a piece by the first stage and keep what it finds; it may read the answers of the second."""
    stage = stages[0]
    columns = [c for c in ("id", *stage.scorer.reads) if c != "own"]
    tables = store.read_tables("examples", rows, columns)
    table = pa.concat_tables(
        [table.take(pa.array(at)) for table, at in zip(tables, rows.values(), strict=True)]
    ).combine_chunks()
    before: list[str | None] = [None] * table.num_rows
    if len(stages) > 1:
        answers = store.read_table(stages[1].directory, piece, columns=["own", "reason"])
        table = table.append_column("own", answers.column("own"))
        before = answers.column("reason").to_pylist()
    (scorer,) = opened(store, [stage])
    found = scorer.score(table.select(list(stage.scorer.reads)))
    reasons = [first or its for first, its in zip(before, found.column("reason").to_pylist(), strict=True)]
    found = found.set_column(found.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
    store.write_table(found.add_column(0, "id", table.column("id")), *stage.directory.split("/"), piece)
    tokens = pc.sum(found.column("tokens")).as_py() if "tokens" in found.column_names else None
    unscored = found.num_rows - found.column("reason").null_count
    return {"rows": found.num_rows, "tokens": tokens, "unscored": unscored}
