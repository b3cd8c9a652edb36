"""One run at a time in a directory of an object store."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curate.exceptions import RunDirectoryError
from curate.pipelines import lock
from curate.pipelines.run import Run
from curate.pipelines.store import Store
from tests.conftest import rows_of
from tests.pipelines.helpers import recipe
from tests.pipelines.s3server import S3Server
from tests.pipelines.test_publish import publish_one

PoolOf = Callable[..., Path]


def test_the_second_run_is_told_who_holds_the_directory(bucket: str, pool_of: PoolOf) -> None:
    store = Store(f"s3://{bucket}/run")
    store.claim("x")
    with (
        store.lock(),
        pytest.raises(
            RunDirectoryError, match=rf"in use by another run \(process {os.getpid()} on .*sign of life is \d s"
        ),
    ):
        Run(recipe(pool_of(rows_of(20))), store.url, "sync", quiet=True).execute()
    with Store(store.url).lock():
        pass
    assert len(store.list(".curate/lock")) == 1


_HOLD = """
import sys
from curate.pipelines.store import Store
with Store(sys.argv[1]).lock():
    print("held", flush=True)
    input()
"""


def test_a_process_of_this_machine_that_was_killed_gives_the_directory_back_at_once(bucket: str) -> None:
    url = f"s3://{bucket}/run"
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(RunDirectoryError, match=rf"process {other.pid} on "), Store(url).lock():
        pass
    other.kill()
    other.communicate()
    with Store(url).lock():
        assert seen_number(url) == 2


def seen_number(url: str) -> int:
    return int(max(n for n in Store(url).list(".curate/lock") if n.endswith(".json"))[:-5])


@pytest.mark.parametrize("clock", [0.0, 1e12])
def test_a_dead_holder_elsewhere_is_told_by_the_store_s_clock(
    clock: float, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE", 2.5)
    store = Store(f"s3://{bucket}/run")
    store.write_json(
        {"pid": 1, "host": "far", "since": "s", "boot": "b", "token": "t", "beat": clock}, ".curate/lock/00000004.json"
    )
    with (
        pytest.raises(RunDirectoryError, match=r"process 1 on far, since s.*after 2 s it counts as dead"),
        store.lock(),
    ):
        pass
    time.sleep(3.6)  # the store tells whole seconds
    with store.lock():
        assert seen_number(store.url) == 5


@pytest.mark.parametrize("conditional", [True, False])
def test_of_many_that_begin_together_one_wins(
    conditional: bool, bucket: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SETTLE", None if conditional else 1.0)  # where the store refuses, nobody waits
    server.conditional = conditional
    go, end = threading.Barrier(6), threading.Event()
    won: list[int] = []
    refused: list[str] = []

    def contend(i: int) -> None:
        store = Store(f"s3://{bucket}/run")
        go.wait()
        try:
            with store.lock():
                won.append(i)
                end.wait(60)
        except RunDirectoryError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend, args=(i,)) for i in range(6)]
    try:
        for thread in threads:
            thread.start()
        while len(won) + len(refused) < 6 and any(t.is_alive() for t in threads):
            time.sleep(0.05)
        assert (len(won), len(refused)) == (1, 5)
        assert all("in use by another run" in text for text in refused)
    finally:
        end.set()
        for thread in threads:
            thread.join()
        server.conditional = True


def test_a_holder_that_lost_the_directory_stops_before_it_writes(bucket: str) -> None:
    store = Store(f"s3://{bucket}/run")
    with store.lock():
        worker = pickle.loads(pickle.dumps(store))
        worker.write_bytes(b"mine", "scores", "a")
        store.write_json({"token": "another"}, ".curate/lock", "00000099.json")
        for each in (store, worker):
            with pytest.raises(RunDirectoryError, match=r"taken over by another run.*It stops here"):
                each.write_bytes(b"late", "scores", "a")
        with pytest.raises(RunDirectoryError, match="taken over"):
            publish_one(store, "A")
    assert Store(store.url).read_bytes("scores", "a") == b"mine"
    assert Store(store.url).read_json(".curate/lock/00000099.json") == {"token": "another"}
