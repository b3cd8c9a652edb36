"""How much may be chosen, and how it is shared out.

A selector puts rows in an *order of choice*.  A ``Quota`` re-interleaves that order so that every prefix holds the
groups in the wanted shares; a ``Budget`` cuts the order where the money runs out.  Order, balance, cut: three steps,
each on plain arrays, each nested (a smaller budget chooses a prefix of what a larger one chooses).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, kw_only=True)
class Quota:
    """The shares in which groups take part, at every prefix of the order of choice."""

    shares: Literal["uniform", "proportional", "tempered"] | Mapping[str, float] = "uniform"
    """``uniform``: every group the same; ``proportional``: by its cost in the pool (rows, or tokens where the budget is
    in tokens); ``tempered``: that to the power 1/``temperature``; or a mapping group → weight (a group left out gets
    nothing).  Weights are read as the decimals that were written: 0.1 to 0.3 is exactly 1 to 3."""
    temperature: float = 2.0
    """τ of the tempered shares: 1 is proportional, ∞ uniform."""

    def weights(self, names: list[str], totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one weight per group name; ``totals`` are the groups' costs in the pool."""
        if isinstance(self.shares, Mapping):
            unknown = sorted(set(self.shares) - set(names))
            if unknown:
                raise InputError(f"quota names groups {unknown} that the pool does not hold; it holds {sorted(names)}.")
            weights = _proportions([self.shares.get(name, 0.0) for name in names])
        elif self.shares == "uniform":
            weights = np.ones(len(names))
        elif self.shares == "proportional":
            weights = np.where(totals > 0, totals, 1.0)  # rows that cost nothing take place 0 whatever their weight
        elif self.shares == "tempered":
            if not self.temperature > 0:
                raise InputError(f"quota: a temperature above 0 was asked, {self.temperature} was found.")
            weights = np.where(totals > 0, totals, 1.0) ** (1.0 / self.temperature)
        else:
            raise InputError(f"quota: shares are uniform, proportional, tempered or a mapping; found {self.shares!r}.")
        if len(names) and (not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0):
            raise InputError("quota: every share must be a finite number of at least 0, and one must be above 0.")
        return weights


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


def interleave(
    groups: NDArray[np.int64], weights: NDArray[np.float64], cost: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Re-order rows so that every prefix holds the groups in proportion to ``weights``.

    The rows come in order of choice.  The row that brings its group from cost c to c + w takes the place
    ``(c + w/2) / weight``, and places are sorted (ties: the earlier row).  With unit costs this is the Sainte-Laguë
    (Webster) divisor method, so a prefix of k rows apportions k without bias, sums to k exactly, and growing k never
    takes a row away.  A group that runs out leaves the rest to the others, by their weights.

    Exactness: with whole costs and weights, equal places compare equal (IEEE division rounds equal rationals alike),
    and two different ones, (2r+1)/2v and (2s+1)/2w, lie at least 1/((2r+1)·w) apart, relatively: they too compare right
    while rows times weight stays below 2⁵².  Beyond that, and with weights that are not whole (tempered shares), places
    closer than rounding count as a tie.  Rows of one group keep their order in every case.

    Parameters
    ----------
    groups : int array (n,), the group of each row, rows in order of choice.
    weights : float array (number of groups,); a group of weight 0 is left out.
    cost : float array (n,), at least 0; ones when None.

    Returns
    -------
    int array of positions into the input, at most n long.

    References
    ----------
    Balinski & Young 1982, "Fair Representation", on divisor methods.
    """
    groups = np.asarray(groups, dtype=np.int64)
    n = groups.size
    if not n:
        return np.empty(0, dtype=np.int64)
    cost = None if cost is None else np.asarray(cost, dtype=np.float64)
    sizes = np.bincount(groups, minlength=len(weights))
    by_group = np.argsort(groups, kind="stable")
    place = np.empty(n)
    end = 0
    for group in np.flatnonzero(sizes):  # a group at a time: of what is as long as the pool, only the places are held
        rows = by_group[end : end + sizes[group]]
        end += sizes[group]
        if weights[group] > 0:
            running = np.arange(rows.size + 1.0) if cost is None else np.r_[0.0, np.cumsum(cost[rows])]
            # As a mean of two cumulative sums: each is monotone whatever the rounding, so the mean is.
            place[rows] = (running[:-1] + running[1:]) / 2 / weights[group]
        else:
            place[rows] = np.inf  # after everybody, then cut off
    del by_group
    taking_part = int(sizes[np.asarray(weights) > 0].sum())
    return np.argsort(place, kind="stable")[:taking_part]


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
    k = budget.limit(n)
    if k is not None:
        return k
    assert budget.tokens is not None and cost is not None
    spent = np.cumsum(cost[order])
    k = int(np.searchsorted(spent, budget.tokens, side="right"))
    if k == 0 and budget.tokens > 0:
        raise InputError(
            f"{caller}: the first row of choice alone costs {int(spent[0]):,} tokens, "
            f"the budget is {budget.tokens:,}; raise it."
        )
    return k
