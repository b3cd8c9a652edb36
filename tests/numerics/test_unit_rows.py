"""Unit rows on a grid: exact products in any order, and cosines to the accuracy that is promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.numerics.unit_rows import GRID, UnitRows
from curate.seeding import rng_for


@pytest.mark.parametrize("d", [1, 6, 384, 5000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_products_are_those_of_whole_numbers(d, dtype):
    """Also for rows that are alike, whose products come closest to 1, and with every coordinate rounded up."""
    rng = rng_for(d, "unit rows")
    x = (rng.normal(size=(40, d)) * 0.01 + rng.normal(size=(40, 1)) + 1).astype(dtype)
    x[0] = 1.0
    unit = UnitRows(x)
    u = unit[:]
    whole = np.rint(u * GRID).astype(np.int64)
    assert u.dtype == np.float32 and np.array_equal(whole / GRID, u)
    exact = whole @ whole.T
    assert exact.max() <= 2**24
    for product in (u @ u.T, u[:, ::-1] @ u[:, ::-1].T, np.cumsum(u[:, None] * u, axis=2, dtype=np.float32)[:, :, -1]):
        assert np.array_equal(product.astype(np.float64) * 2**24, exact)


@pytest.mark.parametrize("d", [2, 64, 1024])
def test_they_are_cosines(d):
    x = rng_for(d, "cosines").normal(size=(300, d))
    unit = UnitRows(x)
    u = unit[:].astype(np.float64)
    length = np.linalg.norm(x, axis=1)
    away = (u @ u.T) / unit.shrink**2 - (x @ x.T) / np.outer(length, length)
    assert np.abs(away).max() < 8e-4
    assert away.std() < 1.5e-4


@given(st.integers(0, 10**6), st.integers(-140, 140))
def test_length_does_not_matter(seed, power):
    x = rng_for(seed, "scale").normal(size=(5, 7))
    assert np.array_equal(UnitRows(x * 2.0**power)[:], UnitRows(x)[:])


def test_rows_without_a_direction_are_zeros():
    x = np.array([[0.0, 0.0], [1e-320, 0.0], [1e308, 1e308], [-3.0, 0.0], [1e-140, 1e-140]])
    unit = UnitRows(x)
    assert unit.there.tolist() == [False, False, True, True, True]
    assert not unit[:2].any()
    assert np.array_equal(unit[np.array([2])], unit[np.array([4])])
    assert unit[:][3].tolist() == [-np.rint(GRID * unit.shrink) / GRID, 0]


def test_blocks_are_the_rows():
    x = rng_for(1, "blocks").normal(size=(9000, 3)).astype(np.float32)
    x.flags.writeable = False
    unit = UnitRows(x)
    assert np.array_equal(np.concatenate([unit[start : start + 700] for start in range(0, 9000, 700)]), unit[:])
    assert np.array_equal(unit[np.array([8999, 5])], unit[:][[8999, 5]])
    assert UnitRows(x[:0])[:].shape == (0, 3)
