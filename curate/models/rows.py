"""What every backend asks of a row before it computes anything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError


def check_row(
    i: int, ids: NDArray[np.integer], mask: NDArray[np.bool_], *, vocab_size: int, context: int | None
) -> NDArray[np.int64]:
    """Return the scored positions of row ``i``, or say what is wrong with it.

    Raises
    ------
    InputError
        If ids and mask differ in length, the first token is scored, an id is outside the vocabulary, or the last scored
        token lies beyond the context.
    """
    at = np.flatnonzero(mask)
    if ids.shape != mask.shape or ids.ndim != 1:
        raise InputError(f"row {i}: ids of shape {ids.shape} and a mask of shape {mask.shape}; both must be (T,).")
    if at.size and at[0] == 0:
        raise InputError(f"row {i}: the first token is to be scored, but nothing predicts it; mask it out.")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise InputError(f"row {i}: ids from {ids.min()} to {ids.max()}; the model's vocabulary has {vocab_size}.")
    if at.size and context is not None and at[-1] >= context:
        raise InputError(f"row {i}: {at[-1] + 1} tokens; the model's context is {context}.")
    return at


def check_prompt(i: int, ids: NDArray[np.integer], *, vocab_size: int, context: int | None) -> None:
    """Say what is wrong with prompt ``i``, if anything is.

    Raises
    ------
    InputError
        If it is empty, longer than the context, or has an id outside of the vocabulary.
    """
    if ids.ndim != 1 or not ids.size:
        raise InputError(f"prompt {i}: ids of shape {ids.shape}; at least one token, (P,), was asked.")
    if not 0 <= ids.min() <= ids.max() < vocab_size:
        raise InputError(f"prompt {i}: ids from {ids.min()} to {ids.max()}; the model's vocabulary has {vocab_size}.")
    if context is not None and ids.size > context:
        raise InputError(f"prompt {i}: {ids.size} tokens; the model's context is {context}.")
