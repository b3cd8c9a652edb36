"""What scorers share that store texts which a model writes for each row: how it draws, and the column of answers."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate.base import Column
from curate.exceptions import InputError
from curate.models.asking import Refused
from curate.models.base import Generation, Sampling
from curate.models.prompting import Prompt
from curate.scorers.asking import AskingScorer, check_parts

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class WritingScorer(AskingScorer):
    """A scorer that has a model write, and keeps what it wrote.

    Column ``answers`` is a JSON list of {"text", "finished"}, finished false where an answer was cut at
    ``new_tokens`` or at the context; ``tokens`` counts what was written.  Rows with one prompt are answered once in a
    call.  Each answer is drawn from a stream of its own, named by (seed, the prompt's tokens, its number): neither the
    rows that come along nor the batches change it, unless two tokens are so near each other that rounding decides.
    """

    samples: int = 1
    """Answers for each prompt."""
    temperature: float = 0.0
    """1 is the model's own distribution; 0 the likeliest token each time."""
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
                raise InputError(f"{self.name}: {key}={getattr(self, key)}; it must be at least 1.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"{self.name}: top_p={self.top_p}; a share above 0 and up to 1 was asked.")

    def _check_prompt(self, prompt: Prompt, *, may: Sequence[str] = ()) -> None:
        """Raise InputError unless the prompt asks for a text and shows a question; ``may``: what it may show, too."""
        if prompt.options:
            raise InputError(f"{self.name}: the prompt {self.prompt!r} has options to choose from; a text was asked.")
        check_parts(prompt, "question", may=may, caller=self.name)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("answers", "answers, JSON", dtype="string"), Column("tokens", "tokens", None, "int64"))

    def _prompts(self, examples: pa.Table) -> tuple[dict[int, Hashable], list[str | None]]:
        """Return what rows ask, equal where it is the same, and why the other rows ask nothing."""
        texts, reasons = self._texts(examples)
        return {i: tuple(its.items()) for i, its in texts.items()}, reasons

    def _write(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[Generation] | Refused]:
        """Return the answers to each of these."""
        assert self._asker is not None
        file = self._file()
        return self._asker.generate([file.fill(**dict(its)) for its in prompts], sampling)

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        n = examples.num_rows
        prompts, reasons = self._prompts(examples)
        rows: dict[Hashable, list[int]] = {}
        for i, prompt in prompts.items():
            rows.setdefault(prompt, []).append(i)
        sampling = Sampling(
            max_tokens=self.new_tokens, temperature=self.temperature, top_p=self.top_p, n=self.samples, seed=self.seed
        )
        answers: list[str | None] = [None] * n
        tokens: list[int | None] = [None] * n
        for same, found in zip(rows.values(), self._write(list(rows), sampling), strict=True):
            for i in same:
                if isinstance(found, Refused):
                    reasons[i] = found.reason
                else:
                    answers[i], tokens[i] = _stored(found), sum(one.tokens for one in found)
        return {"answers": answers, "tokens": tokens, "reason": reasons}


def _stored(answers: list[Generation]) -> str:
    return json.dumps([{"text": a.text, "finished": a.finished} for a in answers], ensure_ascii=False)
