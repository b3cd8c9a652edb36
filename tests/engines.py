"""Where the tests find a vLLM: CURATE_VLLM_PYTHON names the interpreter (scripts/vllm-cpu-env.sh makes one)."""

from __future__ import annotations

import os
import time

import psutil
import pytest

PYTHON = os.environ.get("CURATE_VLLM_PYTHON", "")
REQUIRED = os.environ.get("CURATE_REQUIRE_VLLM") == "1"

needs_vllm = pytest.mark.skipif(
    not PYTHON and not REQUIRED, reason="CURATE_VLLM_PYTHON names no interpreter with vLLM (scripts/vllm-cpu-env.sh)"
)


def hosts(of: int | None = None) -> list[psutil.Process]:
    """Return the engines that run, those below the process ``of`` only."""
    among = psutil.process_iter() if of is None else psutil.Process(of).children(recursive=True)
    out = []
    for process in among:
        try:
            if any(word.endswith("vllm_host.py") for word in process.cmdline()):
                out.append(process)
        except psutil.Error:
            continue
    return out


def wait_until(true: object, seconds: float = 90.0) -> None:
    """Wait until ``true()`` is; fail when it takes too long."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
