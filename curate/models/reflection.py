r"""Whether a model holds what it is shown for correct, asked once or twice.

    S = ½ (v · p₁ + v · p₂),        v = (A: 1, B: 0, C: ½)                                       in [0, 1]

Question 1 asks whether it is (A) correct, (B) incorrect, (C) unsure; question 2, where the prompt has one, whether the
model is really sure, and to choose again; without it S = v · p₁.  Chen & Mueller 2023, BSDetector §3.2, where the model
writes an explanation and a letter.  Here the letters are read from their probabilities, and question 2 follows each
letter that question 1 may get, with that letter's probability:

    p₂ = Σ_o p₁(o) · p(· | question 1, o, question 2)

which is what drawing the first letter gives on average, without the draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.exceptions import InputError
from curate.models.asking import Asker, Choice, Refused
from curate.models.prompting import Prompt

VALUES = {"A": 1.0, "B": 0.0, "C": 0.5}
"""What each option counts."""


@dataclass(frozen=True, slots=True)
class Reflection:
    """How sure a model is."""

    first: float
    """v · p₁."""
    second: float
    """v · p₂, or v · p₁ where there is one question."""
    mass: float
    """Probability of the three letters together at the beginning of the first answer."""
    tokens: int
    """That the model read."""

    @property
    def certainty(self) -> float:
        return (self.first + self.second) / 2


def check_reflection(prompt: Prompt, *, shown_as: str, caller: str) -> int:
    """Return how many questions a prompt asks; InputError unless it is one or two, each with the options A, B and C."""
    questions = [role for role, _ in prompt.turns].count("user")
    if set(prompt.options) != set(VALUES) or questions > 2:
        raise InputError(
            f"{caller}: the prompt {shown_as!r} has the options {list(prompt.options)} and {questions} questions; "
            "A (correct), B (incorrect), C (unsure) and one question or two were asked."
        )
    return questions


def reflect(
    asker: Asker, prompt: Prompt, texts: Sequence[Mapping[str, Any]], *, letter: str
) -> list[Reflection | Refused]:
    """Return how sure the model is of each, in order; or why it cannot be asked one of its questions.

    Parameters
    ----------
    texts : the parts of the prompt, but for ``letter``.
    letter : the part that stands for the letter that was chosen first.
    """
    options = list(prompt.options)
    until = next(i for i, (role, _) in enumerate(prompt.turns, 1) if role == "user")
    chosen = asker.options([prompt.fill(until, **its) for its in texts], options)
    follow: list[list[tuple[float, str]]] = [
        [(p, option) for p, option in zip(one.probabilities.tolist(), options, strict=True) if p > 0]
        if isinstance(one, Choice) and until < len(prompt.turns)
        else []
        for one in chosen
    ]
    again = asker.options(
        [
            prompt.fill(**{**its, letter: option})
            for its, letters in zip(texts, follow, strict=True)
            for _, option in letters
        ],
        options,
    )
    answers = iter(again)
    return [
        one if isinstance(one, Refused) else _reflection(one, [(p, next(answers)) for p, _ in letters], options)
        for one, letters in zip(chosen, follow, strict=True)
    ]


def _reflection(
    one: Choice, after: Sequence[tuple[float, Choice | Refused]], options: Sequence[str]
) -> Reflection | Refused:
    """Return what the answer to question 1 comes to with those to question 2, one for each letter and its p₁."""
    values = np.array([VALUES[option] for option in options])
    second, tokens = 0.0, one.tokens
    for p, answer in after:
        if isinstance(answer, Refused):
            return answer
        second += p * float(values @ answer.probabilities)
        tokens += answer.tokens
    first = float(values @ one.probabilities)
    return Reflection(first, second if after else first, one.mass, tokens)
