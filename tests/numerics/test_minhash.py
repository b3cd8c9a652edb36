"""MinHash signatures, against sets, one place after another."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.numerics import minhash
from curate.numerics.minhash import EMPTY, ROUNDS, found_in_a_band, rows_of_a_band, signatures, standard_error
from curate.numerics.ngrams import mix
from curate.seeding import rng_for


def flat(sets):
    offsets = np.r_[0, np.cumsum([len(s) for s in sets])].astype(np.int64)
    return np.array([e for s in sets for e in s], dtype=np.uint64), offsets


def reference(elements, places, seed=0):
    """Each place: the lowest number of the first round in which an element reaches it."""
    salts = rng_for(seed, "minhash").integers(0, 2**64, ROUNDS + places, dtype=np.uint64).tolist()
    out = []
    for place in range(places):
        number = int(EMPTY)
        for t in [*range(ROUNDS), ROUNDS + place]:
            hashes = [int(mix(np.array([e ^ salts[t]], dtype=np.uint64))[0]) for e in set(elements)]
            reach = [h % 2**31 for h in hashes if t >= ROUNDS or (h >> 32) * places >> 32 == place]
            if reach:
                number = min(reach)
                break
        out.append(number)
    return out


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=12), max_size=6), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_is_the_definition(sets, places, seed):
    got = signatures(*flat(sets), places, seed=seed)
    assert got.shape == (len(sets), places) and got.dtype == np.uint32
    assert got.tolist() == [reference(s, places, seed) for s in sets]


def test_blocks_change_nothing(monkeypatch):
    rng = rng_for(0, "sets")
    sets = [rng.integers(0, 2**64, n, dtype=np.uint64).tolist() for n in (0, 3, 700, 1, 40, 0, 90, 5)]
    whole = signatures(*flat(sets), 64)
    monkeypatch.setattr(minhash, "_TOGETHER", 16)
    monkeypatch.setattr(minhash, "_SETS", 3)
    np.testing.assert_array_equal(signatures(*flat(sets), 64), whole)
    for s, row in zip(sets, whole, strict=True):
        np.testing.assert_array_equal(signatures(*flat([s[::-1] + s])[:2], 64)[0], row)  # a set: no order, no repeats
    assert (whole[[0, 5]] == EMPTY).all() and (whole[[1, 2, 3, 4, 6, 7]] < 2**31).all()


@pytest.mark.parametrize("union", [2, 10, 60, 200, 1000])
@pytest.mark.parametrize("similarity", [0.5, 0.8])
def test_estimates_the_jaccard_similarity(union, similarity):
    pairs, places = 300, 128
    rng = rng_for(union, "jaccard")
    both = min(round(similarity * union), union - 1)
    sets = []
    for _ in range(pairs):
        elements = rng.integers(0, 2**64, union, dtype=np.uint64)
        own = both + (union - both) // 2
        sets += [elements[:own], np.r_[elements[:both], elements[own:]]]
    got = signatures(*flat(sets), places)
    error = (got[::2] == got[1::2]).mean(axis=1) - both / union
    bound = standard_error(both / union, places)
    assert abs(error.mean()) < 4 * bound / math.sqrt(pairs), "biased"
    assert np.sqrt((error**2).mean()) < 1.1 * bound, "strays further than independent permutations"
    if 20 <= union <= 200:
        assert np.sqrt((error**2).mean()) < 0.85 * bound, "places are drawn almost without replacement"


def test_places_agree_independently_enough_for_bands():
    rng = rng_for(0, "bands")
    sets = []
    for _ in range(1_500):
        elements = rng.integers(0, 2**64, 100, dtype=np.uint64)
        sets += [elements[:90], np.r_[elements[:80], elements[90:]]]  # 80 of 100
    got = signatures(*flat(sets), 128)
    r = rows_of_a_band(128, 0.8, 0.99)
    agree = (got[::2] == got[1::2])[:, : 128 // r * r].reshape(1_500, -1, r).all(axis=2)
    assert agree.any(axis=1).mean() > 0.99
    assert abs(agree.mean() - 0.8**r) < 0.02


def test_bands_are_as_long_as_recall_allows():
    assert rows_of_a_band(128, 0.8, 0.99) == 6
    assert found_in_a_band(0.8, 6, 21) == pytest.approx(1 - (1 - 0.8**6) ** 21)
    assert found_in_a_band(0.8, 7, 18) < 0.99 <= found_in_a_band(0.8, 6, 21)
    assert rows_of_a_band(128, 1.0, 0.99) == 128
    assert rows_of_a_band(4, 0.1, 0.99) == 1, "the best that can be had"


def test_a_set_of_a_million_takes_bounded_memory():
    elements = mix(np.arange(1_000_000, dtype=np.uint64))
    tracemalloc.start()
    got = signatures(elements, np.array([0, elements.size]), 128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (got < 2**31).all() and peak < 40e6
