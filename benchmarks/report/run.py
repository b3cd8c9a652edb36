"""The report of a large run: seconds, memory, size.

    python benchmarks/report/run.py                     # 1,000,000 rows; writes results.json
    python benchmarks/report/run.py --rows 20000        # a look; saves nothing unless --save
    python benchmarks/report/run.py --dir /big/disk     # keeps the pool and the run there, and uses them again

The pool is that of ``benchmarks/pipeline``.  A run reads it, takes a score from a column and n-gram vectors from the
texts, and selects in two steps, the second with clusters.  Then ``curate report`` writes the page, as a process of its
own.  Checked before anything is timed: on a small pool, the numbers on the page are those that Polars counts in
``decisions/``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "pipeline"))

from common import ROOT, machine, run, write_recipe  # noqa: E402
from throughput import make_pool, tree  # noqa: E402


def recipe(pool: Path, file: Path) -> Path:
    document = {
        "name": "report",
        "sources": [{"path": f"{pool}/*.parquet"}],
        "scorers": {
            "rating": {"use": "column", "column": "rating", "higher_is_better": True},
            "ngrams": {"use": "hashed-ngrams", "dim": 32},
        },
        "select": [
            {"use": "threshold", "on": "rating", "min": 0.05},
            {"use": "kmq", "features": "ngrams", "quality": "rating", "clusters": 64, "budget": "10%"},
        ],
        "report": False,
    }
    return write_recipe(file, document)


def finished(folder: Path, rows: int) -> Path:
    """Return a finished run over ``rows`` rows, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    directory = folder / f"run-{rows}"
    if not (directory / "decisions").exists():
        pool = folder / f"pool-{rows}"
        if not pool.exists():
            make_pool(pool, rows)
        run(recipe(pool, folder / f"recipe-{rows}.yaml"), directory, "--workers", "2")
    return directory


def report(directory: Path) -> dict[str, Any]:
    """Write the report as a process of its own; return seconds, peak memory of all its processes, bytes."""
    command = [sys.executable, "-m", "curate.cli", "report", str(directory)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    root = psutil.Process(job.pid)
    peak = 0
    while job.poll() is None:
        try:
            peak = max(peak, tree(root)[0])
        except psutil.Error:
            break
        time.sleep(0.1)
    told = job.communicate()[0]
    if job.returncode:
        raise SystemExit(f"the report failed:\n{told}")
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "peak_tree_mib": round(peak / 2**20),
        "bytes": (directory / "report.html").stat().st_size,
    }


def check(directory: Path) -> None:
    """Compare the counts on the page with the ledger's."""
    ledger = pl.read_parquet(f"{directory}/decisions/*.parquet")
    page = (directory / "report.html").read_text(encoding="utf-8")
    for decision, n in ledger.group_by("decision").len().iter_rows():
        assert f">{n:,} <small>" in page, f"{n:,} rows {decision} are not on the page"
    for (stage,), rows in ledger.filter(decision="dropped").group_by("stage"):
        assert f"{rows.height:,} by {stage}" in page, f"{rows.height:,} rows dropped by {stage} are not on the page"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dir", help="where pool and run are made; a temporary folder if not given")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="curate-report-") as temporary:
        folder = Path(args.dir or temporary)
        small = finished(folder, 5_000)
        report(small)
        check(small)
        directory = finished(folder, args.rows)
        results: dict[str, Any] = {"machine": machine(), "rows": args.rows, "runs": []}
        for _ in range(args.repeats):
            results["runs"].append(report(directory))
            print(json.dumps(results["runs"][-1]), flush=True)
        check(directory)
        manifest = json.loads((directory / "manifest.json").read_text())
        results["decisions"] = manifest["decisions"]
        results["parts"] = len(list((directory / "examples").iterdir()))
    if args.save or args.rows == 1_000_000:
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        print("saved results.json")


if __name__ == "__main__":
    main()
