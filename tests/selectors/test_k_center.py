"""k-center: where it starts, what it leaves out, what it tells.  The order itself: tests/numerics/test_farthest.py."""

from __future__ import annotations

import numpy as np
import pytest

from curate.budget import Quota
from curate.exceptions import InputError
from curate.seeding import rng_for
from curate.selectors import KCenter

LINE = np.array([[0.0], [1.0], [2.0], [10.0], [4.0]])  # the mean is 3.4


def test_by_hand():
    chosen = KCenter().select(LINE, 3)
    assert chosen.indices.tolist() == [4, 3, 0]
    # 10 is 6 from 4, 0 is 4 from 4; of those left, 1 is 1 from 0 and 2 is 2 from 4 and from 0.
    np.testing.assert_array_equal(chosen.basis, [4, 1, 2, 6, np.nan])
    assert chosen.account == {"rows": 3, "radius": 2.0}
    assert chosen.reasons().tolist() == [None, *["after the last row kept, in the order of choice"] * 2, None, None]
    assert not chosen.excluded.any()


def test_the_radius_is_at_most_twice_the_smallest():
    """Gonzalez' bound, against the best of all choices of 3 of 9 rows."""
    from itertools import combinations

    for seed in range(10):
        x = rng_for(seed, "k-center").normal(size=(9, 2))
        away = np.linalg.norm(x[:, None] - x, axis=2)
        best = min(away[:, list(rows)].min(axis=1).max() for rows in combinations(range(9), 3))
        radius = KCenter().select(x, 3).account["radius"]
        assert best <= radius + 1e-12 and radius <= 2 * best


def test_the_first_row():
    assert KCenter(first="best").select(LINE, 1, quality=np.array([1.0, 3, 3, 2, 0])).indices.tolist() == [1]
    assert KCenter().select(np.array([[0.0], [2.0]]), 1).indices.tolist() == [0]  # both as near to the mean
    low = np.array([1.0, 1, 1, 1, 0])  # 4 is the central one, but is left out
    assert KCenter(min_quality=1).select(LINE, 1, quality=low).indices.tolist() == [2]
    for selector, asks in ((KCenter(first="best"), "first='best'"), (KCenter(min_quality=1), "min_quality")):
        with pytest.raises(InputError, match=f"KCenter: {asks} asks for quality=, one number a row; none was given"):
            selector.select(LINE, 1)


def test_outliers_are_left_out():
    quality = np.array([0.0, 1, 1, 1, 1])
    chosen = KCenter(max_distance=5, min_quality=0.5).select(LINE, 3, quality=quality)
    assert chosen.indices.tolist() == [4, 1, 2]
    assert chosen.reasons().tolist() == [
        *("quality below 0.5", None, None),
        *("further than 5 from the mean of all rows", None),
    ]
    assert chosen.account["radius"] == 0
    with pytest.raises(InputError, match="k=4 rows asked of a pool of n=5, of which 3 may be chosen"):
        KCenter(max_distance=5, min_quality=0.5).select(LINE, 4, quality=quality)
    with pytest.raises(InputError, match="max_distance of at least 0 was asked, -1 was found"):
        KCenter(max_distance=-1)
    with pytest.raises(InputError, match="of which 0 may be chosen"):
        KCenter(min_quality=2).select(LINE, 1, quality=quality)


def test_rows_that_are_all_the_same_or_zero():
    for x in (np.zeros((5, 3)), np.full((5, 3), 0.1, dtype=np.float16)):
        chosen = KCenter().select(x, 4)
        assert chosen.indices.tolist() == [0, 1, 2, 3] and chosen.account["radius"] == 0


def test_tokens_and_quotas():
    cost = np.array([5, 5, 5, 5, 5])
    assert KCenter().select(LINE, "12 tokens", cost=cost).indices.tolist() == [4, 3]
    chosen = KCenter().select(LINE, 4, quota=Quota(), quota_groups=np.array(["a", "a", "b", "b", "b"]))
    assert chosen.indices.tolist() == [4, 0, 3, 1]


def test_a_memory_map_is_read_and_not_copied(tmp_path):
    x = rng_for(0, "map").normal(size=(3000, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(KCenter().select(mapped, 100).order, KCenter().select(x, 100).order)
