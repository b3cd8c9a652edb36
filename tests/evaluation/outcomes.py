"""Outcomes of evaluations that were never made: numbers drawn at random, for pages and tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from curate.evaluation.design import UNTRAINED
from curate.evaluation.evaluate import Comparison, Outcome
from curate.evaluation.grid import Point
from curate.evaluation.held_out import HeldOut
from curate.numerics.evidence import Results, evidence
from curate.numerics.validity import validity

TASKS = ["maths", "code", "chat"]
BASELINES = ["random", "balanced", "longest"]


def made_up(runs: int, points: list[Point], *, seeds: int = 3, right: bool = True) -> Outcome:
    """Return the outcome of so many runs: the first is much better than random, the last much worse."""
    rng = np.random.default_rng(0)
    names = [f"run-{i + 1}" for i in range(runs)]
    selections = [UNTRAINED, *names, *BASELINES]
    task = np.repeat(np.arange(len(TASKS)), 12)
    tokens = rng.integers(20, 200, size=task.size).astype(float)
    comparisons = []
    for at in points:
        loss = rng.normal(2.5, 0.3, size=task.size) + rng.normal(0, 0.03, size=(len(selections), seeds, task.size))
        loss[0] = 3.5
        loss[1] -= 0.2
        loss[runs] += 0.2
        correct = (rng.random(loss.shape) < 0.3).astype(float) if right else None
        found = Results(selections, TASKS, task, tokens, loss * tokens, correct)
        shares = {name: (0.0, 0.0) if name == UNTRAINED else (100.0, 23_456.0) for name in selections}
        comparisons.append(
            Comparison(at, evidence(found, baselines=[*BASELINES, UNTRAINED], zero_shot=UNTRAINED), shares)
        )
    costs = [
        {
            "run": name,
            "seconds": 13.0,
            "tokens": 1_000_000,
            "flops": 1e13,
            "everything_seconds": 3600.0,
            "ratio": 0.0041,
        }
        for name in names
    ]
    account: list[dict[str, Any]] = [
        {"task": name, "rows": 14, "overlapping": 2, "how": {"the same prompt": 2}, "measured": 12} for name in TASKS
    ]
    held = HeldOut(pa.table({"group": [TASKS[t] for t in task]}), np.ones(500, dtype=bool), account, [])
    return Outcome(
        place="/tmp/evaluation",
        runs=names,
        about={name: "made up" for name in selections},
        model="tiny",
        comparisons=comparisons,
        validities={"likelihood.mean_logprob": validity(np.linspace(1.9, 2.1, 10) + rng.normal(0, 0.03, size=(3, 10)))},
        costs=costs,
        trials=[],
        held_out=held,
        notes=["the runs kept 100 (run-1), 120 (run-2); of each the first rows of its choice are compared"],
        demonstration=True,
    )
