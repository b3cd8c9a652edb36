"""MinHash signatures of many sets at once.

The Jaccard similarity of two sets is J = |A ∩ B| / |A ∪ B|.  A signature holds H numbers; those of two sets agree in
each place with probability J, so the share of places in which they agree estimates J without bias.

How a place gets its number: by fast similarity sketching.  In round t each element falls into one of the H places, by a
hash of (t, element), and leaves a number there; a place keeps the lowest number of the first round that reached it.
After ``ROUNDS`` rounds each element leaves a number in every place that is still empty.  So the element that a place
stands for is drawn uniformly from the set, and from A ∪ B in the same way for both sets: that is where J comes from.
In one round no element reaches two places, so they are drawn almost without replacement, and the standard error lies
below the √(J (1 - J) / H) of independent permutations: by a quarter, for sets of 20 to 200 elements and H = 128.  The
work is that of a few permutations of the elements, not of H.

References
----------
Broder 1997, "On the resemblance and containment of documents"; Dahlgaard, Knudsen & Thorup 2017, "Fast Similarity
Sketching" (FOCS), section 2.  They go on for H rounds before every place is reached; nothing but time depends on it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from curate.numerics.ngrams import mix
from curate.seeding import rng_for

EMPTY = np.uint32(2**32 - 1)
"""Stands in every place of the signature of an empty set; numbers have 31 bits."""
ROUNDS = 8  # 50 elements have reached nearly all of 128 places by then, and fewer cost little in each that is left
_TOGETHER = 2**16  # elements worked on at a time
_SETS = 256  # sets worked on at a time: 128 KiB of signatures


def signatures(
    hashes: NDArray[np.uint64], offsets: NDArray[np.int64], places: int, *, seed: int = 0
) -> NDArray[np.uint32]:
    """Return the signatures of n sets, (n, H); see the module's docstring.

    Parameters
    ----------
    hashes : (m,) uint64, the elements of all sets, one set after another; an element may stand there several times.
    offsets : (n + 1,) int64, set i is ``hashes[offsets[i]:offsets[i + 1]]``.
    places : H, at least 1.

    Notes
    -----
    Different elements leave equal numbers with a probability of about (1 + |set| / H) / 2³¹.  Memory beside the result:
    some megabytes, and 16 bytes an element of a set of more than 65,536.
    """
    n = len(offsets) - 1
    out = np.full((n, places), EMPTY, dtype=np.uint32)
    salts = rng_for(seed, "minhash").integers(0, 2**64, ROUNDS + places, dtype=np.uint64)
    start = 0
    while start < n:
        end = int(np.searchsorted(offsets, offsets[start] + _TOGETHER, side="right")) - 1
        end = min(max(end, start + 1), start + _SETS)
        _sign(out[start:end], hashes[offsets[start] : offsets[end]], offsets[start : end + 1] - offsets[start], salts)
        start = end
    return out


def _sign(
    out: NDArray[np.uint32], elements: NDArray[np.uint64], offsets: NDArray[np.int64], salts: NDArray[np.uint64]
) -> None:
    """Fill the signatures of a few sets, which are empty."""
    places = out.shape[1]
    flat = out.reshape(-1)  # a view
    sizes = np.diff(offsets)
    left = elements
    begin = np.repeat(np.arange(len(out)) * places, sizes)  # of each element, where the places of its set begin
    for t in range(ROUNDS):
        vacant = flat == EMPTY
        for lo in range(0, left.size, _TOGETHER):
            h = mix(left[lo : lo + _TOGETHER] ^ salts[t])
            at = begin[lo : lo + _TOGETHER] + (((h >> np.uint64(32)) * np.uint64(places)) >> np.uint64(32)).view(
                np.int64
            )
            number = _numbers(h)
            if t:
                reached = np.flatnonzero(vacant[at])
                at, number = at[reached], number[reached]
            np.minimum.at(flat, at, number)
        lacking = (out == EMPTY).any(axis=1)
        if not lacking.any():
            return
        again = np.flatnonzero(lacking[begin // places])
        left, begin = left[again], begin[again]
    vacant = np.flatnonzero(np.repeat(sizes > 0, places) & (flat == EMPTY))
    ends = np.cumsum(sizes[vacant // places])
    lo = 0
    while lo < vacant.size:
        done = int(ends[lo - 1]) if lo else 0
        hi = max(lo + 1, int(np.searchsorted(ends, done + _TOGETHER, side="right")))
        at = vacant[lo:hi]
        count = sizes[at // places]
        first = np.cumsum(count) - count
        which = np.arange(count.sum()) + np.repeat(offsets[at // places] - first, count)
        h = mix(elements[which] ^ np.repeat(salts[ROUNDS + at % places], count))
        flat[at] = np.minimum.reduceat(_numbers(h), first)
        lo = hi


def _numbers(h: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return h.astype(np.uint32) & np.uint32(2**31 - 1)


def standard_error(similarity: float, places: int) -> float:
    """Return √(J (1 - J) / H): how far an estimate of J strays, at most, in the root mean square."""
    return math.sqrt(similarity * (1 - similarity) / places)


def rows_of_a_band(places: int, threshold: float, recall: float) -> int:
    """Return the longest band of places that finds pairs at the threshold with probability ``recall``.

    Of the ⌊H / r⌋ bands of r places, a pair with similarity J agrees throughout at least one with probability
    1 - (1 - Jʳ)^⌊H / r⌋.  The longer a band, the fewer pairs far below the threshold are looked at.
    """
    fits = (r for r in range(places, 0, -1) if found_in_a_band(threshold, r, places // r) >= recall)
    return next(fits, 1)


def found_in_a_band(similarity: float, rows: int, bands: int) -> float:
    """Return the probability that a pair agrees throughout at least one band."""
    return 1 - (1 - similarity**rows) ** bands
