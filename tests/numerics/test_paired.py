"""Differences of two selections: by hand, against plain loops and a real bootstrap, and calibrated by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curate.numerics.paired import LEVEL, Differences, Interval, differences, holm, interval


def reference(x: np.ndarray, w: np.ndarray) -> tuple[float, float, float, float]:
    """D, A, B and C of one task, leaving each example out in turn."""
    seeds, n = x.shape
    of_seed = x.sum(axis=1) / w.sum()
    gain = of_seed.mean()
    without = np.empty((seeds, n))
    for i in range(n):
        rest = np.delete(np.arange(n), i)
        without[:, i] = x[:, rest].sum(axis=1) / w[rest].sum() - of_seed
    a = sum((d - gain) ** 2 for d in of_seed) / (seeds * (seeds - 1))
    b = (n - 1) / n * sum(without[:, i].mean() ** 2 for i in range(n))
    c = (n - 1) / n * sum(((without[:, i] - without[:, i].mean()) ** 2).sum() for i in range(n)) / (seeds * (seeds - 1))
    return gain, a, b, c


def one(x: np.ndarray, w: np.ndarray | None = None, **how: bool) -> tuple[Differences, Interval]:
    n = x.shape[1]
    found = differences(x, np.ones(n) if w is None else w, np.zeros(n, dtype=np.int64), 1, **how)
    return found, interval(found, np.ones((1, 1)))


def test_by_hand() -> None:
    """Two seeds, two examples of weight 1, gains 1 3 and 3 5: D_r = 2, 4; A = 1; left-outs ±1 in both, so B = 1, C = 0."""
    found, chance = one(np.array([[1.0, 3.0], [3.0, 5.0]]))
    np.testing.assert_array_equal(found.by_seed[:, 0], [2, 4])
    assert (found.of_examples[0], found.of_both[0], found.freedom[0]) == (1, 0, 1)
    assert chance.gain[0] == 3
    assert chance.half[0] == pytest.approx(12.706204736 * math.sqrt(2))  # t_1 in both
    assert chance.p[0] == pytest.approx(2 * stats.t.sf(3 / math.sqrt(2), 1))


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(2, 5), st.integers(2, 12))
def test_parity_with_leaving_each_example_out(seed: int, seeds: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.integers(1, 50, size=n).astype(float)
    x = (rng.normal(size=(seeds, 1)) + rng.normal(size=n) + rng.normal(size=(seeds, n))) * w
    found, chance = one(x, w)
    gain, a, b, c = reference(x, w)
    assert chance.gain[0] == pytest.approx(gain, abs=1e-12)
    assert found.of_examples[0] == pytest.approx(b)
    assert found.of_both[0] == pytest.approx(c)
    v, extra, m = a + max(0, b - c), max(0, b - c), max(1, w.sum() ** 2 / (w**2).sum() - 1)
    critical = (a * stats.t.ppf(0.975, seeds - 1) + (extra * stats.t.ppf(0.975, m) if extra else 0)) / v
    assert chance.half[0] == pytest.approx(critical * math.sqrt(v))
    assert (chance.p[0] <= LEVEL) == (abs(gain) >= chance.half[0])


def test_parity_of_a_mean_of_tasks() -> None:
    """Two thirds of a task of 6 examples and one of a task of 9: parts by their squares, freedom by Satterthwaite."""
    rng = np.random.default_rng(2)
    task, w = np.repeat([0, 1], [6, 9]), rng.uniform(1, 9, size=15)
    x = (rng.normal(size=15) + 0.1 * rng.normal(size=(3, 15))) * w
    found = differences(x, w, task, 2)
    chance = interval(found, np.array([[2 / 3, 1 / 3]]))
    of_seed = found.by_seed @ [2 / 3, 1 / 3]
    a = of_seed.var(ddof=1) / 3
    parts = [(share**2, *reference(x[:, task == t], w[task == t])) for t, share in ((0, 2 / 3), (1, 1 / 3))]
    b, c = (sum(share * part[i] for share, *part in parts) for i in (2, 3))
    m = [w[task == t].sum() ** 2 / (w[task == t] ** 2).sum() - 1 for t in (0, 1)]
    freedom = b**2 / sum((share * part[2]) ** 2 / of for (share, *part), of in zip(parts, m, strict=True))
    width = (a * stats.t.ppf(0.975, 2) + (b - c) * stats.t.ppf(0.975, freedom)) / math.sqrt(a + b - c)
    assert b > c
    assert chance.gain[0] == pytest.approx(of_seed.mean())
    assert chance.half[0] == pytest.approx(width)


@settings(max_examples=40)
@given(st.integers(0, 999))
def test_the_interval_at_the_level_p_ends_at_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 20)) + rng.normal(size=(3, 1)) + rng.normal(size=20) + 0.5
    found, chance = one(x)
    a, b = found.by_seed.var(ddof=1) / 3, max(0, found.of_examples[0] - found.of_both[0])
    p = chance.p[0] / 2
    critical = (a * stats.t.isf(p, 2) + (b * stats.t.isf(p, 19) if b else 0)) / math.sqrt(a + b)
    assert critical == pytest.approx(abs(chance.gain[0]), rel=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 4))
def test_order_of_seeds_examples_and_tasks(seed: int, tasks: int) -> None:
    rng = np.random.default_rng(seed)
    n = 12
    task, w, x = rng.integers(tasks, size=n), rng.uniform(1, 9, size=n), rng.normal(size=(3, n))
    over = np.vstack([np.eye(tasks), np.full(tasks, 1 / tasks)])
    plain = interval(differences(x, w, task, tasks), over)
    rows, cols, names = rng.permutation(3), rng.permutation(n), rng.permutation(tasks)
    other = interval(differences(x[rows][:, cols], w[cols], np.argsort(names)[task[cols]], tasks), over)
    back = np.r_[np.argsort(names), tasks]
    for a, b in ((plain.gain, other.gain), (plain.half, other.half), (plain.p, other.p)):
        np.testing.assert_allclose(a, b[back], rtol=1e-6, atol=1e-12)


def test_scale_and_copies_of_the_unit() -> None:
    """In other units the gain and its width are in those units, and p is the same; the sign turns with the sides."""
    rng = np.random.default_rng(0)
    w, x = rng.uniform(1, 9, size=30), rng.normal(size=(4, 30)) + 0.3
    chance, other = one(x, w)[1], one(-1000 * x, w)[1]
    assert other.gain[0] == pytest.approx(-1000 * chance.gain[0])
    assert other.half[0] == pytest.approx(1000 * chance.half[0])
    assert other.p[0] == pytest.approx(chance.p[0])


def test_the_variances_are_those_of_a_bootstrap() -> None:
    """Examples drawn again 4,000 times: the variance of D is B.  4,000 draws tell it to √(2/4000) = 2.2%; the jackknife
    and the bootstrap differ by some more thousandths at n = 400; four times the first is 9%."""
    rng = np.random.default_rng(0)
    n = 400
    w = rng.lognormal(4, 0.7, size=n)
    x = (0.2 * rng.normal(size=(3, 1)) + rng.normal(size=n) + rng.normal(size=(3, n))) * w
    counts = rng.multinomial(n, np.full(n, 1 / n), size=4000)
    drawn = counts @ x.T / (counts @ w)[:, None]  # (draws, R)
    found, _ = one(x, w)
    assert drawn.mean(axis=1).var() == pytest.approx(found.of_examples[0], rel=0.09)
    apart = drawn - drawn.mean(axis=1, keepdims=True)
    assert apart.var(axis=0).sum() / (3 * 2) == pytest.approx(found.of_both[0], rel=0.09)


def simulate(rng: np.random.Generator, times: int, seeds: int, n: int, parts: tuple[float, float, float]) -> tuple:
    """``times`` pairs without a difference, each a task: sds of a seed's effect (in units of a mean), example's, both's."""
    of_seed, of_example, of_both = parts
    task = np.repeat(np.arange(times), n)
    w = rng.lognormal(4, 0.7, size=task.size)
    x = rng.normal(size=(seeds, times))[:, task] * of_seed * math.sqrt(seeds / n)
    x = (x + rng.normal(size=task.size) * of_example + rng.normal(size=(seeds, task.size)) * of_both) * w
    return x, w, task


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("n", [50, 500])
@pytest.mark.parametrize("parts", [(0, 1, 0.3), (1, 0, 0.3), (1, 1, 0.3), (2, 1, 1), (0, 0, 1)], ids=str)
def test_no_difference_is_called_no_difference(seeds: int, n: int, parts: tuple[float, float, float]) -> None:
    """False alarms at 5% are 5% where one source of chance dominates, and never more, whatever the mix.

    1,000 pairs tell a rate of 5% to √(0.05 · 0.95 / 1000) = 0.7%: five of that are 3.4%, and a rate of 2% to 0.44%.
    """
    times = 1000 if n == 50 else 400
    rng = np.random.default_rng([seeds, n])
    x, w, task = simulate(rng, times, seeds, n, parts)
    alarms = (interval(differences(x, w, task, times), np.eye(times)).p <= LEVEL).mean()
    slack = 5 * math.sqrt(0.05 * 0.95 / times)
    assert alarms <= 0.05 + slack
    if parts in ((0, 1, 0.3), (1, 0, 0.3)) and n == 50:
        assert alarms >= 0.05 - slack


