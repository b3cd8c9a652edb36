"""A model behind a server: the model's own numbers, whatever the server and the network do, or a clear stop."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from curate import models
from curate.exceptions import InputError, ModelError
from curate.models import http_client
from curate.models.backends import HTTP
from curate.models.base import Generation, Row, Sampling
from curate.models.http_client import _wait_asked
from curate.models.http_lm import HTTPLM, check_server
from curate.models.request_cache import RequestCache, key_of
from curate.scorers.likelihood import TargetLikelihood
from curate.seeding import rng_for
from tests.conftest import rows_of
from tests.engines import PYTHON, needs_vllm, wait_until
from tests.models.openai_server import Dialect, Server
from tests.pipelines.helpers import run
from tests.scorers.test_likelihood import ask, table

SECRET = "sk-TheKeyOfTheTests-0123456789"


@pytest.fixture(scope="module")
def _server(tiny_model: Path) -> Iterator[Server]:
    with Server(str(tiny_model)) as server:
        yield server


@pytest.fixture
def server(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server without faults, and pauses of milliseconds."""
    monkeypatch.setattr(http_client, "PAUSE", 0.002)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _server.fault, _server.delay, _server.key = lambda number, body: None, 0.0, None
    _server.dialect, _server.context = "vllm", 256
    _server.forget()
    return _server


@pytest.fixture
def connect(server: Server, tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., HTTPLM]]:
    """Make a client, with a request cache of the test's own unless it says otherwise."""
    made: list[HTTPLM] = []

    def make(**changes: Any) -> HTTPLM:
        said = {"url": server.url, "served_as": "tiny", "timeout": 20, "cache": str(tmp_path / "cache")}
        made.append(HTTPLM(str(tiny_model), HTTP(use="http", **(said | changes))))
        return made[-1]

    yield make
    for lm in made:
        lm.close()
        lm.close()


def some_rows(n: int, *, longest: int = 60, seed: int = 0) -> list[Row]:
    rng = rng_for(seed, "rows")
    rows: list[Row] = []
    for size in rng.integers(2, longest, n):
        mask = rng.random(size) < 0.5
        mask[0], mask[-1] = False, True
        rows.append((rng.integers(10, 400, size).astype(np.int32), mask))
    return rows


def assert_same(found: list[Any], expected: list[Any], atol: float = 1e-6) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def assert_travels(error: Exception) -> None:
    """From a Dask worker to the command, as what it is."""
    from distributed.core import error_message

    arrived = pickle.loads(error_message(error)["exception"].data)
    assert type(arrived) is type(error) and str(arrived) == str(error)


def once(*faults: str) -> Callable[[int, dict[str, Any]], str | None]:
    """Faults for the first requests of rows, one each; after them none."""
    left = list(faults)
    lock = threading.Lock()

    def fault(number: int, body: dict[str, Any]) -> str | None:
        with lock:
            return left.pop(0) if number and left else None  # request 0 finds out how to ask

    return fault


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["vllm", "plain", "writes one", "no echo"])
def test_the_same_numbers_as_the_model_itself(dialect: Dialect, server: Server, connect: Callable[..., HTTPLM]) -> None:
    server.dialect = dialect
    rows = some_rows(24)
    rows.append((np.arange(5, dtype=np.int32), np.zeros(5, dtype=bool)))
    lm = connect()
    assert_same(lm.token_logprobs(rows), server.lm.token_logprobs(rows))
    assert len({tuple(prompt) for prompt in server.scored}) == len(server.scored) == 24
    order = rng_for(0, "order").permutation(len(rows))
    other = connect(cache="off", concurrency=1)
    together = lm.token_logprobs(rows)
    assert_same(other.token_logprobs([rows[i] for i in order]), [together[i] for i in order], atol=1e-5)
    assert lm.token_logprobs([]) == []
    assert lm.describe() == {
        "backend": "http",
        "url": server.url,
        "served_as": "tiny",
        "server": {"vllm": "vllm 9.9.9", "no echo": "vllm"}.get(dialect, "unknown"),
        "dtype": "unknown",
        "device": "remote",
    }


def test_what_follows_the_last_scored_token_is_not_sent(server: Server, connect: Callable[..., HTTPLM]) -> None:
    ids = np.arange(10, 30, dtype=np.int32)
    connect().token_logprobs([(ids, np.arange(20) == 7)])
    assert server.scored == [list(range(10, 18))]


