"""How many clusters, and how far rows lie from the middle of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.numerics.kmeans import KMeans, silhouette

BLOCK = 4096
_POOL = 65_536  # rows that candidate numbers of clusters are tried on
_ROWS = 1_024  # rows whose silhouettes are averaged


def usual_count(n: int) -> int:
    """Return one cluster per 64 of n rows, at least 1 and at most 1,024."""
    return min(1024, max(1, n // 64))


def best_count(
    x: NDArray[Any], cluster: Callable[[NDArray[Any], int], KMeans], rng: np.random.Generator
) -> tuple[int, dict[int, float]]:
    """Return the number of clusters with the highest mean silhouette, the lowest of equal ones, and all silhouettes.

    Tried are the powers of two from 64 (or 2, for fewer than 1,024 rows) to one per 16 rows, at most 4,096; on at most
    65,536 rows of ``x`` (n, d), of which the silhouettes of 1,024 are averaged, drawn by ``rng``.  1 for fewer than 32
    rows, of which nothing is known.

    References
    ----------
    Yu, Chen, Ahmadian & Fadaee 2024, "Diversify and Conquer", section 6: the silhouette, known before any training,
    follows what the selection is worth.
    """
    if len(x) > _POOL:
        x = x[np.sort(rng.choice(len(x), _POOL, replace=False))]
    n = len(x)
    powers = [2**j for j in range(6 if n >= 1024 else 1, 13) if 16 * 2**j <= n]
    if not powers:
        return 1, {}
    rows = np.sort(rng.choice(n, min(n, _ROWS), replace=False))
    scores = silhouette(x, [cluster(x, power).labels for power in powers], rows)
    return powers[int(np.argmax(scores))], dict(zip(powers, scores, strict=True))


def squares_to_means(x: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the squared distance of each row of ``x`` (n, d) to the mean of the rows with its label; all in float64.

    Two passes over ``x``, a block at a time: it may be a memory map.
    """
    from scipy.sparse import csr_matrix

    n, count = len(x), int(labels.max(initial=-1)) + 1
    means = np.zeros((count, x.shape[1]))
    for start in range(0, n, BLOCK):
        own = labels[start : start + BLOCK]
        member = csr_matrix((np.ones(own.size), (own, np.arange(own.size))), shape=(count, own.size))
        means += member @ x[start : start + BLOCK].astype(np.float64)
    means /= np.maximum(np.bincount(labels, minlength=count), 1)[:, None]
    out = np.empty(n)
    for start in range(0, n, BLOCK):
        away = x[start : start + BLOCK] - means[labels[start : start + BLOCK]]
        out[start : start + BLOCK] = np.einsum("nd,nd->n", away, away)
    return out
