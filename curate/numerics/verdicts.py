"""What the evidence says: sentences for people, tables for programs, Markdown for pages.

Everything that chance could have made is "no difference".  A loss is called a loss, in the words of a win.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from curate.numerics.evidence import Compared, Evidence
from curate.numerics.paired import LEVEL

if TYPE_CHECKING:
    import polars as pl

ONE_SEED = "one seed: look, but no verdict"
ALONE = 0.01
"""The level at which a task counts where all tasks together show no difference."""
_NAMED = 3  # tasks that a sentence names; of more it tells the number


def verdict(found: Evidence, selection: str, baseline: str | None = None) -> str:
    """Return a plain sentence on a selection against a baseline (None: the first one), by loss, then by accuracy.

    All tasks together are better or worse at p ≤ 0.05.  A task alone is so at p ≤ 0.05 after Holm's correction over the
    tasks if all together are, else at p ≤ 0.01: of two selections that do not differ, about one comparison in twenty
    makes a claim of any kind (3% to 7% in simulations of 2 to 15 tasks), where two rules at 0.05 would make one in ten.

    "No difference" is that none was found, not that there is none: the interval says how large it could be.  With one
    seed, or without a task of two examples, the sentence says so and gives no verdict.

    Raises
    ------
    InputError
        If a name is unknown.
    """
    s, k = found.place(selection), found.baseline(baseline or found.baselines[0])
    if selection == found.baselines[k]:
        return "the baseline itself"
    said = [] if found.accuracy and not found.loss.examples.any() else [_sentence(found, found.loss, s, k)]
    if found.accuracy and found.accuracy.compared[s, k].any() and (_any_right(found, s, found.places[k]) or not said):
        said.append(f"accuracy: {_sentence(found, found.accuracy, s, k)}")
    return "; ".join(said) or f"no verdict: no answer is verified for both it and {found.baselines[k]}"


def short(found: Evidence, selection: str, baseline: str | None = None) -> str:
    """Return the gain over all tasks as a table's cell, "+0.080 ± 0.031 ▲".

    ▲ and ▼ stand where ``verdict`` says better or worse over all; what it says of single tasks is not in it.
    """
    s, k = found.place(selection), found.baseline(baseline or found.baselines[0])
    if selection == found.baselines[k]:
        return "–"
    of = found.loss if found.loss.examples.any() or found.accuracy is None else found.accuracy
    gain = of.gain[s, k, -1]
    mark = {"better": " ▲", "worse": " ▼"}.get(_word(gain, of.p[s, k, -1]), "")
    return _plus_minus(of, gain, of.half[s, k, -1], unit=False) + mark


def _sentence(found: Evidence, of: Compared, s: int, k: int) -> str:
    name, seeds = found.baselines[k], int(of.seeds[s, k])
    words = {task: word for task, word in zip(found.tasks, task_words(of, s, k), strict=True) if word is not None}
    gain, p = of.gain[s, k, -1], of.p[s, k, -1]
    if not seeds:
        return f"no verdict: at no seed have both it and {name} a result"
    if math.isnan(gain):
        return f"no verdict: no task has two examples that both it and {name} have a result on"
    if seeds == 1:
        return f"{ONE_SEED} ({_plus_minus(of, gain, math.nan)} against {name})"

    word = _word(gain, p)
    size = _plus_minus(of, gain, of.half[s, k, -1])
    missed = f", {seeds} of {found.seeds} seeds" if seeds < found.seeds else ""
    if len(words) == 1:
        return f"{_than(word, name)} on {next(iter(words))} ({size}{missed})"

    better, worse, neither = ([t for t, w in words.items() if w == wanted] for wanted in ("better", "worse", ""))
    if not better and not worse:
        alone = ", on no task alone" if word else ""
        return f"{_than(word, name)} over {len(words)} tasks ({size}{missed}){alone}"
    head, tasks = ("better", better) if better else ("worse", worse)
    which = "" if better or len(worse) > _NAMED else f": {_listed(worse)}"
    whole = "" if word == head else f", {word or 'no difference'}"
    out = f"{_than(head, name)} on {len(tasks)} of {len(words)} tasks{which} ({size} over all{whole}{missed})"
    if better and worse:
        out += f"; worse on {_listed(worse)}"
    if better and neither:
        out += f"; no better on {_listed(neither)}"
    return out


def task_words(of: Compared, s: int, k: int) -> list[str | None]:
    """Return "better", "worse" or "" (no difference) for each task, by ``verdict``'s rule; None where not judged."""
    level = LEVEL if of.p[s, k, -1] <= LEVEL else ALONE
    tasks = zip(of.gain[s, k, :-1], of.p_holm[s, k], strict=True)
    return [None if math.isnan(p) else _word(gain, p, level) for gain, p in tasks]


