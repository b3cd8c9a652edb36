"""k-means on arrays that may be larger than memory, with the same result whatever the number of threads.

Lloyd's iteration: assign every row to its nearest centroid, move every centroid to the mean of its rows, until nothing
moves.  All work is done in blocks of rows of a fixed size.  Matrix products run on one BLAS thread each, many blocks at
a time; sums are added up in row order.  So the number of threads decides when a block is computed and never what comes
out: libraries that let BLAS or OpenMP split one product differently on another machine assign near-ties differently.

dtypes: features are read as float32 (float16, float64 and integers are converted block by block), products in float32,
means and inertia in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.blocks import Blocks
from curate.seeding import rng_for

BLOCK = 1024  # rows a product: its scores (4 MB at 1,024 centroids) stay in cache


@dataclass(frozen=True, eq=False)
class KMeans:
    """A clustering of n rows."""

    centroids: NDArray[np.float32]
    """(k, d)"""
    labels: NDArray[np.int64]
    """(n,) the nearest centroid of each row; equally near ones: the lowest."""
    inertia: float
    """Sum over the n rows of the *squared* distance to their centroid."""
    history: list[float] = field(default_factory=list)
    """Inertia of the training rows after each assignment; never rises."""


def kmeans(
    x: NDArray[Any],
    k: int,
    *,
    seed: int = 0,
    iterations: int = 20,
    restarts: int = 1,
    rows_per_cluster: int = 256,
    tolerance: float = 1e-4,
    threads: int | None = None,
) -> KMeans:
    """Cluster the rows of ``x`` so that the sum of squared distances to the cluster means is small.

    Trained on at most ``rows_per_cluster · k`` rows, drawn by the seed; then every row is assigned.  The start is k
    training rows spread out by k-means++.  A cluster that loses all its rows is moved to the row that is furthest from
    its own centroid (several: to several), which can only lower the inertia; if there are fewer distinct rows than
    clusters, some stay empty.

    Parameters
    ----------
    x : array (n, d), finite; may be a read-only memory map, of which a block at a time is looked at.
    k : number of clusters, at least 1; at most n are used.
    iterations : assignments at most, per restart.
    restarts : starts; the one with the lowest training inertia wins, the earlier one if they tie.
    rows_per_cluster : limit on the training rows, per cluster.
    tolerance : stop when an iteration lowers the inertia by less than this share of it; 0 runs until nothing moves.
    threads : blocks computed at one time; as many as BLAS was given when None.  The result does not depend on it.

    Notes
    -----
    Time r·d·k multiply-adds per iteration for r training rows; memory 4·r·d bytes for them unless ``x`` is float32 and
    small enough to be trained on whole, and 16·n for labels and distances.  The result is the same for any number of
    threads on one kind of processor; another kind (or BLAS) rounds products differently and may move near-ties.

    References
    ----------
    Lloyd 1982, "Least Squares Quantization in PCM"; Arthur & Vassilvitskii 2007, "k-means++".  Training on a bounded
    sample is what faiss does (``max_points_per_centroid``, with the same default of 256).
    """
    if k < 1:
        raise InputError(f"kmeans: at least 1 cluster was asked, k={k} was found.")
    n = len(x)
    k = min(k, n)
    if not n:
        return KMeans(np.empty((0, x.shape[1]), np.float32), np.empty(0, np.int64), 0.0)
    limit = max(k, rows_per_cluster * k)
    train = x
    if n > limit:
        train = _take(x, np.sort(rng_for(seed, "kmeans", "rows").choice(n, limit, replace=False)))
    # Distances are computed as ‖c‖² - 2x·c, which loses its digits far from the origin: move the mean there.
    shift = column_means(train)
    with Blocks(threads) as blocks:
        best: tuple[float, NDArray[np.float32], list[float]] | None = None
        for restart in range(restarts):
            start = _spread_rows(train, shift, k, rng_for(seed, "kmeans", "start", restart))
            centroids, history = _lloyd(blocks, train, shift, start, iterations, tolerance)
            if best is None or history[-1] < best[0]:
                best = history[-1], centroids, history
        assert best is not None
        _, centroids, history = best
        labels, distances = _assign(blocks, x, shift, centroids)
    return KMeans(centroids + shift, labels, float(distances.sum()), history)


def _lloyd(
    blocks: Blocks,
    x: NDArray[Any],
    shift: NDArray[np.float32],
    centroids: NDArray[np.float32],
    iterations: int,
    tolerance: float,
) -> tuple[NDArray[np.float32], list[float]]:
    """Return the centroids with the lowest inertia seen, and the inertia after each assignment."""
    history: list[float] = []
    before = centroids
    while True:
        labels, distances = _assign(blocks, x, shift, centroids)
        inertia = float(distances.sum())
        if history and inertia >= history[-1]:  # nothing moved, or less than float32 can tell
            return before, history
        history.append(inertia)
        enough = len(history) > 1 and history[-2] - inertia <= tolerance * history[-2]
        if enough or len(history) >= iterations or inertia == 0:
            return centroids, history
        before, centroids = centroids, _means(x, shift, labels, distances, centroids)


def _assign(
    blocks: Blocks, x: NDArray[Any], shift: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest centroid of each row, and the squared distance to it."""
    n = len(x)
    labels = np.empty(n, dtype=np.int64)
    distances = np.empty(n)
    half = ((centroids.astype(np.float64) ** 2).sum(axis=1) / 2).astype(np.float32)
    turned = np.ascontiguousarray(centroids.T)

    def one(start: int) -> None:
        block = _read(x, start, shift)
        scores = block @ turned
        scores -= half  # x·c - ‖c‖²/2 is highest where ‖x - c‖² is lowest
        nearest = scores.argmax(axis=1)  # the first of equal ones
        labels[start : start + BLOCK] = nearest
        away = block - centroids[nearest]  # by difference, not from the scores: exact 0 for a row on its centroid
        distances[start : start + BLOCK] = np.einsum("nd,nd->n", away, away, dtype=np.float64)

    blocks.run(one, range(0, n, BLOCK))
    return labels, distances


