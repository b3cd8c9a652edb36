"""The most similar rows of each row, exactly, without a matrix of all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.blocks import Blocks
from curate.numerics.unit_rows import UnitRows

ROWS = 1024  # whose neighbours are sought together
COLUMNS = 4096  # rows that they are held against at a time: 16 MB of similarities a thread
_LOW = 2**31 - 1  # a key holds the similarity above 31 bits, and below them this less the row number


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For each of r rows the m rows of a pool of n that are most similar to it, itself among them."""

    index: NDArray[np.int32]
    """(r, m) row numbers, most similar first, of equally similar ones the lowest; 0 past the last."""
    similarity: NDArray[np.float32]
    """(r, m) cosines (of ``UnitRows``, less their s²: multiples of 2⁻²⁴); 0 past the last that is above 0."""
    n: int
    shrink: float
    """s: a similarity / s² is the cosine."""


def neighbours(
    x: NDArray[Any], m: int, *, rows: NDArray[np.int64] | None = None, threads: int | None = None
) -> Neighbours:
    """Find the ``m`` most similar rows of each row, by cosine, where that is above 0.

    Each block of rows is held against one block of columns after the other.  What is above the lowest similarity that a
    row has kept so far is merged with it; the first block of columns has no such floor and takes one from the maxima of
    groups of columns (m groups reach the m-th highest of them, so m columns do).  The arithmetic is exact
    (``UnitRows``): neither blocks nor threads nor ties leave anything to chance.

    Parameters
    ----------
    x : array (n, d), finite, n below 2³¹; may be a read-only memory map.
    m : neighbours of a row, at most n.
    rows : (r,) whose neighbours are sought; None: every row's.

    Notes
    -----
    Time r·n·d multiply-adds in float32; both halves of a symmetric matrix are computed, since a row's floor is what
    keeps the work beside the product small, and it is known only as that row's own columns go by.  Memory 8·r·m bytes,
    and some 40 MB a thread.
    """
    n = len(x)
    if m < 1:
        raise InputError(f"neighbours: at least 1 neighbour was asked, m={m} was found.")
    if n > _LOW:
        raise InputError(f"neighbours: at most {_LOW:,} rows were asked, {n:,} were found.")
    m = min(m, n)
    unit = UnitRows(x)
    r = n if rows is None else rows.size
    index = np.zeros((r, m), dtype=np.int32)
    similarity = np.zeros((r, m), dtype=np.float32)

    def one(start: int) -> None:
        part = slice(start, start + ROWS)
        keys = _nearest(unit, unit[part if rows is None else rows[part]], m)
        similarity[part] = (keys >> 31) / 2.0**24
        index[part] = np.where(keys > 0, _LOW - (keys & _LOW), 0)

    with Blocks(threads) as blocks:
        blocks.run(one, range(0, r, ROWS))
    return Neighbours(index, similarity, n, unit.shrink)


def _nearest(unit: UnitRows, block: NDArray[np.float32], m: int) -> NDArray[np.int64]:
    """Return the keys (b, m) of the nearest rows of each row of the block, highest first; 0 past the last."""
    n = unit.shape[0]
    b = len(block)
    kept = np.zeros((b, m), dtype=np.int64)
    for start in range(0, n, COLUMNS):
        tile = block @ unit[start : start + COLUMNS].T
        floor = (kept.min(axis=1) >> 31).astype(np.float32) / np.float32(2.0**24)
        if not floor.all():
            floor = np.maximum(floor, _floor(tile, m))
        hit = np.flatnonzero(tile > floor[:, None])
        row, column = np.divmod(hit, tile.shape[1])
        keys = (tile.ravel()[hit].astype(np.float64) * 2.0**24).astype(np.int64) << 31
        keys |= _LOW - (column + start)
        count = np.bincount(row, minlength=b)
        both = np.zeros((b, m + int(count.max(initial=0))), dtype=np.int64)
        both[:, :m] = kept
        both[row, m + np.arange(row.size) - np.repeat(np.cumsum(count) - count, count)] = keys
        both.partition(both.shape[1] - m, axis=1)
        kept = both[:, -m:].copy()
    return -np.sort(-kept, axis=1)


def _floor(tile: NDArray[np.float32], m: int) -> NDArray[np.float32]:
    """Return for each row a number, at least 0, that at least ``m`` of its columns are above if they are above 0."""
    groups = min(tile.shape[1], max(256, 4 * m))
    if groups < m:
        return np.zeros(len(tile), dtype=np.float32)
    whole = tile.shape[1] // groups * groups
    highest = tile[:, :whole].reshape(len(tile), -1, groups).max(axis=1)
    reached = np.partition(highest, groups - m, axis=1)[:, groups - m]
    return np.maximum(np.nextafter(reached, np.float32(-1)), 0)
