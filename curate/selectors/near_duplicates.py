from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from curate.base import Inputs, Ranking, Selector
from curate.exceptions import InputError
from curate.numerics.minhash import found_in_a_band, rows_of_a_band, standard_error
from curate.numerics.near import copies
from curate.numerics.order import best_first


@dataclass(kw_only=True)
class NearDuplicates(Selector):
    """Near-duplicates by MinHash signatures: of rows that are nearly the same, the best stays.

    ``x`` is signatures (n, H), as the scorer ``minhash`` makes them; the similarity of two rows is the share of places
    in which they agree, which estimates the Jaccard similarity J of their shingles with a standard error of at most
    √(J (1 - J) / H): 0.035 at 0.8 with 128 places.  Rows are walked by falling ``quality`` (without: in row order),
    equal ones in row order:

        drop i  ⇔  similarity(i, j) ≥ threshold  for a row j that was kept before;  the first such j stands for it

    So the row that a dropped one names is itself at least ``threshold`` similar to it.  Published pipelines keep one
    row of each connected component instead, where a chain of similar pairs draws unlike rows together.

    Pairs are found by locality-sensitive hashing: those that agree throughout one of several bands of places, which a
    pair at the threshold does with probability ``recall``, and one above it more often.  Every pair found is compared
    in all H places.  Without a budget all rows that stay are kept, the best first; budgets are prefixes.

    Memory: 70 bytes a row, and some 30 MB; the signatures are read in blocks.

    References
    ----------
    Broder 1997, "On the resemblance and containment of documents"; Indyk & Motwani 1998, "Approximate nearest
    neighbors" (the bands); Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", section 4.2
    (components, and the edit distance to verify).
    """

    name: ClassVar[str] = "near-duplicates"
    reference: ClassVar[str] = (
        'Broder 1997, "On the resemblance and containment of documents"; Lee et al. 2022, "Deduplicating Training Data '
        'Makes Language Models Better" (arXiv:2107.06499)'
    )
    x_name: ClassVar[str] = "features"
    codes: ClassVar[bool | None] = True

    threshold: float = 0.8
    """Similarity from which on a row counts as a copy."""
    recall: float = 0.99
    """With what probability a pair just at the threshold is found; sets how long the bands are."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(
                f"NearDuplicates: a threshold above 0 and up to 1, a Jaccard similarity, was asked; {self.threshold} "
                f"was found."
            )
        if not 0 < self.recall < 1:
            raise InputError(f"NearDuplicates: a recall between 0 and 1 was asked, {self.recall} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.x is not None
        places = inputs.x.shape[1]
        length = rows_of_a_band(places, self.threshold, self.recall)
        bands = [slice(lo, lo + length) for lo in range(0, places - length + 1, length)]
        need = math.ceil(self.threshold * places - 1e-9)  # 0.8 of 10 is 8, whatever floating point makes of it
        order = None if inputs.quality is None else best_first(inputs.quality)
        found = copies(inputs.x, need, bands, order=order)
        dropped = found.instead >= 0
        similarity = np.where(dropped, found.agreeing / places, np.nan)
        told = {
            "bands": len(bands),
            "places_a_band": length,
            "found_at_threshold": round(found_in_a_band(self.threshold, length, len(bands)), 4),
            "standard_error": round(standard_error(self.threshold, places), 4),
            "pairs_compared": found.compared,
        }
        return Ranking(
            kept(dropped, order),
            basis=similarity,
            basis_name="similarity",
            descending=None,
            why_not="nearly the same as a row that stays",
            bound=self.threshold,
            instead=found.instead,
            account={**groups(found.instead), **told},
        )


def kept(dropped: NDArray[np.bool_], order: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the rows that stay, in the order walked."""
    return np.flatnonzero(~dropped) if order is None else order[~dropped[order]]


def groups(instead: NDArray[np.int64]) -> dict[str, Any]:
    """Return how many rows stand for others, how many were dropped, and the size of the largest group."""
    dropped = instead[instead >= 0]
    sizes = np.bincount(dropped)
    return {
        "groups": int(np.count_nonzero(sizes)),
        "dropped": int(dropped.size),
        "largest_group": int(sizes.max(initial=0)) + 1 if dropped.size else 0,
    }
