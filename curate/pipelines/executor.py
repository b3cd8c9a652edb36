"""Runs tasks: in this process, on a local cluster of worker processes, or on a Dask scheduler that is already there.

A task is ``function(*args)`` over the path of one shard; workers read and write files themselves, so only small results
travel.  At most two tasks per worker are under way at a time, which keeps memory flat however many shards there are.
A task may be run again after its worker died: tasks are pure, and files appear whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from curate.exceptions import CurateError, SchedulerError, StageError

Task = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""(name, function, arguments)"""

_ON_CTRL_C = "import signal; signal.signal(signal.SIGINT, lambda *_: None)"
"""A terminal sends Ctrl-C to the workers too; they leave it to the run, which ends them."""


class Executor(ABC):
    """Runs tasks and yields (name, result) as they finish."""

    workers: int = 1

    @abstractmethod
    def map(self, tasks: Iterable[Task], *, model: bool = False) -> Iterator[tuple[str, Any]]:
        """Run the tasks; the first failure stops the rest and raises.

        Tasks that hold a ``model`` go to workers that offer a GPU, where there are any.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the workers."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Synchronous(Executor):
    """One task after another, in this process: for debugging, and for very small pools."""

    def map(self, tasks: Iterable[Task], *, model: bool = False) -> Iterator[tuple[str, Any]]:
        for name, function, args in tasks:
            yield name, _guard(name, function, *args)

    def close(self) -> None:
        from curate.pipelines.worker import close_scorers

        close_scorers()


def _guard(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run a task; name the shard in whatever goes wrong."""
    try:
        return function(*args)
    except CurateError as error:
        if isinstance(error, StageError):
            raise StageError(f"{name}: {error}") from error
        raise
    except MemoryError as error:
        raise StageError(
            f"{name}: out of memory; lower execution.shard_rows or the number of workers, then run again."
        ) from error
    except Exception as error:
        raise StageError(f"{name}: {type(error).__name__}: {error}") from error


