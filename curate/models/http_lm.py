r"""A model behind an OpenAI-compatible server.

Prompts go out as token ids, made here from the model's own tokenizer and template, to ``POST {url}/completions``: masks
and log-probabilities are of the same tokens, and a chat endpoint, which puts a template of its own around them, cannot
take their place.  Log-probabilities of given tokens come back by ``echo``, or by vLLM's ``prompt_logprobs``; which way
the server knows is found with a dozen tokens before the first row.

What comes back is believed only if it is of the tokens that were sent: as many numbers as tokens, none for the first,
and the ids or their count as they were sent, where the server says.  Anything else is asked again, and then stops the
run.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import re
from collections.abc import Awaitable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import ModelError
from curate.models.backends import HTTP
from curate.models.base import LOGPROBS, CausalLM, Forward, Generation, Quantity, Row, Sampling
from curate.models.http_client import Client, NotAsAskedError, RefusedError
from curate.models.request_cache import RequestCache, default_folder, key_of
from curate.models.rows import check_prompt, check_row
from curate.models.template import load_tokenizer
from curate.seeding import rng_for
from curate.urls import redacted

T = TypeVar("T")

PROBE = "The quick brown fox jumps over 12 lazy dogs."

_FLOOR = -9999.0
"""vLLM writes this for log 0, which JSON has no word for."""

_TOO_LONG = re.compile(r"context.{0,3}length|max_model_len|too (long|large)|longer than|token limit", re.IGNORECASE)


@dataclass(frozen=True)
class _Way:
    """One way to ask for the log-probabilities of a prompt."""

    body: dict[str, Any]
    key: str
    """Where they are in the answer's choice."""


_WAYS = (
    _Way({"echo": True, "logprobs": 0, "max_tokens": 0, "return_token_ids": True}, "logprobs"),  # vLLM
    _Way({"echo": True, "logprobs": 1, "max_tokens": 0}, "logprobs"),
    _Way({"echo": True, "logprobs": 1, "max_tokens": 1}, "logprobs"),  # servers that must write something
    _Way({"prompt_logprobs": 0, "max_tokens": 1, "return_token_ids": True}, "prompt_logprobs"),  # vLLM, echo forbidden
)


@dataclass(frozen=True)
class _Served:
    """What the server says of the model."""

    name: str
    root: str
    """The folder or Hub name that it was loaded from; "" where the server does not say."""
    context: int | None
    owner: str


def check_server(model: str, spec: HTTP, *, caller: str) -> None:
    """Raise ModelError unless the server is there, serves the model, reads our tokens as we do, and scores them.

    Sends ``GET {url}/models`` and completions of a dozen tokens.
    """
    client = Client(spec, for_=caller)
    try:
        served = client.run(_served(client, model, spec, caller=caller))
        client.run(_find_way(client, served.name, load_tokenizer(model), caller=caller))
    finally:
        client.close()


