r"""Planted noise: rows of a table whose answers are made wrong on purpose, to see which scorers notice.

=========  ====================================================================================================
kind       what becomes of the answer (the last assistant turn)
=========  ====================================================================================================
shuffled   it is that of another row of the same source, which asks something else
truncated  it ends after a share of its words, drawn between 20% and 80%
numbers    of its distinct numbers each is replaced by another of as many digits, with probability ½, at least one
language   its Latin letters are written in Cyrillic
=========  ====================================================================================================

"language" is a stand-in: the same words in another script, and not a sentence of another language, for which a table of
English rows has no source.  It shows whether a scorer minds the wrong script, no more.

Whether a row *can* carry a kind of noise ("numbers": its answer has one) depends on its kind, which a scorer may tell
apart without noticing any noise.  So the share is of the rows that can, and clean rows should be compared among those:
``Planted.able``.

What a row becomes depends on the table, the seed and the row, and not on the share: the rows of 10% are among those of
20%, and say the same.  One scoring of the clean table and one of each kind give every share.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from curate.example import keys
from curate.exceptions import InputError
from curate.numerics.order import fractional_ranks
from curate.seeding import rng_for

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["shuffled", "truncated", "numbers", "language"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_CYRILLIC = "абцдефгхийклмнопярстуввьыз"
_CYRILLIC_OF = str.maketrans(_LATIN + _LATIN.upper(), _CYRILLIC + _CYRILLIC.upper())
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Planted:
    """A table with noise planted into some of its rows."""

    examples: pa.Table
    """The table, in its order; planted rows have another answer, and the keys of what they now say."""
    truth: NDArray[np.bool_]
    """(n,) True where noise was planted."""
    able: NDArray[np.bool_]
    """(n,) True where it could have been."""


def plant(examples: pa.Table, kind: Kind, share: float, *, seed: int = 0) -> Planted:
    """Plant one kind of noise into a share of the rows that can carry it.

    Parameters
    ----------
    examples : a table of ``curate.example.EXAMPLE_SCHEMA``, as ``curate.read(…).examples()`` gives.
    kind : see the module's docstring.
    share : of the rows that can carry the noise, in [0, 1]; ⌊share · able + ½⌋ are planted.
    seed : names the draws: which rows, and what becomes of each.  Neither the order of the rows nor their sharding
        matters, but for rows with equal content and the donors of "shuffled", which follow the order of content keys.

    Raises
    ------
    InputError
        If the kind is unknown, the share is no share, or no row can carry the noise.
    """
    import pyarrow as pa

    if kind not in KINDS:
        raise InputError(f"plant: a kind of {', '.join(KINDS)} was asked, {kind!r} was found.")
    if not 0 <= share <= 1:
        raise InputError(f"plant: a share from 0 to 1 was asked, {share} was found.")
    wrong = wrong_answers(examples, kind, seed=seed)
    able = np.array([answer is not None for answer in wrong], dtype=bool)
    if not able.any():
        raise InputError(f"plant: none of {len(able):,} rows can carry the noise {kind!r}; give other rows, or a kind.")
    contents = examples.column("content_key").to_pylist()
    places = np.array([rng_for(seed, "noise", kind, "place", key.hex()).random() for key in contents])
    places[~able] = np.inf
    chosen = np.argsort(places, kind="stable")[: int(share * able.sum() + 0.5)]
    truth = np.zeros(len(able), dtype=bool)
    truth[chosen] = True
    rows = examples.to_pylist()
    for i in np.flatnonzero(truth):
        rows[i] = _answered(rows[i], str(wrong[i]))
    return Planted(pa.Table.from_pylist(rows, schema=examples.schema), truth, able)


@dataclass(frozen=True)
class Detection:
    """How well a score tells planted rows (low) from the others (high); rows without a score take no part."""

    rows: int
    planted: int
    unscored: int
    """Rows without a score."""
    auroc: float
    """Probability that a planted row scores below another, ties counted half; NaN where either kind is missing."""
    precision: float
    """Of the rows that the filter drops at the true share (as many as were planted), those that were planted."""
    precision_half: float
    """The same of a filter that drops the lower half: CLEAR's median."""
    recall_half: float
    """Of the planted rows, those that it drops.  (At the true share, recall is precision.)"""


