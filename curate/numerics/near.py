"""Copies among rows of numbers: which of them stay, and which row stands for each of the others.

The similarity of two rows is the share of places in which they agree: for MinHash signatures the estimate of the
Jaccard similarity of their sets.  Rows are walked from best to worst; each that is similar enough to a row that stays
is dropped, and the first such row stands for it; each other stays.  So of two similar rows one is dropped, the worse
one; a dropped row is itself similar to the one that stands for it; and no chain of similar pairs draws unlike rows
together, as connected components do.

How it is found without comparing all pairs:

1.  *Bands.*  Rows that agree throughout a band of places share a bucket.  In each bucket the best row leads, those
    similar to it follow, and the best of the rest leads next.  Leaders and followers are edges.
2.  *Components.*  Edges join rows; what stays of a component does not depend on other ones.
3.  *The walk*, within each component, over all its pairs: whoever was found by chance of a shared band, the result is
    that of the definition.
4.  Rows that stay and share a bucket, but followed others in it, were never compared: the bands are gone through again
    with the rows that stay, until no pair of them is similar.

So no two rows that stay share a band and are similar, and every pair that is told as similar was compared in all
places.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**16  # rows whose keys are computed at a time
_PAIRS = 2**13  # pairs compared at a time: 8 MB of signatures of 128 numbers
_TURNS = 8  # leaders of a bucket that are compared with all its rows, before ...
_LONG = 64  # ... buckets that have more rows than this left are compared by matrix products, ...
_LEADERS = 256  # ... so many leaders at a time
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Copies:
    """What became of n rows."""

    instead: NDArray[np.int64]
    """(n,) the row that stands for each dropped one; -1 for rows that stay."""
    agreeing: NDArray[np.int32]
    """(n,) in how many places a dropped row agrees with it; 0 for rows that stay."""
    compared: int
    """Pairs of rows that were compared."""


class _Walk:
    """The rows, the order in which they are walked, and how many places must agree."""

    def __init__(self, x: NDArray[Any], order: NDArray[np.int64] | None, need: int) -> None:
        self.x = np.asarray(x)  # a memory map as a plain array: taking rows of it is faster
        self.order = order
        self.need = need
        self.compared = 0

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows that stand in some places of the order."""
        return places if self.order is None else self.order[places]

    def agreeing(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return in how many columns rows agree, pair by pair; given by their places in the order."""
        out = np.empty(a.size, dtype=np.int32)
        for lo in range(0, a.size, _PAIRS):
            same = self.x[self.rows(a[lo : lo + _PAIRS])] == self.x[self.rows(b[lo : lo + _PAIRS])]
            out[lo : lo + _PAIRS] = np.count_nonzero(same, axis=1)
        self.compared += a.size
        return out

    def keys(self, band: slice) -> NDArray[np.uint64]:
        """Return a hash of a band of every row, (n,), by place in the order; equal for rows that agree throughout."""
        out = np.zeros(len(self.x), dtype=np.uint64)
        for lo in range(0, out.size, _BLOCK):
            part = np.ascontiguousarray(self.x[lo : lo + _BLOCK, band])
            if part.dtype.kind == "f":
                part = (part + part.dtype.type(0)).astype(np.float64).view(np.uint64)  # + 0: -0.0 equals 0.0
            for column in part.T:
                out[lo : lo + _BLOCK] = (out[lo : lo + _BLOCK] + column.astype(np.uint64)) * _FACTOR
        return out if self.order is None else out[self.order]

    def codes(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return one corner of a tetrahedron for every number of some rows, (m, 3 H); the same for equal numbers.

        Two bits b, c of a hash give the corner (b, c, b·c) of ±1.  Corners have the product 3 if equal and else -1, so
        rows that agree in at least ``need`` places have one of at least 3·need - (H - need), and others rarely so much.
        """
        part = self.x[self.rows(places)]
        if part.dtype.kind == "f":
            part = (part + part.dtype.type(0)).astype(np.float64).view(np.uint64)
        hashes = part.astype(np.uint64) * _FACTOR
        b, c = (1 - 2 * ((hashes >> np.uint64(bit)) & np.uint64(1)).astype(np.float32) for bit in (63, 62))
        return np.concatenate([b, c, b * c], axis=1)


_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]
"""Leaders, followers, and in how many places they agree."""


