"""A program that nobody has read, run with its tests where it can do no harm.

    run(program, tests, limits) → pass | fail | timeout | memory | crash

Each run is a process of its own (``curate.verifiers.inside``): a fresh interpreter without site packages, an empty
environment, an empty folder to stand in, a session of its own, standard output and error into nothing, and these
guards, set before the program is read:

============  ========================================================================================================
time          CPU seconds by the kernel, and seconds on the clock by us; then the whole process group is killed
memory        address space; what is asked beyond it raises MemoryError
processes     none can be started, nor a thread or another program; no signal reaches any        (seccomp)
network       no socket can be made                                                             (seccomp)
files         none can be written, made or removed; only Python's own and the system's libraries can be read (Landlock)
rights        capabilities are given up, and nothing can win them back: also when curate runs as root
============  ========================================================================================================

Seccomp and Landlock are Linux's (5.13 or later, x86-64 and arm64).  Where one is not there a hook of the interpreter
stands in, which stops code that means no harm and not code that does; ``Outcome.guards`` says which it was, and a
warning does, once.  Without POSIX limits nothing is run.

That the tests were reached and passed is known by a random word that the process is told and writes last, so an early
exit, whatever its status, is no pass.

What this does not stop
-----------------------
* A program that sets out to fool its tests.  Both live in one interpreter, where it may redefine what the tests call,
  return objects that equal everything, or find the word in a frame of the caller and write it itself.  The guards
  protect the machine, not the score, from malice; what models write to solve a task does none of this.
* Reading what every program of the system may read in /usr and in Python's own folders, and burning the CPU seconds
  that it is given.
* A flaw of the kernel or of the interpreter.  Whoever fears that runs curate in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from curate.exceptions import InputError, StageError

log = logging.getLogger(__name__)

Result = Literal["pass", "fail", "timeout", "memory", "crash"]
_SCRIPT = Path(__file__).with_name("inside.py")
_MOST = 2**16  # bytes of a report that are read


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    seconds: float = 5.0
    """CPU seconds."""
    wall: float = 30.0
    """Seconds on the clock: for programs that wait.  Longer than ``seconds``, as a busy machine is no failure."""
    memory: int = 512
    """MiB of address space; an interpreter that does nothing takes about 30."""

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.wall > 0 and self.memory >= 64):
            raise InputError(
                f"limits of a program: seconds={self.seconds}, wall={self.wall}, memory={self.memory}; times above 0 "
                "and at least 64 MiB were asked."
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program fared."""

    result: Result
    detail: str = ""
    """Which error, by which signal: one line."""
    guards: dict[str, str] = field(default_factory=dict)
    """"processes", "network" and "files" → "kernel" or "interpreter": what held them back."""


def run(program: str, tests: str, limits: Limits | None = None, *, kernel: bool = True) -> Outcome:
    """Run a program and, in the same names, its tests.

    Parameters
    ----------
    program, tests : Python.  The tests raise (``assert``) where the program is wrong.
    kernel : let Linux guard; False tries the interpreter's hook instead.

    Raises
    ------
    StageError
        If the system has no POSIX limits, or no process can be started.
    """
    if os.name != "posix":
        raise StageError(f"code cannot be run safely on {sys.platform}: it has no POSIX limits; leave run_code off.")
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    seconds = max(1, -int(-limits.seconds // 1))
    task = {
        "program": program,
        "tests": tests,
        "nonce": nonce,
        "kernel": kernel,
        "limits": [
            ("RLIMIT_CPU", seconds, seconds + 1),
            ("RLIMIT_AS", limits.memory << 20, limits.memory << 20),
            ("RLIMIT_FSIZE", 0, 0),
            ("RLIMIT_NOFILE", 64, 64),
            ("RLIMIT_NPROC", 0, 0),
        ],
    }
    with tempfile.TemporaryDirectory(prefix="curate-") as folder, tempfile.TemporaryFile() as given:
        given.write(json.dumps(task).encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(_SCRIPT)],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={},
                start_new_session=True,
            )
        except OSError as error:
            raise StageError(f"no process can be started to run code in: {error}; leave run_code off.") from error
        try:
            report, late = _read(process, limits.wall)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    outcome = _outcome(report, nonce, process.returncode, late)
    _tell(outcome.guards)
    return outcome


def _read(process: subprocess.Popen[bytes], wall: float) -> tuple[bytes, bool]:
    """Return what the process reports until it has finished, and whether time ran out before that."""
    assert process.stdout is not None
    report, deadline = b"", time.monotonic() + wall
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(report) < _MOST and report.count(b"\n") < 2:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return report, True
            piece = os.read(process.stdout.fileno(), _MOST)
            if not piece:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)  # its own status tells more than that of our kill
                break
            report += piece
    return report, False


def _outcome(report: bytes, nonce: str, status: int, late: bool) -> Outcome:
    first, _, rest = report.partition(b"\n")
    guards = _parsed(first).get("guards", {})
    if not isinstance(guards, dict) or not guards:
        raise StageError(f"the sandbox did not start (status {status}); leave run_code off, or mend its interpreter.")
    found = _parsed(rest.partition(b"\n")[0])
    result, detail = found.get("result"), str(found.get("detail", ""))
    if late:
        return Outcome("timeout", "its time on the clock ran out", guards)
    if result == "pass" and detail == nonce:
        return Outcome("pass", "", guards)
    if result in ("fail", "memory"):
        return Outcome(result, " ".join(detail.split())[:300], guards)
    if status == -signal.SIGXCPU:
        return Outcome("timeout", "its CPU seconds ran out", guards)
    ended = f"by signal {-status}" if status < 0 and status != -signal.SIGKILL else "before its tests were over"
    return Outcome("crash", f"it ended {ended}", guards)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _tell(guards: dict[str, str]) -> None:
    weak = sorted(what for what, by in guards.items() if by != "kernel")
    if weak:
        _warn(", ".join(weak))


@functools.cache
def _warn(weak: str) -> None:
    log.warning(
        "code is run with %s held back by the interpreter alone, not by the kernel: enough for accidents, not for "
        "malice.",
        weak,
    )
