"""The greedy filter by cosine: blocks, and the sequence of the plain definition."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.numerics.unlike import unlike
from curate.seeding import rng_for


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    aa, bb, ab = (math.fsum(u * v) for u, v in ((a, a), (b, b), (a, b)))
    return float(aa == bb) if aa == 0 or bb == 0 else ab / math.sqrt(aa * bb)


def reference(x: np.ndarray, order: np.ndarray, threshold: float, limit: int):
    """One row after the other, in float64."""
    x = x.astype(np.float64)
    accepted: list[int] = []
    highest, nearest, walked = np.full(len(x), np.nan), np.full(len(x), -1), 0
    for row in order.tolist():
        if len(accepted) >= limit:
            break
        walked += 1
        if accepted:
            own = [cosine(x[row], x[other]) for other in accepted]
            highest[row], nearest[row] = max(own), accepted[int(np.argmax(own))]
            if highest[row] > threshold:
                continue
        accepted.append(row)
    return accepted, walked, highest, nearest


def made(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    rng = rng_for(seed, "unlike", kind)
    if kind == "signs":  # cosines that are whole multiples of 1/d: ties, and some exactly at the threshold
        return rng.choice([-1.0, 1.0], (n, 4)).astype(np.float16)
    if kind == "zeros":
        return rng.integers(0, 2, (n, d)).astype(np.float32)
    if kind == "near":  # all alike but for what float32 cannot tell
        return 1 + rng.normal(size=(n, d)) * 1e-5
    return (rng.normal(size=(6, d))[rng.integers(0, 6, n)] + 0.3 * rng.normal(size=(n, d))).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["signs", "zeros", "near", "clustered"]),
    n=st.integers(0, 50),
    d=st.integers(1, 6),
    seed=st.integers(0, 99),
    threshold=st.sampled_from([0.9, 0.5, 0.0, -1.0, 1.0, 1 - 1e-10]),
    data=st.data(),
)
def test_it_is_the_sequential_definition_whatever_the_blocks(kind, n, d, seed, threshold, data):
    x = made(kind, n, d, seed)
    order = np.array(data.draw(st.permutations(range(n))), dtype=np.int64)
    limit = data.draw(st.integers(0, n))
    whole = unlike(x, order, threshold, limit)
    accepted, walked, highest, nearest = reference(x, order, threshold, limit)
    if kind in ("signs", "zeros"):  # exact in any order of summing
        assert whole.accepted.tolist() == accepted and whole.walked == walked
        np.testing.assert_array_equal(whole.cosine, highest)
        np.testing.assert_array_equal(whole.nearest, nearest)
    elif threshold < 1 - 1e-6:
        assert whole.accepted.tolist() == accepted
        np.testing.assert_allclose(whole.cosine, highest, rtol=0, atol=1e-14)
    for block, threads in ((1, 1), (3, 2), (17, 3)):
        parts = unlike(x, order, threshold, limit, block=block, threads=threads)
        np.testing.assert_array_equal(parts.accepted, whole.accepted)
        assert parts.walked == whole.walked
        np.testing.assert_array_equal(parts.cosine, whole.cosine)
        np.testing.assert_array_equal(parts.nearest, whole.nearest)


def test_what_float32_cannot_tell_apart():
    x = made("near", 300, 6, 0)
    found = unlike(x, np.arange(300), 1 - 2e-11, 300)
    accepted, _, highest, nearest = reference(x, np.arange(300), 1 - 2e-11, 300)
    assert found.accepted.tolist() == accepted and 20 < len(accepted) < 280
    np.testing.assert_allclose(found.cosine, highest, rtol=0, atol=1e-15)
    assert (found.nearest == nearest).mean() > 0.95  # equal to the last bit but for the order of summing


def test_a_row_that_was_turned_away_turns_nobody_away():
    """The published code, in batches, would lose row 2: it is like row 1, which was turned away for row 0."""
    angle = np.radians([0, 20, 40])
    x = np.c_[np.cos(angle), np.sin(angle)]
    found = unlike(x, np.arange(3), 0.9, 3)  # cos 20° = 0.94, cos 40° = 0.77
    assert found.accepted.tolist() == [0, 2] and found.nearest.tolist() == [-1, 0, 0]
    np.testing.assert_allclose(found.cosine, [np.nan, np.cos(angle[1]), np.cos(angle[2])], atol=1e-15)


def test_size_does_not_matter():
    x = np.array([[1e-200, 2e-200], [1e200, 2e200], [3e-310, 0], [0, 0], [0, 0]])
    found = unlike(x, np.arange(5), 0.99, 5)
    assert found.accepted.tolist() == [0, 2, 3] and found.nearest.tolist() == [-1, 0, 0, 0, 3]
    assert found.cosine[1] == 1 and found.cosine[4] == 1 and found.cosine[3] == 0