def _any_right(found: Evidence, *selections: int) -> bool:
    """Whether any answer of these selections is right."""
    assert found.accuracy is not None
    return bool(np.nansum(found.accuracy.mean[list(selections), :-1]) > 0)


def _word(gain: float, p: float, level: float = LEVEL) -> str:
    """Return "better" or "worse", or nothing where chance could be all."""
    return "" if not p <= level else "better" if gain > 0 else "worse"


def _than(word: str, name: str) -> str:
    return f"{word} than {name}" if word else f"no difference from {name}"


def _listed(tasks: Sequence[str]) -> str:
    if len(tasks) > _NAMED:
        return f"{len(tasks)} tasks"
    return " and ".join([", ".join(tasks[:-1]), tasks[-1]] if len(tasks) > 1 else tasks)


def _plus_minus(of: Compared, gain: float, half: float, unit: bool = True) -> str:
    """Return "+0.080 ± 0.031 nats per token": two digits of what is behind the ±, and as many of the gain."""
    scale, name = (1, "nats per token") if of.measure == "loss" else (100, "points")
    if math.isnan(gain):
        return "–"
    if math.isnan(half):
        out = _number(scale * gain, 3 if scale == 1 else 1, "+")
    else:
        decimals = min(6, max(0, 1 - math.floor(math.log10(scale * half)))) if half > 0 else 3
        out = f"{_number(scale * gain, decimals, '+')} ± {scale * half:.{decimals}f}"
    return f"{out} {name}" if unit else out


def _number(value: float, decimals: int, sign: str = "") -> str:
    """Return a number in decimals, with the sign that is printed in text; a dash for NaN, and no sign for a zero."""
    if math.isnan(value):
        return "–"
    out = f"{value:{sign}.{decimals}f}"
    return (out if float(out) else out.lstrip("+-")).replace("-", "−")


def table(found: Evidence, baseline: str | None = None) -> pl.DataFrame:
    """Return one row a selection, in their order; null where there is no number.

    Columns: selection, seeds, loss and its sd over seeds (nats per token, mean over tasks); against the baseline
    (None: the first): gain, half (of the 95% interval), p, won, worst_task, worst_gain, seeds_compared; accuracy,
    accuracy_sd, accuracy_gain, accuracy_half, accuracy_p (0 to 1); forgetting, forgetting_half; verdict.
    """
    import polars as pl

    k = found.baseline(baseline or found.baselines[0])
    rows = []
    for s, name in enumerate(found.selections):
        loss, right = found.loss, found.accuracy
        worst = int(loss.worst[s, k])
        rows.append(
            {
                "selection": name,
                "seeds": found.seeds - sum(run == name for run, _ in found.missing),
                "loss": loss.mean[s, -1],
                "loss_sd": loss.sd[s, -1],
                "baseline": found.baselines[k],
                "seeds_compared": int(loss.seeds[s, k]),
                "gain": loss.gain[s, k, -1],
                "half": loss.half[s, k, -1],
                "p": loss.p[s, k, -1],
                "won": loss.won[s, k],
                "worst_task": found.tasks[worst] if worst >= 0 else None,
                "worst_gain": loss.gain[s, k, worst] if worst >= 0 else None,
                "accuracy": right.mean[s, -1] if right else None,
                "accuracy_sd": right.sd[s, -1] if right else None,
                "accuracy_gain": right.gain[s, k, -1] if right else None,
                "accuracy_half": right.half[s, k, -1] if right else None,
                "accuracy_p": right.p[s, k, -1] if right else None,
                "forgetting": found.forgetting[s],
                "forgetting_half": found.forgetting_half[s],
                "verdict": verdict(found, name, found.baselines[k]),
            }
        )
    text = {"selection": pl.String, "baseline": pl.String, "worst_task": pl.String, "verdict": pl.String}
    kinds = {name: text.get(name, pl.Int64 if name.startswith("seeds") else pl.Float64) for name in rows[0]}
    return pl.DataFrame(rows, schema=kinds, orient="row").fill_nan(None)


