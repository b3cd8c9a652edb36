from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.budget import Budget, Quota, cut, interleave, parse_count
from curate.exceptions import InputError

# -- reading a budget --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5000", 5000),
        ("10_000", 10_000),
        ("1,024", 1024),
        ("10k", 10_000),
        ("1.005k", 1005),
        ("50M", 50e6),
        ("1.1B", 11e8),
        (7, 7),
    ],
)
def test_counts(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("given_", "budget"),
    [
        (5000, Budget(rows=5000)),
        (np.int64(5), Budget(rows=5)),
        ("10k", Budget(rows=10_000)),
        ("10k rows", Budget(rows=10_000)),
        ("10%", Budget(fraction=0.1)),
        (" 12.5% ", Budget(fraction=0.125)),
        ("50M tokens", Budget(tokens=50_000_000)),
        ({"tokens": "50M"}, Budget(tokens=50_000_000)),
        ({"fraction": "10%"}, Budget(fraction=0.1)),
        ({"fraction": 0.1}, Budget(fraction=0.1)),
        ({"rows": 3}, Budget(rows=3)),
    ],
)
def test_budgets_are_read(given_, budget):
    assert Budget.parse(given_) == budget
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("ten", "a count was asked, 'ten' was found; write 5000, '10k' or '50M'"),
        (True, "a count was asked, True was found"),
        ("1.0001k", "a budget of 1.0001k rows: a whole number was asked"),
        ("x%", "a fraction was asked, 'x%' was found; write '10%' or 0.1"),
        ({"fraction": "many"}, "a fraction was asked, 'many' was found"),
        ("150%", "a budget's fraction lies in (0, 1]; found 1.5"),
        ("0%", "a budget's fraction lies in (0, 1]; found 0.0"),
        ("nan%", "a budget's fraction lies in (0, 1]; found nan"),
        (0.1, "a budget of 0.1 rows: write '10%' for a fraction"),
        (-1, "a budget of -1 rows: a whole number of 0 or more was asked"),
        ({"token": 5}, "a budget has rows, fraction or tokens; found token"),
        ({}, "a budget is one of rows, fraction or tokens; found none"),
        ({"rows": 5, "tokens": 9}, "a budget is one of rows, fraction or tokens; found rows, tokens"),
    ],
)
def test_what_is_no_budget_is_refused(given_, said):
    with pytest.raises(InputError) as error:
        Budget.parse(given_)
    assert said in str(error.value)


def test_a_budget_in_rows_is_whole():
    with pytest.raises(InputError, match=r"a budget of 2.5 rows: a whole number of 0 or more was asked"):
        Budget(rows=2.5)


def test_budgets_say_what_they_are():
    assert [str(b) for b in (Budget(rows=14438), Budget(fraction=0.1), Budget(tokens=50_000_000))] == [
        "14,438 rows",
        "0.1 of the rows",
        "50,000,000 tokens",
    ]


