r"""Entropy of the model's predictions along the response.

H_t = −Σ_v p_t(v) log p_t(v),        mean_entropy = (1/|y|) Σ_t H_t          nats, 0 to log V
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from curate.base import Column
from curate.models.base import Quantity
from curate.scorers.forward import ForwardScorer, Needs, Passes

_ENTROPY: frozenset[Quantity] = frozenset({"entropy"})


@dataclass(kw_only=True)
class ResponseEntropy(ForwardScorer):
    """How unsure the model is at the positions of the response, whatever stands there: mean and largest entropy.

    The whole vocabulary counts, not the top candidates.  Neither direction is better in itself: high entropy is an open
    question as well as noise.
    """

    name: ClassVar[str] = "response-entropy"

    @property
    def needs(self) -> Needs:
        return {"whole": _ENTROPY}

    @property
    def own_columns(self) -> tuple[Column, ...]:
        return (
            Column("mean_entropy", "nats", None),
            Column("max_entropy", "nats", None),
            Column("tokens", "tokens", None, "int64"),
        )

    def _reduce(self, passes: Passes) -> dict[str, Any]:
        mean = np.full(len(passes.reasons), np.nan)
        largest = mean.copy()
        for i in passes.scored():
            found = passes.of["whole"][i]
            assert found is not None and found.entropy is not None
            mean[i], largest[i] = found.entropy.mean(dtype=np.float64), found.entropy.max()
        return {"mean_entropy": mean, "max_entropy": largest, "tokens": np.maximum(1, passes.tokens)}