def test_options_of_several_tokens(server: Server, connect: Callable[..., HTTPLM]) -> None:
    prompts = [np.arange(10, 16), np.arange(40, 45)]
    options = [[np.array([7]), np.array([8, 9, 10])], [np.array([200])]]
    assert_same(connect().option_logprobs(prompts, options), server.lm.option_logprobs(prompts, options), atol=1e-5)


def test_texts(server: Server, connect: Callable[..., HTTPLM]) -> None:
    prompts = [np.arange(10, 16), np.arange(40, 45), np.arange(10, 16), np.arange(256) % 500]
    lm = connect()
    greedy = lm.generate(prompts, Sampling(max_tokens=8, n=2))
    alone = server.lm.generate(prompts[:3], Sampling(max_tokens=8))
    assert [its and its[0] for its in greedy[:3]] == [its and its[0] for its in alone]
    assert greedy[3] is None  # no room for a token
    assert greedy[0] is not None and greedy[0][0] == greedy[0][1] and not greedy[0][0].finished
    server.forget()
    sampling = Sampling(max_tokens=6, temperature=0.8, top_p=0.9, n=3, seed=5, stop=("a", "e"))
    found = lm.generate(prompts[:2], sampling)
    assert [len(its or []) for its in found] == [3, 3]
    assert len({text for its in found for text in its or []}) > 3
    assert len({body["seed"] for body in server.completions}) == 6
    body = server.completions[0]
    assert (body["temperature"], body["top_p"], body["stop"], body["top_k"]) == (0.8, 0.9, ["a", "e"], 0)
    assert lm.generate(prompts[1::-1], sampling) == found[::-1]  # and the company does not matter
    assert len(server.completions) == 6
    with pytest.raises(InputError, match=r"prompt 0: ids of shape \(0,\)"):
        lm.generate([np.array([], dtype=np.int32)], sampling)


def test_a_text_without_its_length_or_end_is_not_a_text(server: Server, connect: Callable[..., HTTPLM]) -> None:
    server.fault = lambda number, body: "malformed" if number < 2 else None
    assert connect().generate([np.arange(10, 16)], Sampling(max_tokens=3))[0] is not None
    assert len(server.completions) == 3


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    ["429", "429 0", "500", "503", "cut", "malformed", "html", "truncated", "shifted", "other ids", "nulls", "above 0"],
)
def test_a_fault_that_passes_is_survived(fault: str, server: Server, connect: Callable[..., HTTPLM]) -> None:
    rows = some_rows(8)
    server.fault = once(fault, fault, fault)
    assert_same(connect(concurrency=2).token_logprobs(rows), server.lm.token_logprobs(rows))
    assert len(server.scored) == 8 + 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("429", "status 429: .*slow down"),
        ("500", "status 500: .*it broke"),
        ("stall", "no answer within 0.5 s"),
        ("cut", "RemoteProtocolError"),
        ("malformed", r"no JSON \(.*\{\"choices\""),
        ("html", "a proxy's error page"),
        ("truncated", r"not as asked: \d+ log-probabilities for \d+ tokens"),
        ("shifted", r"not as asked: the server read \d+ tokens of the \d+ that were sent"),
        ("other ids", "not as asked: the server read other token ids"),
        ("nulls", "not as asked: a token has no log-probability"),
        ("above 0", "not as asked: a log-probability of 0.5, above 0"),
    ],
)
def test_a_fault_that_stays_stops_and_says_so(
    fault: str, said: str, server: Server, connect: Callable[..., HTTPLM]
) -> None:
    server.fault = lambda number, body: fault if number > 3 else None
    with pytest.raises(
        ModelError,
        match=rf"/v1/completions was not answered; after 3 attempts .*{said}.* Run the same command again: the 3 answers",
    ) as caught:
        connect(retries=2, timeout=0.5 if fault == "stall" else 10, concurrency=1).token_logprobs(some_rows(8))
    assert_travels(caught.value)
    assert len(server.scored) == 3 + 3
    server.fault = lambda number, body: None
    assert_same(connect().token_logprobs(some_rows(8)), server.lm.token_logprobs(some_rows(8)))
    assert len(server.scored) == 3 + 3 + 5


def test_a_server_that_dies_in_the_middle(tiny_model: Path, connect: Callable[..., HTTPLM]) -> None:
    with Server(str(tiny_model)) as server:
        server.fault = lambda number, body: "die" if number == 5 else None
        with pytest.raises(ModelError, match=r"after 3 attempts .*(ConnectError|ReadError).* the \d answers that came"):
            connect(url=server.url, retries=2, concurrency=1).token_logprobs(some_rows(12))
        assert len(server.scored) == 5


