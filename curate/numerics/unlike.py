"""Rows that are not too like those before them: the greedy filter by cosine, exactly and in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.numerics.blocks import Blocks

_UNIT = 2.0**-24  # float32 rounds to within this share
_SLAB = 128  # rows of one product with all that were accepted
_TOGETHER = 2**19  # numbers of exact cosines that are held at a time: 4 MB a side


@dataclass(frozen=True, eq=False)
class Filtered:
    """What became of the rows that were walked."""

    accepted: NDArray[np.int64]
    """(m,) rows, in the order walked."""
    walked: int
    """How many rows were looked at."""
    cosine: NDArray[np.float64]
    """(n,) highest cosine to a row accepted before; NaN for the first, and for rows that were not looked at."""
    nearest: NDArray[np.int64]
    """(n,) the accepted row that has it, the earliest accepted of equal ones; -1 likewise."""


def unlike(
    x: NDArray[Any],
    order: NDArray[np.int64],
    threshold: float,
    limit: int,
    *,
    block: int = 1024,
    threads: int | None = None,
) -> Filtered:
    """Walk the rows in ``order`` and accept each whose cosine to every row accepted before is at most ``threshold``.

    Ends when ``limit`` rows are accepted, or with the order.  A block of rows meets those accepted before it in one
    product, then itself.  Products are in float32 and have a bound on their error; every cosine that, within it, may be
    the highest of its row is computed in float64.  So the result is that of the sequential definition for any size of
    the blocks and any number of threads.

    A row of zeros has no direction: its cosine is taken to be 1 with another such row, and 0 with all others.

    Parameters
    ----------
    x : array (n, d), finite; may be a read-only memory map, of which the rows of a block are gathered.
    order : (n,) row numbers, each at most once.

    Notes
    -----
    Time walked·m·d multiply-adds in float32 for m accepted rows; memory 4·m·d bytes for these, 4·1024·m for a block's
    products.
    """
    n, d = x.shape
    error = (d + 8) * _UNIT
    cosine = np.full(n, -np.inf)
    nearest = np.full(n, -1, dtype=np.int64)
    accepted: list[int] = []
    units = np.empty((min(max(limit, 1), 4096), d + 1), dtype=np.float32)  # of the accepted rows; grows
    walked = 0

    def settle(which: NDArray[np.int64], others: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Raise cosines of rows[which] to those with the rows ``others``; ``which`` ascends, earliest first."""
        values = _cosines(x, rows[which], others)
        starts = np.flatnonzero(np.r_[True, np.diff(which) != 0])
        best = np.maximum.reduceat(values, starts)
        first = np.full(starts.size, values.size)
        group = np.repeat(np.arange(starts.size), np.diff(np.r_[starts, which.size]))
        hits = np.flatnonzero(values == best[group])
        np.minimum.at(first, group[hits], hits)
        row = rows[which[starts]]
        higher = best > cosine[row]
        cosine[row[higher]], nearest[row[higher]] = best[higher], others[first[higher]]

    def against_accepted(start: int, own: Any, kept: Any, known: Any, rows: Any) -> None:
        products = own[start : start + _SLAB] @ kept.T
        which, other = np.nonzero(products >= products.max(axis=1, keepdims=True) - 2 * error)
        settle(which + start, known[other], rows)

    with Blocks(threads) as blocks:
        for at in range(0, order.size, block):
            if len(accepted) >= limit:
                break
            rows = order[at : at + block]
            own = _units(x[rows])
            if accepted:
                known = np.array(accepted)
                meet = partial(against_accepted, own=own, kept=units[: known.size], known=known, rows=rows)
                blocks.run(meet, range(0, rows.size, _SLAB))
            among = own @ own.T
            for i, row in enumerate(rows.tolist()):
                walked += 1
                if cosine[row] > threshold:
                    continue
                if len(accepted) == len(units):
                    units = np.concatenate([units, np.empty_like(units)])
                units[len(accepted)] = own[i]
                accepted.append(row)
                if len(accepted) >= limit:
                    break
                after = np.flatnonzero(among[i, i + 1 :] >= cosine[rows[i + 1 :]] - error) + i + 1
                if after.size:
                    settle(after, np.full(after.size, row), rows)
    not_walked = order[walked:]
    cosine[not_walked], nearest[not_walked] = np.nan, -1
    cosine[np.isneginf(cosine)] = np.nan
    return Filtered(np.array(accepted, dtype=np.int64), walked, cosine, nearest)


def _scaled(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rows in float64, each times the power of two that leaves its numbers below 1: no square overflows."""
    exact = rows.astype(np.float64)
    return np.ldexp(exact, -np.frexp(np.abs(exact).max(axis=1))[1][:, None])


def _units(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows of length 1, (b, d + 1); one of zeros points in the last direction, of which no other has a part."""
    scaled = _scaled(rows)
    norms = np.sqrt(np.einsum("bd,bd->b", scaled, scaled))
    out = np.empty((len(rows), rows.shape[1] + 1), dtype=np.float32)
    out[:, :-1] = scaled / np.where(norms > 0, norms, 1)[:, None]
    out[:, -1] = norms == 0
    return out


def _cosines(x: NDArray[Any], i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a·b / √(‖a‖² ‖b‖²) of each pair of rows, in float64: exactly 1 for copies."""
    out = np.empty(i.size)
    step = max(1, _TOGETHER // x.shape[1])
    for at in range(0, i.size, step):
        a, b = _scaled(x[i[at : at + step]]), _scaled(x[j[at : at + step]])
        aa, bb, ab = (np.einsum("pd,pd->p", u, v) for u, v in ((a, a), (b, b), (a, b)))
        no_direction = (aa == 0) | (bb == 0)
        cosine = np.clip(ab / np.sqrt(np.where(no_direction, 1, aa * bb)), -1, 1)
        out[at : at + step] = np.where(no_direction, aa == bb, cosine)
    return out
