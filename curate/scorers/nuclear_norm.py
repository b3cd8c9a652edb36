r"""Nuclear norm of a row's logits: the utility of UDS, as an offline score.

    u = ‖L‖_* = Σ_k σ_k(L),        L ∈ R^{T×V} the logits at T positions of the row

(Zou et al. 2025, "Utility-Diversity Aware Online Batch Selection for LLM Supervised Fine-tuning").  L = H Wᵀ with the
hidden states H ∈ R^{T×d} and the head W = Q R (Q with orthonormal columns), so its singular values are those of H Rᵀ, a
matrix of T × d numbers: no logit is computed, and no precision is lost to squaring as it is with L Lᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate.base import Column
from curate.scorers.forward import ForwardScorer, Needs, Passes


@dataclass(kw_only=True)
class NuclearNorm(ForwardScorer):
    """Sum of the singular values of the logits, raw: no softmax, no centring, no division by length.

    UDS scores each batch with the model of the moment, and adds a term for novelty; this is the utility alone, with one
    frozen model.  It grows with length: ``per_root_token``, u / √T, is beside it for that reason.

    A model that caps its logits (Gemma 2) is refused: they are no product of two matrices.
    """

    name: ClassVar[str] = "nuclear-norm"
    reference: ClassVar[str] = (
        'Zou et al. 2025, "Utility-Diversity Aware Online Batch Selection for LLM Supervised Fine-tuning" (UDS)'
    )

    positions: Literal["all", "response"] = "all"
    """Positions that count: all, as the published code has it, or those that predict the response."""

    @property
    def needs(self) -> Needs:
        return {"whole": frozenset({"logit-norm-all" if self.positions == "all" else "logit-norm"})}

    @property
    def own_columns(self) -> tuple[Column, ...]:
        return (
            Column("nuclear_norm", "logits", True),
            Column("per_root_token", "logits per root of a token", True),
            Column("positions", "tokens", None, "int64"),
        )

    def _reduce(self, passes: Passes) -> dict[str, Any]:
        norm = np.full(len(passes.reasons), np.nan)
        for i in passes.scored():
            found = passes.of["whole"][i]
            assert found is not None
            value = found.logit_norm_all if self.positions == "all" else found.logit_norm
            assert value is not None
            norm[i] = value
        counted = np.maximum(1, passes.length if self.positions == "all" else passes.tokens)
        return {"nuclear_norm": norm, "per_root_token": norm / np.sqrt(counted), "positions": counted}
