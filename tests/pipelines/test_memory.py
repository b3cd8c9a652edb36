"""Freed memory goes back."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np, psutil
from curate.pipelines.memory import give_back
mib = lambda: psutil.Process().memory_info().rss >> 20
held = [np.ones(2**16) for _ in range(400)]       # 200 MiB in pieces of half a megabyte
wall = [np.ones(2**10) for _ in range(400)]       # and what keeps the top of the heap in use
full = mib()
del held
give_back()
print(full - mib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap is what is given back")
def test_what_was_freed_is_given_back() -> None:
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "PATH": "", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150
