"""Iterative kMQ: by hand, against a plain loop, and what a learner may and may not say."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from curate import Budget, Quota
from curate.exceptions import InputError
from curate.seeding import rng_for
from curate.selectors.iterative_kmq import IterativeKMQ, cluster_means, reweighed
from curate.selectors.kmq import KMQ


def features(n: int, seed: int = 0) -> np.ndarray:
    return rng_for(seed, "iterative").normal(size=(n, 4)).astype(np.float32)


def silent(number: int, chosen: np.ndarray, asked: np.ndarray) -> np.ndarray:
    raise AssertionError("nothing was to be asked")


class Scripted:
    """Answers by a fixed number for each row, and remembers what it was asked."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.calls: list[tuple[int, np.ndarray, np.ndarray]] = []

    def __call__(self, number: int, chosen: np.ndarray, asked: np.ndarray) -> np.ndarray:
        self.calls.append((number, chosen.copy(), asked.copy()))
        out = self.values[asked]
        chosen[:] = asked[:] = 0  # copies: nothing comes of it
        return out


# -- the planted truth ---------------------------------------------------------------------------------------------------


def test_the_cluster_with_more_to_learn_grows_as_the_rule_says() -> None:
    """Four clusters of 1000, S = 1 in the third and 0 elsewhere: z = (-1, -1, 3, -1)/√3, so w grows by e^(4/√3)."""
    groups = np.arange(4000) % 4
    learn = Scripted((groups == 2).astype(float))
    found = IterativeKMQ(rounds=3, evaluate=0.5).select(features(4000), 900, groups=groups, learn=learn)
    grown = math.exp(4 / math.sqrt(3))
    shares = [np.full(4, 1 / 4)]
    for power in (1, 2):
        share = np.ones(4)
        share[2] = grown**power
        shares.append(share / share.sum())
    assert found.account is not None
    for told, share in zip(found.account["rounds"], shares, strict=True):
        assert told["weights"] == pytest.approx(share, rel=1e-5)
        assert np.abs(np.array(told["chosen"]) - 300 * share).max() <= 1  # apportioned, nothing lost
        assert sum(told["chosen"]) == 300
    assert [np.bincount(groups[found.indices[i : i + 300]], minlength=4).tolist() for i in (0, 300, 600)] == [
        one["chosen"] for one in found.account["rounds"]
    ]
    first, second, last = found.account["rounds"]
    assert first["score"] == second["score"] == [0, 0, 1, 0] and "score" not in last and "asked" not in last
    assert first["asked"] == first["answered"] == 4 * math.ceil(75 / 2)
    assert len(learn.calls) == 2 and found.account["clusters"] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_weights_do_not_depend_on_the_unit_of_what_is_said(scale: float) -> None:
    groups, values = np.arange(300) % 3, np.repeat([5.0, -3.0, 0.5], 100)
    order = np.argsort(groups, kind="stable")
    said = np.empty(300)
    said[order] = values
    weights = [
        IterativeKMQ(rounds=2)
        .select(features(300), 60, groups=groups, learn=Scripted(s))
        .account["rounds"][1]["weights"]  # type: ignore[index]
        for s in (said, scale * said - 40 * scale)
    ]
    assert weights[0] == pytest.approx(weights[1], rel=1e-4) and weights[0][0] > weights[0][2] > weights[0][1]


def test_a_lower_temperature_moves_weights_faster_and_an_infinite_one_not_at_all() -> None:
    groups = np.arange(400) % 4
    learn = Scripted((groups == 1).astype(float))

    def share(temperature: float) -> float:
        made = IterativeKMQ(rounds=2, temperature=temperature)
        return made.select(features(400), 80, groups=groups, learn=learn).account["rounds"][1]["weights"][1]  # type: ignore[index]

    assert share(math.inf) == 0.25 < share(2.0) < share(1.0) < share(0.5)
    assert share(1e-300) == 1.0  # no overflow


def test_what_a_cluster_cannot_give_goes_to_the_others() -> None:
    groups = np.repeat([0, 1, 2], [10, 200, 200])
    learn = Scripted((groups == 0).astype(float))
    found = IterativeKMQ(rounds=2, temperature=1e-3).select(features(410), 120, groups=groups, learn=learn)
    assert np.bincount(groups[found.indices]).tolist() == [10, 55, 55]  # 10 + 25 + 25, then the small one is empty


# -- against a plain loop ------------------------------------------------------------------------------------------------


