from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.numerics.principal import principal_axes
from curate.seeding import rng_for


def test_by_hand():
    """Four points on a cross: variance 2 · 4 along (1, 0), 2 · 1 along (0, 1), so shares 0.8 and 0.2."""
    x = np.array([[3.0, 1.0], [-1.0, 1.0], [1.0, 2.0], [1.0, 0.0]])
    mean, axes, explained = principal_axes(x, 2)
    np.testing.assert_allclose(mean, [1, 1])
    np.testing.assert_allclose(axes, [[1, 0], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(explained, [0.8, 0.2])


@given(n=st.integers(1, 12), d=st.integers(1, 12), seed=st.integers(0, 50))
def test_it_agrees_with_the_singular_value_decomposition(n: int, d: int, seed: int) -> None:
    x = rng_for(seed, "principal").normal(size=(n, d))
    mean, axes, explained = principal_axes(x, 2)
    _, s, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    total = np.square(s).sum()
    for i in range(2):
        share = 0.0 if i >= s.size or total == 0 else float(s[i] ** 2 / total)
        assert explained[i] == pytest.approx(share if share > 1e-12 else 0, abs=1e-9)
        if share > 1e-9:
            sign = np.sign(vt[i] @ axes[i])
            projected, truth = (x - mean) @ axes[i], (x - mean) @ vt[i] * sign
            gaps = [abs(s[i] - s[j]) / s[0] for j in range(s.size) if j != i]
            if not gaps or min(gaps) > 1e-3:  # axes of nearly equal variance may turn into each other
                np.testing.assert_allclose(projected, truth, atol=1e-8)
            assert axes[i][np.argmax(np.abs(axes[i]))] > 0


@pytest.mark.parametrize("shape", [(1, 3), (5, 3), (3, 5)])
def test_no_variance_gives_no_axis(shape: tuple[int, int]) -> None:
    _, axes, explained = principal_axes(np.full(shape, 0.1, dtype=np.float32), 2)
    assert not axes.any() and not explained.any()


def test_the_order_of_rows_changes_nothing_but_rounding():
    x = rng_for(0, "principal").normal(size=(50, 7)).astype(np.float32)
    one, two = principal_axes(x, 2), principal_axes(x[::-1], 2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
