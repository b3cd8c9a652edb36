"""Iterative kMQ: kMQ in rounds, its clusters re-weighted between them by what there is still to learn in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Inputs, Ranking
from curate.budget import interleave
from curate.exceptions import InputError
from curate.seeding import rng_for
from curate.selectors.kmq import KMQ, as_numbered

_LOWEST = -600.0
"""Logarithm of the smallest weight, beside the largest: e⁻⁶⁰⁰ still divides a number of rows without overflow."""


@dataclass(kw_only=True)
class IterativeKMQ(KMQ):
    r"""kMQ in rounds (Diversify and Conquer).

    The pool is clustered, and the rows of each cluster put in order, once, as ``KMQ`` does.  Clusters begin with equal
    weights w_j (``balance``).  In each round

    1. the next k / ``rounds`` rows are chosen: clusters take turns by their weights (Sainte-Laguë; what a cluster that
       has run out leaves goes to the others), each giving the rows that come next in its order;
    2. ``learn`` is told the union of what was chosen, and gives S_i for some of it: how much more there is to learn
       from row i.  These are ``evaluate`` of each cluster's chosen rows, rounded up, drawn anew each round;
    3. s_j = mean of S_i over the rows of cluster j that have one, z_j = (s_j − mean of s) / standard deviation of s
       over clusters, 0 for a cluster without an s_j (it stands at the mean of the others) and where all s_j are equal;
    4. w_j ← w_j · exp(z_j / ``temperature``), divided by their sum.

    After the last round nothing is asked.  What the budget leaves follows in the order of the last weights.

    Not nested: what is learned depends on how many rows a round chooses.  With a quota or a budget in tokens the number
    of rows that will be kept is not known beforehand, so that ``round_rows`` should say how many a round is to choose.

    Where this differs: the paper's rule, w_j ← w_j · s_j / Σ s, fails where an s_j is negative; its code takes
    softmax(s_j) and forgets w_j.  Step 4 is the code's rule where weights are equal, and never fails.  S is
    standardised, so that ``temperature`` means the same for rewards and log-perplexities.  The code draws too few
    clusters in later rounds (the round's budget divided by the number of clusters), and chooses uniformly inside of
    clusters in all of them.

    ``Selection.account`` holds "sizes", the rows of each cluster, "clusters", their names where they were given, and
    "rounds": weights, rows chosen of each cluster, rows asked about, how many of them had an answer, and s.

    References
    ----------
    Yu, Chen, Ahmadian & Fadaee 2024, "Diversify and Conquer: Diversity-Centric Data Selection with Iterative
    Refinement", section 4.
    """

    name: ClassVar[str] = "iterative-kmq"
    reference: ClassVar[str] = (
        'Yu, Chen, Ahmadian & Fadaee 2024, "Diversify and Conquer: Diversity-Centric Data Selection '
        'with Iterative Refinement" (Iterative kMQ)'
    )
    nested: ClassVar[bool] = False
    needs_learner: ClassVar[bool] = True

    balance: Literal["proportional", "equal"] = "equal"
    """Weights of the clusters in the first round: equal, as in the paper, or by size, as in kMQ."""
    rounds: int = 3
    """Rounds of choosing; one fewer of learning."""
    round_rows: int | None = None
    """Rows that a round chooses; by default an equal part of the budget's (of the whole pool's, under a quota)."""
    evaluate: float = 0.5
    """Share of each cluster's chosen rows that are asked about (paper: all; its code: half)."""
    temperature: float = 1.0
    """What z is divided by: lower moves weights faster, ∞ not at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for parameter in ("rounds", "round_rows"):
            value = getattr(self, parameter)
            if value is not None and value < 1:
                raise InputError(f"IterativeKMQ: {parameter} of at least 1 was asked, {value} was found.")
        if not 0 < self.evaluate <= 1:
            raise InputError(f"IterativeKMQ: evaluate, a share in (0, 1], was asked; {self.evaluate} was found.")
        if not self.temperature > 0:
            raise InputError(f"IterativeKMQ: a temperature above 0 was asked, {self.temperature} was found.")

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        assert inputs.learn is not None
        labels = self._clusters(inputs)
        left, basis, basis_name = self._inside(inputs, labels)
        sizes = np.bincount(labels)
        held = np.bincount(labels, weights=inputs.cost)
        shares = np.where(held > 0, held, 1.0) if self.balance == "proportional" else np.ones(sizes.size)
        log_weights = np.log(shares)
        a_round = self.round_rows or max(1, k // self.rounds)
        chosen = np.empty(0, dtype=np.int64)
        rounds: list[dict[str, Any]] = []
        for number in range(self.rounds):
            if chosen.size >= k:
                break
            # Nine decimals: weights that went up and came down again are equal, whatever rounding did in between.
            log_weights = np.maximum(log_weights - log_weights.max(), _LOWEST)
            weights = np.exp(np.round(log_weights, 9))
            turns = interleave(labels[left], weights, None if inputs.cost is None else inputs.cost[left])
            last = number == self.rounds - 1 or chosen.size + a_round >= k
            taken = turns if last else turns[:a_round]
            new = left[taken]
            chosen = np.concatenate([chosen, new])
            within = new[: k - (chosen.size - new.size)]
            told = {"weights": weights / weights.sum(), "chosen": np.bincount(labels[within], minlength=sizes.size)}
            if last:
                rounds.append(_told(told))
                break
            left = np.delete(left, taken)
            asked = self._asked(number, chosen, labels)
            found = _checked(inputs.learn(number, chosen.copy(), asked.copy()), asked)
            scores = cluster_means(labels[asked], found, sizes.size)
            log_weights = reweighed(log_weights, scores, self.temperature)
            rounds.append(_told(told | {"asked": asked.size, "answered": ~np.isnan(found), "score": scores}))
        account: dict[str, Any] = {"sizes": sizes.tolist(), "rounds": rounds}
        if inputs.groups is not None:
            account["clusters"] = inputs.group_names
        return Ranking(
            chosen,
            basis=basis,
            basis_name=basis_name,
            descending=None,
            labels=as_numbered(labels, inputs),
            account=account,
        )

    def _asked(self, number: int, chosen: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows to ask about, ascending: of each cluster its share, drawn by the round."""
        draw = rng_for(self.seed, "iterative-kmq", "evaluate", number).random(labels.size)[chosen]
        rows = chosen[np.lexsort((draw, labels[chosen]))]
        counts = np.bincount(labels[rows])
        place = np.arange(rows.size) - (np.cumsum(counts) - counts)[labels[rows]]
        return np.sort(rows[place < np.ceil(self.evaluate * counts - 1e-9)[labels[rows]]])