def plainly(
    labels: np.ndarray, order: np.ndarray, k: int, said: np.ndarray, made: IterativeKMQ
) -> tuple[list[int], list[list[float]]]:
    """Choose row by row: the cluster of the lowest (taken + 1/2) / w, ties to the one whose next row stands earlier."""
    place = {int(row): i for i, row in enumerate(order)}
    queues = {c: [int(r) for r in order if labels[r] == c] for c in range(int(labels.max()) + 1)}
    logs = dict.fromkeys(queues, 0.0)
    chosen: list[int] = []
    history = []
    for number in range(made.rounds):
        weights = {c: math.exp(round(log - max(logs.values()), 9)) for c, log in logs.items()}
        history.append([w / math.fsum(weights.values()) for w in weights.values()])
        last = number == made.rounds - 1 or len(chosen) + max(1, k // made.rounds) >= k
        size = k - len(chosen) if last else max(1, k // made.rounds)
        taken = dict.fromkeys(queues, 0)
        for _ in range(size):
            c = min(
                (c for c in queues if queues[c]), key=lambda c: ((taken[c] + 0.5) / weights[c], place[queues[c][0]])
            )
            chosen.append(queues[c].pop(0))
            taken[c] += 1
        if last:
            break
        draw = rng_for(made.seed, "iterative-kmq", "evaluate", number).random(labels.size)
        means = {}
        for c in queues:
            mine = sorted((r for r in chosen if labels[r] == c), key=lambda r: draw[r])
            values = [said[r] for r in mine[: math.ceil(made.evaluate * len(mine) - 1e-9)] if not math.isnan(said[r])]
            if values:
                means[c] = math.fsum(values) / len(values)
        if means:
            middle = math.fsum(means.values()) / len(means)
            spread = math.sqrt(math.fsum((m - middle) ** 2 for m in means.values()) / len(means))
            if spread > 1e-9:
                for c, mean in means.items():
                    logs[c] += (mean - middle) / spread / made.temperature
    return chosen, history


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    clusters=st.integers(1, 6),
    rounds=st.integers(1, 5),
    evaluate=st.sampled_from([0.1, 0.5, 1.0]),
    data=st.data(),
)
@settings(max_examples=150)
def test_it_is_the_plain_loop(
    seed: int, n: int, clusters: int, rounds: int, evaluate: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, n))
    rng = rng_for(seed, "plain")
    _, groups = np.unique(rng.integers(0, clusters, size=n), return_inverse=True)
    said = rng.integers(-2, 3, size=n) + 0.25 * groups
    said[rng.random(n) < 0.3] = np.nan
    quality = rng.integers(0, 4, size=n).astype(float)
    made = IterativeKMQ(rounds=rounds, evaluate=evaluate, seed=seed)
    order = KMQ(seed=seed).select(features(n), None, quality=quality, groups=np.zeros(n)).indices  # one cluster: all
    learn = Scripted(said)
    found = made.select(features(n), k, quality=quality, groups=groups, learn=learn)
    chosen, history = plainly(groups, order, k, said, made)
    assert found.account is not None
    if k:
        for told, weights in zip(found.account["rounds"], history, strict=True):
            assert told["weights"] == pytest.approx(weights, rel=1e-5, abs=1e-12)
    assert_array_equal(found.indices, chosen)
    for number, its, asked in learn.calls:
        assert_array_equal(its, chosen[: its.size])
        assert (
            set(asked) <= set(its) and (np.diff(asked) > 0).all() and number == learn.calls.index((number, its, asked))
        )
        for c in set(groups[its].tolist()):
            assert (groups[asked] == c).sum() == math.ceil(evaluate * (groups[its] == c).sum() - 1e-9)


# -- beside kMQ ----------------------------------------------------------------------------------------------------------


def test_one_round_by_size_is_kmq() -> None:
    x, quality = features(300), rng_for(1, "q").random(300)
    settings: dict[str, Any] = {"clusters": 7, "seed": 5}
    plain = KMQ(**settings).select(x, 90, quality=quality)
    found = IterativeKMQ(rounds=1, balance="proportional", **settings).select(x, 90, quality=quality, learn=silent)
    assert_array_equal(found.indices, plain.indices)
    assert_array_equal(found.labels, plain.labels)
    equal = IterativeKMQ(rounds=1, **settings).select(x, 90, quality=quality, learn=silent)
    assert_array_equal(equal.indices, KMQ(balance="equal", **settings).select(x, 90, quality=quality).indices)


def test_where_there_is_nothing_to_tell_apart_the_weights_stay() -> None:
    x = features(200)
    for said in (np.full(200, 0.1) * 3, np.full(200, np.nan)):
        found = IterativeKMQ(clusters=5).select(x, 60, learn=Scripted(said))
        assert found.account is not None
        assert all(one["weights"] == pytest.approx([0.2] * 5, rel=1e-6) for one in found.account["rounds"])
    assert found.account["rounds"][0]["answered"] == 0 and found.account["rounds"][0]["score"] == [None] * 5
    json.dumps(found.account, allow_nan=False)


