"""BIDS on a million rows and 350 targets: seconds, memory, and the same rows as the plain search.

    python benchmarks/influence/bids.py             # some five minutes on two idle cores, 3 GB of memory
    python benchmarks/influence/bids.py --quick     # a hundredth of the rows: does it run?

Checked before anything is timed: the choices on small matrices of whole numbers, full of ties, are those of the plain
search (``curate.numerics.reference``), gains included.  Each way is then timed in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import curate
from curate.numerics.bids import Standardised, bids
from curate.numerics.reference import reference_bids
from curate.seeding import rng_for
from curate.selectors import BIDS, LESS, RoundRobin

TASKS = 7


def agreement() -> int:
    """Return on how many small matrices the choices were compared."""
    rng = rng_for(0, "benchmark", "agreement")
    for _ in range(300):
        n, m, levels = rng.integers(1, 60), rng.integers(1, 9), rng.integers(1, 6)
        a = rng.integers(0, levels, size=(n, m)).astype(np.float32)
        a[rng.random(n) < 0.1] = np.nan
        standard = Standardised.of(a)
        k = int(standard.there.sum())
        order, gains = reference_bids(standard, a, k)
        found = bids(a, k, depth=int(rng.integers(1, 9)))
        assert found.order.tolist() == order and found.gains.tolist() == gains, (n, m, levels)
    return 300


def influence(path: Path, n: int, m: int) -> None:
    """Write made-up cosines: rows good for one task, more or less, rows good for all, and noise by target."""
    rng = rng_for(0, "benchmark", "influence")
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, m))
    task = np.arange(m) % TASKS
    scale = rng.lognormal(size=m).astype(np.float32) / 100  # the targets' numbers are of unequal size
    for start in range(0, n, 10_000):
        rows = min(10_000, n - start)
        good_for = rng.standard_normal((rows, TASKS), dtype=np.float32)
        block = rng.standard_normal((rows, m), dtype=np.float32) + good_for[:, task]
        block += rng.standard_normal((rows, 1), dtype=np.float32)
        out[start : start + rows] = block * scale
    out.flush()


class Memory:
    """Watches what this process holds besides files, every 20 ms."""

    def __enter__(self) -> Memory:
        self.peak = self.start = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return 1024 * int(line.split()[1])
        return 0


def one(way: str, path: str, k: int) -> dict[str, Any]:
    """Time one way; runs in a process of its own."""
    mapped = np.load(path, mmap_mode="r")
    n, m = mapped.shape
    if way == PLAIN:
        z = np.array(mapped)
        z /= z.std(axis=0)
        mean = z.mean(axis=0)
        start = time.perf_counter()
        (z - mean).max(axis=1).argmax()
        step = time.perf_counter() - start
        return {"seconds": round(step, 3), f"days for {k:,} choices": round(step * k / 86400, 2)}
    a = mapped if "mapped" in way else np.array(mapped)
    tasks = [f"task {j % TASKS}" for j in range(m)]
    calls = {
        "BIDS": lambda: BIDS().select(a, k),
        "BIDS, mapped": lambda: BIDS().select(a, k),
        "BIDS, the whole order": lambda: BIDS().select(a),
        "LESS": lambda: LESS(targets=tasks).select(a, k),
        "round-robin over targets": lambda: RoundRobin().select(a, k),
        "round-robin over tasks": lambda: RoundRobin(targets=tasks).select(a, k),
    }
    with Memory() as memory:
        start = time.perf_counter()
        chosen = calls[way]()
        seconds = time.perf_counter() - start
    assert np.unique(chosen.indices).size == (n if "whole" in way else k)
    best = Standardised.of(a)(a[chosen.indices[:k]]).argmax(axis=1)
    held = memory.peak - memory.start + (0 if "mapped" in way else a.nbytes)
    return {
        "seconds": round(seconds, 2),
        "peak_memory_over_matrix": round(held / a.nbytes, 3),
        "rows by the task that they do most for": np.bincount(best % TASKS, minlength=TASKS).tolist(),
        "digest": int(np.bitwise_xor.reduce(chosen.indices * (np.arange(chosen.size) + 1))),
    }


PLAIN = "one choice by the plain search, in float32"
WAYS = [
    "BIDS",
    "BIDS, mapped",
    "BIDS, the whole order",
    "LESS",
    "round-robin over targets",
    "round-robin over tasks",
    PLAIN,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows, and nothing is saved")
    parser.add_argument("--folder", default=None, help="where the matrix of 1.4 GB is put meanwhile")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "PATH", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], options.one[1], int(options.one[2]))))
        return
    n, m, k = (10_000, 350, 1_000) if options.quick else (1_000_000, 350, 100_000)
    results: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "load before": os.getloadavg()[0],
        },
        "versions": {module.__name__: module.__version__ for module in (curate, np)},
        "matrix": {"rows": n, "targets": m, "dtype": "float32", "k": k},
        "small matrices with the plain search's choices": agreement(),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "influence.npy"
        influence(path, n, m)
        for way in WAYS:
            command = [sys.executable, __file__, "--one", way, str(path), str(k)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[way] = json.loads(said)
            print(way, results[way], flush=True)
    assert results["BIDS"]["digest"] == results["BIDS, mapped"]["digest"]
    if not options.quick:
        text = json.dumps(results, indent=2)
        (Path(__file__).parent / "bids.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