def task_table(found: Evidence) -> pl.DataFrame:
    """Return one row a measure, selection, baseline and task: what ``Compared`` holds of each; null without a number.

    Columns: measure ("loss", "accuracy"), selection, baseline, task, examples, compared (of them, in the comparison),
    mean, sd, gain, half, p, p_holm, word ("better", "worse", "no difference"; null where it is not judged).
    """
    import polars as pl

    rows = []
    for of in [found.loss, found.accuracy] if found.accuracy else [found.loss]:
        for s, k in itertools.product(range(len(found.selections)), range(len(found.baselines))):
            for t, word in enumerate(task_words(of, s, k)):
                rows.append(
                    {
                        "measure": of.measure,
                        "selection": found.selections[s],
                        "baseline": found.baselines[k],
                        "task": found.tasks[t],
                        "examples": int(of.examples[s, t]),
                        "compared": int(of.compared[s, k, t]),
                        "mean": of.mean[s, t],
                        "sd": of.sd[s, t],
                        "gain": of.gain[s, k, t],
                        "half": of.half[s, k, t],
                        "p": of.p[s, k, t],
                        "p_holm": of.p_holm[s, k, t],
                        "word": "no difference" if word == "" else word,
                    }
                )
    text = ("measure", "selection", "baseline", "task", "word")
    whole = ("examples", "compared")
    kinds = {name: pl.String if name in text else pl.Int64 if name in whole else pl.Float64 for name in rows[0]}
    return pl.DataFrame(rows, schema=kinds, orient="row").fill_nan(None)


def markdown(found: Evidence, baseline: str | None = None, *, sentences: bool = True) -> str:
    """Return the two tables for a page, best loss first, with a verdict against every baseline and what was left out.

    ``sentences=False`` leaves the verdicts out, for a page that begins with them.

    The first table has a line for each selection; the second has its gain on each task, marked ▲ and ▼ where it is
    better or worse by ``verdict``'s rule.
    """
    k = found.baseline(baseline or found.baselines[0])
    name, loss, right = found.baselines[k], found.loss, found.accuracy
    order = sorted(range(len(found.selections)), key=lambda s: (math.isnan(loss.mean[s, -1]), loss.mean[s, -1]))
    columns: list[tuple[str, Callable[[int], str]]] = [
        ("selection", lambda s: found.selections[s]),
        ("loss (sd over seeds)", lambda s: f"{_number(loss.mean[s, -1], 3)} ({_number(loss.sd[s, -1], 3)})"),
        (f"gain on {name}", lambda s: _plus_minus(loss, loss.gain[s, k, -1], loss.half[s, k, -1], unit=False)),
        ("cells won", lambda s: "–" if math.isnan(loss.won[s, k]) else f"{loss.won[s, k]:.0%}"),
        ("worst task", lambda s: _worst(found, s, k)),
    ]
    if right is not None and _any_right(found, *range(len(found.selections))):
        columns += [
            ("accuracy", lambda s: "–" if math.isnan(right.mean[s, -1]) else f"{right.mean[s, -1]:.1%}"),
            ("its gain, points", lambda s: _plus_minus(right, right.gain[s, k, -1], right.half[s, k, -1], unit=False)),
        ]
    if not all(map(math.isnan, found.forgetting)):
        columns.append(
            ("forgetting", lambda s: _plus_minus(loss, found.forgetting[s], found.forgetting_half[s], False))
        )
    parts = [_rows([title for title, _ in columns], [[cell(s) for _, cell in columns] for s in order])]
    verdicts = [
        f"- **{_cell(found.selections[s])}**: {_cell(verdict(found, found.selections[s], other))}."
        for s in order
        for other in found.baselines
        if found.selections[s] not in found.baselines
    ]
    if sentences:
        parts.append("\n".join(verdicts))
    own = [[found.selections[s], *_tasks(loss, s, k)] for s in order]
    parts.append(_rows([f"gain on {name}", *found.tasks], own))
    parts.append("\n".join(f"- {_cell(note)}" for note in found.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _worst(found: Evidence, s: int, k: int) -> str:
    worst = int(found.loss.worst[s, k])
    return f"{found.tasks[worst]} {_number(found.loss.gain[s, k, worst], 3, '+')}" if worst >= 0 else "–"


def _tasks(of: Compared, s: int, k: int) -> list[str]:
    marks = [{"better": " ▲", "worse": " ▼"}.get(word or "", "") for word in task_words(of, s, k)]
    return [_plus_minus(of, of.gain[s, k, t], of.half[s, k, t], False) + mark for t, mark in enumerate(marks)]


def _rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
