from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.numerics.order import best_first, fractional_ranks, place_in_group

VALUES = st.lists(st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1e-300, 3.0, 1e300]), max_size=30).map(np.array)


@given(VALUES)
def test_best_first_is_a_stable_sort(values):
    rows = range(values.size)
    assert best_first(values).tolist() == sorted(rows, key=lambda i: (-values[i], i))
    assert best_first(values, largest=False).tolist() == sorted(rows, key=lambda i: (values[i], i))


@given(st.lists(st.integers(-3, 3), max_size=30))
def test_place_in_group_counts_the_earlier_ones(groups):
    found = place_in_group(np.array(groups, dtype=np.int64))
    assert found.tolist() == [groups[:i].count(g) for i, g in enumerate(groups)]


@given(VALUES)
def test_fractional_ranks_average_over_ties(values):
    ordered = sorted(values.tolist())
    mean_rank = [np.mean([j + 1 for j, w in enumerate(ordered) if w == v]) for v in values]
    found = fractional_ranks(values)
    np.testing.assert_allclose(found, [(r - 0.5) / values.size for r in mean_rank], rtol=1e-12)
    np.testing.assert_allclose(fractional_ranks(-values), 1 - found, atol=1e-12)


def test_fractional_ranks_by_hand():
    assert fractional_ranks(np.array([30.0, 10.0, 20.0, 20.0])).tolist() == [0.875, 0.125, 0.5, 0.5]
