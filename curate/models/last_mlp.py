"""The last layer's feed-forward part, at the scored positions only.

After the last attention nothing mixes positions: what the last MLP makes of a position that is not scored is thrown
away.  It is two thirds of a layer's products, so in a model of L layers with a share s of its tokens scored about
0.6 (1 − s) / L of all work is saved: 3 to 5% with six layers, under 1% with 32.

Hooks on the module do it, so no architecture is rewritten; and it is done only where a probe shows that the hidden
states at the scored positions stay what they were.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class LastMLP:
    """Hooks on ``base.layers[-1].mlp``.  They do nothing outside of ``only``."""

    def __init__(self, base: Any) -> None:
        mlp = base.layers[-1].mlp
        self._local = threading.local()  # each thread runs its own batch through the one model
        self._handles = [mlp.register_forward_pre_hook(self._gather), mlp.register_forward_hook(self._scatter)]

    @contextlib.contextmanager
    def only(self, at: torch.Tensor) -> Iterator[None]:
        """Within: states are right at the flat positions ``at``, int64 (n,) of (batch · width), and only there."""
        self._local.at = at
        try:
            yield
        finally:
            self._local.at = None

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _gather(self, _: Any, inputs: Any) -> Any:
        at = getattr(self._local, "at", None)
        if at is None:
            return None
        (hidden,) = inputs
        self._local.shape = hidden.shape
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, at)[None],)

    def _scatter(self, _: Any, __: Any, output: Any) -> Any:
        at = getattr(self._local, "at", None)
        if at is None:
            return None
        *positions, width = self._local.shape
        full = output.new_zeros((*positions, width))
        full.view(-1, width).index_copy_(0, at, output[0])
        return full


def last_mlp(torch: Any, base: Any, vocab_size: int, device: str) -> LastMLP | None:
    """Return the hooks where they change nothing at the positions asked for; None where they do, or find no MLP."""
    try:
        found = LastMLP(base)
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
    ids = torch.arange(1, 17, device=device).reshape(2, 8) * 7919 % vocab_size
    at = torch.tensor([2, 3, 6, 9, 14], device=device)
    try:
        whole = base(input_ids=ids, use_cache=False)[0]
        with found.only(at):
            part = base(input_ids=ids, use_cache=False)[0]
    except Exception:  # whatever an unknown module does with an input of another shape
        found.remove()
        return None
    whole, part = (x.reshape(-1, x.shape[-1])[at].float() for x in (whole, part))
    tolerance = 1e-5 if base.dtype == torch.float32 else 2e-2
    if torch.allclose(whole, part, rtol=tolerance, atol=tolerance * float(whole.abs().max())):
        return found
    found.remove()
    return None
