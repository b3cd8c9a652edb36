"""Neighbours: those of the whole matrix of cosines, ties included, whatever the blocks and threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.numerics import neighbours as module
from curate.numerics.neighbours import neighbours
from curate.numerics.unit_rows import UnitRows
from curate.seeding import rng_for


def reference(x, m, rows=None):
    """Sort the whole matrix, in float64: most similar first, then the lowest row; 0 where no similarity is left."""
    u = UnitRows(x)[:].astype(np.float64)
    s = np.maximum(u @ u.T, 0)[slice(None) if rows is None else rows]
    index = np.argsort(-s, axis=1, kind="stable")[:, :m]
    similarity = np.take_along_axis(s, index, axis=1)
    return np.where(similarity > 0, index, 0), similarity


def vectors(seed, n, d, levels, dtype="f4"):
    """Few levels, so that most similarities are attained more than once; copies; rows of zeros."""
    rng = rng_for(seed, "vectors")
    x = rng.integers(-levels, levels + 1, size=(n, d)).astype(dtype)
    return x[rng.integers(0, n, size=n)] if n else x


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "COLUMNS", 11)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8"])
def test_small_blocks_and_other_types(dtype):
    for seed, m in enumerate([1, 2, 5, 11, 12, 30, 60, 200]):
        x = vectors(seed, 60, 3, 2, dtype)
        found = neighbours(x, m)
        index, similarity = reference(x, m)
        assert np.array_equal(found.similarity, similarity) and np.array_equal(found.index, index)
        assert found.index.shape == (60, min(m, 60))


@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 5), st.integers(1, 4), st.integers(1, 60))
def test_equals_the_whole_matrix(seed, n, d, levels, m):
    x = vectors(seed, n, d, levels)
    found = neighbours(x, m)
    index, similarity = reference(x, m)
    assert np.array_equal(found.similarity, similarity) and np.array_equal(found.index, index)


def test_equals_the_whole_matrix_over_many_blocks():
    """Real numbers, columns in several blocks with a floor that rises, and blocks whose last rows are the nearest."""
    rng = rng_for(2, "reals")
    x = (rng.normal(size=(3000, 24)) + 3 * rng.normal(size=(30, 24))[np.sort(rng.integers(30, size=3000))]).astype("f4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COLUMNS", 700)
        found = neighbours(x, 20, threads=2)
    index, similarity = reference(x, 20)
    assert np.array_equal(found.similarity, similarity) and np.array_equal(found.index, index)
    whole = neighbours(x, 20, threads=1)
    assert np.array_equal(whole.index, found.index) and np.array_equal(whole.similarity, found.similarity)


def test_of_some_rows_on_a_memory_map(tmp_path):
    x = vectors(3, 500, 8, 3)
    np.save(tmp_path / "x.npy", x)
    rows = np.array([7, 499, 0])
    found = neighbours(np.load(tmp_path / "x.npy", mmap_mode="r"), 9, rows=rows)
    index, similarity = reference(x, 9, rows)
    assert np.array_equal(found.similarity, similarity) and np.array_equal(found.index, index)


def test_odd_pools():
    assert neighbours(np.empty((0, 4)), 3).index.shape == (0, 0)
    assert neighbours(np.ones((1, 4)), 3).index.tolist() == [[0]]
    zeros = neighbours(np.zeros((3, 4)), 2)
    assert not zeros.similarity.any() and not zeros.index.any()
    same = neighbours(np.full((5, 4), 7.0), 2)
    assert same.index.tolist() == [[0, 1]] * 5
    opposite = neighbours(np.array([[1.0], [-1.0]]), 2)
    assert opposite.index.tolist() == [[0, 0], [1, 0]] and (opposite.similarity[:, 1] == 0).all()


def test_no_neighbours_asked():
    with pytest.raises(InputError, match=r"at least 1 neighbour was asked, m=0 was found"):
        neighbours(np.ones((2, 2)), 0)
