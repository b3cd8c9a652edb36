r"""Warm-up: LoRA training on some rows, an epoch at a time, a checkpoint with Adam's moments after each.

    L    = 1/n Σ_i  −1/S_i Σ_t log p(y_it)      over the n rows of a step and the S_i scored tokens of each
    g    = ∂L/∂θ, scaled to a length of at most ``clip``
    θ, m, v  by AdamW at the step's learning rate

A row counts as a row, whatever its length: so does LESS's script, which takes one row at a time and averages, and so do
the gradients that are taken afterwards.  (TRL and the Trainer of today average over the tokens of a step.)

* A step's rows go through the model in batches of similar length under a budget of tokens; the budget changes sums by
  rounding only.  On a CPU each thread takes batches of its own, and their gradients are added in the batches' order.
* A row's dropout comes from a stream of (seed, step, row of the step), whatever the batch; only the adapter drops, and
  the base model computes as in scoring.
* Logits exist for a few hundred scored positions at a time; their slope in the last hidden states is known in closed
  form (``Head.slopes``), and the backward pass begins there.
* What follows from a checkpoint follows from its arrays and the rows alone: stopped and continued gives the same bits.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import InputError, ModelError
from curate.models.base import DType, Row
from curate.models.dropout import RowDropout
from curate.models.head import Head, cross_entropy_slopes, head_is_known
from curate.models.lora import Checkpoint, Lora, attach, check_names, fresh, parameters, put, take
from curate.models.rows import check_row
from curate.models.threads import run_batches
from curate.models.weights import changes_when_run, find_device, is_out_of_memory, load_weights
from curate.seeding import rng_for

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_Found = tuple[NDArray[np.float64], "list[torch.Tensor]"]

_BATCH_TOKENS = {"cpu": 1024, "other": 8192}
_LOGITS = {"cpu": 2**24, "other": 2**28}
"""Logits that exist at once: 64 MiB of float32, 1 GiB."""


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """How an adapter is trained.  Defaults: LESS."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a misspelt key in a recipe is an error

    epochs: int = 4
    batch: int = 128
    """Rows of a step."""
    rate: float = 2e-5
    """Highest learning rate."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How it falls, to 0 after the last step.  LESS's script says linear, its paper (and BIDS's) cosine."""
    warmup: float = 0.03
    """Share of all steps in which it rises from 0."""
    clip: float | None = 1.0
    """Greatest length of a step's gradient; Trainer's default."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    seed: int = 0
    """Of the fresh weights, the order of the rows and what is dropped."""
    lora: Lora = field(default_factory=Lora)

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch": self.batch, "rate": self.rate, "eps": self.eps}
        for name, value in positive.items():
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"warm-up: {name}={value}; it must be above 0.")
        for name, value in {"warmup": self.warmup, "beta1": self.beta1, "beta2": self.beta2}.items():
            if not 0 <= value < 1:
                raise InputError(f"warm-up: {name}={value}; it must be in [0, 1).")
        if self.schedule not in ("linear", "cosine"):
            raise InputError(f"warm-up: schedule={self.schedule!r}; linear or cosine was asked.")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"warm-up: clip={self.clip}; it must be above 0, or None.")
        if not self.weight_decay >= 0:
            raise InputError(f"warm-up: weight_decay={self.weight_decay}; it must be at least 0.")

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, from 0, of all ``steps``."""
        rising = math.ceil(steps * self.warmup)
        if step < rising:
            return self.rate * step / rising
        done = (step - rising) / max(1, steps - rising)
        return self.rate * (1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


def train_epoch(
    model: str,
    rows: Sequence[Row],
    settings: WarmUp,
    before: Checkpoint | None,
    *,
    dtype: DType = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    told: Callable[[int, int, float], None] | None = None,
) -> Checkpoint:
    """Train for one epoch, and return the checkpoint that ends it.

    Parameters
    ----------
    rows : (ids, mask) pairs, each array (T,), with a scored token each: all that are trained on, in every epoch.
    before : the checkpoint of the epoch before; None for the first.  One without steps, as ``untrained`` gives, begins
        at its weights.
    dtype : of the base model; the adapter and the optimizer are float32.  Not float16, in which gradients underflow.
    batch_tokens : tokens that go through the model at once, padding counted; default 1024 on a CPU, 8192 else.
    told : is called after each step with (steps so far, steps of all epochs, loss in nats per token).

    Raises
    ------
    InputError
        If there are no rows, one is malformed or has no scored token, or all epochs are done.
    ModelError
        If the model cannot be loaded, or ``before`` is not of it or not of these rows and settings; if a loss or
        gradient is not a number; if a row alone does not fit into memory.
    """
    require("torch", extra="influence", for_=f"training on the model {model!r}")
    if not rows:
        raise InputError("warm-up: rows to train on were asked; found none.")
    an_epoch = math.ceil(len(rows) / settings.batch)
    steps = an_epoch * settings.epochs
    epoch, first = _place(before, settings, an_epoch)
    training = _Training(model, settings, dtype=dtype, device=device, batch_tokens=batch_tokens)
    try:
        lengths = training.check(rows)
        training.begin(before)
        order = rng_for(settings.seed, "warm-up", epoch).permutation(len(rows))
        losses, rates = [], []
        for step in range(first, first + an_epoch):
            at = (step - first) * settings.batch
            rates.append(settings.rate_at(step, steps))
            losses.append(training.step(rows, lengths, order[at : at + settings.batch], step, rates[-1]))
            if told is not None:
                told(step + 1, steps, losses[-1])
        facts = {"epoch": epoch + 1, "rows": len(rows), "loss": float(np.mean(losses))}
        return training.checkpoint(steps=first + an_epoch, rate=float(np.mean(rates)), told=facts)
    finally:
        training.close()


def _place(before: Checkpoint | None, settings: WarmUp, an_epoch: int) -> tuple[int, int]:
    """Return the epoch and the step, from 0, that follow on a checkpoint."""
    if before is None:
        return 0, 0
    asked, found = settings.lora, before.lora
    if (asked.r, asked.alpha, set(asked.layers)) != (found.r, found.alpha, set(found.layers)):
        raise ModelError(f"warm-up: an adapter of {asked} was asked; the checkpoint before is of {found}.")
    epoch, rest = divmod(before.steps, an_epoch)
    if rest:
        raise ModelError(
            f"warm-up: the checkpoint before is of {before.steps} steps, but these rows make {an_epoch} an epoch; it "
            "is of other rows or another batch."
        )
    if epoch >= settings.epochs:
        raise InputError(f"warm-up: epoch {epoch + 1} was asked, after the checkpoint; there are {settings.epochs}.")
    if before.steps and (before.first is None or before.second is None):
        raise ModelError(
            f"warm-up: the checkpoint before, of {before.steps} steps, has no optimizer state to go on with."
        )
    return epoch, before.steps


class _Training:
    """A model, its adapter and its optimizer."""

    def __init__(self, model: str, settings: WarmUp, *, dtype: DType, device: str, batch_tokens: int | None) -> None:
        import torch

        self.device = find_device(torch, device)
        loaded = load_weights(model, dtype).to(self.device).eval()
        if loaded.dtype == torch.float16:
            raise ModelError(f"warm-up: {model!r} is float16, in which gradients underflow; ask for dtype bfloat16.")
        self._settings = settings
        config = loaded.config.get_text_config()
        self._context = getattr(config, "max_position_embeddings", None)
        self._vocab_size = loaded.get_input_embeddings().num_embeddings
        kind = "cpu" if self.device == "cpu" else "other"
        self.batch_tokens = batch_tokens or _BATCH_TOKENS[kind]
        apart = self.device == "cpu" and not changes_when_run(config)
        self._at_once = torch.get_num_threads() if apart else 1
        self._model = loaded
        head = loaded.get_output_embeddings()
        self._head = Head(head, config, block=_LOGITS[kind], hold=_LOGITS[kind])
        self._by_states = head_is_known(loaded, self._head)
        if not self._by_states:
            log.warning(
                "%s: the logits of %s are not its head applied to its hidden states; all of them are computed.",
                model,
                type(loaded).__name__,
            )
        self._adapted = attach(loaded, settings.lora, name=model).eval()
        if loaded.get_output_embeddings() is not head:
            raise ModelError("warm-up: an adapter on the output head was asked; leave that layer out.")
        self._parameters = parameters(self._adapted)
        self._dropout = RowDropout(self._adapted, settings.lora.dropout)
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=settings.rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )

    def check(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        """Return how many tokens of each row go through the model: all before the last that is scored."""
        out = np.empty(len(rows), dtype=np.int64)
        for i, (ids, mask) in enumerate(rows):
            at = check_row(i, ids, mask, vocab_size=self._vocab_size, context=self._context)
            if not at.size:
                raise InputError(f"warm-up: row {i}: no token is in the loss; leave it out.")
            out[i] = at[-1]
        return out

    def begin(self, before: Checkpoint | None) -> None:
        """Put in a checkpoint's weights and moments, or fresh ones."""
        import torch

        if before is None:
            put(self._adapted, fresh(self._adapted, self._settings.seed))
            return
        put(self._adapted, before.weights, what="the checkpoint before")
        if before.first is None or before.second is None:
            return
        for its in (before.first, before.second):
            check_names(self._adapted, its, what="the optimizer state of the checkpoint before")
        for name, p in self._parameters.items():
            first, second = (torch.from_numpy(np.array(its[name])).to(p) for its in (before.first, before.second))
            step = torch.tensor(float(before.steps))
            self._optimizer.state[p] = {"step": step, "exp_avg": first, "exp_avg_sq": second}

    def checkpoint(self, *, steps: int, rate: float, told: dict[str, Any]) -> Checkpoint:
        first, second = (
            {name: self._optimizer.state[p][key].float().cpu().numpy() for name, p in self._parameters.items()}
            for key in ("exp_avg", "exp_avg_sq")
        )
        return Checkpoint(self._settings.lora, take(self._adapted), first, second, steps=steps, rate=rate, told=told)

    def close(self) -> None:
        import torch

        del self._model, self._adapted, self._head, self._parameters, self._optimizer
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def step(
        self, rows: Sequence[Row], lengths: NDArray[np.int64], chosen: NDArray[np.int64], step: int, rate: float
    ) -> float:
        """Take one step on the chosen rows; return their mean loss before it, in nats per token."""
        import torch

        todo = np.argsort(-lengths[chosen], kind="stable")  # places in the step, longest row first
        total: list[torch.Tensor] | None = None
        losses = np.empty(len(chosen))
        while todo.size:
            batches, rest = self._next(todo, lengths[chosen])
            found: list[_Found | None] = [None] * len(batches)
            tasks = [
                partial(self._try, found, k, [rows[chosen[i]] for i in batch], batch, step, 1 / len(chosen))
                for k, batch in enumerate(batches)
            ]
            with _deterministic(torch, self.device):
                run_batches(tasks, apart=self._at_once > 1)
            failed = [batch for batch, its in zip(batches, found, strict=True) if its is None]
            for batch, its in zip(batches, found, strict=True):  # in this order whoever was first: sums are the same
                if its is not None:
                    losses[batch], gradient = its
                    total = gradient if total is None else [a.add_(b) for a, b in zip(total, gradient, strict=True)]
            if failed:
                self._halve(failed[0], lengths[chosen], step, int(chosen[failed[0][0]]))
            todo = np.concatenate([*failed, rest])
        self._check_finite(losses, chosen, step, "loss")
        assert total is not None
        for p, g in zip(self._parameters.values(), total, strict=True):
            p.grad = g
        length = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip or math.inf)
        self._check_finite(np.full(len(chosen), float(length)), chosen, step, "gradient")
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(losses.mean())

    def _next(
        self, todo: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """Split off the batches that are computed at once from what is left, longest row first."""
        batches: list[NDArray[np.int64]] = []
        while todo.size and len(batches) < self._at_once:
            batch, todo = np.split(todo, [max(1, self.batch_tokens // int(lengths[todo[0]]))])
            batches.append(batch)
        return batches, todo

    def _halve(self, batch: NDArray[np.int64], lengths: NDArray[np.int64], step: int, row: int) -> None:
        """Ask for less memory from here on, or say that it cannot be; ``batch`` is the longest that did not fit."""
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        width = int(lengths[batch[0]])
        if len(batch) > 1:
            self.batch_tokens = min(self.batch_tokens, width * (len(batch) // 2))
            log.warning("out of memory at %d rows; batches of %d tokens from here on.", len(batch), self.batch_tokens)
        elif self._at_once > 1:
            self._at_once = 1
            log.warning("out of memory at a row of %d tokens; one batch at a time from here on.", width)
        else:
            raise ModelError(
                f"warm-up: step {step + 1}: row {row} of {width} tokens does not fit into memory alone; ask for "
                "shorter rows (max_tokens), a smaller r or a smaller model."
            )

    def _check_finite(self, values: NDArray[np.float64], chosen: NDArray[np.int64], step: int, what: str) -> None:
        bad = chosen[~np.isfinite(values)]
        if bad.size:
            some = ", ".join(map(str, bad[:8].tolist())) + (f" and {bad.size - 8} more" if bad.size > 8 else "")
            raise ModelError(
                f"warm-up: step {step + 1}: the {what} is not a finite number on rows {some}; lower the rate "
                f"({self._settings.rate}), or look at the rows and the model's weights."
            )

    def _try(
        self,
        found: list[_Found | None],
        k: int,
        rows: Sequence[Row],
        places: NDArray[np.int64],
        step: int,
        share: float,
    ) -> None:
        """Put a batch's losses and gradient into place ``k``; leave None there if it does not fit into memory."""
        import torch

        try:
            found[k] = self._gradient(rows, places, step, share)
        except Exception as error:
            if not is_out_of_memory(torch, error):
                raise

    def _gradient(self, rows: Sequence[Row], places: NDArray[np.int64], step: int, share: float) -> _Found:
        """Return each row's mean loss, and the gradient of their sum times ``share``; the first row is the longest."""
        import torch

        scored = [np.flatnonzero(mask) for _, mask in rows]
        counts = np.array([at.size for at in scored])
        lengths = [int(at[-1]) for at in scored]
        matrix = np.zeros((len(rows), lengths[0]), dtype=np.int64)
        for line, (ids, _), n in zip(matrix, rows, lengths, strict=True):
            line[:] = ids[0]  # not the pad token: some models warn when they see that without an attention mask
            line[:n] = ids[:n]
        of = np.repeat(np.arange(len(rows)), counts)
        flat = torch.from_numpy(of * lengths[0] + np.concatenate(scored) - 1).to(self.device)
        words = np.concatenate([ids[at] for (ids, _), at in zip(rows, scored, strict=True)]).astype(np.int64)
        targets = torch.from_numpy(words).to(self.device)
        seeds = [int(rng_for(self._settings.seed, "dropout", step, int(i)).integers(2**63)) for i in places]
        with torch.enable_grad(), self._dropout.drawing(seeds, lengths):
            model = self._model.base_model if self._by_states else self._model
            # (hidden states, …), or where those are not enough all logits
            states = model(input_ids=torch.from_numpy(matrix).to(self.device), use_cache=False)[0]
            read = states.reshape(-1, states.shape[-1]).index_select(0, flat)
        with torch.no_grad():
            given = read.detach()
            wide = torch.promote_types(read.dtype, torch.float32)
            weights = torch.from_numpy(share / counts[of]).to(self.device, wide)
            losses = torch.empty_like(weights)
            if self._by_states:
                slopes = self._head.slopes(given, targets, weights, losses)
            else:
                slopes = cross_entropy_slopes(given.to(wide, copy=True), targets, weights, losses).to(read.dtype)
        gradient = torch.autograd.grad(read, list(self._parameters.values()), slopes)
        return np.bincount(of, losses.cpu().numpy(), minlength=len(rows)) / counts, list(gradient)


@contextlib.contextmanager
def _deterministic(torch: Any, device: str) -> Iterator[None]:
    """Have a GPU sum gradients in a fixed order, where its kernels can; a CPU does."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if device.startswith("cuda"):
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