def test_a_plain_bootstrap_would_cry_wolf() -> None:
    """The percentile interval of seeds and examples drawn again, at three seeds: what the correction is for."""
    rng = np.random.default_rng(1)
    times, n, draws = 200, 50, 300
    x, w, task = simulate(rng, times, 3, n, (1, 0, 0.3))
    ours = (interval(differences(x, w, task, times), np.eye(times)).p <= LEVEL).mean()
    alarms = 0
    for pair in range(times):
        mine, weight = x[:, task == pair], w[task == pair]
        counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)
        of_seed = counts @ mine.T / (counts @ weight)[:, None]
        low, high = np.quantile((of_seed * rng.multinomial(3, [1 / 3] * 3, size=draws) / 3).sum(axis=1), [0.025, 0.975])
        alarms += low > 0 or high < 0
    assert ours <= 0.05 + 0.05
    assert alarms / times >= 0.15


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_macro_mean_of_tasks_with_common_seeds(seeds: int) -> None:
    """Seeds move all tasks of a pair together; tasks have 10 to 80 examples.  400 pairs of 5 tasks: 5% ± 5 · 1.1%."""
    rng = np.random.default_rng(seeds)
    times, tasks = 400, 5
    task = np.repeat(np.arange(times * tasks), np.tile([10, 20, 30, 50, 80], times))
    of_pair = np.repeat(rng.normal(size=(seeds, times)) * 0.2, tasks, axis=1)
    w = rng.lognormal(4, 0.5, size=task.size)
    x = (of_pair[:, task] + rng.normal(size=task.size) + 0.3 * rng.normal(size=(seeds, task.size))) * w
    found = differences(x, w, task, times * tasks)
    p = interval(found, np.kron(np.eye(times), np.full((1, tasks), 1 / tasks))).p
    assert (p <= LEVEL).mean() <= 0.05 + 0.055
    assert (p <= 0.5).mean() == pytest.approx(0.45, abs=0.15)


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_accuracies(share: float) -> None:
    """Answers right with the same probability: no more than 5% of false alarms, also where few are right at all."""
    rng = np.random.default_rng(7)
    times, n, seeds = 1000, 50, 3
    right = rng.random((2, seeds, times * n)) < share
    x = right[1].astype(float) - right[0]
    found = differences(x, np.ones(times * n), np.repeat(np.arange(times), n), times, binary=True)
    assert (interval(found, np.eye(times)).p <= LEVEL).mean() <= 0.05 + 0.034


