"""What runs inside the sandbox: a script of its own, in a process of its own, that imports nothing of curate.

It reads a task from standard input, gives up every right that it does not need, runs the program, then its tests, and
writes two lines of JSON to what was its standard output: what guards it, and how it went.  All else that is printed
goes nowhere.  ``curate.verifiers.sandbox`` starts it and says what it does and does not stop.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from typing import Any

# -- system calls that are refused (number on x86-64, on arm64; None where it does not exist there) --------------------

_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),  # threads, too
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "prlimit64": (302, 261),
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # What Landlock does not know of: changes of files that can only be read.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
_FCNTL, _CLONE3 = (72, 25), 435
_SET_OWNER = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: a signal to whoever is named
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_NUMBER, _ARCHITECTURE, _SECOND = 0, 4, 24  # offsets into seccomp_data; of an argument the low half


def filter_of(machine: str) -> bytes:
    """Return the seccomp filter of an architecture, as instructions of classic BPF: (code, if true, if not, value)."""
    column, architecture = _ARCHITECTURES[machine]

    def refuse(number: int) -> list[tuple[int, int, int, int]]:
        return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]

    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *([(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)] if machine == "x86_64" else []),  # the x32 table
        (_EQUAL, 0, 1, _CLONE3),  # its flags lie in memory, where no filter sees them; libraries then call clone
        (_RETURN, 0, 0, _ENOSYS),
    ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        code += [] if number is None else refuse(number)
    code += [
        (_EQUAL, 0, 7, _FCNTL[column]),
        (_LOAD, 0, 0, _SECOND),
        *[pair for command in _SET_OWNER for pair in refuse(command)],
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def refuse_calls(libc: Any) -> bool:
    """Let the kernel refuse processes, programs, sockets, signals and what else is listed; False where it cannot."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    code = filter_of(platform.machine())
    program = _Program(len(code) // 8, code)
    return bool(libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# -- files -------------------------------------------------------------------------------------------------------------

_READ = 0b1101  # LANDLOCK_ACCESS_FS_EXECUTE, _READ_FILE, _READ_DIR
_READ_FILE = 0b101
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # of files that each version of Landlock knows; 16 since
_READABLE = (
    "/usr",
    "/lib",
    "/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
    "/dev/zero",
)


def close_files(libc: Any, readable: list[str]) -> bool:
    """Let the kernel refuse to write any file, and to read any but these; False where it cannot.

    What is open stays open.  With version 4 it refuses TCP, with 6 signals to others, as well.
    """
    if sys.platform != "linux":
        return False
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    handled = struct.pack(
        "<QQQ", (1 << _RIGHTS.get(version, 16)) - 1, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = libc.syscall(444, ctypes.c_char_p(handled), size, 0)
    if rules < 0:
        return False
    for path in readable:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # it is not there
        rule = struct.pack("<Qi", _READ if os.path.isdir(path) else _READ_FILE, opened)
        libc.syscall(445, rules, 1, ctypes.c_char_p(rule), 0)
        os.close(opened)
    done = libc.syscall(446, rules, 0) == 0
    os.close(rules)
    return done


# -- where the kernel does not help ------------------------------------------------------------------------------------

_EVENTS = {
    "processes": ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"),
    "network": ("socket.",),
    "signals": ("os.kill", "os.killpg", "signal.pthread_kill"),
    "native code": ("ctypes.",),
}
_FILES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
          "os.chown", "os.utime", "os.chflags", "os.setxattr", "os.removexattr", "shutil.")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def refuse_events(files: bool, calls: bool) -> None:
    """Let the interpreter refuse what the kernel does not: a hook that Python code cannot take away."""
    refused = (_FILES if files else ()) + (tuple(e for part in _EVENTS.values() for e in part) if calls else ())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(refused):
            raise PermissionError(f"{event} is refused here")
        if files and event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            raise PermissionError("files cannot be written here")
        if event == "import" and arguments[0] in ("ctypes", "_ctypes", "_posixsubprocess"):
            raise PermissionError(f"{arguments[0]} is refused here")

    sys.addaudithook(hook)


# -- the run -----------------------------------------------------------------------------------------------------------


def guard(task: dict[str, Any]) -> dict[str, str]:
    """Give up rights; return what holds them back."""
    for name, soft, hard in task["limits"]:
        kind = getattr(resource, name, None)
        if kind is not None:
            highest = resource.getrlimit(kind)[1]
            capped = [v if highest == resource.RLIM_INFINITY else min(v, highest) for v in (soft, hard)]
            try:
                resource.setrlimit(kind, (capped[0], capped[1]))
            except (ValueError, OSError):
                if name != "RLIMIT_AS":  # macOS has no limit of the address space
                    raise
    files = calls = False
    if task["kernel"] and sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        capset = {"x86_64": 126, "aarch64": 91}.get(platform.machine())
        if capset is not None:
            libc.syscall(capset, struct.pack("<Ii", 0x20080522, 0), bytes(24))
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: it does not outlive the run that it belongs to
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__)}
        files = close_files(libc, [*_READABLE, *sorted(prefixes), os.getcwd()])
        calls = refuse_calls(libc)
    if not (files and calls):
        refuse_events(not files, not calls)
    by = {True: "kernel", False: "interpreter"}
    return {"processes": by[calls], "network": by[calls], "files": by[files]}


def main() -> None:
    task = json.loads(sys.stdin.buffer.read())
    report, leave = os.dup(1), os._exit
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    send, encode = os.write, json.dumps
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    send(report, (encode({"guards": guard(task)}) + "\n").encode())
    memory = (encode({"result": "memory", "detail": "more memory was asked than it may have"}) + "\n").encode()
    nonce, result, detail = task["nonce"], "crash", "it ended before its tests were over"
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    where = "program"
    try:
        exec(compile(task["program"], "<program>", "exec"), space)
        where = "tests"
        exec(compile(task["tests"], "<tests>", "exec"), space)
        result, detail = "pass", nonce
    except AssertionError as error:
        result, detail = "fail", f"{where}: AssertionError: {error}"
    except MemoryError:
        space.clear()
        send(report, memory)
        leave(0)
    except BaseException as error:  # SystemExit, too: the tests were not over
        result, detail = "fail", f"{where}: {type(error).__name__}: {error}"
    send(report, (encode({"result": result, "detail": str(detail)[:500]}) + "\n").encode())
    leave(0)  # no handler of atexit, no destructor, no thread is waited for


if __name__ == "__main__":
    main()
