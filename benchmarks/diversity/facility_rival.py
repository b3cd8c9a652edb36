"""The rival of facility.py, run by an interpreter that has apricot-select and scikit-learn: see there.

    python facility_rival.py FEATURES.npy K NEIGHBOURS ORDER.npy

scikit-learn finds the nearest neighbours by cosine (apricot's own sparse graph fails with today's libraries:
'numpy.ndarray' object has no attribute 'toarray'); apricot chooses lazily on the graph.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from apricot import FacilityLocationSelection
from scipy.sparse import csr_matrix
from sklearn.neighbors import NearestNeighbors


def choose(x: np.ndarray, k: int, m: int) -> tuple[np.ndarray, float, float]:
    """Return the rows, the seconds for the graph and those for the choice."""
    start = time.perf_counter()
    distance, index = NearestNeighbors(n_neighbors=m, metric="cosine", algorithm="brute").fit(x).kneighbors(x)
    similarity = np.maximum(1 - distance.astype(np.float64), 0)
    first = np.arange(0, index.size + 1, m)
    graph = csr_matrix((similarity.ravel(), index.ravel(), first), shape=(len(x), len(x))).T.tocsr()  # who is near j
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)
    found = time.perf_counter()
    chosen = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy").fit(graph)
    return np.asarray(chosen.ranking), found - start, time.perf_counter() - found


if __name__ == "__main__":
    features, k, m, out = sys.argv[1:]
    x = np.load(features)
    choose(x[:300], 10, 8)  # numba compiles
    order, graph, choice = choose(x, int(k), int(m))
    np.save(out, order)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(
        json.dumps(
            {
                "seconds": round(graph + choice, 2),
                "of which the graph": round(graph, 2),
                "peak_memory_mb": int(peak.split()[1]) // 1024,
            }
        )
    )
