from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.blocks import Blocks
from curate.numerics.farthest import BLOCK, farthest_first
from curate.numerics.kmeans import column_means
from curate.numerics.nearest import squared_distances


@dataclass(kw_only=True)
class KCenter(Selector):
    """Greedy k-center (farthest-first traversal): always the row that is farthest from all that were chosen.

        j_t = argmax_i  min_{s < t} ‖x_i − x_{j_s}‖,   ties to the lowest row

    ``x`` is features (n, d); the distance is Euclidean (normalise rows for cosine).  No choice of k rows leaves a pool
    whose farthest row is less than half as far from the nearest kept one.  The order is that of the definition, in
    float64, for any number of threads.

    What lies far from everything comes first, and that is often garbage: drop it before, by a threshold on a quality
    or on the distance to the row's cluster (the scorer ``clusters``), or here.

    References
    ----------
    Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"; Sener & Savarese 2018, "Active Learning
    for Convolutional Neural Networks: A Core-Set Approach".
    """

    name: ClassVar[str] = "k-center"
    reference: ClassVar[str] = (
        'Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach" '
        "(arXiv:1708.00489)"
    )
    x_name: ClassVar[str] = "features"

    first: Literal["central", "best"] = "central"
    """The row to start from.  "central": the one nearest to the mean of all rows; "best": of the highest quality."""
    min_quality: float | None = None
    """Rows of a lower quality are left out."""
    max_distance: float | None = None
    """Rows further than that from the mean of all rows are left out, in the unit of the features."""

    def __post_init__(self) -> None:
        if self.max_distance is not None and not self.max_distance >= 0:
            raise InputError(f"KCenter: a max_distance of at least 0 was asked, {self.max_distance} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        x, quality = inputs.x, inputs.quality
        assert x is not None
        if quality is None and (self.first == "best" or self.min_quality is not None):
            asks = "first='best'" if self.first == "best" else "min_quality"
            raise InputError(f"KCenter: {asks} asks for quality=, one number a row; none was given.")
        shift = column_means(x)
        away = _squares_to(x, shift) if self.first == "central" or self.max_distance is not None else None
        eligible = np.ones(inputs.n, dtype=bool)
        which = np.zeros(inputs.n, dtype=np.int64)
        why_not = []
        if self.max_distance is not None:
            assert away is not None
            eligible = away <= self.max_distance**2
            why_not.append(f"further than {self.max_distance:g} from the mean of all rows")
        if self.min_quality is not None:
            assert quality is not None
            which[quality < self.min_quality] = len(why_not)
            eligible &= quality >= self.min_quality
            why_not.append(f"quality below {self.min_quality:g}")
        k = min(k, int(eligible.sum()))
        start = -quality if self.first == "best" and quality is not None else away
        assert start is not None
        first = int(np.where(eligible, start, np.inf).argmin()) if k else 0
        found = farthest_first(x, k, first=first, shift=shift, eligible=eligible)
        beyond = eligible.copy()
        beyond[found.order] = False
        distance = np.sqrt(found.squares)
        return Ranking(
            found.order,
            basis=distance,
            basis_name="distance to the nearest row chosen before",
            why_not=why_not or None,
            which=which,
            beyond=beyond,
            account={"rows": k, "radius": float(distance[beyond].max(initial=0))},
        )


def _squares_to(x: NDArray, point: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared distance of each row to a point (d,)."""
    out = np.empty(len(x))
    centre = point.astype(np.float64)[None]

    def one(start: int) -> None:
        block = x[start : start + BLOCK]
        rows = np.arange(len(block))
        out[start : start + BLOCK] = squared_distances(block, rows, centre, np.zeros_like(rows))

    with Blocks(None) as blocks:
        blocks.run(one, range(0, len(x), BLOCK))
    return out