def copies(x: NDArray[Any], need: int, bands: Sequence[slice], *, order: NDArray[np.int64] | None = None) -> Copies:
    """Find the rows of ``x`` that agree in at least ``need`` places with a better row that stays; see the module.

    Parameters
    ----------
    x : array (n, H) of numbers; may be a read-only memory map, of which blocks and pairs of rows are looked at.
    need : places of H that must agree.
    bands : the columns of each band.
    order : (n,) the rows from best to worst; in row order when None.

    Notes
    -----
    Time: a sort of n keys a band, and the comparisons; b rows of one bucket that are all unlike take b²/2 of these, the
    most of them as matrix products, of 3 H multiply-adds a pair, that show that it cannot be similar.
    Memory: 70 bytes a row, and some 30 MB.
    """
    n = len(x)
    walk = _Walk(x, order, need)
    places = np.arange(n)
    best = places  # the best row of each row's component: its name
    stays = np.ones(n, dtype=bool)
    followed = np.zeros(n, dtype=bool)
    leaders, followers, agreeing = _no_pairs()
    first = True
    while first or followed.any():
        joined = False
        for band in bands:
            members, buckets = _buckets(walk.keys(band), *(() if first else (stays, followed)))
            # At first, rows that are known to belong together need no comparison; later, who stays is compared.
            a, b, _ = _lead(walk, members, buckets, best if first else None)
            if a.size:
                before, best = best, _join(best, a, b)
                joined |= not np.array_equal(best, before)
        if not joined:
            break
        members = np.flatnonzero(np.bincount(best, minlength=n)[best] > 1)
        members = members[np.argsort(best[members], kind="stable")]
        leaders, followers, agreeing = _lead(walk, members, best[members])
        stays[:] = True
        stays[followers] = False
        followed = stays & (best != places)  # in the bands, the best row of a component was compared with all others
        first = False
    instead = np.full(n, -1, dtype=np.int64)
    instead[walk.rows(followers)] = walk.rows(leaders)
    agree = np.zeros(n, dtype=np.int32)
    agree[walk.rows(followers)] = agreeing
    return Copies(instead, agree, walk.compared)


