"""DEITA's filter: who stands for whom, where it ends.  The walk itself: tests/numerics/test_unlike.py."""

from __future__ import annotations

import numpy as np
import pytest

from curate.budget import Quota
from curate.exceptions import InputError
from curate.selectors import ReprFilter

ANGLE = np.radians([0, 10, 50, 55, 90, 180])
X = np.c_[np.cos(ANGLE), np.sin(ANGLE)]
QUALITY = np.array([3.0, 5.0, 1.0, 2.0, 4.0, 0.0])  # walked 1, 4, 0, 3, 2, 5


def test_by_hand():
    chosen = ReprFilter(threshold=0.9).select(X, quality=QUALITY)
    assert chosen.indices.tolist() == [1, 4, 3, 5]
    assert chosen.instead.tolist() == [1, -1, 3, -1, -1, -1]
    away = np.array([10, np.nan, 5, 35, 80, 90])  # degrees to the nearest row kept before
    np.testing.assert_allclose(chosen.basis, np.cos(np.radians(away)), atol=1e-12)
    assert chosen.reasons()[0] == "too like a better row" and chosen.thresholds[0] == 0.9
    assert chosen.explain(2).startswith("row 2: not chosen: too like a better row, the limit is 0.9 (")
    assert chosen.account == {"walked": 6, "kept": 4, "turned away": 2}


def test_it_ends_with_the_budget():
    chosen = ReprFilter(threshold=0.9).select(X, 2, quality=QUALITY)
    assert chosen.indices.tolist() == [1, 4] and chosen.account == {"walked": 2, "kept": 2, "turned away": 0}
    assert chosen.instead.tolist() == [-1] * 6
    assert set(chosen.reasons()) == {None, "after the last row kept, in the order of choice"}


def test_a_budget_that_cannot_be_filled_is_an_error():
    with pytest.raises(InputError, match="ReprFilter: k=5 rows asked of a pool of n=6, of which 4 may be chosen"):
        ReprFilter(threshold=0.9).select(X, 5, quality=QUALITY)


def test_rows_that_are_all_the_same_or_zero():
    for x in (np.zeros((4, 3)), np.full((4, 3), 0.1, dtype=np.float16)):
        chosen = ReprFilter().select(x, quality=np.array([0.0, 1, 1, 0]))
        assert chosen.indices.tolist() == [1] and chosen.instead.tolist() == [1, -1, 1, 1]
        assert chosen.basis[[0, 2, 3]].tolist() == [1, 1, 1]


def test_what_it_refuses():
    with pytest.raises(InputError, match="ReprFilter: needs quality=, the score by which rows are taken, higher first"):
        ReprFilter().select(X, 2)
    for wrong in (1.5, float("nan")):
        with pytest.raises(InputError, match=f"a threshold from -1 to 1, a cosine, was asked; {wrong} was found"):
            ReprFilter(threshold=wrong)


def test_tokens_and_quotas():
    cost = np.array([9, 5, 9, 5, 5, 9])
    assert ReprFilter().select(X, "15 tokens", quality=QUALITY, cost=cost).indices.tolist() == [1, 4, 3]
    quota = {"quota": Quota(), "quota_groups": np.array(list("aaabbb"))}
    assert ReprFilter().select(X, 2, quality=QUALITY, **quota).indices.tolist() == [1, 4]
    assert ReprFilter().select(X, quality=QUALITY, **quota).indices.tolist() == [1, 4, 3, 5]
