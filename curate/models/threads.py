"""Batches in parallel on a CPU: each thread takes batches of its own.

Threads that share every matrix product wait for each other some hundred times a batch, and where other processes want
the cores too, that costs several times the work itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


def run_batches(tasks: Sequence[Callable[[], None]], *, apart: bool) -> None:
    """Do the tasks; if ``apart``, as many at once as torch has threads, each with a thread."""
    import torch

    threads = torch.get_num_threads()
    if apart and 1 < threads <= len(tasks):
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(lambda task: task(), tasks))
        finally:
            torch.set_num_threads(threads)  # what the workers set is the default of every thread to come
    else:
        for task in tasks:
            task()
