"""Which selection trains better: every selection against every baseline, task by task and over all tasks.

What is compared was made equal before: one proxy, one list of held-out examples, as many rows or tokens for each
selection, and seeds that pair (seed r is the same order and the same initial values for all).  The interval of each
difference and its p-value are those of ``curate.numerics.paired``; words and tables are ``curate.numerics.verdicts``.

==============  ======================================================================================================
loss            of a task: Σ nll / Σ tokens over its examples, nats per token; mean over seeds, sd over seeds
accuracy        of a task: share of right answers among those that were verified; mean and sd likewise
over all tasks  the mean over tasks (macro), in which a task of many examples counts as one; by seed, then over seeds
gain            baseline's loss - selection's, or selection's accuracy - baseline's: positive is better, in both
cells won       share of task × seed in which the gain is positive; a gain of exactly 0 is half won
worst task      the one with the lowest gain
forgetting      loss - that of zero-shot (nothing trained), mean over the tasks that the selection was not made for
==============  ======================================================================================================

Nothing is filled in.  A run without a single result (diverged, or not made) is left out of its selection and named.  An
example without a finite result in any run of two selections is left out of their comparison and counted.  A task with
one such example shows its gain, has no interval, and is no part of what is said over all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.paired import Differences, Floats, differences, holm, interval


@dataclass(frozen=True)
class Results:
    """What S selections, trained with R seeds each, did on N held-out examples of T tasks.

    ``InputError`` where the parts do not fit together.
    """

    selections: Sequence[str]
    tasks: Sequence[str]
    task: NDArray[np.int64]
    """(N,) the place in ``tasks``."""
    tokens: Floats
    """(N,) scored tokens of each example; above 0 wherever there is a loss."""
    nll: Floats
    """(S, R, N) summed negative log-likelihood, nats; NaN without a result.  What takes no training (zero-shot) is
    repeated over seeds."""
    correct: Floats | None = None
    """(S, R, N) 1 or 0; NaN where the answer was not verified.  None: nowhere."""

    def __post_init__(self) -> None:
        s, n = len(self.selections), len(self.task)
        for what, names in (("selections", self.selections), ("tasks", self.tasks)):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            if twice or not names:
                found = f"{twice[0]!r} twice" if twice else "none"
                raise InputError(f"Results: {what} of different names were asked, {found} was found.")
        object.__setattr__(self, "task", np.asarray(self.task, dtype=np.int64))
        object.__setattr__(self, "tokens", np.asarray(self.tokens, dtype=np.float64))
        object.__setattr__(self, "nll", np.asarray(self.nll, dtype=np.float64))
        if self.correct is not None:
            object.__setattr__(self, "correct", np.asarray(self.correct, dtype=np.float64))
        if self.nll.ndim != 3 or self.nll.shape[::2] != (s, n) or not self.nll.shape[1]:
            raise InputError(
                f"Results: nll of shape ({s} selections, seeds, {n} examples) was asked, {self.nll.shape} was found."
            )
        if self.tokens.shape != (n,):
            raise InputError(f"Results: tokens of shape ({n},) were asked, {self.tokens.shape} was found.")
        if self.correct is not None and self.correct.shape != self.nll.shape:
            raise InputError(f"Results: correct of shape {self.nll.shape} was asked, {self.correct.shape} was found.")
        if n and (self.task.min() < 0 or self.task.max() >= len(self.tasks)):
            raise InputError(
                f"Results: task codes from 0 to {len(self.tasks) - 1} were asked, {self.task.min()} to "
                f"{self.task.max()} were found."
            )
        empty = ~(self.tokens > 0) & np.isfinite(self.nll).any(axis=(0, 1))
        if empty.any():
            i = int(np.flatnonzero(empty)[0])
            raise InputError(
                f"Results: {int(empty.sum())} examples have a loss and no scored token, first example {i} "
                f"({self.tokens[i]:g} tokens); give NaN as the loss of an example without tokens."
            )
        if self.correct is not None:
            other = ~np.isnan(self.correct) & (self.correct != 0) & (self.correct != 1)
            if other.any():
                raise InputError(f"Results: correct is 1, 0 or NaN, {self.correct[other][0]:g} was found.")

    @cached_property
    def ran(self) -> NDArray[np.bool_]:
        """(S, R) True for a run with a loss at all; where nothing has one, with a verified answer."""
        of = self.nll if np.isfinite(self.nll).any() or self.correct is None else self.correct
        return np.any(np.isfinite(of), axis=2)


@dataclass(frozen=True)
class Compared:
    """One measure of every selection against every baseline: S selections, K baselines, T tasks and, last, all.

    A baseline is not compared with itself: NaN, 0 and -1.
    """

    measure: Literal["loss", "accuracy"]
    mean: Floats
    """(S, T+1)"""
    sd: Floats
    """(S, T+1) over seeds; NaN with one."""
    examples: NDArray[np.int64]
    """(S, T) with a result in each run."""
    gain: Floats
    """(S, K, T+1)"""
    half: Floats
    """(S, K, T+1) half the width of the 95% interval; NaN where there is none."""
    p: Floats
    """(S, K, T+1)"""
    p_holm: Floats
    """(S, K, T) adjusted for the tasks that are judged."""
    compared: NDArray[np.int64]
    """(S, K, T) examples of the comparison."""
    seeds: NDArray[np.int64]
    """(S, K) seeds of the comparison."""
    won: Floats
    """(S, K) share of cells."""
    worst: NDArray[np.int64]
    """(S, K) place of the task with the lowest gain, the first of equals; -1 without any."""


@dataclass(frozen=True)
class Evidence:
    """What was found.  ``curate.numerics.verdicts`` puts it into words and tables."""

    selections: tuple[str, ...]
    tasks: tuple[str, ...]
    baselines: tuple[str, ...]
    loss: Compared
    accuracy: Compared | None
    forgetting: Floats
    """(S,) nats per token, positive is forgotten; NaN without zero-shot, and for a selection made for every task."""
    forgetting_half: Floats
    """(S,) half the width of its 95% interval."""
    seeds: int
    """R, with those that are missing."""
    missing: tuple[tuple[str, int], ...]
    """Runs without a single result: selection and seed (its place)."""
    notes: tuple[str, ...]
    """What was left out, or tells nothing, in words."""

    def place(self, selection: str) -> int:
        return _place(selection, self.selections, "selections")

    @property
    def places(self) -> list[int]:
        """Of each baseline its place among the selections."""
        return [self.selections.index(name) for name in self.baselines]

    def baseline(self, name: str) -> int:
        return _place(name, self.baselines, "baselines")


def evidence(
    results: Results,
    *,
    baselines: Sequence[str],
    zero_shot: str | None = None,
    made_for: Mapping[str, Sequence[str]] | None = None,
) -> Evidence:
    """Compare every selection with every baseline.

    Parameters
    ----------
    baselines : names among the selections; the first is the one that the tables hold the others against.
    zero_shot : the selection that is the untrained model, for forgetting.
    made_for : the tasks that a selection was made for; one that is not named was made for none.

    Notes
    -----
    O(S·K·R·N) time, O(R·N) memory beside the results.  The same results in another order of selections, seeds, tasks or
    examples give the same numbers, to rounding.
    """
    names, tasks = tuple(results.selections), tuple(results.tasks)
    if not baselines:
        raise InputError(f"evidence: a baseline was asked, none was found; name one of {', '.join(names)}.")
    against = [_place(name, names, "selections") for name in baselines]
    missing = tuple((names[s], int(r)) for s, r in np.argwhere(~results.ran))
    loss = _compared("loss", results, against, results.nll, results.tokens)
    accuracy = None
    if results.correct is not None and not np.isnan(results.correct).all():
        accuracy = _compared("accuracy", results, against, results.correct, np.ones(len(results.task)))
    forgetting, forgetting_half = np.full(len(names), np.nan), np.full(len(names), np.nan)
    made = {name: {_place(task, tasks, "tasks") for task in its} for name, its in (made_for or {}).items()}
    for name in made:
        _place(name, names, "selections")
    if zero_shot is not None:
        zero = _place(zero_shot, names, "selections")
        for s, name in enumerate(names):
            if s == zero:
                continue
            found = _pair(results, results.nll, results.tokens, s, zero, sign=-1)
            others = np.array([t not in made.get(name, ()) for t in range(len(tasks))])
            change = interval(found, _mean_over((found.examples >= 2) & others)[None, :])
            forgetting[s], forgetting_half[s] = 0 - change.gain[0], change.half[0]
    return Evidence(
        names,
        tasks,
        tuple(baselines),
        loss,
        accuracy,
        forgetting,
        forgetting_half,
        results.nll.shape[1],
        missing,
        (*_notes(names, tasks, results, loss, missing), *_none_right(accuracy)),
    )


def _none_right(accuracy: Compared | None) -> tuple[str, ...]:
    if accuracy is None or np.nansum(accuracy.mean) > 0:
        return ()
    return ("no selection has a single right answer: accuracy tells nothing here",)


def _compared(measure: Any, results: Results, against: Sequence[int], values: Floats, weights: Floats) -> Compared:
    s, k, t = len(results.selections), len(against), len(results.tasks)
    mean, sd = np.full((s, t + 1), np.nan), np.full((s, t + 1), np.nan)
    examples = np.zeros((s, t), dtype=np.int64)
    gain, half, p = (np.full((s, k, t + 1), np.nan) for _ in range(3))
    p_holm = np.full((s, k, t), np.nan)
    compared, seeds = np.zeros((s, k, t), dtype=np.int64), np.zeros((s, k), dtype=np.int64)
    won, worst = np.full((s, k), np.nan), np.full((s, k), -1, dtype=np.int64)
    for i in range(s):
        own = _pair(results, values, weights, i, None, sign=1)
        examples[i] = own.examples
        by_seed = np.column_stack([own.by_seed, _macro(own)])
        if len(by_seed):
            mean[i] = by_seed.mean(axis=0)
        if len(by_seed) > 1:
            sd[i] = by_seed.std(axis=0, ddof=1)
        for j, other in enumerate(against):
            if i == other:
                continue
            found = _pair(results, values, weights, i, other, sign=-1 if measure == "loss" else 1)
            over = np.vstack([np.eye(t), _mean_over(found.examples >= 2)])
            chance = interval(found, over)
            gain[i, j], half[i, j], p[i, j] = chance.gain, chance.half, chance.p
            p_holm[i, j] = holm(chance.p[:t])
            compared[i, j], seeds[i, j] = found.examples, len(found.by_seed)
            cells = found.by_seed[:, found.examples > 0]
            if cells.size:
                won[i, j] = ((cells > 0) + 0.5 * (cells == 0)).mean()
                worst[i, j] = np.nanargmin(chance.gain[:t])
    return Compared(measure, mean, sd, examples, gain, half, p, p_holm, compared, seeds, won, worst)


def _pair(results: Results, values: Floats, weights: Floats, s: int, other: int | None, *, sign: int) -> Differences:
    """Return the differences of a selection and another (None: of nothing) on the runs and examples that both have."""
    both = [s] if other is None else [s, other]
    runs = (results.ran[both] & np.isfinite(values[both]).any(axis=2)).all(axis=0)
    of_runs = values[both][:, runs]  # (1 or 2, R, N)
    kept = np.isfinite(of_runs).all(axis=(0, 1)) & bool(runs.any())
    x = of_runs[0][:, kept] if other is None else sign * (of_runs[0][:, kept] - of_runs[1][:, kept])
    binary = values is results.correct
    return differences(x, weights[kept], results.task[kept], len(results.tasks), binary=binary)


def _mean_over(tasks: NDArray[np.bool_]) -> Floats:
    """Return the weights of the mean over these tasks: (T,), 0 throughout for none."""
    return tasks / max(1, int(tasks.sum()))


def _macro(found: Differences) -> Floats:
    """Return the mean over the tasks that are judged, of each seed: (R,); NaN without such a task."""
    judged = found.examples >= 2
    return found.by_seed[:, judged].mean(axis=1) if judged.any() else np.full(len(found.by_seed), np.nan)


def _place(name: str, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise InputError(f"evidence: {name!r} was asked, which is none of the {what}: {', '.join(names)}.")
    return list(names).index(name)


def _notes(
    names: Sequence[str], tasks: Sequence[str], results: Results, loss: Compared, missing: Sequence[tuple[str, int]]
) -> tuple[str, ...]:
    runs = results.nll.shape[1]
    notes = [
        f"{name}: run {seed + 1} of {runs} has no result (diverged, or not made) and is left out"
        for name, seed in missing
    ]
    size = np.bincount(results.task, minlength=len(tasks))
    for t, task in enumerate(tasks):
        most = int(loss.examples[:, t].max())
        if most < size[t]:
            notes.append(f"{task}: {size[t] - most} of {size[t]} examples are without a loss in every selection")
        for s, name in enumerate(names):
            less = most - loss.examples[s, t]
            if less and results.ran[s].any():
                notes.append(f"{name}: {less} of {most} examples of {task} without a loss in some run, left out")
        if most < 2:
            notes.append(f"{task}: {'no example' if not most else 'one example'}, shown but not judged")
    return tuple(notes)
