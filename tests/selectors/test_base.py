"""``Selector.select``: what it checks, balances and cuts, and what the ``Selection`` tells of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.base import Inputs, Ranking, Selector
from curate.budget import Budget, Quota
from curate.exceptions import InputError
from curate.selectors import KMQ, BestPerPrompt, Random, Threshold, TopK

SCORES = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0])
SOURCES = np.array(["a", "a", "a", "a", "a", "b", "b", "b"])


# -- budgets and quotas ------------------------------------------------------------------------------------------------


def test_by_hand():
    best = TopK().select(SCORES, 3)
    assert best.indices.tolist() == [5, 7, 4]
    assert best.mask.nonzero()[0].tolist() == [4, 5, 7]
    assert (best.n, len(best), best.size, best.threshold, best.basis_name) == (8, 3, 3, 5.0, "score")
    assert TopK().select(SCORES, "50%").indices.tolist() == [5, 7, 4, 2]
    assert TopK().select(SCORES, Budget(tokens=10), cost=[1, 1, 1, 1, 4, 2, 1, 4]).indices.tolist() == [5, 7, 4]
    assert TopK().select(SCORES, "9 tokens", cost=[1, 1, 1, 1, 4, 2, 1, 4]).indices.tolist() == [5, 7]
    assert TopK().select(SCORES).indices.tolist() == [5, 7, 4, 2, 0, 6, 1, 3]
    assert TopK().select(SCORES, 0).indices.tolist() == []
    assert TopK().select([], 0).indices.tolist() == []


@pytest.mark.parametrize(
    ("quota", "k", "kept"),
    [  # scores, best first: b 9, b 6, a 5, a 4, a 3, b 2, a 1, a 1
        (Quota(), 4, [5, 4, 7, 2]),  # places a: ½ 1½ …, b: ½ 1½ …; ties to the better score
        (Quota(), 8, [5, 4, 7, 2, 0, 6, 1, 3]),  # b runs out after three
        (Quota(shares="proportional"), 3, [4, 5, 2]),  # 5 : 3
        (Quota(shares="proportional"), 8, [4, 5, 2, 7, 0, 1, 6, 3]),
        (Quota(shares={"a": 3, "b": 1}), 4, [4, 5, 2, 0]),  # places a: 1/6 3/6 5/6, b: 1/2; the tie to the better score
        (Quota(shares={"a": 0.3, "b": 0.1}), 4, [4, 5, 2, 0]),
        (Quota(shares={"b": 1}), 3, [5, 7, 6]),
    ],
)
def test_quotas_by_hand(quota, k, kept):
    chosen = TopK().select(SCORES, k, quota=quota, quota_groups=SOURCES)
    assert chosen.indices.tolist() == kept


def test_a_tempered_quota_lies_between():
    groups = np.repeat(["big", "small"], [900, 100])
    counts = {}
    for shares in ("uniform", "tempered", "proportional"):
        rows = Random().select(1000, 100, quota=Quota(shares=shares), quota_groups=groups).indices
        counts[shares] = int((groups[rows] == "small").sum())
    assert counts == {"uniform": 50, "tempered": 25, "proportional": 10}  # √900 : √100 = 3 : 1


def test_a_quota_over_tokens_shares_tokens():
    groups, cost = np.repeat(["long", "short"], [500, 500]), np.repeat([100, 10], [500, 500])
    chosen = Random().select(1000, "8k tokens", cost=cost, quota=Quota(), quota_groups=groups)
    spent = {g: cost[chosen.indices][groups[chosen.indices] == g].sum() for g in ("long", "short")}
    assert abs(spent["long"] - spent["short"]) <= 100
    # The same with a budget in rows counts rows, though costs were passed.
    rows = Random().select(1000, 80, cost=cost, quota=Quota(), quota_groups=groups).indices
    assert (groups[rows] == "long").sum() == 40


@given(
    scores=st.lists(st.integers(0, 4).map(float), min_size=1, max_size=25),
    shares=st.sampled_from(["uniform", "proportional", "tempered"]),
    tokens=st.booleans(),
    seed=st.integers(0, 20),
)
def test_budgets_nest_under_any_quota(scores, shares, tokens, seed):
    x = np.array(scores)
    rng = np.random.default_rng(seed)
    groups, cost = rng.integers(0, 4, x.size), rng.integers(0, 6, x.size)
    more = {"quota": Quota(shares=shares), "quota_groups": groups, "cost": cost}
    full = TopK().select(x, Budget(tokens=int(cost.sum())) if tokens else x.size, **more)
    for k in range(x.size + 1):
        if not tokens:
            assert TopK().select(x, k, **more).indices.tolist() == full.indices[:k].tolist()
            continue
        budget = int(cost[full.order[:k]].sum())
        chosen = TopK().select(x, Budget(tokens=budget), **more)
        assert chosen.order.tolist() == full.order.tolist()
        assert chosen.size >= k and cost[chosen.indices].sum() == budget
    for group in range(4):  # inside each group: best first, ties to the lowest row
        own = [i for i in full.order.tolist() if groups[i] == group]
        assert own == sorted(own, key=lambda i: (-x[i], i))


def test_labels_may_be_text_bytes_numbers_or_missing():
    keys = [b"\x01\x00", b"\x01", b"\x01\x00", None]
    chosen = BestPerPrompt().select([1.0, 2.0, 3.0, 0.0], groups=np.array(keys, dtype=object))
    assert chosen.indices.tolist() == [2, 1, 3]  # b"\x01\x00" and b"\x01" are two prompts
    assert BestPerPrompt().select([1.0, 2.0, 3.0, 0.0], groups=pa.array(keys, pa.binary())).indices.tolist() == [
        2,
        1,
        3,
    ]
    assert BestPerPrompt().select([1.0, 2.0, 3.0], groups=[7, 7, 8]).indices.tolist() == [2, 1]
    by_key = {"0100": 1}
    assert TopK().select(
        [1.0, 2.0, 3.0, 0.0], 2, quota=Quota(shares=by_key), quota_groups=np.array(keys, dtype=object)
    ).indices.tolist() == [2, 0]
    assert TopK().select([1.0, 2.0], 1, quota=Quota(shares={"": 1}), quota_groups=[None, "a"]).indices.tolist() == [0]
    assert TopK().select([1.0, 2.0], 1, quota=Quota(shares={"3": 1}), quota_groups=[3, 4]).indices.tolist() == [0]


@dataclass(kw_only=True)
class FirstHalf(Selector):
    """Not nested: its hook orders only the rows that were asked for."""

    name: ClassVar[str] = "first-half"
    nested: ClassVar[bool] = False

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        return Ranking(np.arange(k)[::-1], basis=inputs.x, descending=None)


def test_a_selector_that_is_not_nested_orders_what_was_asked():
    chosen = FirstHalf().select(np.ones(5), 3)
    assert chosen.indices.tolist() == [2, 1, 0]
    assert not chosen.excluded.any()
    assert chosen.reasons().tolist() == [None, None, None, *["after the last row kept, in the order of choice"] * 2]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: TopK().select(SCORES, 9),
            "TopK: k=9 rows asked of a pool of n=8; lower the budget, or widen the pool.",
        ),
        (
            lambda: TopK().select([1, np.nan, 2, np.inf]),
            "TopK: scores holds NaN or infinity, first at row 1 of 4; drop or score those rows first.",
        ),
        (lambda: TopK().select([[1.0]]), "TopK: scores of 1 dimension(s) was asked, shape (1, 1) was found."),
        (lambda: TopK().select(["a"]), "TopK: scores must be numbers, dtype <U1 was found."),
        (lambda: TopK().select(5), "TopK: an array of scores was asked, the number 5 was found."),
        (lambda: TopK().select(2.5), "TopK: an array of scores was asked, 2.5 was found."),
        (lambda: Random().select(-1), "Random: a pool of 0 rows or more was asked, -1 was found."),
        (lambda: KMQ().select(SCORES), "KMQ: features of 2 dimension(s) was asked, shape (8,) was found."),
        (
            lambda: KMQ().select(np.empty((3, 0))),
            "KMQ: features of at least one column was asked, shape (3, 0) was found.",
        ),
        (lambda: KMQ().select(np.eye(3), quality=[1, 2]), "KMQ: quality has 2 rows, the pool has 3."),
        (
            lambda: KMQ().select(np.eye(3), quality=[1, 2, np.nan]),
            "KMQ: quality holds NaN or infinity, first at row 2 of 3",
        ),
        (lambda: BestPerPrompt().select(SCORES), "BestPerPrompt: needs groups=, one label a row."),
        (
            lambda: BestPerPrompt().select(SCORES, groups=["a"]),
            "BestPerPrompt: groups must be one label a row, (8,); found shape (1,).",
        ),
        (lambda: TopK().select(SCORES, quota=Quota()), "TopK: a quota needs quota_groups=, one label a row."),
        (
            lambda: TopK().select(SCORES, "9 tokens"),
            "TopK: a budget in tokens needs the rows' costs; pass cost=, one number of tokens a row.",
        ),
        (
            lambda: TopK().select(SCORES, "9 tokens", cost=np.ones(8)),
            "TopK: 9 tokens asked of a pool of n=8 rows, which hold 8 tokens;",
        ),
        (
            lambda: TopK().select(SCORES, 1, cost=-SCORES),
            "TopK: cost is below 0 at row 5; a row's tokens are 0 or more.",
        ),
        (
            lambda: TopK().select(SCORES, 4, quota=Quota(shares={"b": 1}), quota_groups=SOURCES),
            "TopK: k=4 rows asked of a pool of n=8, of which 3 may be chosen; lower the budget, or widen the pool.",
        ),
        (
            lambda: TopK().select(SCORES, 4, quota=Quota(shares={"c": 1}), quota_groups=SOURCES),
            "quota names groups ['c'] that the pool does not",
        ),
    ],
)
def test_refusals(call, said):
    with pytest.raises(InputError) as error:
        call()
    assert said in str(error.value)


def test_what_cannot_be_paid_for_is_refused_before_the_selector_works():
    class Slow(TopK):
        def _rank(self, inputs, k):
            raise AssertionError("the selector was started")

    for k, more in [
        (9, {}),
        ("9 tokens", {}),
        ("99 tokens", {"cost": SCORES}),
        (1, {"quota": Quota(shares={"x": 1}), "quota_groups": SOURCES}),
    ]:
        with pytest.raises(InputError):
            Slow().select(SCORES, k, **more)


def test_nan_is_found_in_the_last_block():
    x = np.zeros((2**18 + 3, 64), dtype=np.float32)  # two blocks of rows
    x[-1, -1] = np.nan
    with pytest.raises(InputError, match=f"first at row {2**18 + 2} of {2**18 + 3}"):
        KMQ().select(x)


# -- what a selection tells --------------------------------------------------------------------------------------------


def test_the_selection_keeps_no_view_of_the_scores():
    x = SCORES.copy()
    chosen = TopK().select(x, 2)
    x[:] = 0
    assert chosen.basis.tolist() == SCORES.tolist()


def test_one_threshold():
    chosen = TopK().select(SCORES, 6)
    assert chosen.threshold == 2.0
    assert chosen.thresholds.tolist() == [2.0] * 8
    assert chosen.reasons().tolist() == [
        None,
        "score below that of the last row kept",
        None,
        "score below that of the last row kept",
        *[None] * 4,
    ]
    assert chosen.explain(3) == "row 3: not chosen: score below that of the last row kept, the limit is 2 (score 1)."
    assert chosen.explain(7) == "row 7: chosen, place 2 of 6 (score 6)."
    assert chosen.place.tolist() == [4, 6, 3, 7, 2, 0, 5, 1]


def test_a_tie_with_the_last_row_kept():
    chosen = TopK().select(SCORES, 7)
    assert chosen.reasons()[3] == "score equal to that of the last row kept, which stands earlier in the pool"
    smallest = TopK(largest=False).select(SCORES, 2)
    assert smallest.threshold == 1.0 and smallest.reasons()[6] == "score above that of the last row kept"


def test_no_threshold_where_nothing_was_cut_or_nothing_kept():
    assert TopK().select(SCORES, 8).threshold is None
    assert np.isnan(TopK().select(SCORES, 8).thresholds).all()
    nothing = TopK().select(SCORES, 0)
    assert nothing.threshold is None and np.isnan(nothing.thresholds).all()
    assert nothing.reasons().tolist() == ["the budget keeps no row"] * 8


def test_a_threshold_of_each_group_under_a_quota():
    chosen = TopK().select(SCORES, 4, quota=Quota(), quota_groups=SOURCES)  # 5, 4, 7, 2
    assert chosen.threshold is None
    assert chosen.thresholds.tolist() == [4.0] * 5 + [6.0] * 3
    reasons = chosen.reasons()
    assert reasons[0] == "group 'a', 2 of 5 kept: score below that of its last row kept"
    assert reasons[6] == "group 'b', 2 of 3 kept: score below that of its last row kept"
    assert chosen.explain(0).endswith("the limit is 4; group 'a', place 3 of 5 (score 3).")


def test_a_group_without_a_share_or_without_a_place():
    chosen = TopK().select(SCORES, 2, quota=Quota(shares={"b": 1}), quota_groups=SOURCES)
    assert set(chosen.reasons()[:5]) == {"group 'a' has no share in the quota"}
    assert chosen.excluded.tolist() == [True] * 5 + [False] * 3
    late = TopK().select(SCORES, 1, quota=Quota(shares={"b": 10, "a": 1}), quota_groups=SOURCES)
    assert late.reasons()[4] == "group 'a', 0 of 5 kept: no place fell to it"
    assert np.isnan(late.thresholds[4])


def test_a_draw_has_no_threshold():
    chosen = Random().select(5, 2)
    assert chosen.threshold is None and chosen.basis is None
    assert set(chosen.reasons()) == {None, "after the last row kept, in the order of choice"}
    row = int(chosen.order[3])
    assert chosen.explain(row) == f"row {row}: not chosen: after the last row kept, in the order of choice."


def test_a_bound_and_a_budget_together():
    chosen = Threshold(min=2).select(SCORES, 4)
    assert chosen.bound == 2 and chosen.threshold == 4.0
    assert chosen.thresholds.tolist() == [4, 2, 4, 2, 4, 4, 4, 4]
    assert chosen.reasons().tolist()[:4] == [
        "score below that of the last row kept",
        "score below 2",
        None,
        "score below 2",
    ]
    assert Threshold(min=2).select(SCORES).threshold == 2


@given(
    scores=st.lists(st.integers(0, 3).map(float), min_size=1, max_size=20),
    low=st.integers(0, 3),
    quota=st.booleans(),
    data=st.data(),
)
def test_every_dropped_row_has_a_true_reason(scores, low, quota, data):
    x = np.array(scores)
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=x.size, max_size=x.size)))
    k = data.draw(st.integers(0, int((x >= low).sum())))
    chosen = Threshold(min=low).select(x, k, quota=Quota() if quota else None, quota_groups=groups if quota else None)
    limits = chosen.thresholds
    for row, reason in enumerate(chosen.reasons()):
        rivals = x[chosen.indices][groups[chosen.indices] == groups[row]] if quota else x[chosen.indices]
        if reason is None:
            assert row in chosen.indices
        elif "below that of" in reason:
            assert x[row] < limits[row] == rivals.min()
        elif "equal to" in reason:
            assert x[row] == limits[row] == rivals.min()
        elif reason == f"score below {low}":
            assert x[row] < low == limits[row] and chosen.excluded[row]
        else:
            assert reason.endswith(("no place fell to it", "the budget keeps no row")) and not rivals.size


def test_reasons_of_a_million_rows_are_few():
    rng = np.random.default_rng(0)
    chosen = TopK().select(rng.random(10**6), "10%", quota=Quota(), quota_groups=rng.integers(0, 20, 10**6))
    column = pa.array(chosen.reasons()).dictionary_encode()
    assert len(column.dictionary) == 20
    assert column.null_count == 100_000


def test_rows_that_were_left_out_are_held_against_no_budget():
    two_sided = Threshold(min=2, max=6).select(SCORES, 3)  # 6, 5, 4
    assert two_sided.thresholds[[0, 6]].tolist() == [4, 4]
    assert np.isnan(two_sided.thresholds[[1, 3, 5]]).all()
    losers = BestPerPrompt().select(SCORES, 1, groups=SOURCES)
    assert losers.thresholds.tolist()[4:6] == [9, 9] and np.isnan(losers.thresholds[[0, 7]]).all()
