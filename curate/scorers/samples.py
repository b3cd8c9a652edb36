"""Answers that a model samples for each row's prompt, stored: what observed consistency is computed from.

The prompt file demands reasoning and then a final answer (CLEAR; the change is made to the question for the samples
only, never to the row).  Nothing is judged here: ``consistency`` compares, and comparing in another way samples nothing
anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curate.base import Column
from curate.exceptions import InputError
from curate.models.asking import Refused
from curate.models.base import Generation, Sampling
from curate.models.prompting import Prompt
from curate.scorers.asking import AskingScorer, check_parts

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class Samples(AskingScorer):
    """Sampled answers to the prompt of each row: Chen & Mueller 2023, BSDetector §3.1, five at temperature 1.

    Column ``answers`` is a JSON list of {"text", "finished"}, finished false where an answer was cut at
    ``new_tokens`` or at the context; ``tokens`` counts what was sampled.  Rows with one prompt are sampled once in a
    call.  Each answer is drawn from a stream of its own, named by (seed, the prompt's tokens, its number): neither the
    rows that come along nor the batches change it, unless two tokens are so near each other that rounding decides.
    """

    name: ClassVar[str] = "samples"
    reference: ClassVar[str] = (
        'Chen & Mueller 2023, "Quantifying Uncertainty in Answers from any Language Model" (BSDetector, '
        "arXiv:2308.16175)"
    )

    prompt: str = "sample"
    """A built-in prompt by its word, or the path of a file of your own; its parts: question, and if you like
    conversation and tools."""
    samples: int = 5
    """Answers for each prompt."""
    temperature: float = 1.0
    """Above 0; 1 is the model's own distribution."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this share are drawn."""
    new_tokens: int = 512
    """The longest answer, in tokens."""
    seed: int = 0
    """Names the draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("samples", "new_tokens"):
            if getattr(self, key) < 1:
                raise InputError(f"samples: {key}={getattr(self, key)}; it must be at least 1.")
        if not self.temperature > 0:
            raise InputError(f"samples: temperature={self.temperature}; above 0 was asked, or all answers are one.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"samples: top_p={self.top_p}; a share above 0 and up to 1 was asked.")

    def _file(self) -> Prompt:
        prompt = super()._file()
        if prompt.options:
            raise InputError(f"samples: the prompt {self.prompt!r} has options to choose from; a text was asked.")
        check_parts(prompt, "question", caller=self.name)
        return prompt

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("answers", "sampled answers, JSON", dtype="string"), Column("tokens", "tokens", None, "int64"))

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        assert self._asker is not None
        prompt, n = self._file(), examples.num_rows
        texts, reasons = self._texts(examples)
        asked: dict[tuple[Any, ...], list[int]] = {}  # a prompt's texts → its rows
        for i, its in texts.items():
            asked.setdefault(tuple(its.items()), []).append(i)
        sampling = Sampling(
            max_tokens=self.new_tokens, temperature=self.temperature, top_p=self.top_p, n=self.samples, seed=self.seed
        )
        written = self._asker.generate([prompt.fill(**dict(its)) for its in asked], sampling)
        answers: list[str | None] = [None] * n
        tokens: list[int | None] = [None] * n
        for rows, found in zip(asked.values(), written, strict=True):
            for i in rows:
                if isinstance(found, Refused):
                    reasons[i] = found.reason
                else:
                    answers[i], tokens[i] = _stored(found), sum(one.tokens for one in found)
        return {"answers": answers, "tokens": tokens, "reason": reasons}


def _stored(answers: list[Generation]) -> str:
    return json.dumps([{"text": a.text, "finished": a.finished} for a in answers], ensure_ascii=False)
