"""Targets that stand in the rows that a model is trained on: what it learned by heart shows nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.phrases import Phrases, compact, normalised
from curate.scorers._texts import conversations

if TYPE_CHECKING:
    import pyarrow as pa

How = Literal["the same conversation", "the same prompt", "words of its prompt", "words of its answer"]
HOW: tuple[How, ...] = get_args(How)
_KEYS = ("content_key", "prompt_key")
_ROWS = 4096  # training rows that are searched at once


@dataclass(frozen=True)
class Overlap:
    """Which targets stand in the training rows."""

    mask: NDArray[np.bool_]
    """(N,) True where a target does: to be left out."""
    how: list[How | None]
    """The strongest of what was found of each, in the order of ``How``."""
    share: NDArray[np.float64]
    """(N,) how much of it, the prompt or the answer that ``how`` names, one training row holds: share of n-grams."""
    where: list[str | None]
    """The id of a training row in which it stands."""

    @property
    def counts(self) -> dict[str, int]:
        """How many targets by ``how``."""
        return dict(Counter(how for how in self.how if how is not None))

    def by_task(self, tasks: Iterable[str | None]) -> dict[str, int]:
        """Return how many targets of each task are left out, 0 included."""
        found = Counter(task or "" for task, out in zip(tasks, self.mask.tolist(), strict=True) if out)
        return {task: found[task] for task in dict.fromkeys(task or "" for task in tasks)}


def overlapping(
    targets: pa.Table,
    training: pa.Table | Iterable[pa.Table],
    *,
    n: int = 13,
    common: float = 0.01,
    allowed: float = 0.0,
) -> Overlap:
    """Return which targets the training rows hold.

    A target is held where a training row has its content key or its prompt key, where a turn of one is its whole
    question, or where one holds n successive words of its question or of its last answer.  Case, punctuation and
    spaces do not count, and what many targets of a task have in common (its wrapper) gives none of them away: see
    ``curate.scorers.contamination``, which asks the same of the pool's rows.  A paraphrase is not found.

    Parameters
    ----------
    targets : examples; their "group" is their task.
    training : examples, in one table or several: all rows that any of the models compared may be trained on.
    n : words; fewer find more, and raise more false alarms.
    allowed : share of a target's n-grams that a training row may hold; 0 for none, 1 for equal keys alone.
    common : share of a task's targets (and more than four) that must have words in common for them to be its wrapper.

    Raises
    ------
    InputError
        If a column is missing, or n or common is out of range.
    """
    if n < 2 or not 0 < common <= 1 or not 0 <= allowed <= 1:
        raise InputError(
            f"overlapping: n={n}, common={common}, allowed={allowed}; at least 2 words, a share above 0 and at most 1, "
            "and a share were asked."
        )
    _check(targets, "targets", ("messages", *_KEYS))
    texts, groups, answers, of = _texts(targets)
    phrases = Phrases(texts, groups, n=n, common=common, whole=~answers) if texts else None
    best: list[tuple[int, float, str] | None] = [None] * targets.num_rows

    def take(rows: Iterable[int], level: int, share: float, called: str) -> None:
        for i in rows:
            held = best[i]
            if held is None or (level, -share) < (held[0], -held[1]):
                best[i] = level, share, called

    wanted = [_places(targets[name].to_pylist()) for name in _KEYS]
    for table in _batches(training):
        _check(table, "training rows", ("id", "messages", *_KEYS))
        ids = table["id"].to_pylist()
        for level, name in enumerate(_KEYS):
            for key, called in zip(table[name].to_pylist(), ids, strict=True):
                take(wanted[level].get(key, ()), level, 1.0, called)
        if phrases is not None:
            pieces, rows = conversations(table, "both")
            found, row = phrases.held([normalised(piece) for piece in pieces], rows)
            for text in np.flatnonzero(found > allowed).tolist():
                take(of[text], 3 if answers[text] else 2, float(found[text]), ids[row[text]])
    return Overlap(
        np.array([held is not None for held in best], dtype=bool),
        [None if held is None else HOW[held[0]] for held in best],
        np.array([0.0 if held is None else held[1] for held in best]),
        [None if held is None else held[2] for held in best],
    )


def _batches(training: pa.Table | Iterable[pa.Table]) -> Iterator[pa.Table]:
    import pyarrow as pa

    for table in [training] if isinstance(training, pa.Table) else training:
        for start in range(0, table.num_rows, _ROWS):
            yield table.slice(start, _ROWS)


def _places(keys: list[bytes]) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return found


def _check(table: pa.Table, what: str, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(f"overlapping: the {what} lack {missing}; examples as curate.read gives them were asked.")


def _texts(targets: pa.Table) -> tuple[list[str], NDArray[np.int64], NDArray[np.bool_], list[list[int]]]:
    """Return what is looked for, normalised, each text once a task and kind.

    With its number of task and kind (what answers have in common is another wrapper than what questions have), whether
    it is an answer, and the targets that it is of.
    """
    tasks = targets["group"].to_pylist() if "group" in targets.column_names else [None] * targets.num_rows
    found: dict[tuple[str, bool, str], list[int]] = {}
    for i, (task, messages) in enumerate(zip(tasks, targets["messages"].to_pylist(), strict=True)):
        asked = "\n".join(m["content"] for m in messages if m["role"] == "user")
        said = next((m["content"] for m in reversed(messages) if m["role"] == "assistant"), "")
        for is_answer, text in ((False, normalised(asked)), (True, normalised(said))):
            if compact(text):
                found.setdefault((task or "", is_answer, text), []).append(i)
    numbers = {key: i for i, key in enumerate(sorted({key[:2] for key in found}))}
    groups = np.array([numbers[key[:2]] for key in found], dtype=np.int64)
    answers = np.array([key[1] for key in found], dtype=bool)
    return [key[2] for key in found], groups, answers, list(found.values())
