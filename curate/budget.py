"""How much may be chosen, and how it is shared out.

A selector puts rows in an *order of choice*.  A ``Quota`` re-interleaves that order so that every prefix holds the
groups in the wanted shares, between what each is to get at least and at most; a ``Budget`` cuts the order where the
money runs out.  Order, balance, cut: three steps, each on plain arrays, each nested (a smaller budget chooses a prefix
of what a larger one chooses; ``Quota`` says how far bounds leave it so).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate.apportion import Amounts, apportion
from curate.apportion import interleave as interleave
from curate.exceptions import InputError

_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}


def parse_count(text: str | int | float) -> float:
    """``"50M"`` → 50e6; ``"10_000"`` → 10000; numbers pass through."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    found = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kmbgKMBG]?)\s*", str(text))
    if not found:
        raise InputError(f"a count was asked, {text!r} was found; write 5000, '10k' or '50M'.")
    # A fraction, because in floating point 1.005 * 1000 is not a whole number.
    return float(Fraction(found[1].replace("_", "").replace(",", "")) * _SUFFIX[found[2].lower()])


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit in rows, in a fraction of the pool's rows, or in tokens.  Exactly one is set."""

    rows: int | None = None
    """Number of rows k."""
    fraction: float | None = None
    """Share of the pool's rows, in (0, 1]; k = floor(fraction · n), at least 1."""
    tokens: int | None = None
    """Sum of the rows' costs that may not be exceeded (training tokens)."""

    def __post_init__(self) -> None:
        given = [n for n in ("rows", "fraction", "tokens") if getattr(self, n) is not None]
        if len(given) != 1:
            raise InputError(f"a budget is one of rows, fraction or tokens; found {', '.join(given) or 'none'}.")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise InputError(f"a budget's fraction lies in (0, 1]; found {self.fraction}.")
        for name in ("rows", "tokens"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and value == int(value)):
                raise InputError(f"a budget of {value} {name}: a whole number of 0 or more was asked.")

    @classmethod
    def parse(cls, value: Budget | int | float | str | Mapping[str, object]) -> Budget:
        """Read ``5000``, ``"10k"``, ``"10%"``, ``"50M tokens"`` or ``{"tokens": "50M"}``."""
        if isinstance(value, Budget):
            return value
        if isinstance(value, Mapping):
            unknown = set(value) - {"rows", "fraction", "tokens"}
            if unknown:
                raise InputError(
                    f"a budget has rows, fraction or tokens; found {', '.join(map(str, sorted(unknown)))}."
                )
            fraction = value.get("fraction")
            return cls(
                rows=_whole(value.get("rows"), "rows"),
                fraction=None if fraction is None else _fraction(str(fraction)),
                tokens=_whole(value.get("tokens"), "tokens"),
            )
        if isinstance(value, str):
            text = value.strip()
            if text.endswith("%"):
                return cls(fraction=_fraction(text))
            if text.lower().endswith("tokens"):
                return cls(tokens=_whole(text[: -len("tokens")], "tokens"))
            if text.lower().endswith("rows"):
                return cls(rows=_whole(text[: -len("rows")], "rows"))
        if isinstance(value, float) and not value.is_integer():
            raise InputError(
                f"a budget of {value} rows: write '{value:.0%}' for a fraction, or a whole number of rows."
            )
        return cls(rows=_whole(value, "rows"))

    def __str__(self) -> str:
        if self.rows is not None:
            return f"{self.rows:,} rows"
        if self.fraction is not None:
            return f"{self.fraction:.4g} of the rows"
        return f"{self.tokens:,} tokens"

    def limit(self, n: int) -> int | None:
        """Rows asked of a pool of ``n``, or None for a token budget."""
        if self.rows is not None:
            return self.rows
        if self.fraction is not None:
            # Two roundings (the fraction itself, the product) can leave 0.29 * 100 just under 29; the factor outweighs
            # them, and lifts nothing that is further than that from a whole number.
            return min(n, max(1, math.floor(self.fraction * n * (1 + 2**-51))))
        return None


