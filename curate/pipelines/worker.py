"""What happens inside a worker: one shard in, one file out.

A scorer that was opened stays open, keyed by its stage's fingerprint, so a model loads once per worker.  When a stage
with another model comes, the one before is closed: two models never share a worker's memory.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.base import Scorer
from curate.pipelines.store import Store

_OPEN: dict[str, Scorer] = {}


@dataclass(frozen=True)
class Stage:
    """A scorer under the name that the recipe gives it, and the fingerprint of all its numbers depend on."""

    name: str
    scorer: Scorer
    fingerprint: str
    fitted: bool = False
    learned: str | None = None
    """The key of the stage whose state it takes, if not its own."""
    of: str | None = None
    """The directory of the vectors that it reads."""

    @property
    def key(self) -> str:
        return f"{self.name}-{self.fingerprint}"

    @property
    def wide(self) -> bool:
        return self.scorer.columns[0].vector is not None

    @property
    def directory(self) -> str:
        return f"{'features' if self.wide else 'scores'}/{self.key}"


def sharing(stages: Iterable[Stage]) -> list[list[Stage]]:
    """Group stages that would do the same work, in the order of each group's first; the others stand alone."""
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(stage.scorer.shared_work() or f"{stage.name} alone", []).append(stage)
    return list(groups.values())


def opened(store: Store, stages: Sequence[Stage]) -> list[Scorer]:
    """Return the stages' scorers, opened; load them on first use in this worker."""
    wanted = {stage.key for stage in stages}
    if any(stage.scorer.resource == "model" and stage.key not in _OPEN for stage in stages):
        for key in [k for k, s in _OPEN.items() if s.resource == "model" and k not in wanted]:
            _OPEN.pop(key).close()
    for stage in stages:
        if stage.key in _OPEN:
            continue
        scorer = stage.scorer
        if stage.fitted:
            scorer.load(read_state(store, stage.learned or stage.key))
        scorer.open()
        _OPEN[stage.key] = scorer
    return [_OPEN[stage.key] for stage in stages]


def close_scorers() -> None:
    """Close every scorer that this worker holds, and the models that nobody holds then: engines have processes."""
    while _OPEN:
        _OPEN.popitem()[1].close()
    if "curate.models.loading" in sys.modules:  # importing it only to find nothing loaded would cost a worker's time
        from curate.models.loading import unload

        unload(idle=True)


def read_state(store: Store, key: str) -> dict[str, NDArray[Any]]:
    """Return what a stage has learned."""
    held = io.BytesIO(store.read_bytes(".curate", "fit", f"{key}.npz"))
    with np.load(held, allow_pickle=False) as state:
        return {name: state[name] for name in state.files}


def write_state(store: Store, key: str, state: Mapping[str, NDArray[Any]]) -> None:
    with store.writing(".curate", "fit", f"{key}.npz") as handle:
        np.savez(handle, **state)  # type: ignore[arg-type]


def fit(store: Store, stage: Stage, rows: dict[str, list[int]], more: pa.Table | None = None) -> dict[str, Any]:
    """Fit a scorer on chosen rows (part name → row numbers), in the order of their content keys; keep the state.

    ``more`` are rows that are not the pool's, with "group" and "drawn"; the pool's have null there, and false.

    What a step of several has learned is kept until the last one is done: a run that is stopped goes on from there.
    """
    began = time.perf_counter()
    sample = _sample(store, stage, rows, more)
    steps = stage.scorer.fit_steps
    parts = [f"{stage.key}-step-{i + 1}" for i in range(steps - 1)]
    state: dict[str, NDArray[Any]] | None = None
    there = set(store.list(".curate/fit"))
    first = next((i + 1 for i in reversed(range(steps - 1)) if f"{parts[i]}.npz" in there), 0)
    if first:
        state = read_state(store, parts[first - 1])
    for step in range(first, steps):
        state = stage.scorer.fit_step(step, sample, state)
        write_state(store, parts[step] if step < steps - 1 else stage.key, state)
    if parts:
        left = set(store.list(".curate/fit"))
        store.remove_files(".curate/fit", [f"{name}.npz" for name in parts if f"{name}.npz" in left])
    return {"rows": sample.num_rows, "seconds": round(time.perf_counter() - began, 3)}


