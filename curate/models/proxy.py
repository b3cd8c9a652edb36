r"""A proxy: a model trained on a selection's rows, to be measured in its place.

    L    = −1/S Σ_i Σ_t log p(y_it)      over the S scored tokens of all rows of a step
    g    = ∂L/∂θ, scaled to a length of at most ``clip``
    θ    by AdamW at the step's learning rate

A token counts as a token, as in the trainers that people use; the warm-up of an influence score (``warmup``) counts a
row as a row, mean over its tokens first, so there a short answer weighs as much as a long one.

The trainer is ``transformers.Trainer``.  It needs one package beside Transformers, accelerate; TRL's is the same class
under another release cycle and with the data handling on top that is done here already (template, mask, packing).  Its
are optimizer, clipping, mixed precision, checkpoints and their restoring; ours the batches, the loss and the schedule:

* Rows come as token ids with the mask of scoring; a row is what stands before its last scored token.
* A step is some number of *tokens*, not of rows (``plan``): selections of equal tokens make equal steps.
* A step's rows go through the model packed, without padding (``curate.models.packing``), or, where the model does not
  allow that, in batches of similar length; a budget of tokens at a time.  Either changes sums by rounding only.
* Logits exist at the scored positions only, a block at a time, and are gone before the layers' backward pass.

On a CPU the same rows, settings, number of threads and kind of processor give the same bits, also when stopped and
continued; a GPU adds up some gradients in no fixed order.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import InputError, ModelError
from curate.fingerprint import fingerprint
from curate.models.base import SMALL, DType, Row
from curate.models.identity import identify
from curate.models.loading import set_threads
from curate.models.lora import Lora, attach, fresh, put
from curate.models.rows import check_row
from curate.models.weights import find_device, load_weights
from curate.seeding import rng_for

if TYPE_CHECKING:
    from curate.models.transformers_lm import TransformersLM

Method = Literal["full", "lora"]

DIVERGED = (1.25, 0.5)
"""A training has diverged if its last quarter of steps has a mean loss above 1.25 times that of the untrained model on
the same rows, and by more than 0.5 nats a token; so has one with a loss that is no number.  The untrained model is
asked only where the loss is so far above that of the first step: some rows are harder than others."""

TINY = 100_000_000
"""Parameters below which a model takes, and needs, a higher learning rate."""

_RATES: dict[tuple[Method, bool], float] = {
    ("full", True): 3e-4,
    ("lora", True): 3e-3,
    ("full", False): 2e-5,
    ("lora", False): 2e-4,
}
"""(method, below ``TINY`` parameters) → learning rate.  Ours, for the shipped model, which 1e-3 of all weights makes
worse on held-out rows (``benchmarks/evaluate/rates.py``); what is usual for larger ones."""

_VERSION = 1  # raised whenever the same settings and rows would train otherwise: part of the fingerprint

_EVERY_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a proxy is trained."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a misspelt key in a recipe is an error

    method: Literal["auto", "full", "lora"] = "auto"
    """All weights, or an adapter that is merged afterwards; "auto": all below 10⁹ parameters."""
    lora: Lora = field(default_factory=lambda: Lora(r=16, alpha=32, dropout=0.0, layers=_EVERY_LAYER))
    epochs: int = 1
    rate: float | None = None
    """Highest learning rate.  None: 3e-4 of all weights and 3e-3 of an adapter below 10⁸ parameters; 2e-5 and 2e-4
    above."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How it falls, to 0 after the last step."""
    warmup: float = 0.03
    """Share of all steps in which it rises."""
    tokens_per_step: int = 4096
    """Tokens of a step, about: rows are not cut (``plan``)."""
    max_tokens: int | None = None
    """Longer rows are cut there; None: at the model's context."""
    packing: bool = True
    """Rows one after another without padding, each attended to alone; where the model does not allow it, a warning says
    why and rows are padded."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in; weights that are trained, and the optimizer, are float32.  "auto": float32 below 10⁹
    parameters."""
    batch_tokens: int | None = None
    """Tokens that go through the model at once, padding counted; default 2048 on a CPU, 8192 else."""
    clip: float | None = 1.0
    """Greatest length of a step's gradient."""
    weight_decay: float = 0.0
    seed: int = 0
    """Of the order of the rows, of an adapter's fresh weights and of what is dropped."""

    def __post_init__(self) -> None:
        positive = ("epochs", "rate", "tokens_per_step", "max_tokens", "batch_tokens", "clip")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"training: {name}={value}; it must be above 0.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"training: warmup={self.warmup}; it must be in [0, 1).")
        if not self.weight_decay >= 0:
            raise InputError(f"training: weight_decay={self.weight_decay}; it must be at least 0.")
        allowed = {
            "method": ("auto", "full", "lora"),
            "schedule": ("linear", "cosine", "constant"),
            "dtype": ("auto", "float32", "bfloat16"),
        }
        for name, words in allowed.items():
            if getattr(self, name) not in words:
                raise InputError(f"training: {name}={getattr(self, name)!r}; {', '.join(words)} was asked.")

    def method_for(self, parameters: int) -> Method:
        """Return the method for a model of so many parameters."""
        if self.method != "auto":
            return self.method
        return "full" if parameters < SMALL else "lora"

    def dtype_for(self, parameters: int) -> Literal["float32", "bfloat16"]:
        if self.dtype != "auto":
            return self.dtype
        return "float32" if parameters < SMALL else "bfloat16"

    def rate_for(self, parameters: int) -> float:
        return self.rate or _RATES[self.method_for(parameters), parameters < TINY]

    def batch_tokens_on(self, device: str) -> int:
        return self.batch_tokens or (2048 if device == "cpu" else 8192)

    def logits_on(self, device: str) -> int:
        """Return how many logits exist at once: 16 MiB of float32, or 512 MiB."""
        return 2**22 if device == "cpu" else 2**27

    def share_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, from 0, of all ``steps``, as a share of the highest.

        The first step has some already, (step + 1)/(rising + 1) in the rise: a proxy makes too few to give one away.
        """
        rising = math.ceil(steps * self.warmup)
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1, steps - rising)
        if self.schedule == "constant":
            return 1.0
        return 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, eq=False)
class Trained:
    """A proxy after its training, and what that was."""

    lm: TransformersLM
    """The model, an adapter merged into it, ready to be measured; it is the caller's to close."""
    losses: NDArray[np.float64]
    """(steps,) mean loss of each step's tokens before the step, nats per token."""
    steps: int
    """Steps taken: fewer than planned where the loss was no number."""
    tokens: int
    """Tokens that went through the model in them, each pass counted, padding not."""
    scored: int
    """Those of them whose prediction is in the loss."""
    epochs: float
    """Passes over the rows."""
    seconds: float
    """Of the steps alone, on whatever machine each was taken."""
    flops: float
    """Estimate: 6 N ``tokens`` of all weights; 4 N + 6 (the adapter's) where N are frozen, which have no gradients of
    their own.  N counts every weight that multiplies: not an input embedding, unless it is the head as well.  The
    square of attention is left out."""
    diverged: str | None
    """Why the training counts as diverged (``DIVERGED``)."""
    unpacked: str | None
    """Why rows were padded: packing was not asked, or what forbids it."""
    cut: int
    """Rows that were longer than ``max_tokens``, or than the context."""
    left_out: int
    """Rows without a scored token, or with none before the cut; nothing is learnt from them."""
    resumed: int
    """Steps that an earlier, interrupted training had taken."""


