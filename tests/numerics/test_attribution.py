"""Attribution: against the plain float64 sums, from arrays and files, in blocks and threads; and what it refuses."""

from __future__ import annotations

import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.numerics import attribution
from curate.numerics.attribution import Features, aggregate, attribute, group_columns
from curate.numerics.reference import reference_attribution
from curate.seeding import rng_for

MADE = {"d": 32, "law": "rademacher", "seed": 0, "checkpoint": "warm-up/1"}


def features(name, n, d=32, dtype=np.float32):
    return rng_for(0, name).normal(size=(n, d)).astype(dtype)


@pytest.fixture
def small_blocks(monkeypatch):
    """Seven rows a block at 32 dimensions."""
    monkeypatch.setattr(attribution, "_BLOCK", 7 * 32)
    monkeypatch.setattr(attribution, "_PIECE", 3 * 32)


def test_by_hand():
    pool = np.array([[3, 4], [0, 2], [-1, 0]], dtype=np.float32)
    targets = np.array([[1, 0], [0, 5]], dtype=np.float32)
    np.testing.assert_allclose(attribute(pool, targets), [[0.6, 0.8], [0, 1], [-1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(attribute(pool, targets, cosine=False), [[3, 20], [0, 10], [-1, 0]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("weights", [None, [1.6877e-5, 1.2859e-5, 7.703e-6]])
def test_equals_the_plain_sums(dtype, weights, small_blocks):
    """Three checkpoints, the features rounded to their type first; float32 products of unit rows err by some 1e-7."""
    pools = [features(f"pool {t}", 50, dtype=dtype) for t in range(3)]
    targets = [features(f"target {t}", 4, dtype=dtype) for t in range(3)]
    found = attribute(pools, targets, weights=weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference_attribution(pools, targets, weights or [1, 1, 1]), rtol=0, atol=5e-7)


def test_arrays_files_shards_and_threads_give_the_same(tmp_path, small_blocks):
    """Whole numbers: products are exact, whatever the blocks."""
    pool = rng_for(0, "whole").integers(-8, 9, size=(100, 32)).astype(np.float16)
    targets = rng_for(1, "whole").integers(-8, 9, size=(5, 32)).astype(np.float32)
    expected = pool.astype(np.float64) @ targets.T.astype(np.float64)
    folder = tmp_path / "pool"
    folder.mkdir()
    for i, (start, stop) in enumerate([(0, 1), (1, 40), (40, 40), (40, 100)]):
        np.save(folder / f"part-{i:05d}.npy", pool[start:stop])
    np.save(tmp_path / "targets.npy", targets)
    for given_pool in (pool, Features([pool[:33], pool[33:]]), folder, str(folder), np.asfortranarray(pool)):
        for threads in (1, 3):
            found = attribute(given_pool, tmp_path / "targets.npy", cosine=False, threads=threads)
            np.testing.assert_array_equal(found, expected)


def test_a_file_appears_whole_and_is_mapped(tmp_path, monkeypatch):
    pool, targets = features("pool", 20), features("targets", 3)
    path = tmp_path / "A.npy"
    found = attribute(pool, targets, out=path)
    assert isinstance(found, np.memmap) and not found.flags.writeable
    np.testing.assert_array_equal(found, attribute(pool, targets))
    np.testing.assert_array_equal(np.load(path), found)

    def fails(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(attribution, "_products", fails)
    with pytest.raises(OSError, match="full"):
        attribute(pool, targets, out=tmp_path / "B.npy")
    assert sorted(os.listdir(tmp_path)) == ["A.npy"]


def test_into_an_array_that_is_there(tmp_path):
    pool, targets = features("pool", 20), features("targets", 3)
    out = np.lib.format.open_memmap(tmp_path / "A.npy", mode="w+", dtype=np.float32, shape=(20, 3))
    assert attribute([pool, pool], [targets, targets], out=out) is out
    np.testing.assert_allclose(out, attribute(pool, targets), atol=1e-7)
    with pytest.raises(InputError, match=r"out of float32 \(20, 3\) was asked, float32 \(20, 4\) was found"):
        attribute(pool, targets, out=np.empty((20, 4), np.float32))


def test_an_empty_pool(tmp_path):
    empty = np.empty((0, 32), np.float16)
    np.save(tmp_path / "none.npy", empty)
    for pool in (empty, tmp_path / "none.npy"):
        assert attribute(pool, features("targets", 3)).shape == (0, 3)
        assert attribute(pool, features("targets", 3), out=tmp_path / "A.npy").shape == (0, 3)


def test_rows_without_a_direction_are_nan_throughout_and_alone(small_blocks):
    pool, targets = features("pool", 30), features("targets", 3)
    whole = attribute([pool, pool], [targets, targets])
    spoilt, other = pool.copy(), pool.copy()
    spoilt[3, 7] = np.nan
    spoilt[11, 0] = np.inf
    other[17] = 0  # at the second checkpoint only
    found = attribute([spoilt, other], [targets, targets])
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [3, 11, 17]
    rest = np.setdiff1d(np.arange(30), [3, 11, 17])
    np.testing.assert_array_equal(found[rest], whole[rest])
    products = attribute([spoilt, other], [targets, targets], cosine=False)
    assert np.flatnonzero(np.isnan(products).any(axis=1)).tolist() == [3, 11]


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e25])
def test_a_cosine_has_no_scale(scale):
    """Also where squares in float32 would be 0 or infinite."""
    pool, targets = features("pool", 10), features("targets", 3)
    np.testing.assert_allclose(attribute(pool * np.float32(scale), targets), attribute(pool, targets), atol=1e-6)


def test_memory_does_not_grow_with_the_pool(tmp_path, monkeypatch):
    """A block as it is stored and as float32: 6 MB, of 82 MB of features."""
    monkeypatch.setattr(attribution, "_BLOCK", 2**20)
    monkeypatch.setattr(attribution, "_PIECE", 2**18)
    pool = features("pool", 40_000, d=1024, dtype=np.float16)
    np.save(tmp_path / "pool.npy", pool)
    size = pool.nbytes
    del pool
    targets = features("targets", 3, d=1024)
    tracemalloc.start()
    try:
        attribute(tmp_path / "pool.npy", targets, out=tmp_path / "A.npy", threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.15 * size, (peak, size)


@pytest.mark.parametrize("key", ["d", "law", "seed", "checkpoint"])
def test_another_projection_is_refused(key, tmp_path):
    pool, targets = features("pool", 5), features("targets", 3)
    assert attribute(Features([pool], MADE), Features([targets], MADE)).shape == (5, 3)
    assert attribute(Features([pool], MADE), targets).shape == (5, 3)  # nothing is known of an array
    np.save(tmp_path / "part.npy", targets)
    (tmp_path / attribution.MANIFEST).write_text(json.dumps(MADE | {key: 99}))
    with pytest.raises(InputError, match=f"at checkpoint 0, the pool's features have {key} .*, the targets' 99"):
        attribute(Features([pool], MADE), tmp_path)


def test_what_it_refuses(tmp_path):
    pool, targets = features("pool", 5), features("targets", 3)

    def refused(said, *args, **more):
        with pytest.raises(InputError, match=said):
            attribute(*args, **more)

    refused(
        "the pool's features have 32 dimensions, the targets' 16; make both by one projection", pool, targets[:, :16]
    )
    refused("features of one width were asked", Features([pool, pool[:, :9]]), targets)
    refused("features of one width were asked, 32 in shard 0, 7 in the manifest", Features([pool], {"d": 7}), targets)
    refused("2 of the pool and 1 of the targets", [pool, pool], targets)
    refused("0 of the pool and 0 of the targets", [], [])
    refused("same rows and targets were asked of every checkpoint; found 5 × 3, 4 × 3", [pool, pool[:4]], [targets] * 2)
    refused("one weight a checkpoint was asked, 1 for 2", [pool] * 2, [targets] * 2, weights=[1.0])
    refused("weights of at least 0", [pool] * 2, [targets] * 2, weights=[1.0, -1.0])
    refused("weights of at least 0", pool, targets, weights=[0.0])
    refused("at least one target was asked", pool, targets[:0])
    refused("at least one target was asked", pool, Features([]))
    refused("float16, float32 or float64 were asked; shard 0 is int64", pool.astype(int), targets)
    refused("float16, float32 or float64 were asked; shard 0 is float32 of shape", pool[0], targets)
    spoilt = targets.copy()
    spoilt[1] = 0
    refused("target 1 of 3 is 0: it has no direction", pool, spoilt)
    spoilt[2, 2] = np.nan
    refused("1 of 3 targets hold NaN or infinity, first target 2", pool, spoilt)
    refused("holds none", tmp_path, targets)
    refused("cannot be read as an .npy file", tmp_path / "missing.npy", targets)
    (tmp_path / "text.npy").write_text("not an array")
    refused("text.npy cannot be read as an .npy file", tmp_path / "text.npy", targets)
    np.save(tmp_path / "cut.npy", features("cut", 200))
    with open(tmp_path / "cut.npy", "r+b") as file:
        file.truncate(1500)
    refused("cut.npy cannot be read as an .npy file", tmp_path / "cut.npy", targets)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}] * 3), allow_pickle=True)
    refused("objects.npy cannot be read as an .npy file", tmp_path / "objects.npy", targets)
    (tmp_path / attribution.MANIFEST).write_text("{")
    refused("features.json cannot be read", tmp_path, targets)


@given(
    st.integers(0, 10**6),
    st.sampled_from(["mean", "sum", "max"]),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_aggregates_are_numpys(seed, how, dtype):
    """On whole numbers, where sums are exact; and the same row by row."""
    rng = rng_for(seed, "aggregate")
    n, m, count = rng.integers(1, 30), rng.integers(1, 9), rng.integers(1, 4)
    groups = np.unique(rng.integers(0, count, size=m), return_inverse=True)[1]
    a = rng.integers(-9, 9, size=(n, m)).astype(dtype)
    a[rng.random(n) < 0.2] = np.nan
    expected = np.stack([getattr(a[:, groups == g].astype(np.float64), how)(axis=1) for g in np.unique(groups)], axis=1)
    np.testing.assert_array_equal(aggregate(a, groups, how), expected)
    reals = rng.normal(size=(n, m)).astype(dtype)
    alone = np.concatenate([aggregate(row[None], groups, how) for row in reals])
    np.testing.assert_array_equal(aggregate(reals, groups, how), alone)


def test_groups_are_numbered_by_first_appearance():
    codes, names = group_columns(["maths", "code", "maths", "chat"], 4, caller="Test")
    assert codes.tolist() == [0, 1, 0, 2] and names == ["maths", "code", "chat"]
    with pytest.raises(
        InputError, match="Test: targets= one label for each of the 3 columns was asked, 4 labels was found"
    ):
        group_columns(list("abcd"), 3, caller="Test")
    with pytest.raises(InputError, match="'abc' was found"):
        group_columns("abc", 3, caller="Test")
