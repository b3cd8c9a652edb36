"""Code that means harm, run for real: each program must fail to do it, and the test process must be there to see."""

from __future__ import annotations

import errno
import logging
import os
import struct
import sys
import threading
from pathlib import Path

import pytest

from curate.exceptions import InputError, StageError
from curate.verifiers import sandbox
from curate.verifiers.inside import _REFUSED, filter_of
from curate.verifiers.sandbox import Limits, Outcome, run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX limits")
SHORT = Limits(seconds=1, wall=60, memory=256)


@pytest.fixture(params=["kernel", "interpreter"], scope="module")
def attempt(request):
    """Run with the guards of the kernel, and with those of the interpreter."""
    by_kernel = request.param == "kernel"
    if by_kernel and set(run("", "").guards.values()) != {"kernel"}:
        pytest.skip("this system has no seccomp or no Landlock")

    def go(program: str, tests: str = "", limits: Limits = SHORT) -> Outcome:
        return run(program, tests, limits, kernel=by_kernel)

    go.by = request.param
    return go


def test_programs_pass_and_fail_by_their_tests(attempt):
    assert attempt("def f(x):\n    return x + 1", "assert f(1) == 2").result == "pass"
    assert attempt("def f(x):\r\n    return x + 1", "assert f(1) == 2").result == "pass"
    wrong = attempt("def f(x):\n    return x", "assert f(1) == 2, 'one more'")
    assert (wrong.result, wrong.detail) == ("fail", "tests: AssertionError: one more")
    assert attempt("def f(:", "").detail.startswith("program: SyntaxError")
    assert attempt("import sys\nsys.exit(0)", "").detail == "program: SystemExit: 0"
    assert attempt("", "f(1)").detail == "tests: NameError: name 'f' is not defined"
    libraries = "import math, re, decimal, random, datetime, hashlib, json, typing, statistics, zoneinfo, heapq"
    assert attempt(libraries, "assert math.pi").result == "pass"
    assert attempt("import numpy", "").detail == "program: ModuleNotFoundError: No module named 'numpy'"
    assert set(attempt("", "").guards.values()) == {attempt.by}


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import atexit, os\natexit.register(lambda: os._exit(0))\nraise SystemExit",
        "def f(): raise SystemExit(0)",
        "def f(): raise KeyboardInterrupt",
        'print(\'pass\'); import os\nfor fd in range(64):\n  try: os.write(fd, b\'{"result": "pass", "detail": ""}\\n\')\n'
        "  except OSError: pass",
        "import os\nos.closerange(0, 64)",
        "import builtins\nbuiltins.AssertionError = ValueError",
        "import os\nos._exit = os.write = print\ndef f(): raise SystemExit",
        "class E(Exception):\n  def __str__(self): raise self\ndef f(): raise E",
        "import signal\nsignal.alarm(1)\nwhile True: signal.pause()",
        "import ctypes; ctypes.string_at(0)",
        "def f(): return f()",
    ],
)
def test_what_ends_before_its_tests_is_no_pass(attempt, program):
    assert attempt(program, "f()\nassert 0").result in ("fail", "crash")


def test_time_runs_out():
    noisy = run("while True: print('x' * 10**6)", "", SHORT)  # into nothing: no byte of it is kept
    assert (noisy.result, noisy.detail) == ("timeout", "its CPU seconds ran out")
    waits = run("import time\ntime.sleep(60)", "", Limits(seconds=5, wall=0.5))
    assert (waits.result, waits.detail) == ("timeout", "its time on the clock ran out")
    stubborn = run("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "", SHORT)
    assert stubborn.result in ("crash", "timeout")  # a handler buys a second, and no more


def test_memory_runs_out(attempt):
    if sys.platform != "linux":
        pytest.skip("no limit of the address space")
    for program in ("x = 'a' * 10**12", "x = []\nwhile True: x.append('a' * 10**6)", "x = bytearray(2**30)"):
        assert attempt(program).result == "memory"


def test_no_process_can_be_started(attempt):
    for program in (
        "import os\nwhile True: os.fork()",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
        "import os\nos.posix_spawn('/bin/sh', ['sh'], {})",
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])",
        "import os\nassert os.system('true') == 0",
        "import multiprocessing as m\nm.Process(target=print).start()",
    ):
        outcome = attempt(program, "")
        assert outcome.result == "fail", (program, outcome)


def test_files_are_neither_written_nor_removed(attempt, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    before = kept.stat()
    for program in (
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'r+').truncate(0)",
        f"import os\nos.truncate({str(kept)!r}, 0)",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.rename({str(kept)!r}, {str(tmp_path / 'new')!r})",
        f"import os\nos.chmod({str(kept)!r}, 0)",
        f"import os\nos.utime({str(kept)!r}, (0, 0))",
        f"import os\nos.mkdir({str(tmp_path / 'new')!r})",
        f"import os\nos.symlink('/', {str(tmp_path / 'new')!r})",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        "open('here', 'w').write('x')",
        "import tempfile\ntempfile.NamedTemporaryFile()",
    ):
        assert attempt(program).result == "fail", program
    assert kept.read_text() == "as it was" and list(tmp_path.iterdir()) == [kept]
    assert (kept.stat().st_mode, kept.stat().st_mtime) == (before.st_mode, before.st_mtime)