@given(percent=st.integers(1, 100), n=st.integers(1, 10**12))
def test_a_percentage_is_the_floor_of_the_exact_product(percent, n):
    assert Budget.parse(f"{percent}%").limit(n) == max(1, percent * n // 100)


@given(part=st.integers(1, 400), whole=st.integers(1, 400), times=st.integers(1, 10**6))
def test_a_fraction_of_a_multiple_is_exact(part, whole, times):
    if part <= whole:
        assert Budget(fraction=part / whole).limit(whole * times) == part * times


def test_fractions_by_hand():
    assert Budget.parse("10%").limit(144_381) == 14_438
    assert 0.29 * 100 < 29  # what a plain floor would trip over
    assert Budget(fraction=0.29).limit(100) == 29
    assert Budget(fraction=0.001).limit(10) == 1  # at least one row
    assert Budget(fraction=1.0).limit(3) == 3
    assert Budget(fraction=0.5).limit(0) == 0
    assert Budget(tokens=5).limit(10) is None


# -- cutting -----------------------------------------------------------------------------------------------------------


def test_cut_by_hand():
    order, cost = np.array([2, 0, 3, 1]), np.array([4.0, 1.0, 3.0, 5.0])  # in order: 3, 4, 5, 1
    kept = {t: cut(order, Budget(tokens=t), 4, cost, caller="T") for t in (3, 6, 7, 11, 12, 13)}
    assert kept == {3: 1, 6: 1, 7: 2, 11: 2, 12: 3, 13: 4}
    assert cut(order, Budget(tokens=0), 4, cost, caller="T") == 0
    assert cut(order, Budget(rows=3), 4, None, caller="T") == 3


@given(costs=st.lists(st.integers(0, 9), max_size=12), data=st.data())
def test_a_token_budget_keeps_the_longest_prefix_that_fits(costs, data):
    cost = np.array(costs, dtype=np.float64)
    order = np.array(data.draw(st.permutations(range(len(costs)))), dtype=np.int64)
    tokens = data.draw(st.integers(0, sum(costs)))
    if costs and 0 < tokens < cost[order[0]]:
        with pytest.raises(InputError, match=f"the first row of choice alone costs {costs[order[0]]} tokens"):
            cut(order, Budget(tokens=tokens), len(costs), cost, caller="T")
        return
    k = cut(order, Budget(tokens=tokens), len(costs), cost, caller="T")
    assert cost[order[:k]].sum() <= tokens
    assert k == len(costs) or cost[order[: k + 1]].sum() > tokens


@pytest.mark.parametrize(
    ("order", "budget", "cost", "said"),
    [
        ([0, 1, 2], Budget(rows=4), None, "T: k=4 rows asked of a pool of n=3; lower the budget, or widen the pool."),
        (
            [0, 2],
            Budget(rows=3),
            None,
            "T: k=3 rows asked of a pool of n=3, of which 2 may be chosen; lower the budget",
        ),
        ([], Budget(rows=1), None, "T: k=1 rows asked of a pool of n=3, of which 0 may be chosen"),
        (
            [0, 1, 2],
            Budget(tokens=9),
            None,
            "T: a budget in tokens needs the rows' costs; pass cost=, one number of tokens a row.",
        ),
        (
            [0, 1, 2],
            Budget(tokens=1001),
            [500, 400, 100],
            "T: 1,001 tokens asked of a pool of n=3 rows, which hold 1,000 tokens; lower",
        ),
        ([0, 2], Budget(tokens=601), [500, 400, 100], "n=3 rows, of which 2 may be chosen, which hold 600 tokens"),
        ([], Budget(tokens=1), [500, 400, 100], "n=3 rows, of which 0 may be chosen, which hold 0 tokens"),
        (
            [0, 2],
            Budget(tokens=99),
            [500, 400, 100],
            "T: the first row of choice alone costs 500 tokens, the budget is 99; raise it.",
        ),
    ],
)
def test_budgets_that_cannot_be_filled(order, budget, cost, said):
    cost = None if cost is None else np.array(cost, dtype=np.float64)
    with pytest.raises(InputError) as error:
        cut(np.array(order, dtype=np.int64), budget, 3, cost, caller="T")
    assert said in str(error.value)


# -- shares ------------------------------------------------------------------------------------------------------------

NAMES, TOTALS = ["code", "math", "web"], np.array([1.0, 4.0, 16.0])


@pytest.mark.parametrize(
    ("quota", "weights"),
    [
        (Quota(), [1, 1, 1]),
        (Quota(shares="proportional"), [1, 4, 16]),
        (Quota(shares="tempered"), [1, 2, 4]),
        (Quota(shares="tempered", temperature=1), [1, 4, 16]),
        (Quota(shares="tempered", temperature=float("inf")), [1, 1, 1]),
        (Quota(shares={"math": 3, "web": 1}), [0, 3, 1]),
    ],
)
def test_shares_by_hand(quota, weights):
    np.testing.assert_allclose(quota.weights(NAMES, TOTALS), weights, rtol=1e-12)


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        (
            Quota(shares={"maths": 1}),
            "quota names groups ['maths'] that the pool does not hold; it holds ['code', 'math', 'web']",
        ),
        (
            Quota(shares={"math": -1, "web": 2}),
            "every share must be a finite number of at least 0, and one must be above 0",
        ),
        (Quota(shares={"math": float("nan")}), "every share must be a finite number"),
        (Quota(shares={"math": 0}), "one must be above 0"),
    ],
)
def test_bad_shares(quota, said):
    with pytest.raises(InputError) as error:
        quota.weights(NAMES, TOTALS)
    assert said in str(error.value)


@given(st.lists(st.integers(1, 999), min_size=2, max_size=4), st.integers(0, 3))
def test_decimal_shares_are_exactly_the_decimals(numerators, digits):
    """0.1 : 0.3 orders rows as 1 : 3 does, ties included, though 0.3 is not three times 0.1 in floating point."""
    names = [str(i) for i in range(len(numerators))]
    decimals = Quota(shares={name: float(Fraction(w, 10**digits)) for name, w in zip(names, numerators, strict=True)})
    groups = np.arange(400) % len(numerators)
    found = interleave(groups, decimals.weights(names, np.ones(len(names))))
    np.testing.assert_array_equal(found, interleave(groups, np.array(numerators, dtype=np.float64)))


