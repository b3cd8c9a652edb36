"""What proxies are measured on: targets, or rows of the pool that no selection may train on.

Of either, those are left out that the rows of training hold: what a model learned by heart shows nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.connectors.pool import read
from curate.evaluation.overlap import overlapping
from curate.exceptions import CurateError, RunError
from curate.fingerprint import fingerprint
from curate.pipelines.ledger import FinishedRun
from curate.recipe import Recipe
from curate.seeding import rng_for

COLUMNS = ("id", "content_key", "prompt_key", "messages", "tools", "extra", "group")


@dataclass(frozen=True)
class HeldOut:
    """Examples with their task in "group"."""

    examples: pa.Table
    allowed: NDArray[np.bool_]
    """(pool,) in canonical order: rows that may be trained on."""
    account: list[dict[str, Any]]
    """Of each task: how many rows there were, left out, measured."""
    told: list[str]

    @property
    def digest(self) -> str:
        keys = [key.hex() for key in self.examples.column("content_key").to_pylist()]
        return fingerprint("test examples", keys, self.examples.column("group").to_pylist())


def hold_out(recipe: Recipe, run: FinishedRun, *, seed: int) -> HeldOut:
    """Return what the proxies of an evaluation are measured on.

    The rows of each task are drawn by the seed, at most ``evaluate.rows_per_task``, after those are left out that the
    pool holds.

    Raises
    ------
    RunError
        If a task, or all, have no row left.
    """
    settings = recipe.evaluate
    allowed = np.ones(run.index.n, dtype=bool)
    if recipe.test_sets:
        sets, rejected = _targets(recipe), "targets"
    else:
        sets, rejected = _of_pool(run, settings.held_out, seed, allowed), "rows held out of the pool"
    table = pa.concat_tables(list(sets.values())).combine_chunks()
    found = overlapping(table, _pool(run, allowed))
    tasks = table.column("group").to_pylist()
    out: list[int] = []
    account, told = [], []
    for task in sets:
        its = np.array([i for i, name in enumerate(tasks) if name == task], dtype=np.int64)
        clean = its[~found.mask[its]]
        order = rng_for(seed, "evaluate", "measured", task).permutation(clean.size)
        chosen = np.sort(clean[order[: settings.rows_per_task]])
        how = Counter(str(found.how[i]) for i in its[found.mask[its]].tolist())
        account.append(
            {
                "task": task,
                "rows": int(its.size),
                "overlapping": int(its.size - clean.size),
                "how": dict(how),
                "measured": int(chosen.size),
            }
        )
        line = f"{task}: {chosen.size:,} of {its.size:,} {rejected}"
        if clean.size < its.size:
            line += f"; {its.size - clean.size:,} left out, which stand in the pool (" + ", ".join(
                f"{n:,} by {how}" for how, n in how.most_common()
            )
            line += ")"
        told.append(line)
        out += chosen.tolist()
    if not out:
        raise RunError(
            "evaluate: nothing is left to measure on: all rows of all tasks stand in the pool ("
            + "; ".join(told)
            + "). Name other targets: evaluate.targets."
        )
    return HeldOut(table.take(pa.array(out)), allowed, account, told)


def _targets(recipe: Recipe) -> dict[str, pa.Table]:
    """Read the sets of targets that have an answer; task → rows, each once."""
    out = {}
    for task, source in recipe.test_sets.items():
        try:
            table = read(**{name: getattr(source, name) for name in source.__dataclass_fields__}).examples()
        except CurateError as error:
            raise type(error)(f"targets of {task!r}: {error}") from error
        first: dict[bytes, int] = {}
        for i, key in enumerate(table.column("content_key").to_pylist()):
            first.setdefault(key, i)
        table = table.take(pa.array([first[key] for key in sorted(first)], pa.int64()))
        if not table.num_rows:
            raise RunError(f"targets of {task!r}: {source.path} holds no prompt with the answer that is wanted.")
        out[task] = _named(table, task)
    return out


def _named(table: pa.Table, task: str) -> pa.Table:
    table = table.select([name for name in COLUMNS if name != "group" and name in table.column_names])
    return table.append_column("group", pa.array([task] * table.num_rows, pa.string()))


def _of_pool(run: FinishedRun, rows: int, seed: int, allowed: NDArray[np.bool_]) -> dict[str, pa.Table]:
    """Draw ``rows`` of each source by content, half of a small one at most, and take them out of ``allowed``."""
    places: dict[str, list[int]] = {}
    tables: dict[int, pa.Table] = {}
    for part in run.index.parts:
        table = run.store.read_table("examples", part.name, columns=["source"])
        place = run.index.place[part.start : part.start + part.rows]
        for at, source in zip(place.tolist(), table.column(0).to_pylist(), strict=True):
            if at >= 0:
                places.setdefault(str(source), []).append(at)
    wanted: dict[int, str] = {}
    for source, its in sorted(places.items()):
        order = rng_for(seed, "evaluate", "held out", source).permutation(len(its))
        for i in order[: min(rows, len(its) // 2)].tolist():
            wanted[sorted(its)[i]] = source
    allowed[list(wanted)] = False
    for part in run.index.parts:
        place = run.index.place[part.start : part.start + part.rows]
        here = np.flatnonzero(np.isin(place, list(wanted)))
        if here.size:
            columns = [name for name in COLUMNS if name != "group"]
            table = run.store.read_table("examples", part.name, columns=columns).take(pa.array(here))
            names = [wanted[at] for at in place[here].tolist()]
            tables[part.start] = table.append_column("group", pa.array(names, pa.string()))
    table = pa.concat_tables(list(tables.values())).sort_by("content_key")
    tasks = table.column("group").to_pylist()
    return {task: table.filter(pa.array([name == task for name in tasks])) for task in sorted(set(tasks))}


def _pool(run: FinishedRun, allowed: NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Yield the rows that may be trained on, part by part."""
    columns: Sequence[str] = ("id", "messages", "content_key", "prompt_key")
    for part in run.index.parts:
        place = run.index.place[part.start : part.start + part.rows]
        mask = (place >= 0) & allowed[place]
        yield run.store.read_table("examples", part.name, columns=list(columns)).filter(pa.array(mask))
