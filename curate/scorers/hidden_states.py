r"""Feature vectors from the last hidden states of a language model.

    "weighted" :  x = Σ_i w_i h_i,  w_i = i / Σ_j j        RDS+: Ivison et al. 2025, arXiv:2503.01807
    "mean"     :  x = Σ_i h_i / T
    "last"     :  x = h_T                                  RDS, as in Xia et al. 2024 (LESS)

then x / ‖x‖₂, with h_i the states after the final norm at all T tokens of the row, prompt and response, i from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from curate import models
from curate.base import Column
from curate.models.base import Quantity
from curate.scorers.forward import ForwardScorer, Needs, Passes


@dataclass(kw_only=True)
class HiddenStates(ForwardScorer):
    """One vector of length 1 per row, as wide as the model; RDS+ by default.

    The dot product of two of them is RDS+'s similarity.  Published settings: the base model, its chat format, rows cut
    at 2,048 tokens (``max_tokens: 2048, long_rows: truncate``).
    """

    name: ClassVar[str] = "hidden-states"
    reference: ClassVar[str] = (
        'Ivison et al. 2025, "Practical Large-Scale Data Selection for Instruction Tuning" (RDS+, arXiv:2503.01807)'
    )

    pooling: Literal["weighted", "mean", "last"] = "weighted"
    """How the states of a row become one vector."""

    @property
    def needs(self) -> Needs:
        quantities: dict[str, Quantity] = {
            "weighted": "hidden-weighted",
            "mean": "hidden-mean",
            "last": "hidden-last",
        }
        return {"whole": frozenset({quantities[self.pooling]})}

    @property
    def own_columns(self) -> tuple[Column, ...]:
        return (Column("vector", "coordinates of a unit vector", dtype=f"float32[{models.width(self.model)}]"),)

    def _reduce(self, passes: Passes) -> dict[str, Any]:
        reasons = list(passes.reasons)
        vectors = np.full((len(reasons), models.width(self.model)), np.nan, dtype=np.float32)
        for i in passes.scored():
            found = passes.of["whole"][i]
            assert found is not None
            vector = getattr(found, f"hidden_{self.pooling}").astype(np.float64)
            norm = np.linalg.norm(vector)
            if norm == 0:
                reasons[i] = "the hidden states cancel to nothing"
            else:
                vectors[i] = vector / norm
        return {"vector": vectors, "reason": reasons}
