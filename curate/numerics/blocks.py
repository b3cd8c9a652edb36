"""Work on blocks of rows by several threads, whose number decides when a block is computed and never what comes out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Blocks:
    """Runs a function over blocks on several threads, each with BLAS to itself on one thread.

    ``threads`` is how many; when None, as many as BLAS was given, times ``share``: 2 where blocks wait for a disk.
    """

    def __init__(self, threads: int | None, *, share: int = 1) -> None:
        self._threads = threads
        self._share = share

    def __enter__(self) -> Blocks:
        from threadpoolctl import ThreadpoolController

        libraries = ThreadpoolController()
        given = [library["num_threads"] for library in libraries.info() if library["user_api"] == "blas"]
        self._limits = libraries.limit(limits=1, user_api="blas")
        self._pool = ThreadPoolExecutor(self._threads or self._share * max(given, default=1))
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._limits.restore_original_limits()

    def run(self, one: Callable[[int], None], starts: range) -> None:
        for _ in self._pool.map(one, starts):
            pass  # map raises here what a block raised
