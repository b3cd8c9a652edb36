"""One copy of a model per process, shared by everyone who asks for it.

``load`` hands out the copy, ``release`` gives it back.  A model that nobody holds stays loaded, so that the next task
of the same stage finds it, and goes when another model needs its place, or by ``unload``.
"""

from __future__ import annotations

import os
import threading

from curate._imports import require
from curate.models.base import CausalLM, DType
from curate.models.identity import identify

THREADS = "CURATE_TORCH_THREADS"
"""Environment variable: torch threads per process.  Unset, torch decides (and a Dask worker's OMP_NUM_THREADS with
it)."""

_Key = tuple[tuple[tuple[str, str], ...], DType, str, int | None]
_lock = threading.RLock()
_loaded: dict[_Key, tuple[CausalLM, list[int]]] = {}  # key → model, [holders]


def load(model: str, *, dtype: DType = "auto", device: str = "auto", batch_tokens: int | None = None) -> CausalLM:
    """Return the model, loading it unless this process has it.

    Parameters
    ----------
    model : a folder or a Hub name; see ``curate.models.identity.locate``.
    dtype, device, batch_tokens : see ``TransformersLM``.

    Raises
    ------
    ModelError
        If it cannot be found or loaded.
    """
    from curate.models.transformers_lm import TransformersLM

    key = (tuple(sorted(identify(model).items())), dtype, device, batch_tokens)
    with _lock:
        if key not in _loaded:
            for idle in [k for k, (_, holders) in _loaded.items() if holders[0] == 0]:
                _loaded.pop(idle)[0].close()
            set_threads()
            _loaded[key] = (TransformersLM(model, dtype=dtype, device=device, batch_tokens=batch_tokens), [0])
        lm, holders = _loaded[key]
        holders[0] += 1
        return lm


def release(lm: CausalLM) -> None:
    """Give back what one ``load`` handed out."""
    with _lock:
        for held, holders in _loaded.values():
            if held is lm:
                holders[0] = max(0, holders[0] - 1)


def unload() -> None:
    """Close every model that this process has loaded, held or not."""
    with _lock:
        while _loaded:
            _loaded.popitem()[1][0].close()


def set_threads(n: int | None = None) -> None:
    """Let torch use ``n`` threads in this process; by default what the environment variable CURATE_TORCH_THREADS says.

    Does nothing where neither is given: a Dask worker has then been given its threads by Dask.
    """
    n = n or int(os.environ.get(THREADS, 0))
    if n:
        require("torch", extra="lm", for_="a language model").set_num_threads(n)
