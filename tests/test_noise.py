"""Planted noise: what each kind makes of an answer, which rows it takes, and that nothing else changes."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curate
from curate.example import keys
from curate.exceptions import InputError
from curate.noise import KINDS, detect, plant, wrong_answers
from curate.testing.scorers import odd_examples
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def pool() -> pa.Table:
    rows = curate.read(str(ROOT / "examples/pool/train-00000-of-00004.parquet")).examples()
    return rows.take(np.arange(0, rows.num_rows, 6)).combine_chunks()


def answers(table: pa.Table) -> list[str]:
    return [[m for m in row if m["role"] == "assistant"][-1]["content"] for row in table["messages"].to_pylist()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_able_rows_changes_its_answer_and_nothing_else(pool: pa.Table, kind: str) -> None:
    found = plant(pool, kind, 0.2)
    assert found.truth.sum() == int(0.2 * found.able.sum() + 0.5) > 0
    assert not (found.truth & ~found.able).any()
    assert found.examples.schema == pool.schema
    before, after = pool.to_pylist(), found.examples.to_pylist()
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if not found.truth[i]:
            assert new == old
            continue
        places = [j for j, (a, b) in enumerate(zip(old["messages"], new["messages"], strict=True)) if a != b]
        assert places == [max(j for j, m in enumerate(old["messages"]) if m["role"] == "assistant")]
        assert (new["content_key"], new["prompt_key"]) == keys(new["messages"], new["tools"])
        assert new["content_key"] != old["content_key"] and new["prompt_key"] == old["prompt_key"]
        assert (new["id"], new["source"], new["row"]) == (old["id"], old["source"], old["row"])


@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_share_nor_the_order_of_the_rows_changes_what_a_row_becomes(pool: pa.Table, kind: str) -> None:
    few, many = plant(pool, kind, 0.1), plant(pool, kind, 0.4)
    assert few.truth.any() and not (few.truth & ~many.truth).any()
    for i in np.flatnonzero(few.truth):
        assert few.examples.slice(i, 1).equals(many.examples.slice(i, 1))
    order = np.random.default_rng(0).permutation(pool.num_rows)
    other = plant(pool.take(order), kind, 0.4)
    assert sorted(answers(other.examples)) == sorted(answers(many.examples))
    assert plant(pool, kind, 0.4, seed=1).truth.tolist() != many.truth.tolist()


def test_shuffled_answers_come_from_another_prompt_of_the_source(pool: pa.Table) -> None:
    rows = pool.to_pylist()
    own = answers(pool)
    for i, wrong in enumerate(wrong_answers(pool, "shuffled")):
        donors = [j for j, row in enumerate(rows) if row["source"] == rows[i]["source"] and own[j] == wrong]
        assert wrong is None or (
            wrong != own[i] and any(rows[j]["prompt_key"] != rows[i]["prompt_key"] for j in donors)
        )


def test_another_answer_to_the_same_prompt_is_no_noise() -> None:
    table = odd_examples().slice(0, 4)  # three answers to one question, and another question
    table = table.set_column(table.column_names.index("source"), "source", pa.array(["one"] * 4))
    own = answers(table)
    assert wrong_answers(table, "shuffled") == [own[3]] * 3 + [wrong_answers(table, "shuffled")[3]]
    with pytest.raises(InputError, match="none of 3 rows can carry the noise 'shuffled'"):
        plant(table.slice(0, 3), "shuffled", 0.5)


def test_truncated_numbers_and_language(pool: pa.Table) -> None:
    own = answers(pool)
    for old, cut in zip(own, wrong_answers(pool, "truncated"), strict=True):
        if cut is None:
            assert len(old.split()) < 5
        else:
            share = len(cut.split()) / len(old.split())
            assert old.startswith(cut) and 0 < share < 0.81
    for old, new in zip(own, wrong_answers(pool, "numbers"), strict=True):
        assert (new is None) == (re.search("[0-9]", old) is None)
        if new is not None:
            assert re.sub("[0-9]", "0", new) == re.sub("[0-9]", "0", old) and new != old
            pairs = dict(zip(re.findall("[0-9]+", old), re.findall("[0-9]+", new), strict=True))
            assert re.sub("[0-9]+", lambda m, pairs=pairs: pairs[m[0]], old) == new  # one number, one other
    for old, new in zip(own, wrong_answers(pool, "language"), strict=True):
        assert new is None or (len(new) == len(old) and not re.search("[A-Za-z]", new))


def test_odd_rows_are_left_alone() -> None:
    table = odd_examples()
    for kind in KINDS:
        found = plant(table, kind, 1.0)
        assert found.truth.tolist() == found.able.tolist()
        for old, new, hit in zip(table.to_pylist(), found.examples.to_pylist(), found.truth, strict=True):
            assert (old["content_key"] != new["content_key"]) == hit
    assert not plant(table, "numbers", 0.0).truth.any()


def test_what_cannot_be_planted(pool: pa.Table) -> None:
    for kind, share, said in [
        ("typos", 0.1, "a kind of shuffled, truncated, numbers, language was asked, 'typos' was found."),
        ("numbers", 1.2, "a share from 0 to 1 was asked, 1.2 was found."),
    ]:
        with pytest.raises(InputError, match=re.escape(said)):
            plant(pool, kind, share)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="none of 1 rows can carry the noise 'shuffled'"):
        plant(pool.slice(0, 1), "shuffled", 0.1)


# -- how well a score tells them ---------------------------------------------------------------------------------------


def test_detection_by_hand() -> None:
    found = detect(np.array([0.1, 0.2, 0.2, 0.9, np.nan]), np.array([True, False, True, False, True]))
    assert (found.rows, found.planted, found.unscored) == (4, 2, 1)
    assert found.auroc == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert found.precision == found.precision_half == found.recall_half == pytest.approx(0.75)  # one of two equals
    nothing = detect(np.zeros(6), np.array([True, False] * 3))
    assert (nothing.auroc, nothing.precision, nothing.recall_half) == pytest.approx((0.5, 0.5, 0.5))
    assert np.isnan(detect(np.ones(3), np.zeros(3, bool)).auroc)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_detection_is_that_of_a_loop_over_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([s for s, _ in rows], float), np.array([t for _, t in rows])
    found = detect(scores, truth)
    wrong, right = scores[truth], scores[~truth]
    if not wrong.size or not right.size:
        assert np.isnan(found.auroc)
        return
    pairs = [(a < b) + (a == b) / 2 for a in wrong for b in right]
    assert found.auroc == pytest.approx(np.mean(pairs))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        order = np.lexsort((rng.random(scores.size), scores))
        draws.append(truth[order[: wrong.size]].mean())
    assert found.precision == pytest.approx(np.mean(draws), abs=0.12)