def _buckets(
    keys: NDArray[np.uint64], stays: NDArray[np.bool_] | None = None, followed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that share a key, bucket by bucket, best first, and the bucket of each.

    Of the rows that stay only, and only the buckets with one that followed another, where these are given.
    """
    some = None if stays is None else np.flatnonzero(stays)
    if some is not None:
        keys = keys[some]
    together = np.argsort(keys, kind="stable")
    keys = keys[together]
    new = _begins(keys)
    shared = ~new
    shared[:-1] |= ~new[1:]
    members, buckets = together[shared], np.cumsum(new[shared], dtype=np.int64)
    if some is not None and followed is not None:
        members = some[members]
        asked = np.zeros(int(buckets.max(initial=0)) + 1, dtype=bool)
        asked[buckets[followed[members]]] = True
        members, buckets = members[asked[buckets]], buckets[asked[buckets]]
    return members, buckets


def _begins(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a run of equal values begins."""
    new = np.ones(values.size, dtype=bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return new


def _join(best: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the best row of each row's component, once the rows a are joined with the rows b."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, which = np.unique(np.concatenate([best[a], best[b]]), return_inverse=True)
    edges = (np.ones(a.size, dtype=bool), (which[: a.size], which[a.size :]))
    count, component = connected_components(coo_array(edges, shape=(names.size, names.size)), directed=False)
    lowest = np.full(count, best.size)
    np.minimum.at(lowest, component, names)
    becomes = np.arange(best.size)
    becomes[names] = lowest[component]
    return becomes[best]


def _lead(
    walk: _Walk, members: NDArray[np.int64], groups: NDArray[np.int64], known: NDArray[np.int64] | None = None
) -> _Pairs:
    """Walk each group: its first row leads, rows similar to it follow, the first of the rest leads next.

    ``groups`` ascends, ``members`` in each.  Rows of one name in ``known`` follow without a comparison, nor a pair.
    """
    pairs: list[_Pairs] = []
    for turn in itertools.count():
        new = _begins(groups)
        begins = np.flatnonzero(new)
        counts = np.diff(np.append(begins, groups.size))
        if turn == _TURNS and (counts > _LONG).any():
            for i in np.flatnonzero(counts > _LONG).tolist():
                pairs += _lead_by_products(walk, members[begins[i] : begins[i] + counts[i]], known)
            short = np.repeat(counts <= _LONG, counts)
            members, groups = members[short], groups[short]
            continue
        if begins.size == groups.size:  # every row has led
            break
        a, b, groups = np.repeat(members[begins], counts)[~new], members[~new], groups[~new]
        follows = np.zeros(b.size, dtype=bool) if known is None else known[a] == known[b]
        asked = np.flatnonzero(~follows)
        agreeing = walk.agreeing(a[asked], b[asked])
        near = agreeing >= walk.need
        pairs.append((a[asked][near], b[asked][near], agreeing[near]))
        follows[asked[near]] = True
        members, groups = b[~follows], groups[~follows]
    return _together(pairs)


def _lead_by_products(walk: _Walk, members: NDArray[np.int64], known: NDArray[np.int64] | None) -> list[_Pairs]:
    """Walk one group, some leaders at a time."""
    pairs: list[_Pairs] = []
    while members.size > 1:
        heads, members = members[:_LEADERS], members[_LEADERS:]
        codes = walk.codes(heads)
        near, agreeing = _near(walk, heads, heads, codes, codes, known)
        led = np.zeros(heads.size, dtype=bool)
        for i in range(heads.size):
            if not led[i]:
                after = np.flatnonzero(near[i] & ~led)
                after = after[after > i]
                led[after] = True
                pairs.append(_told(heads[i], heads[after], agreeing[i, after]))
        heads, codes = heads[~led], codes[~led]
        left = []
        for lo in range(0, members.size, _PAIRS):
            others = members[lo : lo + _PAIRS]
            near, agreeing = _near(walk, heads, others, codes, walk.codes(others), known)
            which = near.argmax(axis=0)  # the first that they follow
            led = np.logical_or.reduce(near, axis=0)
            pairs.append(_told(heads[which[led]], others[led], agreeing[which[led], led.nonzero()[0]]))
            left.append(others[~led])
        members = np.concatenate(left) if left else members
    return pairs


def _near(
    walk: _Walk,
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    codes_a: NDArray[np.float32],
    codes_b: NDArray[np.float32],
    known: NDArray[np.int64] | None,
) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Return which rows a and b belong together, and in how many places they agree; -1 where that is not asked."""
    near = codes_a @ codes_b.T >= 4 * walk.need - walk.x.shape[1]
    if known is not None:
        near &= known[a][:, None] != known[b]
    if a is b:
        near = np.triu(near, 1)  # each pair once
    i, j = np.nonzero(near)
    agreeing = np.full(near.shape, -1, dtype=np.int32)
    agreeing[i, j] = walk.agreeing(a[i], b[j])
    near = agreeing >= walk.need
    if known is not None:
        near |= known[a][:, None] == known[b]
    return near, agreeing


def _told(leaders: NDArray[np.int64] | np.int64, followers: NDArray[np.int64], agreeing: NDArray[np.int32]) -> _Pairs:
    """Return the pairs that were compared."""
    told = agreeing >= 0
    return np.broadcast_to(leaders, followers.shape)[told], followers[told], agreeing[told]


def _together(pairs: list[_Pairs]) -> _Pairs:
    if not pairs:
        return _no_pairs()
    a, b, agreeing = zip(*pairs, strict=True)
    return np.concatenate(a), np.concatenate(b), np.concatenate(agreeing)


def _no_pairs() -> _Pairs:
    return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