def cluster_means(labels: NDArray[np.int64], values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the mean of each cluster's values, (count,); values that are NaN do not count, NaN where none is left."""
    there = ~np.isnan(values)
    rows = np.bincount(labels[there], minlength=count)
    sums = np.bincount(labels[there], values[there], minlength=count)
    return np.divide(sums, rows, out=np.full(count, np.nan), where=rows > 0)


def reweighed(log_weights: NDArray[np.float64], scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return log w + z / temperature, up to a constant; z are the scores in standard deviations from their mean.

    z is 0 for clusters without a score (NaN), and for all where scores do not differ.
    """
    there = ~np.isnan(scores)
    if not there.any():
        return log_weights
    z = np.zeros(scores.size)
    z[there] = scores[there] - scores[there].mean()
    spread = np.sqrt((z[there] ** 2).mean())
    # Rounding of the mean leaves differences of a few units in the last place between equal scores.
    if spread <= 1e-12 * np.abs(scores[there]).max():
        return log_weights
    return log_weights + z / spread / temperature


def _checked(found: Any, asked: NDArray[np.int64]) -> NDArray[np.float64]:
    values = np.asarray(found, dtype=np.float64)
    if values.shape != asked.shape:
        raise InputError(f"IterativeKMQ: learn was asked about {asked.size} rows; shape {values.shape} was returned.")
    if np.isinf(values).any():
        row = int(asked[np.isinf(values)][0])
        raise InputError(f"IterativeKMQ: learn returned infinity for row {row}; NaN says that it cannot be told.")
    return values


def _told(found: dict[str, Any]) -> dict[str, Any]:
    """Return the account of a round as JSON, its numbers with six digits."""
    out: dict[str, Any] = {}
    for key, value in found.items():
        if key == "answered":
            out[key] = int(value.sum())
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            out[key] = [None if np.isnan(v) else float(f"{v:.6g}") for v in value]
        else:
            out[key] = value.tolist() if isinstance(value, np.ndarray) else value
    return out
