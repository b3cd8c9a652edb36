"""Floors and ceilings: the apportionment against exact arithmetic and brute force, and what cannot be met."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from curate.budget import Budget, Quota
from curate.exceptions import InputError
from curate.selectors import Random, TopK


def chosen(groups, k, quota, cost=None, order=None):
    """Return rows chosen of each group, the rows, and the selection; rows in the order given (by default their own)."""
    n = len(groups)
    scores = -np.arange(n, dtype=np.float64) if order is None else -np.argsort(order).astype(np.float64)
    labels = np.array([str(g) for g in groups], dtype=object)
    found = TopK().select(scores, k, quota=quota, quota_groups=labels, cost=cost)
    names = sorted(set(labels.tolist()))
    return {name: int((labels[found.indices] == name).sum()) for name in names}, found.indices, found


# -- the divisor method with minimum and maximum -----------------------------------------------------------------------


def by_the_book(sizes: list[int], weights: list[int], least: list[int], most: list[int], k: int) -> list[int]:
    """Seats one after the other, in exact arithmetic: after the minima, to the highest weight / (2 s + 1)."""
    seats = list(least)
    while sum(seats) < k:
        open_ = [g for g, s in enumerate(seats) if s < min(most[g], sizes[g]) and weights[g]]
        best = max(
            open_, key=lambda g: (Fraction(weights[g], 2 * seats[g] + 1), -seats[g], -g)
        )  # ties: the earlier row
        seats[best] += 1
    return seats


@st.composite
def shared_out(draw):
    m = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 12), min_size=m, max_size=m))
    weights = draw(st.lists(st.integers(1, 9), min_size=m, max_size=m))
    least = [draw(st.integers(0, size)) for size in sizes]
    most = [draw(st.integers(low, 14)) for low in least]
    k = draw(st.integers(sum(least), sum(map(min, sizes, most))))
    return sizes, weights, least, most, k


def pool_of(sizes):
    """Rows of all groups, one of each in turn, so that ties go to the lower group."""
    rows = sorted((r, g) for g, size in enumerate(sizes) for r in range(size))
    return [g for _, g in rows]


def bounded(weights, least, most, **more):
    names = [str(g) for g in range(len(weights))]
    return Quota(
        shares=dict(zip(names, weights, strict=True)),
        floors=dict(zip(names, least, strict=True)),
        ceilings=dict(zip(names, most, strict=True)),
        **more,
    )


@given(shared_out())
def test_counts_are_those_of_the_book(case):
    sizes, weights, least, most, k = case
    found, rows, _ = chosen(pool_of(sizes), k, bounded(weights, least, most))
    assert [found[str(g)] for g in range(len(sizes))] == by_the_book(sizes, weights, least, most, k)
    assert len(set(rows.tolist())) == k


@given(shared_out())
def test_no_other_apportionment_within_the_bounds_is_fairer(case):
    """Webster's method has the least Σ w (x/w - k/W)², also among the apportionments that keep bounds."""
    sizes, weights, least, most, k = case
    found, _, _ = chosen(pool_of(sizes), k, bounded(weights, least, most))

    def unfair(counts):
        return sum(Fraction(x * x, w) for x, w in zip(counts, weights, strict=True))  # Σ x and W are the same for all

    every = itertools.product(*(range(lo, min(hi, n) + 1) for lo, hi, n in zip(least, most, sizes, strict=True)))
    best = min(unfair(counts) for counts in every if sum(counts) == k)
    assert unfair(list(found.values())) == best


@given(shared_out(), st.data())
def test_budgets_nest_from_the_sum_of_the_floors_on(case, data):
    sizes, weights, least, most, k = case
    quota, groups = bounded(weights, least, most), pool_of(sizes)
    smaller = data.draw(st.integers(sum(least), k))
    _, long, _ = chosen(groups, k, quota)
    _, short, _ = chosen(groups, smaller, quota)
    assert long[:smaller].tolist() == short.tolist()


@given(shared_out(), st.randoms(use_true_random=False))
def test_rows_of_a_group_keep_their_order(case, random):
    sizes, weights, least, most, k = case
    groups = pool_of(sizes)
    order = list(range(len(groups)))
    random.shuffle(order)
    _, rows, _ = chosen(groups, k, bounded(weights, least, most), order=np.array(order))
    place = np.argsort(order)
    for g in range(len(sizes)):
        own = [int(place[r]) for r in rows if groups[r] == g]
        assert own == sorted(own)
        assert own == sorted(place[r] for r in range(len(groups)) if groups[r] == g)[: len(own)]  # the first of it


def test_without_bounds_nothing_changes():
    groups = [0, 0, 0, 1, 1, 2] * 5
    plain = chosen(groups, 12, Quota(shares="proportional"))[1]
    wide = chosen(groups, 12, Quota(shares="proportional", floor=0, ceiling=30))[1]
    assert plain.tolist() == wide.tolist()