def test_a_cluster_without_an_answer_stands_at_the_mean_of_the_others() -> None:
    log = reweighed(np.zeros(3), np.array([1.0, np.nan, 3.0]), 1.0)
    assert log.tolist() == [-1.0, 0.0, 1.0]
    means = cluster_means(np.array([0, 0, 2, 1]), np.array([1.0, np.nan, -4.0, np.nan]), 4)
    assert_array_equal(means, [1.0, np.nan, -4.0, np.nan])


def test_weights_that_went_up_and_came_down_again_are_equal() -> None:
    """z of (.1, .2, .3) and of (.3, .2, .1) cancel but for rounding, which may not decide whose turn it is."""
    groups = np.arange(300) % 3

    def learn(number: int, chosen: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])[number][groups[asked]]

    for seed in range(20):
        found = IterativeKMQ(seed=seed, round_rows=4, evaluate=1.0).select(
            features(300), 14, groups=groups, learn=learn
        )
        order = KMQ(seed=seed).select(features(300), None, groups=np.zeros(300)).indices
        left = order[~np.isin(order, found.indices[:8])]
        firsts, seconds = ([int(np.flatnonzero(groups[left] == c)[i]) for c in range(3)] for i in (0, 1))
        assert_array_equal(found.indices[8:], left[sorted(firsts) + sorted(seconds)])


# -- sizes of rounds -----------------------------------------------------------------------------------------------------


def sizes(n: int, k: Any, **settings: Any) -> list[int]:
    """How many rows had been chosen when the learner was asked."""
    learn = Scripted(np.arange(n, dtype=float))
    more = settings.pop("more", {})
    IterativeKMQ(clusters=3, **settings).select(features(n), k, learn=learn, **more)
    return [chosen.size for _, chosen, _ in learn.calls]


def test_rounds_share_the_budget() -> None:
    assert sizes(100, 30) == [10, 20] and sizes(100, 31) == [10, 20] and sizes(100, 60, rounds=2) == [30]
    assert sizes(100, 2) == [1] and sizes(100, 1) == sizes(100, 0) == [] and sizes(0, 0) == []
    assert sizes(90, None) == [30, 60]
    assert sizes(100, 50, round_rows=5) == [5, 10] and sizes(100, 50, round_rows=40) == [40]
    assert sizes(100, 50, round_rows=60) == []


def test_quotas_and_tokens_with_the_size_of_a_round() -> None:
    cost = np.full(100, 7.0)
    assert sizes(100, Budget(tokens=350), round_rows=10, more={"cost": cost}) == [10, 20]
    sources = np.array(["a", "b"])[np.arange(100) % 2]
    more = {"quota": Quota(), "quota_groups": sources}
    assert sizes(100, 50, round_rows=10, more=more) == [10, 20]
    learn = Scripted(np.arange(100, dtype=float))
    found = IterativeKMQ(clusters=3, round_rows=10).select(features(100), 50, learn=learn, **more)  # type: ignore[arg-type]
    assert np.bincount(found.indices % 2).tolist() == [25, 25]


def test_all_rows_the_same() -> None:
    learn = Scripted(np.ones(50))
    found = IterativeKMQ(clusters=8).select(np.ones((50, 3), np.float32), 20, learn=learn)
    assert found.size == 20 and found.account is not None and found.account["sizes"] == [50]


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 0}, "IterativeKMQ: rounds of at least 1 was asked, 0 was found."),
        ({"round_rows": 0}, "IterativeKMQ: round_rows of at least 1 was asked, 0 was found."),
        ({"evaluate": 0.0}, r"IterativeKMQ: evaluate, a share in \(0, 1\], was asked; 0.0 was found."),
        ({"evaluate": math.nan}, "evaluate, a share in"),
        ({"temperature": 0.0}, "IterativeKMQ: a temperature above 0 was asked, 0.0 was found."),
        ({"temperature": math.nan}, "a temperature above 0"),
    ],
)
def test_parameters_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        IterativeKMQ(**settings)


def test_answers_that_make_no_sense() -> None:
    def answering(values: Any) -> Any:
        return lambda number, chosen, asked: values(asked)

    made = IterativeKMQ(clusters=2)
    with pytest.raises(InputError, match=r"learn was asked about \d+ rows; shape \(3,\) was returned"):
        made.select(features(60), 30, learn=answering(lambda asked: np.zeros(3)))
    with pytest.raises(InputError, match=r"learn returned infinity for row .* NaN says that it cannot be told"):
        made.select(features(60), 30, learn=answering(lambda asked: np.full(asked.size, -np.inf)))
    with pytest.raises(InputError, match="IterativeKMQ: needs learn="):
        made.select(features(60), 30)