def detect(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> Detection:
    """Hold a score, higher is better, against the planted truth: (n,) both; NaN where a row has no score.

    Where a cut goes through equal scores, what is told is the expectation over which of them are dropped.
    """
    there = np.isfinite(scores)
    s, wrong = np.asarray(scores, dtype=np.float64)[there], np.asarray(truth, dtype=bool)[there]
    n, m = s.size, int(wrong.sum())
    auroc = precision = precision_half = recall_half = float("nan")
    if 0 < m < n:
        # The sum of the planted rows' ranks is that of pairs they win, less those among themselves (Mann and Whitney).
        wins = (fractional_ranks(s)[wrong] * n - 0.5).sum() - m * (m - 1) / 2
        auroc = 1 - wins / (m * (n - m))
        precision = float(_dropped(s, m)[wrong].sum() / m)
        half = _dropped(s, n // 2)[wrong].sum()
        precision_half, recall_half = float(half / max(1, n // 2)), float(half / m)
    return Detection(n, m, int((~there).sum()), float(auroc), precision, precision_half, recall_half)


def _dropped(scores: NDArray[np.float64], m: int) -> NDArray[np.float64]:
    """Return the probability of each row to be among the m lowest, equal scores in a random order."""
    if not m:
        return np.zeros(scores.size)
    cut = np.partition(scores, m - 1)[m - 1]
    below, at = scores < cut, scores == cut
    return below + at * ((m - below.sum()) / at.sum())


def wrong_answers(examples: pa.Table, kind: Kind, *, seed: int = 0) -> list[str | None]:
    """Return what the noise makes of each row's answer; None where a row cannot carry it.

    Every answer that is returned differs from the row's own.
    """
    rows = examples.to_pylist()
    answers = [_answer(row) for row in rows]
    if kind == "shuffled":
        return _shuffled(rows, answers, seed)
    change: Callable[[str, np.random.Generator], str | None]
    change = {"truncated": _truncated, "numbers": _other_numbers, "language": _in_cyrillic}[kind]
    out: list[str | None] = []
    for row, answer in zip(rows, answers, strict=True):
        wrong = None if answer is None else change(answer, rng_for(seed, "noise", kind, row["content_key"].hex()))
        out.append(None if wrong == answer else wrong)
    return out


def _answer(row: dict[str, Any]) -> str | None:
    """Return the text of the last assistant turn; None where there is none, or where it calls tools instead."""
    turns = [m for m in row["messages"] if m["role"] == "assistant"]
    return turns[-1]["content"] if turns and turns[-1]["content"].strip() else None


def _answered(row: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return the row with another answer in its last assistant turn, and its keys."""
    last = max(i for i, m in enumerate(row["messages"]) if m["role"] == "assistant")
    messages = [dict(m) for m in row["messages"]]
    messages[last]["content"] = answer
    content_key, prompt_key = keys(messages, row.get("tools"))
    chars = sum(len(m["content"]) for m in messages)
    return {**row, "messages": messages, "content_key": content_key, "prompt_key": prompt_key, "chars": chars}


def _shuffled(rows: list[dict[str, Any]], answers: list[str | None], seed: int) -> list[str | None]:
    """Give each row the answer of the next of its source, in a drawn order, that asks and answers otherwise."""
    out: list[str | None] = [None] * len(rows)
    sources: dict[str, list[int]] = {}
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["content_key"]):
        if answers[i] is not None:
            sources.setdefault(rows[i]["source"], []).append(i)
    for source, its in sources.items():
        order = [its[j] for j in rng_for(seed, "noise", "shuffled", source).permutation(len(its))]
        for place, i in enumerate(order):
            for j in (*order[place + 1 :], *order[:place]):
                if answers[j] != answers[i] and rows[j]["prompt_key"] != rows[i]["prompt_key"]:
                    out[i] = answers[j]
                    break
    return out


def _truncated(answer: str, rng: np.random.Generator) -> str | None:
    """Cut an answer of five words or more behind a word."""
    ends = [match.end() for match in re.finditer(r"\S+", answer)]
    if len(ends) < 5:
        return None
    return answer[: ends[int(len(ends) * rng.uniform(0.2, 0.8)) - 1]]


def _other_numbers(answer: str, rng: np.random.Generator) -> str | None:
    """Replace about half of the distinct numbers, wherever they stand; at least one."""
    numbers = list(dict.fromkeys(_NUMBER.findall(answer)))
    if not numbers:
        return None
    hit = rng.random(len(numbers)) < 0.5
    hit[rng.integers(len(numbers))] = True
    new = {old: _other_number(old, rng) for old, is_hit in zip(numbers, hit, strict=True) if is_hit}
    return _NUMBER.sub(lambda match: new.get(match[0], match[0]), answer)


def _other_number(old: str, rng: np.random.Generator) -> str:
    """Return another number of as many digits, without a leading zero unless the old one has it."""
    while True:
        digits = rng.integers(10, size=len(old))
        if len(old) > 1 and old[0] != "0":
            digits[0] = rng.integers(1, 10)
        new = "".join(map(str, digits.tolist()))
        if new != old:
            return new


def _in_cyrillic(answer: str, rng: np.random.Generator) -> str | None:
    """Write an answer in Cyrillic, letter for letter; None where fewer than half of its letters are Latin."""
    letters = sum(map(str.isalpha, answer))
    latin = sum(char.isascii() and char.isalpha() for char in answer)
    return answer.translate(_CYRILLIC_OF) if latin and 2 * latin >= letters else None
