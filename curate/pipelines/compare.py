"""Several finished runs, compared by what they kept."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curate import __version__
from curate.exceptions import InputError
from curate.pipelines.audit import new_answers
from curate.pipelines.ledger import FinishedRun
from curate.pipelines.store import Store
from curate.pipelines.view import languages_of, samples_of, texts_of
from curate.report.comparison import QUANTILES, ComparedRun, Comparison, Score, Spread, sections
from curate.report.text import number, percent, plural
from curate.report.view import Sample

if TYPE_CHECKING:
    import polars as pl

ALONE = 40
"""Rows shown of those that one run alone kept, a run."""
_LENGTHS = (100, 300, 1_000, 3_000, 10_000)
_SCORES = 60


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
    """A run, as far as the comparison needs it; arrays are (pool,) in reading order."""

    run: FinishedRun
    ledger: pl.DataFrame
    keys: NDArray[np.uint64]
    rows: NDArray[np.int64]
    """Reading-order numbers."""
    kept: NDArray[np.bool_]


def compare(runs: Sequence[str | Path | Store]) -> Comparison:
    """Compare two or more finished runs: directories, URLs, or their stores.

    Memory: about 200 MB a run of a million rows.

    Raises
    ------
    InputError
        For fewer than two runs, or one that is named twice.
    RunDirectoryError
        If one of them is no finished run.
    """
    stores = [run if isinstance(run, Store) else _store(run) for run in runs]
    roots = [store.root for store in stores]
    if len(stores) < 2:
        raise InputError(f"two or more runs were asked, {len(stores)} was found; name each run's directory.")
    if len(set(roots)) < len(roots):
        twice = next(root for root in roots if roots.count(root) > 1)
        raise InputError(f"{twice} is named twice; a run is compared with others.")
    read = [_read(store) for store in stores]
    names = _names(read)
    frame = _joined(read)
    pools = np.column_stack([frame[f"pool_{i}"].to_numpy() for i in range(len(read))])
    kept = np.column_stack([frame[f"kept_{i}"].to_numpy() for i in range(len(read))])
    overlap = kept.T.astype(np.int64) @ kept.astype(np.int64)
    alone = kept & (kept.sum(axis=1) == 1)[:, None]
    size = np.diagonal(overlap)
    either = size[:, None] + size[None, :] - overlap
    jaccard = np.where(either > 0, overlap / np.maximum(either, 1), 1.0)
    found = Comparison(
        runs=[
            ComparedRun(name, r.run.store.root, r.kept.size, int(r.kept.sum()), int(alone[:, i].sum()))
            for i, (name, r) in enumerate(zip(names, read, strict=True))
        ],
        in_all_pools=int(pools.all(axis=1).sum()),
        in_any_pool=frame.height,
        kept_by_all=int(kept.all(axis=1).sum()),
        kept_by_any=int(kept.any(axis=1).sum()),
        overlap=overlap.tolist(),
        jaccard=jaccard.tolist(),
        composition=_composition(read),
        scores=_scores(read, names, frame),
        samples=[s for i, r in enumerate(read) for s in _alone(r, names[i], frame, alone[:, i], i)],
    )
    return dataclasses.replace(found, notes=_notes(found))


def _store(run: str | Path) -> Store:
    return Store(str(run) if "://" in str(run) else os.path.abspath(run))


def _read(store: Store) -> _Read:
    import polars as pl

    run = FinishedRun.open(store)
    ledger = run.ledger()
    language = languages_of(run)
    if language is not None:
        rest = pl.repeat(None, ledger.height - language.len(), dtype=language.dtype, eager=True)
        ledger = ledger.with_columns(language=pl.concat([language, rest]))
    rows = np.sort(run.index.pool)
    decision = ledger["decision"].cast(pl.String)
    kept = decision.is_in(["kept", "corrected"]).to_numpy()[: run.index.rows][rows]
    return _Read(run, ledger, run.keys(), rows, kept)


def _names(read: Sequence[_Read]) -> list[str]:
    """Return the shortest of name, directory and path that tells the runs from each other."""
    for spell in (
        lambda r: str(r.run.manifest.get("name", "run")),
        lambda r: r.run.store.root.rsplit("/", 1)[-1],
        lambda r: r.run.store.root,
    ):
        names = [spell(r) for r in read]
        if len(set(names)) == len(names):
            break
    return names


def _joined(read: Sequence[_Read]) -> pl.DataFrame:
    """Return a row for every conversation of any pool: its key, and for each run pool_i, kept_i and row_i."""
    import polars as pl

    frame: pl.DataFrame | None = None
    for i, r in enumerate(read):
        own = pl.DataFrame(
            {
                "high": r.keys[:, 0],
                "low": r.keys[:, 1],
                f"row_{i}": np.arange(r.kept.size),
                f"kept_{i}": r.kept,
                f"pool_{i}": np.ones(r.kept.size, dtype=bool),
            }
        )
        frame = own if frame is None else frame.join(own, on=["high", "low"], how="full", coalesce=True)
    assert frame is not None
    fill = [pl.col(f"{what}_{i}").fill_null(False) for what in ("kept", "pool") for i in range(len(read))]
    return frame.with_columns(fill).sort("high", "low")


def _composition(read: Sequence[_Read]) -> dict[str, dict[str, list[int]]]:
    """Return label → value → kept rows, one number a run; the values that most rows have first."""
    import polars as pl

    out: dict[str, dict[str, list[int]]] = {}
    for label in ("source", "group", "language"):
        counts: dict[str, list[int]] = {}
        for i, r in enumerate(read):
            if label in r.ledger.columns:
                mine = r.ledger[label].slice(0, r.run.index.rows).gather(r.rows[r.kept])
                found = mine.cast(pl.String).fill_null("(none)").value_counts()
                for value, n in found.iter_rows():
                    counts.setdefault(value, [0] * len(read))[i] = n
        if len(counts) > 1:
            out[label] = dict(sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0])))
    bins = [
        f"under {_LENGTHS[0]:,} characters",
        *(f"{a:,} to {b - 1:,}" for a, b in itertools.pairwise(_LENGTHS)),
    ]
    bins.append(f"{_LENGTHS[-1]:,} and more")
    lengths = [
        np.bincount(
            np.digitize(r.ledger["chars"].slice(0, r.run.index.rows).to_numpy()[r.rows[r.kept]], _LENGTHS),
            minlength=len(bins),
        )
        for r in read
    ]
    out["length"] = {name: [int(found[b]) for found in lengths] for b, name in enumerate(bins)}
    return out


def _scores(read: Sequence[_Read], names: Sequence[str], frame: pl.DataFrame) -> list[Score]:
    """Each score by each run that computed it in its own way, among the rows that every run kept."""
    out: list[Score] = []
    seen: set[tuple[str, str]] = set()
    for i, r in enumerate(read):
        row = frame[f"row_{i}"]
        there = row.is_not_null().to_numpy()
        at = row.fill_null(0).to_numpy()
        for name, column in r.run.columns.items():
            fingerprint = r.run.stages[name.partition(".")[0]]
            if (name, fingerprint) in seen or len(out) >= _SCORES:
                continue
            seen.add((name, fingerprint))
            values = np.where(there, r.run.values(name)[at], np.nan)
            spreads = [_spread(values[frame[f"kept_{j}"].to_numpy()]) for j in range(len(read))]
            if any(spreads):
                told = name if not any(s.name == name for s in out) else f"{name} ({names[i]})"
                out.append(Score(told, column.unit, names[i], spreads))
    return out


def _spread(values: NDArray[np.float64]) -> Spread | None:
    scored = values[~np.isnan(values)]
    if not scored.size:
        return None
    return Spread(scored.size, float(scored.mean()), [float(q) for q in np.quantile(scored, QUANTILES)])


def _alone(r: _Read, name: str, frame: pl.DataFrame, alone: NDArray[np.bool_], i: int) -> list[Sample]:
    """Some rows that only this run kept, with their texts."""
    mine = frame[f"row_{i}"].filter(alone).head(ALONE).to_numpy().astype(np.int64)  # the frame is in key order
    rows = r.rows[mine]
    read = np.sort(rows)
    found = samples_of(r.run, r.ledger, rows, texts_of(r.run, read), new_answers(r.run, read))
    return [dataclasses.replace(s, stage=name, kind=f"kept by {name} alone") for s in found]


def _notes(found: Comparison) -> list[str]:
    notes = []
    if not found.same_pool:
        notes.append(
            f"The pools differ: of {plural(found.in_any_pool, 'conversation')} {number(found.in_all_pools)} are in all "
            "of them. Rows are compared by content; a row that a run never read counts as not kept by it."
        )
    versions: dict[str, set[str]] = {}
    for score in found.scores:
        versions.setdefault(score.name.partition(" (")[0], set()).add(score.of)
    several = sorted(name for name, of in versions.items() if len(of) > 1)
    if several:
        notes.append(f"Computed in more than one way (another model, parameters or sample): {', '.join(several)}.")
    return notes


# -- telling -----------------------------------------------------------------------------------------------------------


def tell(found: Comparison) -> str:
    """Return the comparison as tables of text."""
    names = [run.name for run in found.runs]
    lines = [*found.notes, ""] if found.notes else []
    lines += _table(
        ["run", "pool", "kept", "alone"],
        [[r.name, f"{r.pool:,}", f"{r.kept:,}", f"{r.alone:,}"] for r in found.runs],
    )
    lines += ["", f"{found.kept_by_all:,} rows kept by all, {found.kept_by_any:,} by any", ""]
    matrix = [
        [name, *(f"{n:,} ({percent(j)})" for n, j in zip(row, share, strict=True))]
        for name, row, share in zip(names, found.overlap, found.jaccard, strict=True)
    ]
    lines += _table(["both kept (Jaccard)", *names], matrix)
    for label, values in found.composition.items():
        rows = [
            [value, *(f"{n:,} ({percent(n / max(1, r.kept))})" for n, r in zip(counts, found.runs, strict=True))]
            for value, counts in list(values.items())[:12]
        ]
        more = len(values) - len(rows)
        lines += ["", *_table([label, *names], rows), *([f"and {more:,} more"] if more else [])]
    if found.scores:
        rows = [[s.name, *("–" if x is None else number(x.mean) for x in s.spreads)] for s in found.scores]
        lines += ["", *_table(["mean of", *names], rows)]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]


def write_page(found: Comparison, out: str | Path) -> str:
    """Write the comparison as an HTML page that needs nothing else; return its path.

    Raises
    ------
    RunDirectoryError
        If the file cannot be written.
    """
    from curate.pipelines.report import write_file
    from curate.report.page import render

    names = " · ".join(run.name for run in found.runs)
    shared = found.kept_by_all / found.kept_by_any if found.kept_by_any else 1.0
    summary = (
        f"{plural(len(found.runs), 'run')} kept {number(found.kept_by_any)} different rows; all of them kept "
        f"{number(found.kept_by_all)} ({percent(shared)} of these)."
    )
    made = f"Made by curate {__version__}. This file holds all that it shows."
    return write_file(render(f"Runs compared: {names}", summary, sections(found), made=made), out)
