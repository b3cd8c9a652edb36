r"""The output head at the scored positions: from hidden states to what scorers ask.

With h_t the last hidden states, z_t = c (W h_t + bias) the logits, p_t = softmax(z_t), δ_t = p_t − onehot(y_t):

    log p_t(y_t)  = z_t[y_t] − log Σ_v exp z_t[v]
    H_t           = −log p_t(y_t) − δ_t · z_t                    entropy: Σ_v p (log Z − z), with p = δ + onehot(y)
    ⟨W, G⟩        = (1/S) Σ_t δ_t · (z_t − c bias)               G = ∂L/∂W = (c/S) Σ_t δ_t h_tᵀ
    ‖G‖²_F        = (c/S)² Σ_{s,t} (δ_s · δ_t)(h_s · h_t)        Gram: S² V products
                  = (c/S)² ‖Σ_t δ_t h_tᵀ‖²                       direct: S V d products, a block of the vocabulary at a time

The cheaper of the last two is taken, S against d.  Logits exist for a few hundred positions at a time, and δ takes their
place: e_t = exp(z_t − max z_t) is computed once, its entry at y_t replaced by (Σ e)·expm1(log p), and the division by
Σ e is left to the S×S result.  expm1 keeps the digits of a confident prediction, where 1 − p would lose them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.models.base import Forward, Quantity

if TYPE_CHECKING:
    import torch

_BEYOND_LOGPROBS = frozenset({"entropy", "head-gradient"})


class Head:
    """A model's output head.

    Parameters
    ----------
    linear : the module that maps hidden states (…, d) to V numbers; ``weight`` (V, d), and a ``bias`` (V,) or None.
    config : the model's text configuration, which says what the architecture does to those numbers.
    logits : how many logits may exist at once; a row of more positions than that is taken in blocks of the vocabulary.
    """

    def __init__(self, linear: Any, config: Any, *, logits: int) -> None:
        self.linear = linear
        self.finish, self.scale = logit_map(config)
        self.logits = logits
        """How many logits may exist at once."""
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

        vocabulary = self.linear.weight.shape[0]
        step = max(256, self.logits // vocabulary)  # below 256 rows the matrix product loses its speed
        gradient = "head-gradient" in wants
        logprobs, entropy = [], []
        gradients: list[tuple[float, float]] = []
        for start, stop, rows in _pieces(counts, step, whole_rows=gradient):
            h, y = hidden[start:stop], targets[start:stop]
            if gradient and (stop - start) * vocabulary > 4 * self.logits and len(rows) == 1:
                found, its_entropy, pair = self._in_blocks(h, y)
                gradients.append(pair)
            else:
                z = self._logits_of(h)
                if not _BEYOND_LOGPROBS & set(wants):
                    logprobs.append(z.gather(-1, y[:, None])[:, 0] - torch.logsumexp(z, dim=-1))
                    continue
                found, delta, total = _delta(z, y)
                dot = torch.einsum("nv,nv->n", delta, z) / total
                its_entropy = -found - dot
                if gradient:
                    slope = dot
                    if self.linear.bias is not None:
                        slope = dot - (delta @ (self.scale * self.linear.bias).to(delta.dtype)) / total
                    at = 0
                    for n in rows:
                        part = slice(at, at + n)
                        gradients.append(self._gradient(slope[part], delta[part], total[part], h[part]))
                        at += n
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

    def _logits_of(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.finish(_wide(self.linear(hidden)))

    def _gradient(
        self, slope: torch.Tensor, delta: torch.Tensor, total: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[float, float]:
        """Return (⟨W, G⟩, ‖G‖²) of one row; ``delta`` (S, V) is δ times ``total`` (S,)."""
        n, width = hidden.shape
        factor = (self.scale / n) ** 2
        kind = self.linear.weight.dtype  # half types multiply several times as fast, and h is no more exact than that
        if n <= width:
            low = delta.to(kind)
            gram = _wide(low @ low.T) / total / total[:, None]
            square = factor * float((gram * _wide(hidden @ hidden.T)).sum(dtype=_float64()))
        else:
            weighted = (hidden / total[:, None].to(kind)).to(kind)
            square = 0.0
            for i in range(0, delta.shape[1], 4096):
                square += float(_wide(delta[:, i : i + 4096].to(kind).T @ weighted).square().sum(dtype=_float64()))
            square *= factor
        return float(slope.mean(dtype=_float64())), max(0.0, square)

    def _in_blocks(
        self, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
        """Return log-probabilities, entropies and gradient of a row too long for its logits to exist at once.

        The logits are computed twice: for their log Σ exp, a few positions at a time, and then as δ in blocks of the
        vocabulary.
        """
        import torch

        n, width = hidden.shape
        weight, bias = self.linear.weight, self.linear.bias
        step = max(256, self.logits // weight.shape[0])
        lse = torch.cat([torch.logsumexp(self._logits_of(hidden[i : i + step]), dim=-1) for i in range(0, n, step)])
        dot, slope = torch.zeros_like(lse), torch.zeros_like(lse)
        found = torch.zeros_like(lse)
        gram = lse.new_zeros((n, n)) if n <= width else None
        square = 0.0
        block = max(256, self.logits // n)
        for i in range(0, weight.shape[0], block):
            its_bias = None if bias is None else bias[i : i + block]
            z = self.finish(_wide(torch.nn.functional.linear(hidden, weight[i : i + block], its_bias)))
            delta = torch.exp(z - lse[:, None])
            here = torch.nonzero((targets >= i) & (targets < i + z.shape[1]))[:, 0]
            column = targets[here] - i
            found[here] = z[here, column] - lse[here]
            delta[here, column] = torch.expm1(found[here])
            dot += torch.einsum("nv,nv->n", delta, z)
            slope += torch.einsum("nv,nv->n", delta, z if its_bias is None else z - self.scale * its_bias)
            low = delta.to(weight.dtype)
            if gram is not None:
                gram += _wide(low @ low.T)
            else:
                square += float(_wide(low.T @ hidden).square().sum(dtype=torch.float64))
        if gram is not None:
            square = float((gram * _wide(hidden @ hidden.T)).sum(dtype=torch.float64))
        pair = float(slope.mean(dtype=torch.float64)), max(0.0, square) * (self.scale / n) ** 2
        return found, -found - dot, pair


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


def _delta(z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log p(y) (n,), δ · total (n, V), and total = Σ exp(z − max z) (n,)."""
    import torch

    top = z.amax(dim=-1, keepdim=True)
    delta = torch.exp_(z - top)
    total = delta.sum(dim=-1)
    found = z.gather(-1, y[:, None])[:, 0] - top[:, 0] - torch.log(total)
    delta.scatter_(1, y[:, None], (total * torch.expm1(found))[:, None])
    return found, delta, total


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


def _float64() -> Any:
    import torch

    return torch.float64
