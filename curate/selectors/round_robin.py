from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.attribution import aggregate, group_columns
from curate.numerics.best_rows import BestRows


@dataclass(kw_only=True)
class RoundRobin(Selector):
    """The targets take turns; each takes its best row that is not yet taken, of equal ones the lowest.

    ``x`` (n, M) is the similarity of each row to each target row, or its influence on it.  With ``targets``, the labels
    take turns in order of first appearance, not the columns: subtasks, or tasks.

    With hidden-state features this is RDS+: without ``targets`` its choice for one task, with the targets' tasks its
    choice for several (the highest over the queries of a task, then a turn for each task).

    References
    ----------
    Ivison, Zhang, Brahman, Koh & Dasigi 2025, "Practical Large-Scale Data Selection for Instruction Tuning"
    (arXiv:2503.01807).
    """

    name: ClassVar[str] = "round-robin"
    reference: ClassVar[str] = (
        'Ivison, Zhang, Brahman, Koh & Dasigi 2025, "Practical Large-Scale Data Selection for Instruction Tuning" '
        "(arXiv:2503.01807)"
    )
    x_name: ClassVar[str] = "features"
    leaves_out_nan: ClassVar[bool] = True

    targets: list[str] | None = None
    """The label of each of the M targets, in the order of the columns; labels take turns.  None: every target does."""
    within: Literal["max", "mean"] = "max"
    """How a row is judged for a label of several targets: by the best of them, or by their mean."""

    def __post_init__(self) -> None:
        if self.within not in ("max", "mean"):
            raise InputError(f"RoundRobin: within of max or mean was asked, {self.within!r} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        x = inputs.x
        if self.targets is not None:
            labels, names = group_columns(self.targets, x.shape[1], caller="RoundRobin")
            x = x if len(names) == x.shape[1] else aggregate(x, labels, self.within)
        there = ~np.isnan(x[:, 0])
        k = min(k, int(np.count_nonzero(there)))
        order = np.empty(k, dtype=np.int64)
        if k:
            best = BestRows(x, there, k)
            for place in range(k):
                order[place] = row = best.row[place % x.shape[1]]
                best.close(int(row))
        beyond = there.copy()
        beyond[order] = False
        return Ranking(
            order,
            basis=x.max(axis=1).astype(np.float64),
            basis_name="highest similarity to a target",
            descending=None,  # the order follows whose turn it is
            why_not="no similarity is known: its numbers are NaN",
            beyond=beyond,
        )
