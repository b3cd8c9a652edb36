from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.bids import Standardised, bids


@dataclass(kw_only=True)
class BIDS(Selector):
    """Balanced and influential data selection: each row for the single target that the chosen rows serve worst.

    ``x`` (n, M) is the influence of each row on each target row, or any similarity to it.  Its columns are standardised
    over the pool, and the next row is the one with the highest max_j (Â_ij - m_j), m_j the mean of the rows chosen so
    far (``curate.numerics.bids``, which has the formulas and the search).  Equal rows: the lowest.

    Give every task the same number of targets: the maximum is over single targets, and more of them win more often.
    And set copies aside first: they are pushed back by the mean alone.

    References
    ----------
    Dai, Zhang, Ma & Peng 2025, "Improving Influence-based Instruction Tuning Data Selection for Balanced Learning of
    Diverse Capabilities" (arXiv:2501.12147).
    """

    name: ClassVar[str] = "bids"
    reference: ClassVar[str] = (
        'Dai, Zhang, Ma & Peng 2025, "Improving Influence-based Instruction Tuning Data Selection for Balanced '
        'Learning of Diverse Capabilities" (arXiv:2501.12147)'
    )
    x_name: ClassVar[str] = "features"
    leaves_out_nan: ClassVar[bool] = True

    clip: float | None = None
    """Limit on abs(Â), in standard deviations, so that no outlier of a noisy target leads; the paper has none."""

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"BIDS: a clip above 0 was asked, {self.clip} was found; leave it out for none.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        standard = Standardised.of(inputs.x, clip=self.clip)
        chosen = bids(inputs.x, min(k, int(np.count_nonzero(standard.there))), standard=standard)
        beyond = standard.there.copy()
        beyond[chosen.order] = False
        return Ranking(
            chosen.order,
            basis=standard.highest(inputs.x),
            basis_name="highest standardised influence",
            descending=None,  # the mean of the chosen is subtracted: that is in the gains
            gains=chosen.gains,
            why_not="no influence is known: its numbers are NaN",
            beyond=beyond,
        )
