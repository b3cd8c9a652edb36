"""LoRA adapters on a model in memory, by peft, and checkpoints of their training.

A weight of an adapter goes by the name that peft writes into ``adapter_model.safetensors``, here and in every
checkpoint, optimizer state and projection: adapters that others trained match by name and size, or are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import InputError, ModelError
from curate.seeding import rng_for

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, NDArray[np.float32]]
"""Name of a weight → (out, in)."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """An adapter's shape.  Defaults: LESS and BIDS."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a misspelt key in a recipe is an error

    r: int = 128
    alpha: float = 512
    dropout: float = 0.1
    """Of training only."""
    layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Linear layers that get one, by the last part of their name."""

    def __post_init__(self) -> None:
        if self.r < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1 or not self.layers:
            raise InputError(
                f"lora: r of at least 1, alpha above 0, dropout in [0, 1) and layers were asked; found {self}."
            )


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An adapter in the course of its training, with what Adam knew."""

    lora: Lora
    weights: Weights
    first: Weights | None = None
    """Adam's exponential average of gradients, m; None where there is none (no training, or it was not kept)."""
    second: Weights | None = None
    """Of their squares, v."""
    steps: int = 0
    """Optimizer steps so far."""
    rate: float = 1.0
    """Average learning rate of the epoch that it ends: what it counts among several."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it: epoch, loss, rows."""


def attach(model: Any, lora: Lora, *, name: str) -> Any:
    """Return the model with fresh adapters on its layers, all else frozen; ``name`` is for errors.

    Raises
    ------
    ModelError
        If the model has no linear layer of these names.
    """
    peft = require("peft", extra="influence", for_=f"adapters of the model {name!r}")
    import torch

    there = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
    lacking = [layer for layer in lora.layers if layer not in there]
    if lacking:
        raise ModelError(
            f"model {name!r}: layers {', '.join(lacking)} were asked to be adapted; it has {', '.join(there)}."
        )
    config = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.layers), bias="none"
    )
    with warnings.catch_warnings():  # peft asks Transformers by a name that is on its way out
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:  # a layer that peft knows it must not adapt
            raise ModelError(f"model {name!r}: its layers cannot be adapted: {error}") from error


def parameters(adapted: Any) -> dict[str, torch.nn.Parameter]:
    """Return the adapter's weights by name, in the model's order."""
    return {n.replace(".default.", "."): p for n, p in adapted.named_parameters() if ".lora_" in n}


def layers(adapted: Any) -> dict[str, torch.nn.Linear]:
    """Return the linear layers that hold these weights, under the names of their weights."""
    return {
        f"{n.removesuffix('.default')}.weight": m
        for n, m in adapted.named_modules()
        if n.endswith((".lora_A.default", ".lora_B.default"))
    }


def fresh(adapted: Any, seed: int) -> dict[str, NDArray[np.float32]]:
    """Return weights before any training: A uniform on ±1/√in, as peft's own, B = 0; a stream a name."""
    out = {}
    for name, weight in parameters(adapted).items():
        shape = tuple(weight.shape)
        if ".lora_A." in name:
            bound = 1 / np.sqrt(shape[1])
            out[name] = rng_for(seed, "lora", name).uniform(-bound, bound, size=shape).astype(np.float32)
        else:
            out[name] = np.zeros(shape, dtype=np.float32)
    return out


def check_names(adapted: Any, weights: Weights, *, what: str) -> None:
    """Raise unless ``weights`` has the adapter's names and sizes, all of them and no others.

    Raises
    ------
    ModelError
        With the first name that is lacking, too many, or of another size.
    """
    asked = {name: tuple(p.shape) for name, p in parameters(adapted).items()}
    found = {name: tuple(w.shape) for name, w in weights.items()}
    for name in [*asked, *found]:
        if asked.get(name) != found.get(name):
            has, wants = found.get(name, "nothing"), asked.get(name, "nothing")
            raise ModelError(
                f"{what} does not match the model's adapter: of {name}, {wants} was asked and {has} found; "
                "it belongs to another model or another LoRA configuration."
            )


def put(adapted: Any, weights: Weights, *, what: str = "the adapter") -> None:
    """Write weights into the adapter.

    Raises
    ------
    ModelError
        If names or sizes differ.
    """
    import torch

    check_names(adapted, weights, what=what)
    with torch.no_grad():
        for name, parameter in parameters(adapted).items():
            parameter.copy_(torch.from_numpy(np.array(weights[name], dtype=np.float32)))


def merged(model: Any, checkpoint: Checkpoint, *, name: str) -> Any:
    """Return the model with an adapter added to its weights, W + α/r · B A in the type of W; ``name`` is for errors.

    Raises
    ------
    ModelError
        If the model has no such layers, or the adapter is of others.
    """
    adapted = attach(model, checkpoint.lora, name=name)
    put(adapted, checkpoint.weights)
    return adapted.merge_and_unload()


def take(adapted: Any) -> dict[str, NDArray[np.float32]]:
    """Return a copy of the adapter's weights, float32."""
    return {name: p.detach().float().cpu().numpy().copy() for name, p in parameters(adapted).items()}
