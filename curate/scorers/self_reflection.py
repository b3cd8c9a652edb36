r"""Self-reflection: whether the model itself holds the row's answer for correct, asked twice.

    S = ½ (v · p₁ + v · p₂),        v = (A: 1, B: 0, C: ½)                                       in [0, 1]

Turn 1 shows question and answer and asks whether it is (A) correct, (B) incorrect, (C) unsure; turn 2 asks whether the
model is really sure, and to choose again.  Chen & Mueller 2023, BSDetector §3.2, where the model writes an explanation
and a letter.  Here the letters are read from their probabilities, and turn 2 follows each letter that turn 1 may give,
with that letter's probability:

    p₂ = Σ_o p₁(o) · p(· | turn 1, o, turn 2)

which is what drawing the first letter gives on average, without the draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.base import Column
from curate.exceptions import InputError
from curate.models.asking import Choice, Read, Refused
from curate.models.prompting import Prompt
from curate.scorers.asking import AskingScorer, check_parts

if TYPE_CHECKING:
    import pyarrow as pa

VALUES = {"A": 1.0, "B": 0.0, "C": 0.5}
"""What each option counts."""


@dataclass(kw_only=True)
class SelfReflection(AskingScorer):
    """Certainty that the answer is correct: the mean over the turns of P(A) + ½ P(C).

    ``first`` and ``second`` are the turns' own; ``mass`` is the probability of the three letters together at the
    beginning of turn 1's answer, of all that the model could have begun with: small where it would rather write
    something else, and what it says of the letters then means little.

    Small models are hardly ever sure of anything, or of everything: look at the spread of the column before a filter
    leans on it.
    """

    name: ClassVar[str] = "self-reflection"
    reference: ClassVar[str] = (
        'Chen & Mueller 2023, "Quantifying Uncertainty in Answers from any Language Model" (BSDetector, '
        "arXiv:2308.16175)"
    )

    prompt: str = "self-reflection"
    """A built-in prompt by its word, or the path of a file of your own with the options A (correct), B (incorrect) and
    C (unsure); its parts: question, answer, and if you like conversation and tools.  A second user turn is the second
    question, with {first}, the letter chosen first, in the assistant turn before it; without one S = v · p₁."""

    read: Read = "probabilities"
    """How a letter is read: from the probabilities of its tokens, or, where a server gives none, from "samples"."""
    letters: int = 8
    """Answers that are drawn for each question with ``read: samples``."""
    seed: int = 0
    """Of these draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.letters < 1:
            raise InputError(f"self-reflection: letters={self.letters}; it must be at least 1.")

    @property
    def _read(self) -> Read:
        return self.read

    def _ways(self) -> dict[str, Any]:
        return {"read": self.read, "samples": self.letters, "seed": self.seed}

    def _file(self) -> Prompt:
        prompt = super()._file()
        questions = [role for role, _ in prompt.turns].count("user")
        if set(prompt.options) != set(VALUES) or questions > 2:
            raise InputError(
                f"self-reflection: the prompt {self.prompt!r} has the options {list(prompt.options)} and {questions} "
                "questions; A (correct), B (incorrect), C (unsure) and one question or two were asked."
            )
        check_parts(prompt, "question", "answer", *(["first"] if questions > 1 else []), caller=self.name)
        return prompt

    @property
    def tolerance(self) -> float:
        """Rounding; of drawn letters, a near-tie that falls the other way."""
        return super().tolerance if self.read == "probabilities" else 1.0

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("certainty", "probability", True),
            Column("first", "probability", True),
            Column("second", "probability", True),
            Column("mass", "probability", None),
            Column("tokens", "tokens", None, "int64"),
        )

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        assert self._asker is not None
        prompt = self._file()
        options = list(prompt.options)
        values = np.array([VALUES[option] for option in options])
        n = examples.num_rows
        texts, reasons = self._texts(examples)
        first, mass, tokens = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, dtype=np.int64)

        until = next(i for i, (role, _) in enumerate(prompt.turns, 1) if role == "user")
        asked = self._asker.options([prompt.fill(until, **its) for its in texts.values()], options)
        chosen: dict[int, Choice] = {}
        for i, found in zip(texts, asked, strict=True):
            if isinstance(found, Refused):
                reasons[i] = found.reason
                continue
            chosen[i] = found
            first[i], mass[i] = values @ found.probabilities, found.mass
            tokens[i] = found.tokens

        second = first.copy()
        if until < len(prompt.turns):
            follow = [(i, j) for i, found in chosen.items() for j in np.flatnonzero(found.probabilities).tolist()]
            again = self._asker.options([prompt.fill(**texts[i], first=options[j]) for i, j in follow], options)
            second[list(chosen)] = 0.0
            for (i, j), found in zip(follow, again, strict=True):
                if isinstance(found, Refused):
                    reasons[i] = found.reason
                    continue
                second[i] += chosen[i].probabilities[j] * (values @ found.probabilities)
                tokens[i] += found.tokens
        return {
            "certainty": (first + second) / 2,
            "first": first,
            "second": second,
            "mass": mass,
            "tokens": tokens,
            "reason": reasons,
        }
