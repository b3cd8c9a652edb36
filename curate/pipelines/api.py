"""The pipeline's parts from Python, without a run directory: score a pool, export it, all in this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curate.connectors.pool import Pool
from curate.exceptions import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from curate.base import Scorer
    from curate.exporters.base import Exporter
    from curate.pipelines.handover import Export
    from curate.pipelines.run import Run


def score(
    pool: Pool | pa.Table, scorers: Iterable[Scorer] | Mapping[str, Scorer], *, batch_rows: int = 2048
) -> pa.Table:
    """Score a pool (or a table of examples) with one or more scorers, in this process.

    Returns
    -------
    Table of "id" and, per scorer, its columns as "NAME.COLUMN" and "NAME.reason"; one row per example, in order.  A
    scorer's name is its word, unless a mapping gives another.
    """
    named = dict(scorers) if isinstance(scorers, Mapping) else {}
    if not isinstance(scorers, Mapping):
        for scorer in scorers:
            if scorer.name in named:
                raise InputError(f"two scorers are called {scorer.name!r}; give them names: {{'a': …, 'b': …}}.")
            named[scorer.name] = scorer
    examples = pool.examples() if isinstance(pool, Pool) else pool
    out = pa.table({"id": examples.column("id")})
    for name, scorer in named.items():
        if scorer.fits_on != "pool" or scorer.of is not None:
            raise InputError(
                f"{name!r} works on more than the examples (targets, benchmarks, or the vectors of another stage); "
                "name it in a recipe, or call its fit() and load() yourself."
            )
        if scorer.fit_rows:
            sample = examples.sort_by("content_key").take(pa.array(scorer.fit_sample(examples.num_rows)))
            scorer.load(scorer.fit(sample.select(list(scorer.reads)).combine_chunks()))
        try:
            parts = [
                scorer.score(examples.slice(start, batch_rows).select(list(scorer.reads)))
                for start in range(0, max(1, examples.num_rows), batch_rows)
            ]
        finally:
            scorer.close()
        scored = pa.concat_tables(parts)
        for column in scored.column_names:
            out = out.append_column(f"{name}.{column}", scored.column(column))
    return out


def export(
    rows: Pool | pa.Table | Run | str | Path,
    exporter: Exporter,
    to: str | Path | None = None,
    *,
    file: str | None = None,
    shard_rows: int = 100_000,
    strict: bool = False,
) -> Export:
    """Write examples into a folder in a trainer's format.

    Parameters
    ----------
    rows : a pool, a table of examples, or a run (or its directory), of which the rows that it kept are meant.
    exporter : the format, of ``curate.exporters``.
    to : a folder of its own, or an fsspec URL; RUN/exports/FORMAT when absent, which only a run allows.
    file : "parquet", "jsonl", "jsonl.gz" or "jsonl.zst"; the format's first choice when absent.
    shard_rows : rows per file.
    strict : stop if the format cannot hold every row.

    Raises
    ------
    InputError, RunDirectoryError, RunError
        See ``curate.pipelines.handover.export``.
    """
    from pathlib import Path

    from curate.pipelines import handover
    from curate.pipelines.rows import PoolRows, TableRows
    from curate.pipelines.run import Run
    from curate.pipelines.store import Store

    options: dict[str, Any] = {"file": file, "shard_rows": shard_rows, "strict": strict}
    place = None if to is None else handover.place_of(str(to))
    if isinstance(rows, Run):
        return handover.export_run(rows.store, exporter, place, **options)
    if isinstance(rows, str | Path):
        return handover.export_run(Store(handover.place_of(str(rows))), exporter, place, **options)
    if place is None:
        raise InputError("an export of a pool or a table needs a folder: to='exports/trl'.")
    source = PoolRows(rows) if isinstance(rows, Pool) else TableRows(rows)
    return handover.export(source, exporter, place, **options)
