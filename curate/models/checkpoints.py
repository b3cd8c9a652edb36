"""Checkpoints of adapters on disk: as arrays, as folders that peft loads, and as Hugging Face's Trainer leaves them.

A folder of ours holds

    adapter_config.json, adapter_model.safetensors   peft's own
    optimizer.safetensors                            Adam's moments: "first/NAME", "second/NAME"
    training.json                                    steps, rate, and what else is known

One of the Trainer's has ``optimizer.pt`` and ``trainer_state.json`` in their place.  ``optimizer.pt`` numbers the
weights in the order in which the model lists those it trains, so that it takes the model to name them.  It is read by
``torch.load(weights_only=True)``, which builds tensors and plain containers and runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import InputError, ModelError
from curate.models.identity import locate
from curate.models.lora import Checkpoint, Lora, Weights, attach, check_names, fresh, parameters

_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "optimizer.pt",
    "training.json",
    "trainer_state.json",
)
_READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "peft_type", "init_lora_weights"}
_HARMLESS = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to initialise an adapter that leave the base model alone; PiSSA, OLoRA and their like change it."""


def untrained(model: str, lora: Lora | None = None, *, seed: int = 0) -> Checkpoint:
    """Return the checkpoint before any training: fresh weights, no moments, no steps.  Loads no weights of the model.

    Raises
    ------
    ModelError
        If the model cannot be found, or has no such layers.
    """
    lora = lora or Lora()
    return Checkpoint(lora, fresh(_skeleton(model, lora), seed))


def to_arrays(c: Checkpoint) -> dict[str, NDArray[Any]]:
    """Return the checkpoint as arrays for ``np.savez``; none of them needs pickle."""
    parts = {"weights": c.weights, "first": c.first, "second": c.second}
    out: dict[str, NDArray[Any]] = {
        f"{part}/{name}": value for part, weights in parts.items() for name, value in (weights or {}).items()
    }
    return out | {"training": np.array(json.dumps(_facts(c)))}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    """Return the checkpoint of ``to_arrays``; ``np.load(path, allow_pickle=False)`` gives such a mapping.

    Raises
    ------
    ModelError
        If these are no checkpoint's arrays, or the moments are not of the same names and sizes as the weights.
    """
    if "training" not in arrays:
        raise ModelError(f"a checkpoint's arrays were asked; found {', '.join(sorted(arrays)[:6]) or 'none'}.")
    parts: dict[str, dict[str, NDArray[np.float32]]] = {"weights": {}, "first": {}, "second": {}}
    for key in arrays:
        part, _, name = key.partition("/")
        if part in parts:
            parts[part][name] = arrays[key]
    return _checkpoint(json.loads(str(arrays["training"])), **parts, what="the checkpoint")


