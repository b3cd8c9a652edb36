"""The nearest of many centres, exactly: products in float32 propose, differences in float64 decide.

A product of matrices gives ‖x − c‖² = ‖x‖² + ‖c‖² − 2 x·c fast, but to about seven digits, and other ones on another
machine or beside other rows.  Its error has a bound, though.  So it only says which centres *can* be the nearest, most
often one, and the distances to these are computed from differences, in float64.  What comes out is the plain
definition's, bit by bit, whatever the blocks, the threads or the BLAS.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError

_UNIT = 2.0**-24  # float32 rounds to within this share
_TINY = 2.0**-120  # squares below it may have been rounded to 0 in float32
_TOGETHER = 2**20  # numbers of the differences that are held at a time: 8 MB


class Centres:
    """Centres (m, d), m at least 1, finite, made ready to be searched.

    ``shift`` (d,) is near the rows and the centres, so that few digits cancel; their mean will do.
    """

    def __init__(self, centres: NDArray, shift: NDArray[np.float32]) -> None:
        m, d = centres.shape
        self.exact = np.asarray(centres, dtype=np.float64)
        self.shift = shift
        away = self.exact - shift
        norms = np.einsum("md,md->m", away, away)
        self._turned = np.empty((d + 1, m), dtype=np.float32)  # one more, which meets a 1: ‖c‖² comes with the product
        with np.errstate(over="ignore"):
            self._turned[:d] = -2 * away.T
            self._turned[d] = norms
        self._longest = float(np.sqrt(norms.max()))

    def propose(self, rows: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """Return squared distances less that of the row to ``shift`` (b, m), those (b,), and a bound on the error (b,).

        The bound is (d + 8) · 2⁻²⁴ · (‖x‖ + max ‖c‖)²: that of a sum of d + 1 products in any order, and of rounding
        what goes into them.
        """
        b, d = rows.shape
        block = np.empty((b, d + 1), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(rows, self.shift, out=block[:, :d], casting="same_kind")
            block[:, d] = 1
            norms = np.einsum("bd,bd->b", block[:, :d], block[:, :d]).astype(np.float64)
            products = block @ self._turned
            error = (d + 8) * _UNIT * (np.sqrt(norms) + self._longest) ** 2 + d * _TINY
        if not (np.isfinite(norms).all() and error.max(initial=0) < 2.0**100):
            raise InputError(
                f"features up to {np.abs(rows).max():.3g} were found, whose squares float32 cannot hold; "
                f"scale them down."
            )
        return products, norms, error

    def nearest(
        self, rows: NDArray, below: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the nearest centre of each of the rows (b, d), and the squared distance to it in float64.

        Equally near ones: the lowest.  With ``below`` (b,), centres at that squared distance or further do not count;
        where none does, the number is -1 and the distance infinite.
        """
        products, norms, error = self.propose(rows)
        best = products.min(axis=1)
        reach = best + 2 * error
        open_rows = np.arange(len(rows))
        if below is not None:
            open_rows = np.flatnonzero((best + norms - error < below) & (below > 0))
            reach = np.minimum(reach, below - norms + error)
        which, centre = np.nonzero(products[open_rows] <= reach[open_rows, None])
        which = open_rows[which]
        squares = squared_distances(rows, which, self.exact, centre)
        labels = np.full(len(rows), -1, dtype=np.int64)
        lowest = np.full(len(rows), np.inf)
        if which.size:  # in order of rows, then of centres
            starts = np.flatnonzero(np.r_[True, np.diff(which) != 0])
            lowest[which[starts]] = np.minimum.reduceat(squares, starts)
            first = np.flatnonzero(squares == lowest[which])[::-1]
            labels[which[first]] = centre[first]  # the last one written is the lowest
        if below is not None:
            no = lowest >= below
            labels[no], lowest[no] = -1, np.inf
        return labels, lowest


def squared_distances(
    rows: NDArray, i: NDArray[np.int64], centres: NDArray[np.float64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return ‖rows[i] − centres[j]‖² of each pair, from differences in float64."""
    out = np.empty(i.size)
    step = max(1, _TOGETHER // max(1, centres.shape[1]))
    for at in range(0, i.size, step):
        part = slice(at, at + step)
        away = rows[i[part]] - centres[j[part]]
        out[part] = np.einsum("pd,pd->p", away, away)
    return out
