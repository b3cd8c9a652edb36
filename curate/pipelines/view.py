"""Reads a finished run into what its report needs: columns of all rows, texts of a few, and two baselines.

What is drawn at random is drawn by content key and seed: how the run was cut into shards changes no picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.base import Selector
from curate.budget import Budget, interleave
from curate.exceptions import InputError
from curate.numerics.principal import principal_axes
from curate.pipelines.audit import corrections, new_answers
from curate.pipelines.influence import by_hidden_states, influences
from curate.pipelines.ledger import FinishedRun
from curate.pipelines.store import Store
from curate.report.text import cut, plural
from curate.report.view import Baseline, PoolMap, Sample, View
from curate.seeding import rng_for
from curate.selectors.best_per_prompt import BestPerPrompt
from curate.selectors.longest import Longest
from curate.selectors.random import Random
from curate.selectors.round_robin import RoundRobin

if TYPE_CHECKING:
    import polars as pl

SAMPLES = 300
"""Rows whose texts a report shows."""
MAP_KEPT, MAP_DROPPED = 1000, 2000
"""Points of the map at most."""
_AXES_ROWS, _AXES_FLOATS = 20_000, 8_000_000  # what the map's axes are found on, at most
_TURN_CHARS, _TURNS, _ROW_BYTES = 1_500, 12, 6_000  # so that 300 rows take less than 2 MB in any script
_LANGUAGE_KEYS = ("language", "lang", "Language", "Lang")


def view(store: Store, *, samples: int = SAMPLES) -> View:
    """Read a finished run; ``samples`` is the number of rows whose texts are taken along.

    Raises
    ------
    RunDirectoryError
        If there is no run, or none that has come to its decisions.
    """
    import polars as pl

    run = FinishedRun.open(store)
    seed = int(run.manifest.get("seed", 0))
    ledger = run.ledger()
    language = languages_of(run)
    if language is not None:
        rest = pl.repeat(None, ledger.height - language.len(), dtype=language.dtype, eager=True)
        ledger = ledger.with_columns(language=pl.concat([language, rest]))
    notes: list[str] = []
    baselines = _baselines(run, ledger, seed, notes)
    chosen = _choose(run, ledger, samples, seed)
    drawn = _draw_map(run, ledger, seed)
    points = np.empty(0, dtype=np.int64) if drawn is None else drawn[0]
    measured = influences(run, ledger, {"this run": _kept(run, ledger), **{b.name: b.chosen for b in baselines}})
    ends = np.unique([e.row for i in measured for e in i.extremes] if samples else []).astype(np.int64)
    texts = texts_of(run, np.unique(np.r_[chosen[chosen < run.index.rows], points, ends]))
    news = new_answers(run, np.unique(np.r_[chosen[chosen < run.index.rows], ends]))
    shown = samples_of(run, ledger, np.r_[chosen, ends], texts, news)
    return View(
        manifest=run.manifest,
        recipe=store.read_bytes("recipe.yaml").decode("utf-8", "replace"),
        ledger=ledger,
        columns=run.columns,
        values=run.values,
        baselines=baselines,
        samples=shown[: chosen.size],
        pool_map=None if drawn is None else _finish_map(run, ledger, drawn, texts),
        influences=measured,
        corrections=corrections(run, ledger, seed, shown=samples > 0),
        rows=dict(zip(ends.tolist(), shown[chosen.size :], strict=True)),
        notes=notes,
    )


def _kept(run: FinishedRun, ledger: pl.DataFrame) -> NDArray[np.bool_]:
    """Return (pool,) True for rows of the result, as ``View.kept``."""
    import polars as pl

    decision = ledger["decision"].slice(0, run.index.rows).cast(pl.String)
    return decision.is_in(["kept", "corrected"]).to_numpy()[np.sort(run.index.pool)]


# -- languages ---------------------------------------------------------------------------------------------------------


def languages_of(run: FinishedRun) -> pl.Series | None:
    """Return the language of each example in reading order, where the data says (a column ``language`` or ``lang``).

    ``extra`` is long, so whether it says is judged by the first part of each group of input slices.
    """
    import polars as pl

    firsts = {part.group: part.name for part in reversed(run.index.parts)}
    for key in _LANGUAGE_KEYS:
        for name in firsts.values():
            extras = run.store.read_table("examples", name, columns=["extra"]).column(0).slice(0, 200).to_pylist()
            if any(isinstance(json.loads(e).get(key), str) for e in extras if e):
                break
        else:
            continue

        def read(part: Any, key: str = key) -> pl.Series:
            table = pl.from_arrow(run.store.read_table("examples", part.name, columns=["extra"]))
            assert isinstance(table, pl.DataFrame)
            return table["extra"].str.json_path_match(f"$.{key}")

        return pl.concat(list(run.each(read))).cast(pl.Categorical).alias("language")
    return None


# -- baselines ---------------------------------------------------------------------------------------------------------


def _baselines(run: FinishedRun, ledger: pl.DataFrame, seed: int, notes: list[str]) -> list[Baseline]:
    """Choose from the same pool, within the same budget: at random, by length, by RDS+ if the run has its numbers."""
    index = run.index
    reading = np.sort(index.pool)  # the pool's rows in reading order, as in View.pool
    canonical = index.place[reading]  # where each stands in the order that selectors see
    kept = _kept(run, ledger)
    chars = ledger["chars"].slice(0, index.rows).to_numpy()[reading].astype(np.float64)
    length, unit = _lengths(run, chars)
    budget, cost, told = _budget(run, int(kept.sum()))
    payable = np.ones(index.n, dtype=bool) if cost is None else ~np.isnan(cost)
    able = payable & ~np.isnan(length)
    if not able.all():
        notes.append(f"{int((~able).sum()):,} rows without a length or a cost took no part in the baselines.")
    order = np.empty(index.n, dtype=np.int64)
    order[canonical] = np.arange(index.n)
    rows = order[able[order]]  # rows of View.pool that take part, in canonical order
    asked: list[tuple[str, str, Selector, Any, NDArray[np.int64]]] = [
        ("random", f"a uniform draw of seed {seed}", Random(seed=seed), rows.size, rows),
        ("longest", f"the longest first, in {unit}", Longest(), length[rows], rows),
    ]
    nearest = by_hidden_states(run)
    if nearest is not None:
        stage, similarity = nearest
        about = f"the tasks in turn, each taking the row nearest to one of its targets by {stage}"
        takes_part = order[payable[order]]
        asked.append(("RDS+", about, RoundRobin(), similarity[takes_part], takes_part))
    out = []
    for name, about, selector, x, among in asked:
        try:
            picked = selector.select(x, budget, cost=None if cost is None else cost[among]).indices
        except InputError as error:
            notes.append(f"no baseline {name!r}: {error}")
            continue
        mask = np.zeros(index.n, dtype=bool)
        mask[among[picked]] = True
        out.append(Baseline(name, f"{about}, {told}", mask))
    if any(step.get("use") == "best-per-prompt" for step in run.manifest.get("select", [])):
        out += _within_prompts(run, rows, length, kept, unit, seed)
    return out


def _within_prompts(
    run: FinishedRun,
    rows: NDArray[np.int64],
    length: NDArray[np.float64],
    kept: NDArray[np.bool_],
    unit: str,
    seed: int,
) -> list[Baseline]:
    """Choose of each prompt as many rows as the run kept of it: at random, and the longest.

    ``rows`` are those that take part, in canonical order; ``length`` and ``kept`` go by the rows of ``View.pool``.
    """
    keys = run.store.read_tables("examples", [part.name for part in run.index.parts], ["prompt_key"])
    prompts = pa.concat_tables(keys).column(0).combine_chunks().take(pa.array(np.sort(run.index.pool)))
    codes = prompts.dictionary_encode().indices.to_numpy().astype(np.int64)
    limits = np.bincount(codes[kept], minlength=int(codes.max()) + 1)[codes]
    draw = rng_for(seed, "report", "within prompts").random(rows.size)
    out = []
    for name, about, x in (
        ("random of each prompt", f"a uniform draw of seed {seed}", draw),
        ("longest of each prompt", f"the longest, in {unit}", length[rows]),
    ):
        picked = BestPerPrompt().select(x, groups=codes[rows], limits=limits[rows]).indices
        mask = np.zeros(run.index.n, dtype=bool)
        mask[rows[picked]] = True
        out.append(Baseline(name, f"{about}, of each prompt as many as this run kept of it", mask))
    return out


def _budget(run: FinishedRun, k: int) -> tuple[Budget, NDArray[np.float64] | None, str]:
    """Return the budget that the run's result amounts to, the rows' costs if it is in tokens, and its words."""
    steps = run.manifest.get("select", [])
    last = steps[-1] if steps else {}
    if str(last.get("budget")).endswith("tokens") and last.get("cost") in run.columns:
        return Budget(tokens=last["tokens"]), run.values(last["cost"]), f"{last['tokens']:,} tokens"
    return Budget(rows=k), None, f"{k:,} rows"


def _lengths(run: FinishedRun, chars: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """Return the lengths that "longest" goes by: of the response if a stage has counted it, or of all."""
    counted = [c for c in run.columns.values() if c.unit == "tokens"]
    counted = [c for c in counted if "response" in c.name] or counted
    counted = counted or [c for c in run.columns.values() if c.name.endswith(".response_chars")]
    if counted:
        return run.values(counted[0].name), f"{counted[0].name} ({counted[0].unit or 'characters'})"
    return chars, "characters of the conversation"


# -- rows with their texts ---------------------------------------------------------------------------------------------


def _choose(run: FinishedRun, ledger: pl.DataFrame, count: int, seed: int) -> NDArray[np.int64]:
    """Return ledger rows to show: decisions in equal shares, in each the kinds of reason by the roots of their sizes.

    A decision of few rows gives all of them, and leaves its share to the others.
    """
    index, rng = run.index, rng_for(seed, "report", "samples")
    priority = rng.random(ledger.height)
    priority[index.pool] = rng_for(seed, "report", "samples", "pool").random(index.n)  # canonical: by content alone
    order = np.argsort(priority, kind="stable")
    decision = ledger["decision"].to_physical().to_numpy().astype(np.int64)
    what = decision * (int(ledger["kind"].to_physical().max() or 0) + 1)  # type: ignore[arg-type, operator]
    what = np.unique(what + ledger["kind"].to_physical().to_numpy(), return_inverse=True)[1]
    order = order[interleave(what[order], np.sqrt(np.bincount(what)))]
    return order[interleave(decision[order], np.ones(int(decision.max(initial=0)) + 1))][:count]


def texts_of(run: FinishedRun, rows: NDArray[np.int64]) -> dict[int, dict[str, Any]]:
    """Return reading-order number → the example's id and messages."""
    parts = [p for p in run.index.parts if np.searchsorted(rows, p.start) < np.searchsorted(rows, p.start + p.rows)]

    def read(part: Any) -> dict[int, dict[str, Any]]:
        mine = rows[np.searchsorted(rows, part.start) : np.searchsorted(rows, part.start + part.rows)]
        table = run.store.read_table("examples", part.name, columns=["messages"])
        return dict(zip(mine.tolist(), table.take(pa.array(mine - part.start)).to_pylist(), strict=True))

    return {row: text for texts in run.each_of(parts, read) for row, text in texts.items()}


