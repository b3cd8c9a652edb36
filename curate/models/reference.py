r"""What a forward pass gives, as plainly as it can be had: what the fast paths are measured against.

One row at a time through the model's own forward pass in float64, full logits, softmax by its definition, one Python
loop over the scored tokens.  Transformers computes norms and rotary angles in float32 whatever the weights are, which
leaves errors near 1e-7 in the result.  The head's gradient is autograd's, and the step along it is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.models.base import Row
from curate.models.identity import locate


def load_reference(model: str) -> Any:
    """Return the Transformers model in float64 on the CPU, with attention computed step by step."""
    transformers = require("transformers", extra="lm", for_=f"the model {model!r}")
    source = locate(model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        source.name, **source.arguments, use_safetensors=True, attn_implementation="eager"
    )
    return loaded.double().eval()


def reference_logprobs(loaded: Any, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
    """Return log p(t_i | t_<i), in nats, of each scored token of each row; float64."""
    torch = require("torch", extra="lm", for_="a language model")
    out = []
    for ids, mask in rows:
        with torch.no_grad():
            logits = loaded(input_ids=torch.tensor([ids.tolist()])).logits[0].numpy()
        values = []
        for i in np.flatnonzero(mask):
            z = logits[i - 1] - logits[i - 1].max()
            values.append(z[ids[i]] - np.log(np.exp(z).sum()))
        out.append(np.array(values, dtype=np.float64))
    return out


def reference_entropy(loaded: Any, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
    """Return −Σ_v p(v | t_<i) log p(v | t_<i), in nats, at each scored token of each row; float64."""
    torch = require("torch", extra="lm", for_="a language model")
    out = []
    for ids, mask in rows:
        with torch.no_grad():
            logits = loaded(input_ids=torch.tensor([ids.tolist()])).logits[0].numpy()
        values = []
        for i in np.flatnonzero(mask):
            z = logits[i - 1] - logits[i - 1].max()
            logp = z - np.log(np.exp(z).sum())
            values.append(-(np.exp(logp) * logp).sum())
        out.append(np.array(values, dtype=np.float64))
    return out


def reference_head_gradient(loaded: Any, row: Row) -> NDArray[np.float64]:
    """Return ∂L/∂W, float64 (V, d), of the mean loss L of the scored tokens in the output head's weight, by autograd.

    What the head reads is taken as given, so that an embedding tied to it has no part.
    """
    torch = require("torch", extra="lm", for_="a language model")
    ids, mask = row
    head = loaded.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    try:
        with torch.enable_grad():
            logits = loaded(input_ids=torch.tensor([ids.tolist()])).logits[0]
            at = np.flatnonzero(mask)
            loss = torch.nn.functional.cross_entropy(logits[at - 1], torch.from_numpy(ids[at].astype(np.int64)))
            (gradient,) = torch.autograd.grad(loss, head.weight)
    finally:
        handle.remove()
    return gradient.numpy()


def reference_step(weight: NDArray[np.float64], gradient: NDArray[np.float64], step: float) -> tuple[float, float]:
    """Return (‖W‖_F − ‖W'‖_F, ‖W − W'‖_F) of W' = W − step · gradient, taken in full."""
    after = weight - step * gradient
    return float(np.linalg.norm(weight) - np.linalg.norm(after)), float(np.linalg.norm(weight - after))


def reference_gradients(loaded: Any, weights: Mapping[str, Any], row: Row) -> dict[str, NDArray[np.floating]]:
    """Return ∂L/∂W of the row's mean loss L in each of the named parameters, by autograd, one row at a time."""
    torch = require("torch", extra="lm", for_="a language model")
    ids, mask = row
    at = np.flatnonzero(mask)
    before = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            logits = loaded(input_ids=torch.tensor([ids.tolist()]), use_cache=False).logits[0, at - 1]
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = torch.nn.functional.cross_entropy(wide, torch.from_numpy(ids[at].astype(np.int64)))
            found = torch.autograd.grad(loss, list(weights.values()))
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(before[name])
    wider = [g.to(torch.promote_types(g.dtype, torch.float32)).numpy() for g in found]
    return dict(zip(weights, wider, strict=True))


def reference_adam(
    g: NDArray[np.floating],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    beta1: float,
    beta2: float,
    eps: float,
    steps: int | None,
) -> NDArray[np.float64]:
    """Return the step of Adam on a gradient, float64: as LESS's code has it, or as papers have it after ``steps``."""
    m = beta1 * first.astype(np.float64) + (1 - beta1) * g.astype(np.float64)
    v = beta2 * second.astype(np.float64) + (1 - beta2) * g.astype(np.float64) ** 2
    if steps is None:
        return m / np.sqrt(v + eps)
    t = steps + 1
    return (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