class HTTPLM(CausalLM):
    """A causal LM behind an OpenAI-compatible server: log-probabilities, options, generations.

    Parameters
    ----------
    model : a folder or a Hub name; only its tokenizer is read, and its name is asked of the server.
    spec : url, name on the server, limits, cache.

    Raises
    ------
    ModelError
        If the server does not answer, does not serve the model, or the request cache cannot be used.
    """

    serves = LOGPROBS
    device = "remote"
    dtype = "unknown"

    def __init__(self, model: str, spec: HTTP) -> None:
        self._name, self._spec = model, spec
        caller = f"the model {model!r}"
        self._tokenizer = load_tokenizer(model)
        self.vocab_size = len(self._tokenizer)
        folder = Path(spec.cache).expanduser() if spec.cache else default_folder()
        self._cache = None if spec.cache == "off" else RequestCache(folder)
        self._client = Client(spec, for_=caller, kept=self._kept)
        try:
            self._served = self._client.run(_served(self._client, model, spec, caller=caller))
            self._version = self._client.run(_version(self._client, self._served))
        except BaseException:
            self.close()
            raise
        self.context = self._served.context
        self._way: _Way | None = None
        self._finding = asyncio.Lock()

    def describe(self) -> dict[str, str]:
        return {
            "backend": "http",
            "url": redacted(self._client.url),
            "served_as": self._served.name,
            "server": self._version,
            "dtype": self.dtype,
            "device": self.device,
        }

    # -- what is asked -----------------------------------------------------------------------------------------------

    def forward(self, rows: Sequence[Row], quantities: Collection[Quantity]) -> list[Forward | None]:
        lacking = sorted(set(quantities) - self.serves)
        if lacking:
            raise ModelError(f"{', '.join(lacking)} were asked, but a server gives log-probabilities only.")
        scored = [
            check_row(i, ids, mask, vocab_size=self.vocab_size, context=self.context)
            for i, (ids, mask) in enumerate(rows)
        ]
        out: list[Forward | None] = [Forward(logprobs=np.empty(0, np.float32)) for _ in rows]
        asked = [j for j, at in enumerate(scored) if at.size]
        # What follows the last scored token has no part in the answer.
        prompts = ([int(i) for i in rows[j][0][: scored[j][-1] + 1]] for j in asked)
        for j, found in zip(asked, self._client.map(self._logprobs, prompts), strict=True):
            out[j] = Forward(reason=found) if isinstance(found, str) else Forward(logprobs=found[scored[j]])
        return out

    def generate(self, prompts: Sequence[NDArray[np.integer]], sampling: Sampling) -> list[list[Generation] | None]:
        for i, ids in enumerate(prompts):
            check_prompt(i, ids, vocab_size=self.vocab_size, context=None)
        texts = sampling.n if sampling.temperature else 1  # the likeliest token each time is one text

        def asked() -> Iterator[tuple[list[int], dict[str, Any]] | None]:
            for ids in prompts:
                room = sampling.max_tokens if self._served.context is None else self._room(ids)
                for k in range(texts):
                    settings: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
                    settings["max_tokens"] = min(sampling.max_tokens, room)
                    if sampling.temperature:
                        settings["seed"] = _seed(sampling.seed, ids, k)
                    if sampling.stop:
                        settings["stop"] = list(sampling.stop)
                    yield None if room < 1 else ([int(i) for i in ids], settings)

        found = self._client.map(self._text, asked())
        out: list[list[Generation] | None] = []
        for i in range(len(prompts)):
            its = [text for text in found[i * texts : (i + 1) * texts] if text is not None]
            out.append(its * (sampling.n // texts) if len(its) == texts else None)
        return out

    def _room(self, ids: NDArray[np.integer]) -> int:
        assert self._served.context is not None
        return self._served.context + 1 - len(ids)

    # -- one answer --------------------------------------------------------------------------------------------------

    async def _logprobs(self, ids: list[int]) -> NDArray[np.float32] | str:
        """Return log p of each token (T,), NaN for the first; or why the server refuses the row."""
        request = {**self._asks("logprobs"), "ids": ids}
        kept = self._recall(request)
        if kept is not None and len(kept) == 4 * len(ids):
            return np.frombuffer(kept, dtype="<f4")
        async with self._finding:
            if self._way is None:
                caller = f"the model {self._name!r}"
                self._way = await _find_way(self._client, self._served.name, self._tokenizer, caller=caller)
        found = await self._unless_refused(_ask_logprobs(self._client, self._served.name, ids, self._way))
        if isinstance(found, RefusedError):
            return self._too_long(found, len(ids))
        self._keep(request, found.astype("<f4").tobytes())
        return found

    async def _text(self, asked: tuple[list[int], dict[str, Any]] | None) -> Generation | None:
        """Return one text; None where the prompt does not fit."""
        if asked is None:
            return None
        ids, settings = asked
        request = {**self._asks("text"), "ids": ids, **settings}
        kept = self._recall(request)
        if kept is not None:
            return Generation(*json.loads(kept))
        body = {"model": self._served.name, "prompt": ids, "n": 1, **settings}
        if self._served.owner == "vllm":  # its own defaults come from the model's generation_config.json
            body |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
        found = await self._unless_refused(self._client.send("POST", "/completions", body, read=_read_text))
        if isinstance(found, RefusedError):
            self._too_long(found, len(ids))
            return None
        self._keep(request, json.dumps([found.text, found.tokens, found.finished]).encode())
        return found

    @staticmethod
    async def _unless_refused(answer: Awaitable[T]) -> T | RefusedError:
        try:
            return await answer
        except RefusedError as refusal:
            return refusal

    def _too_long(self, refusal: RefusedError, tokens: int) -> str:
        """Return the reason of a row that is too long for the server; any other refusal stops the run."""
        if refusal.status in (400, 413, 422) and _TOO_LONG.search(refusal.said):
            return f"longer than the server reads, at {tokens} tokens"
        raise ModelError(
            f"the model {self._name!r}: {redacted(self._client.url)}/completions refuses a row of {tokens} tokens with "
            f"{refusal}.{self._kept()}"
        )

    # -- the request cache -------------------------------------------------------------------------------------------

    def _asks(self, what: str) -> dict[str, Any]:
        """Return what an answer depends on besides the tokens, whichever way it is asked."""
        return {"url": self._client.url, "model": self._served.name, "root": self._served.root, "ask": what}

    def _recall(self, request: dict[str, Any]) -> bytes | None:
        return None if self._cache is None else self._cache.get(key_of(request))

    def _keep(self, request: dict[str, Any], answer: bytes) -> None:
        if self._cache is not None:
            self._cache.put(key_of(request), answer)

    def _kept(self) -> str:
        if self._cache is None:
            return " No request cache is in use (cache: off): what was answered is asked again."
        kept = f"{self._cache.written:,} answers that came are in {str(self._cache.path)!r}"
        return f" Run the same command again: the {kept}, and are not asked again."

    def close(self) -> None:
        self._client.close()
        if self._cache is not None:
            self._cache.close()


# -- the server ------------------------------------------------------------------------------------------------------


async def _served(client: Client, model: str, spec: HTTP, *, caller: str) -> _Served:
    """Return what the server says of the model; ModelError if it serves none of that name."""
    where = redacted(client.url)
    try:
        found: list[dict[str, Any]] = await client.send("GET", "/models", read=_read_models, retries=1)
    except RefusedError as refusal:
        hint = "; the url goes up to and with the version: http://HOST:PORT/v1" if refusal.status == 404 else ""
        raise ModelError(f"{caller}: GET {where}/models is refused with {refusal}{hint}.") from None
    name = spec.served_as or model.partition("@")[0]
    for entry in found:
        if entry["id"] == name:
            length = entry.get("max_model_len")
            # Servers that name a limit (vLLM, SGLang) count the token that follows, which they always compute.
            context = length - 1 if isinstance(length, int) and length > 1 else None
            return _Served(name, str(entry.get("root") or ""), context, str(entry.get("owned_by") or ""))
    names = [str(entry["id"]) for entry in found]
    likeliest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    advice = f"name it: backend: {{use: http, served_as: {likeliest[0]}}}" if likeliest else "start it with the model"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise ModelError(
        f"{caller}: the server {where} serves no model {name!r}; it serves {', '.join(names[:5]) or 'none'}{more}. If "
        f"one of them is that model, {advice}."
    )


def _read_models(answer: Any) -> list[dict[str, Any]]:
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(entry, dict) and "id" in entry for entry in data):
        raise NotAsAskedError("a list of models was asked")
    return data


async def _version(client: Client, served: _Served) -> str:
    """Return the server's name, and its version where it has a way to say so."""
    if served.owner != "vllm":
        return served.owner or "unknown"
    try:
        found = await client.send("GET", client.url.removesuffix("/v1") + "/version", read=_read_version, retries=0)
    except (RefusedError, ModelError, NotAsAskedError):
        return "vllm"
    return f"vllm {found}"


def _read_version(answer: Any) -> str:
    return str(answer.get("version", "")) if isinstance(answer, dict) else ""


async def _find_way(client: Client, name: str, tokenizer: Any, *, caller: str) -> _Way:
    """Return the first way in which the server gives the log-probabilities of a short text's tokens."""
    ids = [int(i) for i in tokenizer(PROBE, add_special_tokens=False)["input_ids"]][:12]
    refused = []
    for way in _WAYS:
        try:
            await _ask_logprobs(client, name, ids, way, tokenizer=tokenizer, retries=1)
        except (RefusedError, _NotThisWayError) as error:
            refused.append(f"{'echo' if 'echo' in way.body else 'prompt_logprobs'}: {error}")
        else:
            return way
    raise ModelError(
        f"{caller}: log-probabilities of a prompt's tokens were asked, and {redacted(client.url)} gives none "
        f"({'; '.join(dict.fromkeys(refused))}). vLLM gives them, and other servers whose /completions takes token ids "
        "with echo and logprobs. Otherwise use the backend transformers or vllm."
    )


class _NotThisWayError(Exception):
    """While a way is looked for: the answer was not as asked."""


async def _ask_logprobs(
    client: Client, name: str, ids: list[int], way: _Way, *, tokenizer: Any = None, retries: int | None = None
) -> NDArray[np.float32]:
    """Return log p of each token (T,), NaN for the first.

    With a tokenizer, which is while a way is looked for, the texts of the tokens must be the same too, and an answer
    that is not as asked is no fault.
    """
    # Temperature 1: what a server divides by it, if it does, stays as it is.
    body = {"model": name, "prompt": ids, "temperature": 1.0, **way.body}

    def read(answer: Any) -> NDArray[np.float32]:
        try:
            found = _read_logprobs(answer, ids, way)
            if tokenizer is not None:
                _check_texts(answer, ids, tokenizer)
        except NotAsAskedError as error:
            if tokenizer is None:
                raise
            raise _NotThisWayError(str(error)) from None
        return found

    return await client.send("POST", "/completions", body, read=read, retries=retries)


# -- what an answer must hold ----------------------------------------------------------------------------------------


def _choice(answer: Any) -> dict[str, Any]:
    if isinstance(answer, dict) and answer.get("error"):
        raise NotAsAskedError(f"error: {answer['error']}")
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise NotAsAskedError("one choice was asked")
    return choices[0]


def _usage(answer: Any, key: str) -> int | None:
    usage = answer.get("usage")
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def _read_logprobs(answer: Any, ids: list[int], way: _Way) -> NDArray[np.float32]:
    """Return log p of each token (T,), NaN for the first.

    Raises
    ------
    NotAsAskedError
        If any number may be of another token than the one that was sent.
    """
    choice = _choice(answer)
    read_ids = choice.get("prompt_token_ids")
    if read_ids is not None and read_ids != ids:
        raise NotAsAskedError("the server read other token ids than were sent")
    count = _usage(answer, "prompt_tokens")
    if count is not None and count != len(ids):
        raise NotAsAskedError(f"the server read {count} tokens of the {len(ids)} that were sent")
    values: Any
    if way.key == "prompt_logprobs":
        values = _of_ids(choice.get("prompt_logprobs"), ids)
    else:
        held = choice.get("logprobs")
        values = held.get("token_logprobs") if isinstance(held, dict) else None
        if not isinstance(values, list):
            raise NotAsAskedError("no token_logprobs are in it")
        written = len(values) - len(ids)
        expected = _usage(answer, "completion_tokens") if way.body["max_tokens"] else 0
        if written not in ((0, 1) if expected is None else (expected,)):
            raise NotAsAskedError(f"{len(values)} log-probabilities for {len(ids)} tokens")
        if written and read_ids is None and count is None:
            raise NotAsAskedError("it does not say how many of its log-probabilities are of the prompt")
        values = values[: len(ids)]
    if values[0] is not None:
        raise NotAsAskedError("the first token, which nothing predicts, has a log-probability")
    if not all(type(value) in (int, float) for value in values[1:]):
        raise NotAsAskedError("a token has no log-probability")
    found = np.array([np.nan, *values[1:]], dtype=np.float32)
    if (found > 1e-3).any():
        raise NotAsAskedError(f"a log-probability of {np.nanmax(found):.4g}, above 0")
    found[found <= _FLOOR] = -np.inf
    return found


def _of_ids(entries: Any, ids: list[int]) -> list[Any]:
    """Return the log-probability of each id from vLLM's prompt_logprobs: None, {id: {"logprob": …}, …}, …"""
    if not isinstance(entries, list) or len(entries) != len(ids):
        raise NotAsAskedError(f"no prompt_logprobs for each of {len(ids)} tokens")
    try:
        return [entries[0], *(entry[str(i)]["logprob"] for entry, i in zip(entries[1:], ids[1:], strict=True))]
    except (KeyError, TypeError):
        raise NotAsAskedError("prompt_logprobs of other token ids than were sent") from None


def _check_texts(answer: Any, ids: list[int], tokenizer: Any) -> None:
    """Raise ModelError if the server's texts of our ids, where it gives them, are not ours: another tokenizer."""
    held = _choice(answer).get("logprobs")
    texts = held.get("tokens") if isinstance(held, dict) else None
    if not isinstance(texts, list) or any(str(text).startswith(("token_id:", "bytes:")) for text in texts):
        return
    bare = lambda text: re.sub(r"[\sĠ▁]", "", text)  # noqa: E731  each library has its own mark for a space
    theirs, ours = bare("".join(map(str, texts[: len(ids)]))), bare(tokenizer.decode(ids))
    if theirs != ours:
        raise ModelError(
            f"the server reads the token ids of {ours!r} as {theirs!r}: its tokenizer is another one than that of the "
            "scorer's model; name the model that it serves."
        )


def _read_text(answer: Any) -> Generation:
    choice = _choice(answer)
    text, ended, tokens = choice.get("text"), choice.get("finish_reason"), _usage(answer, "completion_tokens")
    if not isinstance(text, str) or tokens is None or ended not in ("stop", "length"):
        raise NotAsAskedError(f"a text, its number of tokens and why it ended were asked; it ended by {ended!r}")
    return Generation(text, tokens, ended == "stop")


def _seed(seed: int, ids: NDArray[np.integer], k: int) -> int:
    """Return the seed of text ``k`` of a prompt: 31 bits, which every server reads."""
    prompt = hashlib.blake2b(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()
    return int(rng_for(seed, "generate", prompt, k).integers(2**31))
