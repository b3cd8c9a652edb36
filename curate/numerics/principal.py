"""Principal axes of a set of vectors: where a cloud of rows is widest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def principal_axes(x: NDArray[np.floating], count: int) -> tuple[NDArray, NDArray, NDArray]:
    """Return (mean, axes, explained) of the rows of ``x``.

    With X = x − mean, the axes are the eigenvectors of XᵀX with the largest eigenvalues λ, and explained = λ / Σλ.  The
    smaller of XᵀX (d, d) and XXᵀ (n, n) is taken apart, so the cost is O(n·d·min(n, d)).  All sums are in float64.  An
    axis points to where its entry of largest magnitude is positive (the first of equal ones), so that equal inputs
    give equal pictures.

    Parameters
    ----------
    x : array (n, d), finite, n at least 1
    count : axes asked; those beyond min(n, d), and those without variance, are zero

    Returns
    -------
    mean (d,), axes (count, d) of length 1 and orthogonal, explained (count,) in [0, 1]; all float64

    References
    ----------
    Jolliffe 2002, "Principal Component Analysis", section 3.5 (the singular value decomposition).
    """
    x = np.asarray(x, dtype=np.float64)
    n, d = x.shape
    mean = x.mean(axis=0)
    centred = x - mean
    total = float(np.square(centred).sum())
    axes, explained = np.zeros((count, d)), np.zeros(count)
    values, vectors = np.linalg.eigh(centred.T @ centred if d <= n else centred @ centred.T)
    for i in range(min(count, values.size)):
        value = float(values[-1 - i])
        if value <= total * 1e-12:  # what rounding leaves of a direction without variance
            break
        axis = vectors[:, -1 - i] if d <= n else centred.T @ vectors[:, -1 - i]
        axis = axis / np.linalg.norm(axis)
        axes[i] = axis if axis[np.argmax(np.abs(axis))] > 0 else -axis
        explained[i] = value / total
    return mean, axes, explained