def test_a_few_answers_that_agree_are_no_certainty() -> None:
    """Three examples won at all of three seeds: without Bonett's two the width would be 0, and p too."""
    x = np.ones((3, 3))
    assert one(x)[1].p[0] == 0
    assert one(x, binary=True)[1].p[0] > LEVEL
    assert one(np.ones((3, 30)), binary=True)[1].p[0] < 0.001


@pytest.mark.parametrize(("gain", "of_seed", "of_example"), [(0.25, 0.05, 0.0), (0.15, 0.0, 1.0), (0.3, 0.05, 1.0)])
def test_a_difference_is_found(gain: float, of_seed: float, of_example: float) -> None:
    """With one source of chance it is found as often as the t-test of that source promises; with both, often."""
    rng = np.random.default_rng(3)
    times, seeds, n = 500, 3, 300
    task = np.repeat(np.arange(times), n)
    x = gain + rng.normal(size=(seeds, times))[:, task] * of_seed + rng.normal(size=task.size) * of_example
    power = (interval(differences(x, np.ones(task.size), task, times), np.eye(times)).p <= LEVEL).mean()
    if of_seed and of_example:
        assert power > 0.9
        return
    few, error = (seeds - 1, of_seed / math.sqrt(seeds)) if of_seed else (n - 1, of_example / math.sqrt(n))
    edge = stats.t.ppf(0.975, few)
    promised = stats.nct.sf(edge, few, gain / error)
    assert power == pytest.approx(promised, abs=5 * math.sqrt(0.25 / times))


