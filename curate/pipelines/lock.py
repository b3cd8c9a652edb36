"""One run at a time in a directory.

Locally an operating-system lock on ``.curate/lock``: it is gone when the process is, however it ends.

An object store has no locks, but a write that only one of several can win (``objects.create``; S3 ``If-None-Match``,
Google ``ifGenerationMatch``).  A run takes the next number N and creates ``.curate/lock/N.json``; the highest number
holds the directory.  Numbers only grow, so nothing is ever deleted to take over, and a holder that was cut off for a
while finds a higher number when it comes back, and stops before it writes.

- The holder rewrites its object every 30 s.  Without that for two minutes it counts as dead, by the store's own clock:
  the clocks of the machines play no part.  A process of this machine that is gone is dead at once.
- Whether a store really refuses the second ``create`` is tried out at every start.  Where it does not (a server that
  ignores the condition), the run writes, waits, and reads back whose object stands: of two runs that begin within the
  same second both see the last one's, and the other stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curate.exceptions import RunDirectoryError
from curate.pipelines import objects

if TYPE_CHECKING:
    from curate.pipelines.store import Store

STALE = 120.0
"""Seconds without a sign of life after which a holder counts as dead."""
SETTLE = 2.0
"""Seconds that a store without exclusive writes is given before it is read back."""
CHECK = 3.0
"""A process looks at most this often, in seconds, whether its run still holds the directory; and who takes it over
waits as long, so that workers whom the dead run has left behind have looked."""
_FOLDER = ".curate/lock"
_checked: dict[str, float] = {}
_mine: set[str] = set()
"""Tokens of what this process holds; a run whose store went away could not tell it that it ended."""


@dataclass(frozen=True)
class Lease:
    """What a run shows to say that a directory is its own; workers carry it along."""

    number: int
    token: str = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.number:08d}.json"

    def check(self, store: Store, *, now: bool = False) -> None:
        """Stop a run whose directory another one has taken over; asks the store every ``CHECK`` seconds, or ``now``.

        Raises
        ------
        RunDirectoryError
            If the directory is another run's.
        """
        if not now and time.monotonic() - _checked.get(self.token, -CHECK) < CHECK:
            return
        held = store.read_json(_FOLDER, self.name) or {}
        if _highest(store) != self.number or held.get("token") != self.token:
            raise RunDirectoryError(
                f"{store.root} was taken over by another run: this one gave no sign of life for {STALE:.0f} s. "
                "It stops here; wait for the other one, then run the same command."
            )
        _checked[self.token] = time.monotonic()


def hold(store: Store) -> contextlib.AbstractContextManager[None]:
    """Hold the directory for one run.

    Raises
    ------
    RunDirectoryError
        If another run holds it.
    """
    return _locally(store) if store.local else _remotely(store)


def _who() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


@contextlib.contextmanager
def _locally(store: Store) -> Iterator[None]:
    import fcntl

    with open(store.path(".curate", "lock"), "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            raise _in_use(store, handle.read()) from None
        handle.seek(0)
        handle.truncate()
        handle.write(json.dumps(_who()))
        handle.flush()
        yield


@contextlib.contextmanager
def _remotely(store: Store) -> Iterator[None]:
    who = {**_who(), **_place()}
    token = uuid.uuid4().hex
    _mine.add(token)
    try:
        lease = _acquire(store, who, token)
    except BaseException:
        _mine.discard(token)
        raise
    ended = threading.Event()

    def pulse() -> None:
        while not ended.wait(STALE / 4):
            with contextlib.suppress(
                Exception
            ):  # a beat that fails is followed by others; the writes tell of the cause
                lease.check(store, now=True)
                _write(store, lease, who)

    store.lease = lease
    thread = threading.Thread(target=pulse, daemon=True, name="curate-lock")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        store.lease = None
        _mine.discard(lease.token)
        with contextlib.suppress(Exception):  # the store is gone, or the directory another's: nothing to free
            lease.check(store, now=True)
            _write(store, lease, {**who, "released": True})


def _acquire(store: Store, who: dict[str, Any], token: str) -> Lease:
    probe = store.path(_FOLDER, f"probe-{token}")
    with objects.told(store.path(_FOLDER), "lock"):
        try:
            _make_folder(store)
            store.fs.pipe_file(probe, b"1")
            exclusive = not objects.create(store.fs, probe, b"2")
            held = _highest(store)
            left = _refuse_if_alive(store, held, probe)
            lease = Lease(held + 1, token)
            data = _bytes(lease, who)
            if exclusive:
                won = objects.create(store.fs, store.path(_FOLDER, lease.name), data)
            else:
                store.fs.pipe_file(store.path(_FOLDER, lease.name), data)
                time.sleep(SETTLE)
                won = store.fs.cat_file(store.path(_FOLDER, lease.name)) == data
        except FileNotFoundError as error:
            raise RunDirectoryError(
                f"cannot write {store.root}: {error}. Create the bucket, or choose another --run."
            ) from error
        finally:
            with contextlib.suppress(RunDirectoryError):  # told already, if the store answers nothing
                store.remove_files(_FOLDER, [f"probe-{token}"])
    if not won:
        raise _in_use(store, json.dumps(store.read_json(_FOLDER, lease.name)))
    if left:
        time.sleep(CHECK)
    store.remove_files(_FOLDER, [n for n in store.list(_FOLDER) if n < lease.name])
    return lease


def _make_folder(store: Store) -> None:
    if not set(objects.protocols(store.fs)) & objects.WHOLE:
        store.fs.makedirs(store.path(_FOLDER), exist_ok=True)


def _write(store: Store, lease: Lease, who: dict[str, Any]) -> None:
    store.fs.pipe_file(store.path(_FOLDER, lease.name), _bytes(lease, who))


def _bytes(lease: Lease, who: dict[str, Any]) -> bytes:
    return json.dumps({**who, "token": lease.token, "beat": time.time()}).encode()


def _highest(store: Store) -> int:
    numbers = [n[:-5] for n in store.list(_FOLDER) if n.endswith(".json")]
    return max((int(n) for n in numbers if n.isdigit()), default=0)


def _refuse_if_alive(store: Store, number: int, probe: str) -> bool:
    """Raise if the holder of a number still lives; return whether it died without letting go.

    ``probe`` was written a moment ago, so it tells the store's time.
    """
    name = Lease(number, "").name
    held = store.read_json(_FOLDER, name) if number else None
    if held is None or held.get("released"):
        return False
    if _died_here(held):
        return True
    now, beat = (objects.server_time(store.fs, p) for p in (probe, store.path(_FOLDER, name)))
    silent = now - beat if now is not None and beat is not None else time.time() - held["beat"]
    if silent < STALE:
        raise _in_use(store, json.dumps(held), silent)
    return True


def _place() -> dict[str, str]:
    """Name this boot of this machine and this space of process numbers: where a process number means one process."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return {"boot": f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"}
    except OSError:
        return {}


def _died_here(held: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more, or a run of this one that has ended."""
    if not held.get("boot") or held["boot"] != _place().get("boot"):
        return False
    if held["pid"] == os.getpid():
        return held["token"] not in _mine
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _in_use(store: Store, holder: str, silent: float | None = None) -> RunDirectoryError:
    try:
        held = json.loads(holder)
        by = f" (process {held['pid']} on {held['host']}, since {held['since']})"
    except (ValueError, KeyError, TypeError):
        by = ""
    alive = (
        f" Its last sign of life is {max(0.0, silent):.0f} s old; after {STALE:.0f} s it counts as dead."
        if silent is not None
        else ""
    )
    return RunDirectoryError(
        f"{store.root} is in use by another run{by}. Wait for it, stop it, or choose another --run directory.{alive}"
    )
