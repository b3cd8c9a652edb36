"""Farthest-first traversal (greedy k-center) of rows that may be larger than memory, by the plain definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.numerics.blocks import Blocks
from curate.numerics.nearest import Centres, squared_distances

BLOCK = 2048  # rows of a product; one of 512 centres is 4 MB
_FEWEST, _MOST = 256, 4096  # candidates that are looked at together


@dataclass(frozen=True, eq=False)
class Traversal:
    """An order in which every row is the farthest from those before it."""

    order: NDArray[np.int64]
    """(k,) rows, in order of choice."""
    squares: NDArray[np.float64]
    """(n,) squared distance to the nearest of the chosen; for these, of those chosen before (the first: NaN)."""
    passes: int
    """How often all rows were read."""


def farthest_first(
    x: NDArray[Any],
    k: int,
    *,
    first: int,
    shift: NDArray[np.float32],
    eligible: NDArray[np.bool_] | None = None,
    threads: int | None = None,
) -> Traversal:
    """Choose k rows: ``first``, then always the one with the highest distance to the nearest of the chosen.

        j_t = argmax_i  D_i,    D_i = min_{s < t} ‖x_i − x_{j_s}‖²,   ties to the lowest row

    The D of all rows would have to be known after each choice: k passes over the rows.  Instead, the rows with the
    highest D are taken as candidates, and rows are chosen among these alone, as long as the best of them is ahead of
    where every other row stood when they were taken; D only falls, so it is ahead still.  Then all rows are brought up
    to date by one product with all that was chosen meanwhile.  So a pass serves many choices (about a hundred, of
    sentence vectors), and the result is that of the definition: D is exact, in float64 (see ``numerics.nearest``).

    Parameters
    ----------
    x : array (n, d), finite; may be a read-only memory map, of which blocks are read.
    k : rows to choose, at most the number of eligible ones.
    first : the row to start from, eligible.
    shift : (d,) near the rows, as their mean is.
    eligible : (n,) False for rows that are not to be chosen; they need not be covered either.
    threads : blocks computed at one time; as many as BLAS was given when None.  The result does not depend on it.

    Notes
    -----
    Time n·k·d multiply-adds in float32; memory 8·n bytes, candidates and their distances (80 MB at d = 384), a block a
    thread.  Where D of all that are left is 0, they are copies of chosen rows, and follow in row order.

    References
    ----------
    Gonzalez 1985, "Clustering to minimize the maximum intercluster distance": the radius that k rows leave is at most
    twice the smallest that any k could.
    """
    n = len(x)
    # D of a row that may (still) be chosen; -1 of the others.
    open_squares = np.full(n, np.inf)
    if eligible is not None:
        open_squares[~eligible] = -1
    squares = np.full(n, np.inf)  # of every row that is not chosen, and of the chosen as they were
    order = np.empty(k, dtype=np.int64)
    count = passes = 0
    fresh: list[int] = []  # chosen since the last pass
    size = _FEWEST

    def choose(row: int) -> None:
        nonlocal count
        order[count] = row
        squares[row] = open_squares[row]
        open_squares[row] = -1
        fresh.append(row)
        count += 1

    with Blocks(threads) as blocks:
        if k:
            choose(first)
        while count < k:
            _bring_up_to_date(blocks, x, open_squares, Centres(x[fresh], shift))
            passes += 1
            fresh.clear()
            candidates = _highest(open_squares, size)
            if open_squares[candidates].max() == 0:
                copies = np.flatnonzero(open_squares == 0)[: k - count]
                squares[copies] = 0
                order[count:] = copies
                open_squares[copies] = -1
                break
            _choose_among(blocks, x, candidates, open_squares, shift, k - count, choose)
            # A quarter of them chosen: more might have been; few: most were looked at for nothing.
            size = min(_MOST, 2 * size) if 4 * len(fresh) > size else max(_FEWEST, size // 2)
        if fresh:
            _bring_up_to_date(blocks, x, open_squares, Centres(x[fresh], shift))
            passes += 1
    left = open_squares >= 0
    squares[left] = open_squares[left]
    squares[np.isinf(squares)] = np.nan  # the first, and rows that are not eligible
    return Traversal(order, squares, passes)


def _bring_up_to_date(blocks: Blocks, x: NDArray[Any], squares: NDArray[np.float64], centres: Centres) -> None:
    """Lower ``squares`` in place where one of the centres is nearer."""

    def one(start: int) -> None:
        part = squares[start : start + BLOCK]
        np.minimum(part, centres.nearest(x[start : start + BLOCK], below=part)[1], out=part)

    blocks.run(one, range(0, len(x), BLOCK))


def _highest(squares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Return the rows with the ``size`` highest values, ties to the lowest row; in row order."""
    there = np.flatnonzero(squares >= 0)
    if there.size <= size:
        return there
    values = squares[there]
    last = np.partition(values, values.size - size)[values.size - size]
    above, equal = there[values > last], there[values == last]
    return np.sort(np.r_[above, equal[: size - above.size]])


def _choose_among(
    blocks: Blocks,
    x: NDArray[Any],
    candidates: NDArray[np.int64],
    squares: NDArray[np.float64],
    shift: NDArray[np.float32],
    most: int,
    choose: Callable[[int], None],
) -> None:
    """Choose among the candidates while one of them is sure to be the farthest of all rows.

    ``squares`` of the candidates is kept up to date, of the others as it is.
    """
    outside = squares.copy()
    outside[candidates] = -1
    limit = int(outside.argmax())  # the one to be ahead of: the lowest of the farthest
    bound = float(outside[limit])
    rows = np.asarray(x[candidates])
    centres = Centres(rows, shift)
    products = np.empty((len(rows), len(rows)), dtype=np.float32)
    norms, error = np.empty(len(rows)), np.empty(len(rows))

    def one(start: int) -> None:
        part = slice(start, start + 256)
        products[part], norms[part], error[part] = centres.propose(rows[part])

    blocks.run(one, range(0, len(rows), 256))
    own = squares[candidates]
    for _ in range(most):
        best = int(own.argmax())  # the lowest of equal ones: candidates are in row order
        if own[best] < bound or (own[best] == bound and candidates[best] > limit) or own[best] <= 0:
            break
        squares[candidates[best]] = own[best]
        choose(int(candidates[best]))
        own[best] = -1
        nearer = np.flatnonzero(products[best] < own - (norms[best] - error[best]))
        exact = squared_distances(rows, nearer, centres.exact, np.full(nearer.size, best))
        own[nearer] = np.minimum(own[nearer], exact)
    there = own >= 0
    squares[candidates[there]] = own[there]
