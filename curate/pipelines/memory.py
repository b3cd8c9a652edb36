"""Freed memory goes back to the system where a stage ends, so that the peak of one does not stand under the next."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import pyarrow as pa


def give_back() -> None:
    """Release what Arrow's pool and, where it is glibc's, the heap hold without need.  Milliseconds.

    Arrays of a few megabytes, a million rows of one column, are too small for the allocator to map apart, so without
    this they stay with the process when they are freed.
    """
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no such thing
            ctypes.CDLL(None).malloc_trim(0)
