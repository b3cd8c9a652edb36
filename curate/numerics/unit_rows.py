"""Rows brought to length 1 on a grid so coarse that every product of two of them is exact in float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 2.0**12
_BLOCK = 4096


class UnitRows:
    r"""Blocks of u = rint(2¹² · s · x / ‖x‖) / 2¹², s = 1 - √d / 2¹³, of the rows of ``x`` (n, d); float32.

    Rounding moves a coordinate by 2⁻¹³ at most, a row by √d / 2¹³ at most, so ‖u‖ ≤ 1.  Products of coordinates are
    multiples of 2⁻²⁴, and any sum of those of two rows is at most ‖u‖ ‖v‖ ≤ 1 (Cauchy-Schwarz, on any part of the
    coordinates): 24 bits hold it.  So u·v is exact in float32, in whatever order and blocks, on however many threads
    and whatever processor it is computed; copies of a row are equally similar to all others; and sums of such numbers
    are exact in float64 up to 2²⁹ of them.

    u·v / s² is the cosine of the two rows but for an error of standard deviation 1e-4, for any d.  A row of zeros stays
    one: similar to nothing, itself included.  So does a row without a number above 1e-150.

    Memory: 8 bytes a row; ``x`` may be a read-only memory map, of which a block at a time is looked at.
    """

    def __init__(self, x: NDArray[Any]) -> None:
        self._x = np.asarray(x)  # a memory map as a plain array: taking single rows of it is twice as fast
        n, d = self._x.shape
        self.shape = n, d
        self.shrink = 1 - math.sqrt(d) / (2 * GRID)
        """s, the length of a row before it is rounded."""
        self._scale = np.zeros(n)
        for start in range(0, n, _BLOCK):
            block = self._x[start : start + _BLOCK].astype(np.float64)
            peak = np.abs(block).max(axis=1, initial=0.0)
            there = peak > 1e-150
            block[there] /= peak[there, None]  # squares of what is left neither overflow nor vanish
            length = np.sqrt(np.einsum("nd,nd->n", block[there], block[there]))  # in units of the peak
            self._scale[start : start + _BLOCK][there] = GRID * self.shrink / length / peak[there]

    @property
    def there(self) -> NDArray[np.bool_]:
        """(n,) False for a row of zeros, which has no direction."""
        return self._scale > 0

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        block = self._x[rows] * self._scale[rows, None]  # float64, whatever x is
        np.rint(block, out=block)
        block *= 1 / GRID
        return block.astype(np.float32)
