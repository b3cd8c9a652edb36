"""Every selection against every baseline: by hand, against plain loops, its laws, its sentences, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.numerics.evidence import Evidence, Results, evidence
from curate.numerics.verdicts import ONE_SEED, markdown, table, task_table, task_words, verdict

NAMES = ["random", "less", "zero-shot"]


def hand() -> Results:
    """Two tasks, two seeds.  Tokens 1 3 | 2 2: losses are sums over 4, whatever the examples."""
    nll = [
        [[2, 6, 4, 4], [4, 4, 6, 2]],  # random: 2, 2 on maths; 2, 2 on chat
        [[1, 3, 5, 5], [1, 1, 6, 4]],  # less: 1, 1/2; 5/2, 5/2
        [[4, 8, 4, 8], [4, 8, 4, 8]],  # zero-shot: 3; 3
    ]
    return Results(NAMES, ["maths", "chat"], np.array([0, 0, 1, 1]), np.array([1, 3, 2, 2.0]), np.array(nll))


def drawn(
    rng: np.random.Generator,
    gains: Mapping[str, Sequence[float]],
    *,
    seeds: int = 3,
    n: int = 40,
    of_seed: float = 0.01,
    of_example: float = 0.05,
) -> Results:
    """Selections with these true gains a task, in nats per token, over a common difficulty of each example."""
    tasks = [f"task {t}" for t in range(len(next(iter(gains.values()))))]
    task = np.repeat(np.arange(len(tasks)), n)
    tokens = rng.integers(5, 60, size=task.size).astype(float)
    hard = rng.normal(2.5, 0.4, size=task.size)
    nll = [
        [
            (hard - np.array(gain)[task] + rng.normal() * of_seed + rng.normal(size=task.size) * of_example) * tokens
            for _ in range(seeds)
        ]
        for gain in gains.values()
    ]
    return Results(list(gains), tasks, task, tokens, np.array(nll))


def against(results: Results, *baselines: str, **how: Any) -> Evidence:
    return evidence(results, baselines=baselines or ["random"], **how)


def test_by_hand() -> None:
    found = against(hand(), "random", "zero-shot", zero_shot="zero-shot", made_for={"less": ["maths"]})
    np.testing.assert_allclose(found.loss.mean, [[2, 2, 2], [0.75, 2.5, 1.625], [3, 3, 3]])
    np.testing.assert_allclose(found.loss.sd[1], [math.sqrt(0.125), 0, math.sqrt(0.125) / 2])
    np.testing.assert_allclose(found.loss.gain[1, 0], [1.25, -0.5, 0.375])
    np.testing.assert_allclose(found.loss.gain[1, 1], [2.25, 0.5, 1.375])
    assert np.isnan(found.loss.gain[0, 0]).all()  # a baseline and itself
    np.testing.assert_allclose(found.loss.won, [[np.nan, 1], [0.5, 1], [0, np.nan]])
    np.testing.assert_array_equal(found.loss.worst, [[-1, 0], [1, 1], [0, -1]])
    np.testing.assert_allclose(found.forgetting, [-1, -0.5, np.nan])  # less: chat alone
    assert found.accuracy is None and found.missing == () and found.notes == ()


def test_a_tie_is_half_a_cell() -> None:
    results = hand()
    results.nll[1, 0, :2] = results.nll[0, 0, :2]
    assert against(results).loss.won[1, 0] == (0.5 + 1 + 0 + 0) / 4


def plain(results: Results, s: int, b: int) -> tuple[list[float], list[int], float]:
    """Gains by task, examples by task and the macro mean, in loops over what both have."""
    runs = [r for r in range(results.nll.shape[1]) if np.isfinite(results.nll[[s, b], r]).any(axis=1).all()]
    gains, sizes = [], []
    for t in range(len(results.tasks)):
        its = [
            i
            for i in range(len(results.task))
            if results.task[i] == t and all(np.isfinite(results.nll[[s, b], r, i]).all() for r in runs)
        ]
        sizes.append(len(its) if runs else 0)
        by_seed = [
            sum(results.nll[b, r, i] - results.nll[s, r, i] for i in its) / sum(results.tokens[i] for i in its)
            for r in runs
            if its
        ]
        gains.append(sum(by_seed) / len(by_seed) if by_seed else math.nan)
    judged = [g for g, n in zip(gains, sizes, strict=True) if n >= 2]
    return gains, sizes, sum(judged) / len(judged) if judged else math.nan


@settings(max_examples=60)
@given(st.integers(0, 9999))
def test_parity_with_the_loops_and_holes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    s, r, n, t = rng.integers(2, 4), rng.integers(1, 4), rng.integers(0, 12), rng.integers(1, 4)
    nll = rng.uniform(1, 9, size=(s, r, n))
    nll[rng.random(nll.shape) < 0.1] = np.nan
    nll[rng.random((s, r)) < 0.1] = np.inf
    results = Results(
        [f"s{i}" for i in range(s)],
        [f"t{i}" for i in range(t)],
        rng.integers(t, size=n),
        rng.uniform(1, 9, size=n),
        nll,
    )
    found = against(results, "s0")
    for i in range(1, s):
        gains, sizes, whole = plain(results, i, 0)
        np.testing.assert_allclose(found.loss.gain[i, 0], [*gains, whole])
        assert found.loss.compared[i, 0].tolist() == sizes
    ran = np.isfinite(nll).any(axis=2)
    assert set(found.missing) == {(f"s{i}", int(j)) for i, j in np.argwhere(~ran)}
    assert all("nan" not in verdict(found, name) for name in found.selections)
    assert "nan" not in markdown(found)
    assert table(found).height == s and task_table(found).height == s * t


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_order_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    results = drawn(rng, {"random": [0, 0, 0], "a": [0.1, 0, -0.1], "b": [0, 0.02, 0]}, n=8)
    results.nll[1, 0, 3] = np.nan
    results = dataclasses.replace(results, correct=(rng.random(results.nll.shape) < 0.5).astype(float))
    found = against(results, "random", "b", zero_shot="random", made_for={"a": ["task 1"]})
    s, r, t, i = rng.permutation(3), rng.permutation(3), rng.permutation(3), rng.permutation(len(results.task))
    assert results.correct is not None
    other = Results(
        [results.selections[j] for j in s],
        [results.tasks[j] for j in t],
        np.argsort(t)[results.task[i]],
        results.tokens[i],
        results.nll[s][:, r][:, :, i],
        results.correct[s][:, r][:, :, i],
    )
    again = against(other, "random", "b", zero_shot="random", made_for={"a": ["task 1"]})
    tables = [table(e).sort("selection").drop("worst_task") for e in (found, again)]
    tasks = [task_table(e).sort("measure", "selection", "baseline", "task") for e in (found, again)]
    for left, right in (tables, tasks):
        for column in left.columns:
            if left[column].dtype == pl.Float64:
                np.testing.assert_allclose(left[column].to_numpy(), right[column].to_numpy(), rtol=1e-6, atol=1e-9)
            elif column != "verdict":  # which lists tasks in their order
                assert left[column].to_list() == right[column].to_list()


def test_another_selection_changes_no_digit() -> None:
    rng = np.random.default_rng(0)
    results = drawn(rng, {"random": [0, 0], "a": [0.1, 0], "b": [0.2, 0]})
    fewer = dataclasses.replace(results, selections=results.selections[:2], nll=results.nll[:2])
    assert table(against(results)).head(2).equals(table(against(fewer)))


def test_identical_results_are_no_difference() -> None:
    results = drawn(np.random.default_rng(0), {"random": [0, 0], "a": [0, 0]})
    results.nll[1] = results.nll[0]
    found = against(dataclasses.replace(results, correct=np.ones_like(results.nll)))
    assert (found.loss.gain[1, 0] == 0).all() and (found.loss.p[1, 0] == 1).all()
    assert found.loss.won[1, 0] == 0.5
    loss, accuracy = verdict(found, "a").split("; ")
    assert loss == "no difference from random over 2 tasks (0.000 ± 0.000 nats per token)"
    assert accuracy.startswith("accuracy: no difference from random over 2 tasks (0.0 ± ")


def test_random_against_random_is_no_difference() -> None:
    """200 pairs of 5 tasks and 3 seeds: a claim of any kind in 5%; four standard errors of 1.5% more are 11%."""
    rng = np.random.default_rng(0)
    claims = 0
    for _ in range(200):
        found = against(drawn(rng, {"random": [0.0] * 5, "other": [0.0] * 5}, of_seed=0.02, of_example=0.1))
        claims += not verdict(found, "other").startswith("no difference from random")
    assert claims / 200 <= 0.11


def test_what_is_there_is_found_and_losses_are_losses() -> None:
    rng = np.random.default_rng(0)
    gains: dict[str, list[float]] = {
        "random": [0.0] * 5,
        "good": [0.2] * 5,
        "most": [0.2, 0.2, 0.2, 0.0, -0.2],
        "bad": [-0.2, -0.2, 0.0, 0.0, 0.0],
        "awful": [-0.2] * 5,
    }
    found = against(drawn(rng, gains, of_seed=0.001))
    said = {name: verdict(found, name) for name in gains}
    assert said["random"] == "the baseline itself"
    assert said["good"].startswith("better than random on 5 of 5 tasks (+0.199 ± 0.0")
    assert said["good"].endswith(" nats per token over all)")
    assert said["most"].startswith("better than random on 3 of 5 tasks (+0.0")
    assert said["most"].endswith("over all); worse on task 4; no better on task 3")
    assert said["bad"].startswith("worse than random on 2 of 5 tasks: task 0 and task 1 (−0.0")
    assert said["awful"].startswith("worse than random on 5 of 5 tasks (−0.2")
    assert task_words(found.loss, 2, 0) == ["better", "better", "better", "", "worse"]


def test_tasks_that_cancel_are_told_at_a_stricter_level() -> None:
    """+0.05 and -0.05: together no difference; each alone far beyond 0.01, so both are told."""
    found = against(drawn(np.random.default_rng(0), {"random": [0, 0], "a": [0.1, -0.1]}, of_seed=0.0005))
    assert found.loss.p[1, 0, -1] > 0.05
    said = verdict(found, "a")
    assert said.startswith("better than random on 1 of 2 tasks (") and "over all, no difference)" in said
    assert said.endswith("; worse on task 1")
    p_holm = found.loss.p_holm.copy()
    p_holm[1, 0] = [0.03, 0.009]
    between = dataclasses.replace(found.loss, p_holm=p_holm)
    assert task_words(between, 1, 0) == ["", "worse"]
    p = found.loss.p.copy()
    p[1, 0, -1] = 0.04
    assert task_words(dataclasses.replace(between, p=p), 1, 0) == ["better", "worse"]


def test_together_but_on_no_task_alone() -> None:
    found = against(drawn(np.random.default_rng(0), {"random": [0, 0], "a": [0.05, 0.05]}))
    p = found.loss.p.copy()
    p[1, 0] = [0.03, 0.04, 0.02]
    gain = np.full_like(p, 0.05)
    half = np.full_like(p, 0.0321)
    loss = dataclasses.replace(found.loss, gain=gain, half=half, p=p, p_holm=2 * p[:, :, :-1])
    together = dataclasses.replace(found, loss=loss)
    assert verdict(together, "a") == "better than random over 2 tasks (+0.050 ± 0.032 nats per token), on no task alone"


def test_one_task_and_one_seed() -> None:
    rng = np.random.default_rng(0)
    found = against(drawn(rng, {"random": [0.0], "a": [0.2], "b": [0.0]}, of_seed=0.001))
    assert verdict(found, "a").startswith("better than random on task 0 (+0.2")
    assert verdict(found, "b").startswith("no difference from random on task 0 (")
    found = against(drawn(rng, {"random": [0.0, 0.0], "a": [0.2, 0.2]}, seeds=1))
    assert verdict(found, "a").startswith(f"{ONE_SEED} (+0.")
    assert verdict(found, "a").endswith(" nats per token against random)")
    assert np.isnan(found.loss.p).all() and np.isnan(found.loss.half).all() and np.isnan(found.loss.sd).all()
    assert found.loss.won[1, 0] == 1


def test_a_run_that_diverged_is_named_and_left_out() -> None:
    gains: dict[str, list[float]] = {"random": [0.0, 0.0], "a": [0.2, 0.2], "gone": [0.0, 0.0]}
    results = drawn(np.random.default_rng(0), gains, of_seed=0.001)
    correct = (np.random.default_rng(1).random(results.nll.shape) < 0.5).astype(float)
    correct[1, 2] = 0  # what a diverged model says is wrong, and does not count
    results.nll[1, 2] = np.nan
    results.nll[2] = np.inf
    found = against(dataclasses.replace(results, correct=correct))
    assert found.missing == (("a", 2), ("gone", 0), ("gone", 1), ("gone", 2))
    assert "a: run 3 of 3 has no result (diverged, or not made) and is left out" in found.notes
    assert found.loss.seeds[1, 0] == 2
    assert "nats per token over all, 2 of 3 seeds)" in verdict(found, "a")
    assert found.accuracy is not None and found.accuracy.seeds[1, 0] == 2
    assert found.accuracy.mean[1, -1] == pytest.approx(
        np.mean([correct[1, :2][:, results.task == t].mean() for t in (0, 1)])
    )
    assert verdict(found, "gone") == "no verdict: at no seed have both it and random a result"
    assert table(found)["seeds"].to_list() == [3, 2, 0]
    assert table(found)["loss"].to_list()[2] is None


def test_holes_are_left_out_pairwise_and_counted() -> None:
    results = drawn(np.random.default_rng(0), {"random": [0, 0], "a": [0, 0], "b": [0, 0]}, n=10)
    results.nll[1, 2, 0] = np.nan  # of a alone
    results.nll[:, :, 5] = np.nan  # of all
    found = against(results)
    assert found.loss.examples[:, 0].tolist() == [9, 8, 9]
    assert found.loss.compared[:, 0, 0].tolist() == [0, 8, 9]
    assert found.notes == (
        "task 0: 1 of 10 examples are without a loss in every selection",
        "a: 1 of 9 examples of task 0 without a loss in some run, left out",
    )


def test_a_task_with_one_example_is_shown_and_not_judged() -> None:
    results = drawn(np.random.default_rng(0), {"random": [0, 0, 0], "a": [0.1, 5, 0.1]}, of_seed=0.001)
    results.nll[:, :, 41:80] = np.nan
    found = against(results)
    assert found.loss.compared[1, 0].tolist() == [40, 1, 40]
    assert found.loss.gain[1, 0, 1] > 4 and math.isnan(found.loss.p[1, 0, 1])
    assert found.loss.gain[1, 0, 3] == pytest.approx(found.loss.gain[1, 0, [0, 2]].mean())
    assert found.loss.mean[1, 3] == pytest.approx(found.loss.mean[1, [0, 2]].mean())
    assert "better than random on 2 of 2 tasks" in verdict(found, "a")
    assert "task 1: one example, shown but not judged" in found.notes
    alone = Results(["random", "a"], ["t"], np.zeros(1, dtype=int), np.ones(1), np.ones((2, 3, 1)))
    assert verdict(against(alone), "a").startswith("no verdict: no task has two examples that both it and random")


def test_accuracy_alone_and_in_part() -> None:
    """Answers may be verified where there is no loss, and on some tasks only."""
    rng = np.random.default_rng(0)
    results = drawn(rng, {"random": [0, 0], "a": [0, 0]}, n=100)
    correct = (rng.random(results.nll.shape) < np.array([0.2, 0.6])[:, None, None]).astype(float)
    correct = np.where(results.task == 0, correct, np.nan)
    found = against(dataclasses.replace(results, correct=correct))
    assert found.accuracy is not None
    assert found.accuracy.gain[1, 0, 0] == pytest.approx(np.nanmean(correct[1]) - np.nanmean(correct[0]))
    assert "; accuracy: better than random on task 0 (+" in verdict(found, "a") and " points)" in verdict(found, "a")
    alone = against(dataclasses.replace(results, nll=np.full_like(results.nll, np.nan), correct=correct))
    assert alone.missing == ()
    assert verdict(alone, "a").startswith("accuracy: better than random on task 0 (+")
    nothing = dataclasses.replace(results, correct=np.full_like(results.nll, np.nan))
    assert against(nothing).accuracy is None


def test_forgetting() -> None:
    """On the tasks it was not made for: +0.1 there is -0.1 forgotten; made for all, there is nothing to ask."""
    gains: dict[str, list[float]] = {
        "zero-shot": [0, 0, 0],
        "a": [0.5, -0.1, -0.1],
        "b": [0.2, 0.2, 0.2],
        "c": [0.5, 0.5, 0.5],
    }
    results = drawn(np.random.default_rng(0), gains, n=80, of_seed=0.001)
    tasks = list(results.tasks)
    found = against(results, "zero-shot", zero_shot="zero-shot", made_for={"a": tasks[:1], "c": tasks})
    np.testing.assert_allclose(found.forgetting, [np.nan, 0.1, -0.2, np.nan], atol=0.02)
    assert 0 < found.forgetting_half[1] < 0.05
    row = table(found).row(1, named=True)
    assert row["forgetting"] == found.forgetting[1] and row["forgetting_half"] == found.forgetting_half[1]
    assert "forgetting" in markdown(found) and "forgetting" not in markdown(against(results, "zero-shot"))


def test_tables(tmp_path: Path) -> None:
    gains: dict[str, list[float]] = {"random": [0, 0], "longest": [0.2, -0.2], "a|b": [0.2, 0.2]}
    results = drawn(np.random.default_rng(0), gains, of_seed=0.001)
    found = against(results, "random", "longest")
    whole, tasks = table(found), task_table(found)
    assert whole["selection"].to_list() == list(gains) and tasks.height == 3 * 2 * 2
    row = whole.row(2, named=True)
    assert (row["baseline"], row["won"], row["worst_task"] in results.tasks) == ("random", 1, True)
    assert row["verdict"] == verdict(found, "a|b") and row["gain"] == found.loss.gain[2, 0, -1]
    assert whole.row(0, named=True)["gain"] is None and whole["accuracy"].null_count() == 3
    assert set(tasks["word"].drop_nulls()) <= {"better", "worse", "no difference"}
    assert table(found, "longest").row(0, named=True)["gain"] == pytest.approx(-whole.row(1, named=True)["gain"])
    for i, frame in enumerate((whole, tasks)):
        frame.write_parquet(tmp_path / f"{i}.parquet")
        assert pl.read_parquet(tmp_path / f"{i}.parquet").equals(frame)
    page = markdown(found)
    lines = page.splitlines()
    assert lines[0] == "| selection | loss (sd over seeds) | gain on random | cells won | worst task |"
    assert lines[2].startswith("| a\\|b | 2.")  # the lowest loss first
    assert "- **a\\|b**: better than random on 2 of 2 tasks (" in page and "better than longest on" in page
    assert "▲" in page and "▼" in page
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert widths == {6, 4}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"selections": ["random", "random", "zero-shot"]}, "selections of different names were asked, 'random' twice"),
        ({"selections": []}, "selections of different names were asked, none was found"),
        ({"tasks": ["maths", "maths"]}, "tasks of different names were asked, 'maths' twice"),
        ({"nll": np.ones((3, 4))}, r"nll of shape \(3 selections, seeds, 4 examples\) was asked, \(3, 4\) was found"),
        ({"nll": np.ones((3, 0, 4))}, r"\(3, 0, 4\) was found"),
        ({"tokens": np.ones(3)}, r"tokens of shape \(4,\) were asked, \(3,\) was found"),
        ({"tokens": np.array([1, 0, -1, 2.0])}, r"2 examples have a loss and no scored token, first example 1 \(0 tok"),
        ({"tokens": np.array([1, np.nan, 1, 2.0])}, "1 examples have a loss and no scored token"),
        ({"task": np.array([0, 0, 1, 2])}, "task codes from 0 to 1 were asked, 0 to 2 were found"),
        ({"task": np.array([0, 0, 1, -1])}, "-1 to 1 were found"),
        ({"correct": np.ones((3, 2, 3))}, r"correct of shape \(3, 2, 4\) was asked, \(3, 2, 3\) was found"),
        ({"correct": np.full((3, 2, 4), 0.5)}, "correct is 1, 0 or NaN, 0.5 was found"),
    ],
)
def test_results_that_do_not_fit(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        dataclasses.replace(hand(), **change)


def test_names_that_are_not_there() -> None:
    results = hand()
    for how, told in (
        ({"baselines": []}, "a baseline was asked, none was found; name one of random, less, zero-shot"),
        ({"baselines": ["longest"]}, "'longest' was asked, which is none of the selections: random, less, zero-shot"),
        ({"baselines": ["random"], "zero_shot": "base"}, "'base' was asked, which is none of the selections"),
        ({"baselines": ["random"], "made_for": {"moon": []}}, "'moon' was asked, which is none of the selections"),
        ({"baselines": ["random"], "made_for": {"less": ["moon"]}}, "'moon' was asked, which is none of the tasks"),
    ):
        with pytest.raises(InputError, match=told):
            evidence(results, **how)  # type: ignore[arg-type]
    found = against(results)
    with pytest.raises(InputError, match="'less' was asked, which is none of the baselines: random"):
        verdict(found, "random", "less")
    with pytest.raises(InputError, match="'moon' was asked, which is none of the selections"):
        verdict(found, "moon")


def test_where_no_answer_is_right_accuracy_is_not_told() -> None:
    rng = np.random.default_rng(0)
    task, tokens = np.repeat([0, 1], 10), np.full(20, 10.0)
    nll = rng.normal(20, 1, size=(3, 3, 20))
    correct = np.zeros((3, 3, 20))
    names = ["random", "a", "b"]
    none = evidence(Results(names, ["x", "y"], task, tokens, nll, correct), baselines=["random"])
    assert none.notes[-1] == "no selection has a single right answer: accuracy tells nothing here"
    assert "accuracy" not in verdict(none, "a") and "| accuracy" not in markdown(none)
    correct[2, 0, 3] = 1
    one = evidence(Results(names, ["x", "y"], task, tokens, nll, correct), baselines=["random"])
    assert "accuracy" not in verdict(one, "a") and "accuracy" in verdict(one, "b") and "| accuracy" in markdown(one)
    assert not any("right answer" in note for note in one.notes)
