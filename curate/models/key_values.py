"""Texts on their way as one batch, with their keys and values in memory that is taken once.

Each prompt goes through the model once, whatever the number of its texts, and prompts in passes of a budget of tokens;
then each pass gives every text one token.  A layer's keys are one tensor (texts, heads, columns, d), its values
another: a pass writes a column, and attention reads views of the columns that are filled.  A cache that grows by
concatenation is copied at each token, into fresh memory; on a CPU that took most of a pass.

Padding stands left of the prompts, so all texts go on in one column, and a layer with a sliding window reads the last
columns.  Where a text ends, the last of the batch moves into its place.

Memory: ``bytes_per_token`` for each text and column, with a column for each token of the longest prompt and each that
may follow.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.models.prefix import padded_left

if TYPE_CHECKING:
    import torch

_KNOWN = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
"""Layers of a cache that hold keys and values, a column a token, and nothing else; or nothing at all."""


def bytes_per_token(base: Any, device: str) -> int | None:
    """Return the bytes of the keys and values of one token; None where a layer is not known to hold those alone."""
    import torch

    one = torch.ones((1, 1), dtype=torch.int64, device=device)
    layers = base(input_ids=one, use_cache=True).past_key_values.layers
    if not {type(layer).__name__ for layer in layers} <= _KNOWN:
        return None
    return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in layers if layer.keys is not None)


class KeyValues:
    """Keys and values of a batch of texts.

    Parameters
    ----------
    base : the model without its head.
    prompts : token ids of each, the longest first.
    of : (n,) the prompt of each text, ascending; each prompt has one or more.
    room : tokens that a text may have.
    batch_tokens : tokens of prompts, padding counted, that go through the model at once.
    """

    hidden: torch.Tensor
    """(n, d) last hidden state of each text."""

    def __init__(
        self,
        base: Any,
        prompts: Sequence[NDArray[np.integer]],
        of: NDArray[np.int64],
        *,
        room: int,
        batch_tokens: int,
        device: str,
    ) -> None:
        import torch

        self._base, self._device = base, device
        self._filled = width = prompts[0].size
        columns = width + room - 1  # nothing follows the last token
        hidden = []
        begin = 0
        while begin < len(prompts):
            chunk = prompts[begin : begin + max(1, batch_tokens // prompts[begin].size)]
            ids, mask = padded_left(chunk)
            out = base(input_ids=ids.to(device), use_cache=True, **_places(mask, device))
            if not begin:
                self._cache = copy.copy(out.past_key_values)
                self._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
                self._layers = [
                    None if layer.keys is None else _Columns(layer, len(of), columns) for layer in self._cache.layers
                ]
            first, last = np.searchsorted(of, [begin, begin + len(chunk)]).tolist()
            which = torch.from_numpy(of[first:last] - begin).to(device)
            for layer, found in zip(self._layers, out.past_key_values.layers, strict=True):
                if layer is not None:
                    layer.put(first, found.keys.index_select(0, which), found.values.index_select(0, which), width)
            hidden.append(out[0][:, -1].index_select(0, which))
            begin += len(chunk)
        self.hidden = torch.cat(hidden)
        lengths = torch.tensor([prompt.size for prompt in prompts])[torch.from_numpy(of)][:, None]
        self._position = lengths.to(device)  # of the next token
        even = bool((lengths == width).all())
        self._mask = None if even else (torch.arange(columns) >= width - lengths).to(torch.int64).to(device)

    def advance(self, tokens: torch.Tensor, texts: Sequence[int]) -> None:
        """Append a token (n,) to each text and go on with ``texts``, as ``closed_up`` orders them."""
        import torch

        if len(texts) < tokens.shape[0]:
            which = torch.tensor(texts, device=self._device)
            moved = [(to, at) for to, at in enumerate(texts) if to != at]
            if moved:
                to, at = torch.tensor(moved, device=self._device).T
                for layer in self._layers:
                    if layer is not None:
                        layer.move(at, to)
            tokens, self._position = tokens.index_select(0, which), self._position.index_select(0, which)
            self._mask = None if self._mask is None else self._mask.index_select(0, which)
        self._filled += 1
        places = {}
        if self._mask is not None:
            places = {"attention_mask": self._mask[:, : self._filled], "position_ids": self._position}
        out = self._base(input_ids=tokens[:, None], past_key_values=self._cache, use_cache=True, **places)
        self.hidden = out[0][:, -1]
        self._position = self._position + 1


def closed_up(n: int, going: Sequence[int]) -> list[int]:
    """Return the texts of ``n`` that go on, in order, but for the last ones, which stand where others ended."""
    left = set(going)
    movers = iter(going[::-1])
    return [i if i in left else next(movers) for i in range(len(going))]


class _Columns:
    """Keys and values of a layer, and what stands in the place of the layer's own ``update``."""

    def __init__(self, layer: Any, texts: int, columns: int) -> None:
        self._keys, self._values = (
            x.new_empty((texts, x.shape[1], columns, x.shape[3])) for x in (layer.keys, layer.values)
        )
        self._window = layer.sliding_window if layer.is_sliding else None
        self._filled = 0
        layer.update = self._update
        self._layer = weakref.ref(layer)  # a cycle would hold the memory until it is looked for

    def put(self, first: int, keys: torch.Tensor, values: torch.Tensor, width: int) -> None:
        """Write the keys and values of prompts, right up to column ``width``, and zeros before them."""
        for kept, given in ((self._keys, keys), (self._values, values)):
            rows = kept[first : first + given.shape[0], :, :width]
            begin = width - given.shape[2]
            rows[:, :, begin:] = given
            rows[:, :, :begin] = 0  # memory not written may hold NaN, which a mask does not hide
        self._fill(width, first + keys.shape[0])

    def move(self, at: torch.Tensor, to: torch.Tensor) -> None:
        """Copy the texts ``at`` to the places ``to``."""
        for x in (self._keys, self._values):
            x[to, :, : self._filled] = x[at, :, : self._filled]

    def _update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one column; return all that the next token may attend to."""
        n, at = keys.shape[0], self._filled
        self._keys[:n, :, at : at + 1] = keys
        self._values[:n, :, at : at + 1] = values
        self._fill(at + 1, n)
        begin = 0 if self._window is None else max(0, at + 1 - self._window)
        return self._keys[:n, :, begin : at + 1], self._values[:n, :, begin : at + 1]

    def _fill(self, columns: int, texts: int) -> None:
        """Have the layer tell how many columns are filled."""
        self._filled = columns
        layer: Any = self._layer()
        layer.keys, layer.values = self._keys[:texts, :, :columns], self._values[:texts, :, :columns]
        if self._window is not None:
            layer.cumulative_length = columns


def _places(mask: torch.Tensor, device: str) -> dict[str, torch.Tensor]:
    """Return the mask and the positions of prompts; nothing where nothing is padded."""
    if bool(mask.all()):
        return {}
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"attention_mask": mask.to(device), "position_ids": positions.to(device)}