def write(folder: str, c: Checkpoint, *, model: str | None = None) -> None:
    """Write the checkpoint as a folder that ``peft.PeftModel.from_pretrained`` loads, whole or not at all.

    ``model``: the base model's name or folder, for peft to note.

    Raises
    ------
    InputError
        If there is something at ``folder`` already.
    """
    from safetensors.numpy import save_file

    place = Path(folder)
    if place.exists():
        raise InputError(f"checkpoint {folder!r}: there is something already; remove it, or give another folder.")
    aside = place.with_name(f".{place.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "inference_mode": True,
        "r": c.lora.r,
        "lora_alpha": c.lora.alpha,
        "lora_dropout": c.lora.dropout,
        "target_modules": list(c.lora.layers),
        "bias": "none",
    }
    (aside / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(_copied(c.weights), aside / "adapter_model.safetensors", metadata={"format": "pt"})
    if c.first is not None and c.second is not None:
        moments = {f"{part}/{n}": v for part, its in (("first", c.first), ("second", c.second)) for n, v in its.items()}
        save_file(_copied(moments), aside / "optimizer.safetensors")
    (aside / "training.json").write_text(json.dumps(_facts(c), indent=2) + "\n", encoding="utf-8")
    aside.replace(place)


def digest(folder: str) -> str:
    """Return a digest of the files that ``read`` reads (128-bit blake2b over names and contents).

    Raises
    ------
    ModelError
        If there is no adapter.
    """
    place = Path(folder)
    _check_adapter(place)
    out = hashlib.blake2b(digest_size=16)
    for path in (place / name for name in _FILES if (place / name).is_file()):
        with path.open("rb") as file:
            its = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        out.update(f"{path.name}\0{its}\n".encode())
    return out.hexdigest()


def read(folder: str, model: str | None = None, *, rate: float | None = None) -> Checkpoint:
    """Return the checkpoint in a folder: ours, the Trainer's, or an adapter alone (then without moments).

    Parameters
    ----------
    model : the base model, to check names and sizes against, and to name what ``optimizer.pt`` numbers; only its
        config.json is read.  A folder with ``optimizer.pt`` cannot be read without it.
    rate : the average learning rate of its epoch, in place of what the folder says.  Of the Trainer's it is the mean of
        the rates that ``trainer_state.json`` logged in that epoch.

    Raises
    ------
    ModelError
        If the folder is no LoRA adapter or one of a kind that is not served, if weights or moments do not match the
        adapter or the model by name and size, or if no rate is given or found.
    """
    place = Path(folder)
    lora = _config(place)
    weights = _weights(place, lora)
    lora = replace(lora, layers=_layers(weights))
    order = list(weights)
    if model is not None:
        adapted = _skeleton(model, lora)
        check_names(adapted, weights, what=f"checkpoint {folder!r}")
        order = list(parameters(adapted))
        weights = {name: weights[name] for name in order}
        lora = replace(lora, layers=_layers(weights))
    facts: dict[str, Any] = _json(place / "training.json") if (place / "training.json").is_file() else {}
    moments: tuple[Weights | None, Weights | None] = (None, None)
    if (place / "optimizer.safetensors").is_file():
        moments = _our_moments(place, order)
    elif (place / "optimizer.pt").is_file():
        if model is None:
            raise ModelError(
                f"checkpoint {folder!r}: optimizer.pt numbers the weights in the order of the model; give the model."
            )
        moments = _trainer_moments(place, weights)
    if not facts and (place / "trainer_state.json").is_file():
        facts = _trainer_facts(_json(place / "trainer_state.json"))
    found = facts.get("rate") if rate is None else rate
    if found is None:
        raise ModelError(
            f"checkpoint {folder!r}: its average learning rate is not known: no training.json, and no rate logged in "
            "its epoch in trainer_state.json; give the checkpoints' weights."
        )
    facts = {"steps": 0, "told": {}} | facts | {"rate": float(found), "lora": _shape(lora)}
    return _checkpoint(facts, weights, moments[0], moments[1], what=f"checkpoint {folder!r}")


def _shape(lora: Lora) -> dict[str, Any]:
    return {"r": lora.r, "alpha": lora.alpha, "dropout": lora.dropout, "layers": list(lora.layers)}


def _facts(c: Checkpoint) -> dict[str, Any]:
    return {"lora": _shape(c.lora), "steps": c.steps, "rate": c.rate, "told": dict(c.told)}


def _checkpoint(
    facts: Mapping[str, Any], weights: Weights, first: Weights | None, second: Weights | None, *, what: str
) -> Checkpoint:
    asked = {name: value.shape for name, value in weights.items()}
    if first or second:
        for part, its in (("first", first or {}), ("second", second or {})):
            found = {name: value.shape for name, value in its.items()}
            for name in [*asked, *found]:
                if asked.get(name) != found.get(name):
                    raise ModelError(
                        f"{what}: its optimizer state does not match its weights: of {part}/{name}, "
                        f"{asked.get(name, 'nothing')} was asked and {found.get(name, 'nothing')} found."
                    )
    lora = facts["lora"]
    return Checkpoint(
        Lora(r=lora["r"], alpha=lora["alpha"], dropout=lora["dropout"], layers=tuple(lora["layers"])),
        weights,
        first or None,
        second or None,
        steps=facts["steps"],
        rate=facts["rate"],
        told=facts["told"],
    )


def _skeleton(model: str, lora: Lora) -> Any:
    """Return the adapted model without numbers: names and sizes, from config.json alone."""
    transformers = require("transformers", extra="influence", for_=f"the model {model!r}")
    import torch

    source = locate(model)
    try:
        config = transformers.AutoConfig.from_pretrained(source.name, **source.arguments)
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the library raises whatever the broken file made it trip over
        raise ModelError(f"model {model!r} cannot be made: {type(error).__name__}: {error}") from error
    return attach(empty, lora, name=model)


def _copied(weights: Weights) -> dict[str, NDArray[np.float32]]:
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"checkpoint {str(path.parent)!r}: {path.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"checkpoint {str(path.parent)!r}: {path.name} holds a {type(found).__name__}, not an object.")
    return found


def _check_adapter(folder: Path) -> None:
    if not (folder / "adapter_config.json").is_file():
        holds = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
        raise ModelError(f"checkpoint {str(folder)!r} has no adapter_config.json ({holds}); give peft's LoRA folder.")


def _config(folder: Path) -> Lora:
    """Return the shape of the adapter, or refuse a configuration that computes something else than A, B and α/r."""
    peft = require("peft", extra="influence", for_=f"the checkpoint {str(folder)!r}")
    _check_adapter(folder)
    config = _json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"checkpoint {str(folder)!r} is a {config.get('peft_type')} adapter; LoRA is what is read.")
    usual = peft.LoraConfig().to_dict()
    odd = {k: v for k, v in config.items() if k not in _READ | _HARMLESS and v and v != usual.get(k)}
    if config.get("init_lora_weights") not in _BEGINNINGS:
        odd["init_lora_weights"] = config["init_lora_weights"]
    if odd:
        key, value = next(iter(odd.items()))
        raise ModelError(
            f"checkpoint {str(folder)!r}: its adapter has {key}={json.dumps(value)}, which changes what it computes; "
            "plain LoRA (A, B and alpha/r on linear layers) is what is read."
        )
    r, alpha, dropout = (config.get(key, usual[key]) for key in ("r", "lora_alpha", "lora_dropout"))
    try:
        return Lora(r=r, alpha=alpha, dropout=dropout)
    except (InputError, TypeError) as error:
        raise ModelError(f"checkpoint {str(folder)!r}: {error}") from error


