"""Made-up vectors that are crowded and empty in the way that sentence vectors are."""

from __future__ import annotations

import os
import platform
from types import ModuleType
from typing import Any

import numpy as np

from curate.seeding import rng_for


def vectors(n: int, d: int, topics: int = 2000) -> np.ndarray:
    """Return (n, d) float32 rows of length 1: topics of very unequal size in some 64 directions, and noise in all.

    The cosine of two rows of one topic is about 0.6, of two topics about 0 ± 0.1; one row in fifty is a near copy.
    """
    rng = rng_for(0, "vectors")
    shares = 1 / np.arange(1, topics + 1) ** 0.7
    basis = rng.normal(size=(64, d)).astype(np.float32)
    centres = rng.normal(size=(topics, 64)).astype(np.float32) @ basis
    topic = rng.choice(topics, n, p=shares / shares.sum())
    x = np.empty((n, d), dtype=np.float32)
    for at in range(0, n, 10_000):
        rows = topic[at : at + 10_000]
        within = 0.7 * rng.normal(size=(rows.size, 64)).astype(np.float32) @ basis
        x[at : at + rows.size] = centres[rows] + within + 2 * rng.normal(size=(rows.size, d)).astype(np.float32)
    copies = rng.choice(n, n // 50, replace=False)
    x[copies] = x[rng.integers(0, n, copies.size)] + 0.5 * rng.normal(size=(copies.size, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def machine(*libraries: ModuleType) -> dict[str, Any]:
    """Return what the numbers were measured on."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": {library.__name__: library.__version__ for library in libraries},
    }
