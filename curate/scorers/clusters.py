from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Column, Scorer
from curate.exceptions import InputError, StageError
from curate.numerics.clusters import best_count, usual_count
from curate.numerics.kmeans import KMeans, column_means, kmeans
from curate.numerics.nearest import Centres
from curate.seeding import rng_for

if TYPE_CHECKING:
    import pyarrow as pa

_USUAL = 1024  # clusters that the sample is large enough for where their number is not given


@dataclass(kw_only=True)
class Clusters(Scorer):
    """The cluster of each row, by k-means on the vectors that another stage made.

    k-means is trained once, on a sample of the pool (the rows that come first by their content keys), and every row is
    then given to the nearest centroid, equally near ones: the lowest.  Distances are decided in float64
    (``curate.numerics.nearest``), so that the rows that come along do not matter, nor how the pool is cut into shards.
    Clusters are numbered by their size in the sample, 0 the largest.

    The squares of ``distance`` sum to the inertia of the pool.  A row is null where it has no vector.

    References
    ----------
    Lloyd 1982, "Least Squares Quantization in PCM"; Arthur & Vassilvitskii 2007, "k-means++".  The choice of their
    number: Rousseeuw 1987, "Silhouettes", as in Yu et al. 2024, "Diversify and Conquer".
    """

    name: ClassVar[str] = "clusters"
    reference: ClassVar[str] = 'Lloyd 1982, "Least Squares Quantization in PCM" (k-means)'
    reads: ClassVar[tuple[str, ...]] = ("vector",)
    fits_on: ClassVar[Literal["pool", "targets", "both", "benchmarks"]] = "pool"

    of: str
    """The stage that makes the vectors: minilm, hashed-ngrams, hidden-states, …"""
    clusters: int | Literal["auto"] | None = None
    """How many.  None: one per 64 rows, at most 1,024.  "auto": the power of two with the highest mean silhouette, of
    those tried on at most 65,536 rows of the sample."""
    iterations: int = 20
    """Lloyd iterations at most."""
    restarts: int = 1
    """Starts of k-means, of which the best is taken."""
    rows_per_cluster: int = 256
    """k-means learns from at most so many rows per cluster (of 1,024, where their number is not given)."""
    seed: int = 0
    """Names the draws: starts, and the rows whose silhouettes are taken."""

    def __post_init__(self) -> None:
        counts = {"iterations": self.iterations, "restarts": self.restarts, "rows_per_cluster": self.rows_per_cluster}
        if isinstance(self.clusters, int):
            counts["clusters"] = self.clusters
        for parameter, count in counts.items():
            if count < 1:
                raise InputError(f"clusters: {parameter} of at least 1 was asked, {count} was found.")
        self._centres: Centres | None = None

    @property
    def fit_rows(self) -> int:  # type: ignore[override]
        """Rows of the sample."""
        return self.rows_per_cluster * (self.clusters if isinstance(self.clusters, int) else _USUAL)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("cluster", "number of the cluster", dtype="int64"),
            Column("distance", "Euclidean distance to the centroid"),
        )

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        """Return "centroids" (clusters, d), "rows" and "inertia" of each in the sample, and "silhouettes" (tried, 2).

        The inertia is the sum of squared distances to the centroids as they are returned, in float64.

        Raises
        ------
        StageError
            If no row of the sample has a vector.
        """
        rows, there = _vectors(sample)
        if not there.any():
            raise StageError(f"clusters: not one of the {sample.num_rows:,} sampled rows has a vector of {self.of!r}.")
        rows = rows[there]
        rows = rows[_by_content(rows)]  # the order in which they were read does not show
        tried: dict[int, float] = {}
        count = self.clusters or usual_count(len(rows))
        if count == "auto":
            count, tried = best_count(rows, self._kmeans, rng_for(self.seed, "clusters", "silhouette"))
        found = self._kmeans(rows, count)
        sizes = np.bincount(found.labels, minlength=len(found.centroids))
        by_size = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
        centroids = found.centroids[by_size]
        labels, squares = _assigned(_centres(centroids), rows)
        return {
            "centroids": centroids,
            "rows": np.bincount(labels, minlength=len(centroids)),
            "inertia": np.bincount(labels, weights=squares, minlength=len(centroids)),
            "silhouettes": np.array(sorted(tried.items()), dtype=np.float64).reshape(-1, 2),
        }

    def _kmeans(self, x: NDArray[Any], count: int) -> KMeans:
        return kmeans(
            x,
            count,
            seed=self.seed,
            iterations=self.iterations,
            restarts=self.restarts,
            rows_per_cluster=self.rows_per_cluster,
        )

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._centres = _centres(np.asarray(state["centroids"], dtype=np.float32))

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        if self._centres is None:
            raise InputError("clusters: no centroids are there; a run trains them, or fit and load do.")
        rows, there = _vectors(examples)
        width = self._centres.exact.shape[1]
        if rows.shape[1] != width:
            raise StageError(
                f"clusters: vectors of {rows.shape[1]:,} numbers were found, the centroids have {width:,}; "
                f"both must be of one stage."
            )
        labels = np.zeros(len(rows), dtype=np.int64)
        distance = np.zeros(len(rows))
        labels[there], squares = _assigned(self._centres, rows[there])
        distance[there] = np.sqrt(squares)
        reasons = [None if has else "no vector" for has in there.tolist()]
        return {"cluster": labels, "distance": distance, "reason": reasons}


def _vectors(examples: pa.Table) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the vectors (n, d), and which rows have one; what stands where there is none means nothing."""
    vectors = examples.column("vector").combine_chunks()
    width = vectors.type.list_size
    flat = vectors.values.slice(vectors.offset * width, len(vectors) * width)
    there = np.asarray(vectors.is_valid()).astype(bool)
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width), there


def _by_content(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Return an order of the rows that depends on what they hold alone."""
    rows = np.ascontiguousarray(rows)
    return np.argsort(rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0], kind="stable")


def _centres(centroids: NDArray[np.float32]) -> Centres:
    return Centres(centroids, column_means(centroids))


def _assigned(centres: Centres, rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the nearest centroid of each row, and the squared distance to it."""
    labels, squares = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    for start in range(0, len(rows), 2048):
        part = slice(start, start + 2048)
        labels[part], squares[part] = centres.nearest(rows[part])
    return labels, squares
