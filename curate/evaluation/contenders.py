"""What is put to the test: the rows that runs have kept, and those that anybody could have taken instead.

Each contender is an order of the pool's rows; so many of the first are trained on as make the contenders equal.  A
run's order is that of its choice.  Of the baselines

========  ==============================================================================================================
random    a uniform draw, another one for each seed
balanced  the same, sources taking turns
longest   the longest first, by characters of the conversation
full      all of the pool: as many steps as the others make in all their epochs, no row twice before all were seen
========  ==============================================================================================================

Runs of one pool only: the pool's canonical order, by content, is then theirs in common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.budget import interleave
from curate.exceptions import InputError
from curate.pipelines import audit
from curate.pipelines.ledger import FinishedRun
from curate.seeding import rng_for

if TYPE_CHECKING:
    from curate.models.base import Row
    from curate.models.template import Encoder

BASELINES = ("random", "balanced", "longest", "full")
_ENCODED_AT_ONCE = 256
Places = NDArray[np.int64]
"""Rows of the pool, by canonical number."""


@dataclass(frozen=True, eq=False)
class Contender:
    """Rows in an order of choice, for each seed."""

    name: str
    about: str
    order: Callable[[int], Places]
    """Seed (from 0) → rows."""
    texts: Sequence[Texts]
    """What the rows say; with several draws, which may have other corrections, of each."""
    run: bool = False
    """Whether a run has chosen them: no more than these are there."""
    once: bool = False
    """Whether it sees as many rows as the others in all their epochs, each once."""

    def rows(self, seed: int, places: Places) -> list[Row]:
        """Return rows as a model reads them."""
        return self.texts[seed % len(self.texts)].rows(places)


class Texts:
    """The conversations of a pool, with the corrections of one run, as a model's tokens."""

    def __init__(self, run: FinishedRun, encoder: Encoder, *, corrected: bool) -> None:
        self._run, self._encoder, self._corrected = run, encoder, corrected
        self._held: dict[int, Row] = {}

    def rows(self, places: Places) -> list[Row]:
        """Return rows as (ids, mask); of one that the template refuses nothing is in the mask."""
        missing = np.array([p for p in places.tolist() if p not in self._held], dtype=np.int64)
        for start in range(0, missing.size, _ENCODED_AT_ONCE):
            self._encode(missing[start : start + _ENCODED_AT_ONCE])
        return [self._held[place] for place in places.tolist()]

    def _encode(self, places: Places) -> None:
        run = self._run
        numbers = run.index.pool[places]
        order = np.argsort(numbers)
        reading = numbers[order]
        news = audit.new_answers(run, reading) if self._corrected else {}
        for part in run.index.parts:
            low, high = np.searchsorted(reading, [part.start, part.start + part.rows])
            if high == low:
                continue
            table = run.store.read_table("examples", part.name, columns=["messages", "tools"])
            table = table.take(pa.array(reading[low:high] - part.start))
            conversations = [
                _answered(messages, news.get(number))
                for number, messages in zip(reading[low:high].tolist(), table.column(0).to_pylist(), strict=True)
            ]
            encoded = self._encoder.encode(conversations, table.column(1).to_pylist())
            for place, row in zip(places[order[low:high]].tolist(), encoded, strict=True):
                ids = np.asarray(row.ids, dtype=np.int64)
                mask = np.asarray(row.mask, dtype=bool)
                if row.reason is not None or not ids.size:
                    ids, mask = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)
                self._held[place] = (ids, mask)


def _answered(messages: list[dict[str, Any]], answer: str | None) -> list[dict[str, Any]]:
    from curate.correction import answered

    return messages if answer is None else answered(messages, answer)


def of_runs(draws: Sequence[FinishedRun], name: str, encoder: Encoder, allowed: NDArray[np.bool_]) -> Contender:
    """Return what a run has kept, in the order of its choice; of several draws of one method, each seed's own.

    Parameters
    ----------
    allowed : (pool,) rows that may be trained on.
    """
    orders = [_chosen(run, allowed) for run in draws]
    return Contender(
        name,
        "kept by " + ", ".join(run.store.place() for run in draws),
        lambda seed: orders[seed % len(orders)],
        [Texts(run, encoder, corrected=True) for run in draws],
        run=True,
    )


