"""Several score columns made into one, for the selectors that look at one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.combine import METHODS, mean_of_present, winsorised


def combine(
    columns: Mapping[str, NDArray[Any]],
    *,
    method: Literal["rank", "zscore", "minmax", "topsis", "product", "mean"] = "rank",
    weights: Mapping[str, float] | None = None,
    directions: Mapping[str, bool] | None = None,
    winsorise: float = 0.0,
    missing: Literal["null", "reweight"] = "null",
) -> NDArray[np.float64]:
    """Combine score columns into one, higher is better.

    A row that lacks a number in any column (NaN or infinity) is NaN in the result, and takes no part in the others'
    ranks, means or extremes; with ``missing="reweight"`` it gets the mean of what it has.
    The formulas stand in ``curate.numerics.combine``.

    ==========  =======================================  =======================================================
    method      each column becomes                      the result does not change when a column is
    ==========  =======================================  =======================================================
    rank        its fractional rank, ties averaged       put through any increasing function
    zscore      (x − mean) / std                         scaled by a positive number, shifted
    minmax      (x − min) / (max − min)                  scaled by a positive number, shifted
    topsis      x / ‖x‖, then distances to the extremes  scaled by a positive number
    product     x ^ weight, at least 0, then multiplied  scaled by a positive number (all values are)
    mean        itself                                   shifted (all values are)
    ==========  =======================================  =======================================================

    Parameters
    ----------
    columns : name → array (n,).
    method : how; ``rank`` needs no unit, no scale, and no outlier can carry it.
    weights : name → weight of at least 0; only their proportions count.  1 for a column that is not named; a column of
        weight 0 is not looked at.
    directions : name → whether higher is better.  True for a column that is not named.
    winsorise : the share of the rows at each end of a column that are brought to the next value within, before anything
        else; in [0, ½).  Extremes stretch every method but ``rank``, TOPSIS above all, whose distances are to them.
    missing : "reweight", of ``mean`` without ``winsorise``: where a row lacks some columns, the weights of the others
        are scaled to sum to 1; a row that lacks all is NaN.

    Returns
    -------
    float64 array (n,)

    Raises
    ------
    InputError
        For no columns, unequal lengths, unknown names, bad weights or shares, an unknown method, a product of numbers
        below 0, or parts to re-weight of another method than the mean.
    """
    if method not in METHODS:
        raise InputError(f"combine: method is one of {', '.join(METHODS)}; found {method!r}.")
    if not 0 <= winsorise < 0.5:
        raise InputError(f"combine: winsorise is a share of at least 0 and below 0.5; found {winsorise}.")
    if missing not in ("null", "reweight"):
        raise InputError(f"combine: missing is null or reweight; found {missing!r}.")
    if missing == "reweight" and (method != "mean" or winsorise):
        raise InputError(
            f"combine: missing='reweight' was asked with method={method!r}, winsorise={winsorise}; it is for the plain "
            "mean, whose parts have one unit. Ask for missing='null', or method='mean'."
        )
    if not columns:
        raise InputError("combine: at least one column was asked, none was found.")
    for what, given in (("weights", weights), ("directions", directions)):
        unknown = sorted(set(given or {}) - set(columns))
        if unknown:
            raise InputError(f"combine: {what} name {unknown}, which are not among the columns {list(columns)}.")
    weight = {name: float((weights or {}).get(name, 1.0)) for name in columns}
    bad = {name: w for name, w in weight.items() if not 0 <= w < np.inf}
    if bad or not any(weight.values()):
        raise InputError(
            f"combine: weights of at least 0, one of them above 0, were asked; found {bad or weight}. "
            f"Say by directions={{name: False}} that lower is better."
        )
    arrays = {name: np.asarray(columns[name], dtype=np.float64) for name in columns}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise InputError(f"combine: columns of one length and one dimension were asked, shapes {shapes} were found.")

    used = [name for name in columns if weight[name] > 0]
    x = np.stack([arrays[name] if (directions or {}).get(name, True) else -arrays[name] for name in used], axis=1)
    share = np.array([weight[name] for name in used])
    if missing == "reweight":
        return mean_of_present(np.where(np.isfinite(x), x, np.nan), share / share.sum())
    whole = np.asarray(np.isfinite(x).all(axis=1))
    if method == "product" and (x[whole] < 0).any():
        row, j = (int(i) for i in np.argwhere((x < 0) & whole[:, None])[0])
        turned = (
            "" if (directions or {}).get(used[j], True) else ", lower is better there, so that it counts as negative"
        )
        raise InputError(
            f"combine: method='product' asks for numbers of at least 0, higher is better; column {used[j]!r} has "
            f"{arrays[used[j]][row]:.6g} at row {row}{turned}. Take method='rank', which asks for nothing."
        )
    out = np.full(len(x), np.nan)
    out[whole] = METHODS[method](winsorised(x[whole], winsorise), share / share.sum())
    return out
