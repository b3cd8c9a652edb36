"""Outcomes against scores: against scipy and all orders, calibrated by simulation, and in words."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curate.exceptions import InputError
from curate.numerics.validity import _limits, spearman_exact, validity

VALUES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 4.0]), min_size=2, max_size=6)


def reference(values: list[float]) -> tuple[float, float]:
    """scipy's ρ with the places, best first, and the share of all orders whose |ρ| is as large."""
    place = -np.arange(len(values))
    rho = stats.spearmanr(place, values).statistic
    every = [stats.spearmanr(place, order).statistic for order in itertools.permutations(values)]
    return rho, float(np.mean([abs(r) >= abs(rho) - 1e-9 for r in every]))


@settings(max_examples=25)
@given(VALUES)
def test_parity_with_all_orders(values: list[float]) -> None:
    rho, p = spearman_exact(np.array(values))
    if len(set(values)) == 1:
        assert math.isnan(rho) and math.isnan(p)
    elif len(values) <= 5 or len(set(values)) == 6:
        want = reference(values)
        assert (rho, p) == (pytest.approx(want[0], abs=1e-12), pytest.approx(want[1], abs=1e-12))


def test_by_hand() -> None:
    """Three values: ρ = 1 by one order of six, -1 by another; ½ and -½ by two each."""
    assert spearman_exact(np.array([3.0, 2.0, 1.0])) == (pytest.approx(1), pytest.approx(2 / 6))
    assert spearman_exact(np.array([3.0, 1.0, 2.0])) == (pytest.approx(0.5), pytest.approx(1))
    assert spearman_exact(np.array([1.0, 1.0])) == (pytest.approx(math.nan, nan_ok=True),) * 2


def test_ten_groups() -> None:
    """10! = 3,628,800 orders: two of them with |ρ| = 1, and 177,734 with Σd² ≤ 58 or as far on the other side (counted one
    by one, once): 0.04898, the critical value that tables give for 5%."""
    rho, p = spearman_exact(-np.arange(10.0))
    assert rho == 1 and p == pytest.approx(2 / math.factorial(10))
    rho, p = spearman_exact(-np.array([1.0, 3, 2, 8, 0, 4, 5, 7, 9, 6]))
    assert rho == pytest.approx(1 - 6 * 58 / 990) and p == pytest.approx(177734 / math.factorial(10), rel=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 999))
def test_any_rising_function_and_the_other_way_round(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=7).round(1)
    rho, p = spearman_exact(values)
    assert spearman_exact(np.exp(values)) == (rho, p)
    other = spearman_exact(-values)
    assert other == (pytest.approx(-rho, abs=1e-12), pytest.approx(p))
    a, b = validity(values[None]), validity(-values[None], lower_is_better=False)
    assert (a.rho, a.p, a.in_order) == (b.rho, b.p, b.in_order)


def test_no_relation_is_found_in_one_of_twenty() -> None:
    """An exact p of a discrete test: p ≤ 0.05 in at most 5%; 500 times tell it to 1%."""
    rng = np.random.default_rng(0)
    found = np.array([spearman_exact(values)[1] for values in rng.normal(size=(500, 6))])
    assert 0.01 <= (found <= 0.05).mean() <= 0.05 + 4 * 0.01


@pytest.mark.parametrize("r", [0.0, 0.6, 0.9])
def test_the_interval_holds_the_true_correlation(r: float) -> None:
    """Of normal pairs with correlation r, Spearman's is 6/π asin(r/2).  2,000 times tell 95% to 0.5%: 93% to 98%."""
    rng = np.random.default_rng(1)
    true, times = 6 / math.pi * math.asin(r / 2), 2000
    x = rng.normal(size=(times, 10))
    y = r * x + math.sqrt(1 - r * r) * rng.normal(size=x.shape)
    a, b = (np.argsort(np.argsort(side, axis=1), axis=1) - 4.5 for side in (x, y))
    limits = np.array([_limits(rho, 10) for rho in (a * b).sum(axis=1) / 82.5])
    assert 0.93 <= ((limits[:, 0] <= true) & (true <= limits[:, 1])).mean() <= 0.98


def test_sentences() -> None:
    rising = np.arange(10) / 10 + np.array([[0.0], [0.1], [-0.1]])
    found = validity(rising)
    assert found.said == (
        "the outcome follows the score: ρ = 1.00 [0.96, 1.00], p < 0.0001; 9 of 9 steps in order, 3 seeds"
    )
    np.testing.assert_allclose(found.outcome, np.arange(10) / 10)
    np.testing.assert_allclose(found.sd, 0.1)
    assert (found.low < 1, found.high) == (True, 1)
    other = validity(rising, lower_is_better=False)
    assert other.said.startswith(
        "the outcome runs against the score: ρ = −1.00 [−1.00, −0.96], p < 0.0001; 0 of 9 steps"
    )
    none = validity(np.array([[3.0, 1.0, 4.0, 1.5, 5.0]]))
    assert none.said == (
        "no relation between the score and the outcome: ρ = 0.50 [−0.73, 0.97], p = 0.45; 2 of 4 steps in order, 1 seed"
    )
    flat = validity(np.ones((2, 5)))
    assert math.isnan(flat.rho) and flat.said.startswith("no relation between the score and the outcome: every group")


def test_runs_without_a_result() -> None:
    """A group with one run left goes on with it; one with none is left out, and said so."""
    outcomes = np.tile(np.arange(6.0), (2, 1))
    outcomes[0, 1] = np.nan
    outcomes[:, 3] = np.inf
    found = validity(outcomes)
    np.testing.assert_array_equal(found.outcome, [0, 1, 2, np.nan, 4, 5])
    np.testing.assert_array_equal(found.sd, [0, np.nan, 0, np.nan, 0, 0])
    assert (found.rho, found.steps) == (1, 4)
    assert found.said.endswith("; 1 of 6 groups without a result left out")


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((10,), r"outcomes of shape \(seeds, groups\) were asked, \(10,\) was found"),
        ((3, 3), "4 to 12 groups with a result were asked, 3 of 3 were found"),
        ((1, 13), "4 to 12 groups with a result were asked, 13 of 13 were found"),
        ((0, 10), "4 to 12 groups with a result were asked, 0 of 10 were found"),
    ],
)
def test_what_it_refuses(shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        validity(np.ones(shape))