def test_other_statuses_are_not_asked_again(server: Server, connect: Callable[..., HTTPLM]) -> None:
    server.fault = lambda number, body: "400 odd request" if number > 1 else None
    with pytest.raises(
        ModelError, match=r"completions refuses a row of \d+ tokens with status 400: .*odd request"
    ) as caught:
        connect(concurrency=1).token_logprobs(some_rows(4))
    assert len(server.scored) == 2
    assert_travels(caught.value)


def test_numbers_that_json_has_no_word_for(server: Server, connect: Callable[..., HTTPLM]) -> None:
    """A likelihood that is not finite is null with that reason in the scorer's table."""
    row = (np.arange(10, 14, dtype=np.int32), np.arange(4) > 0)
    server.fault = once("floor", "nan")
    lm = connect(concurrency=1, cache="off")
    (floor,), (nan,) = lm.token_logprobs([row]), lm.token_logprobs([row])
    assert floor is not None and np.isneginf(floor[-1]) and np.isfinite(floor[:-1]).all()
    assert nan is not None and np.isnan(nan[-1]) and np.isfinite(nan[:-1]).all()


def test_rows_that_are_too_long_for_the_server_are_null_with_that_reason(
    server: Server, tiny_model: Path, connect: Callable[..., HTTPLM]
) -> None:
    server.dialect, server.context = "plain", 60  # and it does not say so beforehand
    lm = connect()
    assert lm.context is None
    short, long = (some_rows(1)[0], (np.arange(80, dtype=np.int32) + 10, np.arange(80) > 0))
    one, two = lm.forward([short, long], {"logprobs"})
    assert one is not None and one.logprobs is not None and one.reason is None
    assert two is not None and two.logprobs is None and two.reason == "longer than the server reads, at 80 tokens"
    assert lm.token_logprobs([long]) == [None] and lm.option_logprobs([long[0]], [[np.array([5])]]) == [None]
    assert lm.generate([long[0]], Sampling(max_tokens=2)) == [None]

    examples = table([ask("What?", "Seven."), ask("What?", "Seven apples. " * 30), ask("Who?", "Ann.")])
    spec = HTTP(use="http", url=server.url, served_as="tiny")
    scorer = TargetLikelihood(model=str(tiny_model), backend=spec)
    scorer.open()
    try:
        out = scorer.score(examples)
        reasons = out["reason"].to_pylist()
        assert reasons[::2] == [None, None] and reasons[1].startswith("longer than the server reads, at ")
        assert out["mean_logprob"].null_count == 1
    finally:
        scorer.close()
        models.unload()

    server.dialect = "vllm"
    assert connect().context == 59  # which counts the token that the server always writes
    with pytest.raises(InputError, match="row 0: 80 tokens; the model's context is 59"):
        connect().token_logprobs([long])


# --- how many, and how fast ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 5])
def test_no_more_requests_at_once_than_asked(concurrency: int, server: Server, connect: Callable[..., HTTPLM]) -> None:
    server.delay = 0.01
    lm = connect(concurrency=concurrency)
    before = server.connections
    threads = [threading.Thread(target=lm.token_logprobs, args=(some_rows(15, seed=s),)) for s in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most == concurrency and len(server.scored) == 30
    assert server.connections - before <= concurrency  # and each is used again


def test_rows_are_drawn_as_they_are_needed(server: Server, connect: Callable[..., HTTPLM]) -> None:
    drawn, most = 0, 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for i in range(50):
            drawn += 1
            yield i

    done = 0

    async def work(i: int) -> int:
        nonlocal done, most
        most = max(most, drawn - done)
        await http_client.asyncio.sleep(0.001 * (i % 3))
        done += 1
        return i * i

    lm = connect(concurrency=4)
    assert lm._client.map(work, items()) == [i * i for i in range(50)] and most == 4


def test_a_server_that_asks_to_wait_is_left_alone(server: Server, connect: Callable[..., HTTPLM]) -> None:
    """By every request, not only the one that was told."""
    at: list[float] = []

    def fault(number: int, body: dict[str, Any]) -> str | None:
        if number == 3:
            at.append(time.monotonic())
            return "429 1"
        return None

    server.fault, server.delay = fault, 0.02
    rows = some_rows(20)
    assert_same(connect(concurrency=3).token_logprobs(rows), server.lm.token_logprobs(rows))
    after = [t - at[0] for t in server.times if t > at[0] + 0.15]  # those under way arrive before
    assert len(after) >= 15 and 0.9 < min(after) < 2.5
    assert len([t for t in server.times if t > at[0]]) - len(after) <= 3


def test_a_limit_of_rate_that_holds_throughout_is_no_failure(server: Server, connect: Callable[..., HTTPLM]) -> None:
    """Two of three requests are turned away; with three attempts a row many would fail if each of them counted."""
    server.fault = lambda number, body: "429" if number % 3 else None
    rows = some_rows(30)
    assert_same(connect(concurrency=6, retries=2).token_logprobs(rows), server.lm.token_logprobs(rows))


def test_a_quota_that_comes_back_tomorrow_stops_at_once(server: Server, connect: Callable[..., HTTPLM]) -> None:
    server.fault = lambda number, body: "429 86400" if number else None
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"at the first attempt .*status 429.* It asks to wait 86,400 s\."):
        connect().token_logprobs(some_rows(3))
    assert time.monotonic() - began < 5


