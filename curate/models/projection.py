r"""Random projections of gradients to d numbers, a named piece at a time, inner products kept on average.

A gradient is a vector of P numbers that arrives in pieces, one for each weight.  Its projection is the sum of those of
its pieces.  Both laws are unbiased, E⟨Px, Py⟩ = ⟨x, y⟩, and with

    F(x, y) = ‖x‖²‖y‖² + ⟨x, y⟩² − 2 Σ_i x_i² y_i² = Σ_{i<j} (x_i y_j + x_j y_i)²

    rademacher     Var⟨Px, Py⟩ = F(x, y) / d                          P·d additions
        Px = x R / √d, R (P, d) of independent ±1: the reference, drawn in blocks, never whole.
    count-sketch   Var⟨Px, Py⟩ = (F(x, y) − Σ_b F(x_b, y_b)) / d      P multiplications and additions
        A piece is cut into blocks b of d neighbours.  Each coordinate has a random sign, each block moves by a random
        cyclic shift: Px = Σ_b roll(sign_b · x_b, shift_b).  Memory is read and written in order.

The variance of the second is exact.  Signs are independent: of the terms s_i s_j s_k s_l x_i y_j x_k y_l, i ≠ j, k ≠ l,
only those with {i, j} = {k, l} have a mean, together (x_i y_j + x_j y_i)² P(i and j meet) a pair.  Coordinates of one
block never meet; of two blocks, whose shifts are independent, with probability 1/d.

Coordinates of two blocks meet in lockstep.  That changes no second moment, but could make tails heavier where the
weight of a gradient recurs at equal distances, as with a few large inputs of a layer.  Measured, for gradients δ xᵀ of
which two inputs in 64 have all the weight: with 12 blocks the error's kurtosis is 4.0 (a hash of each coordinate has
3.3, a normal law 3), with 64 blocks or more it cannot be told from the hash's.  An adapter has hundreds to thousands.

For rows of length 1 with ⟨x, y⟩ = c the error of either has a standard deviation of at most √((1 + c²) / d): at most
0.0156 at d = 8192.

References
----------
Achlioptas 2003, "Database-friendly random projections" (independent ±1); Charikar, Chen & Farach-Colton 2002, "Finding
frequent items in data streams" (count-sketch).  The shifts, in place of a hash of each coordinate, are ours.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from curate.exceptions import InputError
from curate.seeding import rng_for

if TYPE_CHECKING:
    from torch import Tensor

Law = Literal["count-sketch", "rademacher"]

_DRAWN = 2**24
"""Entries of a dense projection that are drawn at once, 64 MB as float32.  Another number would be another stream."""
_GATHERED = 2**24
"""Numbers of a gathered piece that exist at once."""
_SIGNS = 32
"""Blocks whose signs are made floating-point numbers at once."""
_KEPT = 2**30
"""Signs that are kept, a byte each.  Those of further names are drawn again whenever they are asked for."""
_SHORT = 256
"""Blocks below this are moved all at once, by a gather, since a loop over them would cost more than its additions."""


class Projection:
    """A projection to d numbers.  Threads may share one.

    The signs and places of a piece depend on the seed, the law, d, its name and its size, and on nothing else: whoever
    projects with the same ones, pool or targets, on whatever device and in whatever batches, uses the same P.  A
    count-sketch keeps its signs, a byte for each of P, up to 1 GiB.

    Raises
    ------
    InputError
        If d is below 1, or there is no such law.
    """

    def __init__(self, d: int = 8192, *, law: Law = "count-sketch", seed: int = 0) -> None:
        if d < 1:
            raise InputError(f"projection: d={d} numbers were asked; at least 1 must be kept.")
        if law not in get_args(Law):
            raise InputError(f"projection: law {law!r} was asked; there are {', '.join(get_args(Law))}.")
        self.d, self.law, self.seed = d, law, seed
        self._kept: dict[tuple[str, int, Any], tuple[Tensor, Tensor]] = {}
        self._room = _KEPT
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """Return what must be alike on both sides of an inner product."""
        return {"d": self.d, "law": self.law, "seed": self.seed}

    def add(self, out: Tensor, name: str, piece: Tensor) -> None:
        """Add the projection of ``piece`` to ``out``, in place.

        Parameters
        ----------
        out : (n, d), float32 or float64; sums are of its type.
        name : the weight that ``piece`` is the gradient of.
        piece : (n, ...), any floating type; each row is flattened.

        Raises
        ------
        InputError
            If the shapes do not fit.
        """
        n = piece.shape[0] if piece.dim() else 0
        if out.shape != (n, self.d) or piece.dim() < 2:
            raise InputError(
                f"projection of {name}: a piece (n, ...) into (n, {self.d}) was asked; found "
                f"{tuple(piece.shape)} into {tuple(out.shape)}."
            )
        if not out.is_floating_point() or out.element_size() < 4:
            raise InputError(f"projection of {name}: sums in float32 or float64 were asked; found {out.dtype}.")
        flat = piece.flatten(1)
        if not flat.numel():
            return
        if self.law == "rademacher":
            self._add_dense(out, name, flat)
        elif self.d < _SHORT or out.device.type != "cpu":
            self._add_gathered(out, name, flat)
        else:
            self._add_shifted(out, name, flat)

    def _add_dense(self, out: Tensor, name: str, flat: Tensor) -> None:
        size = flat.shape[1]
        for block, part in enumerate(flat.split(max(1, _DRAWN // self.d), dim=1)):
            rng = rng_for(self.seed, self.law, self.d, name, size, block)
            signs = _signs(rng, part.shape[1] * self.d, out.device).view(part.shape[1], self.d)
            out.addmm_(part.to(out.dtype), signs.to(out.dtype), alpha=self.d**-0.5)

    def _add_shifted(self, out: Tensor, name: str, flat: Tensor) -> None:
        """Block after block, into sums of twice the width that are folded at the end: what passes d starts again."""
        d = self.d
        signs, shifts = self._sketch(name, flat.shape[1], out.device)
        sums = out.new_zeros(out.shape[0], 2 * d)
        blocks = zip(flat.split(d, dim=1), shifts.tolist(), strict=True)
        for some in signs.split(_SIGNS * d):
            for sign in some.to(out.dtype).split(d):
                part, shift = next(blocks)
                sums.narrow(1, shift, part.shape[1]).addcmul_(part.to(out.dtype), sign)
        out.add_(sums[:, :d]).add_(sums[:, d:])

    def _add_gathered(self, out: Tensor, name: str, flat: Tensor) -> None:
        """Many blocks at once: a few calls, whatever their number."""
        import torch

        signs, shifts = self._sketch(name, flat.shape[1], out.device)
        d, n = self.d, flat.shape[0]
        places = torch.arange(d, device=out.device)
        step = max(1, _GATHERED // (n * d))  # blocks
        for first in range(0, shifts.numel(), step):
            part = flat[:, first * d : (first + step) * d]
            signed = part.to(out.dtype) * signs[first * d : (first + step) * d]
            its = shifts[first : first + step]
            signed = torch.nn.functional.pad(signed, (0, its.numel() * d - signed.shape[1]))
            source = (places - its[:, None]) % d
            out += signed.view(n, -1, d).gather(2, source.expand(n, -1, -1)).sum(1)

    def _sketch(self, name: str, size: int, device: Any) -> tuple[Tensor, Tensor]:
        """Return the signs of a piece, int8 (size,), and the shifts of its blocks, int64."""
        import torch

        key = (name, size, device)
        if key in self._kept:
            return self._kept[key]
        rng = rng_for(self.seed, self.law, self.d, name, size)
        shifts = torch.from_numpy(rng.integers(self.d, size=-(-size // self.d))).to(device)
        drawn = _signs(rng, size, device), shifts
        with self._lock:
            if key not in self._kept and size <= self._room:
                self._kept[key] = drawn
                self._room -= size
        return drawn


def _signs(rng: np.random.Generator, count: int, device: Any) -> Tensor:
    """Return independent ±1, int8 (count,).  A bit each is drawn on the CPU, and becomes a number on the device."""
    import torch

    bits = np.frombuffer(rng.bytes(-(-count // 8)), dtype=np.uint8)
    if torch.device(device).type == "cpu":
        signs = torch.from_numpy(np.unpackbits(bits, bitorder="little", count=count).view(np.int8))
    else:
        signs = _unpack(torch.from_numpy(bits.copy()).to(device), count)
    return signs.mul_(2).sub_(1)


def _unpack(bits: Tensor, count: int) -> Tensor:
    """Return the first ``count`` bits of uint8, the lowest of each first, as int8: ``unpackbits`` on any device."""
    import torch

    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> places) & 1).view(torch.int8).flatten()[:count]
