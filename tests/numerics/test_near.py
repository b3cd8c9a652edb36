"""Copies found through bands, against the walk over all pairs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from curate.numerics import near
from curate.numerics.near import copies
from curate.seeding import rng_for

SINGLES = [slice(i, i + 1) for i in range(6)]  # every pair that agrees anywhere shares a band: all pairs are seen


def reference(x, need, order=None):
    """The definition: walk the rows; the first row kept that agrees in enough places stands for a row."""
    n = len(x)
    instead, kept = np.full(n, -1), []
    for row in range(n) if order is None else order.tolist():
        first = next((j for j in kept if np.count_nonzero(x[row] == x[j]) >= need), None)
        if first is None:
            kept.append(row)
        else:
            instead[row] = first
    return instead


@pytest.fixture
def small_blocks(monkeypatch):
    """Everything in several blocks, and by products after one leader."""
    for name, value in {"_BLOCK": 7, "_PAIRS": 3, "_TURNS": 1, "_LONG": 3, "_LEADERS": 2}.items():
        monkeypatch.setattr(near, name, value)


def check(x, need, order):
    found = copies(x, need, SINGLES, order=order)
    np.testing.assert_array_equal(found.instead, reference(x, need, order))
    dropped = np.flatnonzero(found.instead >= 0)
    agree = np.count_nonzero(x[dropped] == x[found.instead[dropped]], axis=1)
    np.testing.assert_array_equal(found.agreeing[dropped], agree)
    assert not found.agreeing[found.instead < 0].any()


pools = st.integers(0, 24).flatmap(lambda n: arrays(np.uint32, (n, 6), elements=st.integers(0, 2)))


@given(pools, st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=120, deadline=None)
def test_is_the_walk_over_all_pairs(x, need, seed):
    check(x, need, rng_for(seed, "order").permutation(len(x)) if seed % 2 else None)


@pytest.mark.parametrize("seed", range(30))
def test_blocks_and_products_change_nothing(small_blocks, seed):
    rng = rng_for(seed, "pool")
    x = rng.integers(0, 2 + seed % 3, (40, 6)).astype([np.uint32, np.int64, np.float32][seed % 3])
    check(x, 3 + seed % 4, rng.permutation(40) if seed % 2 else None)


def test_a_chain_is_cut_where_it_would_join_unlike_rows():
    # 0-1, 1-2 and 2-3 agree in 5 of 6 places, 0-2 and 1-3 in 4: a connected component would leave one row of four
    x = np.array([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=np.uint32)
    assert copies(x, 5, SINGLES).instead.tolist() == [-1, 0, -1, 2]
    assert copies(x, 5, SINGLES, order=np.array([1, 3, 0, 2])).instead.tolist() == [1, -1, 1, -1]


def test_a_pair_that_only_followed_others_is_compared_in_the_end():
    # A row that followed a leader was not compared with the rest of their bucket.  Where the leader is dropped for
    # another row, elsewhere, the follower may stay, and one of the rest be like it.
    rng = rng_for(0, "late")
    hard = "101100 100011 000001 010110 001111 101001 000101 011011 011010"  # two such followers, of two components
    pools = [np.array([list(map(int, row)) for row in hard.split()], dtype=np.uint32)]
    pools += [rng.integers(0, 3, (12, 6)).astype(np.uint32) for _ in range(400)]
    bands = [slice(0, 2), slice(2, 4), slice(4, 6)]
    for x in pools:
        found = copies(x, 4, bands)
        stay = np.flatnonzero(found.instead < 0)
        for i in stay.tolist():
            for j in stay[stay < i].tolist():
                shared = any((x[i, b] == x[j, b]).all() for b in bands)
                assert not shared or np.count_nonzero(x[i] == x[j]) < 4
        dropped = np.flatnonzero(found.instead >= 0)
        assert (found.instead[found.instead[dropped]] == -1).all(), "a row that was dropped stands for another"
        assert (np.count_nonzero(x[dropped] == x[found.instead[dropped]], axis=1) >= 4).all()


def test_rows_in_another_order_give_the_same_groups():
    rng = rng_for(0, "order")
    x = rng.integers(0, 3, (60, 6)).astype(np.uint32)
    quality = rng.permutation(60)  # no ties
    bands = [slice(0, 3), slice(3, 6)]
    plain = copies(x, 4, bands, order=np.argsort(-quality)).instead
    at = rng.permutation(60)
    moved = copies(x[at], 4, bands, order=np.argsort(-quality[at])).instead
    back = np.full(60, -1)
    back[at] = np.where(moved >= 0, at[moved], -1)
    np.testing.assert_array_equal(back, plain)


def test_all_the_same_takes_one_comparison_a_row():
    x = np.ones((5_000, 16), dtype=np.uint32)
    found = copies(x, 13, [slice(lo, lo + 4) for lo in range(0, 16, 4)])
    assert (found.instead == np.r_[-1, np.zeros(4_999)]).all() and (found.agreeing[1:] == 16).all()
    assert found.compared == 2 * 4_999  # once in the first band, once in the walk; the other bands know it


def test_a_large_bucket_of_unlike_rows_is_compared_by_products():
    rng = rng_for(0, "template")
    x = rng.integers(0, 2**31, (1_500, 64)).astype(np.uint32)
    x[:, :24] = 7  # what all have in common, among it whole bands
    x[700:720] = x[:20]
    x[700:720, 30:34] = 1
    found = copies(x, math.ceil(0.8 * 64), [slice(lo, lo + 8) for lo in range(0, 64, 8)])
    np.testing.assert_array_equal(np.flatnonzero(found.instead >= 0), np.arange(700, 720))
    np.testing.assert_array_equal(found.instead[700:720], np.arange(20))
    assert found.compared < 1_500 * 1_500 / 2 / 3  # three bands hold every pair: 3.4 million


def test_zeros_of_either_sign_are_equal():
    x = np.array([[0.0, 1.5], [-0.0, 1.5], [0.0, -1.5]])
    assert copies(x, 2, [slice(0, 2)]).instead.tolist() == [-1, 0, -1]


def test_a_memory_map_is_not_copied_whole(tmp_path):
    import tracemalloc

    n = 40_000
    rng = rng_for(0, "map")
    file = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint32, shape=(n, 128))
    file[:] = rng.integers(0, 2**31, (n, 128))
    file.flush()
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    bands = [slice(lo, lo + 6) for lo in range(0, 121, 6)]
    copies(x[:1000], 103, bands)  # what the first call imports
    tracemalloc.start()
    copies(x, 103, bands)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 70 * n + 2**22, f"{peak / n:.0f} bytes a row; the signatures take 512"