def samples_of(
    run: FinishedRun,
    ledger: pl.DataFrame,
    chosen: NDArray[np.int64],
    texts: dict[int, dict[str, Any]],
    news: Mapping[int, str] | None = None,
) -> list[Sample]:
    """Return ledger rows, given by number, with their texts (see ``texts_of``) and scores; in the order given.

    ``news`` has the answers that corrections put into some of them.
    """
    lines = _ledger_lines(run, np.sort(chosen))
    place = np.full(run.index.rows, -1, dtype=np.int64)
    place[np.sort(run.index.pool)] = np.arange(run.index.n)
    pool_rows = place[chosen[chosen < run.index.rows]]
    pool_rows = pool_rows[pool_rows >= 0]
    scores: dict[int, dict[str, float]] = {int(row): {} for row in pool_rows}
    for column in run.columns:
        for row, value in zip(pool_rows.tolist(), run.values(column)[pool_rows].tolist(), strict=True):
            if value == value:
                scores[row][column] = value
    kinds = ledger["kind"].gather(chosen).to_list()
    out = []
    for row, kind in zip(chosen.tolist(), kinds, strict=True):
        line, raw = lines[row]
        own = scores.get(int(place[row]), {}) if row < run.index.rows else {}
        turns = [("raw", cut(raw or "", _TURN_CHARS))] if row not in texts else _turns(texts[row]["messages"])
        if row in (news or {}):
            turns.append(("corrected", cut((news or {})[row], _TURN_CHARS)))
        out.append(Sample(line["decision"], line["stage"], kind, line, turns, own))
    return out