def _chosen(run: FinishedRun, allowed: NDArray[np.bool_]) -> Places:
    order = np.concatenate(
        list(run.each(lambda part: run.store.read_table("decisions", part.name, columns=["order"])[0].to_numpy()))
    )
    chosen = np.flatnonzero(~np.isnan(order.astype(np.float64)))
    chosen = chosen[np.argsort(order[chosen], kind="stable")]
    places = run.index.place[chosen]
    return places[allowed[places]]


def baselines(
    run: FinishedRun, names: Sequence[str], encoder: Encoder, allowed: NDArray[np.bool_], seed: int
) -> list[Contender]:
    """Return the baselines by their names, on the pool of a run; texts are those before any correction."""
    texts, n = [Texts(run, encoder, corrected=False)], run.index.n

    def drawn(name: str) -> Callable[[int], Places]:
        def order(r: int) -> Places:
            rows = rng_for(seed, "evaluate", name, r).permutation(n)
            return rows[allowed[rows]]

        return order

    def balanced(r: int) -> Places:
        rows = drawn("balanced")(r)
        return rows[interleave(sources[rows], np.ones(int(sources.max(initial=0)) + 1))]

    def longest(r: int) -> Places:
        rows = np.argsort(-chars, kind="stable")
        return rows[allowed[rows]]

    out = []
    for name in names:
        if name not in BASELINES:
            raise InputError(f"baselines are {', '.join(BASELINES)}; {name!r} was asked.")
        if name == "balanced":
            sources = _column(run, "source")
            out.append(Contender(name, "a draw from each source in turn", balanced, texts))
        elif name == "longest":
            chars = _column(run, "chars")
            out.append(Contender(name, "the longest conversations, in characters", longest, texts))
        else:
            about = "a uniform draw" if name == "random" else "all of the pool, equal steps"
            out.append(Contender(name, about, drawn(name), texts, once=name == "full"))
    return out


def _column(run: FinishedRun, name: str) -> NDArray[np.int64]:
    """Return a column of the examples in canonical order: a number, or a text as a code."""
    tables = list(run.each(lambda part: run.store.read_table("examples", part.name, columns=[name])))
    values = pa.concat_tables(tables).column(0).combine_chunks()
    if pa.types.is_string(values.type):
        values = values.dictionary_encode().indices.fill_null(-1)
    numbers = values.to_numpy(zero_copy_only=False).astype(np.int64)
    return (numbers - min(0, int(numbers.min(initial=0))))[run.index.pool]


@dataclass(frozen=True)
class Share:
    """The rows of one training."""

    places: Places
    tokens: int
    """That go through the model in one epoch."""
    epochs: int


def first_rows(contender: Contender, seed: int, rows: int, epochs: int, lengths: Callable[..., Any]) -> Share:
    """Return the first ``rows`` (of one that sees each once: as many as in all epochs)."""
    order = contender.order(seed)
    wanted = rows * epochs if contender.once else rows
    places = order[:wanted]
    own = -(-wanted // max(1, places.size)) if contender.once else epochs
    return Share(places, int(lengths(contender, seed, places).sum()), own)


def first_tokens(contender: Contender, seed: int, tokens: int, epochs: int, lengths: Callable[..., Any]) -> Share:
    """Return rows from the first on whose tokens come nearest to ``tokens``; half a row's fewer or more."""
    order = contender.order(seed)
    wanted = tokens * epochs if contender.once else tokens
    held, total, counts = 0, 0, np.zeros(0, dtype=np.int64)
    while total < wanted and held < order.size:
        more = lengths(contender, seed, order[held : held + _ENCODED_AT_ONCE])
        counts = np.concatenate([counts, more])
        held, total = counts.size, int(counts.sum())
    if total < wanted and contender.once:  # all of the pool, more than once
        return Share(order, total, -(-wanted // max(1, total)))
    sums = np.r_[0, np.cumsum(counts)]
    at = int(np.argmin(np.abs(sums - wanted)))
    return Share(order[:at], int(sums[at]), 1 if contender.once else epochs)
