"""The arrays that a selector is given, checked: their types, lengths, NaN; labels of any kind as codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def check_pool(x: Any, x_name: str, nan_rows: bool, *, caller: str) -> tuple[NDArray[Any] | None, int]:
    """Return the checked array (None if only the length counts) and the number of rows."""
    if isinstance(x, (int, np.integer)) and not isinstance(x, bool):
        if x_name != "nothing":
            raise InputError(f"{caller}: an array of {x_name} was asked, the number {x} was found.")
        if x < 0:
            raise InputError(f"{caller}: a pool of 0 rows or more was asked, {x} was found.")
        return None, int(x)
    array = np.asanyarray(x)  # a memory map stays one
    if array.ndim == 0:
        raise InputError(f"{caller}: an array of {x_name} was asked, {x!r} was found.")
    if x_name == "nothing":
        return None, len(array)
    ndim = 2 if x_name == "features" else 1
    return check_numbers(array, x_name, len(array), ndim=ndim, nan_rows=nan_rows, caller=caller), len(array)


def check_numbers(values: Any, what: str, n: int, *, ndim: int, nan_rows: bool = False, caller: str) -> NDArray[Any]:
    array = np.asanyarray(values)
    if array.ndim != ndim:
        raise InputError(f"{caller}: {what} of {ndim} dimension(s) was asked, shape {array.shape} was found.")
    if len(array) != n:
        raise InputError(f"{caller}: {what} has {len(array)} rows, the pool has {n}.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{caller}: {what} must be numbers, dtype {array.dtype} was found.")
    if n and not array[:1].size:
        raise InputError(f"{caller}: {what} of at least one column was asked, shape {array.shape} was found.")
    if ndim == 1:
        array = array.astype(np.float64)  # a copy: the selection keeps it
    # Row blocks: a memory-mapped feature matrix is never copied whole just to look for NaN.
    block = max(1, 2**24 // max(1, array[:1].size))
    for start in range(0, n, block):
        piece = array[start : start + block].reshape(min(block, n - start), -1)
        finite = np.isfinite(piece).all(axis=1)
        if nan_rows and not finite.all():
            finite[~finite] = np.isnan(piece[~finite]).all(axis=1)
        if not finite.all():
            first = start + int(np.argmin(finite))
            raise InputError(
                f"{caller}: {what} holds NaN or infinity, first at row {first} of {n}; drop or score those rows first."
            )
    return array


def check_cost(cost: Any, n: int, *, caller: str) -> NDArray[np.float64]:
    array = check_numbers(cost, "cost", n, ndim=1, caller=caller)
    if n and array.min() < 0:
        raise InputError(f"{caller}: cost is below 0 at row {int(array.argmin())}; a row's tokens are 0 or more.")
    return array


def codes_of(labels: Any, n: int, what: str, *, caller: str) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Return (codes, names) of labels of any kind: text, whole numbers, byte keys (named in hex), None (named "")."""
    if labels is None:
        return None, []
    if hasattr(labels, "dictionary"):
        return _dictionary_labels(labels, n, what, caller=caller)
    array = np.asarray(labels)
    if array.shape != (n,):
        raise InputError(f"{caller}: {what} must be one label a row, ({n},); found shape {array.shape}.")
    if array.dtype.kind in "iub":
        values, codes = np.unique(array, return_inverse=True)
        return codes.astype(np.int64).reshape(n), [str(v) for v in values.tolist()]
    words = ["" if v is None else v.hex() if isinstance(v, bytes) else str(v) for v in array.tolist()]
    names = sorted(set(words))
    code = {name: i for i, name in enumerate(names)}
    return np.fromiter(map(code.__getitem__, words), dtype=np.int64, count=n), names


def _dictionary_labels(labels: pa.DictionaryArray, n: int, what: str, *, caller: str) -> tuple[Any, list[str]]:
    """Return (codes, names) of labels that are numbered already: no text of a row is made."""
    if len(labels) != n:
        raise InputError(f"{caller}: {what} must be one label a row, ({n},); found shape ({len(labels)},).")
    words = ["" if v is None else str(v) for v in labels.dictionary.to_pylist()]
    codes = labels.indices.to_numpy(zero_copy_only=False)
    there = np.bincount(codes, minlength=len(words)) > 0
    names = sorted({word for word, used in zip(words, there, strict=True) if used})
    rank = {name: i for i, name in enumerate(names)}
    return np.array([rank.get(word, 0) for word in words], dtype=np.int64)[codes], names
