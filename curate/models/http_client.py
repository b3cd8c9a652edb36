"""Requests to a model server: so many at once, each until it is answered or it is clear that it will not be.

A *fault* is what may be otherwise the next time: a busy server (408, 409, 425, 429), a failing one (5xx), silence, a
cut connection, a body that is no JSON or not what was asked.  The request is sent again after a pause drawn evenly from
[0, min(30 s, ½ s · 2^attempt)] ("full jitter").  A server that says how long to wait (Retry-After, x-ratelimit-reset)
is believed, and then, as after any 429, no request of this process is sent before that.  A *refusal* (any other status)
is not asked again.

429 does not count as an attempt while other requests are answered: a queue that moves is only a queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import wait
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from curate._imports import require
from curate.exceptions import ModelError
from curate.models.backends import HTTP
from curate.urls import redacted

T = TypeVar("T")
R = TypeVar("R")

PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds: the first pause, and the longest, where the server does not say."""
PATIENCE = 600.0
"""Seconds that a server may ask us to wait; a quota that comes back tomorrow stops the run instead."""

_BUSY = (408, 409, 425, 429)


class NotAsAskedError(Exception):
    """An answer that came whole and does not hold what was asked."""


class RefusedError(Exception):
    """A status that another attempt would not change."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)  # both, so that it can be pickled
        self.status, self.said = status, said

    def __str__(self) -> str:
        return f"status {self.status}: {self.said}"


class Client:
    """Connections to one server, held by an event loop in a thread of its own.

    The thread makes it work where the caller has an event loop already (a notebook), and lets Ctrl-C stop at once.

    Parameters
    ----------
    spec : url, limits, and the variable that holds the key.
    for_ : who asks, for messages.
    kept : what to add to a message about a run that stops in the middle.
    """

    def __init__(self, spec: HTTP, *, for_: str, kept: Callable[[], str] = lambda: "") -> None:
        self._httpx = require("httpx", extra="http", for_="the backend http")
        self._spec, self._for, self._kept = spec, for_, kept
        self._key = _key(spec.key_variable, for_=for_)
        self.url = spec.url.rstrip("/")
        self.answered = 0
        """Answers that came, in all."""
        self._opens = 0.0  # when requests may be sent again, on the clock of time.monotonic()
        self._once = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="curate-http", daemon=True)
        self._thread.start()
        self._http: Any = self.run(self._connect())

    async def _connect(self) -> Any:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = self._httpx.Limits(
            max_connections=self._spec.concurrency, max_keepalive_connections=self._spec.concurrency
        )
        return self._httpx.AsyncClient(headers=headers, timeout=None, limits=limits)  # a time limit of ours, below

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine to its end in the thread; whatever interrupts the wait cancels it."""
        if self._loop.is_closed():
            work.close()
            raise ModelError(f"{self._for}: the connections to {redacted(self.url)} are closed.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while not future.done():  # a signal that another thread got does not wake this one
                wait([future], timeout=0.25)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def map(self, work: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]:
        """Return ``work`` of every item, in order, ``concurrency`` at once; items are drawn as they are needed.

        The first error cancels the rest and is raised.
        """
        with self._once:  # two calls at a time would be twice the concurrency
            return self.run(self._map(work, enumerate(items)))

    async def _map(self, work: Callable[[T], Awaitable[R]], items: Iterator[tuple[int, T]]) -> list[R]:
        out: dict[int, R] = {}

        async def take() -> None:
            for number, item in items:
                out[number] = await work(item)

        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._spec.concurrency):
                    group.create_task(take())
        except BaseExceptionGroup as errors:
            failed = errors.exceptions[0]
        if failed is not None:  # out here, where it does not get the group as its context: it must go through a pickle
            raise failed
        return [out[number] for number in range(len(out))]

    def close(self) -> None:
        """Close the connections and end the thread; closing twice is free."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()

    # -- one request -------------------------------------------------------------------------------------------------

    async def send(
        self, method: str, path: str, body: Any = None, *, read: Callable[[Any], R], retries: int | None = None
    ) -> R:
        """Return what ``read`` makes of the answer's JSON; it may raise NotAsAskedError, which is a fault.

        Raises
        ------
        RefusedError
            If the server answers with a status that another attempt would not change.
        ModelError
            If the server wants a key, or every attempt met a fault.
        """
        retries = self._spec.retries if retries is None else retries
        where = path if path.startswith("http") else self.url + path
        attempt, seen = 0, self.answered
        while True:
            await self._until_open()
            status, headers = 0, {}
            try:
                async with asyncio.timeout(self._spec.timeout):
                    response = await self._http.request(method, where, json=body)
                status, headers = response.status_code, response.headers
                if 200 <= status < 300:
                    found = read(_json(response))
                    self.answered += 1
                    return found
                fault = f"status {status}: {self.excerpt(response.text)}"
                if status in (401, 403):
                    raise self._locked_out(fault)
                if status not in _BUSY and status < 500:
                    raise RefusedError(status, self.excerpt(response.text))
            except TimeoutError:
                fault = f"no answer within {self._spec.timeout:g} s"
            except NotAsAskedError as error:
                fault = f"an answer that was not as asked: {self.excerpt(str(error))}"
            except (self._httpx.HTTPError, self._httpx.InvalidURL) as error:
                fault = self.excerpt(f"{type(error).__name__}: {error}")
            if status == 429 and self.answered > seen:
                attempt, seen = 0, self.answered
            said = _wait_asked(headers, busy=status == 429) if status else None
            if attempt >= retries or (said or 0.0) > PATIENCE:
                raise self._given_up(f"{method} {redacted(where)}", fault, attempt + 1, said)
            pause = random.uniform(0, min(LONGEST_PAUSE, PAUSE * 2**attempt))
            attempt += 1
            if said is not None or status == 429:
                self._opens = max(self._opens, time.monotonic() + (said or pause))
            else:
                await asyncio.sleep(pause)

    async def _until_open(self) -> None:
        """Wait for the end of a pause that the server asked for; then not all at once."""
        while (wait := self._opens - time.monotonic()) > 0:
            await asyncio.sleep(wait + random.uniform(0, min(1.0, 0.1 * wait)))

    def excerpt(self, text: str) -> str:
        """Return the beginning of a text on one line, without the key and without logins in URLs."""
        if self._key:
            text = text.replace(self._key, "***")
        text = redacted(" ".join(text.split()))
        return text if len(text) <= 300 else text[:300] + "…"

    def _locked_out(self, fault: str) -> ModelError:
        name = self._spec.key_variable
        state = f"the key in ${name} is not accepted" if self._key else f"${name} is not set"
        return ModelError(f"{self._for}: the server {redacted(self.url)} wants a key, and {state} ({fault}).")

    def _given_up(self, asked_for: str, fault: str, attempts: int, wait: float | None) -> ModelError:
        asked = f" It asks to wait {wait:,.0f} s." if wait else ""
        times = f"after {attempts} attempts" if attempts > 1 else "at the first attempt"
        return ModelError(
            f"{self._for}: {asked_for} was not answered; {times} the last thing found was: "
            f"{fault.rstrip('.')}.{asked}{self._kept()}"
        )


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise NotAsAskedError(f"no JSON ({error}): {response.text[:200]}") from None


def _key(variable: str, *, for_: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):  # the HTTP library's own message would show it
        raise ModelError(f"{for_}: the key in ${variable} holds a space or a character that a header may not.")
    return key


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|h|m|s))")


def _wait_asked(headers: Mapping[str, str], *, busy: bool) -> float | None:
    """Return the seconds that an answer asks us to wait, at least 0; None where it says nothing that can be read.

    Retry-After is in seconds or a date; x-ratelimit-reset(-requests, -tokens), read only where the server is busy, in
    seconds, as a moment since 1970, or as "1m30s".
    """
    said = headers.get("retry-after", "")
    if said:
        with contextlib.suppress(ValueError):
            return _not_below_0(float(said))
        with contextlib.suppress(ValueError, TypeError):
            return _not_below_0(parsedate_to_datetime(said).timestamp() - time.time())
    if not busy:
        return None
    waits = []
    for name in ("x-ratelimit-reset", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"):
        said = headers.get(name, "")
        if re.fullmatch(r"\d+(\.\d+)?", said):
            waits.append(float(said) - (time.time() if float(said) > 1e9 else 0))
        elif parts := _DURATION.findall(said):
            waits.append(sum(float(n) * {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}[unit] for n, unit in parts))
    return _not_below_0(max(waits)) if waits else None


def _not_below_0(seconds: float) -> float | None:
    return max(0.0, seconds) if math.isfinite(seconds) else None
