r"""Likelihood of the response under a causal language model.

    mean_logprob(x, y) = (1/|y|) Σ_t log π(y_t | x, y_<t)          nats per token, at most 0

GRAPE (Zhang, Dai, Peng 2025, "The Best Instruction-Tuning Data are Those That Fit") trains, for each instruction,
on the response whose length-normalised log-probability under the base model is highest; ``best-per-prompt`` over this
column is that rule.  Taken across instructions the same number is another filter (easy examples), which GRAPE does not
propose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate import models
from curate.base import Column, Scorer
from curate.exceptions import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class TargetLikelihood(Scorer):
    """Log-probability of the response tokens: mean, sum, their number, and the perplexity.

    "Response tokens" are the tokens in the loss (``curate.models.template``): the assistant turns and their end-of-turn
    tokens, each predicted from everything before it.  A row is null, with a reason, where the template cannot show it,
    where no token of it is in the loss, where it is longer than the limit (the prefix of a truncated response is not
    comparable with a whole one), and where it alone does not fit into memory.

    Float32 is within 1e-4 nats per token of a float64 reference; bfloat16's error is in ``benchmarks/likelihood``.

    Differs from the paper where it is silent: the end token counts in |y|, and conversations of several turns and with
    tools are scored.  Its setting is ``template="plain"``; the default is the model's chat template where it has one.
    """

    name: ClassVar[str] = "likelihood"
    reference: ClassVar[str] = 'Zhang, Dai & Peng 2025, "The Best Instruction-Tuning Data are Those That Fit" (GRAPE)'
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools")
    resource: ClassVar[str] = "model"
    neutral: ClassVar[tuple[str, ...]] = ("batch_tokens", "device")

    model: str
    """Folder or Hub name ("org/name", "org/name@revision") of a causal LM in safetensors; GRAPE: the base model that
    will be trained."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """How a conversation becomes text: the tokenizer's chat template, GRAPE's Question:/Answer:, or chat where there is
    one."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns are scored; those marked train=false never are."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to compute in; auto: float32 below 10⁹ parameters, as stored above."""
    max_tokens: int | None = None
    """Longer rows are null; by default the model's context."""
    batch_tokens: int | None = None
    """Tokens of a batch, padding counted; by default 1024 on a CPU, 16384 on a GPU.  Changes no score beyond
    rounding."""
    device: str = "auto"
    """"cpu", "cuda", "mps"; auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        for key in ("max_tokens", "batch_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"{self.name}: {key}={value}; it must be at least 1, or left out.")
        self._lm: models.CausalLM | None = None
        self._encoder: models.Encoder | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("mean_logprob", "nats per token", True),
            Column("sum_logprob", "nats", True),
            Column("tokens", "tokens", None, "int64"),
            Column("perplexity", "exp(nats per token)", False),
        )

    @property
    def tolerance(self) -> float:
        """Rounding: other company is another shape of matrix product, which sums in another order."""
        dtype = self.dtype if self._lm is None else self._lm.dtype
        return 1e-5 if dtype in ("auto", "float32") else 2e-2

    def identity(self) -> dict[str, Any]:
        """A digest or a commit stands for the model's path, and the template in use for ``template``."""
        identity = super().identity()
        identity["params"] = {k: v for k, v in identity["params"].items() if k not in ("model", "template")}
        model = models.identify(self.model)  # first: it says best what is wrong with a path
        return identity | {"model": model, "template": self._encode().identity()}

    def open(self) -> None:
        self._encode()
        if self._lm is None:
            self._lm = models.load(self.model, dtype=self.dtype, device=self.device, batch_tokens=self.batch_tokens)

    def close(self) -> None:
        if self._lm is not None:
            models.release(self._lm)
        self._lm = None

    def _encode(self) -> models.Encoder:
        if self._encoder is None:
            self._encoder = models.encoder(self.model, template=self.template, turns=self.turns)
        return self._encoder

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        assert self._lm is not None
        rows = self._encode().encode(examples["messages"].to_pylist(), examples["tools"].to_pylist())
        limit = min(self.max_tokens or np.inf, self._lm.context or np.inf)
        reasons: list[str | None] = []
        for row in rows:
            if row.reason is None and row.ids.size > limit:
                reasons.append(f"longer than max_tokens={limit}")
            elif row.reason is None and not row.mask.any():
                reasons.append("no token is in the loss")
            else:
                reasons.append(row.reason)
        scored = [i for i, reason in enumerate(reasons) if reason is None]
        logprobs = self._lm.token_logprobs([(rows[i].ids, rows[i].mask) for i in scored])

        total = np.full(len(rows), np.nan)
        tokens = np.ones(len(rows), dtype=np.int64)
        for i, values in zip(scored, logprobs, strict=True):
            if values is None:
                reasons[i] = f"out of memory at {rows[i].ids.size} tokens"
            else:
                total[i] = values.sum(dtype=np.float64)
                tokens[i] = values.size
        mean = total / tokens
        return {
            "mean_logprob": mean,
            "sum_logprob": total,
            "tokens": tokens,
            "perplexity": np.exp(-mean),
            "reason": reasons,
        }
