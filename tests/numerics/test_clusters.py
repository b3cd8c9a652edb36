"""The number of clusters, and distances to their means."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.numerics import clusters
from curate.numerics.clusters import best_count, squares_to_means, usual_count
from curate.numerics.kmeans import kmeans
from curate.seeding import rng_for


def test_the_usual_number():
    assert [usual_count(n) for n in (0, 1, 127, 128, 65_535, 65_536, 10**7)] == [1, 1, 1, 2, 1023, 1024, 1024]


def test_the_silhouette_finds_the_clusters_that_there_are():
    rng = rng_for(0, "clusters")
    x = 20 * rng.normal(size=(8, 5))[rng.integers(0, 8, 400)] + rng.normal(size=(400, 5))
    count, tried = best_count(x, partial(kmeans, restarts=3), rng_for(0, "draw"))
    assert count == 8 and list(tried) == [2, 4, 8, 16] and max(tried, key=tried.__getitem__) == 8


def test_too_few_rows_for_any_choice_and_copies():
    assert best_count(np.ones((31, 2)), kmeans, rng_for(0)) == (1, {})
    assert best_count(np.ones((64, 2)), kmeans, rng_for(0)) == (2, {2: 0.0, 4: 0.0})  # of equal ones the lowest


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), block=st.sampled_from([1, 7, 4096]), seed=st.integers(0, 9))
def test_squares_to_means(n, block, seed):
    rng = rng_for(seed, "means")
    x = rng.integers(-3, 4, (n, 3)).astype(np.float16)
    labels = rng.integers(0, 5, n)
    before, clusters.BLOCK = clusters.BLOCK, block
    try:
        found = squares_to_means(x, labels)
    finally:
        clusters.BLOCK = before
    exact = x.astype(np.float64)
    expected = [((exact[i] - exact[labels == labels[i]].mean(axis=0)) ** 2).sum() for i in range(n)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
