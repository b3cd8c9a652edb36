from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.logdet import log_det
from curate.numerics.milestones import objective_after
from curate.numerics.order import fractional_ranks


@dataclass(kw_only=True)
class LogDet(Selector):
    """Rows whose vectors span the largest volume: the greedy mode of a determinantal point process (DPP).

    Greedy choice for log det of diag(q) (K + λ I) diag(q), K the cosines of the features and q the quality
    (``curate.numerics.logdet``, which has the formulas and works in the space of the features).  Equal rows, and rows
    whose gains differ by less than 1e-9: the lowest.

    It prefers rows unlike the ones chosen, outliers included: filter for quality first, or give it.  Once as many rows
    are chosen as there are dimensions, cosines alone tell no more; the jitter λ then makes it go on with the rows that
    lie in the directions served least.

    The account: "objective", log det(I + K_S / λ) + 2 Σ log q after 1, 2, 5, 10, … rows.

    References
    ----------
    Wang et al. 2024, "Diversity Measurement and Subset Selection for Instruction Tuning Datasets" (arXiv:2402.02318).
    """

    name: ClassVar[str] = "log-det"
    reference: ClassVar[str] = (
        'Wang et al. 2024, "Diversity Measurement and Subset Selection for Instruction Tuning Datasets" '
        "(arXiv:2402.02318)"
    )
    x_name: ClassVar[str] = "features"

    jitter: float = 0.01
    """λ, added to the diagonal of the cosines: similarities much closer to 1 than that tell rows apart no longer."""
    quality_weight: float = 1.0
    """Where quality is given, q is its fractional rank in the pool, in (0, 1), to this power; 0 leaves it out."""

    def __post_init__(self) -> None:
        if not 1e-6 <= self.jitter < np.inf:
            raise InputError(f"LogDet: a jitter of at least 1e-06 was asked, {self.jitter} was found.")
        if not 0 <= self.quality_weight < np.inf:
            raise InputError(f"LogDet: a quality_weight of 0 or more was asked, {self.quality_weight} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        log_quality = None
        if inputs.quality is not None:
            log_quality = self.quality_weight * np.log(fractional_ranks(inputs.quality))
        chosen = log_det(inputs.x, k, jitter=self.jitter, log_quality=log_quality)
        beyond = np.ones(inputs.n, dtype=bool)
        beyond[chosen.order] = False
        return Ranking(
            chosen.order,
            basis=inputs.quality,
            basis_name="quality",
            descending=None,
            gains=chosen.gains,
            beyond=beyond,
            account={"objective": objective_after(chosen.gains)},
        )
