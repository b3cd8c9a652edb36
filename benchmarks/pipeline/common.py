"""What the benchmarks of the pipeline share: the machine, a run as a process of its own, digests of what it left."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
POOL = ROOT / "examples" / "pool"
MODEL = ROOT / "examples" / "model"
RESULTS = ("scores", "features", "decisions", "dataset", "provenance")
PACKAGES = ("numpy", "pyarrow", "polars", "dask", "distributed", "faiss-cpu", "torch", "transformers")


def machine() -> dict[str, Any]:
    """Return what a number depends on: processor, cores, memory, what else was running, versions."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": [round(x, 1) for x in os.getloadavg()],
        "python": platform.python_version(),
        "packages": versions,
    }


def write_recipe(file: Path, document: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


def start(recipe: Path, directory: Path, *options: str, log: Path | None = None) -> subprocess.Popen[str]:
    """Start ``curate run`` as the leader of a process group of its own; what it tells goes to ``log``, or is caught."""
    command = [sys.executable, "-m", "curate.cli", "run", str(recipe), "--run", str(directory), *options]
    cache = str(directory.parent / "cache")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CURATE_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    out: Any = subprocess.PIPE if log is None else log.open("a")
    try:
        where: dict[str, Any] = {"stdout": out, "stderr": subprocess.STDOUT, "cwd": directory.parent, "env": env}
        return subprocess.Popen(command, text=True, start_new_session=True, **where)
    finally:
        if log is not None:
            out.close()


def run(recipe: Path, directory: Path, *options: str) -> dict[str, Any]:
    """Run to the end; return the manifest."""
    job = start(recipe, directory, *options)
    told = job.communicate()[0]
    if job.returncode:
        raise SystemExit(f"the run failed with exit code {job.returncode}:\n{told}")
    return json.loads((directory / "manifest.json").read_text())


def digests(directory: Path) -> dict[str, str]:
    """Return the content hash of every file that is a result, by its path in the run."""
    return {
        str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest()
        for part in RESULTS
        for p in sorted((directory / part).rglob("*"))
        if p.is_file()
    }


def save(name: str, results: dict[str, Any]) -> None:
    (HERE / name).write_text(json.dumps(results, indent=1) + "\n")
    print(f"saved {name}", flush=True)
