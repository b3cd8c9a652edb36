"""Means of groups of rows, in deviations of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.numerics.group_means import GroupMeans
from curate.seeding import rng_for


def test_group_means_by_hand() -> None:
    """Columns (0, 2, 4) of mean 2 and deviation 2, and (5, 5, 5), which is constant."""
    rows = np.array([[0, 5], [2, 5], [4, 5]], dtype=np.float32)
    sums = GroupMeans(3, rows[0].astype(np.float64))
    sums.add(rows, np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=bool))
    assert sums.mean.tolist() == [2, 5] and sums.scale.tolist() == [2, np.inf] and sums.count.tolist() == [2, 1, 0]
    found = sums.normalised()
    assert found[:2].tolist() == [[-0.5, 0], [1, 0]] and np.isnan(found[2]).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(2, 40), offset=st.sampled_from([0.0, 1.0, 1e4]), data=st.data())
def test_any_cut_gives_the_plain_means(seed: int, n: int, offset: float, data: Any) -> None:
    g = rng_for(seed, "group means")
    rows, member = g.normal(size=(n, 3)) + offset, g.random((4, n)) < 0.5
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    whole = GroupMeans(4, rows[0])
    for lo, hi in zip([0, *cuts], [*cuts, n], strict=True):
        part = GroupMeans(4, rows[0])
        part.add(rows[lo:hi], member[:, lo:hi])
        whole.merge(part)
    z = (rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1)
    for mask, found in zip(member, whole.normalised(), strict=True):
        if mask.any():
            np.testing.assert_allclose(found, z[mask].mean(axis=0), rtol=0, atol=1e-8)
        else:
            assert np.isnan(found).all()
