"""A language model that follows a script: it answers correctly as often as it is told, and is as sure as it is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.models.base import CausalLM, Forward, Generation, Quantity, Row, Sampling


@dataclass
class Scripted(CausalLM):
    """Reads prompts with a tokenizer and does what ``writes`` and ``chooses`` say of their text.

    writes : (prompt, number of the answer) → the answer.
    chooses : (prompt, option) → log-probability.
    """

    tokenizer: Any
    writes: Callable[[str, int], str] = lambda prompt, k: ""
    chooses: Callable[[str, str], float] = lambda prompt, option: -1.0
    asked: list[str] = field(default_factory=list)
    context: int | None = 4096
    vocab_size: int = 512
    device: str = "cpu"
    dtype: str = "float32"

    def forward(self, rows: Sequence[Row], quantities: Collection[Quantity]) -> list[Forward | None]:
        raise NotImplementedError

    def option_logprobs(
        self, prompts: Sequence[NDArray[np.integer]], options: Sequence[Sequence[NDArray[np.integer]]]
    ) -> list[NDArray[np.float64] | None]:
        texts = [self.tokenizer.decode(ids) for ids in prompts]
        self.asked += texts
        return [
            np.array([self.chooses(text, self.tokenizer.decode(option).strip()) for option in its])
            for text, its in zip(texts, options, strict=True)
        ]

    def generate(self, prompts: Sequence[NDArray[np.integer]], sampling: Sampling) -> list[list[Generation] | None]:
        texts = [self.tokenizer.decode(ids) for ids in prompts]
        self.asked += texts
        return [[Generation(self.writes(text, k), 7, True) for k in range(sampling.n)] for text in texts]

    def close(self) -> None:
        pass
