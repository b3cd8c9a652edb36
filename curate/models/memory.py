r"""What a training needs of memory, told before a weight is loaded.

    all weights    16 N                       float32 weights, gradients and Adam's two moments
    an adapter     b N + 16 A                 N frozen weights of b bytes (4, or 2 in bfloat16), A of the adapter
    activations    c · Σ (in + out) · T       over the matrices of the layers, for a batch of T tokens
    logits         12 · (those at once)       of a block: they, their softmax and its slope, float32

c is what autograd was seen to keep of Llama and GPT-NeoX layers: about 4.7 bytes in float32 and 3.5 under bfloat16 for
all weights, 4.2 and 2.3 for an adapter (5, 4, 5 and 2.5 here).  An estimate: a fifth above what is kept, below what an
allocator's gaps may add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from curate._imports import require
from curate.exceptions import ModelError
from curate.models.identity import locate

if TYPE_CHECKING:
    from curate.models.proxy import Training


@dataclass(frozen=True)
class Shape:
    """What a model's configuration says of its size."""

    parameters: int
    edges: int
    """Σ (in + out) over the matrices that a token goes through: the layers', without embeddings and head."""
    vocabulary: int
    adapted: int
    """Σ (in + out) over the layers that an adapter is asked on."""


def shape(model: str, layers: tuple[str, ...] = ()) -> Shape:
    """Return the sizes of a model, from its configuration alone; no weight is read.

    Raises
    ------
    ModelError
        If the model cannot be found, or its configuration is of no causal model.
    """
    transformers = require("transformers", extra="lm", for_=f"the model {model!r}")
    import torch

    source = locate(model)
    try:
        config = transformers.AutoConfig.from_pretrained(source.name, **source.arguments)
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # the library raises whatever the broken file made it trip over
        raise ModelError(f"model {model!r} has no size: {type(error).__name__}: {error}") from error
    tables = {id(m.weight) for m in (empty.get_input_embeddings(), empty.get_output_embeddings()) if m is not None}
    chosen = getattr(config.get_text_config(), "num_experts_per_tok", None) or 1
    edges = 0
    for weight in empty.parameters():
        if id(weight) not in tables and weight.ndim in (2, 3):  # (experts, in, out), of which a token takes some
            edges += sum(weight.shape[-2:]) * (chosen if weight.ndim == 3 else 1)
    linear = [m for n, m in empty.named_modules() if n.rpartition(".")[2] in layers and isinstance(m, torch.nn.Linear)]
    return Shape(
        parameters=sum(p.numel() for p in empty.parameters()),
        edges=edges,
        vocabulary=empty.get_input_embeddings().num_embeddings,
        adapted=sum(m.in_features + m.out_features for m in linear),
    )


def needed(its: Shape, settings: Training, device: str) -> dict[str, int]:
    """Return the bytes that a training needs: of the weights and what goes with them, of a batch's activations."""
    full = settings.method_for(its.parameters) == "full"
    half = settings.dtype_for(its.parameters) == "bfloat16"
    trained = its.parameters if full else settings.lora.r * its.adapted
    frozen = 0 if full else (2 if half else 4) * its.parameters
    kept = 5.0 if not half else 4.0 if full else 2.5
    tokens = min(settings.batch_tokens_on(device), settings.tokens_per_step)
    logits = 12 * min(tokens * its.vocabulary, settings.logits_on(device))
    return {"weights": frozen + 16 * trained, "activations": int(kept * its.edges * tokens) + logits}


def free(device: str) -> int:
    """Return the bytes that this process may still take, on the device."""
    if device.startswith("cuda"):
        import torch

        # What torch holds without using it is free as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    import psutil  # of distributed
    from distributed.system import MEMORY_LIMIT  # what a container allows, if less than the machine has

    return int(min(psutil.virtual_memory().available, MEMORY_LIMIT - psutil.Process().memory_info().rss))


def fits(model: str, settings: Training, device: str, *, limit: int | None = None) -> str | None:
    """Return why a training does not fit into memory, and what to do; None where it does.

    Parameters
    ----------
    device : "cpu", "cuda" or "mps".
    limit : bytes that may be taken; default what is free now.

    Raises
    ------
    ModelError
        If the model cannot be found.
    """
    its = shape(model, settings.lora.layers)
    asked = needed(its, settings, device)
    limit = free(device) if limit is None else limit
    if sum(asked.values()) <= limit:
        return None
    full = settings.method_for(its.parameters) == "full"
    what = "all weights" if full else f"an adapter (r={settings.lora.r})"
    tokens = settings.batch_tokens_on(device)
    ways = ["an adapter alone (method: lora)"] if full else [f"fewer ranks than r={settings.lora.r}"]
    if settings.dtype_for(its.parameters) == "float32":
        ways.append("dtype: bfloat16")
    if asked["activations"] > asked["weights"] // 10:
        ways.insert(0, f"fewer batch_tokens than {tokens:,}")
    return (
        f"training {what} of {model!r} ({its.parameters / 1e6:,.0f}M parameters) on {device} needs about "
        f"{_gib(sum(asked.values()))}: {_gib(asked['weights'])} for weights, gradients and Adam, "
        f"{_gib(asked['activations'])} for a batch of {tokens:,} tokens; {_gib(limit)} are free.  Ask for "
        f"{', '.join(ways)}, or a smaller model."
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"