def test_identical_results() -> None:
    chance = one(np.zeros((3, 9)))[1]
    assert (chance.gain[0], chance.half[0], chance.p[0]) == (0, 0, 1)


def test_one_example_that_outweighs_the_rest() -> None:
    """A billion tokens beside one: that is one example, of which nothing follows for others."""
    _, chance = one(np.array([[1.0, 2e9], [1.1, 2.1e9], [0.9, 2.05e9]]), np.array([1.0, 1e9]))
    assert chance.gain[0] == pytest.approx(2.05) and chance.half[0] > 5 and chance.p[0] > LEVEL


def test_without_enough() -> None:
    """No interval with one seed, or for a task of one example; no gain either without a seed or an example."""
    task = np.array([0, 0, 1])
    over = np.vstack([np.eye(3), [0.5, 0.5, 0], [0, 0, 0]])
    x = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    found = interval(differences(x, np.ones(3), task, 3), over)
    np.testing.assert_array_equal(found.gain, [2, 3.5, np.nan, 2.75, np.nan])
    np.testing.assert_array_equal(np.isnan(found.half), [False, True, True, True, True])
    np.testing.assert_array_equal(np.isnan(found.p), np.isnan(found.half))
    alone = interval(differences(x[:1], np.ones(3), task, 3), over)
    np.testing.assert_array_equal(alone.gain, [1.5, 3, np.nan, 2.25, np.nan])
    assert np.isnan(alone.half).all() and np.isnan(alone.p).all()
    for nothing in (differences(x[:0], np.ones(3), task, 3), differences(x[:, :0], np.ones(0), task[:0], 3)):
        assert np.isnan(interval(nothing, over).gain).all()


def test_holm_by_hand() -> None:
    """0.01 · 3, 0.02 · 2, and 0.03, which is lifted to the one before; NaN is not counted."""
    np.testing.assert_allclose(holm(np.array([0.02, np.nan, 0.01, 0.03])), [0.04, np.nan, 0.03, 0.04])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert holm(np.empty(0)).size == 0


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.04, 0.5, 1.0]), max_size=8))
def test_holm_rejects_as_its_steps_do(values: list[float]) -> None:
    """Step by step from the smallest: reject while p ≤ α / (m - rank), then stop."""
    rejected: set[int] = set()
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[i] > LEVEL / (len(values) - rank):
            break
        rejected.add(i)
    assert set(np.flatnonzero(holm(np.array(values)) <= LEVEL + 1e-15).tolist()) == rejected
