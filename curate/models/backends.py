"""Where a model runs: what a recipe may say, and what each backend can give.

    backend: transformers                                   # in this process; the default
    backend: vllm                                           # an engine of its own
    backend: {use: vllm, python: /opt/vllm/bin/python}      # vLLM installed in an environment of its own
    backend: {use: http, url: http://localhost:8000/v1}     # any OpenAI-compatible server

Nothing is ever substituted: a backend that cannot give what a scorer asks stops the run before it starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag

from curate.exceptions import InputError
from curate.models.base import LOGPROBS, QUANTITIES, Quantity
from curate.urls import refuse_secrets


@dataclass(frozen=True, kw_only=True)
class Transformers:
    """Hugging Face Transformers, in this process: every quantity, on any device."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a misspelt key in a recipe is an error

    use: Literal["transformers"] = "transformers"
    compile: bool = False
    """Let torch.compile fuse the element-wise steps: half a minute at the start, then faster; for pools of more than a
    few thousand rows."""


@dataclass(frozen=True, kw_only=True)
class VLLM:
    """A vLLM engine in a process of its own, one per worker: log-probabilities, options, generations."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a misspelt key in a recipe is an error

    use: Literal["vllm"] = "vllm"
    python: str | None = None
    """The interpreter of the environment that vLLM is installed in; by default the one that runs curate."""
    gpu_memory: float = 0.85
    """Share of the GPU's memory that the engine may take."""
    batch_tokens: int = 8192
    """Tokens that the engine computes at once (its max_num_batched_tokens): prompt log-probabilities hold a float32
    matrix of that many rows and a column a word of the vocabulary, which vLLM's own memory budget does not count."""
    context: int | None = None
    """Longest row, in tokens; by default the model's own limit.  Less where keys and values of that do not fit."""
    tensor_parallel: int = 1
    """GPUs that one engine spreads over."""
    eager: bool = False
    """Skip CUDA graphs and compilation: a faster start, slower generation."""
    kv_cache_gib: float = 1.0
    """Room for keys and values, on a CPU only; on a GPU it is what ``gpu_memory`` leaves."""

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory <= 1:
            raise InputError(f"backend vllm: gpu_memory={self.gpu_memory}; a share above 0 and up to 1 was asked.")
        for key in ("batch_tokens", "tensor_parallel", "context"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"backend vllm: {key}={value}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class HTTP:
    """An OpenAI-compatible server.  The tokenizer and the template are still those of the scorer's ``model``."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a misspelt key in a recipe is an error

    use: Literal["http"]
    url: str
    """Up to and with the version: "http://localhost:8000/v1"."""
    served_as: str | None = None
    """The model's name on the server; by default the scorer's ``model``."""
    concurrency: int = 16
    """Requests under way at once, in each worker."""
    timeout: float = 120.0
    """Seconds that one request may take."""
    retries: int = 6
    """Attempts after the first, with growing pauses, when the server is busy, fails or goes silent."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; a key never stands in a recipe."""
    cache: str | None = None
    """Folder of the request cache, on a local disk; by default curate's own in the user's cache folder; "off": none."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"backend http: url {self.url!r}; http://… or https://… was asked.")
        refuse_secrets(self.url)
        if self.concurrency < 1 or self.retries < 0 or not self.timeout > 0:
            raise InputError(
                f"backend http: concurrency={self.concurrency}, retries={self.retries}, timeout={self.timeout}; at "
                "least 1, at least 0 and above 0 were asked."
            )


def _kind(given: Any) -> str | None:
    """Return which of the backends is meant, so that an error speaks of that one alone."""
    if given in ("transformers", "vllm"):
        return "word"
    if isinstance(given, Mapping):
        return str(given.get("use", "transformers"))
    return getattr(given, "use", None)


Backend = Annotated[
    Annotated[Literal["transformers", "vllm"], Tag("word")]
    | Annotated[Transformers, Tag("transformers")]
    | Annotated[VLLM, Tag("vllm")]
    | Annotated[HTTP, Tag("http")],
    Discriminator(
        _kind,
        custom_error_type="backend",
        custom_error_message="Transformers, vllm (each also with settings) or {use: http, url: http://…/v1} was asked",
    ),
]
"""What a scorer's ``backend`` may be."""

SERVES: dict[str, frozenset[Quantity]] = {
    "transformers": frozenset(QUANTITIES),
    "vllm": LOGPROBS,
    "http": LOGPROBS,
}
"""The quantities that each backend can give."""


def spec(backend: Backend) -> Transformers | VLLM | HTTP:
    """Return the backend with its settings, from a word or from itself."""
    if isinstance(backend, str):
        return {"transformers": Transformers, "vllm": VLLM}[backend]()
    return backend


def identity(backend: Backend) -> dict[str, Any]:
    """Return what of a backend belongs to a score's identity: its word, and for a server which model it serves."""
    chosen = spec(backend)
    if isinstance(chosen, HTTP):
        return {"use": "http", "url": chosen.url.rstrip("/"), "served_as": chosen.served_as}
    return {"use": chosen.use}


def settings(backend: Backend) -> dict[str, Any]:
    """Return the backend as a recipe would spell it, with defaults filled in."""
    return dataclasses.asdict(spec(backend))


def check(backend: Backend, quantities: Collection[Quantity], *, caller: str) -> None:
    """Raise InputError if the backend cannot give the quantities."""
    word = spec(backend).use
    lacking = sorted(set(quantities) - SERVES[word])
    if lacking:
        able = ", ".join(name for name, serves in SERVES.items() if set(quantities) <= serves)
        raise InputError(
            f"{caller} asks {', '.join(lacking)} of a forward pass; the backend {word!r} gives "
            f"{', '.join(sorted(SERVES[word]))}. Backends that give it: {able}."
        )
