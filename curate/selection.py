"""What a selector returns: rows in order of choice, and why each of the others was not chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a selector's hook returns: rows in order of choice, before any quota or budget."""

    order: NDArray[np.int64]
    """Row numbers, each once; rows that may not be chosen at all are left out."""
    basis: NDArray[np.float64] | None = None
    """(n,) the number by which each row was judged, for the ledger."""
    basis_name: str = "score"
    descending: bool | None = True
    """True if the order goes from a high basis to a low one, False if from low to high; None if it does not follow the
    basis (a draw), so that no threshold can be told."""
    labels: NDArray[np.int64] | None = None
    """(n,) the cluster of each row, for a selector that shares the budget out among clusters."""
    gains: NDArray[np.float64] | None = None
    """(len(order),) marginal gain of each choice, where the selector has an objective."""
    why_not: str | list[str] | None = None
    """Reason for the rows that the order leaves out; or several, and ``which`` says which."""
    which: NDArray[np.int64] | None = None
    """(n,) number of each row's reason among several; of no meaning for rows in the order."""
    beyond: NDArray[np.bool_] | None = None
    """(n,) True for rows left out only because the order ends where the budget does, where each place in it is work."""
    bound: float | None = None
    """The basis at which the left-out rows were turned away, where there is one such number."""
    instead: NDArray[np.int64] | None = None
    """(n,) for a row that the order leaves out, the row that stands for it; -1 for the others."""
    account: dict[str, Any] | None = None
    """What there is to tell of the choice as a whole, as JSON: an objective, how many groups were found."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen, in order of choice, and why each of the other rows was not.

    The ledger takes ``basis``, ``thresholds``, ``labels``, ``place`` and ``reasons()``: an array each, a value a row.
    """

    order: NDArray[np.int64]
    """Rows in order of choice; the first ``size`` were chosen, the others come after the end of the budget."""
    size: int
    """Rows chosen, k."""
    n: int
    """Rows in the pool."""
    basis: NDArray[np.float64] | None = None
    """(n,) the number by which each row was judged."""
    basis_name: str = "score"
    descending: bool | None = True
    """Direction in which the order follows the basis; None where it does not."""
    labels: NDArray[np.int64] | None = None
    """(n,) the cluster of each row."""
    gains: NDArray[np.float64] | None = None
    """(k,) marginal gain of each choice."""
    excluded: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))
    """(n,) rows that no budget could choose: the selector leaves them out, or a quota gives their group no share."""
    why_not: str | list[str] | None = None
    """Why the selector left rows out."""
    which: NDArray[np.int64] | None = None
    """(n,) which of several such reasons is each row's."""
    bound: float | None = None
    """The basis at which they were turned away, where there is one."""
    strata: NDArray[np.int64] | None = None
    """(n,) the quota group (or, without a quota, the cluster) among which the budget was shared out."""
    strata_names: list[str] = field(default_factory=list)
    no_share: NDArray[np.bool_] | None = None
    """(number of strata,) True where a quota gives the group no share."""
    instead: NDArray[np.int64] | None = None
    """(n,) the row that stands for one that was left out as its copy; -1 for the others."""
    account: dict[str, Any] | None = None
    """What the selector tells of the choice as a whole."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """(k,) distinct row numbers, in order of choice."""
        return self.order[: self.size]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(n,) True where a row was chosen."""
        mask = np.zeros(self.n, dtype=bool)
        mask[self.indices] = True
        return mask

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """(n,) place of each row in the order of choice, from 0; -1 for a row that is not in it."""
        place = np.full(self.n, -1, dtype=np.int64)
        place[self.order] = np.arange(self.order.size)
        return place

    @property
    def threshold(self) -> float | None:
        """The one number that separates kept from dropped, in the unit of the basis; None where there is none.

        Where a budget cut an order that follows the basis: the basis of the last row kept.  Where nothing was cut: the
        bound of a selector that has one.  None for draws, and under a quota (each group has its own: ``thresholds``).
        """
        if self.size == self.order.size:
            return self.bound
        if self.basis is None or self.descending is None or self.strata is not None or not self.size:
            return None
        return float(self.basis[self.order[self.size - 1]])

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """(n,) what each row's basis was held against; NaN where that is nothing.

        For rows that the selector left out, its bound; for the others, where a budget cut an order that follows the
        basis, the basis of the last row kept (of their own group, under a quota).
        """
        out = np.full(self.n, np.nan)
        if self.basis is not None and self.descending is not None and self.size < self.order.size:
            out[self.order] = self._last_kept()[self.order]
        if self.bound is not None:
            out[self.excluded if self.size < self.order.size else slice(None)] = self.bound
        return out

    def _last_kept(self) -> NDArray[np.float64]:
        """(n,) basis of the last row kept in each row's stratum; NaN where none was kept."""
        assert self.basis is not None
        strata = np.zeros(self.n, dtype=np.int64) if self.strata is None else self.strata
        last = np.full(int(strata.max(initial=0)) + 1, np.nan)
        last[strata[self.indices]] = self.basis[self.indices]  # assigned in order of choice: the last one stays
        return last[strata]

    def reasons(self) -> NDArray[np.object_]:
        """(n,) why each row was not chosen, None where it was."""
        codes, texts = self.coded_reasons()
        return np.array([*texts, None], dtype=object)[codes]

    def coded_reasons(self) -> tuple[NDArray[np.int32], list[str]]:
        """Return why each row was not chosen as (n,) numbers into a list of texts; -1 where it was.

        Few distinct texts (a handful, or one or two a group), so that the column compresses; the numbers of a single
        row stand in ``basis``, ``thresholds`` and ``place``.
        """
        out = np.full(self.n, -1, dtype=np.int32)
        texts: list[str] = []

        def code(*words: str) -> NDArray[np.int32]:
            texts.extend(words)
            return np.arange(len(texts) - len(words), len(texts), dtype=np.int32)

        left_out = np.ones(self.n, dtype=bool)
        left_out[self.order] = False
        out[left_out] = code("after the last row kept, in the order of choice")
        turned_away = left_out & self.excluded
        why = self.why_not if isinstance(self.why_not, list) else [self.why_not or "left out by the selector"]
        out[turned_away] = code(*why)[0 if self.which is None else self.which[turned_away]]
        if self.no_share is not None:
            assert self.strata is not None
            for stratum in np.flatnonzero(self.no_share):
                out[self.strata == stratum] = code(f"{self.strata_names[stratum]} has no share in the quota")
        past = self.order[self.size :]
        below = "below" if self.descending else "above"
        follows = self.basis is not None and self.descending is not None
        of = "the" if self.strata is None else "its"
        if not follows:
            words = ["after the last row kept, in the order of choice"]
            which = np.zeros(past.size, dtype=np.int8)
        else:
            assert self.basis is not None
            words = [
                f"{self.basis_name} {below} that of {of} last row kept",
                f"{self.basis_name} equal to that of {of} last row kept, which stands earlier in the pool",
            ]
            which = (self.basis[past] == self._last_kept()[past]).astype(np.int8)
        if self.strata is None:
            out[past] = code(*words)[which] if self.size else code("the budget keeps no row")
            return out, texts
        sizes = np.bincount(self.strata[self.order], minlength=len(self.strata_names))
        kept = np.bincount(self.strata[self.indices], minlength=len(self.strata_names))
        numbers = np.empty((len(self.strata_names), len(words)), dtype=np.int32)
        for s, name in enumerate(self.strata_names):
            head = f"{name}, {kept[s]:,} of {sizes[s]:,} kept: "
            numbers[s] = code(*(head + word for word in words)) if kept[s] else code(head + "no place fell to it")
        out[past] = numbers[self.strata[past], which]
        return out, texts

    def explain(self, row: int) -> str:
        """Say in one sentence what became of a row, with its numbers.  O(n): for a person, not for a million rows."""
        place, basis = int(self.place[row]), "" if self.basis is None else f"{self.basis_name} {self.basis[row]:.6g}"
        if 0 <= place < self.size:
            why = f"chosen, place {place + 1:,} of {self.size:,}"
        else:
            limit = self.thresholds[row]
            against = "" if np.isnan(limit) else f", the limit is {limit:.6g}"
            why = f"not chosen: {self.reasons()[row]}{against}"
        if self.strata is not None and place >= 0:
            stratum = self.strata[row]
            ahead = int((self.strata[self.order[:place]] == stratum).sum())
            total = int((self.strata[self.order] == stratum).sum())
            why += f"; {self.strata_names[stratum]}, place {ahead + 1:,} of {total:,}"
        return f"row {row}: {why}" + (f" ({basis})." if basis else ".")

    def __len__(self) -> int:
        return self.size
