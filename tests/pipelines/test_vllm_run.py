"""Runs whose scores come from a real vLLM engine inside a Dask worker; none leaves a process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import yaml

from curate.exceptions import ModelError
from tests.conftest import rows_of
from tests.engines import PYTHON, gone, hosts, needs_vllm, wait_until
from tests.pipelines.helpers import run


def scorers(model: str, **backend: Any) -> dict[str, dict[str, Any]]:
    spec = {"use": "vllm", "python": PYTHON, "batch_tokens": 2048, **backend}
    return {name: {"use": name, "model": model, "backend": spec} for name in ("likelihood", "ifd")}


def recipe_file(folder: Path, pool: Path, model: str) -> Path:
    document = {
        "name": "engine",
        "sources": [{"path": str(pool)}],
        "scorers": scorers(model),
        "select": [{"use": "top-k", "on": "ifd", "budget": "50%"}],
        "execution": {"shard_rows": 16, "workers": 1},
        "report": False,
    }
    path = folder / "engine.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def command(recipe: Path, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "curate.cli", "run", str(recipe), "--run", str(directory)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def scores(directory: Path, name: str) -> pl.DataFrame:
    (folder,) = (directory / "scores").glob(f"{name}-*")
    return pl.read_parquet(folder / "*.parquet").sort("id")


@needs_vllm
def test_a_worker_that_is_killed_takes_its_engine_along_and_the_run_goes_on(
    pool_of: Any, example_model: str, tmp_path: Path
) -> None:
    pool = pool_of(rows_of(60))
    process = command(recipe_file(tmp_path, pool, example_model), tmp_path / "run")
    try:
        wait_until(lambda: hosts(process.pid))
        (first,) = hosts(process.pid)
        worker = first.parent()
        assert worker is not None and worker.pid != process.pid
        worker.kill()
        wait_until(lambda: gone([first]), seconds=20)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "likelihood + ifd: 60/60 rows" in err
    assert not hosts()

    theirs = run(pool, tmp_path / "plain", scorers=plain(example_model), select=[])
    for name in ("likelihood", "ifd"):
        a, b = scores(tmp_path / "run", name), scores(Path(theirs.store.root), name)
        assert a["id"].equals(b["id"]) and a["tokens"].equals(b["tokens"])
        np.testing.assert_allclose(a[a.columns[1]].to_numpy(), b[b.columns[1]].to_numpy(), rtol=1e-3, atol=1e-3)
    manifest = yaml.safe_load((tmp_path / "run/manifest.json").read_text())
    (engine,) = manifest["stages"]["likelihood"]["engines"]
    assert engine["backend"].startswith("vllm 0.") and engine["dtype"] == "float32" and engine["template"] == "chat"


def plain(model: str) -> dict[str, dict[str, Any]]:
    return {name: {"use": name, "model": model, "device": "cpu"} for name in ("likelihood", "ifd")}


@needs_vllm
def test_ctrl_c_leaves_no_engine(pool_of: Any, example_model: str, tmp_path: Path) -> None:
    process = command(recipe_file(tmp_path, pool_of(rows_of(60)), example_model), tmp_path / "run")
    try:
        wait_until(lambda: hosts(process.pid))
        below = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal sends; the engine has a group of its own
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    wait_until(lambda: gone(below), seconds=20)


@needs_vllm
def test_a_run_that_fails_leaves_no_engine(pool_of: Any, example_model: str, tmp_path: Path) -> None:
    """Here because the engine does not start: heads that three do not divide."""
    with pytest.raises(ModelError, match="divisible by tensor parallel size"):
        run(pool_of(rows_of(20)), tmp_path / "run", scorers=scorers(example_model, tensor_parallel=3), select=[])
    assert not hosts()


def test_vllm_that_is_not_there_stops_the_run_before_it_reads(pool_of: Any, example_model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"scorer 'likelihood': likelihood asks for the backend vllm, but there is no"):
        run(pool_of(rows_of(20)), tmp_path / "run", scorers=scorers(example_model, python="/no/such"), select=[])
    assert not (tmp_path / "run/examples").exists()
