r"""Dropout in which each row of a batch draws from a stream of its own.

    x ↦ x ∘ b / (1 − p),      b = 0 with probability p, for each number of the row's own tokens

A row's zeros depend on its seed and its length, and on neither its company nor the padding, which is left alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from curate.exceptions import ModelError

if TYPE_CHECKING:
    import torch


class RowDropout:
    """The dropout of a model's LoRA adapters, in place of peft's own (the model stays in eval mode).

    Parameters
    ----------
    adapted : the model with its adapters, by ``curate.models.lora.attach``.
    p : share of an adapter's inputs that become 0.
    """

    def __init__(self, adapted: Any, p: float) -> None:
        self._p = p
        self._here = threading.local()
        for name, module in adapted.named_modules():
            if p and name.endswith("lora_dropout.default"):
                module.register_forward_hook(lambda _module, _inputs, x: self.drop(x))

    @contextlib.contextmanager
    def drawing(self, seeds: Sequence[int], lengths: Sequence[int]) -> Iterator[None]:
        """In this thread's forward passes, drop what the seeds of the rows say; ``lengths`` are their tokens."""
        self._here.rows = seeds, lengths, []
        try:
            yield
        finally:
            self._here.rows = (), (), []

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input (rows, tokens, width) of an adapter with some of its numbers 0; each call draws anew.

        Raises
        ------
        ModelError
            If it has another shape: its rows cannot be told apart.
        """
        import torch

        seeds, lengths, streams = self._here.rows
        if x.ndim != 3 or len(x) != len(seeds):
            raise ModelError(
                f"lora: an adapted layer reads {tuple(x.shape)} where {len(seeds)} rows, tokens and width were "
                "asked, so that no row's dropout can be told; ask for dropout: 0, or leave that layer out."
            )
        if not streams:
            streams += [torch.Generator(x.device).manual_seed(seed) for seed in seeds]
        kept = x.new_ones(x.shape)
        for row, n, stream in zip(kept, lengths, streams, strict=True):
            row[:n].bernoulli_(1 - self._p, generator=stream).div_(1 - self._p)
        return x * kept
