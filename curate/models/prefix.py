"""Prompts that several rows share go through the model once.

Rows with a common beginning, as the candidates of one prompt or the options of one question, are found whatever their
order.  The keys and values of that beginning are computed once; what follows it is then a batch that attends to them,
at positions that go on from there.  They are repeated for the rows of a batch a layer at a time, so memory holds them
once, and one layer's copies.

With m rows of P shared and R own tokens each, m (P + R) tokens become P + m R: 2.9 times fewer for P = 3 R and m = 8.

What may be shared ends before the first scored token's predecessor: the states from there on are each row's own.
Only rows of one call of ``forward``, in a run one shard, share: a prompt whose candidates lie in two shards is computed
in both.
Whether a model gives the same states this way is tried when it is loaded (``shares_prefixes``).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.models.last_mlp import LastMLP

if TYPE_CHECKING:
    import torch

SHORTEST = 16
"""Tokens of the shortest beginning that is shared."""
SURCHARGE = 1 / 5
"""What a token costs more in a group: attention with a mask, copies of keys and values, smaller and more batches."""
LARGEST = 64
"""Rows of a group; of more with one beginning, it is computed anew for every 64."""
PADDING = 1 / 8
"""By how much beginnings that are computed together may differ in length."""
EXPANSION = 8
"""Tokens whose keys and values a layer may see in one pass, own and shared, in batch budgets."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that begin with the same ``length`` tokens."""

    length: int
    rows: tuple[int, ...]
    own: int
    """Tokens of all its rows after the beginning."""


def groups(ids: Sequence[NDArray[np.integer]], first: Sequence[int], lengths: NDArray[np.int64]) -> list[Group]:
    """Return the groups that save most; a row belongs to one or none.

    A group of rows of T_1 … T_m tokens that share C saves (m − 1) C tokens and pays ``SURCHARGE`` · Σ T.  Sorted by
    their tokens, rows with a common beginning stand together, so the best division of the sorted rows into groups and
    single rows is a shortest path.

    Parameters
    ----------
    ids : token ids of each row.
    first : how many of them may be shared.
    lengths : how many of them are computed; at least one more than may be shared.
    """
    shareable = np.flatnonzero(np.asarray(first) >= SHORTEST).tolist()
    keys = {j: ids[j][: first[j]].astype(np.int32) for j in shareable}
    order = sorted(shareable, key=lambda j: keys[j].tobytes())
    common = [0, *(_common(keys[a], keys[b]) for a, b in itertools.pairwise(order))]
    # best[j]: the most tokens that the first j sorted rows can save; cut[j]: where the last group of that starts.
    best, cut = [0.0], [0]
    for j in range(1, len(order) + 1):
        best.append(best[-1])
        cut.append(j - 1)
        shared, paid = first[order[j - 1]], SURCHARGE * lengths[order[j - 1]]
        for i in range(j - 1, max(0, j - LARGEST), -1):  # the group order[i − 1:j]
            shared = min(shared, common[i])
            if shared < SHORTEST:
                break
            paid += SURCHARGE * lengths[order[i - 1]]
            saved = best[i - 1] + (j - i) * shared - paid
            if saved > best[j]:
                best[j], cut[j] = saved, i - 1
    found = []
    j = len(order)
    while j:
        i = cut[j]
        if j - i > 1:
            length, rows = min(first[order[i]], *common[i + 1 : j]), order[i:j]
            found.append(Group(length, tuple(rows), int(lengths[rows].sum()) - length * len(rows)))
        j = i
    return found


def batches(found: Sequence[Group], budget: int) -> list[list[Group]]:
    """Return the groups in batches of ``budget`` tokens, the longest beginning first.

    Beginnings that are computed together are of nearly one length (``PADDING``).  A group may be larger alone; what
    follows the beginnings is then computed in several passes.
    """
    out: list[list[Group]] = []
    tokens = 0
    for group in sorted(found, key=lambda group: -group.length):
        longest = out[-1][0].length if out else group.length
        tokens += longest + group.own
        if not out or group.length < (1 - PADDING) * longest or tokens > budget:
            out.append([])
            tokens = group.length + group.own
        out[-1].append(group)
    return out


