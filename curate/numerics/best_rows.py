"""The best rows of each column of a matrix, while rows are taken away one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Key = Callable[[NDArray, NDArray | slice], NDArray[np.float64]]
"""(values, columns) → what the values of these columns are judged by: never falls as a value rises, and may tie."""

_LOOK = np.arange(16)  # rows looked at in one step when a column's next open row is sought
_BLOCK = 2**22  # numbers of the matrix that are looked at together


def as_they_are(values: NDArray, columns: NDArray | slice) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


class BestRows:
    """For each column of ``a`` the open row with the highest key; of equal ones the lowest row.

    A column's rows are put in order only as far as they are asked for.  One pass over the matrix, in blocks of rows,
    finds the ``depth`` best open rows of every column.  By the time that a column has used its own up, ``depth`` rows
    were closed, so closing k rows takes at most 1 + k / depth passes; each looks at the open rows only.

    Parameters
    ----------
    a : array (n, M) of finite numbers (NaN in closed rows); may be a read-only memory map larger than memory.
    open_rows : bool array (n,), the rows to begin with.
    k : how many rows will be closed, at most.
    by : what a column's rows are judged by; the numbers as they are, unless it is given.
    depth : rows of a column that are known at a time; None: n / 32, at least 1,024.  Changes no answer.

    Notes
    -----
    Memory: M · (2 · depth + 16) · (4 + itemsize of a) bytes, an eighth of a float32 matrix, and blocks of 16 MB.
    """

    row: NDArray[np.int64]
    """(M,) the best open row of each column; n where no row is open."""
    key: NDArray[np.float64]
    """(M,) its key; -inf where no row is open."""

    def __init__(
        self, a: NDArray, open_rows: NDArray[np.bool_], k: int, *, by: Key = as_they_are, depth: int | None = None
    ) -> None:
        self._a = np.asarray(a)  # a memory map as a plain array: taking single rows of it is twice as fast
        n, m = self._a.shape
        self._by = by
        self._open = np.append(open_rows, True)  # row n stands for "none", and is always found
        self._left = int(np.count_nonzero(open_rows))
        self._depth = max(1, min(k, self._left, max(1024, n // 32) if depth is None else depth))
        self._block = max(1, _BLOCK // max(1, m))
        room = self._depth + max(self._depth, self._block if self._block < n else n, _LOOK.size)
        self._rows = np.empty((m, room), dtype=np.int32 if n < 2**31 - 1 else np.int64)
        self._values = np.empty((m, room), dtype=self._a.dtype if self._a.dtype.kind == "f" else np.float64)
        self.row = np.full(m, n, dtype=np.int64)
        self.key = np.full(m, -np.inf)
        self._fill()

    def close(self, row: int) -> None:
        """Take the row away from every column."""
        self._open[row] = False
        self._left -= 1
        self._advance(np.flatnonzero(self.row == row))

    def _advance(self, columns: NDArray[np.int64]) -> None:
        """Move these columns on to their next open row."""
        left = columns
        while left.size:
            ahead = self._rows[left[:, None], self._place[left, None] + _LOOK]
            is_open = self._open[ahead]
            self._place[left] += np.where(is_open.any(axis=1), is_open.argmax(axis=1), _LOOK.size)
            left = left[~is_open.any(axis=1)]
        self._look_up(columns)
        if not self._complete and (self.row[columns] == len(self._a)).any():
            self._fill()

    def _look_up(self, columns: NDArray[np.int64]) -> None:
        place = self._place[columns]
        self.row[columns] = rows = self._rows[columns, place]
        self.key[columns] = np.where(rows < len(self._a), self._by(self._values[columns, place], columns), -np.inf)

    def _fill(self) -> None:
        """Find the ``depth`` best open rows of every column, best first.

        Rows come in order.  A column takes every row above its *floor*, the lowest value that it has kept; when its
        room is full it keeps the best ``depth`` and raises the floor.  A row at the floor or below it has as many
        rows before it that are at least as good.
        """
        n, m = self._a.shape
        self._complete = self._left <= self._depth
        size = [0] * m
        floor = np.full(m, -np.inf, dtype=self._values.dtype)
        for start in range(0, n, self._block):
            block = self._a[start : start + self._block]
            above = block > floor
            above &= self._open[start : start + len(block), None]
            by_column = np.ascontiguousarray(above.T)
            for j in np.flatnonzero(by_column.any(axis=1)).tolist():
                new = np.flatnonzero(by_column[j])
                if size[j] + new.size > self._rows.shape[1]:
                    size[j] = self._thin(j, size[j])
                    floor[j] = self._values[j, : size[j]].min()
                end = size[j] + new.size
                self._rows[j, size[j] : end] = new + start
                self._values[j, size[j] : end] = block[new, j]
                size[j] = end
        for j in range(m):
            end = self._thin(j, size[j])
            best = np.argsort(-self._keys(j, end), kind="stable")  # rows came in order: the lowest of equal ones first
            self._rows[j, :end] = self._rows[j, best]
            self._values[j, :end] = self._values[j, best]
            self._rows[j, end : end + _LOOK.size] = n
            self._values[j, end : end + _LOOK.size] = 0
        self._place = np.zeros(m, dtype=np.int64)
        self._look_up(np.arange(m))

    def _keys(self, j: int, size: int) -> NDArray[np.float64]:
        return self._by(self._values[j, :size], np.array([j]))

    def _thin(self, j: int, size: int) -> int:
        """Keep the ``depth`` best of the first ``size`` rows, in row order; return how many those are."""
        if size <= self._depth:
            return size
        keys = self._keys(j, size)
        last = np.partition(keys, size - self._depth)[size - self._depth]
        keep = keys > last
        keep[np.flatnonzero(keys == last)[: self._depth - np.count_nonzero(keep)]] = True
        self._rows[j, : self._depth] = self._rows[j, :size][keep]
        self._values[j, : self._depth] = self._values[j, :size][keep]
        return self._depth
