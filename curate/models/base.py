"""What a scorer may ask of a causal language model, whatever runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DType = Literal["auto", "float32", "bfloat16", "float16"]
"""What a model computes in; "auto" is as stored, but float32 for small models."""

Row = tuple[NDArray[np.integer], NDArray[np.bool_]]
"""Token ids (T,) and mask (T,): True where a token is scored."""


class CausalLM(ABC):
    """A causal language model, loaded.

    Laws
    ----
    1. The answer to a row depends on that row alone: batch budget, order and company change it by rounding only.
    2. Answers come in the order of the rows, whatever order they were computed in.
    """

    context: int | None
    """Longest sequence, in tokens; None where the architecture sets no limit."""
    vocab_size: int
    """Number of ids the model can read."""
    device: str
    """"cpu", "cuda", "cuda:1", "mps"."""
    dtype: str
    """Type of the weights and activations: "float32", "bfloat16" or "float16"."""

    @abstractmethod
    def token_logprobs(self, rows: Sequence[Row]) -> list[NDArray[np.float32] | None]:
        r"""Return log p(t_i | t_1 … t_{i−1}), in nats, of each scored token of each row.

        Parameters
        ----------
        rows : (ids, mask) pairs, each array of shape (T,).  The first token has no prediction and may not be scored.

        Returns
        -------
        One float32 array per row, as long as its mask has True entries, in the order of the tokens; None for a row that
        alone does not fit into memory.

        Raises
        ------
        InputError
            If ids and mask differ in length, an id is outside the vocabulary, the first token is scored, or a row is
            longer than the context.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the memory back.  The object is of no use afterwards; closing twice is free."""