def _sample(store: Store, stage: Stage, rows: dict[str, list[int]], more: pa.Table | None) -> pa.Table:
    reads = list(stage.scorer.reads)
    takes = stage.scorer.takes
    columns = list(dict.fromkeys(("id", "content_key", *(c for c in reads if stage.of is None or c != takes))))
    tables = []
    for name, at in rows.items():
        table = store.read_table("examples", name, columns=columns).take(pa.array(at))
        if stage.of is not None:  # which has no rows for copies
            there = pc.index_in(table.column("id"), store.read_table(stage.of, name, columns=["id"]).column(0))
            table = table.append_column(takes, _taken(store, stage.of, takes, name).take(there))
        tables.append(table)
    if tables:
        sample = pa.concat_tables(tables).sort_by("content_key").select(reads)
        if more is not None:
            n = sample.num_rows
            sample = sample.drop_columns([c for c in ("group",) if c in reads])
            sample = sample.append_column("group", pa.nulls(n, pa.string())).append_column(
                "drawn", pa.array([False] * n)
            )
    if more is not None:
        more = more.select(list(dict.fromkeys((*reads, "group", "drawn"))))
        sample = pa.concat_tables([sample.select(more.column_names), more]) if tables else more
    return sample.combine_chunks()


def look(store: Store, stage: Stage, table: pa.Table) -> pa.Table:
    """Return what a stage's scorer makes of a small table that is no part of the pool."""
    (scorer,) = opened(store, [stage])
    return scorer.score(table.select(list(scorer.reads)))


def score(
    store: Store,
    stages: Sequence[Stage],
    part: str,
    kept: bytes,
    rows: int,
    digests: tuple[str, str],
    asked: bytes | None = None,
) -> dict[str, dict[str, Any]]:
    """Score the rows of one part that are no copies, by stages that share their work; return each stage's mark.

    Each stage has its sidecar and then the mark that it is finished, as if it had been alone.

    Parameters
    ----------
    kept : bits of the part's ``rows``: no copies.
    digests : of the rows that are asked about, and of all of them.
    asked : bits of those rows: which of them the (one) stage is asked about; the others are null, "not asked about",
        unless the stage was asked earlier and has their scores.
    """
    began = time.perf_counter()
    stem = part.removesuffix(".parquet")
    for stage in stages:
        store.append_event({"stage": stage.key, "part": stem, "event": "start", "digest": digests[0]})
    mask = np.unpackbits(np.frombuffer(kept, dtype=np.uint8), count=rows).astype(bool)
    reads = dict.fromkeys(
        ("id", *(c for stage in stages for c in stage.scorer.reads if stage.of is None or c != stage.scorer.takes))
    )
    table = store.read_table("examples", part, columns=list(reads))
    if not mask.all():
        table = table.filter(pa.array(mask))
    for of, takes in {(stage.of, stage.scorer.takes) for stage in stages if stage.of is not None}:
        table = table.append_column(takes, _taken(store, of, takes, part))
    ids, n = table.column("id"), table.num_rows
    wanted, earlier = np.ones(n, dtype=bool), None
    if asked is not None:
        wanted = np.unpackbits(np.frombuffer(asked, dtype=np.uint8), count=n).astype(bool)
        earlier = _scored_earlier(store, stages[0], part, digests[1])
        table = table.filter(pa.array(wanted if earlier is None else wanted & ~earlier[1]))
    scorers = opened(store, stages)
    loaded = time.perf_counter()
    if len(stages) == 1:
        found = [scorers[0].score(table.select(list(stages[0].scorer.reads)))]
    else:
        found = type(scorers[0]).score_together(scorers, table.drop_columns(["id"]))
    seconds = (time.perf_counter() - loaded) / len(stages)
    marks = {}
    for stage, scorer, scored in zip(stages, scorers, found, strict=True):
        if asked is not None:
            scored = _among(scored, wanted, earlier)
        if stage.of is not None:
            scored = _with_reasons(
                f"no {stage.scorer.takes}", scored, store.read_table(stage.of, part, columns=["reason"]).column(0)
            )
        _write(store, stage, part, ids, scored)
        counted = scored if asked is None else scored.filter(pa.array(wanted))
        marks[stage.name] = {
            "digest": digests[0],
            "content": digests[1],
            "rows": counted.num_rows,
            "unscored": counted.num_rows - counted.column("reason").null_count,
            "tokens": _tokens(scorer, counted),
            "seconds": round(seconds, 3),
            "loading": round((loaded - began) / len(stages), 3),
            "engine": scorer.describe(),
        }
        store.write_json(marks[stage.name], ".curate", "done", stage.key, f"{stem}.json")
        store.append_event(
            {"stage": stage.key, "part": stem, "event": "done", "digest": digests[0], "rows": counted.num_rows}
        )
    return marks