def tokens_of(rows: Sequence[Row], limit: int | None = None) -> NDArray[np.int64]:
    """Return how many tokens of each row go through the model: those before its last scored token, (n,); 0 for none.

    ``limit``: tokens of a row, after which it is cut.
    """
    out = np.zeros(len(rows), dtype=np.int64)
    for i, (_, mask) in enumerate(rows):
        at = np.flatnonzero(mask[:limit])
        out[i] = at[-1] if at.size else 0
    return out


def plan(lengths: NDArray[np.int64], settings: Training, steps: int | None = None) -> list[NDArray[np.int64]]:
    """Return the rows of each step.

    An epoch of ΣT tokens makes k = ⌈ΣT / tokens_per_step⌉ steps, at most as many as rows; in its order, drawn anew, a
    row belongs to the step in whose k-th of the tokens its middle lies.  So the number of steps depends on the tokens
    alone, and no step is much longer than another.

    Parameters
    ----------
    lengths : (n,) tokens of each row, above 0.
    steps : take exactly so many: an epoch is broken off, or more follow; default ``settings.epochs`` whole ones.
    """
    n = len(lengths)
    if not n:
        return []
    total = int(lengths.sum())
    an_epoch = min(n, -(-total // settings.tokens_per_step))
    wanted = an_epoch * settings.epochs if steps is None else steps
    out: list[NDArray[np.int64]] = []
    for epoch in range(-(-wanted // an_epoch)):
        order = rng_for(settings.seed, "proxy", epoch).permutation(n)
        middles = np.cumsum(lengths[order]) - lengths[order] / 2
        first = np.searchsorted(middles, np.arange(1, an_epoch) * (total / an_epoch))
        # A row longer than a step leaves none for the steps that it covers: each takes one from its neighbours.
        k = np.arange(1, an_epoch)
        first = np.minimum(np.maximum.accumulate(np.maximum(first, 1) - k) + k, n - an_epoch + k)
        out += np.split(order, first)
    return out[:wanted]


_one_at_a_time = threading.Lock()
"""The trainer draws from the process's own random streams, and keeps one device for all its instances."""


def train(
    model: str,
    rows: Sequence[Row],
    settings: Training,
    *,
    steps: int | None = None,
    directory: str | Path | None = None,
    every: float = 60.0,
    told: Callable[[int, int, float], None] | None = None,
    device: str = "auto",
) -> Trained:
    """Train a model on rows, and return it with its losses.

    Parameters
    ----------
    rows : (ids, mask) pairs, each array (T,), as ``curate.models.Encoder`` makes them.
    steps : take exactly so many, rather than ``settings.epochs``; see ``plan``.
    directory : where checkpoints go, and where a training that was interrupted is taken up; None for none.  It holds
        one training; what it holds at the end is its last step, and the caller's to remove.
    every : seconds between checkpoints.
    told : is called after each step with (steps so far, all steps, loss in nats per token).
    device : "cpu", "cuda", "mps"; "auto" takes a GPU where there is one.  Of several GPUs the first that this process
        sees.

    Raises
    ------
    InputError
        If no row has a scored token, or one is malformed.
    ModelError
        If the model cannot be loaded, does not fit into memory (``memory.fits``: said before the first step), or the
        directory holds the checkpoints of another training.
    MissingDependencyError
        If accelerate or peft is lacking.
    """
    require("accelerate", extra="evaluate", for_=f"training the model {model!r}")
    import torch

    from curate.models.memory import fits
    from curate.models.proxy_trainer import Run, run
    from curate.models.transformers_lm import TransformersLM

    set_threads()
    device = _one_device(find_device(torch, device))
    if reason := fits(model, settings, device):
        raise ModelError(reason)
    loaded = load_weights(model, "auto")
    parameters = sum(p.numel() for p in loaded.parameters())
    method, dtype = settings.method_for(parameters), settings.dtype_for(parameters)
    loaded = loaded.to(torch.float32 if method == "full" else getattr(torch, dtype))
    kept, lengths, cut = _prepare(rows, loaded, settings)
    planned = plan(lengths, settings, steps)
    with _one_at_a_time:
        adapted = loaded
        if method == "lora":
            adapted = attach(loaded, settings.lora, name=model)
            put(adapted, fresh(adapted, settings.seed))
        done = run(
            Run(
                model=loaded,
                adapted=adapted,
                rows=kept,
                lengths=lengths,
                plan=planned,
                settings=settings,
                rate=settings.rate_for(parameters),
                half=dtype == "bfloat16",
                device=device,
                directory=None if directory is None else Path(directory),
                every=every,
                name=model,
                fingerprint=_fingerprint(model, kept, settings, len(planned)),
                told=told,
            )
        )
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    multiplying = parameters - _lookups(loaded)
    taken = planned[: len(done.losses)]
    tokens = int(sum(lengths[step].sum() for step in taken))
    per_token = 6 * multiplying if method == "full" else 4 * multiplying + 6 * trainable
    if method == "lora":
        loaded = adapted.merge_and_unload()
    loaded.requires_grad_(False)
    loaded.zero_grad()
    return Trained(
        lm=TransformersLM(model, dtype=dtype, device=device, loaded=loaded.to(getattr(torch, dtype))),
        losses=done.losses,
        steps=len(taken),
        tokens=tokens,
        scored=sum(int(kept[i][1].sum()) for step in taken for i in step.tolist()),
        epochs=sum(map(len, taken)) / len(kept),
        seconds=done.seconds,
        flops=float(per_token) * tokens,
        diverged=_diverged(
            done.losses,
            finite=done.finite,
            planned=len(planned),
            untrained=lambda last: _untrained(
                model, [[kept[i] for i in step.tolist()] for step in taken[-last:]], dtype=dtype, device=device
            ),
        ),
        unpacked=done.unpacked,
        cut=cut,
        left_out=len(rows) - len(kept),
        resumed=done.resumed,
    )


def _one_device(device: str) -> str:
    if device not in ("cpu", "cuda", "cuda:0", "mps"):
        raise ModelError(
            f"training on {device!r} was asked; the trainer takes the first GPU that it sees: set CUDA_VISIBLE_DEVICES="
            f"{device.partition(':')[2]} and ask for 'cuda'."
        )
    return device


def _prepare(rows: Sequence[Row], loaded: Any, settings: Training) -> tuple[list[Row], NDArray[np.int64], int]:
    """Return the rows that teach something, cut after their last scored token; their tokens; how many were longer."""
    context = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)
    limit = min((x for x in (settings.max_tokens, context) if x is not None), default=None)
    size = loaded.get_input_embeddings().num_embeddings
    for i, (ids, mask) in enumerate(rows):
        check_row(i, ids, mask, vocab_size=size, context=None)
    lengths = tokens_of(rows, limit)
    kept = np.flatnonzero(lengths).tolist()
    if not kept:
        raise InputError(
            f"training: rows with a token in the loss were asked; of {len(rows)} none has one"
            + ("." if limit is None else f" before {limit} tokens.")
        )
    cut = sum(limit is not None and bool(mask[limit:].any()) for _, mask in rows)
    return [(rows[i][0][: lengths[i] + 1], rows[i][1][: lengths[i] + 1]) for i in kept], lengths[kept], cut


def _lookups(loaded: Any) -> int:
    """Return how many weights are only looked up: those of an input embedding that is not the head as well."""
    table, head = loaded.get_input_embeddings().weight, loaded.get_output_embeddings()
    return 0 if head is not None and head.weight is table else int(table.numel())


def _fingerprint(model: str, rows: Sequence[Row], settings: Training, steps: int) -> str:
    """Return what a training depends on, 64 bits: model, rows in order, settings, number of steps."""
    digest = hashlib.blake2b(digest_size=16)
    for ids, mask in rows:
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes() + mask.tobytes())
    return fingerprint("proxy", _VERSION, identify(model), digest.hexdigest(), asdict(settings), steps)


def _diverged(
    losses: NDArray[np.float64], *, finite: bool, planned: int, untrained: Callable[[int], float]
) -> str | None:
    """Return why a training counts as diverged, None for one that does not.

    ``untrained``: the loss of the model as it was, over the rows of so many last steps; asked only in doubt.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        return f"the loss was no number at step {bad[0] + 1} of {planned}; lower the rate"
    if not finite:
        return f"the weights are no numbers after step {len(losses)} of {planned}; lower the rate"
    last = max(1, len(losses) // 4)
    end = float(losses[-last:].mean())
    if not _far_above(end, float(losses[0])):
        return None
    start = untrained(last)
    if not _far_above(end, start):
        return None
    return (
        f"the loss of the last {last} of {planned} steps was {end:.2f} nats a token, {start:.2f} without any training; "
        "lower the rate"
    )


def _far_above(end: float, start: float) -> bool:
    factor, margin = DIVERGED
    return end > factor * start and end - start > margin


def _untrained(model: str, steps: Sequence[Sequence[Row]], *, dtype: DType, device: str) -> float:
    """Return the mean over steps of the mean loss of their tokens, of the model as its files have it."""
    from curate.models.transformers_lm import TransformersLM

    lm = TransformersLM(model, dtype=dtype, device=device)
    try:
        found = [lm.token_logprobs(rows) for rows in steps]
    finally:
        lm.close()
    return -float(np.mean([np.concatenate([x for x in step if x is not None]).mean() for step in found]))
