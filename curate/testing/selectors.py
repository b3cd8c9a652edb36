"""The laws of ``curate.base.Selector``, checked on any instance."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.base import Selection, Selector
from curate.budget import Budget, Quota
from curate.exceptions import InputError
from curate.seeding import rng_for

DIM = 6
# What it is, rows, and the number of different values in its scores, features and quality.
_POOLS = (("random", 60, 10**6), ("tied", 40, 3), ("constant", 12, 1), ("two", 2, 9), ("one", 1, 9), ("empty", 0, 9))


@dataclass(frozen=True)
class Pool:
    """One small pool: everything that a selector may be given."""

    what: str
    n: int
    scores: NDArray[np.float64]
    features: NDArray[np.float32]
    quality: NDArray[np.float64]
    groups: NDArray[np.int64]
    cost: NDArray[np.int64]
    sources: NDArray[np.str_]

    def x(self, selector: Selector) -> Any:
        return {"scores": self.scores, "features": self.features, "nothing": self.n}[selector.x_name]

    def arrays(self) -> list[NDArray[Any]]:
        return [self.scores, self.features, self.quality, self.groups, self.cost, self.sources]


def pools(seed: int = 0) -> list[Pool]:
    """Return the pools that selectors are checked on: random, full of ties, all the same, of one row, empty."""
    out = []
    for what, n, levels in _POOLS:
        rng = rng_for(seed, "check_selector", what)
        rows = np.arange(n)
        if what == "tied":
            rows = rng.integers(0, n // 3, size=n)  # each row several times
        out.append(
            Pool(
                what=what,
                n=n,
                scores=rng.integers(0, levels, size=n)[rows] / 8,
                features=(rng.integers(0, levels, size=(n, DIM))[rows] / levels).astype(np.float32),
                quality=rng.integers(0, levels, size=n)[rows] / levels,
                groups=rng.integers(0, max(1, n // 3), size=n)[rows],
                cost=rng.integers(1, 50, size=n)[rows],
                sources=np.array(["a", "b", "c"])[rng.integers(0, 3, size=n)],
            )
        )
    return out


def check_selector(selector: Selector, *, seed: int = 0) -> None:
    """Check the laws of ``Selector`` on small pools.

    The pools hold scores (at least 0, many tied), features (some rows the same in everything), quality in [0, 1),
    prompts, tokens and sources.  A selector that can keep only part of a pool is held to what it keeps when no budget
    is given.

    Raises
    ------
    AssertionError
        Saying the law, the pool and what was found.
    """
    assert isinstance(selector, Selector), f"an instance of a Selector was asked, {selector!r} was found."
    before = copy.deepcopy(selector.params())
    json.dumps(selector.identity())  # goes into the fingerprint
    for pool in pools(seed):
        everything = _choose(selector, pool, None)
        _law_1(everything, pool, everything.size)
        _law_2(selector, pool, everything)
        _law_3(everything, pool)
        _law_4(selector, pool, everything)
        _law_5(selector, pool, everything)
        _budgets(selector, pool, everything)
        _account(everything, pool)
    _refusals(selector, pools(seed)[0])
    assert selector.params() == before, f"law 4: selecting changed the parameters from {before} to {selector.params()}."


def _choose(selector: Selector, pool: Pool, k: Any, **more: Any) -> Selection:
    return selector.select(pool.x(selector), k, **{**_given(selector, pool), **more})


def _given(selector: Selector, pool: Pool) -> dict[str, Any]:
    """Return what a selector may look at besides ``x``."""
    learn = {"learn": lambda number, chosen, asked: pool.scores[asked]} if selector.needs_learner else {}
    return {"quality": pool.quality, "groups": pool.groups, "cost": pool.cost, **learn}


def _same(a: Selection, b: Selection, law: str) -> None:
    assert np.array_equal(a.indices, b.indices), f"{law}: {a.indices[:20]} and {b.indices[:20]} were chosen."


def _law_1(chosen: Selection, pool: Pool, k: int) -> None:
    rows = chosen.indices
    where = f"law 1, {pool.what} pool of {pool.n}, k={k}"
    assert rows.dtype == np.int64 and rows.shape == (k,), (
        f"{where}: indices of dtype {rows.dtype} and shape {rows.shape}."
    )
    assert np.unique(rows).size == k, f"{where}: a row was chosen twice: {rows}."
    assert k == 0 or (rows.min() >= 0 and rows.max() < pool.n), f"{where}: rows outside the pool: {rows}."
    assert len(chosen) == k == chosen.mask.sum(), f"{where}: {chosen.mask.sum()} rows in the mask."


def _law_2(selector: Selector, pool: Pool, everything: Selection) -> None:
    for k in range(everything.size + 1):
        chosen = _choose(selector, pool, k)
        _law_1(chosen, pool, k)
        if selector.nested:
            assert np.array_equal(chosen.indices, everything.indices[:k]), (
                f"law 2, {pool.what} pool of {pool.n}: k={k} gives {chosen.indices}, "
                f"not the first of {everything.indices}."
            )


def _law_3(chosen: Selection, pool: Pool) -> None:
    """Of rows that nothing tells apart, the lowest comes first.  A draw (no direction, no gains) tells rows apart."""
    if chosen.basis is not None and chosen.descending is not None:
        basis = chosen.basis[chosen.order] * (-1 if chosen.descending else 1)
        falls = np.flatnonzero(np.diff(basis) < 0)
        assert not falls.size, (
            f"law 3, {pool.what} pool: the order does not follow {chosen.basis_name} at place {falls[0] + 1}."
        )
        same: NDArray[Any] = basis
    elif chosen.gains is not None:
        given = np.c_[pool.scores, pool.features, pool.quality, pool.groups, pool.cost]
        _, same = np.unique(given[chosen.order], axis=0, return_inverse=True)
    else:
        return
    for value in np.unique(same):
        rows = chosen.order[same == value]
        assert (np.diff(rows) > 0).all(), f"law 3, {pool.what} pool: equal rows {rows} were not taken lowest first."


def _law_4(selector: Selector, pool: Pool, everything: Selection) -> None:
    saved = [array.copy() for array in pool.arrays()]
    _same(_choose(selector, pool, None), everything, "law 5")
    for array, copied in zip(pool.arrays(), saved, strict=True):
        assert np.array_equal(array, copied), f"law 4, {pool.what} pool: an input was written to."
    for array in pool.arrays():
        array.flags.writeable = False  # a memory map opened for reading
    _same(_choose(selector, pool, None), everything, "law 4, read-only inputs")
    for array in pool.arrays():
        array.flags.writeable = True


def _law_5(selector: Selector, pool: Pool, everything: Selection) -> None:
    _choose(selector, pools(seed=99)[0], None)  # another pool in between leaves no trace
    _same(_choose(selector, pool, None), everything, "law 5, after another pool")
    _same(
        _choose(type(selector)(**selector.params()), pool, None),
        everything,
        "law 5, a new object with the same parameters",
    )


def _budgets(selector: Selector, pool: Pool, everything: Selection) -> None:
    reach, n = everything.size, pool.n
    for percent in (10, 50, 100):
        k = max(1, n * percent // 100) if n else 0
        if k <= reach:
            _law_1(_choose(selector, pool, f"{percent}%"), pool, k)
    full = _choose(selector, pool, Budget(rows=reach), quota=Quota(), quota_groups=pool.sources)
    assert set(full.indices) == set(everything.indices), (
        f"quota, {pool.what} pool: the whole order lost or gained rows."
    )
    for k in range(reach + 1):
        chosen = _choose(selector, pool, k, quota=Quota(), quota_groups=pool.sources)
        assert np.array_equal(chosen.indices, full.indices[:k]), (
            f"quota, {pool.what} pool: k={k} is no prefix of k={reach}."
        )
        counts = {s: np.count_nonzero(pool.sources[chosen.indices] == s) for s in ("a", "b", "c")}
        left = {s: np.count_nonzero(pool.sources[everything.order] == s) - counts[s] for s in counts}
        unmet = [counts[s] for s in counts if left[s]]
        assert not unmet or max(counts.values()) <= min(unmet) + 1, (
            f"quota, {pool.what} pool, k={k}: uniform shares gave {counts}."
        )
    if reach:
        held = int(pool.cost[everything.order].sum())
        ranked = pool.cost[_choose(selector, pool, Budget(tokens=held)).order]
        for tokens in np.unique(np.linspace(ranked[0], ranked.sum(), 7).astype(int)):
            chosen = _choose(selector, pool, Budget(tokens=int(tokens)))
            _law_1(chosen, pool, chosen.size)
            spent = np.cumsum(pool.cost[chosen.order])
            fits = int((spent <= tokens).sum())
            assert chosen.size == fits, f"{pool.what} pool, {tokens} tokens: {chosen.size} rows were kept, {fits} fit."


def _account(everything: Selection, pool: Pool) -> None:
    """Every row is either chosen or has a reason, whatever the budget."""
    reasons = everything.reasons()
    chosen = everything.mask
    assert reasons.shape == (pool.n,) and all((r is None) == c for r, c in zip(reasons, chosen, strict=True)), (
        f"{pool.what} pool: a dropped row without a reason, or a chosen row with one: {reasons}."
    )
    if everything.instead is not None:
        copies = np.flatnonzero(everything.instead >= 0)
        assert everything.instead.shape == (pool.n,) and everything.excluded[copies].all(), (
            f"{pool.what} pool: a row stands for one that was not left out."
        )
        stand = everything.instead[copies]
        assert not everything.excluded[stand].any(), f"{pool.what} pool: a row that was left out stands for another."
    json.dumps(everything.account)  # goes into the manifest


def _refusals(selector: Selector, pool: Pool) -> None:
    def refuses(what: str, x: Any, k: Any = None, **more: Any) -> None:
        try:
            selector.select(x, k, **{**_given(selector, pool), **more})
        except InputError:
            return
        raise AssertionError(f"{what}: InputError was expected, nothing was raised.")

    x = pool.x(selector)
    refuses("k above n", x, pool.n + 1)
    refuses("more tokens than the pool holds", x, Budget(tokens=int(pool.cost.sum()) + 1))
    refuses("tokens without costs", x, Budget(tokens=10), cost=None)
    refuses("quality of another length", x, quality=pool.quality[1:])
    refuses("a quota without groups", x, quota=Quota())
    if selector.x_name != "nothing":
        for bad in (np.nan, np.inf):
            spoilt = x.copy()
            spoilt[3] = bad
            if selector.leaves_out_nan:
                spoilt[3, 0] = 0.0  # in part: neither there nor not
            refuses(f"{bad} in {selector.x_name}", spoilt)
        refuses("text", np.full(x.shape, "high"))
        refuses("another number of dimensions", x[None])
    if selector.needs_groups:
        refuses("no groups", x, groups=None)
    if selector.needs_learner:
        refuses("nothing to learn from", x, learn=None)
    if selector.leaves_out_nan:
        _leaves_out_nan(selector, pool)


def _leaves_out_nan(selector: Selector, pool: Pool) -> None:
    """A row that is NaN throughout has a reason, and the others are chosen as if it were not there."""
    x = pool.x(selector).copy()
    x[3] = np.nan
    rest = np.delete(np.arange(pool.n), 3)
    given: dict[str, Any] = {"quality": pool.quality, "groups": pool.groups, "cost": pool.cost}
    for k in (None, pool.n // 2):
        chosen = selector.select(x, k, **given)
        assert chosen.excluded[3] and chosen.why_not and 3 not in chosen.order, f"k={k}: a row of NaN was not left out."
        without = selector.select(x[rest], k, **{name: array[rest] for name, array in given.items()})
        assert np.array_equal(rest[without.indices], chosen.indices), f"k={k}: a row of NaN changed the choice."
