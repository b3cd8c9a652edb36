"""k-means on 500,000 rows: time and inertia beside scikit-learn's MiniBatchKMeans and faiss.

    python benchmarks/diversity/kmeans.py             # some 10 minutes on two idle cores
    python benchmarks/diversity/kmeans.py --quick     # a fiftieth of the rows: does it run?

Each way goes from raw vectors to a label for every row.  The inertia is computed here, from the labels alone, as the
sum of squared distances to the means of the clusters in float64: whatever centroids a library keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import sklearn
from common import machine, vectors
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

import curate
from curate.numerics.clusters import squares_to_means
from curate.numerics.kmeans import kmeans


def ways(x: np.ndarray, k: int) -> dict[str, Callable[[], np.ndarray]]:
    def by_faiss(iterations: int) -> np.ndarray:
        trained = faiss.Kmeans(x.shape[1], k, niter=iterations, seed=0)
        trained.train(x)
        return trained.index.search(x, 1)[1][:, 0]

    more: dict[str, Any] = {"n_clusters": k, "n_init": 1, "random_state": 0}
    return {
        "curate, 20 iterations": lambda: kmeans(x, k).labels,
        "curate, 8 iterations": lambda: kmeans(x, k, iterations=8).labels,
        "curate, 40 iterations on all rows": lambda: kmeans(x, k, iterations=40, rows_per_cluster=len(x)).labels,
        "faiss.Kmeans, 20 iterations": lambda: by_faiss(20),
        "MiniBatchKMeans, its defaults": lambda: MiniBatchKMeans(**more).fit(x).labels_,
        "MiniBatchKMeans, batches of 16,384": lambda: MiniBatchKMeans(batch_size=16_384, **more).fit(x).labels_,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the rows, and nothing is saved")
    quick = parser.parse_args().quick
    n, d, k = (10_000, 384, 64) if quick else (500_000, 384, 1024)
    x = vectors(n, d)
    cores = os.cpu_count() or 1
    faiss.omp_set_num_threads(cores)
    found = {}
    for name, cluster in ways(x, k).items():
        with threadpool_limits(cores), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's on how it uses threads
            start = time.perf_counter()
            labels = cluster()
            seconds = time.perf_counter() - start
        inertia = float(squares_to_means(x, labels.astype(np.int64)).sum())
        found[name] = {
            "seconds": round(seconds, 1),
            "inertia": round(inertia, 1),
            "clusters with rows": int(np.unique(labels).size),
        }
        print(name, found[name], flush=True)
    rival = found["MiniBatchKMeans, its defaults"]["inertia"]
    assert found["curate, 20 iterations"]["inertia"] <= rival, "our inertia is the higher one"
    results = {"machine": machine(curate, np, faiss, sklearn), f"{n:,} x {d}, k = {k:,}": found}
    if not quick:
        (Path(__file__).parent / "kmeans.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
