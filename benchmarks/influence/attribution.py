"""Attribution of a million rows to 350 targets at d = 8192, from disk, beside the bare multiply and the bare disk.

    python benchmarks/influence/attribution.py --folder DIR      # 17 GB of disk in DIR; some three minutes on two cores
    python benchmarks/influence/attribution.py --quick           # a hundredth of the rows: does it run?

The features are float16, in 16 shards.  Measured on the same machine, minutes apart: the rate of the matrix multiply
alone, on blocks in memory, by as many threads (the better of BLAS's own threads and one BLAS thread a block); the rate
at which the shards are read, cold (the system is asked to forget them first); and ``attribute``, cold.  Checked before
anything is timed: the cosines of some rows against float64.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bids import Memory

import curate
from curate.numerics.attribution import attribute
from curate.numerics.blocks import Blocks
from curate.numerics.reference import reference_attribution
from curate.seeding import rng_for

TARGETS = 350
SHARDS = 16


def store(folder: Path, n: int, d: int) -> list[Path]:
    """Write the shards: one drawn, the others its columns moved on by one each."""
    rows = n // SHARDS
    base = rng_for(0, "benchmark", "features").standard_normal((rows, d), dtype=np.float32).astype(np.float16)
    base /= np.float16(np.sqrt(d))
    paths = []
    for i in range(SHARDS):
        paths.append(folder / f"part-{i:05d}.npy")
        np.save(paths[-1], np.roll(base, i, axis=1))
        fd = os.open(paths[-1], os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return paths


def forget(paths: list[Path]) -> None:
    """Ask the system to drop what it holds of the files."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def disk_rate(paths: list[Path]) -> float:
    """Return bytes per second of reading the shards, in blocks of 4 MB."""
    forget(paths)
    block, read = bytearray(2**22), 0
    start = time.perf_counter()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while got := file.readinto(block):
                read += got
    return read / (time.perf_counter() - start)


def multiply_rate(d: int, targets: np.ndarray, seconds: float) -> float:
    """Return multiply-adds per second of float32 blocks in memory."""
    rng = rng_for(0, "benchmark", "multiply")
    cores = os.cpu_count() or 1
    small = [rng.standard_normal((1024, d), dtype=np.float32) for _ in range(cores)]
    out = [np.empty((1024, len(targets)), dtype=np.float32) for _ in small]
    large = np.concatenate(small)
    turned = np.ascontiguousarray(targets.T)

    def one(i: int) -> None:
        np.matmul(small[i % len(small)], turned, out=out[i % len(small)])

    best = 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        with Blocks(cores) as blocks:
            start = time.perf_counter()
            blocks.run(one, range(8 * cores))
            best = max(best, 8 * cores * 1024 * d * len(targets) / (time.perf_counter() - start))
        start = time.perf_counter()
        large @ turned
        best = max(best, large.size * len(targets) / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows, and nothing is saved")
    parser.add_argument("--folder", default=None, help="where the features are put meanwhile: a disk, not memory")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    n, d = (10_000 if options.quick else options.rows) // SHARDS * SHARDS, 8192
    targets = rng_for(0, "benchmark", "targets").standard_normal((TARGETS, d), dtype=np.float32)
    results: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "load before": os.getloadavg()[0],
        },
        "versions": {module.__name__: module.__version__ for module in (curate, np)},
        "features": {"rows": n, "d": d, "targets": TARGETS, "dtype": "float16", "shards": SHARDS},
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        paths = store(folder, n, d)
        some = np.load(paths[3], mmap_mode="r")[:100]
        error = np.abs(attribute(some, targets) - reference_attribution([some], [targets], [1])).max()
        assert error < 1e-6, error
        results["largest error of a cosine"] = float(error)

        multiply = multiply_rate(d, targets, 1 if options.quick else 10)
        disk = disk_rate(paths)
        forget(paths)
        with Memory() as memory:
            start = time.perf_counter()
            found = attribute(folder, targets, out=folder / "attribution")
            seconds = time.perf_counter() - start
        assert found.shape == (n, TARGETS) and np.isfinite(found[:: max(1, n // 1000)]).all()
        by_multiply, by_disk = n * d * TARGETS / multiply, 2 * n * d / disk
        results |= {
            "multiply, GFLOP/s": round(2 * multiply / 1e9, 1),
            "disk, GB/s": round(disk / 1e9, 2),
            "seconds if the multiply were all": round(by_multiply, 2),
            "seconds if the disk were all": round(by_disk, 2),
            "seconds": round(seconds, 2),
            "rows a second": round(n / seconds),
            "share of the rate that binds": round(max(by_multiply, by_disk) / seconds, 3),
            "memory beside files, MB": round((memory.peak - memory.start) / 1e6, 1),
        }
        del found
    text = json.dumps(results, indent=2)
    print(text)
    if not options.quick:
        (Path(__file__).parent / "attribution.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
