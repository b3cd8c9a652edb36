r"""Which of two answers is better, asked in both orders.

    p(a) = ½ (p₁(A) + p₂(B)),   p(b) = ½ (p₁(B) + p₂(A)),   p(tie) = ½ (p₁(C) + p₂(C)),   p(neither) likewise of D

In order 1 answer a stands first and is called A, in order 2 it stands second and is called B; C and D stay what they
are.  A judge that goes by the place or by the letter contradicts itself between the two; a verdict counts only where
both orders give the same (Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", §3.4), and
``position`` says how far they differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from curate.exceptions import InputError
from curate.models.asking import Asker, Choice, Refused
from curate.models.prompting import Prompt, load_prompt

Winner = Literal["a", "b", "tie", "neither"]
_WINNERS: tuple[Winner, ...] = ("a", "b", "tie", "neither")
"""What the options A, B, C and D stand for in order 1."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A comparison of two answers; probabilities are means over both orders and sum to 1."""

    a: float
    b: float
    tie: float
    neither: float
    """That neither is right; 0 where the prompt has no such option."""
    winner: Winner | None
    """The likeliest option in both orders; None where the orders disagree, or two are equally likely in one."""
    position: float
    """½ (p₁(A) + p₂(A)) − ½ (p₁(B) + p₂(B)): what standing first gains, in [−1, 1]; 0 for a fair judge."""
    mass: float
    """Probability that the model would name an option at all; mean of both orders."""
    tokens: int
    """That the model read."""

    @property
    def agreed(self) -> bool:
        """Whether both orders give the same verdict."""
        return self.winner is not None


def compare(
    asker: Asker,
    questions: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    *,
    references: Sequence[str | None] | None = None,
    contexts: Sequence[Mapping[str, Any]] | None = None,
    prompt: Prompt | None = None,
) -> list[Verdict | Refused]:
    """Return the verdict on answers ``a`` and ``b`` to each question, in order; or why there is none.

    Two answers of the same text are not asked about.

    Parameters
    ----------
    references : right answers to show, where there are any.
    contexts : what else the prompt is to show of each, by the names of its parts: conversation, tools, reference.
    prompt : with the parts question, first, second, optionally reference, and the options A (the first is better), B
        (the second), C (neither is better) and optionally D (neither is right); by default the built-in "verdict".

    Raises
    ------
    InputError
        If the lengths differ, or the prompt is no such prompt.
    """
    prompt = prompt or load_prompt("verdict")
    check_comparison(prompt, caller="compare")
    references = [None] * len(questions) if references is None else references
    contexts = [{}] * len(questions) if contexts is None else contexts
    if not len(questions) == len(a) == len(b) == len(references) == len(contexts):
        raise InputError(
            f"compare: {len(questions)} questions, {len(a)} and {len(b)} answers, {len(references)} references, "
            f"{len(contexts)} contexts; as many of each were asked."
        )
    out: list[Verdict | Refused] = [Refused("the two answers are the same text")] * len(questions)
    differing = [i for i in range(len(questions)) if a[i] != b[i]]
    conversations = [
        prompt.fill(**{"reference": references[i], **contexts[i], "question": questions[i], "first": x, "second": y})
        for i in differing
        for x, y in ((a[i], b[i]), (b[i], a[i]))
    ]
    found = asker.options(conversations, list(prompt.options))
    for place, i in enumerate(differing):
        out[i] = _verdict(found[2 * place], found[2 * place + 1])
    return out


def check_comparison(prompt: Prompt, *, caller: str) -> None:
    """Raise InputError unless a prompt shows a question and two answers, and has the options A, B, C and perhaps D."""
    shown = {"question", "first", "second"} <= set(prompt.parts)
    if not shown or list(prompt.options) not in (["A", "B", "C"], ["A", "B", "C", "D"]):
        raise InputError(
            f"{caller}: the prompt {prompt.name!r} has the parts {list(prompt.parts)} and the options "
            f"{list(prompt.options)}; question, first and second were asked, and A, B and C, or A to D."
        )


def _verdict(one: Choice | Refused, two: Choice | Refused) -> Verdict | Refused:
    """Return what both orders say: in ``one`` answer a stands first, in ``two`` answer b."""
    if isinstance(one, Refused):
        return one
    if isinstance(two, Refused):
        return two
    swapped = two.probabilities[[1, 0, *range(2, two.probabilities.size)]]
    orders = np.array([one.probabilities, swapped])  # (orders, (a, b, tie, neither where it is an option))
    a, b, tie, neither = [*orders.mean(axis=0).tolist(), 0.0][:4]
    tops = [np.flatnonzero(p == p.max()) for p in orders]
    agreed = all(top.size == 1 for top in tops) and tops[0][0] == tops[1][0]
    first = (one.probabilities[0] + two.probabilities[0]) / 2
    second = (one.probabilities[1] + two.probabilities[1]) / 2
    return Verdict(
        a=a,
        b=b,
        tie=tie,
        neither=neither,
        winner=_WINNERS[int(tops[0][0])] if agreed else None,
        position=float(first - second),
        mass=(one.mass + two.mass) / 2,
        tokens=one.tokens + two.tokens,
    )
