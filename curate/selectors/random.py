from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.seeding import rng_for


@dataclass(kw_only=True)
class Random(Selector):
    """A uniformly random order of the pool, without replacement.

    With ``quota=Quota()`` over the source it is source-balanced random sampling: a strong baseline.
    """

    name: ClassVar[str] = "random"
    x_name: ClassVar[str] = "nothing"

    seed: int = 0
    """Names the order; a pool of n rows has one order per seed."""

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        return Ranking(rng_for(self.seed, "random").permutation(inputs.n).astype(np.int64), descending=None)