def _fraction(text: str) -> float:
    """``"10%"`` → 0.1; ``"0.1"`` → 0.1."""
    try:
        return float(text.rstrip().removesuffix("%")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        raise InputError(f"a fraction was asked, {text!r} was found; write '10%' or 0.1.") from None


def _whole(value: object, unit: str) -> int | None:
    if value is None:
        return None
    number = parse_count(value)  # type: ignore[arg-type]
    if not number.is_integer():
        raise InputError(f"a budget of {value} {unit}: a whole number was asked.")
    return int(number)


Bound = int | str | Mapping[str, Any]
"""An amount as ``Budget.parse`` reads it; a fraction is of the budget, not of the pool."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """How the budget is shared out among groups: shares, and what a group gets at least and at most.

    Without bounds every prefix of the order of choice holds the groups in their shares.  With bounds the apportionment
    of the whole budget is exact: each group gets between its floor and its ceiling, and what one cannot take the others
    share (the divisor method with minimum and maximum requirements of Balinski & Young).  Bounds in rows or tokens
    leave budgets nested, from the sum of the floors on; bounds that are shares of the budget move with it.

    A bound is an amount in the unit of the budget (300, "2M tokens") or a share of the budget ("5%").  Shares are met
    to within one row, a floor rounded down and a ceiling up, so that floors that sum to at most 100% and ceilings that
    sum to at least 100% can always be met.  In tokens a floor is reached with whole rows and a ceiling never passed.
    """

    shares: Literal["uniform", "proportional", "tempered"] | Mapping[str, float] = "uniform"
    """``uniform``: every group the same; ``proportional``: by its cost in the pool (rows, or tokens where the budget is
    in tokens); ``tempered``: that to the power 1/``temperature``; or a mapping group → weight (a group left out gets
    nothing).  Weights are read as the decimals that were written: 0.1 to 0.3 is exactly 1 to 3."""
    temperature: float = 2.0
    """τ of the tempered shares: 1 is proportional, ∞ uniform."""
    floor: Bound | None = None
    """What each group that has a share gets at least."""
    ceiling: Bound | None = None
    """What each group gets at most."""
    floors: Mapping[str, Bound] = field(default_factory=dict)
    """Floors of single groups, in place of ``floor``; also of groups without a share."""
    ceilings: Mapping[str, Bound] = field(default_factory=dict)
    """Ceilings of single groups, in place of ``ceiling``."""
    counts: Mapping[str, Bound] = field(default_factory=dict)
    """What single groups get exactly: floor and ceiling in one.  The other groups share the rest."""
    short: Literal["stop", "take"] = "stop"
    """Where a group holds less than its floor, or all groups together less than the budget under their ceilings, or the
    pool lacks a group that is named: stop, or take what there is."""

    def __post_init__(self) -> None:
        if not (isinstance(self.shares, Mapping) or self.shares in ("uniform", "proportional", "tempered")):
            raise InputError(f"quota: shares are uniform, proportional, tempered or a mapping; found {self.shares!r}.")
        if self.short not in ("stop", "take"):
            raise InputError(f"quota: short is stop or take; found {self.short!r}.")
        if not self.temperature > 0:
            raise InputError(f"quota: a temperature above 0 was asked, {self.temperature} was found.")
        twice = sorted(set(self.counts) & (set(self.floors) | set(self.ceilings)))
        if twice:
            raise InputError(f"quota: {twice} have a count, which is a floor and a ceiling already; drop one of them.")
        for what, bound in self._bounds():
            try:
                Budget.parse(bound)  # type: ignore[arg-type]
            except InputError as error:
                raise InputError(f"quota: {what}: {error}") from None

    def _bounds(self) -> Iterator[tuple[str, Bound]]:
        for what, one in (("floor", self.floor), ("ceiling", self.ceiling)):
            if one is not None:
                yield what, one
        for what, many in (("floor", self.floors), ("ceiling", self.ceilings), ("count", self.counts)):
            for name, bound in many.items():
                yield f"{what} of {name!r}", bound

    def weights(self, names: list[str], totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one weight per group name; ``totals`` are the groups' costs in the pool."""
        unknown = self.absent(names)
        if unknown and self.short == "stop":
            raise InputError(f"quota names groups {unknown} that the pool does not hold; it holds {sorted(names)}.")
        if isinstance(self.shares, Mapping):
            weights = _proportions([self.shares.get(name, 0.0) for name in names])
        elif self.shares == "uniform":
            weights = np.ones(len(names))
        else:
            weights = np.where(totals > 0, totals, 1.0)  # rows that cost nothing take place 0 whatever their weight
            if self.shares == "tempered":
                weights = weights ** (1.0 / self.temperature)
        some = (weights > 0).any() or self.floors or self.counts
        if len(names) and (not np.isfinite(weights).all() or (weights < 0).any() or not some):
            raise InputError("quota: every share must be a finite number of at least 0, and one must be above 0.")
        return weights

    def absent(self, names: list[str]) -> list[str]:
        """Return the groups that the quota names and the pool does not hold."""
        shares = self.shares if isinstance(self.shares, Mapping) else ()
        return sorted({*shares, *self.floors, *self.ceilings, *self.counts} - set(names))

    def amounts(
        self,
        names: list[str],
        weights: NDArray[np.float64],
        held: NDArray[np.float64],
        budget: Budget | None,
        n: int,
        *,
        caller: str,
    ) -> Amounts | None:
        """Return what each group gets at least and at most, in rows or tokens; None for a quota without bounds.

        Parameters
        ----------
        names, weights : the groups and their weights.
        held : (number of groups,) rows, or tokens for a budget in tokens, of each group that may be chosen.
        budget, n : the budget, and the rows of the pool that it is of.

        Raises
        ------
        InputError
            If floors and ceilings cannot all be met: what was asked, what was found, what to do.
        """
        if next(self._bounds(), None) is None:
            return None
        unit = "rows" if budget is None or budget.tokens is None else "tokens"
        total = None if budget is None else budget.tokens if unit == "tokens" else budget.limit(n)
        least, most = np.zeros(len(names)), np.full(len(names), np.inf)
        shared = np.zeros((2, len(names)), dtype=bool)

        def read(bound: Bound, rounded: Callable[[float], int], what: str) -> tuple[float, bool]:
            return _amount(bound, unit, total, rounded, f"{caller}: the quota's {what}")

        if self.floor is not None:
            least[weights > 0], shared[0] = read(self.floor, math.floor, "floor")
        if self.ceiling is not None:
            most[:], shared[1] = read(self.ceiling, math.ceil, "ceiling")
        place = {name: g for g, name in enumerate(names)}
        for name in (n for n in self.floors if n in place):
            least[place[name]], shared[0, place[name]] = read(self.floors[name], math.floor, f"floor of {name!r}")
        for name in (n for n in self.ceilings if n in place):
            most[place[name]], shared[1, place[name]] = read(self.ceilings[name], math.ceil, f"ceiling of {name!r}")
        for name in (n for n in self.counts if n in place):
            g = place[name]
            least[g], shared[0, g] = read(self.counts[name], math.floor, f"count of {name!r}")
            most[g], shared[1, g] = least[g], False
        crossed = np.flatnonzero(least > most)
        if crossed.size:
            g = int(crossed[0])
            raise InputError(
                f"{caller}: the quota asks at least {least[g]:,.0f} and at most {most[g]:,.0f} {unit} of "
                f"{names[g]!r}; lower its floor, or raise its ceiling."
            )
        under = np.flatnonzero(least > held)
        short = {names[g]: {"asked": int(least[g]), "found": int(held[g])} for g in under.tolist()}
        if short and self.short == "stop":
            listed = ", ".join(f"{v['asked']:,} of {name!r}, which holds {v['found']:,}" for name, v in _head(short))
            raise InputError(
                f"{caller}: the quota asks at least {listed} {unit} that may be chosen; lower these floors, widen the "
                f"pool, or take what there is with short: take."
            )
        least = np.minimum(least, held)
        if total is not None and least.sum() > total:
            raise InputError(
                f"{caller}: the quota's floors sum to {least.sum():,.0f} {unit}, the budget is {total:,} "
                f"({_told(names, least)}); lower the floors, or raise the budget."
            )
        most = np.where(weights > 0, most, least)
        room = np.minimum(most, held).sum()
        if total is not None and room < total and self.short == "stop":
            raise InputError(
                f"{caller}: under the quota's ceilings the groups may keep {room:,.0f} {unit} together, the budget is "
                f"{total:,}; raise the ceilings, lower the budget, or take what there is with short: take."
            )
        return Amounts(least, most, shared, unit, short)


def _amount(
    bound: Bound, unit: str, total: int | None, rounded: Callable[[float], int], what: str
) -> tuple[float, bool]:
    """Return a bound in the unit of the budget, and whether it is a share of it."""
    asked = Budget.parse(bound)  # type: ignore[arg-type]
    if asked.fraction is not None:
        if total is None:
            raise InputError(f"{what} is a share of the budget, and there is no budget; add one.")
        # As in Budget.limit: the rounding of the share and of the product must not look like a part of a row.
        nudge = 1 + 2**-51 if rounded is math.floor else 1 - 2**-51
        return float(rounded(asked.fraction * total * nudge)), True
    given = asked.rows if unit == "rows" else asked.tokens
    if unit == "tokens" and not isinstance(bound, Mapping) and not str(bound).strip().lower().endswith("rows"):
        given = asked.rows if given is None else given  # a bare number is in the unit of the budget
    if given is None:
        raise InputError(f"{what} is {asked}, the budget is in {unit}; write it in {unit}, or as a share.")
    return float(given), False


def _head(what: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(what.items())[:5]


def _told(names: list[str], amounts: NDArray[np.float64]) -> str:
    """Name the largest amounts, for a message."""
    largest = [g for g in np.argsort(-amounts, kind="stable").tolist() if amounts[g] > 0]
    more = f", and {len(largest) - 5} more" if len(largest) > 5 else ""
    return ", ".join(f"{names[g]!r} {amounts[g]:,.0f}" for g in largest[:5]) + more


def _proportions(shares: list[float]) -> NDArray[np.float64]:
    """Return weights in the proportions of ``shares``: whole numbers, where decimals as they were written allow it.

    ``interleave`` divides by them.  Quotients of whole numbers that are equal are equal in floating point too, whereas
    0.5 / 0.1 and 1.5 / 0.3 need not be.
    """
    try:
        exact = [Fraction(str(share)) for share in shares]
    except ValueError:  # NaN and infinity: the caller refuses them by name
        return np.array([float(share) for share in shares])
    scale = math.lcm(*(share.denominator for share in exact))
    whole = [share * scale for share in exact]
    return np.array([float(w) for w in (whole if all(abs(w) < 2**53 for w in whole) else exact)])


@dataclass(frozen=True, eq=False)
class Balance:
    """An order of choice under a quota."""

    order: NDArray[np.int64]
    """Rows in order of choice: those of floors, then by shares, then those past their group's ceiling."""
    size: int
    """How many of them the budget keeps; none past a ceiling."""
    names: list[str]
    """Each group with its ceiling, for reasons."""
    no_share: NDArray[np.bool_]
    """(number of groups,) True where the quota gives a group nothing."""
    account: dict[str, Any] | None
    """What could not be met and was let pass."""


def balance(
    quota: Quota,
    order: NDArray[np.int64],
    groups: NDArray[np.int64],
    names: list[str],
    weights: NDArray[np.float64],
    budget: Budget | None,
    cost: NDArray[np.float64] | None,
    *,
    caller: str,
) -> Balance:
    """Re-interleave an order of choice by a quota, and cut it by the budget.

    Parameters
    ----------
    order : int array (at most n,), rows in order of choice.
    groups, cost : (n,) of every row of the pool; ``cost`` where the budget is in tokens, else None.
    names, weights : of the groups.

    Raises
    ------
    InputError
        If the quota cannot be met or the budget not be filled by the rows in the order.
    """
    n = groups.size
    own = groups[order]
    costs = None if cost is None else cost[order]
    held = np.bincount(own, costs, len(names)).astype(np.float64)
    amounts = quota.amounts(names, weights, held, budget, n, caller=caller)
    positions, (floors, allowed) = apportion(own, weights, costs, amounts)
    order = order[positions]
    if budget is None:
        size = int(allowed)
    elif amounts is None and quota.short == "stop":
        size = cut(order, budget, n, cost, caller=caller)
    else:
        if budget.tokens is not None and cost is not None:
            first = float(cost[order[:floors]].sum())
            if first > budget.tokens:
                raise InputError(
                    f"{caller}: the quota's floors take {first:,.0f} tokens in whole rows, the budget is "
                    f"{budget.tokens:,}; lower the floors, or raise the budget."
                )
        size = _pays_for(order[:allowed], budget, n, cost, caller=caller)
    told = [f"group {name!r}" for name in names]
    account: dict[str, Any] | None = None
    if amounts is not None:
        bounded = (amounts.most < held) & ((weights > 0) | (amounts.least > 0))
        for g in np.flatnonzero(bounded).tolist():
            told[g] += f" (at most {amounts.most[g]:,.0f} {amounts.unit})"
    missing = {name: {"asked": None, "found": 0} for name in quota.absent(names)}
    short = missing | ({} if amounts is None else amounts.short)
    if short:
        account = {"short": short}
    if budget is not None and quota.short == "take" and size == allowed:  # every row that ceilings and shares let pass
        asked = budget.limit(n) if budget.tokens is None else budget.tokens
        left = int(asked or 0) - (size if cost is None else int(cost[order[:size]].sum()))
        if left > 0:
            account = (account or {}) | {"unspent": left}
    no_share = (weights == 0) & (np.bincount(groups[order], minlength=len(names)) == 0)
    return Balance(order, size, told, no_share, account)


def afford(
    budget: Budget, n: int, order: NDArray[np.int64] | None, cost: NDArray[np.float64] | None, *, caller: str
) -> None:
    """Check that a pool of ``n`` rows, of which those in ``order`` may be chosen (None: all), can fill the budget.

    Raises
    ------
    InputError
        For more rows or tokens than there are, or a budget in tokens without the rows' costs.
    """
    count = n if order is None else order.size
    left = "" if count == n else f", of which {count:,} may be chosen"
    k = budget.limit(n)
    if k is not None:
        if k > count:
            raise InputError(
                f"{caller}: k={k} rows asked of a pool of n={n}{left}; lower the budget, or widen the pool."
            )
        return
    if cost is None:
        raise InputError(f"{caller}: a budget in tokens needs the rows' costs; pass cost=, one number of tokens a row.")
    assert budget.tokens is not None
    held = float(cost.sum() if order is None else cost[order].sum())
    if held < budget.tokens:
        raise InputError(
            f"{caller}: {budget.tokens:,} tokens asked of a pool of n={n} rows{left}, which hold {int(held):,} tokens; "
            f"lower the budget, or widen the pool."
        )


def cut(order: NDArray[np.int64], budget: Budget, n: int, cost: NDArray[np.float64] | None, *, caller: str) -> int:
    """Return how many rows of ``order`` the budget pays for.

    In rows: exactly k.  In tokens: the longest prefix whose costs sum to at most the budget.  A prefix, so that budgets
    nest: what stays unspent is less than the cost of the next row in order.

    Raises
    ------
    InputError
        If the rows cannot fill the budget (see ``afford``), or it is too small for the first of them.
    """
    afford(budget, n, order, cost, caller=caller)
    return _pays_for(order, budget, n, cost, caller=caller)


def _pays_for(
    order: NDArray[np.int64], budget: Budget, n: int, cost: NDArray[np.float64] | None, *, caller: str
) -> int:
    """Return how many rows of ``order`` the budget pays for: all, where it pays for more than there are."""
    k = budget.limit(n)
    if k is not None:
        return min(k, order.size)
    assert budget.tokens is not None and cost is not None
    spent = np.cumsum(cost[order])
    k = int(np.searchsorted(spent, budget.tokens, side="right"))
    if k == 0 and budget.tokens > 0 and order.size:
        raise InputError(
            f"{caller}: the first row of choice alone costs {int(spent[0]):,} tokens, "
            f"the budget is {budget.tokens:,}; raise it."
        )
    return k