def test_by_hand():
    groups = ["code"] * 10 + ["math"] * 30 + ["web"] * 60
    tell = lambda k=20, **q: chosen(groups, k, Quota(**q))[0]  # noqa: E731
    assert tell() == {"code": 7, "math": 7, "web": 6}  # of equal places the earlier row
    assert tell(shares="proportional") == {"code": 2, "math": 6, "web": 12}
    assert tell(shares="proportional", floor=4) == {
        "code": 4,
        "math": 5,
        "web": 11,
    }  # 16 left: 30:60, less what they have
    assert tell(shares="proportional", ceiling=8) == {"code": 4, "math": 8, "web": 8}
    assert tell(shares="proportional", ceilings={"web": 8}) == {"code": 3, "math": 9, "web": 8}
    assert tell(shares="proportional", floors={"code": 10}) == {"code": 10, "math": 3, "web": 7}
    assert tell(counts={"web": 2, "code": 3}) == {"code": 3, "math": 15, "web": 2}
    assert tell(shares={"web": 1}, floors={"math": 5}) == {"code": 0, "math": 5, "web": 15}
    assert tell(shares={"web": 1}, floor=5) == {"code": 0, "math": 0, "web": 20}  # groups without a share have no floor
    assert tell(shares="proportional", floor="25%", ceiling="40%") == {"code": 5, "math": 7, "web": 8}
    assert tell(k=100, ceiling=100) == {"code": 10, "math": 30, "web": 60}
    assert tell(k=None, ceiling=20) == {"code": 10, "math": 20, "web": 20}
    assert tell(k=None, shares={"web": 1}, counts={"math": 7}, ceilings={"web": 9}) == {"code": 0, "math": 7, "web": 9}


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.integers(1, 60),
    st.lists(st.integers(0, 100), min_size=6, max_size=6),
)
def test_shares_of_the_budget_that_sum_to_one_can_always_be_met(sizes, k, cuts):
    """Floors of at most 100% together and ceilings of at least that, in whole percent."""
    m = len(sizes)
    edges = [0, *sorted(cuts[: m - 1]), 100]
    percent = {str(g): edges[g + 1] - edges[g] for g in range(m)}
    assume(all(percent.values()))
    groups = [g for g in range(m) for _ in range(k)]
    bound = {name: f"{p}%" for name, p in percent.items()}
    found, _, _ = chosen(groups, k, Quota(floors=bound, ceilings=bound))
    for name, p in percent.items():
        assert p * k // 100 <= found[name] <= -(-p * k // 100)  # within the quota, as the field calls it


def test_shares_are_the_decimals_that_were_written():
    groups = ["a"] * 100 + ["b"] * 100
    assert chosen(groups, 100, Quota(counts={"a": "29%"}))[0] == {"a": 29, "b": 71}  # 0.29 · 100 is below 29
    assert chosen(groups, 100, Quota(ceilings={"a": "7%"}))[0] == {"a": 7, "b": 93}  # 0.07 · 100 is above 7


