"""Log-determinant: by hand, against determinants of the kernel itself, past its rank, on ties and copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.numerics import logdet
from curate.numerics.logdet import TOLERANCE, log_det
from curate.seeding import rng_for


def kernel(x, jitter, log_quality):
    """diag(q) (K + λ I) diag(q) / λ: the objective is the log of its determinants."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, length, out=np.zeros(x.shape), where=length > 0)
    q = np.exp(log_quality)
    return q[:, None] * (unit @ unit.T / jitter + np.eye(len(x))) * q


def reference(x, k, jitter, log_quality):
    """Every determinant afresh; the lowest of the rows within the tolerance."""
    whole = kernel(x, jitter, log_quality)
    left, order, gains, before = list(range(len(x))), [], [], 0.0
    for _ in range(k):
        value = {j: np.linalg.slogdet(whole[np.ix_([*order, j], [*order, j])])[1] - before for j in left}
        best = min(j for j in left if value[j] >= max(value.values()) - TOLERANCE)
        left.remove(best)
        order.append(best)
        gains.append(value[best])
        before += value[best]
    return order, gains


def test_by_hand():
    """Rows 0°, 0°, 45°, 90°; λ = 1.  All start at log 2.  After 0°: its copy log(1 + ½), 45° log(1 + ¾), 90° log 2."""
    x = np.array([[1.0, 0], [2, 0], [3, 3], [0, 1]])
    chosen = log_det(x, 4, jitter=1.0)
    assert chosen.order.tolist()[:2] == [0, 3]
    # P = I / 2 now: 45° and the copy both have h = ½, and the lower row is taken; then P = diag(1/3, 1/2).
    assert chosen.order.tolist()[2:] == [1, 2]
    np.testing.assert_allclose(np.exp(chosen.gains), [2, 2, 1.5, 1 + 5 / 12], rtol=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1e-4, 0.01, 1.0]), st.booleans())
def test_equals_the_determinants(seed, levels, jitter, with_quality):
    """More rows than dimensions; few levels, so copies, opposites, rows of zeros and ties abound."""
    rng = rng_for(seed, "kernel")
    n, d = int(rng.integers(1, 16)), int(rng.integers(1, 5))
    x = rng.integers(-levels, levels + 1, size=(n, d))[rng.integers(0, n, size=n)].astype(float)
    log_quality = np.log(rng.integers(1, 4, size=n) / 4) if with_quality else np.zeros(n)
    chosen = log_det(x, n, jitter=jitter, log_quality=log_quality if with_quality else None)
    order, gains = reference(x, n, jitter, log_quality)
    assert chosen.order.tolist() == order
    np.testing.assert_allclose(chosen.gains, gains, atol=1e-7)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_lazy_equals_eager(kind):
    """Real numbers, and so many rows that most are never looked at twice."""
    rng = rng_for(1, "reals")
    x = (rng.normal(size=(3000, 12)) + 2 * rng.normal(size=(20, 12))[rng.integers(20, size=3000)]).astype(kind)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    log_quality = np.log(rng.random(3000))
    chosen = log_det(x, 60, log_quality=log_quality)
    inverse, left = np.eye(12) / 0.01, np.ones(3000, dtype=bool)
    for row, gain in zip(chosen.order, chosen.gains, strict=True):
        gains = np.where(left, np.log1p(np.einsum("nd,de,ne->n", unit, inverse, unit)) + 2 * log_quality, -np.inf)
        assert gains.argmax() == row and gain == pytest.approx(gains[row], abs=1e-9)
        left[row] = False
        inverse = np.linalg.inv(np.linalg.inv(inverse) + np.outer(unit[row], unit[row]))


def test_few_rows_are_looked_at_again(monkeypatch):
    looked = []
    look = logdet._Gains._look
    monkeypatch.setattr(logdet._Gains, "_look", lambda self, rows: (looked.append(rows.size), look(self, rows))[1])
    rng = rng_for(2, "lazy")
    log_det(rng.normal(size=(20_000, 32)) + rng.normal(size=(50, 32))[rng.integers(50, size=20_000)], 200)
    assert sum(looked) < 0.1 * 200 * 20_000


def test_the_rank_is_passed():
    """Two directions, one shown 99 times: after both are chosen, what is served least goes on being preferred."""
    x = np.eye(2)[[0] * 99 + [1] * 3]
    chosen = log_det(x, 102, jitter=0.01)
    assert chosen.order[:7].tolist() == [0, 99, 1, 100, 2, 101, 3]
    assert (np.diff(chosen.gains) <= 1e-12).all() and chosen.gains[-1] > 0


def test_rounding_stays_small():
    """After thousands of rank-one changes, at the lowest jitter."""
    x = rng_for(3, "drift").normal(size=(3000, 6)) * [1, 1, 1, 1e-3, 1e-3, 1e-4]
    chosen = log_det(x, 3000, jitter=1e-6)
    total = np.linalg.slogdet(np.eye(6) + (x.T / np.square(x).sum(axis=1)) @ x / 1e-6)[1]
    assert chosen.gains.sum() == pytest.approx(total, rel=1e-9)


def test_copies_are_taken_lowest_first():
    chosen = log_det(np.tile(rng_for(4, "copies").normal(size=(1, 5)), (700, 1)) * np.linspace(1, 2, 700)[:, None], 30)
    assert chosen.order.tolist() == list(range(30))


def test_rows_without_direction_or_quality_come_last():
    x = np.array([[0.0, 0], [1, 0], [0, 0], [0, 1], [1, 1]])
    assert log_det(x, 5).order.tolist()[3:] == [0, 2]
    log_quality = np.array([-math.inf, -math.inf, 0, -5, -math.inf])
    chosen = log_det(x, 5, log_quality=log_quality)
    assert chosen.order.tolist() == [2, 3, 0, 1, 4]
    assert chosen.gains.tolist()[2:] == [-math.inf] * 3


def test_extreme_lengths_do_not_matter(tmp_path):
    x = rng_for(5, "lengths").normal(size=(200, 5))
    scaled = x * 2.0 ** rng_for(5, "powers").integers(-400, 400, size=(200, 1))
    np.save(tmp_path / "x.npy", scaled)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert log_det(mapped, 200).order.tolist() == log_det(x, 200).order.tolist()


def test_a_jitter_below_the_least():
    with pytest.raises(InputError, match=r"a jitter of at least 1e-06 was asked, 0.0 was found"):
        log_det(np.ones((2, 2)), 1, jitter=0.0)