def padded_left(rows: Sequence[NDArray[np.integer]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids (n, longest) and their mask, 0 at the padding, both int64."""
    import torch

    width = max(row.size for row in rows)
    ids, mask = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i], ids[i, width - row.size :] = row[0], row  # not the pad token: some models warn when they see it
        mask[i, width - row.size :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    n = min(a.size, b.size)
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


class Prefixes:
    """Keys and values of some beginnings.

    Parameters
    ----------
    base : the model without its head.
    prefixes : token ids of each.
    last_mlp : hooks that leave out the last MLP, of which keys and values have no need.
    """

    def __init__(
        self, base: Any, prefixes: Sequence[NDArray[np.integer]], device: str, last_mlp: LastMLP | None = None
    ) -> None:
        import torch

        self._base, self._device, self._last_mlp = base, device, last_mlp
        self._lengths = torch.tensor([p.size for p in prefixes])
        # Padding stands on the left, so that what follows a beginning is as far from it as its positions say: layers
        # with a sliding window count places in the cache.
        ids, mask = padded_left(prefixes)
        self._width, self._even = ids.shape[1], bool(mask.all())
        ids = ids.to(device)
        nowhere = torch.empty(0, dtype=torch.int64, device=device)
        with contextlib.nullcontext() if last_mlp is None else last_mlp.only(nowhere):
            out = base(input_ids=ids, use_cache=True, **self._places(self._lengths, self._width, 0))
        self._cache = out.past_key_values

    def states(self, ids: torch.Tensor, of: NDArray[np.int64], at: torch.Tensor | None = None) -> torch.Tensor:
        """Return the last hidden states (n, width, d) of tokens (n, width), row i after beginning ``of[i]``.

        With ``at``, states are right at these flat positions only.
        """
        import torch

        which = torch.from_numpy(of)
        cache = copy.copy(self._cache)
        cache.layers = [_repeated(layer, which.to(self._device)) for layer in self._cache.layers]
        with contextlib.nullcontext() if at is None or self._last_mlp is None else self._last_mlp.only(at):
            places = self._places(self._lengths[which], self._width, ids.shape[1])
            return self._base(input_ids=ids, past_key_values=cache, use_cache=True, **places)[0]

    def _places(self, lengths: torch.Tensor, before: int, width: int) -> dict[str, torch.Tensor]:
        """Return mask and positions of ``width`` tokens that follow the beginnings, or of the beginnings if there are
        none; nothing where there is no padding, as attention is fastest then.
        """
        import torch

        if self._even:
            return {}
        padding = (before - lengths)[:, None]
        place = torch.arange(before + width)
        positions = (place - padding).clamp(min=0)[:, before if width else 0 :]
        return {
            "attention_mask": (place >= padding).to(torch.int64).to(self._device),
            "position_ids": positions.to(self._device),
        }


def _repeated(layer: Any, which: torch.Tensor) -> Any:
    """Return the cache of a layer that hands out keys and values of row ``which[i]`` to row i, and keeps none."""
    layer = copy.copy(layer)
    layer.update = partial(_update, layer, which)
    return layer


def _update(layer: Any, which: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    n = which.shape[0]
    layer.keys, layer.values = (
        x.expand(n, -1, -1, -1) if x.shape[0] == 1 else x.index_select(0, which) for x in (layer.keys, layer.values)
    )
    out = type(layer).update(layer, *args, **kwargs)
    layer.keys = layer.values = None  # no one reads them again: what follows a row's own tokens is not asked
    return out


def shares_prefixes(torch: Any, base: Any, vocab_size: int, device: str, last_mlp: LastMLP | None) -> bool:
    """Whether the states after a shared beginning are what they are in one go, on a few ids."""
    layers = getattr(base.config.get_text_config(), "layer_types", None) or []
    if not set(layers) <= {"full_attention", "sliding_attention"}:
        return False  # what else a layer may remember is not cut and repeated along the batch
    ids = torch.arange(1, 25) * 7919 % vocab_size
    tolerance = 1e-5 if base.dtype == torch.float32 else 2e-2
    own = torch.stack([ids[12:16], ids[18:22], ids[16:20]]).to(device)
    of = np.array([1, 0, 1])
    for ends in ((6, 6), (9, 6)):  # without padding and with
        try:
            prefixes = Prefixes(base, [ids[:end].numpy() for end in ends], device, last_mlp)
            found = prefixes.states(own, of)
            for part, its, end in zip(own, found, np.array(ends)[of], strict=True):
                row = torch.cat([ids[:end].to(device), part])
                whole = base(input_ids=row[None], use_cache=False)[0][0, end:].float()
                if not torch.allclose(its.float(), whole, rtol=tolerance, atol=tolerance * float(whole.abs().max())):
                    return False
        except Exception:  # whatever an unknown model does with a cache
            return False
    return True
