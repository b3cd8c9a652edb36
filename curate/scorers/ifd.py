r"""Instruction-following difficulty: how much less the instruction helps than it should.

    L(y|x) = −(1/|y|) Σ_t log π(y_t | x, y_<t)        loss of the response, given the instruction
    L(y)   = −(1/|y|) Σ_t log π(y_t | y_<t)           loss of the same tokens, alone
    ifd            = L(y|x) / L(y)                     Li et al. 2024, "From Quantity to Quality" (Cherry_LLM)
    ifd_perplexity = exp(L(y|x)) / exp(L(y))           Li et al. 2024, "Superfiltering"

The two ratios rank differently, so each has its own column.  Near 1 the instruction says little about the answer; above
1 it misleads, and both papers drop such rows (``threshold`` with ``max: 1``), then keep the largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.base import Column
from curate.models.base import LOGPROBS
from curate.scorers.forward import ForwardScorer, Needs, Passes, View


@dataclass(kw_only=True)
class IFD(ForwardScorer):
    """Ratio of the response's loss with and without its instruction: two forward passes a row.

    "Alone" is the very same tokens after what opens an assistant turn ("<|im_start|>assistant", "Answer:") and the
    tokenizer's BOS, so that both losses are means over the same tokens; the published code keeps such a marker too.
    In conversations of several turns all turns in the loss follow each other, without the turns of the user between
    them; the papers know single turns only.

    Null, besides the reasons of every forward scorer, where the response alone has no loss to divide by (0 nats).

    Differs from the published code: no cut of the response to what the instruction leaves of the limit (a row over the
    limit is null), and the end-of-turn token counts.  Published settings: the model that will be trained (IFD) or a
    small one such as GPT-2 with ``template="plain"`` (Superfiltering).
    """

    name: ClassVar[str] = "ifd"
    reference: ClassVar[str] = 'Li et al. 2024, "From Quantity to Quality" (IFD, NAACL); "Superfiltering" (ACL)'

    @property
    def needs(self) -> Needs:
        return {"whole": LOGPROBS, "alone": LOGPROBS}

    @property
    def own_columns(self) -> tuple[Column, ...]:
        return (
            Column("ifd", "ratio of losses", True),
            Column("ifd_perplexity", "ratio of perplexities", True),
            Column("loss", "nats per token", None),
            Column("loss_alone", "nats per token", None),
            Column("tokens", "tokens", None, "int64"),
        )

    def _reduce(self, passes: Passes) -> dict[str, Any]:
        reasons = list(passes.reasons)
        views: tuple[View, View] = ("whole", "alone")
        loss = {view: np.full(len(reasons), np.nan) for view in views}
        for i in passes.scored():
            for view in views:
                found = passes.of[view][i]
                assert found is not None and found.logprobs is not None
                loss[view][i] = -found.logprobs.mean(dtype=np.float64)
            if loss["alone"][i] == 0:
                reasons[i] = "the response alone has no loss to divide by"
        whole, alone = loss["whole"], loss["alone"]
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "ifd": whole / alone,
                "ifd_perplexity": np.exp(whole - alone),
                "loss": whole,
                "loss_alone": alone,
                "tokens": np.maximum(1, passes.tokens),
                "reason": reasons,
            }