NOT_ASKED = "not asked about"


def _scored_earlier(store: Store, stage: Stage, part: str, content: str) -> tuple[pa.Table, NDArray[np.bool_]] | None:
    """Return what a stage found when it was asked about other rows of the same part, and which these were."""
    mark = store.read_json(".curate", "done", stage.key, f"{part.removesuffix('.parquet')}.json")
    if mark is None or mark.get("content") != content:
        return None
    table = store.read_table(*stage.directory.split("/"), part).drop_columns(["id"])
    reasons = pc.fill_null(table.column("reason"), "")
    return table, ~pc.ends_with(reasons, NOT_ASKED).to_numpy()


def _among(scored: pa.Table, wanted: NDArray[np.bool_], earlier: tuple[pa.Table, NDArray[np.bool_]] | None) -> pa.Table:
    """Return a row for each of ``wanted``: what was found now, or earlier, or that it was not asked about."""
    n = wanted.size
    none = pa.table({name: pa.nulls(1, scored.schema.field(name).type) for name in scored.column_names})
    none = none.set_column(none.column_names.index("reason"), "reason", pa.array([NOT_ASKED]))
    at = np.full(n, scored.num_rows, dtype=np.int64)  # the place of "not asked about"
    fresh = wanted if earlier is None else wanted & ~earlier[1]
    at[fresh] = np.arange(scored.num_rows)
    tables = [scored, none]
    if earlier is not None:
        at[earlier[1]] = scored.num_rows + 1 + np.flatnonzero(earlier[1])
        tables.append(earlier[0].select(scored.column_names).cast(scored.schema))
    return pa.concat_tables(tables).combine_chunks().take(pa.array(at))


def _taken(store: Store, directory: str, takes: str, part: str) -> pa.Array | pa.ChunkedArray:
    """Return what a stage reads of another one's results for one part."""
    if takes == "vector":
        return _vectors(store, directory, part.removesuffix(".parquet"))
    return store.read_table(directory, part, columns=[takes]).column(0)


def _vectors(store: Store, directory: str, stem: str) -> pa.Array:
    """Return the vectors of one part that another stage made; null where a row has none."""
    matrix = np.load(io.BytesIO(store.read_bytes(directory, f"{stem}.npy")), allow_pickle=False)
    missing = np.isnan(matrix[:, :1]).any(axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1], mask=pa.array(missing))


def _with_reasons(none: str, scored: pa.Table, others: pa.ChunkedArray) -> pa.Table:
    """Return the scores of a stage that reads another, with that one's reasons behind its own word for having none."""
    pairs = zip(scored.column("reason").to_pylist(), others.to_pylist(), strict=True)
    told = [f"{own}: {other}" if own == none and other else own for own, other in pairs]
    at = scored.column_names.index("reason")
    return scored.set_column(at, "reason", pa.array(told, pa.string()))


def _write(store: Store, stage: Stage, part: str, ids: pa.ChunkedArray, scored: pa.Table) -> None:
    """Write a stage's sidecar of one part: its columns in order, and a vector's numbers in a file of their own."""
    if stage.wide:
        vectors = scored.column(0).combine_chunks()
        values = vectors.values
        if pa.types.is_integer(values.type):  # what stands below a null is null too, and would make all of it float64
            values = values.fill_null(0)
        flat = values.to_numpy(zero_copy_only=False)[vectors.offset * vectors.type.list_size :]
        matrix = flat[: len(vectors) * vectors.type.list_size].reshape(len(vectors), vectors.type.list_size)
        missing = np.asarray(vectors.is_null())
        if missing.any():
            blank = matrix.dtype.type("nan" if matrix.dtype.kind == "f" else 0)
            matrix = np.where(missing[:, None], blank, matrix)
        with store.writing(*stage.directory.split("/"), f"{part.removesuffix('.parquet')}.npy") as handle:
            np.save(handle, np.ascontiguousarray(matrix), allow_pickle=False)
        scored = scored.remove_column(0)
    out = pa.table({"id": ids})
    for name in scored.column_names:
        out = out.append_column(name, scored.column(name))
    store.write_table(out.combine_chunks(), *stage.directory.split("/"), part)


def _tokens(scorer: Scorer, scored: pa.Table) -> int | None:
    """Tokens scored, for the progress line: the sum of the scorer's last column that counts tokens."""
    names = [c.name for c in scorer.columns if c.unit == "tokens"]
    return int(pc.sum(scored.column(names[-1])).as_py() or 0) if names else None
