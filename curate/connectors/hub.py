"""Talking to the Hub: patience with its hiccups, and its refusals in words that say what to do.

``huggingface_hub`` does the talking.  It repeats what it uploads and downloads by itself; the small calls around that
(who am I, what is in the repository, commit) it makes once, so ``patiently`` repeats them here.  The token is the
environment's or the Hub's own login; it never appears in what these functions say.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from curate._imports import require
from curate.exceptions import CurateError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

TRIES = 5
LONGEST_WAIT = 120.0
"""Seconds that ``patiently`` waits when the Hub asks for it; for longer than that, the person decides."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "aiohttp")
_sleep = time.sleep


def is_hub(path: str) -> bool:
    """Whether a path is on the Hub: ``hf://…``, or a dataset's id, ``hf:USER/NAME``."""
    return path.startswith("hf:")


def api(endpoint: str | None = None) -> HfApi:
    """Return the Hub's own client; ``endpoint`` is ``HF_ENDPOINT``, or huggingface.co, when None."""
    return require("huggingface_hub", extra="hub", for_="the Hub").HfApi(endpoint=endpoint)


def token() -> str | None:
    """Return the token of ``HF_TOKEN`` or of ``hf auth login``; None where there is neither."""
    return require("huggingface_hub", extra="hub", for_="the Hub").get_token()


def endpoint_of(client: HfApi) -> str:
    """Return the address of the Hub that a client talks to."""
    return str(client.endpoint).rstrip("/")


def patiently(call: Callable[..., T], *args: Any, say: Callable[[str], None] | None = None, **options: Any) -> T:
    """Return ``call(*args, **options)``; after a passing failure (429, 5xx, a lost connection) wait and try again.

    Waits what ``Retry-After`` says, else 1, 2, 4 and 8 seconds.  Only for calls that may be made twice.
    """
    for attempt in range(TRIES):
        try:
            return call(*args, **options)
        except Exception as error:
            pause = retry_after(error)
            pause = 2.0**attempt if pause is None else pause
            if attempt + 1 == TRIES or not passing(error) or pause > LONGEST_WAIT:
                raise
            if say is not None:
                code = _status(error)
                say(f"the Hub {f'answered {code}' if code else 'did not answer'}; trying again in {pause:.0f} s")
            _sleep(pause)
    raise AssertionError("unreachable")


def passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself."""
    if _find(error, "OfflineModeIsEnabled"):
        return False
    status = _status(error)
    return status in _PASSING if status else _is_network(error)


def retry_after(error: BaseException) -> float | None:
    """Return the seconds that the Hub asks to wait, if it says so in seconds."""
    headers = getattr(getattr(_http(error), "response", None), "headers", None) or {}
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers["Retry-After"])) if "Retry-After" in headers else None
    return None


@contextlib.contextmanager
def asking(what: str, kind: Callable[[str], CurateError], *, then: str = "") -> Iterator[None]:
    """Turn what goes wrong inside into ``kind`` ("WHAT: WHY; what to do. THEN").

    What cannot be the Hub's or the network's doing is left as it is; with ``then``, which stands where nothing but the
    Hub's client is at work, whatever that raises is told.  The original error goes along (``--debug`` shows it), unless
    it holds the token.
    """
    try:
        yield
    except CurateError:
        raise
    except Exception as error:
        said = explain(error)
        if said is None and then and isinstance(error, OSError | RuntimeError | ValueError):
            said = f"the Hub's client failed: {type(error).__name__}: {_short(error)}."
        if said is None:
            raise
        raise kind(hidden(f"{what}: {said} {then}".rstrip())) from (None if _tells_token(error) else error)


def is_missing(error: BaseException, kind: str) -> bool:
    """Whether the Hub said that there is none; ``kind`` is the name of its error, "RepositoryNotFoundError"."""
    return _find(error, kind) is not None and _find(error, "GatedRepoError") is None


def hidden(text: str) -> str:
    """Return the text without the token."""
    secret = _known_token()
    return text.replace(secret, "[token]") if secret else text


def explain(error: BaseException) -> str | None:
    """Say what the Hub, or the way there, objects to and what to do; None for any other error."""
    if _find(error, "OfflineModeIsEnabled"):
        return "HF_HUB_OFFLINE is set, so the Hub may not be asked; unset it."
    http = _http(error)
    if http is None:
        if _find(error, "LocalTokenNotFoundError"):
            return NO_TOKEN
        if _is_network(error):
            return (
                f"the Hub cannot be reached ({_short(error)}); check the network, a proxy (HTTPS_PROXY) or "
                "HF_ENDPOINT, and try again."
            )
        invalid = _find(error, "HFValidationError") or _find(error, "HfUriError")
        return f"{_short(invalid)}; USER/NAME was asked." if invalid else None
    status, names = _status(http), {cls.__name__ for cls in type(http).__mro__}
    told = _server_words(http)
    words = f" ({told})" if told else ""
    rejected = told.lower()
    if status == 401 and _known_token() and any(w in rejected for w in ("expired", "credentials", "token", "password")):
        return f"the Hub does not accept the token{words}; log in again (hf auth login), or renew HF_TOKEN."
    if "GatedRepoError" in names:
        return f"access is granted on request only{words}; ask on the repository's page, then log in (hf auth login)."
    if "RevisionNotFoundError" in names:
        return "there is no such branch, tag or commit; check what stands behind '@'."
    if "EntryNotFoundError" in names:
        return "there is no such file in the repository; check the path."
    if "RepositoryNotFoundError" in names or status in (401, 404):
        if _known_token():
            return "there is no such repository, or this login may not see it; check the name, or the token's rights."
        return "there is no such repository, or it is private; check the name, or log in (hf auth login, or HF_TOKEN)."
    if status == 403:
        return f"not permitted{words}; this needs a token with the right to it: see https://huggingface.co/settings/tokens."
    if status == 402:
        return f"the Hub asks for payment{words}; see the storage and plan of this account."
    if status == 409 or status == 412:
        return (
            f"the repository was changed by somebody else meanwhile{words}; look at it, and run the same command again."
        )
    if status == 413:
        return f"the Hub finds this too large{words}."
    if status == 429:
        pause = retry_after(http)
        wait = f"in {pause:.0f} s" if pause is not None else "later"
        return f"too many requests, also after waiting{words}; run the same command again {wait}."
    if status in _PASSING:
        return f"the Hub failed ({status}), also when asked again{words}; run the same command again later."
    return f"the Hub refused ({status}{f': {told}' if told else ''})."


NO_TOKEN = "no token was found; log in (hf auth login), or set HF_TOKEN to a token with write access."


# -- what an error is --------------------------------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, the outermost first."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _find(error: BaseException, name: str) -> BaseException | None:
    """Return the first error of a class called ``name`` (or below it) among an error and its causes.

    By name, because the classes have moved between the versions of the library.
    """
    return next((e for e in _chain(error) if any(c.__name__ == name for c in type(e).__mro__)), None)


def _http(error: BaseException) -> Any:
    found = _find(error, "HfHubHTTPError")
    return found or next((e for e in _chain(error) if getattr(e, "response", None) is not None), None)


def _status(error: BaseException) -> int:
    """Return the HTTP status that an error is about; 0 for none."""
    return int(getattr(getattr(_http(error), "response", None), "status_code", 0) or 0)


def _is_network(error: BaseException) -> bool:
    return any(
        isinstance(e, ConnectionError | TimeoutError) or type(e).__module__.startswith(_NETWORK) for e in _chain(error)
    )


def _server_words(http: Any) -> str:
    """Return what the server itself said, on one line of at most 300 characters."""
    response = getattr(http, "response", None)
    said = getattr(http, "server_message", None) or (
        None if response is None else response.headers.get("X-Error-Message")
    )
    return " ".join(str(said or "").split()).rstrip(".")[:300]


def _short(error: BaseException) -> str:
    """Return an error's first line; of a network error, the deepest one's, which knows the reason."""
    named = [e for e in _chain(error) if _is_network(e)]
    text = str((named or [error])[-1]).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:300]


def _known_token() -> str | None:
    with contextlib.suppress(Exception):  # a login that cannot be read is none
        return token()
    return os.environ.get("HF_TOKEN") or None


def _tells_token(error: BaseException) -> bool:
    secret = _known_token()
    return secret is not None and secret in "".join(traceback.format_exception(error))
