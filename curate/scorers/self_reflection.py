"""Self-reflection: whether the model itself holds the row's answer for correct, asked twice.

Chen & Mueller 2023, BSDetector §3.2; the formula is that of ``curate.models.reflection``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.base import Column
from curate.models.asking import Refused
from curate.models.prompting import Prompt
from curate.models.reflection import check_reflection, reflect
from curate.scorers.asking import ChoosingScorer, check_parts

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class SelfReflection(ChoosingScorer):
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

    def _file(self) -> Prompt:
        prompt = super()._file()
        questions = check_reflection(prompt, shown_as=self.prompt, caller=self.name)
        check_parts(prompt, "question", "answer", *(["first"] if questions > 1 else []), caller=self.name)
        return prompt

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
        n = examples.num_rows
        texts, reasons = self._texts(examples)
        out = {column.name: np.full(n, np.nan) for column in self.columns}
        found = reflect(self._asker, self._file(), list(texts.values()), letter="first")
        for i, one in zip(texts, found, strict=True):
            if isinstance(one, Refused):
                reasons[i] = one.reason
            else:
                for key, values in out.items():
                    values[i] = getattr(one, key)
        return {**out, "reason": reasons}