def _turns(messages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (role, text) of the first messages, as many as have room, cut with a mark."""
    out: list[tuple[str, str]] = []
    room = _ROW_BYTES
    for i, message in enumerate(messages):
        if i == _TURNS or room <= 0:
            out.append(("more", f"[…{plural(len(messages) - i, 'more message')}]"))
            break
        text = message["content"] + (f"\ntool calls: {message['tool_calls']}" if message.get("tool_calls") else "")
        fits = len(text.encode("utf-8", "surrogatepass")[:room].decode("utf-8", "ignore"))
        text = cut(text, min(_TURN_CHARS, fits))
        room -= len(text.encode("utf-8", "surrogatepass"))
        out.append((str(message["role"]), text))
    return out


def _ledger_lines(run: FinishedRun, rows: NDArray[np.int64]) -> dict[int, tuple[dict[str, Any], str | None]]:
    """Return ledger row → (its whole line, the raw text if it was rejected)."""
    out: dict[int, tuple[dict[str, Any], str | None]] = {}
    spans = [(p.name, p.start, p.rows) for p in run.index.parts]
    start = run.index.rows
    for name in run.rejected_parts():
        height = run.store.read_table("decisions", name, columns=["row"]).num_rows
        spans.append((name, start, height))
        start += height
    for name, start, height in spans:
        mine = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + height)]
        if not mine.size:
            continue
        at = pa.array(mine - start)
        lines = run.store.read_table("decisions", name).take(at).to_pylist()
        raw: list[Any] = [None] * mine.size
        if start >= run.index.rows:
            file = name.replace("-rejected", "")
            raw = run.store.read_table("rejected", file, columns=["raw"]).column(0).take(at).to_pylist()
        out.update(zip(mine.tolist(), zip(lines, raw, strict=True), strict=True))
    return out


# -- the map -----------------------------------------------------------------------------------------------------------


def _draw_map(
    run: FinishedRun, ledger: pl.DataFrame, seed: int
) -> tuple[NDArray[np.int64], str, NDArray[np.float64], NDArray[np.float64], int] | None:
    """Choose points and find axes: (reading-order numbers, stage, (n, 2), shares of variance, rows fitted on)."""
    import polars as pl

    stages = [s for s, d in run.stages.items() if d.startswith("features/")]
    if not stages:
        return None
    stage, index = stages[0], run.index
    order = index.pool[rng_for(seed, "report", "map").permutation(index.n)]  # reading-order numbers, drawn by content
    kept = ledger["decision"].slice(0, index.rows).cast(pl.String).is_in(["kept", "corrected"]).to_numpy()
    points = np.r_[order[kept[order]][:MAP_KEPT], order[~kept[order]][:MAP_DROPPED]]
    fit = order[: max(2, min(_AXES_ROWS, _AXES_FLOATS // run.dimension(stage)))]
    rows = np.union1d(points, fit)
    vectors = run.vectors(stage, rows)
    there = ~np.isnan(vectors[:, 0])
    fitted = vectors[there & np.isin(rows, fit, assume_unique=True)]
    points = np.sort(points[there[np.searchsorted(rows, points)]])
    if not points.size or not fitted.size:
        return None
    mean, axes, explained = principal_axes(fitted, 2)
    xy = (vectors[np.searchsorted(rows, points)] - mean) @ axes.T
    return points, stage, xy, explained, len(fitted)


def _finish_map(run: FinishedRun, ledger: pl.DataFrame, drawn: Any, texts: dict[int, dict[str, Any]]) -> PoolMap:
    import polars as pl

    points, stage, xy, explained, fitted_on = drawn
    decision = ledger["decision"].slice(0, run.index.rows).cast(pl.String)
    kept = decision.is_in(["kept", "corrected"]).to_numpy()
    sources = ledger["source"].gather(points).to_list()
    labels = []
    for row, source in zip(points.tolist(), sources, strict=True):
        asked = next((m["content"] for m in texts[row]["messages"] if m["role"] == "user"), "")
        labels.append(f"{source}: {cut(' '.join(asked[:400].split()), 90).partition(' […')[0]}")
    return PoolMap(
        stage=stage,
        xy=xy,
        explained=(float(explained[0]), float(explained[1])),
        kept=kept[points],
        labels=labels,
        of_kept=int(kept.sum()),
        of_dropped=run.index.n - int(kept.sum()),
        fitted_on=fitted_on,
    )
