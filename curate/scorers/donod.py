r"""DONOD: what one training step on a row alone would do to the weights of the output layer.

With W the output head before and W' after one step on the row, W' = W − η G, G = ∂L/∂W, L the mean token loss:

    DON = ‖W‖_F − ‖W'‖_F        how much the step shrinks the weights: more is better
    NOD = ‖W − W'‖_F            how far it moves them: less is better

(Hu et al. 2025, "DONOD").  No step is taken.  With h_t the last hidden states that predict the S response tokens, z_t
the logits, δ_t = softmax(z_t) − onehot(y_t) and ω = ‖W‖_F,

    a = ⟨W, G⟩  = (1/S)  Σ_t δ_t · z_t
    b = ‖G‖²_F  = (1/S²) Σ_{s,t} (δ_s · δ_t)(h_s · h_t)
    NOD = η √b,        DON = (2ηa − η²b) / (ω + √(ω² − 2ηa + η²b))

from one forward pass, no backward pass and no matrix of V × d numbers.  The quotient is ω − ‖W'‖ without its
cancellation: subtracting two nearly equal norms would lose most digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from curate.base import Column
from curate.exceptions import InputError
from curate.models.base import Quantity
from curate.scorers.forward import ForwardScorer, Needs, Passes

_GRADIENT: frozenset[Quantity] = frozenset({"logprobs", "head-gradient"})


@dataclass(kw_only=True)
class DONOD(ForwardScorer):
    """Delta of norm and norm of delta of the output head under one plain SGD step on the row.

    The paper sums over layers and uses the output layer as its proxy; this is that proxy.  The two are combined by
    TOPSIS (``combine: {method: topsis, of: {donod.don: 1, donod.nod: 1}}``) and the top 20 to 30% kept.  To first order
    DON is large where the label's logit lies far below the expected one, on rows with a high loss; the column ``loss``
    is there so that a run's report can show how much of the score that is.

    Tied embeddings: only the head's use of the matrix is stepped.  A bias of the head takes no part.  A model that caps
    its logits (Gemma 2) has no such closed form and is refused.

    Where the paper is silent: rows are probed each from the same weights; one SGD step and not Adam, whose first step
    has nearly the same length for every row; the mean loss over the response tokens.  For small η both numbers grow
    with η in proportion, which TOPSIS does not see.
    """

    name: ClassVar[str] = "donod"
    reference: ClassVar[str] = 'Hu et al. 2025, "DONOD: Robust and Generalizable Instruction Fine-Tuning for LLMs"'

    step: float = 1e-3
    """η, the learning rate of the step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.step > 0 and np.isfinite(self.step)):
            raise InputError(f"{self.name}: step={self.step}; a finite number above 0 was asked.")

    @property
    def needs(self) -> Needs:
        return {"whole": _GRADIENT}

    @property
    def own_columns(self) -> tuple[Column, ...]:
        return (
            Column("don", "weight norm", True),
            Column("nod", "weight norm", False),
            Column("loss", "nats per token", None),
            Column("tokens", "tokens", None, "int64"),
        )

    def _reduce(self, passes: Passes) -> dict[str, Any]:
        assert passes.head_norm is not None
        slope, square, loss = (np.full(len(passes.reasons), np.nan) for _ in range(3))
        for i in passes.scored():
            found = passes.of["whole"][i]
            assert found is not None and found.head_gradient is not None and found.logprobs is not None
            slope[i], square[i] = found.head_gradient
            loss[i] = -found.logprobs.mean(dtype=np.float64)
        don, nod = step_norms(slope, square, norm=passes.head_norm, step=self.step)
        return {"don": don, "nod": nod, "loss": loss, "tokens": np.maximum(1, passes.tokens)}


def step_norms(
    slope: NDArray[np.float64], square: NDArray[np.float64], *, norm: float, step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (DON, NOD) of a step W' = W − η G, from numbers alone.

    Parameters
    ----------
    slope : (n,) ⟨W, G⟩.
    square : (n,) ‖G‖²_F, at least 0.
    norm : ‖W‖_F.
    step : η.
    """
    shrink = 2 * step * slope - step**2 * square  # ‖W‖² − ‖W'‖²
    after = np.sqrt(np.maximum(0.0, norm**2 - shrink))
    return shrink / (norm + after), step * np.sqrt(square)