class Distributed(Executor):
    """A Dask cluster: local worker processes, or the scheduler at ``address``.

    On a machine with GPUs the first local workers have one each, which is all they see, and offer it as the Dask
    resource ``GPU``; on a cluster of your own, start such workers with ``dask worker --resources GPU=1``.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, gpus: int | None = None) -> None:
        import dask
        from distributed import Client, LocalCluster

        # Model engines start child processes, which a daemonic worker may not.
        dask.config.set(
            {
                "distributed.worker.daemon": False,
                "distributed.scheduler.allowed-failures": 3,
                "distributed.comm.timeouts.connect": "10s",
                "distributed.worker.memory.target": False,
                "distributed.worker.memory.spill": False,
                "distributed.worker.memory.pause": False,
                "distributed.worker.memory.terminate": False,
                # Dask would have the allocator give every freed tensor back to the system at once, which then hands out
                # zeroed pages for the next one: a third of the processor time of scoring with a language model.
                "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
                # Every shape of a bfloat16 product keeps its kernels and buffers, and sorted batches hardly ever repeat
                # one: 1,024 of them, the default, are a gigabyte.
                "distributed.nanny.pre-spawn-environ.ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
                "distributed.nanny.pre-spawn-environ.LRU_CACHE_CAPACITY": "16",
            }
        )
        for noisy in (
            "distributed",
            "distributed.nanny",
            "distributed.scheduler",
            "distributed.worker",
            "distributed.core",
        ):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        self._cluster: LocalCluster | None = None
        if address is None:
            devices = visible_gpus() if gpus is None else visible_gpus()[:gpus]
            workers = max(workers or usable_cores(), len(devices))
            threads = max(1, usable_cores() // workers)
            with _environment(
                OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false", POLARS_MAX_THREADS=str(threads)
            ):
                try:
                    self._cluster = LocalCluster(
                        n_workers=0 if devices else workers,
                        threads_per_worker=1,
                        processes=True,
                        memory_limit=0,
                        dashboard_address="127.0.0.1:0",  # any free port: two runs on one machine do not meet
                        host="127.0.0.1",
                        silence_logs=logging.CRITICAL,
                        preload=_ON_CTRL_C,
                        **({"env": {"CUDA_VISIBLE_DEVICES": ""}} if gpus == 0 else {}),
                    )
                    self._client = Client(self._cluster, timeout="60s")
                    if devices:
                        _start_beside_gpus(self._cluster, workers, devices)
                        self._client.wait_for_workers(workers, timeout=60)
                except (OSError, TimeoutError, RuntimeError) as error:
                    raise SchedulerError(
                        f"a local cluster of {workers} worker processes could not be started "
                        f"({str(error).rstrip('.')}). "
                        "Try --workers 1, or --scheduler sync; a script must call curate under "
                        "'if __name__ == \"__main__\":', because worker processes import it again."
                    ) from error
        else:
            try:
                self._client = Client(address, timeout="10s")
            except (OSError, TimeoutError, ValueError) as error:
                raise SchedulerError(
                    f"no Dask scheduler answers at {address} ({type(error).__name__}). Start one with 'dask "
                    "scheduler' and workers with 'dask worker', or leave --scheduler out for a local cluster."
                ) from error
        info = self._client.scheduler_info(n_workers=-1)
        self.workers = len(info["workers"])
        self.gpu_workers = sum(1 for w in info["workers"].values() if (w.get("resources") or {}).get("GPU", 0) >= 1)
        if address is not None and self.workers == 0:
            self._client.close()
            raise SchedulerError(f"the scheduler at {address} has no workers; start some with 'dask worker {address}'.")

    @property
    def client(self) -> Any:
        return self._client

    def map(self, tasks: Iterable[Task], *, model: bool = False) -> Iterator[tuple[str, Any]]:
        from distributed import as_completed
        from distributed.client import FutureCancelledError
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        queue = iter(tasks)
        resources = {"GPU": 1} if model and self.gpu_workers else None
        at_once = 2 * max(1, self.gpu_workers if resources else self.workers)
        running: dict[Any, str] = {}
        done = as_completed()
        failed = False

        def submit() -> None:
            for name, function, args in queue:
                future = self._client.submit(_guard, name, function, *args, pure=False, retries=0, resources=resources)
                running[future] = name
                done.add(future)
                return

        try:
            for _ in range(at_once):
                submit()
            while running:
                future = next(done)
                name = running.pop(future)
                result = future.result()
                future.release()
                submit()
                yield name, result
        except KilledWorker as error:
            failed = True
            raise StageError(
                f"{name}: the worker processes that tried it died (most often: out of memory). Lower "
                "execution.shard_rows "
                "or the number of workers, then run again: finished shards are kept."
            ) from error
        except (FutureCancelledError, CommClosedError, TimeoutError) as error:
            failed = True
            raise SchedulerError(
                f"the Dask scheduler went away while {len(running) + 1} shards were under way "
                f"({type(error).__name__}). "
                "Run the same command again: finished shards are kept."
            ) from error
        except BaseException:
            failed = True
            raise
        finally:
            if failed or running:
                with contextlib.suppress(Exception):
                    self._client.cancel(list(running), force=True)

    def close(self) -> None:
        from curate.pipelines.worker import close_scorers

        with contextlib.suppress(Exception):
            if self._client.status == "running":
                self._client.run(close_scorers)
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)
        if self._cluster is not None:
            with contextlib.suppress(Exception):
                self._cluster.close(timeout=10)


def _start_beside_gpus(cluster: Any, workers: int, devices: list[str]) -> None:
    """Start the workers of a cluster that has none: one a GPU, which sees that one only, then those without."""
    plain = cluster.new_spec
    for i in range(workers):
        own = {"env": {"CUDA_VISIBLE_DEVICES": devices[i]}, "resources": {"GPU": 1}} if i < len(devices) else {}
        cluster.new_spec = {**plain, "options": {**plain["options"], **own}}
        cluster.scale(i + 1)


def visible_gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs that this process may use: what CUDA_VISIBLE_DEVICES says, or all."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip() not in ("", "-1")]
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        told = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(line for line in told.splitlines() if line.startswith("GPU "))]


def usable_cores() -> int:
    """Cores that this process may use (its CPU set, not the machine's count)."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:
        return max(1, os.cpu_count() or 1)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables that are not set, for the processes started inside; put things back after."""
    added = [k for k in values if k not in os.environ]
    os.environ.update({k: values[k] for k in added})
    try:
        yield
    finally:
        for k in added:
            os.environ.pop(k, None)


def executor(scheduler: str | None, workers: int | None, gpus: int | None = None) -> Executor:
    """Return the executor that ``--scheduler`` names: None or "local", "sync", or an address."""
    if scheduler == "sync":
        return Synchronous()
    return Distributed(None if scheduler in (None, "local") else scheduler, workers, gpus)
