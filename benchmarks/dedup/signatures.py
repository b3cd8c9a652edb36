"""MinHash signatures: time a row and error of the estimate, beside rensa, datasketch and plain permutations in NumPy.

    PYTHONPATH=. PYTHON benchmarks/dedup/signatures.py     # of an environment with rensa, datasketch, numpy, pyarrow

All are given the same shingles, hashed to 64 bits beforehand (datasketch: as bytes).  Under a minute; writes
signatures.json.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rensa
from datasketch import MinHash

from curate.numerics.minhash import signatures, standard_error
from curate.numerics.ngrams import mix

PLACES, ROWS = 128, 2_000
Sets = tuple[np.ndarray, np.ndarray]


def permutations(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """One odd multiplier and one summand a place, modulo 2³², on a mixed hash."""
    rng = np.random.default_rng(0)
    times = (rng.integers(0, 2**32, PLACES, dtype=np.uint64) | np.uint64(1)).astype(np.uint32)
    plus = rng.integers(0, 2**32, PLACES, dtype=np.uint64).astype(np.uint32)
    mixed = (mix(hashes) >> np.uint64(32)).astype(np.uint32)
    bounds = itertools.pairwise(offsets)
    return np.array([(mixed[a:b, None] * times + plus).min(axis=0) for a, b in bounds])


def rust(make: Callable[..., Any]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def run(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        # its matrix gives its numbers out as lists only
        return np.array(make(hashes, offsets.astype(np.uint64), PLACES, 0).to_rows(), dtype=np.uint32)

    return run


def sketches(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    data = hashes.tobytes()
    sets = [[data[8 * i : 8 * i + 8] for i in range(a, b)] for a, b in itertools.pairwise(offsets)]
    return np.array([m.hashvalues for m in MinHash.bulk(sets, num_perm=PLACES)])


WAYS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "curate": lambda hashes, offsets: signatures(hashes, offsets, PLACES),
    "permutations in NumPy": permutations,
    "rensa, R-MinHash": rust(rensa.RMinHash.digest_matrix_from_flat_token_hashes),
    "rensa, rho": rust(rensa.RMinHash.digest_matrix_from_flat_token_hashes_rho),
    "datasketch, bulk": sketches,
}


def pairs(union: int, similarity: float, count: int) -> tuple[Sets, float]:
    rng = np.random.default_rng(union)
    both = round(similarity * union)
    own = both + (union - both) // 2
    sets = []
    for _ in range(count):
        elements = rng.integers(0, 2**64, union, dtype=np.uint64)
        sets += [elements[:own], np.concatenate([elements[:both], elements[own:]])]
    return (np.concatenate(sets), np.cumsum([0, *map(len, sets)])), both / union


def main() -> None:
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {}
    for name, way in WAYS.items():
        told = out[name] = {}
        for size in (5, 20, 50, 166, 500):
            hashes, offsets = rng.integers(0, 2**64, ROWS * size, dtype=np.uint64), np.arange(ROWS + 1) * size
            times = []
            for _ in range(3):
                start = time.perf_counter()
                way(hashes, offsets)
                times.append(time.perf_counter() - start)
            told[f"microseconds a row of {size} shingles"] = round(1e6 * min(times) / ROWS, 1)
        for union in (10, 50, 200, 1_000):
            sets, similarity = pairs(union, 0.8, 500)
            got = way(*sets)
            error = (got[::2] == got[1::2]).mean(axis=1) - similarity
            told[f"error at 0.8, union {union}"] = {
                "mean": round(float(error.mean()), 4),
                "rms, in standard errors": round(
                    float(np.sqrt((error**2).mean())) / standard_error(similarity, PLACES), 2
                ),
            }
        print(name, json.dumps(told), flush=True)
    (Path(__file__).parent / "signatures.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
