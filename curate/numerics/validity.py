r"""Does training follow a score?  Rows in groups from the best scored to the worst, a model trained on each.

ρ is Spearman's, between the place of a group in the score and how well its model did: 1 where a better score always
trains better, -1 where it always trains worse.

p       exact: the share of all G! orders of the outcomes whose |ρ| is as large, equal outcomes sharing their mean rank.
        Without any relation the groups are exchangeable, whatever the noise of training: it holds with one seed too.
95%     tanh(atanh ρ ± 1.96 √((1 + ρ²/2) / (G - 3))) (Bonett and Wright), for the ρ of groups of such noise.  In
        simulations with ten groups it holds 94.8% to 96.8% of true ρ from 0 to 0.945; a bootstrap over the groups holds
        93% to 98% and is wider, as it draws groups twice.  |ρ| = 1, where the formula has no width, is taken for half
        a step less, 1 - 6/(G³ - G).

References
----------
Spearman 1904, "The Proof and Measurement of Association between Two Things"; Bonett & Wright 2000, "Sample size
requirements for estimating Pearson, Kendall and Spearman correlations", §4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.order import fractional_ranks
from curate.numerics.paired import LEVEL

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Validity:
    """How an outcome goes with a score.  rho, low, high and p are NaN where all outcomes are equal."""

    outcome: Floats
    """(G,) mean over seeds, best scored group first; NaN for a group without a result."""
    sd: Floats
    """(G,) over seeds; NaN with fewer than two."""
    rho: float
    low: float
    high: float
    p: float
    in_order: int
    """Steps from a group to the next worse scored one at which the outcome does not get better."""
    steps: int
    said: str
    """All of it in a sentence."""


def validity(outcomes: Floats, *, lower_is_better: bool = True) -> Validity:
    """Hold the outcome of training against a score.

    Parameters
    ----------
    outcomes : (R, G) of R seeds and G groups (10 for deciles), from the best scored group to the worst; NaN for a run
        without a result (diverged, or not made), which is left out of its group's mean.
    lower_is_better : of the outcome: True for a loss, False for an accuracy.

    Raises
    ------
    InputError
        Unless 4 to 12 groups have a result.  (The exact p takes 2^G · G steps; fewer than 4 have no interval.)
    """
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if outcomes.ndim != 2:
        raise InputError(f"validity: outcomes of shape (seeds, groups) were asked, {outcomes.shape} was found.")
    there = np.isfinite(outcomes)
    runs = there.sum(axis=0)
    groups = int((runs > 0).sum())
    if not 4 <= groups <= 12:
        raise InputError(
            f"validity: 4 to 12 groups with a result were asked, {groups} of {outcomes.shape[1]} were found."
        )
    kept = np.where(there, outcomes, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = kept.sum(axis=0) / runs
        sd = np.sqrt(np.where(there, (outcomes - mean) ** 2, 0).sum(axis=0) / np.where(runs > 1, runs - 1, np.nan))
    good = (-mean if lower_is_better else mean)[runs > 0]
    rho, p = spearman_exact(good)
    low, high = _limits(rho, groups)
    in_order = int((np.diff(good) <= 0).sum())
    if np.isnan(rho):
        said = "no relation between the score and the outcome: every group has the same"
    else:
        follows = "the outcome follows the score" if rho > 0 else "the outcome runs against the score"
        said = follows if p <= LEVEL else "no relation between the score and the outcome"
        said += f": ρ = {rho:.2f} [{low:.2f}, {high:.2f}], p {f'= {p:.2g}' if p >= 1e-4 else '< 0.0001'}; "
        said += f"{in_order} of {groups - 1} steps in order, {len(outcomes)} seed{'s' * (len(outcomes) != 1)}"
    empty = outcomes.shape[1] - groups
    if empty:
        said += f"; {empty} of {outcomes.shape[1]} groups without a result left out"
    return Validity(mean, sd, rho, low, high, p, in_order, groups - 1, said.replace("-", "−"))


def spearman_exact(values: Floats) -> tuple[float, float]:
    """Return Spearman's ρ of values with their places, the first one highest, and its exact two-sided p.

    The permutations of n values are counted by their sum Σ place · rank, over subsets of the ranks: 2^n · n steps on
    arrays of that sum's range, instead of n! permutations (5,120 steps for 10 values, not 3.6 million orders).
    (NaN, NaN) where all values are equal.
    """
    n = len(values)
    if n < 2 or (values == values[0]).all():
        return float("nan"), float("nan")
    place = n - np.arange(n)
    rank = np.rint(2 * n * fractional_ranks(values)).astype(np.int64)  # 2 rank - 1: ties have half ranks
    largest = int(np.sort(place) @ np.sort(rank))
    counts = np.zeros((2**n, largest + 1), dtype=np.int64)  # of ways to give the first places this set of ranks
    counts[0, 0] = 1
    for taken in range(2**n - 1):
        at = place[taken.bit_count()]
        for j in range(n):
            if not taken >> j & 1:
                counts[taken | 1 << j, at * rank[j] :] += counts[taken, : largest + 1 - at * rank[j]]
    middle = place.sum() * rank.sum()  # n times the mean of the sum
    far = np.abs(n * np.arange(largest + 1) - middle)
    found = n * int(place @ rank) - middle
    p = counts[-1, far >= abs(found)].sum() / counts[-1].sum()
    variance = ((place - place.mean()) ** 2).sum() * ((rank - rank.mean()) ** 2).sum()
    return float(np.clip(found / n / np.sqrt(variance), -1, 1)), float(p)


def _limits(rho: float, n: int) -> tuple[float, float]:
    """Return Bonett and Wright's 95% limits of Spearman's ρ."""
    edge = 1 - 6 / (n**3 - n)
    r = float(np.clip(rho, -edge, edge))
    half = 1.959964 * np.sqrt((1 + r * r / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)
    return float(low if rho > -1 else -1.0), float(high if rho < 1 else 1.0)
