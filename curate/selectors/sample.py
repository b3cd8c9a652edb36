from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.seeding import rng_for


@dataclass(kw_only=True)
class Sample(Selector):
    """A draw without replacement, with probabilities proportional to weights: DSIR's resampling.

    ``x``, the scores (n,), are logarithms of weights.  Of the rows that are left, each next one is row i with
    probability exp(x_i / temperature) / Σ_j exp(x_j / temperature): that is the order of x / temperature + Gumbel
    noise, highest first.  So the order of the whole pool is fixed by scores and seed, and smaller draws are prefixes of
    larger ones.  O(n log n).

    A mean per n-gram (``dsir``'s default) differs by a few tenths of a nat between rows, and a draw by it is nearly
    uniform; a temperature of 0.1 or lower brings it closer to the rows of highest weight, which ``top-k`` takes.

    References
    ----------
    Xie et al. 2023, "Data Selection for Language Models via Importance Resampling" (arXiv:2302.03169), section 3.
    Sampling by noisy logarithms: Efraimidis & Spirakis 2006; Vieira 2014.
    """

    name: ClassVar[str] = "sample"
    reference: ClassVar[str] = (
        'Xie, Santurkar, Ma & Liang 2023, "Data Selection for Language Models via Importance Resampling" '
        "(arXiv:2302.03169); Efraimidis & Spirakis 2006"
    )

    temperature: float = 1.0
    """What the scores are divided by: below 1 nearer to the highest, above 1 nearer to a uniform draw."""
    seed: int = 0
    """Names the draw."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < np.inf:
            raise InputError(f"Sample: a temperature above 0 was asked, {self.temperature} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        noise = rng_for(self.seed, "sample").gumbel(size=inputs.n)
        with np.errstate(over="ignore"):
            key = inputs.x / self.temperature + noise
        order = np.lexsort((-noise, -inputs.x, -key))  # the latter two for scores so large that noise rounds away
        return Ranking(order, basis=inputs.x, basis_name="log-weight", descending=None)
