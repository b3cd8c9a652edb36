"""TopK, Longest, Random, Threshold, Quantile, BestPerPrompt: by hand, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.selectors import BestPerPrompt, Longest, Quantile, Random, Threshold, TopK

SCORES = st.lists(st.sampled_from([-3.0, -0.5, 0.0, 0.5, 2.0, 7.0]), max_size=30).map(
    lambda v: np.array(v, dtype=np.float64)
)


@given(SCORES, st.booleans(), st.data())
def test_top_k_is_a_sort(x, largest, data):
    k = data.draw(st.integers(0, x.size))
    expected = sorted(range(x.size), key=lambda i: (-x[i] if largest else x[i], i))[:k]
    assert TopK(largest=largest).select(x, k).indices.tolist() == expected


@given(SCORES)
def test_longest_is_top_k_of_the_lengths(x):
    longest = Longest().select(x)
    assert longest.indices.tolist() == TopK().select(x).indices.tolist()
    assert longest.basis_name == "length"


def test_integers_and_booleans_are_scores_too():
    assert TopK().select(np.array([3, 1, 2], dtype=np.uint8), 2).indices.tolist() == [0, 2]
    assert TopK().select(np.array([False, True])).indices.tolist() == [1, 0]


# -- random ------------------------------------------------------------------------------------------------------------


def test_random_is_a_permutation_named_by_its_seed():
    orders = {seed: Random(seed=seed).select(50).indices.tolist() for seed in range(20)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 20
    assert Random(seed=3).select(50, 10).indices.tolist() == orders[3][:10]
    assert Random(seed=3).select(np.zeros((50, 2)), 10).indices.tolist() == orders[3][:10]  # only the length counts


def test_random_is_uniform():
    """Each of 20 rows among the first 5 in a quarter of 4,000 seeds: four standard errors are 110 of 1,000."""
    counts = sum(Random(seed=seed).select(20, 5).mask.astype(int) for seed in range(4000))
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)


# -- threshold ---------------------------------------------------------------------------------------------------------


@given(SCORES, st.sampled_from([None, -3, 0.0, 0.6]), st.sampled_from([None, 0.5, 2, 9]), st.booleans())
def test_threshold_keeps_all_within(x, low, high, largest):
    assume((low, high) != (None, None) and (low is None or high is None or low <= high))
    within = [i for i in range(x.size) if (low is None or x[i] >= low) and (high is None or x[i] <= high)]
    chosen = Threshold(min=low, max=high, largest=largest).select(x)
    assert chosen.indices.tolist() == sorted(within, key=lambda i: (-x[i] if largest else x[i], i))
    assert np.flatnonzero(chosen.excluded).tolist() == [i for i in range(x.size) if i not in within]


@pytest.mark.parametrize(
    ("selector", "reason", "limit"),
    [
        (Threshold(min=2), "score below 2", 2),
        (Threshold(max=0.5), "score above 0.5", 0.5),
        (Threshold(min=1, max=2), "score outside 1 to 2", np.nan),
    ],
)
def test_threshold_names_its_bound(selector, reason, limit):
    chosen = selector.select([1.5, 0.0, 2.0, 3.0] if selector.max != 0.5 else [0.0, 1.0])
    assert set(chosen.reasons()) == {None, reason}
    np.testing.assert_equal(chosen.thresholds, np.full(chosen.n, limit))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "Threshold: min or max (or both) was asked, neither was found."),
        ({"min": 2, "max": 1}, "Threshold: min ≤ max was asked, min=2 and max=1 were found."),
        ({"min": float("nan")}, "Threshold: min ≤ max was asked, min=nan and max=None were found."),
    ],
)
def test_thresholds_that_cannot_be_meant(params, said):
    with pytest.raises(InputError) as error:
        Threshold(**params)
    assert str(error.value) == said


def test_fewer_within_than_asked():
    with pytest.raises(InputError) as error:
        Threshold(min=2).select([1.0, 2.0, 3.0], 3)
    assert str(error.value) == (
        "Threshold: k=3 rows asked of a pool of n=3, of which 2 may be chosen; lower the budget, or widen the pool."
    )


# -- quantile ----------------------------------------------------------------------------------------------------------


@given(SCORES, st.integers(1, 100), st.booleans())
def test_quantile_shares_one_fate_among_equals(x, percent, largest):
    m = max(1, percent * x.size // 100) if x.size else 0
    keep = set(Quantile(share=percent / 100, largest=largest).select(x).indices.tolist())
    drop = set(Quantile(share=percent / 100, largest=largest, ties="drop").select(x).indices.tolist())
    assert len(drop) <= m <= len(keep) and drop <= keep
    for kept in (keep, drop):
        assert not {x[i] for i in kept} & {x[i] for i in range(x.size) if i not in kept}
    assert keep == drop or len({x[i] for i in keep - drop}) == 1  # they differ by the rows at the cut alone
    if len(set(x.tolist())) == x.size:
        assert len(keep) == m and keep == drop


@given(SCORES.filter(lambda x: x.size > 1))
def test_half_with_ties_dropped_is_above_the_median(x):
    chosen = Quantile(share=0.5, ties="drop").select(x)
    assert sorted(chosen.indices.tolist()) == np.flatnonzero(x > np.median(x)).tolist()


def test_quantile_by_hand():
    x = np.array([5.0, 1.0, 3.0, 3.0, 2.0, 3.0])
    assert Quantile(share=0.4).select(x).indices.tolist() == [0, 2, 3, 5]
    assert Quantile(share=0.4, ties="drop").select(x).indices.tolist() == [0]
    kept = Quantile(share=0.4).select(x)
    assert kept.threshold == 3 and kept.reasons()[1] == "score below 3, the cut of the best 0.4"
    assert Quantile(share=0.4, ties="drop").select(x).reasons()[3] == "score not above 3, the cut of the best 0.4"
    low = Quantile(share=0.5, largest=False).select(x)
    assert low.indices.tolist() == [1, 4, 2, 3, 5] and low.reasons()[0] == "score above 3, the cut of the best 0.5"


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(InputError, match=r"Quantile: a share in \(0, 1\] was asked"):
        Quantile(share=share)


# -- best per prompt ---------------------------------------------------------------------------------------------------


@given(SCORES, st.integers(1, 3), st.booleans(), st.integers(0, 50))
def test_best_per_prompt_is_argmax_per_group(x, per_prompt, largest, seed):
    groups = np.random.default_rng(seed).integers(0, 6, x.size)

    def key(i: int) -> tuple[float, int]:
        return (-x[i] if largest else x[i], i)

    winners = [i for g in range(6) for i in sorted(np.flatnonzero(groups == g).tolist(), key=key)[:per_prompt]]
    chosen = BestPerPrompt(per_prompt=per_prompt, largest=largest).select(x, groups=groups)
    assert chosen.indices.tolist() == sorted(winners, key=key)


def test_best_per_prompt_by_hand():
    prompts = ["p", "q", "p", "q", "r"]
    chosen = BestPerPrompt().select([-2.0, -1.0, -0.5, -1.0, -3.0], groups=prompts)
    assert chosen.indices.tolist() == [2, 1, 4]  # rows 1 and 3 tie: the lowest
    beaten = "another response to the same prompt came before it"
    assert chosen.reasons().tolist() == [beaten, None, None, beaten, None]
    cut = BestPerPrompt().select([-2.0, -1.0, -0.5, -1.0, -3.0], 2, groups=prompts)
    assert cut.reasons()[4] == "score below that of the last row kept" and cut.threshold == -1
    assert (
        BestPerPrompt(per_prompt=2).select([1.0, 2, 3], groups=["p"] * 3).reasons()[0]
        == "2 other responses to the same prompt came before it"
    )
    with pytest.raises(InputError, match="per_prompt of at least 1 was asked, 0 was found"):
        BestPerPrompt(per_prompt=0)
    with pytest.raises(InputError, match="k=4 rows asked of a pool of n=5, of which 3 may be chosen"):
        BestPerPrompt().select([1.0, 2, 3, 4, 5], 4, groups=prompts)


@given(seed=st.integers(0, 50))
def test_the_order_of_candidates_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    x, groups = rng.permutation(40).astype(float), rng.integers(0, 9, 40)
    order = rng.permutation(40)
    moved = BestPerPrompt().select(x[order], groups=groups[order])
    assert order[moved.indices].tolist() == BestPerPrompt().select(x, groups=groups).indices.tolist()


def test_as_many_as_the_prompt_had_by_hand():
    """p keeps two, q none, r all of its one row though it might keep three."""
    prompts = ["p", "q", "p", "p", "q", "r"]
    limits = np.array([2, 0, 2, 2, 0, 3])
    x = [1.0, 5.0, 3.0, 2.0, 4.0, 0.0]
    chosen = BestPerPrompt().select(x, groups=prompts, limits=limits)
    assert chosen.indices.tolist() == [2, 3, 5]
    beaten, none = (
        "as many other responses to the same prompt as it may keep came before it",
        "its prompt may keep no response",
    )
    assert chosen.reasons().tolist() == [beaten, none, None, None, none, None]
    named = BestPerPrompt(as_in="original").select(x, groups=prompts, limits=limits)
    assert named.indices.tolist() == [2, 3, 5] and named.reasons()[1] == "its prompt has no response in original"
    assert BestPerPrompt(as_in="original").limits_from == "original" and BestPerPrompt().limits_from is None


@given(SCORES, st.integers(0, 50))
def test_limits_of_one_number_are_per_prompt(x, seed):
    groups = np.random.default_rng(seed).integers(0, 6, x.size)
    for r in (1, 2, 3):
        limited = BestPerPrompt().select(x, groups=groups, limits=np.full(x.size, r))
        assert limited.indices.tolist() == BestPerPrompt(per_prompt=r).select(x, groups=groups).indices.tolist()


@given(SCORES, st.integers(1, 4), st.integers(0, 50))
def test_prompts_of_too_few_candidates_keep_none(x, least, seed):
    groups = np.random.default_rng(seed).integers(0, 6, x.size)
    chosen = BestPerPrompt(min_candidates=least).select(x, groups=groups)
    sizes = np.bincount(groups, minlength=6)
    assert sorted(groups[chosen.indices].tolist()) == np.flatnonzero(sizes >= max(1, least)).tolist()
    few = f"its prompt has fewer than {least} responses to choose among"
    assert [reason == few for reason in chosen.reasons()] == (sizes[groups] < least).tolist()


@pytest.mark.parametrize(
    ("params", "given", "said"),
    [
        ({"min_candidates": 0}, {}, "BestPerPrompt: min_candidates of at least 1 was asked, 0 was found."),
        ({"as_in": "a", "per_prompt": 2}, {}, "BestPerPrompt: as_in='a' and per_prompt=2; one of them was asked."),
        ({"as_in": "a"}, {}, "BestPerPrompt: as_in='a' needs limits=, for each row the number of responses that its prompt had there; a recipe counts them."),
        ({}, {"limits": [1, 1]}, "BestPerPrompt: limits has 2 rows, the pool has 3."),
        ({}, {"limits": [1, np.nan, 1]}, "BestPerPrompt: limits holds NaN or infinity, first at row 1 of 3; drop or score those rows first."),
    ],
)  # fmt: skip
def test_limits_that_cannot_be_meant(params, given, said):
    with pytest.raises(InputError) as error:
        BestPerPrompt(**params).select([1.0, 2.0, 3.0], groups=["p", "p", "q"], **given)
    assert str(error.value) == said
