"""Facility location on 50,000 rows beside apricot and beside the exact greedy choice; log-det and MIG on the same.

    python benchmarks/diversity/facility.py --apricot PYTHON    # some 5 minutes on two idle cores, 1 GB of memory
    python benchmarks/diversity/facility.py --quick             # a tenth of the rows, nothing is saved

PYTHON is an interpreter with apricot-select and scikit-learn (they may want other versions of what is shared with
curate); without it the rival is left out.  Everything is judged by the objective itself: the mean over all rows of the
cosine to the nearest chosen row, over all pairs, in blocks.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, vectors
from numpy.typing import NDArray

import curate
from curate.numerics.facility import facility
from curate.numerics.neighbours import neighbours
from curate.seeding import rng_for
from curate.selectors import MIG, FacilityLocation, LogDet, Random

DIM = 384
NEIGHBOURS = 64


def objective(x: NDArray[np.float32], order: NDArray[np.int64]) -> float:
    """Return the mean cosine to the nearest chosen row, over all pairs; cosines below 0 count as 0."""
    chosen = np.ascontiguousarray(x[order].T)
    best = [np.maximum((x[start : start + 1024] @ chosen).max(axis=1), 0) for start in range(0, len(x), 1024)]
    return float(np.concatenate(best).mean(dtype=np.float64))


def exact_greedy(x: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Choose greedily over all pairs, in float64: n² numbers."""
    wide = x.astype(np.float64)
    s = np.maximum(wide @ wide.T, 0)
    nearest = np.zeros(len(x))
    heap = [(-gain, row, 0) for row, gain in enumerate(s.sum(axis=0).tolist())]
    heapq.heapify(heap)
    order: list[int] = []
    while len(order) < k:
        _, row, seen = heapq.heappop(heap)
        if seen == len(order):
            order.append(row)
            np.maximum(nearest, s[row], out=nearest)
        else:
            heapq.heappush(heap, (-float(np.maximum(s[row] - nearest, 0).sum()), row, len(order)))
    return np.array(order)


def one(way: str, path: str, k: int, out: str) -> dict[str, Any]:
    """Time one way; runs in a process of its own."""
    x = np.load(path)
    took: dict[str, Any] = {}
    start = time.perf_counter()
    if way == OURS:
        graph = neighbours(x, NEIGHBOURS)
        took["of which the graph"] = round(time.perf_counter() - start, 2)
        order = facility(graph, k).order
    else:
        order = WAYS[way].select(x, k).indices
    took = {"seconds": round(time.perf_counter() - start, 2), **took}
    np.save(out, order)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {**took, "peak_memory_mb": int(peak.split()[1]) // 1024}


OURS = f"facility location, {NEIGHBOURS} neighbours"
RIVAL = f"apricot 0.6.1, scikit-learn's {NEIGHBOURS} neighbours"
WAYS = {
    OURS: FacilityLocation(neighbours=NEIGHBOURS),
    "facility location, 5,000 rows represented": FacilityLocation(neighbours=NEIGHBOURS, represent=5000),
    "log-det": LogDet(),
    "MIG": MIG(),
    "random": Random(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, and nothing is saved")
    parser.add_argument("--apricot", metavar="PYTHON", help="an interpreter that has apricot-select")
    parser.add_argument("--one", nargs=4, metavar=("WAY", "PATH", "K", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, path, k, out = options.one
        print(json.dumps(one(way, path, int(k), out)))
        return
    n, k = (5_000, 500) if options.quick else (50_000, 5_000)
    results: dict[str, Any] = {
        "machine": machine(curate, np) | {"load before": os.getloadavg()[0]},
        "features": {"rows": n, "dimensions": DIM, "dtype": "float32", "k": k},
    }
    x = vectors(n, DIM)
    part = x[np.sort(rng_for(0, "benchmark", "subsample").choice(n, n // 10, replace=False))]
    exact = objective(part, exact_greedy(part, k // 10))
    results[f"of {n // 10:,} rows, {k // 10:,} chosen: objective over that of the exact greedy choice"] = {
        f"{m} neighbours": round(objective(part, facility(neighbours(part, m), k // 10).order) / exact, 5)
        for m in (16, 32, 64, 128, 256)
    } | {"random": round(objective(part, Random().select(n // 10, k // 10).indices) / exact, 5)}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "x.npy", Path(folder) / "order.npy"
        np.save(path, x)
        commands = {way: [sys.executable, __file__, "--one", way, str(path), str(k), str(out)] for way in WAYS}
        if options.apricot:
            rival = str(Path(__file__).with_name("facility_rival.py"))
            commands[RIVAL] = [options.apricot, rival, str(path), str(k), str(NEIGHBOURS), str(out)]
        for way, command in commands.items():
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[way] = {**json.loads(said.splitlines()[-1]), "objective": round(objective(x, np.load(out)), 5)}
            print(way, results[way], flush=True)
    print(json.dumps(results, indent=2))
    if not options.quick:
        text = json.dumps(results, indent=2)
        (Path(__file__).parent / "facility.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
