"""One copy of a model per process, shared by everyone who asks for it.

``load`` hands out the copy, ``release`` gives it back.  A model that nobody holds stays loaded, so that the next task
of the same stage finds it, and goes when another model needs its place, or by ``unload``.
"""

from __future__ import annotations

import os
import threading

from curate._imports import require
from curate.models.backends import HTTP, VLLM, Backend, spec
from curate.models.base import CausalLM, DType
from curate.models.identity import identify

THREADS = "CURATE_TORCH_THREADS"
"""Environment variable: torch threads per process.  Unset, torch decides (and a Dask worker's OMP_NUM_THREADS with
it)."""

_Key = tuple[tuple[tuple[str, str], ...], DType, str, int | None, Backend]
_lock = threading.RLock()
_loaded: dict[_Key, tuple[CausalLM, list[int]]] = {}  # key → model, [holders]


def load(
    model: str,
    *,
    dtype: DType = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    backend: Backend = "transformers",
) -> CausalLM:
    """Return the model, loading it unless this process has it.

    Parameters
    ----------
    model : a folder or a Hub name; see ``curate.models.identity.locate``.
    dtype, device, batch_tokens : see ``TransformersLM``; the other backends have batches and devices of their own.
    backend : "transformers", "vllm", or one of ``curate.models.backends`` with its settings.

    Raises
    ------
    ModelError
        If it cannot be found or loaded, or the backend cannot be started.
    """
    chosen = spec(backend)
    weights = not isinstance(chosen, HTTP)
    key = (tuple(sorted(identify(model, weights=weights).items())), dtype, device, batch_tokens, chosen)
    with _lock:
        if key not in _loaded:
            unload(idle=True)
            _loaded[key] = (_start(model, chosen, dtype, device, batch_tokens), [0])
        lm, holders = _loaded[key]
        holders[0] += 1
        return lm


def check(model: str, backend: Backend, *, caller: str) -> None:
    """Raise unless the backend is there: vLLM in its environment, a server that answers.  Loads no weights.

    Raises
    ------
    ModelError
        With what was asked, what was found and what to do.
    """
    chosen = spec(backend)
    if isinstance(chosen, VLLM):
        from curate.models.vllm_engine import check_engine

        check_engine(chosen, caller=caller)
    elif isinstance(chosen, HTTP):
        from curate.models.http_lm import check_server

        check_server(model, chosen, caller=caller)


def _start(model: str, chosen: Backend, dtype: DType, device: str, batch_tokens: int | None) -> CausalLM:
    if isinstance(chosen, VLLM):
        from curate.models.vllm_lm import VLLMLM

        return VLLMLM(model, chosen, dtype=dtype)
    if isinstance(chosen, HTTP):
        from curate.models.http_lm import HTTPLM

        return HTTPLM(model, chosen)
    from curate.models.transformers_lm import TransformersLM

    set_threads()
    compiled = not isinstance(chosen, str) and chosen.compile
    return TransformersLM(model, dtype=dtype, device=device, batch_tokens=batch_tokens, compiled=compiled)


def release(lm: CausalLM) -> None:
    """Give back what one ``load`` handed out."""
    with _lock:
        for held, holders in _loaded.values():
            if held is lm:
                holders[0] = max(0, holders[0] - 1)


def unload(*, idle: bool = False) -> None:
    """Close every model that this process has loaded; with ``idle``, only those that nobody holds."""
    with _lock:
        for key in [key for key, (_, holders) in _loaded.items() if not (idle and holders[0])]:
            _loaded.pop(key)[0].close()


def set_threads(n: int | None = None) -> None:
    """Let torch use ``n`` threads in this process; by default what the environment variable CURATE_TORCH_THREADS says.

    Does nothing where neither is given: a Dask worker has then been given its threads by Dask.
    """
    n = n or int(os.environ.get(THREADS, 0))
    if n:
        require("torch", extra="lm", for_="a language model").set_num_threads(n)
