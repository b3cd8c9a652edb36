r"""Gradients of single rows, in batches, a weight at a time.

A row's loss is its mean cross-entropy, L = −(1/S) Σ_t log p(y_t) over its S scored tokens.  Of a linear layer y = W x
the gradient in W is

    G = ∂L/∂W = Σ_t (∂L/∂y_t) x_tᵀ

so that one backward pass of a batch's summed loss serves all of its rows: x is kept on the way forward, ∂L/∂y arrives
on the way back, and the product of the two over the tokens of a row is its gradient, handed on and forgotten.

* No weight asks for a gradient of its own, which would be the batch's sum: the graph begins at the outputs of the first
  of the chosen layers, and what lies before it is not gone through backwards.
* The logits exist for a few hundred scored positions at a time, outside of the graph, since their slope in the last
  hidden states is known in closed form (``Head.slopes``).
* Rows are sorted by length and batched under a budget of padded tokens.  Padding stands on the right, where a causal
  model does not see it; the loss does not depend on it, so it adds exact zeros.
* On a CPU each thread takes batches of its own (``curate.models.threads``).
* Where memory runs out, the batch is halved, and the budget with it, once and for all.

References
----------
Goodfellow 2015, "Efficient per-example gradient computations" (arXiv:1510.01799); Kingma & Ba 2015, "Adam"; Xia et al.
2024, "LESS" (arXiv:2402.04333), for the step of Adam that a row would make.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import InputError, ModelError
from curate.models import lora as adapters
from curate.models.base import DType, Row
from curate.models.halving import in_halves, smaller_budget
from curate.models.head import Head, cross_entropy_slopes, head_is_known
from curate.models.lora import Lora, Weights
from curate.models.projection import Projection
from curate.models.rows import check_row
from curate.models.threads import run_batches
from curate.models.weights import changes_when_run, find_device, load_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

Take = Callable[[NDArray[np.int64], str, "Tensor"], None]
"""Called with row numbers (b,), a weight's name, and the rows' gradients in it (b, out, in), float32 or wider."""

_Taker = tuple[Callable[[str, "Tensor"], None], Callable[[], None]]
"""Takes a weight's gradients in the rows of a batch; is called when all weights have been."""

_BATCH_TOKENS = {"cpu": 1024, "other": 8192}
_GRADIENT = {"cpu": 2**25, "other": 2**29}  # numbers of a weight's gradients that exist at once: 128 MiB, 2 GiB
_HEAD_BLOCK = {"cpu": 2**18, "other": 2**27}
_HEAD_HOLD = {"cpu": 2**24, "other": 2**28}  # logits that exist at once: 64 MiB of float32 a thread, 1 GiB
_CACHED = 2**17  # numbers of a gradient that are worked on at once on a CPU: with two averages of Adam 1.5 MiB

NOTHING_SCORED = "no token is in the loss"
NOT_A_NUMBER = "its gradient is not a number"
ZERO = "its gradient is 0"


