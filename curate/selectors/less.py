from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.attribution import aggregate, group_columns
from curate.numerics.order import best_first

Aggregate = Literal["mean-max", "max", "sum", "mean"]


@dataclass(kw_only=True)
class LESS(Selector):
    """The rows of highest influence, best first (LESS's rule); equal ones in row order.

    ``x`` (n, M) is the influence of each row on each target row, or any similarity to it.  One score a row comes of it:

    ========== =====================================================================================================
    mean-max   the mean over the targets of a subtask, then the highest subtask (LESS's code)
    max        the highest single target
    sum        the sum over all targets
    mean       the mean of the subtasks' means: each subtask counts the same, however many targets it has
    ========== =====================================================================================================

    LESS averages cosines that are normalised target by target, as its code does; its paper averages the gradients of a
    subtask first.

    References
    ----------
    Xia, Malladi, Gururangan, Arora & Chen 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning"
    (arXiv:2402.04333).  ``max`` and ``sum`` are the rivals that BIDS is compared with (arXiv:2501.12147).
    """

    name: ClassVar[str] = "less"
    reference: ClassVar[str] = (
        'Xia, Malladi, Gururangan, Arora & Chen 2024, "LESS: Selecting Influential Data for Targeted Instruction '
        'Tuning" (arXiv:2402.04333)'
    )
    x_name: ClassVar[str] = "features"
    leaves_out_nan: ClassVar[bool] = True

    targets: list[str] | None = None
    """The subtask of each of the M targets, in the order of the columns.  None: all are of one."""
    aggregate: Aggregate = "mean-max"
    """How M numbers become one."""

    def __post_init__(self) -> None:
        known = get_args(Aggregate)
        if self.aggregate not in known:
            raise InputError(f"LESS: aggregate of {', '.join(known)} was asked, {self.aggregate!r} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        scores = self._scores(inputs.x)
        there = np.flatnonzero(~np.isnan(scores))
        return Ranking(
            there[best_first(scores[there])],
            basis=scores,
            basis_name="influence",
            why_not="no influence is known: its numbers are NaN",
        )

    def _scores(self, x: NDArray[Any]) -> NDArray[np.float64]:
        m = x.shape[1]
        together = np.zeros(m, dtype=np.int64)
        subtasks = together if self.targets is None else group_columns(self.targets, m, caller="LESS")[0]
        if self.aggregate in ("max", "sum"):
            return aggregate(x, together, self.aggregate)[:, 0].astype(np.float64)
        means = aggregate(x, subtasks, "mean")
        if self.aggregate == "mean-max":
            return means.max(axis=1)
        return aggregate(means, np.zeros(means.shape[1], dtype=np.int64), "mean")[:, 0]
