from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Inputs, Ranking, Selector
from curate.budget import interleave
from curate.exceptions import InputError
from curate.numerics.clusters import best_count, squares_to_means, usual_count
from curate.numerics.kmeans import KMeans, kmeans
from curate.numerics.order import fractional_ranks
from curate.seeding import rng_for


@dataclass(kw_only=True)
class KMQ(Selector):
    """k-means diversity with quality-proportional sampling (kMQ).

    1. ``x``, the features (n, d), is clustered by k-means (squared Euclidean distance; normalise rows for cosine).  Or
       ``groups`` are the clusters, such as those of the scorer ``clusters``: then nothing is clustered here.
    2. Inside each cluster rows are drawn one by one without replacement, with probability proportional to a weight w
       made of ``quality``: the order of log w + Gumbel noise, highest first.  Without quality all weights are 1.
       ``within`` names the paper's other ways.
    3. Clusters take turns so that every prefix holds them in proportion to their size (in proportion to their tokens
       when the budget is in tokens), as ``curate.apportion.interleave`` does.  What a cluster that has run out leaves
       goes to the others in the same proportions.

    So the order of the whole pool is fixed by features, quality and seed, and smaller budgets are prefixes of larger
    ones.  That is why step 3 rounds by the Sainte-Laguë divisor method.  Largest remainders, the other usual way, can
    take a row from a cluster when the budget grows by one, so that budgets would not nest.  The two differ by a row
    here and there: over 2,000 made-up pools, of up to 400 clusters with sizes of a heavy tail, in 0.4% of the rows;
    most where many clusters are due less than half a row each and one is due a large part of the budget.

    Equal features share a cluster; there are no other ties, as the noise is continuous.

    Where this differs from the paper and its code: sampling is without replacement (paper: with; code: without, from a
    softmax of raw scores); cluster budgets are proportional to size with nothing lost to rounding (paper: proportional;
    code: equal, rounded down); the defaults for quality and clusters below.

    References
    ----------
    Yu, Chen, Ahmadian & Fadaee 2024, "Diversify and Conquer: Diversity-Centric Data Selection with Iterative
    Refinement", sections 3 and 6 (choosing k).  Sampling by noisy logarithms: Efraimidis & Spirakis 2006; Vieira 2014.
    """

    name: ClassVar[str] = "kmq"
    reference: ClassVar[str] = (
        'Yu, Chen, Ahmadian & Fadaee 2024, "Diversify and Conquer: Diversity-Centric Data Selection '
        'with Iterative Refinement" (kMQ)'
    )
    x_name: ClassVar[str] = "features"

    clusters: int | Literal["auto"] | None = None
    """Number of clusters.  None: one per 64 rows, at most 1,024 (the paper's code takes 1,024 for a pool of 196k).
    "auto": the power of two with the highest mean silhouette, as the paper advises, from 64 (or 2, in a pool of under
    1,024 rows) to one per 16 rows, at most 4,096; tried on at most 65,536 rows of the pool."""
    within: Literal["quality", "random", "closest"] = "quality"
    """What orders the rows of a cluster.  "quality": the draw by quality; "random": a draw in which all weigh the same,
    whatever their quality (the paper's kM-Random); "closest": the distance to the mean of the cluster, the nearest
    first, ties to the lowest row (kM-Closest)."""
    quality_scale: Literal["rank", "proportional", "exp"] = "rank"
    """How quality becomes a weight w.  "rank": its fractional rank in the pool, in (0, 1): takes any score, of any unit
    and sign, such as log-likelihoods.  "proportional": w = quality, at least 0, as in the paper, for ratings; rows of
    quality 0 come last in their cluster.  "exp": w = exp(quality), a softmax inside each cluster; of a mean
    log-probability it makes the inverse perplexity."""
    balance: Literal["proportional", "equal"] = "proportional"
    """Shares of the clusters: by size, as in the paper, or equal, as in its code."""
    iterations: int = 20
    """Lloyd iterations at most (paper's code: 300)."""
    restarts: int = 1
    """Starts of k-means, of which the best is taken (paper's code: 5)."""
    rows_per_cluster: int = 256
    """k-means learns from at most this many rows per cluster, drawn by the seed, and then assigns all."""
    seed: int = 0
    """Names the draws: training rows, starts, noise."""

    def __post_init__(self) -> None:
        counts = {"iterations": self.iterations, "restarts": self.restarts, "rows_per_cluster": self.rows_per_cluster}
        if isinstance(self.clusters, int):
            counts["clusters"] = self.clusters
        for parameter, count in counts.items():
            if count < 1:
                raise InputError(f"KMQ: {parameter} of at least 1 was asked, {count} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        labels = self._clusters(inputs)
        order, basis, basis_name = self._inside(inputs, labels)
        sizes = np.bincount(labels, weights=inputs.cost)
        shares = np.where(sizes > 0, sizes, 1.0) if self.balance == "proportional" else np.ones(sizes.size)
        order = order[interleave(labels[order], shares, None if inputs.cost is None else inputs.cost[order])]
        rows = np.bincount(labels)
        rows = rows[rows > 0]
        return Ranking(
            order,
            basis=basis,
            basis_name=basis_name,
            descending=None,
            labels=as_numbered(labels, inputs),
            account={
                "clusters": rows.size,
                "largest": int(rows.max(initial=0)),
                "smallest": int(rows.min(initial=inputs.n)),
            },
        )

    def _inside(
        self, inputs: Inputs, labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None, str]:
        """Return all rows in an order of which each cluster takes its part, and what they were judged by."""
        if self.within == "closest":
            assert inputs.x is not None
            squares = squares_to_means(inputs.x, labels)
            return np.argsort(squares, kind="stable"), np.sqrt(squares), "distance to the mean of its cluster"
        weight = self._log_weights(inputs.quality if self.within == "quality" else None, inputs.n)
        noise = rng_for(self.seed, "kmq", "noise").gumbel(size=inputs.n)
        # Highest key first over the whole pool, hence inside each cluster.  Rows of weight 0 have no finite key: they
        # come last, and among themselves by their noise.
        basis = inputs.quality if self.within == "quality" else None
        return np.lexsort((-noise, -(weight + noise))), basis, "quality"

    def _log_weights(self, quality: NDArray[np.float64] | None, n: int) -> NDArray[np.float64]:
        """Return log w, (n,); -inf for a weight of 0."""
        if quality is None:
            return np.zeros(n)
        if self.quality_scale == "exp":
            return quality
        if self.quality_scale == "rank":
            return np.log(fractional_ranks(quality))
        if n and quality.min() < 0:
            row = int(quality.argmin())
            raise InputError(
                f"KMQ: quality_scale='proportional' asks for quality of at least 0, "
                f"{quality[row]:.6g} was found at row {row}; "
                f"take quality_scale='exp' for log-probabilities, or 'rank' for any score."
            )
        with np.errstate(divide="ignore"):
            return np.log(quality)

    def _clusters(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return the cluster of each row: its group, where groups were given, or else its own k-means."""
        assert inputs.x is not None
        return self._cluster(inputs.x) if inputs.groups is None else inputs.groups

    def _cluster(self, x: NDArray[Any]) -> NDArray[np.int64]:
        count = self.clusters or usual_count(len(x))
        if count == "auto":
            count, _ = best_count(x, self._kmeans, rng_for(self.seed, "kmq", "silhouette"))
        return self._kmeans(x, count).labels if count > 1 else np.zeros(len(x), dtype=np.int64)

    def _kmeans(self, x: NDArray[Any], count: int) -> KMeans:
        return kmeans(
            x,
            count,
            seed=self.seed,
            iterations=self.iterations,
            restarts=self.restarts,
            rows_per_cluster=self.rows_per_cluster,
        )


def as_numbered(labels: NDArray[np.int64], inputs: Inputs) -> NDArray[np.int64]:
    """Return clusters as they were numbered where they were given, should these be whole numbers."""
    try:
        return labels if inputs.groups is None else np.array(inputs.group_names, dtype=np.int64)[labels]
    except ValueError:
        return labels
