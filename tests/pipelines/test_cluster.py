"""On a real cluster of worker processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curate.exceptions import SchedulerError, StageError
from curate.pipelines.executor import Distributed
from curate.pipelines.run import Run
from tests.conftest import rows_of
from tests.pipelines.helpers import digests, recipe, run


def slow_square(x: int, seconds: float = 0.0) -> tuple[int, int]:
    time.sleep(seconds)
    return x * x, os.getpid()


def fail(x: int) -> int:
    raise ZeroDivisionError(f"shard {x}")


def commit_suicide() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Distributed:
    with Distributed(workers=2) as made:
        yield made  # type: ignore[misc]


def test_tasks_run_in_other_processes_and_all_come_back(cluster: Distributed) -> None:
    results = dict(cluster.map((str(i), slow_square, (i, 0.02)) for i in range(40)))
    assert {int(k): v[0] for k, v in results.items()} == {i: i * i for i in range(40)}
    assert os.getpid() not in {v[1] for v in results.values()} and len({v[1] for v in results.values()}) == 2


def test_few_tasks_are_under_way_at_a_time(cluster: Distributed) -> None:
    taken = 0

    def tasks() -> object:
        nonlocal taken
        for i in range(100):
            taken += 1
            yield str(i), slow_square, (i,)

    for done, _ in enumerate(cluster.map(tasks()), 1):  # type: ignore[arg-type]
        assert taken - done <= 2 * cluster.workers


def test_a_failure_names_its_shard_and_the_cluster_goes_on(cluster: Distributed) -> None:
    with pytest.raises(StageError, match="part-3: ZeroDivisionError: shard 3"):
        list(cluster.map([("part-3", fail, (3,))]))
    assert [r[0] for _, r in cluster.map([("x", slow_square, (3,))])] == [9]


def test_a_task_that_kills_every_worker_it_meets() -> None:
    with (
        Distributed(workers=1) as own,
        pytest.raises(StageError, match=r"bad: the worker processes that tried it died"),
    ):
        list(own.map([("bad", commit_suicide, ())]))


def test_no_scheduler_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SchedulerError, match=f"no Dask scheduler answers at {address} .*dask scheduler"):
        Distributed(address)


def test_an_existing_scheduler_gives_the_same_run(
    cluster: Distributed, pool_of: Callable[..., Path], tmp_path: Path
) -> None:
    pool = pool_of(rows_of(300), 3)
    run(pool, tmp_path / "sync")
    Run(recipe(pool), tmp_path / "cluster", cluster.client.scheduler.address, quiet=True).execute()
    assert digests(tmp_path / "sync", "decisions", "dataset", "provenance") == digests(
        tmp_path / "cluster", "decisions", "dataset", "provenance"
    )


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(workers: int, pool_of: Callable[..., Path], tmp_path: Path) -> None:
    pool = pool_of(rows_of(300), 3)
    run(pool, tmp_path / "sync")
    Run(recipe(pool), tmp_path / "local", workers=workers, quiet=True).execute()
    for what in ("scores", "features", "decisions", "dataset"):
        assert digests(tmp_path / "sync", what) == digests(tmp_path / "local", what)


def test_a_worker_killed_midway_costs_nothing_but_its_shard(pool_of: Callable[..., Path], tmp_path: Path) -> None:
    pool = pool_of(rows_of(600), 2)
    run(pool, tmp_path / "calm", shard_rows=16)
    with Distributed(workers=2) as own:
        events = tmp_path / "run/.curate/events.jsonl"
        killed: list[int] = []

        def assassin() -> None:
            while not events.exists() or events.read_text().count('"done"') < 20:
                time.sleep(0.02)
            pids = list(own.client.run(os.getpid).values())
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

        thread = threading.Thread(target=assassin)
        thread.start()
        Run(recipe(pool, shard_rows=16), tmp_path / "run", own.client.scheduler.address, quiet=True).execute()
        thread.join()
    assert killed
    for what in ("scores", "features", "decisions", "dataset"):
        assert digests(tmp_path / "calm", what) == digests(tmp_path / "run", what)
    starts: dict[tuple[str, str], int] = {}
    for line in events.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "start":
            starts[event["stage"], event["part"]] = starts.get((event["stage"], event["part"]), 0) + 1
    assert sum(n - 1 for n in starts.values()) <= 2  # at most what the dead worker held
