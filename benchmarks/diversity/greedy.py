"""k-center and DEITA's filter on 200,000 rows, from a memory map: time, memory, and that the choice is the plain one.

    python benchmarks/diversity/greedy.py             # some 5 minutes on two idle cores
    python benchmarks/diversity/greedy.py --quick     # a twentieth of the rows: does it run?

First the choices of both are compared, row by row, with loops over the plain definitions in float64 (on a twentieth of
the rows); then they are timed, each in a process of its own, whose peak memory is taken less what the memory map itself
holds of the file (pages that the system may drop at any time).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, vectors

import curate
from curate.seeding import rng_for
from curate.selectors import KCenter, ReprFilter

THRESHOLDS = (0.9, 0.5)


def plain_k_center(x: np.ndarray, k: int, first: int) -> list[int]:
    """One pass over all rows a choice."""
    x = x.astype(np.float64)
    nearest = np.full(len(x), np.inf)
    order = [first]
    while len(order) < k:
        away = x - x[order[-1]]
        np.minimum(nearest, np.einsum("nd,nd->n", away, away), out=nearest)
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    return order


def plain_filter(x: np.ndarray, quality: np.ndarray, threshold: float, k: int) -> list[int]:
    """One row after the other."""
    unit = x.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    kept = np.empty((k, x.shape[1]))
    order: list[int] = []
    for row in np.argsort(-quality, kind="stable").tolist():
        if len(order) == k:
            break
        if not order or (kept[: len(order)] @ unit[row]).max() <= threshold:
            kept[len(order)] = unit[row]
            order.append(row)
    return order


def agreement(x: np.ndarray, k: int) -> dict[str, Any]:
    quality = rng_for(0, "quality").normal(size=len(x))
    out: dict[str, Any] = {"rows": len(x), "k": k}
    start = time.perf_counter()
    chosen = KCenter().select(x, k).indices.tolist()
    middle = time.perf_counter()
    assert chosen == plain_k_center(x, k, chosen[0])
    plain = time.perf_counter() - middle
    out["k-center: the same rows in the same order"] = {"seconds": round(middle - start, 2), "plain": round(plain, 1)}
    for threshold in THRESHOLDS:
        start = time.perf_counter()
        kept = ReprFilter(threshold=threshold).select(x, quality=quality)
        some = min(k, len(kept))
        middle = time.perf_counter()
        assert kept.indices[:some].tolist() == plain_filter(x, quality, threshold, some)
        plain = time.perf_counter() - middle
        out[f"repr-filter {threshold}: the same rows in the same order"] = {"rows": some, "plain": round(plain, 1)}
    return out


_TIMED = """
import json, sys, time
import numpy as np
from curate.seeding import rng_for
from curate.selectors import KCenter, ReprFilter
path, what, threshold, k = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]) or None
x = np.load(path, mmap_mode="r")
quality = rng_for(0, "quality").normal(size=len(x))
selector = KCenter() if what == "k-center" else ReprFilter(threshold=threshold)
start = time.perf_counter()
found = selector.select(x, k, quality=quality)
seconds = time.perf_counter() - start
status = [line.split() for line in open("/proc/self/status") if line.startswith(("VmHWM", "RssFile"))]
held = {line[0]: round(int(line[1]) / 1024) for line in status}  # the peak of this program, not of its parent
out = {"seconds": round(seconds, 1), "chosen": len(found), "peak MB": held["VmHWM:"],
       "of which files: the map, libraries": held["RssFile:"], **found.account}
print(json.dumps(out))
"""


def timed(path: Path, what: str, threshold: float, k: int) -> dict[str, Any]:
    command = [sys.executable, "-c", _TIMED, str(path), what, str(threshold), str(k)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows, and nothing is saved")
    quick = parser.parse_args().quick
    n, d, k = (10_000, 384, 500) if quick else (200_000, 384, 10_000)
    x = vectors(n, d)
    results: dict[str, Any] = {"machine": machine(curate, np)}
    results["agreement"] = agreement(x[: n // 20], max(1, k // 20))
    print(results["agreement"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, x)
        del x
        found = {}
        for what, threshold, rows in (
            ("k-center", 0.0, k),
            ("repr-filter", 0.9, k),
            ("repr-filter", 0.5, 0),
            ("repr-filter", 0.9, 0),
        ):
            name = f"{what}{f' {threshold}' if threshold else ''}, {f'k = {rows:,}' if rows else 'all rows walked'}"
            found[name] = timed(path, what, threshold, rows)
            print(name, found[name], flush=True)
    results[f"{n:,} x {d}"] = found
    if not quick:
        (Path(__file__).parent / "greedy.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
