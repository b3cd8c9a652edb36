r"""The output head at the scored positions: from hidden states to what scorers ask.

With h_t the last hidden states, z_t = c (W h_t + bias) the logits, p_t = softmax(z_t), δ_t = p_t − onehot(y_t):

    log p_t(y_t)  = z_t[y_t] − log Σ_v exp z_t[v]
    H_t           = −log p_t(y_t) − δ_t · z_t                    entropy: Σ_v p (log Z − z), with p = δ + onehot(y)
    ⟨W, G⟩        = (1/S) Σ_t δ_t · (z_t − c bias)               G = ∂L/∂W = (c/S) Σ_t δ_t h_tᵀ
    ‖G‖²_F        = (c/S)² Σ_{s,t} (δ_s · δ_t)(h_s · h_t)        Gram: S² V products
                  = (c/S)² ‖Σ_t δ_t h_tᵀ‖²                       direct: S V d products, in blocks of V

The cheaper of the last two is taken, S against d.  Logits exist for a few hundred positions and a block of the
vocabulary at a time, small enough to stay in the cache.  Only a gradient holds those of whole rows, and δ takes their
place: e_t = exp(z_t − max z_t), its entry at y_t replaced by (Σ e)·expm1(log p), with the division by Σ e left to the
S×S result.  expm1 keeps the digits of a confident prediction, where 1 − p would lose them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.models.base import Forward, Quantity

if TYPE_CHECKING:
    import torch

_POSITIONS = 256
"""Positions that are taken at once; with fewer the matrix product loses its speed, with more the cache overflows."""


class Head:
    """A model's output head.

    Parameters
    ----------
    linear : the module that maps hidden states (…, d) to V numbers; ``weight`` (V, d), and a ``bias`` (V,) or None.
    config : the model's text configuration, which says what the architecture does to those numbers.
    block : logits that are worked on at once; as many as a core's cache holds, or as keep a GPU busy.
    hold : logits that may exist at once, where a gradient needs all of a row's.
    """

    def __init__(self, linear: Any, config: Any, *, block: int, hold: int) -> None:
        self.linear = linear
        self.finish, self.scale = logit_map(config)
        self.block, self.hold = block, hold
        self._root: torch.Tensor | None = None
        self._norm: float | None = None
        self._lock = threading.Lock()

    @property
    def norm(self) -> float:
        """‖W‖_F."""
        if self._norm is None:
            blocks = self.linear.weight.detach().split(4096)
            self._norm = float(sum(float(b.double().square().sum()) for b in blocks)) ** 0.5
        return self._norm

    def of_rows(
        self, hidden: torch.Tensor, targets: torch.Tensor, counts: Sequence[int], wants: Collection[Quantity]
    ) -> list[Forward]:
        """Return the quantities of rows whose scored positions follow each other.

        Parameters
        ----------
        hidden : (Σ counts, d), the states that predict the targets.
        targets : int64 (Σ counts,).
        counts : scored positions of each row.
        wants : the quantities that need logits; others are left alone.
        """
        import torch

        gradient = "head-gradient" in wants
        logprobs, entropy = [], []
        gradients: list[tuple[float, float]] = []
        for start, stop, rows in _pieces(counts, _POSITIONS, whole_rows=gradient):
            h, y = hidden[start:stop], targets[start:stop]
            if not gradient:
                found, its_entropy, _ = self._online(h, y, entropy="entropy" in wants)
            elif (stop - start) * self.linear.weight.shape[0] <= self.hold:
                found, its_entropy, pairs = self._held(h, y, rows)
                gradients += pairs
            else:  # one long row, or a few: of each the logits are computed twice
                found, its_entropy, pairs = self._twice(h, y, rows)
                gradients += pairs
            logprobs.append(found)
            entropy.append(its_entropy)
        out = [Forward() for _ in counts]
        for name, parts in (("logprobs", logprobs), ("entropy", entropy)):
            if name in wants:
                values = torch.cat(parts).float().cpu().numpy() if parts else np.empty(0, np.float32)
                for row, its in zip(out, np.split(values, np.cumsum(counts)[:-1]), strict=True):
                    setattr(row, name, its)
        if gradient:
            for row, pair in zip(out, gradients, strict=True):
                row.head_gradient = pair
        return out

    def nuclear_norm(self, hidden: torch.Tensor) -> float:
        """Return the sum of the singular values of the logits of the states (T, d), computed from T × d numbers.

        L = c [H 1][W bias]ᵀ, and with [W bias]ᵀ[W bias] = U Λ Uᵀ the singular values of L are c times those of
        [H 1] U √Λ.
        """
        import torch

        with self._lock:
            root = self._factor() if self._root is None else self._root
            self._root = root.to(hidden.device, _wide(hidden).dtype)
        states = _wide(hidden)
        if self.linear.bias is not None:
            states = torch.cat([states, states.new_ones(states.shape[0], 1)], dim=1)
        return float(torch.linalg.svdvals(states @ self._root).sum(dtype=torch.float64)) * abs(self.scale)

    def _factor(self) -> torch.Tensor:
        """Return U √Λ, float64 (d, d), or d + 1 with a bias."""
        import torch

        wide = self.linear.weight
        gram = torch.zeros((wide.shape[1] + (self.linear.bias is not None),) * 2, dtype=torch.float64)
        for i in range(0, wide.shape[0], 4096):
            block = wide[i : i + 4096].double().cpu()
            if self.linear.bias is not None:
                block = torch.cat([block, self.linear.bias[i : i + 4096, None].double().cpu()], dim=1)
            gram += block.T @ block
        values, vectors = torch.linalg.eigh(gram)
        return vectors * values.clamp(min=0).sqrt()

    def _blocks(self, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first word, logits (n, words)) of one block of the vocabulary after the other."""
        import torch

        weight, bias = self.linear.weight, self.linear.bias
        size = max(256, self.block // max(1, hidden.shape[0]))
        for i in range(0, weight.shape[0], size):
            z = torch.nn.functional.linear(hidden, weight[i : i + size], None if bias is None else bias[i : i + size])
            yield i, self.finish(_wide(z))

    def _online(
        self, hidden: torch.Tensor, targets: torch.Tensor, *, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log p(y), the entropies (if asked) and log Σ exp z, each (n,); no logit outlives its block.

        ``top`` is the largest logit so far, ``total`` = Σ exp(z − top) and ``dot`` = Σ exp(z − top)(z − top); a block
        with a larger one rebases them.
        """
        import torch

        n = hidden.shape[0]
        top = torch.full((n,), -torch.inf, device=hidden.device, dtype=_wide(hidden[:0]).dtype)
        total, dot, at_target = (torch.zeros_like(top) for _ in range(3))
        for i, z in self._blocks(hidden):
            at_target = torch.where(targets >= i, _taken(z, targets, i), at_target)
            peak = torch.maximum(top, z.amax(dim=-1))
            z -= peak[:, None]
            e = torch.exp(z) if entropy else z.exp_()
            fall = torch.where(total > 0, top - peak, 0)  # −∞ before the first block
            if entropy:
                dot = torch.exp(fall) * (dot + fall * total) + torch.einsum("nv,nv->n", e, z)
            total = torch.exp(fall) * total + e.sum(dim=-1)
            top = peak
        found = at_target - top - torch.log(total)
        return found, torch.log(total) - dot / total, top + torch.log(total)

    def _held(
        self, hidden: torch.Tensor, targets: torch.Tensor, rows: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[float, float]]]:
        """Return log p(y), entropies and each row's gradient, from logits that are computed once and held."""
        import torch

        n, vocabulary = hidden.shape[0], self.linear.weight.shape[0]
        held = hidden.new_empty((n, vocabulary), dtype=self.linear.weight.dtype)
        top = torch.full((n,), -torch.inf, device=hidden.device, dtype=_wide(hidden[:0]).dtype)
        total, dot, biased, at_target = (torch.zeros_like(top) for _ in range(4))
        for i, z in self._blocks(hidden):
            held[:, i : i + z.shape[1]] = z
            at_target = torch.where(targets >= i, _taken(z, targets, i), at_target)
            top = torch.maximum(top, z.amax(dim=-1))
        size = max(256, self.block // max(1, n))
        for i in range(0, vocabulary, size):
            x = _wide(held[:, i : i + size]) - top[:, None]
            e = torch.exp(x)
            total += e.sum(dim=-1)
            dot += torch.einsum("nv,nv->n", e, x)
            if self.linear.bias is not None:
                biased += e @ _wide(self.linear.bias[i : i + size])
            held[:, i : i + size] = e
        above = at_target - top
        found = above - torch.log(total)
        entropy = torch.log(total) - dot / total
        held.scatter_(1, targets[:, None], (total * torch.expm1(found))[:, None].to(held.dtype))
        slope = dot / total - above  # Σ p (z − top) − (z_y − top): both are small where the model is sure
        if self.linear.bias is not None:
            slope = slope - self.scale * (biased / total - _wide(self.linear.bias)[targets])
        pairs, at = [], 0
        for count in rows:
            part = slice(at, at + count)
            pairs.append(self._gradient(slope[part], held[part], total[part], hidden[part]))
            at += count
        return found, entropy, pairs

    def _gradient(
        self, slope: torch.Tensor, delta: torch.Tensor, total: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[float, float]:
        """Return (⟨W, G⟩, ‖G‖²) of one row; ``delta`` (S, V) is δ times ``total`` (S,)."""
        import torch

        n, width = hidden.shape
        if n <= width:
            gram = _wide(delta @ delta.T) / total / total[:, None]
            square = float((gram * _wide(hidden @ hidden.T)).sum(dtype=torch.float64))
        else:
            weighted = (_wide(hidden) / total[:, None]).to(hidden.dtype)
            square = 0.0
            for i in range(0, delta.shape[1], 4096):
                square += float(_wide(delta[:, i : i + 4096].T @ weighted).square().sum(dtype=torch.float64))
        return float(slope.mean(dtype=torch.float64)), max(0.0, square) * (self.scale / n) ** 2

    def _twice(
        self, hidden: torch.Tensor, targets: torch.Tensor, rows: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[float, float]]]:
        """The same of rows too long for their logits to be held: log Σ exp first, then δ block by block."""
        import torch

        founds, entropies, pairs, at = [], [], [], 0
        for count in rows:
            h, y = hidden[at : at + count], targets[at : at + count]
            at += count
            found, entropy, lse = self._online(h, y, entropy=True)
            n, width = h.shape
            slope = torch.zeros_like(found)
            gram = found.new_zeros((n, n)) if n <= width else None
            square = 0.0
            for i, z in self._blocks(h):
                words = z.shape[1]
                delta = torch.exp(z - lse[:, None])
                inside = (y >= i) & (y < i + words)
                column = (y - i).clamp(0, words - 1)[:, None]
                exact = torch.where(inside[:, None], torch.expm1(found)[:, None], delta.gather(1, column))
                delta.scatter_(1, column, exact)
                if self.linear.bias is not None:
                    z = z - self.scale * _wide(self.linear.bias[i : i + words])
                slope += torch.einsum("nv,nv->n", delta, z)
                low = delta.to(h.dtype)
                if gram is not None:
                    gram += _wide(low @ low.T)
                else:
                    square += float(_wide(low.T @ h).square().sum(dtype=torch.float64))
            if gram is not None:
                square = float((gram * _wide(h @ h.T)).sum(dtype=torch.float64))
            founds.append(found)
            entropies.append(entropy)
            pairs.append((float(slope.mean(dtype=torch.float64)), max(0.0, square) * (self.scale / n) ** 2))
        return torch.cat(founds), torch.cat(entropies), pairs


def logit_map(config: Any) -> tuple[Callable[[torch.Tensor], torch.Tensor], float]:
    """Return what the architecture does to the head's output, and by what factor where it is one (NaN where it is not).

    Cohere and Granite scale; Gemma 2 caps: cap · tanh(z / cap).
    """
    import torch

    cap, times, over = (
        getattr(config, key, None) for key in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    if cap:
        return lambda z: torch.tanh(z / cap) * cap, float("nan")
    if isinstance(times, float):
        return lambda z: z * times, times
    if isinstance(over, float):
        return lambda z: z / over, 1 / over
    return lambda z: z, 1.0


def _taken(z: torch.Tensor, targets: torch.Tensor, first: int) -> torch.Tensor:
    """Return the logit of each target that lies in the block (n, words) from word ``first`` on; anything of others."""
    return z.gather(1, (targets - first).clamp(0, z.shape[1] - 1)[:, None])[:, 0]


def _pieces(counts: Sequence[int], step: int, *, whole_rows: bool) -> list[tuple[int, int, list[int]]]:
    """Cut the positions into pieces of about ``step``: (start, stop, positions of each row in it)."""
    total = int(sum(counts))
    if not whole_rows:
        return [(i, min(i + step, total), []) for i in range(0, total, step)]
    out: list[tuple[int, int, list[int]]] = []
    start, held = 0, list[int]()
    for n in counts:
        if held and sum(held) + n > step:
            out.append((start, start + sum(held), held))
            start, held = start + sum(held), []
        held.append(int(n))
    return [*out, (start, start + sum(held), held)] if held else out


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return half types as float32, others as they are."""
    return x.float() if x.itemsize < 4 else x
