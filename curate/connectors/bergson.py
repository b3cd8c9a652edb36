"""Gradient features in bergson's store on disk (github.com/EleutherAI/bergson, versions 0.26 and 2.5).

    gradients.bin   rows × Σ sizes numbers, row after row, in the machine's byte order
    info.json       num_grads: rows; grad_sizes: numbers of each module, in the order of the columns; base_dtype:
                    float16, float32, float64 or bfloat16; attribute_tokens: true if each row is a token's

A store that several machines wrote is a folder of such folders, in the order of their names.  Versions before
``base_dtype`` described a structured type, one field a module, packed: the same bytes.

Numbers and names of modules go both ways.  Ids of rows do not: bergson knows a row by its position in its data set.
Features of several checkpoints are written with a module for each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.attribution import Features

GRADIENTS, INFO = "gradients.bin", "info.json"
_DTYPES = ("float16", "float32", "float64", "bfloat16")
_BLOCK = 2**22  # numbers that are copied at once

Path_ = str | os.PathLike[str]


def modules(folder: Path_) -> dict[str, int]:
    """Return how many numbers of a row each module has, in the order of the columns."""
    return _info(_stores(folder)[0])["grad_sizes"]


def read(folder: Path_, module: str | None = None) -> Features:
    """Return the features of a store, mapped, or those of one module.

    bfloat16 becomes float32 in memory, as NumPy has no such type.

    Raises
    ------
    InputError
        If there is no store, a file is not of the size that ``info.json`` says, rows are tokens', or no module has that
        name.
    """
    stores = _stores(folder)
    shards, infos = [], [_info(store) for store in stores]
    for store, info in zip(stores, infos, strict=True):
        if info["grad_sizes"] != infos[0]["grad_sizes"]:
            raise InputError(f"bergson: {store} has other modules than {stores[0]}; shards of one store were asked.")
        shards.append(_rows(store, info, _columns(info["grad_sizes"], module, store)))
    return Features(shards, infos[0].get("made", {}) if module is None else {})


def write(folder: Path_, features: Features | NDArray[Any] | Path_, sizes: Mapping[str, int] | None = None) -> None:
    """Write features as a store that ``bergson.load_gradients`` reads, a block at a time.

    What made them (``features.made``) is kept in ``info.json`` under a key that bergson does not read.  That file is
    written last: without it there is no store.

    Parameters
    ----------
    features : rows × d, float16 or float32, all of one type; NaN stays NaN.
    sizes : name of each module → numbers, which sum to d; by default one, "projected".

    Raises
    ------
    InputError
        If the sizes do not sum to d, types differ, there are no shards, or the folder holds a store.
    """
    given, target = Features.of(features), Path(folder)
    parts = given.parts()
    if not parts:
        raise InputError("bergson: features in at least one shard were asked, none was found.")
    width = parts[0].shape[1]
    named = {str(name): int(size) for name, size in (sizes or {"projected": width}).items()}
    if sum(named.values()) != width or min(named.values()) < 1:
        raise InputError(f"bergson: modules of {width:,} numbers in all were asked, sizes {named} were found.")
    dtypes = {part.array.dtype for part in parts}
    if len(dtypes) > 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise InputError(f"bergson: features of one type were asked, {found} were found; convert them to one.")
    if (target / INFO).exists():
        raise InputError(f"bergson: {target} holds a store already; name another folder, or remove it.")
    target.mkdir(parents=True, exist_ok=True)
    dtype, step = dtypes.pop().newbyteorder("="), max(1, _BLOCK // width)
    with open(target / f"{GRADIENTS}.part", "wb") as file:
        for part in parts:
            for start in range(0, part.shape[0], step):
                file.write(np.ascontiguousarray(part.array[start : start + step], dtype=dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(target / f"{GRADIENTS}.part", target / GRADIENTS)
    rows = sum(part.shape[0] for part in parts)
    info = {
        "attribute_tokens": False,
        "num_items": rows,
        "num_grads": rows,
        "grad_sizes": named,
        "base_dtype": dtype.name,
        "made": dict(given.made),
    }
    (target / f"{INFO}.part").write_text(json.dumps(info, indent=2), encoding="utf-8")
    os.replace(target / f"{INFO}.part", target / INFO)


def _stores(folder: Path_) -> list[Path]:
    root = Path(folder)
    if (root / INFO).exists():
        return [root]
    stores = sorted(path.parent for path in root.glob(f"*/{INFO}"))
    if not stores:
        raise InputError(f"bergson: a store ({INFO} and {GRADIENTS}) was asked, {root} holds none.")
    return stores


def _info(store: Path) -> dict[str, Any]:
    """Return ``num_grads``, ``grad_sizes``, ``base_dtype``, and ``made`` if it is there."""
    try:
        info = json.loads((store / INFO).read_text(encoding="utf-8"))
        if info.get("attribute_tokens"):
            raise InputError(f"bergson: a row for each example was asked, {store} has one for each token.")
        dtype = info["base_dtype"] if "base_dtype" in info else _old_dtype(info["dtype"])
        sizes = {str(name): int(size) for name, size in info["grad_sizes"].items()}
        out = {"num_grads": int(info["num_grads"]), "grad_sizes": sizes, "base_dtype": dtype}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"bergson: {store / INFO} is not that of a store: {type(error).__name__}: {error}.") from error
    if dtype not in _DTYPES:
        raise InputError(f"bergson: numbers of type {', '.join(_DTYPES)} were asked, {store} has {dtype!r}.")
    return out | ({"made": info["made"]} if isinstance(info.get("made"), dict) else {})


def _old_dtype(described: Mapping[str, Any]) -> str:
    base = np.dtype(described["formats"][0]).base  # "(64,)<f2"
    return "bfloat16" if base.str == "<V2" else base.name


def _columns(sizes: Mapping[str, int], module: str | None, store: Path) -> slice:
    if module is None:
        return slice(None)
    if module not in sizes:
        raise InputError(f"bergson: module {module!r} was asked, {store} has {', '.join(sizes)}.")
    names = list(sizes)
    start = sum(sizes[name] for name in names[: names.index(module)])
    return slice(start, start + sizes[module])


def _rows(store: Path, info: Mapping[str, Any], columns: slice) -> NDArray[Any]:
    shape = info["num_grads"], sum(info["grad_sizes"].values())
    brain = info["base_dtype"] == "bfloat16"
    dtype = np.dtype(np.uint16 if brain else info["base_dtype"])
    path = store / GRADIENTS
    asked, found = shape[0] * shape[1] * dtype.itemsize, path.stat().st_size if path.exists() else 0
    if asked != found:
        raise InputError(f"bergson: {path} of {asked:,} bytes was asked by its {INFO}, {found:,} were found.")
    if not asked:
        return np.empty(shape, dtype=np.float32 if brain else dtype)[:, columns]
    rows = np.memmap(path, dtype=dtype, mode="r", shape=shape)[:, columns]
    if not brain:
        return rows
    wide = np.empty(rows.shape, dtype=np.uint32)
    np.left_shift(rows, 16, out=wide, dtype=np.uint32)  # bfloat16 is the upper half of a float32
    return wide.view(np.float32)
