r"""The output head at the scored positions: from hidden states to what scorers ask.

With h_t the last hidden states, z_t = c (W h_t + bias) the logits, p_t = softmax(z_t), δ_t = p_t − onehot(y_t):

    log p_t(y_t)  = z_t[y_t] − log Σ_v exp z_t[v]
    H_t           = −Σ_v p_t(v) log p_t(v)
    ⟨W, G⟩        = (1/S) Σ_t δ_t · (z_t − c bias)               G = ∂L/∂W = (c/S) Σ_t δ_t h_tᵀ
    ‖G‖²_F        = (c/S)² Σ_{s,t} (δ_s · δ_t)(h_s · h_t)        Gram: S² V products
                  = (c/S)² ‖Σ_t δ_t h_tᵀ‖²                       direct: S V d products, in blocks of V

The cheaper of the last two is taken, S against d.  Logits exist for a few hundred positions and a block of the
vocabulary at a time, small enough to stay in the cache.  Only a gradient holds those of whole rows.

Sums leave the target out.  With m = max z, e_v = exp(z_v − m), r = Σ_{v≠y} e_v and Σ = r + e_y:

    log p(y) = −log(1 + r/e_y) = z_y − m − log Σ,      δ = e/Σ, but −r/Σ at y

so that of a sure prediction, where r is tiny, every number keeps its digits; 1 − p would lose them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
                sums = self._online(h, y, beyond="entropy" in wants)
            else:  # a long row, or a few, whose logits cannot be held: each is computed twice
                fits = (stop - start) * self.linear.weight.shape[0] <= self.hold
                sums, pairs = self._held(h, y, rows) if fits else self._twice(h, y, rows)
                gradients += pairs
            logprobs.append(sums.logprobs())
            if "entropy" in wants:
                entropy.append(sums.entropy())
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

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, V) of a few states (n, d), at least float32."""
        return self.finish(_wide(self.linear(hidden)))

    def options(self, state: Any, ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return log p, in nats, of some tokens (m,) after one state (d,): float64 (m,), the softmax over all V."""
        import torch

        weight = self.linear.weight
        with torch.inference_mode():
            hidden = torch.from_numpy(state).to(device=weight.device, dtype=weight.dtype)
            z = self.logits(hidden[None])[0].cpu().double()
            return (z[torch.from_numpy(ids.astype(np.int64))] - torch.logsumexp(z, dim=-1)).numpy()

    def slopes(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        losses: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the gradient of −Σ_t w_t log p_t(y_t) in the states: (n, d), of their type.

        w_t Wᵀ (g′ ∘ δ_t), g′ the slope of what the architecture does to logits; in closed form, a few hundred positions
        at a time.

        Parameters
        ----------
        hidden : (n, d).
        targets : int64 (n,).
        weights : (n,).
        losses : (n,), is given −log p_t(y_t), nats.
        """
        import torch

        out = torch.empty_like(hidden)
        losses = weights.new_empty(len(hidden)) if losses is None else losses
        size = max(1, self.hold // self.linear.weight.shape[0])
        if hidden.device.type == "cpu":
            size = min(size, _POSITIONS)
        parts = zip(*(x.split(size) for x in (hidden, targets, weights, out, losses)), strict=True)
        for h, y, w, its, loss in parts:
            raw = _wide(self.linear(h))
            if np.isnan(self.scale):
                with torch.enable_grad():
                    raw.requires_grad_()
                    capped = self.finish(raw)
                delta = cross_entropy_slopes(capped.detach().clone(), y, w, loss)
                (delta,) = torch.autograd.grad(capped, raw, delta)
            else:
                delta = cross_entropy_slopes(self.finish(raw), y, w * self.scale, loss)
            torch.matmul(delta.to(h.dtype), self.linear.weight, out=its)
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

    def _online(self, hidden: torch.Tensor, targets: torch.Tensor, *, beyond: bool) -> _Sums:
        """Return the sums of each position; no logit outlives its block, and one with a larger logit rebases them."""
        import torch

        sums: _Sums | None = None
        for i, z in self._blocks(hidden):
            at_target, top = _taken(z, targets, i), z.amax(dim=-1)
            if sums is not None:
                at_target, top = torch.where(targets >= i, at_target, sums.at_target), torch.maximum(top, sums.top)
            sums = _Sums.nothing(top, at_target) if sums is None else sums.rebased(top, at_target)
            z -= top[:, None]
            e = _without(torch.exp(z) if beyond else z.exp_(), targets, i)
            sums.add(e, z if beyond else None, self._bias(i, z.shape[1]) if beyond else None)
        assert sums is not None
        return sums

    def _held(
        self, hidden: torch.Tensor, targets: torch.Tensor, rows: Sequence[int]
    ) -> tuple[_Sums, list[tuple[float, float]]]:
        """Return the sums and each row's gradient, from logits that are computed once and held."""
        import torch

        held = self.linear(hidden)
        blocks = held.split(max(256, self.block // max(1, hidden.shape[0])), dim=1)
        top = torch.stack([self.finish(_wide(block)).amax(dim=-1) for block in blocks]).amax(dim=0)
        sums = _Sums.nothing(top, self.finish(_wide(held.gather(1, targets[:, None])[:, 0])))
        for k, block in enumerate(blocks):
            i = k * blocks[0].shape[1]
            z = self.finish(_wide(block)) - top[:, None]
            e = _without(torch.exp(z), targets, i)
            block.copy_(e)
            sums.add(e, z, self._bias(i, e.shape[1]))
        held.scatter_(1, targets[:, None], -sums.rest[:, None].to(held.dtype))
        slope, total = self._slope(sums, targets), sums.total
        pairs, at = [], 0
        for count in rows:
            part = slice(at, at + count)
            pairs.append(self._gradient(slope[part], held[part], total[part], hidden[part]))
            at += count
        return sums, pairs

    def _bias(self, first: int, words: int) -> torch.Tensor | None:
        bias = self.linear.bias
        return None if bias is None else _wide(bias[first : first + words])

    def _slope(self, sums: _Sums, targets: torch.Tensor) -> torch.Tensor:
        """Return δ · (z − c bias) of each position (n,).  As Σ_v δ_v = 0, z − z_y serves as well as z."""
        slope = (sums.dot + sums.rest * (sums.top - sums.at_target)) / sums.total
        if self.linear.bias is None:
            return slope
        return slope - self.scale * (sums.biased - sums.rest * _wide(self.linear.bias)[targets]) / sums.total

    def _gradient(
        self, slope: torch.Tensor, delta: torch.Tensor, total: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[float, float]:
        """Return (⟨W, G⟩, ‖G‖²) of one row; ``delta`` (S, V) is δ times ``total`` (S,)."""
        n, width = hidden.shape
        if n <= width:
            gram = _wide(delta @ delta.T) / total / total[:, None]
            return self._pair(slope, _product(gram, hidden))
        weighted = (_wide(hidden) / total[:, None]).to(hidden.dtype)
        return self._pair(slope, sum(_square(part.T @ weighted) for part in delta.split(4096, dim=1)))

    def _twice(
        self, hidden: torch.Tensor, targets: torch.Tensor, rows: Sequence[int]
    ) -> tuple[_Sums, list[tuple[float, float]]]:
        """The same as ``_held`` of rows too long to hold their logits: the sums first, then δ in blocks."""
        sums = self._online(hidden, targets, beyond=True)
        slope = self._slope(sums, targets)
        pairs, at = [], 0
        for count in rows:
            part = slice(at, at + count)
            at += count
            h, y, top, total, rest = hidden[part], targets[part], sums.top[part], sums.total[part], sums.rest[part]
            n, width = h.shape
            gram = top.new_zeros((n, n)) if n <= width else None
            square = 0.0
            for i, z in self._blocks(h):
                z -= top[:, None]
                delta = _without(z.exp_(), y, i, instead=-rest)
                delta = (delta / total[:, None]).to(h.dtype)
                if gram is not None:
                    gram += _wide(delta @ delta.T)
                else:
                    square += _square(delta.T @ h)
            pairs.append(self._pair(slope[part], square if gram is None else _product(gram, h)))
        return sums, pairs

    def _pair(self, slope: torch.Tensor, square: float) -> tuple[float, float]:
        """Return (⟨W, G⟩, ‖G‖²) of a row from δ · z of each position and ‖Σ_t δ_t h_tᵀ‖²."""
        n = slope.shape[0]
        if not n:
            return float("nan"), float("nan")
        return _sum(slope) / n, max(square, 0.0) * (self.scale / n) ** 2  # max in this order: NaN stays NaN


@dataclass(slots=True)
class _Sums:
    """Sums over the words v other than the target y, e_v = exp(z_v − top); each (n,), a number a position."""

    top: torch.Tensor
    """The largest logit so far, the target's too."""
    at_target: torch.Tensor
    """z_y."""
    rest: torch.Tensor
    """Σ e_v."""
    dot: torch.Tensor
    """Σ e_v (z_v − top)."""
    biased: torch.Tensor
    """Σ e_v bias_v."""

    @classmethod
    def nothing(cls, top: torch.Tensor, at_target: torch.Tensor) -> _Sums:
        return cls(top, at_target, *(top.new_zeros(top.shape) for _ in range(3)))

    def rebased(self, top: torch.Tensor, at_target: torch.Tensor) -> _Sums:
        """Return the same sums with respect to another ``top``."""
        import torch

        lower = self.top - top
        fade = torch.exp(lower)
        return _Sums(top, at_target, fade * self.rest, fade * (self.dot + lower * self.rest), fade * self.biased)

    def add(self, e: torch.Tensor, z: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        """Add a block (n, words) of e_v, z_v − top and bias_v; e is 0 at the target, and z is overwritten."""
        self.rest += e.sum(dim=-1)
        if z is not None:
            self.dot += z.mul_(e).sum(dim=-1)  # in the cache: an eighth of the time of a product of vectors
        if bias is not None:
            self.biased += e @ bias

    @property
    def total(self) -> torch.Tensor:
        """Σ e_v over all words."""
        return self.rest + (self.at_target - self.top).exp()

    def logprobs(self) -> torch.Tensor:
        import torch

        above = self.at_target - self.top
        likely = above.exp()
        return torch.where(self.rest < likely, -torch.log1p(self.rest / likely), above - torch.log(self.rest + likely))

    def entropy(self) -> torch.Tensor:
        """Σ_v p_v (log Σ − (z_v − top)): the target's term, and the others'."""
        above, logprobs = self.at_target - self.top, self.logprobs()
        others = (self.rest * (above - logprobs) - self.dot) / self.total
        return others - logprobs.exp() * logprobs


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


def head_is_known(model: Any, known: Head) -> bool:
    """Whether ``finish(W h + bias)`` is what the model's own forward pass gives, on a few ids.

    Three questions, so that the answer does not hang on how large this model's logits happen to be: does the head read
    the last hidden state, does it multiply by its weight and nothing else, and what does the model do to what the head
    returns (here: numbers from −100 to 100)?
    """
    import torch

    head, embedding = known.linear, model.get_input_embeddings()
    if not isinstance(head, torch.nn.Linear) or model.base_model is model:
        return False
    device = embedding.weight.device
    ids = torch.arange(1, 17, device=device).reshape(2, 8) * 7919 % embedding.num_embeddings
    seen = []

    def ramp(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.linspace(-100, 100, like.numel(), device=device, dtype=dtype).reshape(like.shape)

    def watch(_: Any, inputs: Any, output: Any) -> Any:
        seen.append((inputs[0], output))
        return ramp(output, output.dtype)

    with torch.inference_mode():
        handle = head.register_forward_hook(watch)
        try:
            logits = model(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        hidden = model.base_model(input_ids=ids, use_cache=False)[0]
        if len(seen) != 1 or seen[0][0].shape != hidden.shape or seen[0][1].shape != logits.shape:
            return False
        probe = ramp(logits, seen[0][1].dtype)
        # Rounding: the soft cap is applied in the model's type there, in float32 here.
        tolerance = 1e-5 if model.dtype.itemsize >= 4 else 2e-2
        product = torch.nn.functional.linear(seen[0][0], head.weight, head.bias).float()
        # Weights that overflow give the same infinity and the same NaN either way.
        size = tolerance * float(product.nan_to_num(0, 0, 0).abs().max())
        return bool(
            torch.allclose(seen[0][0].float(), hidden.float(), rtol=tolerance, atol=tolerance)
            and torch.allclose(seen[0][1].float(), product, rtol=tolerance, atol=size, equal_nan=True)
            and torch.allclose(known.finish(probe.float()), logits.float(), rtol=tolerance, atol=tolerance)
        )


def cross_entropy_slopes(
    z: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, losses: torch.Tensor | None = None
) -> torch.Tensor:
    """Return w_t δ_t, the gradient of −Σ_t w_t log p_t(y_t) in the logits (n, V); they are overwritten.

    ``losses`` (n,) is given −log p_t(y_t).
    """
    import torch

    z -= z.amax(dim=-1, keepdim=True)
    above = z.gather(1, targets[:, None])[:, 0]
    likely = above.exp()
    rest = _without(z.exp_(), targets, 0).sum(dim=-1)
    if losses is not None:
        sure, unsure = torch.log1p(rest / likely), torch.log(rest + likely) - above
        losses.copy_(torch.where(rest < likely, sure, unsure))
    delta = _without(z, targets, 0, instead=-rest)
    return delta.mul_((weights.to(rest) / (rest + likely))[:, None])


def _taken(z: torch.Tensor, targets: torch.Tensor, first: int) -> torch.Tensor:
    """Return the logit of each target that lies in the block (n, words) from word ``first`` on; anything of others."""
    return z.gather(1, (targets - first).clamp(0, z.shape[1] - 1)[:, None])[:, 0]


def _without(
    e: torch.Tensor, targets: torch.Tensor, first: int, *, instead: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Write ``instead`` (n,) at each target that lies in the block (n, words) from word ``first`` on; return it."""
    import torch

    at = targets - first
    column = at.clamp(0, e.shape[1] - 1)
    kept = torch.where(at == column, instead, e.gather(1, column[:, None])[:, 0])
    return e.scatter_(1, column[:, None], kept[:, None])


def _product(gram: torch.Tensor, hidden: torch.Tensor) -> float:
    """Return Σ_{s,t} gram_st (h_s · h_t)."""
    return _sum(gram * _wide(hidden @ hidden.T))


def _square(x: torch.Tensor) -> float:
    return _sum(_wide(x).square())


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


def _sum(x: torch.Tensor) -> float:
    """Return Σ x, summed in float64 where the device has it (MPS has not)."""
    import torch

    return float(x.sum(dtype=None if x.device.type == "mps" else torch.float64))
