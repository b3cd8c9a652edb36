"""What each round of an iterative selection chose, what was learned from it, and what became of the clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.numerics.composition import effective_number
from curate.report.blocks import Block, Section, Shade, Share, Table, Text
from curate.report.charts import composition
from curate.report.text import plural, signed

if TYPE_CHECKING:
    from curate.report.view import View

TITLE = "Rounds of refinement"
_EACH_END = 20  # clusters listed whose weight grew, and whose weight fell


def sections(view: View) -> list[Section]:
    steps = [step for step in view.steps if step.get("account") and "rounds" in step["account"]]
    return [_section(step, TITLE if len(steps) == 1 else f"{TITLE}: {step['name']}") for step in steps]


def _section(step: Mapping[str, Any], title: str) -> Section:
    account, rounds = step["account"], step["account"]["rounds"]
    sizes = np.array(account["sizes"], dtype=np.int64)
    if not rounds or not sizes.size:
        return Section(title, [Text("No round chose anything.")])
    chosen = np.array([one["chosen"] for one in rounds], dtype=np.int64)
    weights = np.array([one["weights"] for one in rounds])
    scores = np.array([one["score"] for one in rounds if "score" in one], dtype=np.float64).reshape(-1, sizes.size)
    names = [f"cluster {name}" for name in account.get("clusters") or range(sizes.size)]
    picks = {f"round {r + 1}": line for r, line in enumerate(chosen)}
    blocks: list[Block] = [Text(_meaning(step)), _rounds(step, chosen, weights)]
    blocks += [Text(text) for text in _untold(step)]
    return Section(
        title, [*blocks, composition("cluster", names, picks), *_clusters(names, sizes, chosen, weights, scores)]
    )


def _meaning(step: Mapping[str, Any]) -> str:
    learner = step.get("learner", {}).get("identity", {})
    judge = "the perplexity of the model that was trained" if learner.get("judge") == "perplexity" else "a reward model"
    by = f", by {judge}" if learner else ""
    return (
        f"“{step['name']}” chose in rounds. After each but the last, a model was trained on all that was chosen so "
        f"far, and answered some of those prompts itself; S is how far the row's answer is ahead of the model's{by}. "
        "Where S is high on average there is more to learn: the cluster's weight is multiplied by the exponential of "
        "its mean S in standard deviations over clusters, and the next round takes from the clusters by their weights."
    )


def _rounds(step: Mapping[str, Any], chosen: NDArray[np.int64], weights: NDArray[np.float64]) -> Table:
    facts = step.get("learner", {}).get("rounds", [])
    rows: list[list[Any]] = []
    for r, one in enumerate(step["account"]["rounds"]):
        score = [s for s in one.get("score", ()) if s is not None]
        trained = facts[r] if r < len(facts) else {}
        rows.append(
            [
                r + 1,
                int(chosen[r].sum()),
                int((chosen[r] > 0).sum()),
                round(float(effective_number(weights[r])), 2),
                trained.get("trained_on"),
                trained.get("loss"),
                one.get("asked"),
                one.get("answered"),
                float(np.mean(score)) if score else None,
            ]
        )
    columns = ["round", "rows chosen", "of clusters", "effective clusters by weight"]
    return Table("Rounds", [*columns, "trained on", "loss", "asked", "answered", "mean S over clusters"], rows)


def _untold(step: Mapping[str, Any]) -> list[str]:
    """Say why rows that were asked about told nothing."""
    out = []
    for r, one in enumerate(step.get("learner", {}).get("rounds", [])):
        reasons = one.get("unanswered", {})
        if reasons:
            told = "; ".join(f"{n:,} × {reason}" for reason, n in list(reasons.items())[:5])
            out.append(f"Round {r + 1}: {plural(sum(reasons.values()), 'row')} told nothing: {told}.")
    return out


def _clusters(
    names: Sequence[str],
    sizes: NDArray[np.int64],
    chosen: NDArray[np.int64],
    weights: NDArray[np.float64],
    scores: NDArray[np.float64],
) -> list[Block]:
    """List clusters by what became of their weight, those that gained most first; of many, both ends."""
    gain = np.log(weights[-1] / weights[0])
    order = np.lexsort((np.arange(sizes.size), -gain))
    ends = order if order.size <= 2 * _EACH_END else np.r_[order[:_EACH_END], order[-_EACH_END:]]
    totals = np.maximum(1, chosen.sum(axis=1))
    rows: list[list[Any]] = []
    for i in ends.tolist():
        shares = [Share(float(n / total)) for n, total in zip(chosen[:, i], totals, strict=True)]
        means = [None if np.isnan(s) else signed(float(s), 3) for s in scores[:, i]]
        rows.append(
            [
                names[i],
                int(sizes[i]),
                Share(float(sizes[i] / sizes.sum())),
                *shares,
                *means,
                Shade(float(gain[i])),
            ]
        )
    columns = ["", "rows of the pool", "share"]
    columns += [f"chosen, round {r + 1}" for r in range(len(chosen))]
    columns += [f"S, round {r + 1}" for r in range(len(scores))]
    table = Table("Clusters, by what became of their weight (as a logarithm)", [*columns, "weight"], rows)
    left = sizes.size - ends.size
    more = f" {plural(left, 'cluster')} between them not shown." if left else ""
    note = f"S is the mean over the rows of a cluster that were asked about; a dash: none had an answer.{more}"
    return [table, Text(note)]