def _means(
    x: NDArray[Any],
    shift: NDArray[np.float32],
    labels: NDArray[np.int64],
    distances: NDArray[np.float64],
    centroids: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the mean of each cluster's rows, summed in float64; an empty cluster takes a far row, if there is one."""
    from scipy.sparse import csr_matrix

    k = len(centroids)
    sums = np.zeros(centroids.shape)
    for start in range(0, len(x), 16 * BLOCK):
        own = labels[start : start + 16 * BLOCK]
        member = csr_matrix((np.ones(own.size), (own, np.arange(own.size))), shape=(k, own.size))
        sums += member @ (np.asarray(x[start : start + 16 * BLOCK], dtype=np.float32) - shift).astype(np.float64)
    counts = np.bincount(labels, minlength=k)
    out = centroids.copy()
    out[counts > 0] = (sums[counts > 0] / counts[counts > 0, None]).astype(np.float32)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        far = np.argsort(-distances, kind="stable")[: empty.size]
        far = far[distances[far] > 0]
        out[empty[: far.size]] = _take(x, far) - shift
    return out


def _spread_rows(x: NDArray[Any], shift: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return k rows less ``shift``, each drawn in proportion to its squared distance to those drawn before it.

    Taken from at most 16,384 rows (or 4 k), so that the k passes over them stay cheap beside one assignment of all.
    Once every row has been met, the rest are drawn uniformly.
    """
    n = min(len(x), max(4 * k, 16_384))
    rows = _take(x, np.sort(rng.choice(len(x), n, replace=False))) - shift
    norms = np.einsum("nd,nd->n", rows, rows)
    nearest = np.full(n, np.inf, dtype=np.float32)
    chosen = [int(rng.integers(n))]
    while len(chosen) < k:
        last = chosen[-1]
        square = norms + norms[last] - 2 * (rows @ rows[last])
        np.minimum(nearest, np.maximum(square, 0), out=nearest)  # rounding leaves some distances just below 0
        total = np.cumsum(nearest, dtype=np.float64)
        if total[-1] == 0:
            chosen.extend(rng.integers(n, size=k - len(chosen)).tolist())
        else:
            chosen.append(min(n - 1, int(np.searchsorted(total, rng.random() * total[-1], side="right"))))
    return rows[chosen]


def silhouette(
    x: NDArray[Any], labelings: list[NDArray[np.int64]], rows: NDArray[np.int64], *, threads: int | None = None
) -> list[float]:
    """Return the mean silhouette of ``rows`` under each labeling of the n rows of ``x``.

    s = (b - a) / max(a, b), a the mean distance to the other rows of one's cluster, b the lowest mean distance to the
    rows of another; 0 in a cluster of one, and if there is one cluster only.  Distances are to all n rows: only the
    rows that are averaged over are a sample, so clusters of any size are judged alike.

    The distances are computed once for all labelings, in float64: len(rows)·n·d multiply-adds, 64·n distances a thread.

    References
    ----------
    Rousseeuw 1987, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis".
    """
    if not rows.size:
        return [0.0] * len(labelings)
    shift = column_means(x)
    all_rows = (_take(x, np.arange(len(x))) - shift).astype(np.float64)
    norms = np.einsum("nd,nd->n", all_rows, all_rows)
    sizes = [np.bincount(labels) for labels in labelings]
    values = np.zeros((len(labelings), rows.size))

    def one(start: int) -> None:
        part = rows[start : start + 64]
        square = norms[part, None] + norms - 2 * (all_rows[part] @ all_rows.T)
        distance = np.sqrt(np.maximum(square, 0))
        distance[np.arange(part.size), part] = 0  # to itself; rounding leaves a little
        for which, (labels, size) in enumerate(zip(labelings, sizes, strict=True)):
            for i, row in enumerate(part.tolist()):
                own = labels[row]
                if size[own] < 2 or np.count_nonzero(size) < 2:
                    continue
                sums = np.bincount(labels, weights=distance[i], minlength=size.size)
                inside = sums[own] / (size[own] - 1)
                mean = np.where(size > 0, sums / np.maximum(size, 1), np.inf)
                mean[own] = np.inf
                outside = mean.min()
                if max(inside, outside) > 0:
                    values[which, start + i] = (outside - inside) / max(inside, outside)

    with Blocks(threads) as blocks:
        blocks.run(one, range(0, rows.size, 64))
    return [float(v) for v in values.mean(axis=1)]


def _read(x: NDArray[Any], start: int, shift: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x[start : start + BLOCK], dtype=np.float32) - shift


def column_means(x: NDArray[Any]) -> NDArray[np.float32]:
    """Return the mean of the rows, (d,), summed in float64 block by block; zeros where there are none."""
    total = np.zeros(x.shape[1])
    for start in range(0, len(x), BLOCK):
        total += np.asarray(x[start : start + BLOCK]).sum(axis=0, dtype=np.float64)
    return (total / max(len(x), 1)).astype(np.float32)


def _take(x: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Copy the rows as float32, a block at a time."""
    out = np.empty((rows.size, x.shape[1]), dtype=np.float32)
    for start in range(0, rows.size, BLOCK):
        out[start : start + BLOCK] = x[rows[start : start + BLOCK]]
    return out