# -- interleaving ------------------------------------------------------------------------------------------------------


def sainte_lague(groups: list[int], weights: list[Fraction]) -> list[int]:
    """The divisor method as the book has it, in exact arithmetic: the next seat goes to the highest weight / (2s + 1).

    Ties go to the group whose next row comes earlier.
    """
    waiting = {g: [i for i, h in enumerate(groups) if h == g] for g in set(groups) if weights[g] > 0}
    seats = dict.fromkeys(waiting, 0)
    out = []
    while any(waiting.values()):
        best = max((g for g in waiting if waiting[g]), key=lambda g: (weights[g] / (2 * seats[g] + 1), -waiting[g][0]))
        out.append(waiting[best].pop(0))
        seats[best] += 1
    return out


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 12), min_size=4, max_size=4))
def test_interleave_is_sainte_lague(groups, weights):
    found = interleave(np.array(groups, dtype=np.int64), np.array(weights, dtype=np.float64))
    assert found.tolist() == sainte_lague(groups, [Fraction(w) for w in weights])


def test_interleave_by_hand():
    # Weights 2 : 1.  Places of a: 1/4, 3/4, 5/4, …; of b: 1/2, 3/2, …
    assert interleave(np.array([1, 0, 0, 1, 0]), np.array([2.0, 1.0])).tolist() == [1, 0, 2, 4, 3]
    assert interleave(np.array([1, 0, 0, 1, 0]), np.array([0.0, 1.0])).tolist() == [0, 3]
    assert interleave(np.empty(0, dtype=np.int64), np.ones(3)).tolist() == []


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_proportional_prefixes_stay_near_the_exact_share(groups):
    """At a cut each of m groups is within ½ of t·w for one t, hence of its exact share within ½(1 - p) + ½ p (m -
    1)."""
    g = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(g).astype(np.float64)
    share = sizes / g.size
    order = interleave(g, sizes)
    assert sorted(order.tolist()) == list(range(g.size))  # k = n keeps every row
    for k in range(1, g.size + 1):
        off = np.abs(np.bincount(g[order[:k]], minlength=sizes.size) - k * share)
        assert (off <= (1 - share) / 2 + share * (sizes.size - 1) / 2 + 1e-9).all()


@pytest.mark.parametrize("seed", range(50))
def test_rows_of_a_group_keep_their_order_whatever_the_costs(seed):
    rng = np.random.default_rng(seed)
    groups, weights = rng.integers(0, 4, size=40), rng.uniform(0.001, 1000, size=4)
    cost = 10.0 ** rng.uniform(-18, 6, size=40)  # small ones vanish in the sum of those before them
    order = interleave(groups, weights, cost)
    assert sorted(order.tolist()) == list(range(40))
    for g in range(4):
        own = order[groups[order] == g].tolist()
        assert own == sorted(own)


def test_costs_share_out_tokens_not_rows():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 2, size=2000)
    cost = np.where(groups == 0, 10.0, 30.0)
    order = interleave(groups, np.ones(2), cost)[:800]
    spent = np.bincount(groups[order], weights=cost[order])
    assert abs(spent[0] - spent[1]) <= 30
    assert abs(np.bincount(groups[order])[0] / 800 - 0.75) < 0.01


def test_rows_without_cost_come_first():
    assert interleave(np.array([0, 1, 0, 1]), np.ones(2), np.array([5.0, 0.0, 5.0, 0.0])).tolist() == [1, 3, 0, 2]
    assert Quota(shares="proportional").weights(["a", "b"], np.array([10.0, 0.0])).tolist() == [10, 1]


def test_places_stay_exact_for_large_pools():
    """Places one part in 10¹¹ apart are told apart: (2r+1)/2v against (2s+1)/2w."""
    v, w = 300_001, 300_000
    r = v // 2  # (2r+1)/2v is 1/2 exactly; (2s+1)/2w passes it between two rows of the other group
    groups = np.repeat([0, 1], [v, w])
    order = interleave(groups, np.array([v, w], dtype=np.float64))
    place = np.empty(order.size, dtype=np.int64)
    place[order] = np.arange(order.size)
    s = w // 2
    assert place[v + s - 1] < place[r] < place[v + s]
