"""A Transformers model in memory: its weights, its device, and what running out of memory looks like."""

from __future__ import annotations

from typing import Any

from curate._imports import require
from curate.exceptions import ModelError
from curate.models.base import SMALL, DType
from curate.models.identity import locate


def changes_when_run(config: Any) -> bool:
    """Whether a forward pass changes the model: rotary frequencies that follow the length of the input.

    Two threads in such a model would compute with each other's frequencies.
    """
    rotary = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    return "dynamic" in rotary or "longrope" in rotary


def is_out_of_memory(torch: Any, error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU allocator and MPS have no class of their own.
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("DefaultCPUAllocator", "can't allocate memory", "out of memory")
    )


def find_device(torch: Any, device: str) -> str:
    mps = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind = device.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": mps}
    if not there.get(kind, False):
        raise ModelError(
            f"device {device!r} was asked; this process sees {', '.join(k for k, v in there.items() if v)}; "
            "check CUDA_VISIBLE_DEVICES and the torch build, or ask for 'auto'."
        )
    return device


def load_weights(model: str, dtype: DType, *, kind: str = "AutoModelForCausalLM") -> Any:
    """Load the weights, whole or not at all; ``kind`` is the class of Transformers that looks for them."""
    transformers = require("transformers", extra="lm", for_=f"the model {model!r}")
    import torch

    source = locate(model)
    keyword = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        loaded, info = getattr(transformers, kind).from_pretrained(
            source.name,
            **source.arguments,
            **{keyword: "auto" if dtype == "auto" else getattr(torch, dtype)},
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # the library raises whatever the broken file made it trip over
        raise ModelError(f"model {model!r} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:  # the library would fill them with random numbers and go on
        raise ModelError(
            f"model {model!r}: {len(missing)} weights that {type(loaded).__name__} needs are not in its files, or of "
            f"another shape, first {missing[0]}; the folder is incomplete or its config.json is another model's."
        )
    if dtype == "auto" and sum(p.numel() for p in loaded.parameters()) < SMALL:
        loaded = loaded.float()
    return loaded