def test_the_network_is_out_of_reach(attempt):
    for program in (
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "import _socket\n_socket.socket()",
    ):
        outcome = attempt(program)
        assert outcome.result == "fail" and "refused" not in outcome.detail.replace("is refused here", ""), outcome


def test_no_signal_reaches_the_parent(attempt):
    for call in ("os.kill(os.getppid(), 9)", "os.killpg(0, 9)", "os.kill(-1, 9)", "os.kill(os.getpid(), 9)"):
        assert attempt(f"import os\n{call}").result == "fail"


def test_the_environment_is_empty(attempt, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    found = attempt("import os\nassert 0, sorted(os.environ)")
    assert "SECRET" not in found.detail and "PATH" not in found.detail
    assert attempt("import os, sys\nassert 0, (sys.argv[1:], os.listdir('.'))").detail.endswith("([], [])")


def test_the_kernel_hides_other_files(attempt, tmp_path):
    if attempt.by != "kernel":
        pytest.skip("the interpreter's hook lets files be read, as the docstring says")
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    for program in (
        f"open({str(secret)!r}).read()",
        "open('/etc/passwd').read()",
        "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
        "import os\nos.listdir('/')",
        f"import os\nos.listdir({str(Path.home())!r})",
    ):
        assert attempt(program).detail.startswith("program: PermissionError"), program


def test_rights_cannot_be_won_back(attempt):
    if attempt.by != "kernel":
        pytest.skip("kernel")
    calls = ["mount(b'none', b'/', b'tmpfs', 0, None)", "unshare(0x10000000)", "chroot(b'.')", "setns(0, 0)"]
    for call in (*calls, "ptrace(16, 1, 0, 0)", "syscall(434, 1, 0)", "fcntl(0, 8, 1)"):
        outcome = attempt(f"import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nr = c.{call}\nassert 0, "
                          "(r, ctypes.get_errno())")  # fmt: skip
        assert outcome.detail == f"program: AssertionError: (-1, {errno.EPERM})", call
    raised = attempt("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))")
    assert raised.result == "fail"


def test_runs_are_apart_and_may_run_side_by_side():
    found: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(run(f"x = {i}", f"assert x == {i % 2}", SHORT)))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(o.result for o in found) == ["fail", "fail", "pass", "pass"]


def test_weak_guards_are_told_once(caplog):
    sandbox._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        run("", "", SHORT, kernel=False)
        run("", "", SHORT, kernel=False)
    told = [record.getMessage() for record in caplog.records if "held back" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("code is run with files, network, processes held back by the interp")


def test_limits_and_systems_that_cannot_be_meant(monkeypatch):
    for wrong in ({"seconds": 0}, {"wall": -1}, {"memory": 8}, {"seconds": float("nan")}):
        with pytest.raises(InputError, match="times above 0 and at least 64 MiB were asked"):
            Limits(**wrong)
    monkeypatch.setattr(sandbox.sys, "executable", "/nowhere/python")
    with pytest.raises(StageError, match="no process can be started to run code in"):
        run("", "")


def test_a_sandbox_that_does_not_start_is_no_failed_program(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/true")
    with pytest.raises(StageError, match=r"the sandbox did not start \(status 0\)"):
        run("", "")


@pytest.mark.parametrize(("machine", "column", "arch"), [("x86_64", 0, 0xC000003E), ("aarch64", 1, 0xC00000B7)])
def test_the_filter_refuses_what_it_lists_and_nothing_else(machine, column, arch):
    """The filter by hand: classic BPF has few instructions, and a loop over them says what the kernel would."""
    code = filter_of(machine)
    instructions = [struct.unpack_from("<HBBI", code, at) for at in range(0, len(code), 8)]

    def decide(number: int, second: int = 0, architecture: int = arch) -> int:
        data = struct.pack("<IIQQQ", number, architecture, 0, 0, second)
        at = value = 0
        while True:
            kind, yes, no, k = instructions[at]
            at += 1
            if kind == 0x06:
                return k
            if kind == 0x20:
                value = struct.unpack_from("<I", data, k)[0]
            else:
                at += yes if (value == k if kind == 0x15 else value >= k) else no

    allowed, refused = 0x7FFF0000, 0x00050000 | errno.EPERM
    numbers = {pair[column] for pair in _REFUSED.values()} - {None}
    fcntl = (72, 25)[column]
    for number in range(600):
        expected = refused if number in numbers else 0x00050000 | errno.ENOSYS if number == 435 else allowed
        assert decide(number) == expected, number
    assert [decide(fcntl, command) for command in (1, 2, 8, 10, 15)] == [allowed, allowed, refused, refused, refused]
    assert decide(0, architecture=0x40000003) == 0x80000000  # 32-bit calls have other numbers: the process ends
    if machine == "x86_64":
        assert decide(0x40000000 + 41) == refused
