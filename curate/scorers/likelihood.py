r"""Likelihood of the response under a causal language model.

    mean_logprob(x, y) = (1/|y|) Σ_t log π(y_t | x, y_<t)          nats per token, at most 0

GRAPE (Zhang, Dai, Peng 2025, "The Best Instruction-Tuning Data are Those That Fit") trains, for each instruction,
on the response whose length-normalised log-probability under the base model is highest; ``best-per-prompt`` over this
column is that rule, and the scorer ``grape`` the method with its guards.  Taken across instructions the same number is
another filter (easy examples), which GRAPE does not propose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.base import Column
from curate.exceptions import InputError
from curate.models.base import LOGPROBS
from curate.scorers.forward import ForwardScorer, Needs, Passes


@dataclass(kw_only=True)
class TargetLikelihood(ForwardScorer):
    """Log-probability of the response tokens: mean, sum, their number, the perplexity, and the mean of the lowest.

    "Response tokens" are the tokens in the loss (``curate.models.template``): the assistant turns and their end-of-turn
    tokens, each predicted from everything before it.  ``min_k_logprob`` is the mean over the ⌈min_k · |y|⌉ least likely
    of them (Shi et al. 2024, "Detecting Pretraining Data from Large Language Models", Min-K% Prob).

    Float32 is within 1e-4 nats per token of a float64 reference; bfloat16's error is in ``benchmarks/likelihood``.

    Differs from GRAPE's paper where it is silent: the end token counts in |y|, and conversations of several turns and
    with tools are scored.  Its setting is ``template="plain"``; the default is the model's chat template where it has
    one.
    """

    name: ClassVar[str] = "likelihood"
    reference: ClassVar[str] = 'Zhang, Dai & Peng 2025, "The Best Instruction-Tuning Data are Those That Fit" (GRAPE)'
    version: ClassVar[int] = 2

    min_k: float = 0.2
    """Share of the tokens that ``min_k_logprob`` is the mean of; at least one token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_k <= 1:
            raise InputError(f"{self.name}: min_k={self.min_k}; a share above 0 and up to 1 was asked.")

    @property
    def needs(self) -> Needs:
        return {"whole": LOGPROBS}

    @property
    def own_columns(self) -> tuple[Column, ...]:
        return (
            Column("mean_logprob", "nats per token", True),
            Column("sum_logprob", "nats", True),
            Column("tokens", "tokens", None, "int64"),
            Column("perplexity", "exp(nats per token)", False),
            Column("min_k_logprob", "nats per token", True),
        )

    def _reduce(self, passes: Passes) -> dict[str, Any]:
        total = np.full(len(passes.reasons), np.nan)
        lowest = total.copy()
        for i in passes.scored():
            found = passes.of["whole"][i]
            assert found is not None and found.logprobs is not None
            values = found.logprobs.astype(np.float64)
            total[i] = values.sum()
            k = math.ceil(self.min_k * values.size)
            lowest[i] = np.partition(values, k - 1)[:k].mean()
        tokens = np.maximum(1, passes.tokens)
        mean = total / tokens
        return {
            "mean_logprob": mean,
            "sum_logprob": total,
            "tokens": tokens,
            "perplexity": np.exp(-mean),
            "min_k_logprob": lowest,
        }
