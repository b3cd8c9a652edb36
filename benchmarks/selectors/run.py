"""Rows per second of the selectors, and of k-means beside faiss and scikit-learn.

    python benchmarks/selectors/run.py             # under 3 minutes on two idle cores
    python benchmarks/selectors/run.py --quick     # a tenth of the rows: does it run?

Each result is checked before it is timed: the chosen rows against NumPy or Polars, row by row; the clusterings by their
inertia, and by the labels that faiss gives the same centroids.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import sklearn
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

import curate
from curate.numerics.kmeans import kmeans
from curate.seeding import rng_for
from curate.selectors import KMQ, BestPerPrompt, Longest, Quantile, Random, Threshold, TopK

ITERATIONS = 20


def best_of(call: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Return the shortest of a few times, in seconds, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def score_selectors(n: int) -> dict[str, Any]:
    rng = rng_for(0, "benchmark")
    scores = rng.integers(0, n // 2, n) / 64  # ties, as real scores have after rounding
    prompts = rng.integers(0, n // 3, n)
    sources = np.array([f"source-{i}" for i in range(9)], dtype=object)[rng.integers(0, 9, n)]
    tokens = rng.integers(20, 2000, n)

    def argsort() -> np.ndarray:
        return np.argsort(-scores, kind="stable")[: n // 10]

    def polars_best() -> np.ndarray:
        table = pl.DataFrame({"row": np.arange(n), "score": scores, "prompt": prompts})
        table = table.sort(["score", "row"], descending=[True, False]).unique(
            "prompt", keep="first", maintain_order=True
        )
        return table["row"].to_numpy()

    ours: dict[str, Callable[[], Any]] = {
        "TopK, 10%": lambda: TopK().select(scores, "10%"),
        "TopK, tokens": lambda: TopK().select(scores, f"{tokens.sum() // 10} tokens", cost=tokens),
        "TopK, 10%, quota over 9 sources": lambda: TopK().select(
            scores, "10%", quota=curate.Quota(), quota_groups=sources
        ),
        "Threshold": lambda: Threshold(min=float(np.median(scores))).select(scores),
        "Quantile, 0.1": lambda: Quantile(share=0.1).select(scores),
        "Longest, 10%": lambda: Longest().select(tokens, "10%"),
        "Random, 10%": lambda: Random().select(n, "10%"),
        "BestPerPrompt": lambda: BestPerPrompt().select(scores, groups=prompts),
    }
    assert np.array_equal(ours["TopK, 10%"]().indices, argsort())
    assert np.array_equal(ours["BestPerPrompt"]().indices, polars_best())
    chosen = ours["TopK, tokens"]()
    assert tokens[chosen.indices].sum() <= tokens.sum() // 10 < tokens[chosen.order[: chosen.size + 1]].sum()

    out = {}
    for name, call in {**ours, "numpy argsort, for TopK": argsort, "polars, for BestPerPrompt": polars_best}.items():
        seconds, result = best_of(call)
        out[name] = {"seconds": round(seconds, 3), "rows_per_second": round(n / seconds)}
        if hasattr(result, "reasons"):
            seconds, _ = best_of(result.reasons, 1)
            out[name]["seconds_for_reasons"] = round(seconds, 3)
    return out


def clusterings(n: int, d: int, k: int) -> dict[str, Any]:
    rng = rng_for(0, "benchmark", "features")
    x = rng.normal(size=(k, d))[rng.integers(0, k, n)] / 2 + rng.normal(size=(n, d))  # clusters that overlap
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    def by_faiss() -> np.ndarray:
        trained = faiss.Kmeans(d, k, niter=ITERATIONS, seed=0)
        trained.train(x)
        return trained.index.search(x, 1)[1][:, 0]

    more: dict[str, Any] = {"n_clusters": k, "n_init": 1, "random_state": 0}
    ways: dict[str, Callable[[], np.ndarray]] = {
        "curate": lambda: kmeans(x, k, iterations=ITERATIONS, tolerance=0).labels,
        "faiss.Kmeans": by_faiss,
        "sklearn KMeans": lambda: KMeans(max_iter=ITERATIONS, tol=0, init="random", **more).fit(x).labels_,
        "sklearn MiniBatchKMeans": lambda: MiniBatchKMeans(batch_size=4096, **more).fit(x).labels_,
    }
    # The same centroids: the same labels as faiss gives, but for near-ties.
    found = kmeans(x, k, iterations=2)
    index = faiss.IndexFlatL2(d)
    index.add(found.centroids)
    agree = float((index.search(x, 1)[1][:, 0] == found.labels).mean())
    assert agree > 0.9999, agree

    out: dict[str, Any] = {"labels equal to faiss for the same centroids": round(agree, 6)}
    for name, cluster in ways.items():
        row = {}
        digests = set()
        for timed, threads in ((True, os.cpu_count() or 1), (False, 1)):
            faiss.omp_set_num_threads(threads)
            with threadpool_limits(threads), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-learn's on not having converged: all stop at 20 iterations
                if timed:
                    seconds, labels = best_of(cluster, 1)
                    row |= {"seconds": round(seconds, 2), "rows_per_second": round(n / seconds)}
                    row["inertia"] = round(inertia(x, labels), 1)
                else:
                    labels = cluster()
            digests.add(hashlib.sha256(np.asarray(labels, dtype=np.int64).tobytes()).hexdigest())
        row["same labels on one thread"] = len(digests) == 1
        out[name] = row
    assert out["curate"]["inertia"] <= 1.02 * min(row["inertia"] for row in out.values() if isinstance(row, dict))

    quality = rng.normal(size=n)
    seconds, chosen = best_of(lambda: KMQ(clusters=k).select(x, "10%", quality=quality), 1)
    assert np.unique(chosen.indices).size == n // 10
    out["KMQ, 10%"] = {"seconds": round(seconds, 2), "rows_per_second": round(n / seconds)}
    return out


def inertia(x: np.ndarray, labels: np.ndarray) -> float:
    """Sum of squared distances to the means of the clusters, whatever centroids a library returns."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) != 0])
    sums = np.add.reduceat(x[order], starts, axis=0, dtype=np.float64)
    counts = np.diff(np.r_[starts, len(x)])
    return float((x.astype(np.float64) ** 2).sum() - ((sums**2).sum(axis=1) / counts).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, and nothing is saved")
    quick = parser.parse_args().quick
    n, rows, k = (100_000, 14_400, 128) if quick else (1_000_000, 144_000, 1024)
    results = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "versions": {m.__name__: m.__version__ for m in (curate, np, faiss, sklearn, pl)},
        f"score selectors, {n:,} rows": score_selectors(n),
        f"k-means, {rows:,} rows of 128, {k:,} clusters, {ITERATIONS} iterations": clusterings(rows, 128, k),
    }
    text = json.dumps(results, indent=2)
    print(text)
    if not quick:
        (Path(__file__).parent / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