@dataclass(frozen=True, eq=False)
class Adam:
    r"""What turns a gradient g into the step that Adam would make on it.

        Γ = m′ / √(v′ + ε)                           as LESS's code has it (``inside_root``), no bias correction
        Γ = m′/(1 − β₁ᵗ) / (√(v′/(1 − β₂ᵗ)) + ε)     as papers have it, t = steps + 1

    with m′ = β₁ m + (1 − β₁) g and v′ = β₂ v + (1 − β₂) g².
    """

    first: Weights
    """m, by name of a weight."""
    second: Weights
    """v."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    inside_root: bool = True
    steps: int = 0
    """Steps that m and v are averages of."""


class GradientLM:
    """A causal LM in this process that gives gradients of single rows.

    Parameters
    ----------
    model : a folder or a Hub name; see ``curate.models.identity.locate``.
    lora : the adapter in whose A and B gradients are taken, LESS's by default; ``put`` gives it weights.
    layers : linear layers in whose own weights gradients are taken, without an adapter: patterns of their whole name or
        its last part ("down_proj", "model.layers.1?.mlp.*").  The output head only by its own name.
    dtype : of the model; an adapter in a half-precision model is float32.  Not float16, in which gradients underflow.
    device : as for ``TransformersLM``.
    batch_tokens : tokens of a batch, padding counted; default 1024 on a CPU, 8192 else.
    seed : of the adapter's weights until ``put``.

    Raises
    ------
    InputError
        If an adapter and layers are asked.
    ModelError
        If the model cannot be loaded, a pattern fits no linear layer, or a layer's weight is used elsewhere too.
    """

    def __init__(
        self,
        model: str,
        *,
        lora: Lora | None = None,
        layers: Sequence[str] | None = None,
        dtype: DType = "auto",
        device: str = "auto",
        batch_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        torch = require("torch", extra="influence", for_=f"gradients of the model {model!r}")
        if lora is not None and layers is not None:
            raise InputError("gradients: an adapter or layers of the model itself were asked, not both; found both.")
        self.device = find_device(torch, device)
        self._model = load_weights(model, dtype).to(self.device).eval()
        if self._model.dtype == torch.float16:
            raise ModelError(f"gradients: {model!r} is float16, in which gradients underflow; ask for dtype bfloat16.")
        config = self._model.config.get_text_config()
        self.context = getattr(config, "max_position_embeddings", None)
        self.vocab_size = self._model.get_input_embeddings().num_embeddings
        self.dtype = str(self._model.dtype).removeprefix("torch.")
        kind = "cpu" if self.device == "cpu" else "other"
        self.batch_tokens = batch_tokens or _BATCH_TOKENS[kind]
        """Tokens of a batch; halved for good when memory runs out."""
        head = self._model.get_output_embeddings()
        self._head = Head(head, config, block=_HEAD_BLOCK[kind], hold=_HEAD_HOLD[kind])
        known = head_is_known(self._model, self._head)
        self._adapted = None
        if layers is None:
            self._adapted = adapters.attach(self._model, lora or Lora(), name=model).eval()
            adapters.put(self._adapted, adapters.fresh(self._adapted, seed))
            chosen = adapters.layers(self._adapted)
        else:
            chosen = _linear_layers(self._model, layers, name=model)
        self._model.requires_grad_(False)
        self.weights = {name: (layer.out_features, layer.in_features) for name, layer in chosen.items()}
        """Name of a weight → (out, in), in the model's order."""
        self._by_states = known and all(layer is not head for layer in chosen.values())
        if not known:
            log.warning(
                "%s: the logits of %s are not its head applied to its hidden states; all of them are computed.",
                model,
                type(self._model).__name__,
            )
        self._apart = self.device == "cpu" and not changes_when_run(config)
        self._rows_at_once = max(1, _GRADIENT[kind] // max(out * into for out, into in self.weights.values()))
        self._pass = threading.local()
        for name, layer in chosen.items():
            layer.register_forward_hook(partial(self._watch, name))
        self._ready: tuple[Adam, dict[str, tuple[Tensor, Tensor]]] | None = None

    def close(self) -> None:
        self._model = self._adapted = self._head = self._ready = None  # type: ignore[assignment]
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()

    def describe(self) -> dict[str, str]:
        import transformers

        return {"backend": f"transformers {transformers.__version__}", "dtype": self.dtype, "device": self.device}

    def put(self, weights: Weights) -> None:
        """Give the adapter its weights.

        Raises
        ------
        ModelError
            If names or sizes are not the adapter's, or there is none.
        """
        if self._adapted is None:
            raise ModelError("gradients: weights of an adapter were given; gradients here are of the model's own.")
        adapters.put(self._adapted, weights)

    def gradients(self, rows: Sequence[Row], take: Take) -> list[str | None]:
        """Hand each row's gradients to ``take``, a batch and a weight at a time, while the backward pass runs.

        On a CPU ``take`` is called by several threads, each with rows of its own.  The gradients are the caller's to
        overwrite, and to copy if they are to be kept.  A batch that runs out of memory half-way is taken again in
        halves: what a row's weight was before, it is no more.

        Returns
        -------
        list of str or None
            Why a row has no gradient, None where it has one.

        Raises
        ------
        InputError
            If a row is malformed; see ``curate.models.rows``.
        ModelError
            If a chosen layer is no part of the forward pass, is used twice in it, or reads no (rows, tokens, width).
        """
        return self._run(rows, lambda batch: (partial(take, batch), lambda: None))

    def features(
        self, rows: Sequence[Row], projection: Projection, adam: Adam | None = None
    ) -> tuple[NDArray[np.float32], list[str | None]]:
        """Return the direction of each row's projected gradient, or of the step that Adam would make on it.

        Returns
        -------
        float32 array (n, d)
            Rows of length 1; NaN where there is a reason.
        list of str or None
            Why a row has none: no scored token, no memory, a gradient that is 0 or not a number.

        Raises
        ------
        InputError, ModelError
            As ``gradients``, and if Adam's averages do not fit the weights.
        """
        import torch

        averages = {} if adam is None else self._averages(adam)
        out = np.full((len(rows), projection.d), np.nan, dtype=np.float32)
        told: dict[int, str] = {}

        def begin(batch: NDArray[np.int64]) -> _Taker:
            sums = torch.zeros(len(batch), projection.d, device=self.device)

            def add(name: str, gradient: Tensor) -> None:
                size = max(1, _CACHED // gradient[0].numel()) if self.device == "cpu" else len(gradient)
                for part, its in zip(gradient.split(size), sums.split(size), strict=True):
                    if adam is not None:
                        _step(part, *averages[name], adam)
                    projection.add(its, name, part)

            def end() -> None:
                found = sums.cpu().numpy()
                lengths = np.sqrt(np.einsum("nd,nd->n", found, found, dtype=np.float64))
                good = np.isfinite(lengths) & (lengths > 0)
                out[batch[good]] = found[good] / lengths[good, None]
                for i, length in zip(batch[~good].tolist(), lengths[~good], strict=True):
                    told[i] = ZERO if length == 0 else NOT_A_NUMBER

            return add, end

        reasons = self._run(rows, begin)
        return out, [reason or told.get(i) for i, reason in enumerate(reasons)]

    # -- batches -----------------------------------------------------------------------------------------------------

    def _run(self, rows: Sequence[Row], begin: Callable[[NDArray[np.int64]], _Taker]) -> list[str | None]:
        """Go through all rows; ``begin`` is told the rows of a batch, and gives who takes their gradients."""
        scored = [
            check_row(i, ids, mask, vocab_size=self.vocab_size, context=self.context)
            for i, (ids, mask) in enumerate(rows)
        ]
        reasons = [None if at.size else NOTHING_SCORED for at in scored]
        # The input ends before the last scored token, from which nothing is predicted.
        lengths = np.array([at[-1] if at.size else 0 for at in scored], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")  # longest first: if memory runs out, it does so at once
        order = order[lengths[order] > 0]
        call = _Call(rows, scored, lengths, begin, reasons)
        tasks: list[Callable[[], None]] = []
        while order.size:
            size = self._size(int(lengths[order[0]]))
            tasks.append(partial(self._take, order[:size], call))
            order = order[size:]
        run_batches(tasks, apart=self._apart)
        return reasons

    def _size(self, width: int) -> int:
        """Return how many rows of ``width`` tokens make a batch."""
        return max(1, min(self.batch_tokens // width, self._rows_at_once))

    def _take(self, batch: NDArray[np.int64], call: _Call) -> None:
        """Take the gradients of one batch, in halves if it does not fit; the first row is the longest."""

        def work(rows: Sequence[int]) -> None:
            self._backward(np.array(rows), int(call.lengths[rows[0]]), call)

        def halved(rows: Sequence[int]) -> None:
            self.batch_tokens = smaller_budget(self.batch_tokens, len(rows), int(call.lengths[rows[0]]))

        def alone(j: int) -> None:
            call.reasons[j] = f"out of memory at {call.lengths[j]} tokens"

        in_halves(
            batch.tolist(),
            work,
            device=self.device,
            halved=halved,
            alone=alone,
            fits=lambda rows: len(rows) <= self._size(int(call.lengths[rows[0]])),
        )

    def _backward(self, batch: NDArray[np.int64], width: int, call: _Call) -> None:
        import torch

        scored = [call.scored[j] for j in batch]
        counts = np.array([at.size for at in scored])
        matrix = np.empty((len(batch), width), dtype=np.int64)
        for line, j in zip(matrix, batch, strict=True):
            ids = call.rows[j][0]
            line[:] = ids[0]  # a row's own token: where another's is not a number, 0 times it is not 0
            line[: call.lengths[j]] = ids[: call.lengths[j]]
        of = np.repeat(np.arange(len(batch)), counts)
        flat, targets, weights = (
            torch.from_numpy(x).to(self.device)
            for x in (
                of * width + np.concatenate(scored) - 1,
                np.concatenate([call.rows[j][0][at] for j, at in zip(batch, scored, strict=True)]).astype(np.int64),
                1 / counts[of],
            )
        )
        take, end = call.begin(batch)
        self._pass.now = now = _Pass(len(batch), take)
        try:
            with torch.enable_grad():
                model = self._model.base_model if self._by_states else self._model
                # (hidden states, …), or where those are not enough all logits
                states = model(input_ids=torch.from_numpy(matrix).to(self.device), use_cache=False)[0]
                read = states.reshape(-1, states.shape[-1]).index_select(0, flat)
        finally:
            self._pass.now = None
        if not read.requires_grad:
            raise ModelError("gradients: no chosen layer is part of the forward pass.")
        with torch.no_grad():
            if self._by_states:
                slopes = self._head.slopes(read.detach(), targets, weights)
            else:
                z = read.detach().to(torch.promote_types(read.dtype, torch.float32), copy=True)
                slopes = cross_entropy_slopes(z, targets, weights).to(read.dtype)
        read.backward(slopes)
        lacking = [name for name in self.weights if name not in now.done]
        if lacking:
            raise ModelError(f"gradients: the loss does not depend on the layer of {lacking[0]}; leave it out.")
        end()

    def _watch(self, name: str, layer: Any, inputs: Any, output: Tensor) -> None:
        """Keep a layer's input until the slope of its output arrives."""
        now: _Pass | None = getattr(self._pass, "now", None)
        if now is None:
            return
        if inputs[0].ndim != 3 or len(inputs[0]) != now.rows:
            raise ModelError(
                f"gradients: the layer of {name} reads {tuple(inputs[0].shape)} where rows, tokens and width were "
                "asked, so that rows cannot be told apart; leave it out."
            )
        if name in now.seen:
            raise ModelError(f"gradients: the layer of {name} is used twice in a forward pass; leave it out.")
        now.seen.add(name)
        kept = [inputs[0].detach()]
        if not output.requires_grad:
            output.requires_grad_()  # the graph begins here

        def arrive(slope: Tensor) -> None:  # in another thread, on a GPU
            x, dy = _wide(kept.pop()), _wide(slope)
            now.take(name, dy.transpose(1, 2) @ x)
            now.done.add(name)

        output.register_hook(arrive)

    def _averages(self, adam: Adam) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (β₁ m, β₂ v + ε or β₂ v) of each weight on the device; once for each ``adam``."""
        import torch

        if self._ready is not None and self._ready[0] is adam:
            return self._ready[1]
        for what, given in (("first", adam.first), ("second", adam.second)):
            for name in [*self.weights, *given]:
                has, wants = given[name].shape if name in given else "nothing", self.weights.get(name, "nothing")
                if has != wants:
                    raise ModelError(
                        f"Adam's {what} moments do not fit the weights: of {name}, {wants} was asked and {has} found; "
                        "they belong to another model or another LoRA configuration."
                    )
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        found = {}
        for name in self.weights:
            m, v = (torch.from_numpy(np.array(x[name])).to(self.device, dtype) for x in (adam.first, adam.second))
            found[name] = m.mul_(adam.beta1), v.mul_(adam.beta2).add_(adam.eps if adam.inside_root else 0.0)
        self._ready = adam, found
        return found


@dataclass(frozen=True, slots=True)
class _Call:
    """What one call of ``gradients`` or ``features`` is about."""

    rows: Sequence[Row]
    scored: list[NDArray[np.int64]]
    lengths: NDArray[np.int64]
    begin: Callable[[NDArray[np.int64]], _Taker]
    reasons: list[str | None]


@dataclass(slots=True)
class _Pass:
    """A batch on its way through the model."""

    rows: int
    take: Callable[[str, Tensor], None]
    seen: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)


def _step(g: Tensor, m: Tensor, v: Tensor, adam: Adam) -> None:
    """Turn gradients (b, out, in) into Γ, in place; ``m`` is β₁ m, ``v`` is β₂ v + ε, or β₂ v."""
    import torch

    below = torch.addcmul(v, g, g, value=1 - adam.beta2)
    torch.add(m, g, alpha=1 - adam.beta1, out=g)
    if adam.inside_root:
        g.mul_(below.rsqrt_())
        return
    t = adam.steps + 1
    below.sqrt_().mul_((1 - adam.beta2**t) ** -0.5).add_(adam.eps)
    g.div_(below).mul_(1 / (1 - adam.beta1**t))


def _linear_layers(model: Any, patterns: Sequence[str], *, name: str) -> dict[str, torch.nn.Linear]:
    """Return the linear layers that fit a pattern, by the names of their weights.

    Raises
    ------
    ModelError
        If a pattern fits none, or a layer shares its weight with another module.
    """
    import torch

    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    found = {}
    for pattern in patterns:
        its = {n: m for n, m in linear.items() if _fits(n, pattern) and (m is not head or n.endswith(pattern))}
        if not its:
            other = sorted({type(m).__name__ for n, m in model.named_modules() if n and _fits(n, pattern)})
            there = ", ".join(sorted({n.rpartition(".")[2] for n in linear})) or "none"
            raise ModelError(
                f"model {name!r}: linear layers {pattern!r} were asked; "
                + (f"what fits is {', '.join(other)}; " if other else "none fits; ")
                + f"its linear layers are {there}."
            )
        found.update(its)
    users: dict[int, list[str]] = {}
    for n, weight in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(weight), []).append(n)
    for n, layer in found.items():
        shared = [other for other in users[id(layer.weight)] if other != f"{n}.weight"]
        if shared:
            raise ModelError(
                f"model {name!r}: gradients in {n}.weight were asked, which is {shared[0]} too: what that adds to them "
                "would be missing; leave it out."
            )
    return {f"{n}.weight": m for n, m in linear.items() if n in found}


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.itemsize < 4 else x
