"""Influence and the choices made of it, written as their formulas read: slow, in float64, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curate.numerics.bids import Standardised


def reference_attribution(
    pools: Sequence[NDArray], targets: Sequence[NDArray], weights: Sequence[float]
) -> NDArray[np.float64]:
    """Return Σ_t w_t cos(pool row, target) over checkpoints, (n, M)."""
    total = np.zeros((len(pools[0]), len(targets[0])))
    for pool, target, weight in zip(pools, targets, weights, strict=True):
        for i, g in enumerate(pool.astype(np.float64)):
            for j, h in enumerate(target.astype(np.float64)):
                total[i, j] += weight * (g @ h) / np.sqrt((g @ g) * (h @ h))
    return total / sum(weights)


def reference_bids(standard: Standardised, a: NDArray, k: int) -> tuple[list[int], list[float]]:
    """Return (order, gains): k times the row of max_i max_j (Â_ij - m_j), looking at every row and every column."""
    z = standard(a)
    order: list[int] = []
    gains: list[float] = []
    for _ in range(k):
        mean = z[order].sum(axis=0) / max(1, len(order))
        gain = (z - mean).max(axis=1)
        gain[~standard.there] = -np.inf
        gain[order] = -np.inf
        order.append(int(gain.argmax()))  # the lowest of equal ones
        gains.append(float(gain[order[-1]]))
    return order, gains


def reference_round_robin(a: NDArray, k: int) -> list[int]:
    """Return k rows: column after column, each its best row that is not yet taken."""
    order: list[int] = []
    for turn in range(k):
        left = [i for i in range(len(a)) if i not in order and not np.isnan(a[i]).any()]
        order.append(max(left, key=lambda i: (a[i, turn % a.shape[1]], -i)))
    return order