def test_what_a_server_may_say_about_waiting() -> None:
    soon = format_datetime(http_client_date(30), usegmt=True)
    for headers, busy, expected in [
        ({}, True, None),
        ({"retry-after": "7"}, False, 7),
        ({"retry-after": "1.5"}, True, 1.5),
        ({"retry-after": soon}, True, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, True, 0),
        ({"retry-after": "-3"}, True, 0),
        ({"retry-after": "inf"}, True, None),
        ({"retry-after": "later"}, True, None),
        ({"x-ratelimit-reset": "12"}, True, 12),
        ({"x-ratelimit-reset": "12"}, False, None),
        ({"x-ratelimit-reset": str(time.time() + 20)}, True, 20),
        ({"x-ratelimit-reset-requests": "120ms", "x-ratelimit-reset-tokens": "1m30.5s"}, True, 90.5),
        ({"x-ratelimit-reset-requests": "1h2m"}, True, 3720),
        ({"x-ratelimit-reset-requests": "soon"}, True, None),
    ]:
        found = _wait_asked(headers, busy=busy)
        assert found == (expected if expected is None else pytest.approx(expected, abs=2)), headers


def http_client_date(seconds: float) -> Any:
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_ctrl_c_stops_at_once(server: Server, connect: Callable[..., HTTPLM]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        _interrupted(server, connect)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(server: Server, connect: Callable[..., HTTPLM]) -> None:
    server.fault = lambda number, body: "stall" if number else None
    lm = connect(timeout=60)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        lm.token_logprobs(some_rows(8))
    assert time.monotonic() - began < 4
    lm.close()
    assert time.monotonic() - began < 6
    with pytest.raises(ModelError, match=r"the connections to http.* are closed"):
        lm.token_logprobs(some_rows(1))


def test_an_event_loop_of_the_callers_own_does_not_matter(server: Server, connect: Callable[..., HTTPLM]) -> None:
    """As in a notebook."""

    async def cell() -> list[Any]:
        return connect().token_logprobs(some_rows(3))

    assert_same(http_client.asyncio.run(cell()), server.lm.token_logprobs(some_rows(3)))


# --- the request cache -----------------------------------------------------------------------------------------------


def test_a_second_run_sends_nothing(server: Server, connect: Callable[..., HTTPLM]) -> None:
    rows, prompt, sampling = some_rows(12), np.arange(10, 16), Sampling(max_tokens=4, temperature=1.0, n=2)
    first = connect()
    numbers, texts = first.token_logprobs(rows), first.generate([prompt], sampling)
    server.forget()
    again = connect()
    for a, b in zip(numbers, again.token_logprobs(rows), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.generate([prompt], sampling) == texts
    other_mask = [(ids, np.arange(ids.size) == np.flatnonzero(mask)[-1]) for ids, mask in rows if mask.any()]
    again.token_logprobs(other_mask)
    assert server.completions == []
    again.generate([prompt], Sampling(max_tokens=4, temperature=1.0, n=2, seed=1))
    assert len(server.completions) == 2
    connect(cache="off").token_logprobs(rows[:1])
    assert len(server.completions) == 2 + 2  # one to find out how to ask


def test_another_model_or_server_is_another_answer(
    server: Server, tiny_model: Path, connect: Callable[..., HTTPLM]
) -> None:
    row = some_rows(1)
    connect().token_logprobs(row)
    with Server(str(tiny_model), served_as="another name") as other:
        connect(url=other.url, served_as="another name").token_logprobs(row)
        assert len(other.scored) == 1
    server.served_as = "renamed"
    try:
        connect(served_as="renamed").token_logprobs(row)
    finally:
        server.served_as = "tiny"
    assert len(server.scored) == 2
    server.dialect = "plain"  # the same name, and no word of where it was loaded from: may be another model
    connect().token_logprobs(row)
    assert len(server.scored) == 3


def test_a_process_that_is_killed_has_paid_for_what_it_got(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    rows = some_rows(40)
    program = f"""
from tests.models.test_http import HTTP, HTTPLM, some_rows
spec = HTTP(use="http", url={server.url!r}, served_as="tiny", concurrency=3, cache={str(tmp_path / "cache")!r})
HTTPLM({str(tiny_model)!r}, spec).token_logprobs(some_rows(40))
"""
    server.delay = 0.1
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    try:
        wait_until(lambda: len(server.scored) >= 20)
    finally:
        process.kill()
    process.wait()
    server.delay = 0.0
    time.sleep(0.3)
    before = len(server.scored)
    assert before < 40
    lm = HTTPLM(str(tiny_model), HTTP(use="http", url=server.url, served_as="tiny", cache=str(tmp_path / "cache")))
    try:
        assert_same(lm.token_logprobs(rows), server.lm.token_logprobs(rows))
    finally:
        lm.close()
    assert 40 <= len(server.scored) <= 40 + 3  # what was under way is asked twice, and nothing else


def _fill(folder: str, start: Any, who: int) -> None:
    start.wait()
    cache = RequestCache(Path(folder))
    for i in range(200):
        key = key_of({"i": i})
        found = cache.get(key)
        assert found in (None, b"answer %d" % i)
        if found is None:
            cache.put(key, b"answer %d" % i)
        cache.put(key_of({"who": who, "i": i}), bytes([who]) * i)
    cache.close()


def test_processes_share_a_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    processes = [context.Process(target=_fill, args=(str(tmp_path / "new"), start, who)) for who in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    cache = RequestCache(tmp_path / "new")
    assert all(cache.get(key_of({"i": i})) == b"answer %d" % i for i in range(200))
    assert all(cache.get(key_of({"who": who, "i": i})) == bytes([who]) * i for who in range(4) for i in range(200))
    assert cache._db.execute("SELECT count(*) FROM answers").fetchone() == (1000,)
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o600
    cache.close()


def test_opening_waits_for_another_process_that_writes(tmp_path: Path) -> None:
    """SQLite itself does not wait while a file becomes one with a write-ahead log."""
    other = sqlite3.connect(tmp_path / "requests.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.3, other.execute, ["COMMIT"])
    release.start()
    cache = RequestCache(tmp_path)
    cache.put(b"key", b"answer")
    assert cache.get(b"key") == b"answer"
    cache.close()
    release.join()
    other.close()


def test_a_damaged_answer_is_asked_again_and_a_damaged_file_is_an_error(
    server: Server, connect: Callable[..., HTTPLM], tmp_path: Path
) -> None:
    rows = some_rows(4)
    lm = connect()
    numbers = lm.token_logprobs(rows)
    path = tmp_path / "cache" / "requests.sqlite"
    lm.close()
    with sqlite3.connect(path) as db:
        for key, value in db.execute("SELECT key, value FROM answers").fetchall()[:2]:
            db.execute("UPDATE answers SET value = ? WHERE key = ?", (value[:-1] + bytes([value[-1] ^ 1]), key))
    db.close()
    server.forget()
    other = connect()
    assert_same(other.token_logprobs(rows), numbers)
    assert len(server.scored) == 2
    other.close()
    path.write_bytes(b"not a database at all, " * 100)
    with pytest.raises(
        ModelError, match=r"request cache '.*requests.sqlite' cannot be used: .*not a database.* delete it"
    ):
        connect()
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ModelError, match="it is of layout 99"):
        connect()


def test_a_cache_that_cannot_be_written(connect: Callable[..., HTTPLM], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"request cache .* cannot be written \(.*cache: off"):
        connect(cache=str(tmp_path / "file" / "below"))


# --- before the run --------------------------------------------------------------------------------------------------


def check(server: Server, model: Path, **changes: Any) -> None:
    said = {"url": server.url, "served_as": "tiny", "timeout": 10, **changes}
    check_server(str(model), HTTP(use="http", **said), caller="likelihood")


@pytest.mark.parametrize("dialect", ["vllm", "plain", "writes one", "no echo"])
def test_a_server_that_can_is_accepted(dialect: Dialect, server: Server, tiny_model: Path) -> None:
    server.dialect = dialect
    check(server, tiny_model)
    assert server.listed == 1 and len(server.completions) <= 4 and not server.scored


def test_a_server_that_cannot_is_refused_before_the_run(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError,
        match=r"likelihood: the server http.* serves no model 'tinny'; it serves tiny, another\. .*served_as: tiny",
    ):
        check(server, tiny_model, served_as="tinny")
    with pytest.raises(ModelError, match=r"GET http.*/models is refused with status 404.* the url goes up to and with"):
        check(server, tiny_model, url=server.url.removesuffix("/v1"))
    with pytest.raises(ModelError, match=r"GET http://127.0.0.1:9/v1/models was not answered; .*ConnectError"):
        check(server, tiny_model, url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError) as caught:
        HTTPLM(str(tiny_model), HTTP(use="http", url=server.url.removesuffix("/v1"), cache=str(tmp_path)))
    assert_travels(caught.value)
    server.dialect = "chat only"
    with pytest.raises(
        ModelError, match=r"were asked, and http.* gives none \(echo: status 400: .*not supported.*backend transformers"
    ):
        check(server, tiny_model)
    server.dialect = "plain"
    for fault, said in [
        ("shifted", "the server read 13 tokens of the 12"),
        ("truncated", "11 log-probabilities for 12 tokens"),
    ]:
        server.fault = lambda number, body, fault=fault: fault
        with pytest.raises(ModelError, match=f"gives none .*{said}"):
            check(server, tiny_model)
    assert not server.scored


def test_another_tokenizer_is_noticed(server: Server, tmp_path: Path, tiny_model: Path) -> None:
    from tests.models.tiny import tiny_tokenizer

    other = tiny_tokenizer()
    vocabulary = json.loads(other.backend_tokenizer.to_str())
    words = vocabulary["model"]["vocab"]
    words["q"], words["z"] = words["z"], words["q"]
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(
        ModelError, match=r"reads the token ids of 'Thequick.* as 'Thezuick.*: its tokenizer is another"
    ):
        check(server, tmp_path / "other")


def test_urls_and_numbers_that_cannot_be_meant() -> None:
    with pytest.raises(InputError, match="a login stands in this URL"):
        HTTP(use="http", url="http://me:secret@host/v1")
    with pytest.raises(InputError, match=r"http://… or https://… was asked"):
        HTTP(use="http", url="host:8000/v1")


# --- the key ---------------------------------------------------------------------------------------------------------


def test_a_key_that_is_missing_or_wrong_is_named_and_never_shown(
    server: Server, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-right"
    with pytest.raises(ModelError, match=r"wants a key, and \$OPENAI_API_KEY is not set \(status 401"):
        check(server, tiny_model)
    monkeypatch.setenv("MY_KEY", SECRET)
    with pytest.raises(ModelError, match=r"the key in \$MY_KEY is not accepted \(status 401: .*\*\*\*") as caught:
        check(server, tiny_model, key_variable="MY_KEY")
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sk-right\nand more")
    with pytest.raises(ModelError, match=r"the key in \$MY_KEY holds a space or a character") as caught:
        check(server, tiny_model, key_variable="MY_KEY")
    assert "sk-right" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sk-right\n")  # as a file ends
    check(server, tiny_model, key_variable="MY_KEY")


# --- a whole run -----------------------------------------------------------------------------------------------------


def scores(directory: Path, name: str) -> pl.DataFrame:
    (folder,) = (directory / "scores").glob(f"{name}-*")
    return pl.read_parquet(folder / "*.parquet").sort("id")


def test_a_run_from_the_command_line(
    server: Server, tiny_model: Path, pool_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likelihood and IFD are those of the Transformers backend, and the key is nowhere."""
    server.key = SECRET
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    pool = pool_of(rows_of(40))
    words = ("likelihood", "ifd")
    backend = {"use": "http", "url": server.url, "served_as": "tiny"}
    document = {
        "name": "http",
        "sources": [{"path": str(pool)}],
        "scorers": {name: {"use": name, "model": str(tiny_model), "backend": backend} for name in words},
        "select": [{"use": "top-k", "on": "ifd", "budget": "50%"}],
        "execution": {"shard_rows": 16, "workers": 1},
        "report": False,
    }
    recipe = tmp_path / "http.yaml"
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    command = [sys.executable, "-m", "curate.cli", "run", str(recipe), "--run", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    asked = [tuple(prompt) for prompt in server.scored]
    # Both scorers share the whole conversation; IFD adds the response alone, of which three are alike.
    assert len(set(asked)) == len(asked) == 40 + 38

    plain = {name: {"use": name, "model": str(tiny_model), "device": "cpu"} for name in words}
    theirs = run(pool, tmp_path / "plain", scorers=plain, select=[])
    for name in words:
        a, b = scores(tmp_path / "run", name), scores(Path(theirs.store.root), name)
        assert a["id"].equals(b["id"]) and a["reason"].null_count() == 40
        for column in b.columns[1:-1]:
            np.testing.assert_allclose(a[column].to_numpy(), b[column].to_numpy(), rtol=1e-5, atol=1e-5)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    (engine,) = manifest["stages"]["likelihood"]["engines"]
    assert engine["server"] == "vllm 9.9.9" and engine["url"] == server.url and engine["template"] == "chat"

    assert SECRET not in done.stderr + done.stdout
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "requests.sqlite" for path in kept)
    assert not any(SECRET.encode() in path.read_bytes() for path in kept)


def test_a_server_that_is_not_there_stops_the_run_before_it_reads(
    pool_of: Any, tiny_model: Path, tmp_path: Path, server: Server
) -> None:
    backend = {"use": "http", "url": "http://127.0.0.1:9/v1"}
    scorers = {"ifd": {"use": "ifd", "model": str(tiny_model), "backend": backend}}
    with pytest.raises(ModelError, match=r"scorer 'ifd': ifd: GET http://127.0.0.1:9/v1/models was not answered"):
        run(pool_of(rows_of(10)), tmp_path / "run", scorers=scorers, select=[])
    assert not (tmp_path / "run/examples").exists()


# --- vLLM's own server -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm_url(example_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("vllm") / "log"
    options = {"--model": example_model, "--served-model-name": "example", "--dtype": "float32", "--port": str(port)}
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--enforce-eager"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command + [word for pair in options.items() for word in pair],
            stdout=out,
            stderr=out,
            cwd=log.parent,
            env=os.environ | settings,
            start_new_session=True,
        )

    def there() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
        except OSError:
            return False

    try:
        wait_until(there, seconds=300)
        yield f"{url}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@needs_vllm
def test_vllms_own_server(vllm_url: str, example_model: str, tmp_path: Path) -> None:
    from curate.models.reference import load_reference, reference_logprobs

    spec = HTTP(use="http", url=vllm_url, served_as="example", cache=str(tmp_path))
    check_server(example_model, spec, caller="likelihood")
    rng = rng_for(0, "vllm")
    rows: list[Row] = []
    for size in [*rng.integers(2, 300, 30), 2047]:
        mask = rng.random(size) < 0.5
        mask[0], mask[-1] = False, True
        rows.append((rng.integers(10, 4000, size).astype(np.int32), mask))
    lm = HTTPLM(example_model, spec)
    try:
        assert lm.context == 2047 and lm.describe()["server"].startswith("vllm 0.")
        assert_same(lm.token_logprobs(rows), reference_logprobs(load_reference(example_model), rows), atol=1e-3)
        lm.context = None  # the server's own refusal, at exactly one token more
        (found,) = lm.forward([(np.arange(2048, dtype=np.int32), np.arange(2048) > 0)], {"logprobs"})
        assert found is not None and found.reason == "longer than the server reads, at 2048 tokens"
        prompts = [np.arange(10, 20), np.arange(70, 90)]
        greedy = lm.generate(prompts, Sampling(max_tokens=12))
        sampled = lm.generate(prompts, Sampling(max_tokens=12, temperature=0.9, n=2, seed=3))
    finally:
        lm.close()
    local = models.load(example_model, dtype="float32", device="cpu")
    assert greedy == local.generate(prompts, Sampling(max_tokens=12))
    models.release(local)
    texts = [text for its in sampled for text in its or []]
    assert len(texts) == 4 and all(isinstance(text, Generation) and text.tokens <= 12 for text in texts)