def _weights(folder: Path, lora: Lora) -> dict[str, NDArray[np.float32]]:
    """Return A and B of each layer, of the rank that the configuration says."""
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelError(
            f"checkpoint {str(folder)!r} has no adapter_model.safetensors; adapters that are pickled (.bin) are not "
            "read: save it again by a peft of today."
        )
    try:
        found = load_file(path)
    except Exception as error:
        raise ModelError(f"checkpoint {str(folder)!r}: {path.name} cannot be read: {error}") from error
    if not found:
        raise ModelError(f"checkpoint {str(folder)!r}: {path.name} is empty.")
    for name, tensor in found.items():
        inner = {"lora_A": 0, "lora_B": 1}.get(name.split(".")[-2] if name.endswith(".weight") else "")
        if inner is None or tensor.ndim != 2:
            raise ModelError(f"checkpoint {str(folder)!r} holds {name}, which is no A or B of a linear layer.")
        if tensor.shape[inner] != lora.r:
            raise ModelError(
                f"checkpoint {str(folder)!r}: {name} is {tuple(tensor.shape)}, but adapter_config.json says r={lora.r}."
            )
    return {name: tensor.float().numpy() for name, tensor in found.items()}


def _layers(weights: Weights) -> tuple[str, ...]:
    """Return the last parts of the layers' names, in their order: "….q_proj.lora_A.weight" is of "q_proj"."""
    return tuple(dict.fromkeys(name.split(".")[-3] for name in weights))


def _our_moments(folder: Path, order: list[str]) -> tuple[Weights, Weights]:
    from safetensors.numpy import load_file

    try:
        found = load_file(folder / "optimizer.safetensors")
    except Exception as error:
        raise ModelError(f"checkpoint {str(folder)!r}: optimizer.safetensors cannot be read: {error}") from error
    first, second = (
        {key.removeprefix(part): value for key, value in found.items() if key.startswith(part)}
        for part in ("first/", "second/")
    )
    if set(first) == set(second) == set(order):  # else the caller says what differs
        first, second = ({name: its[name] for name in order} for its in (first, second))
    return first, second


def _trainer_moments(folder: Path, weights: Weights) -> tuple[Weights, Weights]:
    """Return Adam's moments by name; ``weights`` are in the model's order, which is that of the numbers."""
    import torch

    what = f"checkpoint {str(folder)!r}: optimizer.pt"
    try:
        saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        state = saved["state"]
    except Exception as error:  # a pickle that runs code, a torn file, another layout
        raise ModelError(f"{what} cannot be read as tensors: {type(error).__name__}: {error}") from error
    if len(numbers) != len(weights):
        raise ModelError(
            f"{what} is of {len(numbers)} weights, the adapter has {len(weights)}; they belong to different trainings."
        )
    moments: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for number, (name, weight) in zip(numbers, weights.items(), strict=True):
        its = state.get(number, {})
        for out, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
            value = its.get(key)
            if value is None:
                raise ModelError(
                    f"{what} has no {key} of weight {number} ({name}), but {', '.join(map(str, its)) or 'nothing'}; "
                    "AdamW's state is what is read."
                )
            if tuple(value.shape) != weight.shape:
                raise ModelError(
                    f"{what} does not match the adapter: {key} of weight {number} is {tuple(value.shape)}, "
                    f"but {name} is {weight.shape}; it belongs to another model or another LoRA configuration."
                )
            out[name] = value.float().numpy()
    return moments


def _trainer_facts(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return steps, epoch and the mean of the rates that were logged in the epoch that the checkpoint ends."""
    epoch = float(state.get("epoch") or 0)
    begins = math.ceil(epoch - 1e-6) - 1
    rates = [
        float(entry["learning_rate"])
        for entry in state.get("log_history", [])
        if isinstance(entry.get("learning_rate"), (int, float))
        and begins + 1e-6 < float(entry.get("epoch", -1)) <= epoch + 1e-6
    ]
    return {
        "steps": int(state.get("global_step") or 0),
        "rate": float(np.mean(rates)) if rates else None,
        "told": {"epoch": epoch},
    }
