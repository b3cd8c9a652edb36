r"""Whether a candidate says the same as the row's answer, by a model.

    equivalent = ½ (p₁(A) + p₂(A)),        A: they say the same,  B: they do not                 in [0, 1]

with the row's answer shown first in order 1 and second in order 2.  A check for S3FT (Gupta et al. 2025, §3), where a
heuristic or a model says whether the model's own answer is right by the gold one; here the probability is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.base import Column
from curate.exceptions import InputError
from curate.models.asking import Refused
from curate.models.prompting import Prompt
from curate.scorers._pairs import PairScorer
from curate.scorers.asking import check_parts

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class Equivalence(PairScorer):
    """The probability that the candidate and the row's answer come to the same, mean of both orders.

    ``order_gap`` is that probability with the row's answer shown first, less that with the candidate first; ``mass``
    the probability that the model would name an option at all.  Two answers of the same text are not asked about: they
    are equivalent with 1, from 0 tokens, and a mass of 1.

    The letters do not change places with the answers, so that a model which always says A finds all answers equivalent.
    There is a warning where all of the first 50 rows are, or none.

    A row is null where there is no candidate, where it or the answer is empty or the candidate was cut, where nothing
    was asked, where a prompt is too long or has no place for what the row has, and (``read: samples``) where no answer
    could be read as an option.
    """

    name: ClassVar[str] = "equivalence"
    reference: ClassVar[str] = (
        'Gupta et al. 2025, "Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models" '
        "(S3FT, arXiv:2502.08130)"
    )

    prompt: str = "equivalence"
    """A built-in prompt by its word, or the path of a file of your own with the options A (they say the same) and B
    (they do not); its parts: question, first, second, and if you like conversation and tools."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("equivalent", "probability", True),
            Column("order_gap", "probability"),
            Column("mass", "probability"),
            Column("tokens", "tokens", None, "int64"),
        )

    def _file(self) -> Prompt:
        prompt = super()._file()
        if list(prompt.options) != ["A", "B"]:
            found = list(prompt.options) or "none"
            raise InputError(
                f"equivalence: the prompt {self.prompt!r} has the options {found}; A (they say the same) and B (they "
                "do not) were asked."
            )
        check_parts(prompt, "question", "first", "second", caller=self.name)
        return prompt

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        assert self._asker is not None
        prompt, n = self._file(), examples.num_rows
        pairs, reasons = self._pairs(examples, prompt)
        out = {column.name: np.full(n, np.nan) for column in self.columns}
        conversations, rows = [], []
        for i, pair in pairs.items():
            if not pair.answer:
                reasons[i] = "the answer is empty"
            elif pair.answer == pair.candidate:
                out["equivalent"][i], out["order_gap"][i], out["mass"][i], out["tokens"][i] = 1.0, 0.0, 1.0, 0
            else:
                rows.append(i)
                for first, second in ((pair.answer, pair.candidate), (pair.candidate, pair.answer)):
                    its = {"question": pair.question, "first": first, "second": second, **pair.context}
                    conversations.append(prompt.fill(**its))
        found = self._asker.options(conversations, list(prompt.options))
        for i, one, two in zip(rows, found[::2], found[1::2], strict=True):
            if isinstance(one, Refused):
                reasons[i] = one.reason
                continue
            if isinstance(two, Refused):
                reasons[i] = two.reason
                continue
            p, q = float(one.probabilities[0]), float(two.probabilities[0])
            out["equivalent"][i], out["order_gap"][i] = (p + q) / 2, p - q
            out["mass"][i], out["tokens"][i] = (one.mass + two.mass) / 2, one.tokens + two.tokens
            said = "none" if (p > 0.5) != (q > 0.5) else "the same" if p > 0.5 else "different"
            self._watch.see(said, (one.mass + two.mass) / 2)
        return {**out, "reason": reasons}
