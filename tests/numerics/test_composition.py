from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.numerics import composition
from curate.numerics.composition import coverage, effective_number, entropy, mixture, near_duplicate_rate, nearest_kept

# -- counts ------------------------------------------------------------------------------------------------------------


def test_entropy_by_hand():
    assert entropy([3, 3]) == pytest.approx(math.log(2))
    assert entropy([1, 3]) == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert (entropy([7]), entropy([7, 0]), entropy([0, 0]), entropy([])) == (0, 0, 0, 0)
    assert math.copysign(1, entropy([7])) == 1
    assert [effective_number(c) for c in ([5, 5, 5, 0], [9], [0], [])] == pytest.approx([3, 1, 0, 0])
    assert mixture([1, 3, 0]) == {"values": 2, "entropy": 0.5623, "effective": 1.7548}
    assert mixture([]) == {"values": 0, "entropy": 0, "effective": 0}


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.integers(2, 9))
def test_effective_number(counts, times):
    found = effective_number(counts)
    assert 1 - 1e-9 <= found <= len(counts) + 1e-9
    assert found == pytest.approx(effective_number([c * times for c in counts[::-1]]))  # order and scale do not matter
    assert effective_number([c for c in counts for _ in range(times)]) == pytest.approx(times * found)  # replication


# -- vectors -----------------------------------------------------------------------------------------------------------


def plain(x, kept, apart):
    """The same in float64, pair by pair."""
    x = np.asarray(x, dtype=np.float64)

    def cosine(a, b):
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / norms if norms else 0.0

    if apart:
        return [max([cosine(x[i], x[j]) for j in kept if j != i], default=-1) for i in kept]
    return [1.0 if i in kept else max(cosine(x[i], x[j]) for j in kept) for i in range(len(x))]


@pytest.mark.parametrize("apart", [False, True])
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_equals_the_plain_formula(apart, seed, m):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (15, 3)).astype(np.float16)  # ties, copies, rows of zeros
    kept = rng.permutation(15)[:m]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composition, "_ROWS", 4)
        patch.setattr(composition, "_COLUMNS", 5)
        found = nearest_kept(x, kept, apart=apart)
    np.testing.assert_allclose(found, plain(x, kept.tolist(), apart), atol=1e-6)


def test_threads_and_memory_maps_change_no_bit(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(3000, 24)).astype(np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    kept = rng.permutation(3000)[:700]
    for apart in (False, True):
        one = nearest_kept(x, kept, apart=apart, threads=1)
        np.testing.assert_array_equal(one, nearest_kept(np.array(x), kept, apart=apart, threads=4))


def test_coverage_and_near_duplicates_by_hand():
    x = np.array([[1, 0], [2, 0], [0, 1], [3, 4]], dtype=np.float64)
    assert coverage(x, np.array([0])) == pytest.approx((0 + 0 + 1 + 0.4) / 4)
    assert coverage(x, np.array([0, 2, 3])) == pytest.approx(0, abs=1e-7)  # the second row is a copy of the first
    assert coverage(np.zeros((3, 2)), np.array([1])) == pytest.approx(2 / 3)  # zeros are near to nothing
    assert near_duplicate_rate(x, np.array([0, 1, 3])) == pytest.approx(2 / 3)
    assert near_duplicate_rate(x, np.array([0, 2, 3]), above=0.7) == pytest.approx(2 / 3)
    assert near_duplicate_rate(x, np.array([0])) == 0
    with pytest.raises(InputError, match="at least one kept row was asked"):
        coverage(x, np.array([], dtype=np.int64))


@given(st.integers(0, 1000))
def test_more_rows_cover_no_worse(seed):
    rng = np.random.default_rng(seed)
    x, order = rng.normal(size=(20, 4)), rng.permutation(20)
    found = [coverage(x, order[:k]) for k in range(1, 21)]
    assert found == sorted(found, reverse=True) and found[-1] == 0
