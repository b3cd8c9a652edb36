"""The process that a vLLM engine lives in.  Run by path, by an interpreter that has vLLM; it imports nothing of curate.

    vllm_host.py SOCKET LIFE        two inherited file descriptors

SOCKET carries messages, each a length (8 bytes, little-endian) and JSON.  The first one says how to start the engine;
then come requests, which are answered one by one as the engine finishes them.  LIFE carries nothing: it ends when the
process that holds its other end does, in whatever way, and this one then ends with its whole group, even if it is
in the middle of loading or of a step.
"""

from __future__ import annotations

import inspect
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from typing import Any, NoReturn


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        engine = Engine(_receive(channel))
    except BaseException as error:
        traceback.print_exc()
        _send(channel, {"failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from None
    _send(channel, {"ready": engine.facts})
    try:
        _serve(channel, engine)
    except Exception as error:
        traceback.print_exc()
        _send(channel, {"failed": f"{type(error).__name__}: {error}"})
    _kill_group()


def _serve(channel: socket.socket, engine: Engine) -> None:
    """Take requests while there are any, step the engine while it has work, and answer at once what is finished."""
    while True:
        while select.select([channel], [], [], 0 if engine.busy else None)[0]:
            message = _receive(channel)
            if message.get("do") == "close":
                return
            refused = engine.add(message)
            if refused is not None:
                _send(channel, {"id": message["id"], "refused": refused})
        for answer in engine.step():
            _send(channel, answer)


class Engine:
    """The engine, and what it is asked."""

    def __init__(self, start: dict) -> None:
        os.environ.update(start["environment"])  # before vLLM is imported: it reads them then
        import torch
        import vllm
        from vllm.platforms import current_platform

        self._vllm = vllm
        cpu = current_platform.is_cpu()
        options = dict(start["options"], enforce_eager=cpu or start["options"]["enforce_eager"])
        if cpu:
            options.pop("gpu_memory_utilization")
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
        llm = vllm.LLM(**options)
        self._engine = llm.llm_engine
        self._known = set(inspect.signature(vllm.SamplingParams).parameters)
        # Exactly the scored tokens' log-probabilities; vLLM says when it is asked whether its runner has them.
        self._by_ids = "prompt_logprob_token_ids" in self._known and not cpu
        self._asked: dict[str, dict] = {}
        config = llm.llm_engine.model_config
        room = 0 if options.get("runner") == "pooling" else 1  # a generating engine wants room for a token it writes
        self.facts = {
            "version": vllm.__version__,
            "device": "cpu" if cpu else current_platform.device_type,
            "dtype": str(config.dtype).removeprefix("torch."),
            "vocab_size": config.get_vocab_size(),
            "context": config.max_model_len - room,  # one more than was asked, where one is written
            "options": "logprob_token_ids" in self._known,
        }

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    def add(self, message: dict) -> str | None:
        """Hand a request to the engine; return why it cannot be, if so."""
        from vllm.inputs import TokensPrompt

        name = str(message["id"])
        ids = message["ids"]
        while True:
            try:
                self._engine.add_request(name, TokensPrompt(prompt_token_ids=ids), self._params(message))
            except Exception as error:  # vLLM's own kinds of ValueError are none
                if message["do"] == "score" and self._by_ids:
                    self._by_ids = False  # its runner does not have them: all of the prompt's, then
                    continue
                return str(error).splitlines()[0][:300]
            self._asked[name] = message
            return None

    def _params(self, message: dict) -> Any:
        """Return the sampling parameters of a request; those of pooling for an embedding."""
        if message["do"] == "embed":
            return self._vllm.PoolingParams(task="embed")
        plain = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
        if message["do"] == "score":
            first, ids = message["first"], message["ids"]
            if self._by_ids:
                return self._vllm.SamplingParams(
                    prompt_logprob_token_ids=[[i] for i in ids[first:]], prompt_logprob_start=first - 1, **plain
                )
            flat = {"flat_logprobs": True} if "flat_logprobs" in self._known else {}
            return self._vllm.SamplingParams(prompt_logprobs=0, **flat, **plain)
        if message["do"] == "options":
            return self._vllm.SamplingParams(logprob_token_ids=message["options"], **plain)
        return self._vllm.SamplingParams(**message["sampling"])

    def step(self) -> list[dict]:
        """Let the engine compute one batch; return the answers to what that finished."""
        if not self._asked:
            return []
        answers = []
        for output in self._engine.step():
            if not output.finished:
                continue
            message = self._asked.pop(output.request_id)
            answers.append({"id": message["id"], **self._answer(message, output)})
        return answers

    def _answer(self, message: dict, output: Any) -> dict:
        if message["do"] == "embed":
            return {"vector": output.outputs.data.float().tolist()}
        if message["do"] == "score":
            if self._by_ids:
                return {"logprobs": output.prompt_token_id_logprobs[:, 0].tolist()}
            return {"logprobs": _of_tokens(output.prompt_logprobs, message["ids"], message["first"])}
        written = output.outputs[0]
        if message["do"] == "options":
            return {"logprobs": [written.logprobs[0][i].logprob for i in message["options"]]}
        return {
            "text": written.text,
            "tokens": len(written.token_ids),
            "finished": written.finish_reason == "stop",
        }


def _of_tokens(found: Any, ids: list[int], first: int) -> list[float]:
    """Return the log-probabilities of the tokens from ``first`` on, from what the engine says of all of them."""
    if len(found) != len(ids):
        raise RuntimeError(f"{len(ids)} tokens were sent, log-probabilities of {len(found)} came back")
    if not hasattr(found, "start_indices"):
        return [found[i][ids[i]].logprob for i in range(first, len(ids))]
    out = []
    for i in range(first, len(ids)):
        at = found.start_indices[i]  # the prompt's own token stands first
        if found.token_ids[at] != ids[i]:
            raise RuntimeError(f"token {ids[i]} was sent at place {i}, {found.token_ids[at]} came back")
        out.append(found.logprobs[at])
    return out


def _send(channel: socket.socket, message: dict) -> None:
    data = json.dumps(message).encode()
    channel.sendall(struct.pack("<Q", len(data)) + data)


def _receive(channel: socket.socket) -> dict:
    (size,) = struct.unpack("<Q", _exactly(channel, 8))
    return json.loads(_exactly(channel, size))


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 20))
        if not part:  # the other end is closed: nobody waits for an answer
            _kill_group()
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _end_with_parent(life: int) -> None:
    os.read(life, 1)
    _kill_group()


def _kill_group() -> NoReturn:
    """End this process and whatever the engine has started: it is the leader of a group of its own."""
    os.killpg(os.getpgid(0), signal.SIGKILL)
    raise AssertionError("a process outlives its own SIGKILL")


if __name__ == "__main__":
    main()
