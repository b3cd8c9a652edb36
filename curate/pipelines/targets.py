"""Targets: small sets of rows that show what a model should learn, one set a task.

They are read in the run's own process, drawn by the recipe's seed, and looked at by the stage whose vectors an
attribution reads, in one task of a worker.  Every row of a set counts as a target where the pool is searched for what
targets ask, drawn or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.connectors.pool import read
from curate.exceptions import CurateError, RunError, StageError
from curate.fingerprint import fingerprint
from curate.seeding import rng_for

if TYPE_CHECKING:
    from curate.recipe import Recipe

DEFAULT = 50
"""Rows of a set, as in BIDS, if the smallest set has as many."""


@dataclass(frozen=True)
class Targets:
    """The rows of every set."""

    sets: dict[str, pa.Table]
    """Task → its examples, each once, in the order in which they would be drawn."""
    rows: int
    """How many of each are asked."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Task → rows that are no examples: most often prompts without an answer."""

    @property
    def fingerprint(self) -> str:
        keys = {task: [k.hex() for k in t.column("content_key").to_pylist()] for task, t in self.sets.items()}
        return fingerprint("targets", self.rows, keys)


def read_targets(recipe: Recipe) -> Targets:
    """Read the sets of a recipe and put them in the order of their draw.

    Raises
    ------
    SourceError, SchemaError
        If a set is not there, or its columns are unknown.
    RunError
        If a set has no example, or fewer than the recipe asks.
    """
    sets: dict[str, pa.Table] = {}
    rejected: dict[str, int] = {}
    for task, source in recipe.targets.items():
        try:
            pool = read(**{name: getattr(source, name) for name in source.__dataclass_fields__})
            pairs = list(pool.batches())
        except CurateError as error:
            raise type(error)(f"targets of {task!r}: {error}") from error
        table = pa.concat_tables([examples for examples, _ in pairs]).combine_chunks()
        refused = [reason for _, rows in pairs for reason in rows.column("reason").to_pylist()]
        rejected[task] = len(refused)
        table = table.take(pa.array(_first_of_each(table.column("content_key").to_pylist()), pa.int64()))
        if not table.num_rows:
            told = ", ".join(sorted(set(refused))) or "the files are empty"
            raise RunError(
                f"targets of {task!r}: no row of {source.path} can be a target ({told}); a target needs a prompt and "
                "the answer that is wanted."
            )
        sets[task] = table.take(pa.array(rng_for(recipe.seed, "targets", task).permutation(table.num_rows)))
    smallest = min(sets, key=lambda task: sets[task].num_rows)
    least = sets[smallest].num_rows
    rows = recipe.target_rows or min(DEFAULT, least)
    if rows > least:
        raise RunError(
            f"targets: {rows} rows of each set were asked, {smallest!r} has {least}; ask for fewer (targets.rows), "
            "since unequal counts would favour the larger sets."
        )
    return Targets(sets, rows, rejected)


def _first_of_each(keys: list[bytes]) -> list[int]:
    """Return one row a key, in order of the keys, so that the order of the files does not matter."""
    first: dict[bytes, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    return [first[key] for key in sorted(first)]


Look = Callable[[pa.Table], pa.Table]
"""Scores a table of examples: the vector's column first, "reason" last."""


def draw(targets: Targets, look: Look) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Draw equally many targets of each set, passing over those that have no vector.

    Returns
    -------
    A row for each row of the sets, as ``Scorer.fit`` takes them: "messages", "group" (the task), "vector" (null unless
    drawn); and an account of each set.

    Raises
    ------
    StageError
        If a set has too few that can be looked at.
    """
    tried = dict.fromkeys(targets.sets, 0)
    found: dict[str, list[tuple[int, Any]]] = {task: [] for task in targets.sets}
    why: dict[str, list[str]] = {task: [] for task in targets.sets}
    while True:
        wanted = {
            task: range(tried[task], min(table.num_rows, tried[task] + targets.rows - len(found[task])))
            for task, table in targets.sets.items()
        }
        asked = [(task, i) for task, rows in wanted.items() for i in rows]
        if not asked:
            break
        table = pa.concat_tables([targets.sets[t].slice(r.start, len(r)) for t, r in wanted.items() if len(r)])
        seen = look(table.combine_chunks())
        vectors, reasons = seen.column(0).combine_chunks(), seen.column("reason").to_pylist()
        for place, (task, i) in enumerate(asked):
            if reasons[place] is None:
                found[task].append((i, vectors[place]))
            else:
                why[task].append(reasons[place])
            tried[task] = i + 1
    kind = vectors.type
    for task, its in found.items():
        if len(its) < targets.rows:
            told = ", ".join(f"{n} × {reason}" for reason, n in _counts(why[task]).items())
            raise StageError(
                f"targets of {task!r}: {targets.rows} were asked, {len(its)} of {targets.sets[task].num_rows} can be "
                f"looked at ({told}); ask for fewer (targets.rows), or for longer rows."
            )
    tables, accounts = [], []
    for task, table in targets.sets.items():
        column: list[Any] = [None] * table.num_rows
        for i, vector in found[task]:
            column[i] = vector
        tables.append(
            pa.table(
                {
                    "id": table.column("id"),
                    "messages": table.column("messages"),
                    "group": pa.array([task] * table.num_rows, pa.string()),
                    "vector": _vectors(column, kind),
                }
            )
        )
        accounts.append(
            {
                "task": task,
                "rows": table.num_rows,
                "drawn": targets.rows,
                "passed_over": _counts(why[task]),
                "rejected": targets.rejected.get(task, 0),
            }
        )
    return pa.concat_tables(tables).combine_chunks(), accounts


def _vectors(values: list[Any], kind: pa.DataType) -> pa.Array:
    matrix = np.zeros((len(values), kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    for row, value in zip(matrix, values, strict=True):
        if value is not None:
            row[:] = np.asarray(value.values)
    missing = pa.array([value is None for value in values])
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), kind.list_size, mask=missing)


def _counts(words: list[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


def overlaps(reasons: tuple[NDArray[np.int32], list[str]], tasks: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows of the pool asked what a target asks, by task."""
    codes, words = reasons
    counts = np.bincount(codes[codes >= 0], minlength=len(words))
    out = dict.fromkeys(tasks, 0)
    for word, count in zip(words, counts.tolist(), strict=True):
        for task in tasks:
            if word == f"it asks what a target of {task} asks":
                out[task] += count
    return out
