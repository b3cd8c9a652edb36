"""BIDS: by hand, its columns against NumPy, and the fast search against the plain one, on ties above all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.numerics import best_rows
from curate.numerics.best_rows import BestRows
from curate.numerics.bids import Standardised, bids
from curate.numerics.reference import reference_bids
from curate.seeding import rng_for


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    """Small matrices are gone through in many blocks too, as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_rows, "_BLOCK", 24)
        yield


@st.composite
def matrices(draw):
    """Whole numbers of few levels, so that most maxima are attained more than once; constant columns, copies, NaN rows."""
    n, m = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    rng = rng_for(draw(st.integers(0, 10**6)), "matrix")
    a = rng.integers(0, draw(st.integers(1, 5)), size=(n, m)).astype(draw(st.sampled_from(["f2", "f4", "f8", "i8"])))
    a = a[rng.integers(0, n, size=n)]
    if draw(st.booleans()):
        a[:, rng.integers(m)] = 3
    if a.dtype.kind == "f" and draw(st.booleans()):
        a[rng.random(n) < 0.3] = np.nan
    return a


def test_by_hand():
    """Both columns have mean 1 and σ = 1, so Â = A - 1.

    First 1 (column 0) against 1 (column 1): both 1, so row 0 against row 1: row 0.  Then m = (1, -1): row 1 gains
    1 - (-1) = 2.  Then m = (0, 0): row 2 gains max(0, 0).
    """
    a = np.array([[2, 0], [0, 2], [1, 1]], dtype=np.float32)
    chosen = bids(a, 3)
    assert chosen.order.tolist() == [0, 1, 2]
    assert chosen.gains.tolist() == [1, 2, 0]
    assert chosen.targets.tolist() == [0, 1, 0]


def test_a_target_that_was_served_waits():
    """One target has a thousand times the numbers of the other: raw, it would take every row."""
    rng = rng_for(0, "turns")
    a = np.c_[1000 * rng.normal(size=4000), rng.normal(size=4000)]
    counts = np.bincount(bids(a, 200).targets)
    assert counts.min() >= 80


@given(matrices(), st.sampled_from([None, 0.5, 1.0]), st.sampled_from([None, 1, 2, 7]), st.data())
def test_equals_the_plain_search(a, clip, depth, data):
    standard = Standardised.of(a, clip=clip)
    k = data.draw(st.integers(0, int(standard.there.sum())))
    chosen = bids(a, k, clip=clip, depth=depth)
    order, gains = reference_bids(standard, a, k)
    assert chosen.order.tolist() == order
    assert chosen.gains.tolist() == gains


@given(st.integers(0, 10**6), st.sampled_from([np.float16, np.float32, np.float64]), st.sampled_from([0.0, 0.5, 0.99]))
def test_equals_the_plain_search_on_reals(seed, dtype, alike):
    """Columns that go together (their best rows are taken by others) and columns that do not."""
    rng = rng_for(seed, "reals")
    a = (alike * rng.normal(size=(50, 1)) + (1 - alike) * rng.normal(size=(50, 8)) + 3).astype(dtype)
    chosen = bids(a, 50, depth=4)
    assert chosen.order.tolist() == reference_bids(Standardised.of(a), a, 50)[0]


def test_prefixes_nest():
    a = rng_for(1, "nest").normal(size=(200, 5)).astype(np.float32)
    whole = bids(a, 200).order
    assert sorted(whole) == list(range(200))
    for k in (0, 1, 17, 199):
        assert bids(a, k).order.tolist() == whole[:k].tolist()


def test_scale_and_shift_of_a_column_change_nothing():
    """By powers of two, so that nothing is rounded on the way."""
    a = rng_for(2, "scale").integers(-9, 9, size=(60, 4)).astype(np.float64)
    b = a * [1, 4, 0.5, 1024] + [0, 8, -2, 4096]
    assert bids(a, 60).order.tolist() == bids(b, 60).order.tolist()


def test_rows_of_nan_enter_nothing():
    rng = rng_for(3, "nan")
    a = rng.normal(size=(50, 4))
    rows = np.flatnonzero(rng.random(50) < 0.7)
    with_nan = np.full_like(a, np.nan)
    with_nan[rows] = a[rows]
    standard, alone = Standardised.of(with_nan), Standardised.of(a[rows])
    np.testing.assert_allclose(standard.mean, alone.mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(standard.scale, alone.scale, rtol=1e-12)
    assert np.isnan(standard.highest(with_nan)).tolist() == np.isnan(with_nan[:, 0]).tolist()
    assert bids(with_nan, rows.size).order.tolist() == rows[bids(a[rows], rows.size).order].tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_columns_are_standardised_as_numpy_does(dtype):
    """Over many blocks, far from 0: a sum of squares less n μ² would lose all its digits here."""
    rng = rng_for(4, "columns")
    a = (rng.normal(size=(300_000, 3)) * [1, 20, 5] + [0, 1000, -50]).astype(dtype)
    standard = Standardised.of(a)
    wide = a.astype(np.float64)
    np.testing.assert_allclose(standard.mean, wide.mean(axis=0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(standard.scale, wide.std(axis=0, ddof=1), rtol=1e-12)
    expected = (wide - wide.mean(axis=0)) / wide.std(axis=0, ddof=1)
    np.testing.assert_allclose(standard(a), expected, atol=2**-24)
    np.testing.assert_allclose(standard.highest(a), expected.max(axis=1), atol=2**-24)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, -3.3e-7])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_constant_column_is_0(value, dtype):
    a = np.full((1000, 2), value, dtype=dtype)
    a[:, 1] = np.arange(1000)
    standard = Standardised.of(a)
    assert not standard(a)[:, 0].any()
    assert standard(a)[:, 1].std() == pytest.approx(1, abs=1e-3)


def test_one_row_and_one_column():
    assert bids(np.array([[5.0]]), 1).order.tolist() == [0]
    assert bids(np.array([[1.0], [3.0], [2.0]]), 3).order.tolist() == [1, 2, 0]


def test_a_memory_map_larger_than_its_window(tmp_path):
    a = rng_for(5, "map").normal(size=(5000, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert bids(mapped, 2000).order.tolist() == bids(a, 2000, depth=5000).order.tolist()


def test_what_it_refuses():
    a = np.ones((4, 2))
    with pytest.raises(InputError, match=r"k=5 rows were asked, 4 of 4 rows can be chosen; lower k"):
        bids(a, 5)
    a[1] = np.nan
    with pytest.raises(InputError, match=r"k=4 rows were asked, 3 of 4 rows can be chosen"):
        bids(a, 4)
    a[2, 1] = np.nan
    with pytest.raises(InputError, match="column 1 has NaN, infinity or values too large to square"):
        bids(a, 1)
    with pytest.raises(InputError, match="column 0 has NaN, infinity or values too large"):
        bids(np.array([[1e300], [-1e300]]), 1)


@given(matrices(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_best_rows_are_the_best_open_rows(a, depth, random):
    """Rows closed in any order, whether they lead a column or not."""
    there = ~np.isnan(a.astype(np.float64)).any(axis=1)
    rows = np.flatnonzero(there).tolist()
    random.shuffle(rows)
    best = BestRows(a, there, len(rows), depth=depth)
    still = set(rows)
    for row in [*rows, None]:
        for j in range(a.shape[1]):
            expected = max(still, key=lambda i: (a[i, j], -i)) if still else len(a)
            assert best.row[j] == expected
            assert best.key[j] == (a[expected, j] if still else -np.inf)
        if row is not None:
            best.close(row)
            still.discard(row)
