"""What a run's attributions say: influence by source, by task and by selection, and the rows at both ends.

One pass over the stored matrices, in blocks: a million rows with 350 targets (1.4 GB) take 60 MB and a few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curate.numerics.attribution import aggregate, group_columns
from curate.numerics.group_means import GroupMeans
from curate.pipelines.worker import read_state
from curate.report.text import plural
from curate.report.view import Extreme, Influence

if TYPE_CHECKING:
    import polars as pl

    from curate.pipelines.index import Part
    from curate.pipelines.ledger import FinishedRun

SOURCES = 30
"""Sources that have a line of their own; the smaller ones are counted together."""
ROWS, ALL_ROWS = 5, 100
"""Rows shown at each end of a task, and at most of all tasks together."""
_BLOCK = 2**18  # numbers of a block: 2 MB of float64

Ends = list[tuple[NDArray[np.int64], NDArray[np.float64]]]
"""Of the first task's highest rows, of its lowest, of the second's highest …: places in the pool, and influence."""


def attributions(run: FinishedRun) -> dict[str, str]:
    """Return attribution stage → the stage whose vectors it held against the targets'."""
    stages = run.manifest["stages"]
    return {name: stages[name]["identity"]["params"]["of"] for name in run.stages if _use(run, name) == "attribution"}


def by_hidden_states(run: FinishedRun) -> tuple[str, NDArray[np.float32]] | None:
    """Return what RDS+ chooses by: a stage, and (pool, tasks) each row's highest similarity to a target of the task.

    Rows as in ``View.pool``.  None where no attribution is of hidden states.
    """
    found = [stage for stage, of in attributions(run).items() if _use(run, of) == "hidden-states"]
    if not found:
        return None
    groups, _ = _tasks(run, found[0])
    return found[0], np.concatenate(list(run.each(lambda part: aggregate(run.matrix(found[0], part), groups, "max"))))


def influences(run: FinishedRun, ledger: pl.DataFrame, picks: Mapping[str, NDArray[np.bool_]]) -> list[Influence]:
    """Measure every attribution of a run; ``picks`` are selections, as masks of the rows of ``View.pool``."""
    stages = attributions(run)
    if not stages:
        return []
    codes, sources = _sources(ledger["source"].gather(np.sort(run.index.pool)))
    return [_measure(run, stage, codes, sources, picks) for stage in stages]


def _use(run: FinishedRun, stage: str) -> str:
    return str(run.manifest["stages"][stage]["use"])


def _tasks(run: FinishedRun, stage: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return the task of each column, by number, and the tasks' names."""
    labels = read_state(run.store, run.stages[stage].rpartition("/")[2])["labels"].tolist()
    return group_columns(labels, len(labels), caller=stage)


def _sources(column: pl.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Return the source of each row, by number, and their names: the largest by themselves, the others as one."""
    import polars as pl

    names = column.cast(pl.String).fill_null("(none)").alias("name")
    found = names.value_counts().sort("count", "name", descending=[True, False])["name"].to_list()
    shown = found[:SOURCES]
    if len(found) > SOURCES:
        shown.append(f"{plural(len(found) - SOURCES, 'smaller source')} together")
    number = {name: min(i, SOURCES) for i, name in enumerate(found)}
    return names.replace_strict(number, return_dtype=pl.Int64).to_numpy(), shown


def _measure(
    run: FinishedRun,
    stage: str,
    codes: NDArray[np.int64],
    sources: list[str],
    picks: Mapping[str, NDArray[np.bool_]],
) -> Influence:
    groups, tasks = _tasks(run, stage)
    reading, shift = np.sort(run.index.pool), _first_row(run, stage)
    place = run.index.place[reading]  # by content: what equal rows go by
    starts = dict(zip(run.index.parts, np.searchsorted(reading, [p.start for p in run.index.parts]), strict=True))
    chosen = np.stack(list(picks.values()))
    shown = min(ROWS, max(1, ALL_ROWS // (2 * len(tasks))))

    def measure(part: Part) -> tuple[GroupMeans, Ends]:
        sums, ends = GroupMeans(len(chosen) + len(sources), shift), _no_ends(tasks)
        matrix = run.matrix(stage, part)
        step = max(1, _BLOCK // len(groups))
        for start in range(0, len(matrix), step):
            block = np.asarray(matrix[start : start + step])
            there = ~np.isnan(block[:, 0])
            at = starts[part] + start + np.flatnonzero(there)
            of_source = codes[at] == np.arange(len(sources))[:, None]
            sums.add(block[there], np.concatenate([chosen[:, at], of_source]))
            means = aggregate(block[there], groups, "mean")
            both_ends = [(at, mean) for mean in means.T for _ in range(2)]
            ends = _outermost([ends, both_ends], place, shown)
        return sums, ends

    sums, found = GroupMeans(len(chosen) + len(sources), shift), [_no_ends(tasks)]
    for part_sums, part_ends in run.each(measure):
        sums.merge(part_sums)
        found = [_outermost([*found, part_ends], place, shown)]
    by_task = aggregate(sums.normalised(), groups, "mean")
    rows = np.unique(np.concatenate([at for at, _ in found[0]]))
    vectors = (run.vectors(stage, reading[rows]) - sums.mean) / sums.scale
    normalised = aggregate(vectors, groups, "mean")
    extremes = [
        Extreme(tasks[i // 2], i % 2 == 0, int(reading[row]), float(value), float(normalised[where, i // 2]))
        for i, (at, values) in enumerate(found[0])
        for row, value, where in zip(at, values, np.searchsorted(rows, at), strict=True)
    ]
    n = len(chosen)
    return Influence(
        stage=stage,
        use=_use(run, attributions(run)[stage]),
        tasks=tasks,
        targets=run.manifest["stages"][stage]["targets"],
        unknown=run.index.n - sums.rows,
        by_source={name: (int(sums.count[n + i]), by_task[n + i]) for i, name in enumerate(sources)},
        by_pick={name: (int(sums.count[i]), by_task[i]) for i, name in enumerate(picks)},
        extremes=extremes,
    )


def _first_row(run: FinishedRun, stage: str) -> NDArray[np.float64]:
    """Return the first row that has an influence; 0 where none has."""
    for part in run.index.parts:
        matrix = run.matrix(stage, part)
        there = np.flatnonzero(~np.isnan(matrix[:, 0]))
        if there.size:
            return matrix[there[0]].astype(np.float64)
    return np.zeros(run.dimension(stage))


def _no_ends(tasks: list[str]) -> Ends:
    return [(np.empty(0, dtype=np.int64), np.empty(0))] * (2 * len(tasks))


def _outermost(found: list[Ends], place: NDArray[np.int64], count: int) -> Ends:
    """Return the ``count`` outermost rows of each end, the outermost first, of equal rows the lowest by content."""
    out: Ends = []
    for i, pieces in enumerate(zip(*found, strict=True)):
        at, values = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
        down = -values if i % 2 == 0 else values
        near = np.arange(at.size)
        if at.size > count:  # a partition costs less than the order of all
            near = np.flatnonzero(down <= np.partition(down, count - 1)[count - 1])
        best = near[np.lexsort((place[at[near]], down[near]))][:count]
        out.append((at[best], values[best]))
    return out