# -- tokens ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_tokens(seed):
    """Floors are reached, ceilings kept, the budget not exceeded; unspent is less than the next row costs."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 3, 120)
    cost = rng.integers(1, 30, 120).astype(np.float64)
    held = np.bincount(groups, cost, 3)
    floor, ceiling = float(rng.integers(0, 80)), float(rng.integers(120, 400))
    total = int(rng.integers(3 * floor + 100, np.minimum(held, ceiling).sum() - 30))
    _, rows, found = chosen(groups, f"{total} tokens", Quota(floor=int(floor), ceiling=int(ceiling)), cost=cost)
    spent = np.bincount(groups[rows], cost[rows], 3)
    assert (spent >= floor).all() and (spent <= ceiling).all() and spent.sum() <= total
    following = found.order[found.size : found.size + 1]
    if following.size and spent[groups[following[0]]] + cost[following[0]] <= ceiling:
        assert spent.sum() + cost[following[0]] > total


def test_tokens_by_hand():
    groups, cost = ["a"] * 4 + ["b"] * 4, np.array([5.0, 5, 5, 5, 10, 10, 10, 10])
    tell = lambda k, **q: chosen(groups, k, Quota(**q), cost=cost)[0]  # noqa: E731
    assert tell("30 tokens", floors={"b": 20}) == {"a": 2, "b": 2}
    assert tell("30 tokens", floors={"b": "15 tokens"}) == {"a": 2, "b": 2}  # reached with whole rows
    assert tell("30 tokens", ceilings={"b": {"tokens": 15}}) == {"a": 4, "b": 1}  # never passed
    assert tell("40 tokens", ceilings={"b": "75%"}, counts={"a": "25%"}) == {"a": 2, "b": 3}
    assert tell("30 tokens", counts={"b": 25}) == {"a": 2, "b": 2}  # a count: the rows that it pays for
    assert tell("40 tokens", counts={"a": 12, "b": 28}) == {"a": 2, "b": 2}
    with pytest.raises(InputError, match="the quota's floors take 50 tokens in whole rows, the budget is 45"):
        tell("45 tokens", floors={"a": 16, "b": 29})


def test_shares_of_a_budget_in_tokens_are_met_to_within_a_row():
    groups, sevens = ["a", "b", "c"] * 9, np.full(27, 7.0)
    counts, _, _ = chosen(groups, "100 tokens", Quota(floor="33%", ceiling="34%"), cost=sevens)
    assert counts == {"a": 5, "b": 5, "c": 4}  # 33 tokens are more than 4 rows, 34 less than 5
    counts, _, _ = chosen(groups, "40 tokens", Quota(shares={"a": 1, "b": 1}, ceiling="50%"), cost=sevens)
    assert counts == {"a": 3, "b": 2, "c": 0}


def test_rows_without_cost():
    groups, cost = ["a", "a", "b", "b"], np.array([0.0, 0, 3, 3])
    assert chosen(groups, "3 tokens", Quota(floor=0, ceiling=3), cost=cost)[0] == {"a": 2, "b": 1}
    assert chosen(groups, "3 tokens", Quota(counts={"a": 0}), cost=cost)[0] == {"a": 2, "b": 1}


# -- what is told ------------------------------------------------------------------------------------------------------


def test_reasons_name_the_ceiling():
    _, _, found = chosen(["a"] * 4 + ["b"] * 3 + ["c"], 4, Quota(shares={"a": 4, "b": 1}, ceilings={"a": 2}))
    assert found.reasons().tolist() == [
        None,
        None,
        *["group 'a' (at most 2 rows), 2 of 4 kept: score below that of its last row kept"] * 2,
        None,
        None,
        "group 'b', 2 of 3 kept: score below that of its last row kept",
        "group 'c' has no share in the quota",
    ]
    assert found.account is None and not found.excluded[:7].any() and found.excluded[7]


def test_taking_what_there_is():
    groups = ["a"] * 2 + ["b"] * 10
    quota = Quota(floors={"a": 5, "z": 1}, ceilings={"b": 4}, short="take")
    counts, rows, found = chosen(groups, 9, quota)
    assert counts == {"a": 2, "b": 4} and rows.size == 6
    short = {"z": {"asked": None, "found": 0}, "a": {"asked": 5, "found": 2}}
    assert found.account == {"quota": {"short": short, "unspent": 3}}
    assert chosen(groups, 6, quota)[2].account == {"quota": {"short": short}}
    assert chosen(groups, 9, Quota(shares={"a": 1, "z": 3}, short="take"))[0] == {"a": 2, "b": 0}
    with pytest.raises(InputError, match="k=13 rows asked of a pool of n=12"):  # of the pool, not of the quota
        chosen(groups, 13, quota)
    assert chosen(groups, 3, Quota(counts={"a": 7}, short="take"))[0] == {"a": 2, "b": 1}  # more than the budget, even
    cost = np.ones(12)
    counts, _, found = chosen(groups, "9 tokens", Quota(ceilings={"b": 4}, short="take"), cost=cost)
    assert counts == {"a": 2, "b": 4} and found.account == {"quota": {"unspent": 3}}


# -- what cannot be met ------------------------------------------------------------------------------------------------

SIZES = ["code"] * 10 + ["math"] * 30 + ["web"] * 60


@pytest.mark.parametrize(
    ("k", "quota", "said"),
    [
        (
            20,
            Quota(floor=5, floors={"web": 12}),
            "TopK: the quota's floors sum to 22 rows, the budget is 20 ('web' 12, 'code' 5, 'math' 5); lower the floors, or "
            "raise the budget.",
        ),
        (20, Quota(counts={"math": 11, "web": 10}), "the quota's floors sum to 21 rows, the budget is 20"),
        (
            90,
            Quota(floor=28),
            "TopK: the quota asks at least 28 of 'code', which holds 10 rows that may be chosen; lower these floors, widen "
            "the pool, or take what there is with short: take.",
        ),
        (
            60,
            Quota(ceiling=20),
            "TopK: under the quota's ceilings the groups may keep 50 rows together, the budget is 60; raise the ceilings, "
            "lower the budget, or take what there is with short: take.",
        ),
        (50, Quota(shares={"math": 1}, ceilings={"web": 3}), "may keep 30 rows together, the budget is 50"),
        (
            20,
            Quota(floor=5, ceilings={"web": 4}),
            "TopK: the quota asks at least 5 and at most 4 rows of 'web'; lower its floor, or raise its ceiling.",
        ),
        (20, Quota(floors={"web": "50%"}, ceiling=9), "asks at least 10 and at most 9 rows of 'web'"),
        (
            20,
            Quota(floors={"wbe": 3}),
            "quota names groups ['wbe'] that the pool does not hold; it holds ['code', 'math', 'web']",
        ),
        (20, Quota(ceilings={"wbe": 3}), "quota names groups ['wbe']"),
        (20, Quota(counts={"wbe": 3}), "quota names groups ['wbe']"),
        (None, Quota(ceiling="10%"), "the quota's ceiling is a share of the budget, and there is no budget"),
        (
            20,
            Quota(ceiling="9 tokens"),
            "the quota's ceiling is 9 tokens, the budget is in rows; write it in rows, or as a share.",
        ),
        ("20 tokens", Quota(floors={"web": "9 rows"}), "the quota's floor of 'web' is 9 rows, the budget is in tokens"),
        ("20 tokens", Quota(floor=8), "the quota's floors sum to 24 tokens, the budget is 20"),
        ("50 tokens", Quota(floors={"code": 11}), "at least 11 of 'code', which holds 10 tokens that may be chosen"),
        ("60 tokens", Quota(ceiling=20), "may keep 50 tokens together, the budget is 60"),
    ],
)
def test_quotas_that_cannot_be_met(k, quota, said):
    with pytest.raises(InputError) as error:
        chosen(SIZES, k, quota, cost=np.ones(100))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"temperature": 0}, "quota: a temperature above 0 was asked, 0 was found"),
        ({"temperature": float("nan")}, "quota: a temperature above 0 was asked, nan was found"),
        ({"shares": "equal"}, "quota: shares are uniform, proportional, tempered or a mapping; found 'equal'"),
        ({"short": "go"}, "quota: short is stop or take; found 'go'"),
        ({"floor": -1}, "quota: floor: a budget of -1 rows: a whole number of 0 or more was asked"),
        ({"ceiling": "120%"}, "quota: ceiling: a budget's fraction lies in (0, 1]; found 1.2"),
        ({"floor": 0.1}, "quota: floor: a budget of 0.1 rows: write '10%' for a fraction"),
        ({"floors": {"a": "some"}}, "quota: floor of 'a': a count was asked, 'some' was found"),
        ({"counts": {"a": 3}, "floors": {"a": 2}}, "quota: ['a'] have a count, which is a floor and a ceiling already"),
    ],
)
def test_bad_quotas(params, said):
    with pytest.raises(InputError) as error:
        Quota(**params)
    assert said in str(error.value)


def test_rows_that_the_selector_leaves_out_do_not_count():
    """Found after the selector has worked: of the ten rows of a only four pass the threshold."""
    from curate.selectors import Threshold

    scores, groups = np.r_[np.arange(10.0), np.full(10, 9.0)], np.repeat(["a", "b"], 10)
    with pytest.raises(InputError, match="Threshold: the quota asks at least 5 of 'a', which holds 4 rows"):
        Threshold(min=6).select(scores, 12, quota=Quota(floor=5), quota_groups=groups)
    found = Threshold(min=6).select(scores, 12, quota=Quota(floor=5, short="take"), quota_groups=groups)
    assert np.bincount(found.indices // 10).tolist() == [4, 8]


@pytest.mark.parametrize("quota", [Quota(floor=0), Quota(ceiling=3), Quota(short="take")])
def test_an_empty_pool(quota):
    assert len(Random().select(0, 0, quota=quota, quota_groups=np.empty(0, dtype=object))) == 0


def test_a_large_pool_is_as_exact_and_quick():
    rng = np.random.default_rng(0)
    groups = rng.zipf(1.3, 300_000).clip(max=200) - 1
    names = np.unique(groups)
    sizes = np.bincount(groups)[names]
    quota = Quota(shares="proportional", floor=50, ceiling=20_000, short="take")
    found = Random(seed=1).select(groups.size, 90_000, quota=quota, quota_groups=groups)
    counts = np.bincount(groups[found.indices])[names]
    assert counts.sum() == 90_000
    low, high = np.minimum(50, sizes), np.minimum(sizes, 20_000)
    assert (counts >= low).all() and (counts <= high).all()
    # counts = median(low, [w/λ], high) for one λ: the groups strictly between their bounds have x ± ½ ≈ w/λ
    free = (counts > low) & (counts < high)
    assert free.sum() > 20
    assert ((counts[free] - 0.5) / sizes[free]).max() <= ((counts[free] + 0.5) / sizes[free]).min()


def test_a_fraction_of_the_pool():
    counts, _, _ = chosen(SIZES, Budget(fraction=0.2), Quota(floor="30%"))
    assert counts == {"code": 7, "math": 7, "web": 6}
