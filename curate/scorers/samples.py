"""Answers that a model samples for each row's prompt, stored: what observed consistency is computed from.

The prompt file demands reasoning and then a final answer (CLEAR; the change is made to the question for the samples
only, never to the row).  Nothing is judged here: ``consistency`` compares, and comparing in another way samples nothing
anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curate.exceptions import InputError
from curate.models.prompting import Prompt
from curate.scorers.writing import WritingScorer


@dataclass(kw_only=True)
class Samples(WritingScorer):
    """Sampled answers to the prompt of each row: Chen & Mueller 2023, BSDetector §3.1, five at temperature 1."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise InputError(f"samples: temperature={self.temperature}; above 0 was asked, or all answers are one.")

    def _file(self) -> Prompt:
        prompt = super()._file()
        self._check_prompt(prompt)
        return prompt
