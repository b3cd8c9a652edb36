"""What a scorer may ask of a causal language model, whatever runs it.

Four things: a forward pass over given tokens (``forward``, and ``token_logprobs`` for the commonest case), the
probabilities of given options (``option_logprobs``), and texts that go on from a prompt (``generate``).  Not every
backend can give every quantity of a pass; ``serves`` says which, and a run asks it before it starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

DType = Literal["auto", "float32", "bfloat16", "float16"]
"""What a model computes in; "auto" is as stored, but float32 for small models."""

SMALL = 1_000_000_000
"""Parameters below which dtype "auto" computes in float32."""

Row = tuple[NDArray[np.integer], NDArray[np.bool_]]
"""Token ids (T,) and mask (T,): True where a token is scored."""

Quantity = Literal[
    "logprobs",
    "entropy",
    "head-gradient",
    "hidden-weighted",
    "hidden-mean",
    "hidden-last",
    "logit-norm",
    "logit-norm-all",
]
"""What one forward pass can give of a row; see ``Forward``."""

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
LOGPROBS: frozenset[Quantity] = frozenset({"logprobs"})


@dataclass(slots=True)
class Forward:
    """What one forward pass gave of one row: the quantities that were asked, None for the others.

    Notation: t runs over the S scored tokens of the row, h_t ∈ R^d is the last hidden state (after the final norm)
    that predicts token y_t, W the output head, z_t = W h_t (+ bias, + what the architecture does to logits) the
    logits, p_t = softmax(z_t).
    """

    logprobs: NDArray[np.float32] | None = None
    """(S,) log p_t(y_t), nats."""
    entropy: NDArray[np.float32] | None = None
    """(S,) −Σ_v p_t(v) log p_t(v), nats."""
    head_gradient: tuple[float, float] | None = None
    """(⟨W, G⟩, ‖G‖²_F) of G = ∂L/∂W, the gradient of the mean loss L = −(1/S) Σ_t log p_t(y_t) in the head alone."""
    hidden_weighted: NDArray[np.float32] | None = None
    """(d,) Σ_i w_i h_i over all T tokens of the row, w_i = i / Σ_j j with i from 1 (RDS+)."""
    hidden_mean: NDArray[np.float32] | None = None
    """(d,) mean of the hidden states of all T tokens."""
    hidden_last: NDArray[np.float32] | None = None
    """(d,) hidden state of the last token."""
    logit_norm: float | None = None
    """Nuclear norm (sum of singular values) of the logits at the S positions that predict the scored tokens, (S, V)."""
    logit_norm_all: float | None = None
    """The same of the logits at all T positions, (T, V)."""
    reason: str | None = None
    """Why there is none of them: what a backend that refuses the row says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How ``generate`` draws."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_p: float = 1.0
    n: int = 1
    """Texts for each prompt."""
    seed: int = 0
    """Text k of prompt i is drawn from a seed of its own, made from (seed, the prompt's tokens, k): the prompts that
    come along do not matter."""
    stop: tuple[str, ...] = ()
    """Texts that end a generation; they are not part of it.  The model's end-of-sequence tokens always end one."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One text that a model wrote."""

    text: str
    tokens: int
    finished: bool
    """False where it was cut at ``max_tokens`` or at the context."""
    ids: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """(tokens,) what was generated, with the token that ended it; None where the backend tells the text alone."""


class CausalLM(ABC):
    """A causal language model, loaded.

    Laws
    ----
    1. The answer to a row depends on that row alone: batch budget, order and company change it by rounding only.
    2. Answers come in the order of the rows, whatever order they were computed in.
    3. A row that cannot be answered is None; a stand-in value never takes its place.
    """

    context: int | None
    """Longest sequence, in tokens; None where the architecture sets no limit."""
    vocab_size: int
    """Number of ids the model can read."""
    device: str
    """"cpu", "cuda", "cuda:1", "mps"; "remote" for a server."""
    dtype: str
    """Type of the weights and activations: "float32", "bfloat16" or "float16"; "unknown" for a server."""
    serves: frozenset[Quantity] = LOGPROBS
    """The quantities that ``forward`` can give."""
    head_norm: float | None = None
    """‖W‖_F of the output head, where "head-gradient" is served."""

    @abstractmethod
    def forward(self, rows: Sequence[Row], quantities: Collection[Quantity]) -> list[Forward | None]:
        """Return the quantities of each row, from one forward pass over it.

        Parameters
        ----------
        rows : (ids, mask) pairs, each array of shape (T,).  The first token has no prediction and may not be scored.
        quantities : any that the model ``serves``; what costs extra is computed only where it is asked.

        Returns
        -------
        One ``Forward`` per row, in order; None for a row that alone does not fit into memory, and one with nothing but
        a ``reason`` for a row that the backend refuses.

        Raises
        ------
        InputError
            If ids and mask differ in length, an id is outside the vocabulary, the first token is scored, or a row is
            longer than the context.
        ModelError
            If a quantity is asked that the model does not serve, or the backend fails.
        """

    def token_logprobs(self, rows: Sequence[Row]) -> list[NDArray[np.float32] | None]:
        """Return log p(t_i | t_1 … t_{i−1}), in nats, of each scored token: one array (S,) per row, as ``forward``."""
        return [None if found is None else found.logprobs for found in self.forward(rows, LOGPROBS)]

    def option_logprobs(
        self, prompts: Sequence[NDArray[np.integer]], options: Sequence[Sequence[NDArray[np.integer]]]
    ) -> list[NDArray[np.float64] | None]:
        """Return log p(option | prompt), in nats, of each option of each prompt: Σ over the option's tokens.

        Exact for options of any number of tokens; a softmax over a prompt's options gives their probabilities among
        themselves.

        Parameters
        ----------
        prompts : token ids (P,), at least one each.
        options : for each prompt its options, each as token ids (at least one).

        Returns
        -------
        One float64 array per prompt, an entry an option; None where a row of it does not fit into memory.
        """
        rows: list[Row] = []
        for prompt, its in zip(prompts, options, strict=True):
            for option in its:
                rows.append((np.concatenate([prompt, option]), np.arange(len(prompt) + len(option)) >= len(prompt)))
        sums = iter(
            [None if values is None else float(values.sum(dtype=np.float64)) for values in self.token_logprobs(rows)]
        )
        found = [[next(sums) for _ in its] for its in options]
        return [None if None in its else np.array(its, dtype=np.float64) for its in found]

    @abstractmethod
    def generate(self, prompts: Sequence[NDArray[np.integer]], sampling: Sampling) -> list[list[Generation] | None]:
        """Return ``sampling.n`` texts that go on from each prompt (token ids (P,)); None where it does not fit."""

    def describe(self) -> dict[str, str]:
        """Return what produced the numbers, for the manifest: backend, version, dtype, device."""
        return {"backend": type(self).__name__, "dtype": self.dtype, "device": self.device}

    @abstractmethod
    def close(self) -> None:
        """Give the memory back.  The object is of no use afterwards; closing twice is free."""
