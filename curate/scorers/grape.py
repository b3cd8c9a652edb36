r"""GRAPE: of the candidates for one instruction, the response that the base model itself finds likeliest.

    mean_logprob(x, y) = (1/|y|) Σ_t log π₀(y_t | x, y_<t)         nats per token, at most 0

(Zhang, Dai, Peng 2025, "The Best Instruction-Tuning Data are Those That Fit").  The scorer gives the number; the choice
is ``best-per-prompt`` over it, within the rows of one prompt.

A mean over what is there favours whoever stops early, loops or says nearly nothing, so such candidates are turned away
before the model reads them: they have no score, and a reason.  The paper relies on a clean pool and has no such guard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate.base import Column
from curate.exceptions import InputError
from curate.models.base import LOGPROBS
from curate.scorers.forward import ForwardScorer, Needs, Passes

if TYPE_CHECKING:
    import pyarrow as pa

    from curate import models

_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
"""What servers say of a response that was stopped by a limit."""


@dataclass(kw_only=True)
class GRAPE(ForwardScorer):
    """Mean log-probability of the response under the base model, for candidates that are whole.

    ``model`` is the one that will be trained, before its fine-tuning.  The last assistant turn is the response, as for
    ``best-per-prompt``: what stands before it is the prompt that candidates share.

    Guards, in this order; a row that one of them stops is null with that reason:

    * ``drop_cut_off``: the row's own ``finish_reason`` says that a limit ended it; where it says another thing the
      response is whole; where there is none, its text tells (``curate.scorers._cut_off`` has the rules: a code block or
      a JSON value left open, a last sentence without an end in a text whose other sentences have theirs).
    * ``max_repetition``: more of its word trigrams than this share occurred before in it (``text-heuristics``).
    * ``min_tokens``: it is shorter, the end token counted.

    Differs from the paper where that is silent, as ``likelihood`` does: the end token counts in |y|.
    """

    name: ClassVar[str] = "grape"
    reference: ClassVar[str] = 'Zhang, Dai & Peng 2025, "The Best Instruction-Tuning Data are Those That Fit" (GRAPE)'
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools", "extra")

    template: Literal["auto", "chat", "plain"] = "plain"
    """The paper's Question:/Answer:, which a base model without a chat template reads too."""
    turns: Literal["all", "last"] = "last"
    """Which assistant turns are scored; the candidates for one prompt differ in the last."""
    drop_cut_off: bool = True
    """Whether to turn away responses that break off."""
    max_repetition: float | None = 0.5
    """Highest share of repeated trigrams; None for no limit.  Ours."""
    min_tokens: int | None = 3
    """Fewest tokens; None for no limit.  Ours: the smallest at which there is more than a word and the end token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_repetition is not None and not 0 <= self.max_repetition <= 1:
            raise InputError(
                f"{self.name}: max_repetition={self.max_repetition}; a share from 0 to 1, or null, was asked."
            )
        if self.min_tokens is not None and self.min_tokens < 1:
            raise InputError(f"{self.name}: min_tokens={self.min_tokens}; it must be at least 1, or null.")

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
        )

    def _skip(self, examples: pa.Table, rows: Sequence[models.EncodedRow]) -> list[str | None]:
        from curate.numerics.ngrams import blocks
        from curate.scorers._cut_off import cut_off
        from curate.scorers._texts import prompts_and_responses
        from curate.scorers.text_heuristics import repetition

        prompts, responses, _ = prompts_and_responses(examples)
        reasons: list[str | None] = [None] * len(rows)
        if self.drop_cut_off:
            for i, (response, extra) in enumerate(zip(responses, examples["extra"].to_pylist(), strict=True)):
                said = _finish_reason(extra)
                why = cut_off(response) if said is None else f"finish_reason {said}" if said in _CUT else None
                reasons[i] = None if why is None else f"cut off: {why}"
        if self.max_repetition is not None:
            for block in blocks(prompts, responses):
                for i in np.flatnonzero(repetition(responses[block]) > self.max_repetition) + block.start:
                    reasons[i] = (
                        reasons[i] or f"repetitive: above {self.max_repetition:g} of its trigrams occurred before"
                    )
        if self.min_tokens is not None:
            for i, row in enumerate(rows):
                if row.mask.sum() < self.min_tokens:
                    reasons[i] = reasons[i] or f"shorter than min_tokens={self.min_tokens}"
        return reasons

    def _reduce(self, passes: Passes) -> dict[str, Any]:
        total = np.full(len(passes.reasons), np.nan)
        for i in passes.scored():
            found = passes.of["whole"][i]
            assert found is not None and found.logprobs is not None
            total[i] = found.logprobs.sum(dtype=np.float64)
        tokens = np.maximum(1, passes.tokens)
        mean = total / tokens
        return {"mean_logprob": mean, "sum_logprob": total, "tokens": tokens, "perplexity": np.exp(-mean)}


def _finish_reason(extra: str | None) -> str | None:
    """Return what the row's column ``finish_reason`` (or ``stop_reason``) says, in lower case."""
    if extra is None or "_reason" not in extra:  # most rows: nothing to parse
        return None
    columns = json.loads(extra)
    said = columns.get("finish_reason") or columns.get("stop_reason")
    return said.lower() if isinstance(said, str) else None
