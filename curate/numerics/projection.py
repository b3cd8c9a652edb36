r"""Random projections of per-example gradients, a layer at a time, inner products kept on average.

A gradient g = (g_1 … g_L) has a block for each parameter.  Its projection is z = Σ_l P_l g_l ∈ R^d, with P_l drawn from
a stream named by (seed, law, parameter): whoever projects with the same names, pool or targets, uses the same P.
E⟨Pg, Ph⟩ = ⟨g, h⟩ for every law, and with F(g, h) = ‖g‖²‖h‖² + ⟨g, h⟩² − 2 Σ_i g_i² h_i² the variance of ⟨Pg, Ph⟩ is

    rademacher     F(g, h) / d                                                            D · d additions
        entries ±1/√d.  The reference; drawn in blocks, never stored whole.
    count-sketch   (F(g, h) − Σ_c F(g_c, h_c)) / d  ≤  that of rademacher                 D additions
        each coordinate has a random sign and one place in z.  Pieces c of d neighbours are moved together, by a random
        cyclic shift: two coordinates meet with probability 1/d, or never if they are of one piece, and memory is read
        in order.  F ≥ 0, being Σ_{i<j} (g_i h_j + g_j h_i)².
    two-sided      see ``variance``; some (1/a + 1/b) ⟨G, H⟩² where G and H have low rank    two small products
        Z = P G Qᵀ / √(a b), P (a, out) and Q (b, in) of ±1, a b = d.  G = Σ_t δ_t x_tᵀ need not be formed:
        Z = Σ_t (P δ_t)(Q x_t)ᵀ / √(a b).  Gradients of short texts have low rank: with d = 8192 its error is then near
        ten times that of the others.  It is for matrices too large to form.

Sources: Achlioptas 2003 (±1 entries); Charikar, Chen, Farach-Colton 2002 (count-sketch); the shifts are ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.seeding import rng_for

if TYPE_CHECKING:
    import torch

Law = Literal["rademacher", "count-sketch", "two-sided"]
LAWS: tuple[Law, ...] = get_args(Law)

_BLOCK = 2**22  # entries of a dense projection that exist at once


class Projection(ABC):
    """A projection to d numbers.  ``add`` is linear in the gradients, and rows do not see each other.

    Parameters
    ----------
    d : numbers that are kept.
    seed : of all streams.
    """

    law: Law

    def __init__(self, d: int, *, seed: int = 0) -> None:
        if d < 1:
            raise InputError(f"projection: d={d}; at least one number must be kept.")
        self.d, self.seed = d, seed
        self._sizes: dict[str, tuple[int, ...]] = {}

    def add(self, out: torch.Tensor, name: str, gradients: torch.Tensor) -> None:
        """Add P_name g of every row to ``out`` (n, d), in place; ``gradients`` (n, rows, columns) of its dtype.

        Raises
        ------
        InputError
            If the shape is not the one that ``name`` had before.
        """
        shape = tuple(gradients.shape[1:])
        if self._sizes.setdefault(name, shape) != shape:
            raise InputError(
                f"projection of {name}: shape {shape}, but {self._sizes[name]} before; one name, one shape."
            )
        self._add(out, name, gradients)

    @abstractmethod
    def _add(self, out: torch.Tensor, name: str, gradients: torch.Tensor) -> None: ...

    def signs(self, shape: tuple[int, ...], *names: str | int) -> NDArray[np.int8]:
        """Return ±1, int8, of the stream called ``names``."""
        count = int(np.prod(shape))
        raw = np.frombuffer(rng_for(self.seed, "projection", self.law, *names).bytes(-(-count // 8)), dtype=np.uint8)
        bits = np.unpackbits(raw, count=count).view(np.int8)
        return (2 * bits - 1).reshape(shape)


class Rademacher(Projection):
    law = "rademacher"

    def _add(self, out: torch.Tensor, name: str, gradients: torch.Tensor) -> None:
        import torch

        flat = gradients.flatten(1)
        width = max(1, _BLOCK // self.d)
        for k, piece in enumerate(flat.split(width, dim=1)):
            signs = torch.from_numpy(self.signs((piece.shape[1], self.d), name, k))
            out.addmm_(piece, signs.to(out.device, out.dtype), alpha=self.d**-0.5)


class CountSketch(Projection):
    law = "count-sketch"

    def __init__(self, d: int, *, seed: int = 0) -> None:
        super().__init__(d, seed=seed)
        self._streams: dict[str, tuple[torch.Tensor, list[int]]] = {}

    def _add(self, out: torch.Tensor, name: str, gradients: torch.Tensor) -> None:
        import torch

        flat, d = gradients.flatten(1), self.d
        if name not in self._streams:  # a byte a parameter is kept
            shifts = rng_for(self.seed, "projection", self.law, name, "shifts")
            self._streams[name] = (
                torch.from_numpy(self.signs((flat.shape[1],), name, "signs")).to(out.device),
                shifts.integers(d, size=-(-flat.shape[1] // d)).tolist(),
            )
        signs, shifts = self._streams[name]
        if d < 512:  # too many pieces for a loop
            at = torch.arange(flat.shape[1], device=out.device)
            at = (at + torch.tensor(shifts, device=out.device)[at // d]) % d
            out.index_add_(1, at, flat * signs)
            return
        for start, shift in zip(range(0, flat.shape[1], d), shifts, strict=True):
            piece, its = flat[:, start : start + d], signs[start : start + d].to(out.dtype)
            first = min(d - shift, piece.shape[1])
            out[:, shift : shift + first].addcmul_(piece[:, :first], its[:first])
            out[:, : piece.shape[1] - first].addcmul_(piece[:, first:], its[first:])


class TwoSided(Projection):
    law = "two-sided"

    def __init__(self, d: int, *, seed: int = 0) -> None:
        super().__init__(d, seed=seed)
        self.a, self.b = sides(d)
        self._streams: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _add(self, out: torch.Tensor, name: str, gradients: torch.Tensor) -> None:
        left, right = self._sides(name, gradients.shape[1], gradients.shape[2], out)
        out += (left @ gradients @ right.T).flatten(1)

    def add_factors(self, out: torch.Tensor, name: str, delta: torch.Tensor, x: torch.Tensor) -> None:
        """Add the projection of Σ_t δ_t x_tᵀ, never formed; delta (n, T, rows), x (n, T, columns)."""
        left, right = self._sides(name, delta.shape[2], x.shape[2], out)
        out += ((delta.to(out.dtype) @ left.T).mT @ (x.to(out.dtype) @ right.T)).flatten(1)

    def _sides(self, name: str, rows: int, columns: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        if name not in self._streams:
            left = torch.from_numpy(self.signs((self.a, rows), name, "left")).to(like)
            right = torch.from_numpy(self.signs((self.b, columns), name, "right")).to(like)
            self._streams[name] = (left * self.a**-0.5, right * self.b**-0.5)
        return self._streams[name]


def projection(law: str, d: int, *, seed: int = 0) -> Projection:
    """Return the projection of that law.

    Raises
    ------
    InputError
        If there is no such law, or d is below 1.
    """
    for kind in (Rademacher, CountSketch, TwoSided):
        if kind.law == law:
            return kind(d, seed=seed)
    raise InputError(f"projection: law {law!r}; there are {', '.join(LAWS)}.")


def sides(d: int) -> tuple[int, int]:
    """Return (a, b) with a b = d, a ≥ b, as near to each other as the divisors of d allow."""
    b = next(b for b in range(int(d**0.5), 0, -1) if d % b == 0)
    return d // b, b


def variance(law: Law, d: int, g: Sequence[NDArray[np.float64]], h: Sequence[NDArray[np.float64]]) -> float:
    r"""Return the variance of ⟨Pg, Ph⟩ over seeds, exactly; g and h as one matrix per parameter.

    For one layer of the two-sided law, with t = ⟨G, H⟩, M = GHᵀ, N = GᵀH, K = GGᵀ, L = HHᵀ,
    q(M) = Σ_{i≠j} (M_ij² + M_ij M_ji), and columns g_k, h_k:

        (V + (b − 1) q(M) + (a − 1) q(N)) / (a b),
        V = ‖G‖²‖H‖² + 2 Σ_{i≠j} K_ij L_ij + t² + 2 q(M) − 2 Σ_k (‖g_k‖²‖h_k‖² + 2⟨g_k, h_k⟩² − 2 Σ_i g_ik² h_ik²)

    V is the variance of one entry's product (pᵀGq)(pᵀHq); q(M) the covariance of two entries that share p, q(N) of two
    that share q.  Pairs of layers l ≠ m add (‖G_l‖²‖H_m‖² + t_l t_m) / d, for every law.
    """
    flat_g, flat_h = (np.concatenate([x.ravel() for x in side]) for side in (g, h))
    if law == "rademacher":
        return _f(flat_g, flat_h) / d
    if law == "count-sketch":
        pieces = [
            (x.ravel()[i : i + d], y.ravel()[i : i + d]) for x, y in zip(g, h, strict=True) for i in range(0, x.size, d)
        ]
        return float(_f(flat_g, flat_h) - sum(_f(x, y) for x, y in pieces)) / d
    norms = np.array([(np.vdot(x, x), np.vdot(y, y), np.vdot(x, y)) for x, y in zip(g, h, strict=True)])
    totals = norms.sum(0)
    across = totals[0] * totals[1] - norms[:, 0] @ norms[:, 1] + totals[2] ** 2 - norms[:, 2] @ norms[:, 2]
    return float(across / d + sum(_two_sided(d, x, y) for x, y in zip(g, h, strict=True)))


def _f(g: NDArray[np.float64], h: NDArray[np.float64]) -> float:
    return float(g @ g * (h @ h) + (g @ h) ** 2 - 2 * (g * g) @ (h * h))


def _two_sided(d: int, g: NDArray[np.float64], h: NDArray[np.float64]) -> float:
    def q(m: NDArray[np.float64]) -> float:
        return float((m * m).sum() + (m * m.T).sum() - 2 * (np.diag(m) ** 2).sum())

    a, b = sides(d)
    t, m, n, k, el = np.vdot(g, h), g @ h.T, g.T @ h, g @ g.T, h @ h.T
    columns = (g * g).sum(0) @ (h * h).sum(0) + 2 * ((g * h).sum(0) ** 2).sum() - 2 * (g * g * h * h).sum()
    off = (k * el).sum() - np.diag(k) @ np.diag(el)
    v = np.vdot(g, g) * np.vdot(h, h) + 2 * off + t**2 + 2 * q(m) - 2 * columns
    return float(v + (b - 1) * q(m) + (a - 1) * q(n)) / d
