"""A small OpenAI-compatible server for tests: real numbers of a real model, on loopback, with faults on demand.

It answers ``/models``, ``/version`` and ``/completions`` as strictly as the servers that it stands for, keeps what it was
asked, and measures how many requests were under way at once.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np

from curate.models.base import Sampling
from curate.models.template import load_tokenizer
from curate.models.transformers_lm import TransformersLM

Dialect = Literal["vllm", "plain", "writes one", "no echo", "chat only"]
"""What it can give of a prompt: all that vLLM's server does; echo by the protocol alone; echo only where it may write a
token; vLLM's prompt_logprobs only; nothing."""

VLLM_ONLY = {"return_token_ids", "prompt_logprobs", "top_k", "min_p", "repetition_penalty"}


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed, or tired of waiting, are no news."""


class Server:
    """Serves a model while it is entered.

    Attributes
    ----------
    fault : (number of the completion request, its body) → what goes wrong with it, or None: "429 SECONDS", "429",
        "500", "503", "400 TEXT", "stall", "cut", "malformed", "html", "truncated", "shifted", "other ids", "nulls",
        "above 0", "nan", "floor", "die".
    completions : the bodies of completion requests, those with faults too.
    """

    def __init__(self, model: str, *, served_as: str = "tiny", dialect: Dialect = "vllm", context: int | None = 256):
        self.lm = TransformersLM(model, device="cpu")
        self.tokenizer = load_tokenizer(model)
        self.served_as, self.dialect, self.context = served_as, dialect, context
        self.fault: Callable[[int, dict[str, Any]], str | None] = lambda number, body: None
        self.key: str | None = None
        self.delay = 0.0
        self.completions: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.listed = 0
        self.most = self.under_way = 0
        self.connections = 0
        self.lock = threading.Lock()
        self.busy = threading.Lock()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def scored(self) -> list[list[int]]:
        """The prompts that were asked, without those that only try the server out."""
        probe = {tuple(self.probe)}
        return [body["prompt"] for body in self.completions if tuple(body["prompt"]) not in probe]

    @property
    def probe(self) -> list[int]:
        from curate.models.http_lm import PROBE

        return list(self.tokenizer(PROBE, add_special_tokens=False)["input_ids"][:12])

    def forget(self) -> None:
        self.completions.clear()
        self.times.clear()
        self.listed = self.most = 0

    def __enter__(self) -> Server:
        self.http = _HTTP(("127.0.0.1", 0), _Handler)
        self.http.owner = self
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.die()
        self.http.shutdown()

    def die(self) -> None:
        self.over.set()
        self.http.socket.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HTTP

    def setup(self) -> None:
        super().setup()
        with self.server.owner.lock:
            self.server.owner.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server.owner
        if self._refused():
            return
        if self.path == "/v1/models":
            owner.listed += 1
            served = {"id": owner.served_as, "object": "model"}
            if owner.dialect in ("vllm", "no echo"):
                served |= {"owned_by": "vllm", "root": "/models/tiny", "max_model_len": owner.context}
            self._send(200, {"object": "list", "data": [served, {"id": "another", "object": "model"}]})
        elif self.path == "/version" and owner.dialect == "vllm":
            self._send(200, {"version": "9.9.9"})
        else:
            self._send(404, {"error": {"message": "Not Found"}})

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        if self.path != "/v1/completions":
            self._send(404, {"error": {"message": "Not Found"}})
            return
        with owner.lock:
            number = len(owner.completions)
            owner.completions.append(body)
            owner.times.append(time.monotonic())
            owner.under_way += 1
            owner.most = max(owner.most, owner.under_way)
        try:
            time.sleep(owner.delay)
            fault = owner.fault(number, body) or ""
            status, answer, headers = self._answer(body, fault)
        finally:
            with owner.lock:
                owner.under_way -= 1
        if fault == "stall":
            owner.over.wait(20)
            self.close_connection = True
        elif fault == "die":
            owner.die()
            self._hang_up()
        elif fault == "cut":
            self._send(status, answer, headers, part=0.5)
            self._hang_up()
        else:
            self._send(status, answer, headers)

    def _answer(self, body: dict[str, Any], fault: str) -> tuple[int, Any, dict[str, str]]:
        """Return status, body and headers."""
        if fault.startswith("429"):
            wait = fault.partition(" ")[2]
            headers = {"Retry-After": wait} if wait else {}
            return 429, {"error": {"message": "slow down"}}, headers
        if fault in ("500", "503"):
            return int(fault), {"error": {"message": "it broke"}}, {}
        if fault.startswith("400"):
            return 400, {"error": {"message": fault.partition(" ")[2]}}, {}
        if fault == "malformed":
            return 200, b'{"choices": [{"text": ', {}
        if fault == "html":
            return 200, b"<html>a proxy's error page</html>", {}
        if fault in ("stall", "die"):
            return 200, {}, {}
        problem, answer = self._complete(body)
        if problem:
            return 400, {"error": {"message": problem, "type": "BadRequestError", "code": 400}}, {}
        logprobs = answer["choices"][0].get("logprobs")
        if logprobs and fault:
            values = logprobs["token_logprobs"]
            if fault == "truncated":
                values.pop()
            elif fault == "shifted":  # a BOS that nobody asked for
                logprobs["token_logprobs"] = [None, -3.0, *values[1:]]
                answer["choices"][0].pop("prompt_token_ids", None)
                answer["usage"]["prompt_tokens"] += 1
            elif fault == "other ids":
                answer["choices"][0]["prompt_token_ids"] = [0, *body["prompt"][1:]]
            elif fault in ("nulls", "above 0", "nan", "floor"):
                values[-1] = {"nulls": None, "above 0": 0.5, "nan": float("nan"), "floor": -9999.0}[fault]
        return 200, answer, {}

    def _complete(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return what is wrong with a request, or the answer."""
        owner = self.server.owner
        ids, dialect = body["prompt"], owner.dialect
        vllm = dialect in ("vllm", "no echo")
        extra = sorted(VLLM_ONLY & body.keys())
        if body["model"] != owner.served_as:
            return f"The model `{body['model']}` does not exist.", {}
        if not vllm and extra:
            return f"Unrecognized request argument supplied: {extra[0]}", {}
        if body.get("echo") and dialect in ("no echo", "chat only"):
            return "Setting 'echo' and 'logprobs' at the same time is not supported for this model.", {}
        if dialect == "writes one" and body["max_tokens"] < 1:
            return "max_tokens must be at least 1", {}
        if owner.context is not None and len(ids) + max(1, body["max_tokens"]) > owner.context:
            return f"This model's maximum context length is {owner.context} tokens; your prompt has {len(ids)}.", {}
        wanted = body.get("echo") or "prompt_logprobs" in body
        values: list[Any] = []
        written = {"text": "", "tokens": 0, "finish_reason": "length"}
        with owner.busy:
            if wanted:
                mask = np.arange(len(ids)) > 0
                found = owner.lm.token_logprobs([(np.array(ids, dtype=np.int32), mask)])[0]
                values = [None, *map(float, found if found is not None else [])]
            if body["max_tokens"]:
                sampling = Sampling(
                    max_tokens=body["max_tokens"],
                    temperature=body["temperature"] if not wanted else 0.0,
                    top_p=body.get("top_p", 1.0),
                    seed=body.get("seed", 0),
                    stop=tuple(body.get("stop", ())),
                )
                (its,) = owner.lm.generate([np.array(ids, dtype=np.int32)], sampling)
                assert its is not None
                text = its[0]
                reason = "stop" if text.finished else "length"
                written = {"text": text.text, "tokens": text.tokens, "finish_reason": reason}
        usage = {"prompt_tokens": len(ids), "completion_tokens": written["tokens"]}
        choice: dict[str, Any] = {
            "index": 0,
            "text": written["text"],
            "logprobs": None,
            "finish_reason": written["finish_reason"],
        }
        if body.get("return_token_ids"):
            choice["prompt_token_ids"] = ids
        if body.get("echo"):
            tokens = [owner.tokenizer.decode([i]) for i in ids]
            more = int(bool(body["max_tokens"]))
            choice["logprobs"] = {"tokens": tokens + ["x"] * more, "token_logprobs": values + [-0.5] * more}
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None] + [
                {"999999": {"logprob": -0.1, "rank": 1}, str(i): {"logprob": v, "rank": 7}}
                for i, v in zip(ids[1:], values[1:], strict=True)
            ]
        return "", {"object": "text_completion", "model": owner.served_as, "choices": [choice], "usage": usage}

    def _refused(self) -> bool:
        """Whether the server is over, or wants a key that is not there."""
        owner = self.server.owner
        if owner.over.is_set():
            self._hang_up()
            return True
        given = self.headers.get("Authorization", "")
        if owner.key is not None and given != f"Bearer {owner.key}":
            self._send(401, {"error": {"message": f"Incorrect API key provided: {given.removeprefix('Bearer ')}"}})
            return True
        return False

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None, part: float = 1.0) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: int(len(data) * part)])

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
