"""What a part of a pool is made of, beside the pool: how mixed, how spread out, how repetitive.

Vectors are compared by cosine: rows are divided by their lengths as they are read, a block at a time; a row of zeros
has cosine 0 to every other.  Products are float32, on blocks of a fixed size with one BLAS thread each, so that the
number of threads changes no number; ``x`` may be a read-only memory map and is never copied whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curate.exceptions import InputError
from curate.numerics.blocks import Blocks

_ROWS, _COLUMNS = 1024, 4096  # of one product: 16 MB of cosines a thread


def entropy(counts: ArrayLike) -> float:
    """Return the entropy of the values with these counts, -Σ p ln p in nats; 0 for none."""
    counts = np.asarray(counts, dtype=np.float64)
    counts = counts[counts > 0]
    if not counts.size:
        return 0.0
    p = counts / counts.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))  # of a single value it is 0, not -0


def effective_number(counts: ArrayLike) -> float:
    """Return exp(entropy): how many equally frequent values would be as mixed; 0 for no counts.

    It is 1 for a single value and the number of values where all are equally frequent, as the Hill number of order 1
    is (Hill 1973, "Diversity and Evenness").
    """
    return float(np.exp(entropy(counts))) if np.any(np.asarray(counts) > 0) else 0.0


def mixture(counts: ArrayLike) -> dict[str, float]:
    """Return how many values there are, their entropy in nats and their effective number, to four decimals."""
    return {
        "values": int(np.count_nonzero(counts)),
        "entropy": round(entropy(counts), 4),
        "effective": round(effective_number(counts), 4),
    }


def nearest_kept(
    x: NDArray[Any], kept: NDArray[np.int64], *, apart: bool = False, threads: int | None = None
) -> NDArray[np.float32]:
    """Return, for each row of ``x``, its highest cosine to a row that was kept; 1 for a kept row.

    Parameters
    ----------
    x : array (n, d) of finite numbers.
    kept : int array (m,) of distinct rows, at least one.
    apart : ask only the kept rows, in their order, for the highest cosine to *another* one: (m,); -1 where m is 1.

    Notes
    -----
    n·m·d multiply-adds (m·m·d if ``apart``), and 4·m·d bytes for the kept rows.
    """
    kept = np.asarray(kept, dtype=np.int64)
    if not kept.size:
        raise InputError("nearest_kept: at least one kept row was asked, none was found.")
    others = np.empty((kept.size, x.shape[1]), dtype=np.float32)
    for start in range(0, kept.size, _ROWS):
        others[start : start + _ROWS] = _unit(x[kept[start : start + _ROWS]])
    n = kept.size if apart else len(x)
    out = np.empty(n, dtype=np.float32)

    def one(start: int) -> None:
        rows = others[start : start + _ROWS] if apart else _unit(x[start : start + _ROWS])
        best = np.full(len(rows), -1, dtype=np.float32)
        for column in range(0, kept.size, _COLUMNS):
            cosine = rows @ others[column : column + _COLUMNS].T
            if apart:
                own = np.arange(max(start, column), min(start + len(rows), column + cosine.shape[1]))
                cosine[own - start, own - column] = -1
            np.maximum(best, cosine.max(axis=1), out=best)
        out[start : start + _ROWS] = np.minimum(best, 1)  # rounding leaves some just above

    with Blocks(threads) as blocks:
        blocks.run(one, range(0, n, _ROWS))
    if not apart:
        out[kept] = 1
    return out


def coverage(x: NDArray[Any], kept: NDArray[np.int64], *, threads: int | None = None) -> float:
    """Return the mean cosine distance, 1 - cos, of the rows of ``x`` to the nearest kept row: lower is better.

    It is 0 where every row is kept or is a copy of one that is; the objective of facility location, as a distance.
    """
    return float((1 - nearest_kept(x, kept, threads=threads).astype(np.float64)).mean())


def near_duplicate_rate(
    x: NDArray[Any], kept: NDArray[np.int64], *, above: float = 0.95, threads: int | None = None
) -> float:
    """Return the share of the kept rows that have another kept row at a cosine above ``above``."""
    return float((nearest_kept(x, kept, apart=True, threads=threads) > above).mean())


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    rows = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
