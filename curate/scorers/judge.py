r"""A rating by a rubric, read from the probabilities of the points of its scale.

    rating(x, y) = Σ_k k · p(k | x, y),        p = softmax over the points' tokens, mean of both orders of the scale

The expectation over the points is that of DEITA's scorers (Liu et al. 2024, "What Makes Good Data for Alignment?",
§2.2, Σ k · softmax); here any model that follows instructions is asked, by a rubric that is a file.  Asking with the
scale listed upwards and downwards takes out a judge's liking for what stands first (Wang et al. 2023, "Large Language
Models are not Fair Evaluators", does so for the order of two answers); the difference is the column ``order_gap``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Column
from curate.exceptions import InputError
from curate.models.asking import Choice, Refused
from curate.models.prompting import Prompt
from curate.scorers.asking import CONTEXT, ChoosingScorer, parts, reference_part

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

PARTS = ("question", "answer", *CONTEXT, "reference")
"""What a rubric may have a place for."""

_WATCHED = 50
"""Rows after which a judge that always says the same is told of."""


@dataclass(kw_only=True)
class Judge(ChoosingScorer):
    """The expected rating of an answer by a model, on the scale of a rubric.

    ==============  ====================================================================================
    rating          Σ_k k · p(k)
    top             the likeliest point; the lower one of two that are alike
    margin          its probability less the next one's
    entropy         −Σ_k p(k) log p(k)
    mass            the probability that the model would name a point at all; of samples the share that did
    tokens          that the model read
    order_gap       with ``orders: both``: the rating with the scale listed upwards, less that downwards
    ==============  ====================================================================================

    A row is null, with a reason, where nothing was asked, no turn is to be judged, its prompt is too long, the rubric
    has no place for what came before the question, its reference is missing, or (``read: samples``) no answer could be
    read as a point.  Thinking is not shown: what a user would see is judged.
    """

    name: ClassVar[str] = "judge"
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools", "extra")
    reference: ClassVar[str] = (
        'Liu et al. 2024, "What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in '
        'Instruction Tuning" (DEITA)'
    )

    prompt: str = "quality"
    """A rubric: quality, complexity, or the path of a file of your own (./mine.md) whose options are whole numbers."""
    turns: Literal["all", "last"] = "last"
    """Which assistant turns are judged, each with what came before it; of all, the row has the mean.  Those marked
    train=false never are."""
    orders: Literal["both", "listed"] = "both"
    """Ask with the scale listed in both directions; or as the file lists it, at half the cost, and a judge's liking for
    what stands first stays in."""
    reference_column: str | None = None
    """The column of the source files that holds a reference answer, which the judge is shown."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._watch = _Watch()

    @property
    def columns(self) -> tuple[Column, ...]:
        own = (
            Column("rating", "points", True),
            Column("top", "points", True),
            Column("margin", "probability"),
            Column("entropy", "nats"),
            Column("mass", "probability"),
            Column("tokens", "tokens", None, "int64"),
        )
        return (*own, Column("order_gap", "points")) if self.orders == "both" else own

    def _file(self) -> Prompt:
        """Return the rubric; InputError unless it has a scale of whole numbers, a question, and parts of a row."""
        prompt = super()._file()
        shown = f"judge: the prompt {self.prompt!r}"
        if not prompt.options or not all(option.isdigit() for option in prompt.options):
            found = list(prompt.options) or "none"
            raise InputError(f"{shown} has the options {found}; a scale was asked: {{1: poor, 2: fair, 3: good}}.")
        if unknown := [part for part in prompt.parts if part not in PARTS]:
            raise InputError(f"{shown} has parts {unknown}; a rubric may have {', '.join(PARTS)}.")
        if "question" not in prompt.parts:
            raise InputError(f"{shown} has no {{question}}, without which there is nothing to judge.")
        if needed := [part for part in CONTEXT if prompt.parts.get(part)]:
            raise InputError(f"{shown} needs {needed}, which not every row has; write {{{needed[0]}?}}.")
        if self.reference_column is None and prompt.parts.get("reference"):
            raise InputError(f"{shown} needs a reference; name its column: reference_column.")
        if self.reference_column is not None and "reference" not in prompt.parts:
            raise InputError(f"{shown} has no {{reference}}; leave reference_column out, or take another prompt.")
        return prompt

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        assert self._asker is not None
        prompt, n = self._file(), examples.num_rows
        points = np.array([int(option) for option in prompt.options], dtype=np.float64)
        reasons, asked = self._asked(examples, prompt)
        orders = (False, True) if self.orders == "both" else (False,)
        found = self._asker.options(
            [prompt.fill(reverse=reverse, **its) for _, its in asked for reverse in orders], list(prompt.options)
        )
        judged: dict[int, list[Choice]] = {}  # row → (turns × orders)
        for place, answer in enumerate(found):
            row = asked[place // len(orders)][0]
            if isinstance(answer, Refused):
                reasons[row] = reasons[row] or answer.reason
            else:
                judged.setdefault(row, []).append(answer)

        out = {column.name: np.full(n, np.nan) for column in self.columns}
        tokens = np.zeros(n, dtype=np.int64)
        for row, choices in judged.items():
            if reasons[row] is None:
                each = np.array([choice.probabilities for choice in choices])
                each = each.reshape(-1, len(orders), points.size).mean(axis=0)  # (orders, points)
                for key, value in _columns(each, points).items():
                    out[key][row] = value
                out["mass"][row] = np.mean([choice.mass for choice in choices])
                tokens[row] = sum(choice.tokens for choice in choices)
                self._watch.see(each, points)
        return {**out, "tokens": tokens, "reason": reasons}

    def _asked(
        self, examples: pa.Table, prompt: Prompt
    ) -> tuple[list[str | None], list[tuple[int, dict[str, str | None]]]]:
        """Return why a row cannot be asked about, and (row, parts of the prompt) of each turn that is judged."""
        reasons: list[str | None] = []
        asked: list[tuple[int, dict[str, str | None]]] = []
        columns = (examples[key].to_pylist() for key in self.reads)
        for row, (messages, tools, extra) in enumerate(zip(*columns, strict=True)):
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            turns = [i for i in (turns if self.turns == "all" else turns[-1:]) if messages[i].get("train") is not False]
            given, reason = reference_part(extra, self.reference_column)
            reason = reason if turns else "no assistant turn to judge"
            found: list[dict[str, str | None]] = []
            for turn in turns:
                its = parts(messages[: turn + 1], tools)
                if isinstance(its, str):
                    reason = reason or its
                    continue
                if homeless := [part for part in CONTEXT if its[part] and part not in prompt.parts]:
                    reason = reason or f"the prompt {prompt.name!r} has no place for {homeless[0]}, which the row has"
                found.append({part: text for part, text in (its | given).items() if part in prompt.parts})
            reasons.append(reason)
            asked += [(row, its) for its in found if reason is None]
        return reasons, asked


def _columns(each: NDArray[np.float64], points: NDArray[np.float64]) -> dict[str, float]:
    """Return a row's columns from the probabilities of the points in each order (orders, points)."""
    p = each.mean(axis=0)
    second, first = np.sort(p)[-2:]
    out = {
        "rating": float(p @ points),
        "top": float(points[p == p.max()].min()),
        "margin": float(first - second),
        "entropy": float(-(p[p > 0] * np.log(p[p > 0])).sum()),
    }
    if len(each) == 2:
        gap = float((each[0] - each[1]) @ points)
        out["order_gap"] = gap if points[0] < points[-1] else -gap
    return out


class _Watch:
    """Tells, once, of a judge that says the same of every row, or that goes by the order of the scale."""

    def __init__(self) -> None:
        self._tops: Counter[float] = Counter()
        self._by_order = 0
        self._told = False

    def see(self, each: NDArray[np.float64], points: NDArray[np.float64]) -> None:
        """Take in a row's probabilities (orders, points)."""
        self._tops[float(points[each.mean(axis=0).argmax()])] += 1
        self._by_order += len(set(each.argmax(axis=1).tolist())) > 1
        rows = self._tops.total()
        if self._told or rows < _WATCHED:
            return
        self._told = True
        (top, times), *_ = self._tops.most_common(1)
        if self._by_order > 0.9 * rows:
            log.warning(
                "judge: the likeliest point changes with the order of the scale in %d of the first %d rows; this model "
                "goes by the order, and its ratings say little.",
                self._by_order,
                rows,
            )
        elif times == rows:
            log.warning(
                "judge: the likeliest point is %g in all of the first %d rows; look at the spread of the ratings "
                "before anything leans on them.",
                top,
                rows,
            )
