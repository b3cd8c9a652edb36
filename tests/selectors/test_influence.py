"""BIDS, LESS and round-robin as selectors: their rules by plain loops, ties, budgets, quotas, rows without numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate import Quota
from curate.exceptions import InputError
from curate.numerics.bids import Standardised
from curate.numerics.reference import reference_bids, reference_round_robin
from curate.seeding import rng_for
from curate.selectors import BIDS, LESS, RoundRobin

TASKS = ["maths", "code", "maths", "chat", "code"]


@st.composite
def influence(draw):
    """(n, 5) whole numbers of few levels: ties in the scores, in the maxima, and whole rows alike; some rows NaN."""
    n = draw(st.integers(1, 30))
    rng = rng_for(draw(st.integers(0, 10**6)), "influence")
    a = rng.integers(0, draw(st.integers(1, 6)), size=(n, 5)).astype(np.float32)
    if draw(st.booleans()):
        a[rng.random(n) < 0.3] = np.nan
    return a


def usable(a):
    return [i for i in range(len(a)) if not np.isnan(a[i]).any()]


def by_task(a, how):
    return np.stack([how(a[:, [t == task for t in TASKS]], axis=1) for task in dict.fromkeys(TASKS)], axis=1)


@given(influence(), st.data())
def test_bids_is_the_plain_search(a, data):
    k = data.draw(st.integers(0, len(usable(a))))
    order, gains = reference_bids(Standardised.of(a), a, k)
    chosen = BIDS().select(a, k)
    assert chosen.indices.tolist() == order
    assert chosen.gains.tolist() == gains


@given(influence(), st.sampled_from(["mean-max", "max", "sum", "mean"]), st.data())
def test_less_is_a_sort_of_one_score(a, how, data):
    k = data.draw(st.integers(0, len(usable(a))))
    wide = a.astype(np.float64)
    score = {
        "mean-max": lambda: by_task(wide, np.mean).max(axis=1),
        "max": lambda: wide.max(axis=1),
        "sum": lambda: wide.sum(axis=1),
        "mean": lambda: np.add.accumulate(by_task(wide, np.mean), axis=1)[:, -1] / 3,
    }[how]()
    chosen = LESS(targets=TASKS, aggregate=how).select(a, k)
    assert chosen.indices.tolist() == sorted(usable(a), key=lambda i: (-score[i], i))[:k]
    np.testing.assert_array_equal(chosen.basis, score)


def test_less_without_subtasks_is_the_mean():
    a = np.array([[0, 6], [3, 5], [1, 1]], dtype=np.float32)
    assert LESS().select(a).indices.tolist() == [1, 0, 2]
    assert LESS(targets=["x", "y"]).select(a).indices.tolist() == [0, 1, 2]


@given(influence(), st.sampled_from([None, "max", "mean"]), st.data())
def test_round_robin_is_the_plain_loop(a, within, data):
    k = data.draw(st.integers(0, len(usable(a))))
    wide = a.astype(np.float64)
    if within is None:
        chosen, judged = RoundRobin().select(a, k), wide
    else:
        chosen = RoundRobin(targets=TASKS, within=within).select(a, k)
        judged = by_task(wide, np.max if within == "max" else np.mean)
    assert chosen.indices.tolist() == reference_round_robin(judged, k)


def test_round_robin_by_hand():
    """Row 0 is best for both columns: the first takes it, the second its next best, row 2."""
    a = np.array([[9, 9], [8, 0], [0, 8], [1, 1]], dtype=np.float32)
    assert RoundRobin().select(a).indices.tolist() == [0, 2, 1, 3]
    assert RoundRobin(targets=["q", "q"]).select(a).indices.tolist() == [0, 1, 2, 3]


ALL = [BIDS(), LESS(targets=TASKS), RoundRobin(), RoundRobin(targets=TASKS)]


@pytest.mark.parametrize("selector", ALL, ids=str)
def test_rows_without_numbers_have_a_reason(selector):
    a = rng_for(0, "rows").normal(size=(20, 5)).astype(np.float32)
    a[[4, 7]] = np.nan
    chosen = selector.select(a, 6)
    reasons = chosen.reasons()
    assert [i for i in range(20) if reasons[i] and "NaN" in reasons[i]] == [4, 7]
    assert chosen.excluded.nonzero()[0].tolist() == [4, 7]
    assert sum(r is None for r in reasons) == 6
    assert "NaN" in chosen.explain(4)
    with pytest.raises(InputError, match="k=19 rows asked of a pool of n=20, of which 18 may be chosen"):
        selector.select(a, 19)
    a[9, 2] = np.nan
    with pytest.raises(InputError, match="features holds NaN or infinity, first at row 9 of 20"):
        selector.select(a, 6)
    a[9, 2] = np.inf
    with pytest.raises(InputError, match="first at row 9 of 20"):
        selector.select(a, 6)


@pytest.mark.parametrize("selector", ALL, ids=str)
def test_rows_past_the_budget_are_told_as_such(selector):
    a = rng_for(1, "past").normal(size=(20, 5)).astype(np.float32)
    chosen = selector.select(a, 6)
    past = {r for r in chosen.reasons() if r is not None}
    assert len(past) == 1 and not chosen.excluded.any()
    assert "last row kept" in past.pop()


@pytest.mark.parametrize("selector", ALL, ids=str)
def test_a_token_budget_cuts_the_order(selector):
    """The same rows as the whole order cut by hand, though only part of it is made."""
    rng = rng_for(2, "tokens")
    a = rng.normal(size=(60, 5)).astype(np.float32)
    cost = rng.integers(0, 50, size=60)
    whole = selector.select(a).indices
    spent = np.cumsum(cost[whole])
    for tokens in (60, 300, 900, int(cost.sum())):
        chosen = selector.select(a, f"{tokens} tokens", cost=cost)
        assert chosen.indices.tolist() == whole[: np.searchsorted(spent, tokens, side="right")].tolist()


@pytest.mark.parametrize("selector", ALL, ids=str)
def test_a_quota_is_kept_and_a_threshold_is_not_made_up(selector):
    a = rng_for(3, "quota").normal(size=(40, 5)).astype(np.float32)
    groups = np.array(["a"] * 30 + ["b"] * 10)
    chosen = selector.select(a, 10, quota=Quota(), quota_groups=groups)
    assert (groups[chosen.indices] == "a").sum() == 5
    if not isinstance(selector, LESS):
        assert selector.select(a, 10).threshold is None


@pytest.mark.parametrize("cls", [LESS, RoundRobin])
def test_labels_must_fit_the_columns(cls):
    with pytest.raises(InputError, match=f"{cls.__name__}: targets= one label for each of the 5 columns .* 2 labels"):
        cls(targets=["a", "b"]).select(np.ones((3, 5)), 1)


def test_what_they_refuse():
    with pytest.raises(InputError, match="LESS: aggregate of mean-max, max, sum, mean was asked, 'median' was found"):
        LESS(aggregate="median")
    with pytest.raises(InputError, match="RoundRobin: within of max or mean was asked, 'sum' was found"):
        RoundRobin(within="sum")
    with pytest.raises(InputError, match="a clip above 0 was asked, 0 was found"):
        BIDS(clip=0)


def test_a_clip_stops_an_outlier():
    """One row is 32 σ out for a target that no other row tells anything about."""
    rng = rng_for(4, "clip")
    a = np.c_[rng.normal(size=1000), np.zeros(1000)].astype(np.float32)
    a[700, 1] = 1
    assert BIDS().select(a, 1).indices.tolist() == [700]
    assert BIDS(clip=3).select(a, 1).gains.tolist() == [3.0]


def test_a_memory_map_is_read_where_it_lies(tmp_path):
    a = rng_for(5, "map").normal(size=(3000, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for selector in ALL:
        assert selector.select(mapped, 500).indices.tolist() == selector.select(a, 500).indices.tolist()
