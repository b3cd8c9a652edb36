"""What a selection has cost, beside what training on everything would cost: selection-to-tuning ratio.

Seconds are those of fitting (a warm-up, say), of scoring, over all workers, and of selecting and writing, as the run's
manifest tells them.  Tokens are those that models read or wrote; a score of one pass counts what it scored, so the
pool's rows at their mean length are taken where that is more; scores that share a pass share them.  Operations are
estimates of the scoring: 2 N a token of a forward pass, 4 N with a backward pass through an adapter, and 6 N of a
training step, for a model of N parameters whose weights lie in a folder; unknown for others.  Training on everything:
the tokens of all the pool, in as many epochs, at the speed and the operations of the trials.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from curate.pipelines.ledger import FinishedRun, recipe_of
from curate.recipe import Recipe

_A_TOKEN = {"gradients": 4}
"""Operations a token and parameter, where a score takes more than a forward pass."""
_NO_MODEL = ("length",)
"""Scorers that name a model and read its tokenizer alone."""


def of_runs(
    runs: Sequence[FinishedRun], names: Sequence[str], trials: Sequence[Mapping[str, Any]], recipe: Recipe
) -> list[dict[str, Any]]:
    """Return a row a run: seconds, tokens and operations of its scores, and their share of training on everything."""
    whole = _everything(runs[0], trials, recipe)
    out = []
    for run, name in zip(runs, names, strict=True):
        scorers = recipe_of(run.store).scorers
        seconds, tokens, flops = run.manifest.get("seconds_select_and_write") or 0.0, 0.0, 0.0
        known = True
        for stage, account in run.manifest.get("stages", {}).items():
            seconds += (account.get("seconds_of_work") or 0.0) + (account.get("seconds_of_fit") or 0.0)
            model = scorers[stage].params().get("model") if stage in scorers else None
            if model is not None and account["use"] not in _NO_MODEL:
                read = max(account.get("tokens") or 0, account["rows"] * (whole["tokens_of_a_row"] or 0))
                read /= 1 + len(account.get("together_with") or ())
                size = parameters(str(model))
                known &= size is not None
                tokens += read
                flops += _A_TOKEN.get(account["use"], 2) * (size or 0) * read
        out.append(
            {
                "run": name,
                "seconds": round(seconds, 3),
                "tokens": int(tokens),
                "flops": flops if known else None,
                "everything_seconds": whole["seconds"],
                "everything_tokens": whole["tokens"],
                "everything_flops": whole["flops"],
                "ratio": seconds / whole["seconds"] if whole["seconds"] else None,
            }
        )
    return out


def _everything(run: FinishedRun, trials: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, float | None]:
    """Return what training on all the pool would take, from the trials that drew rows uniformly."""
    drawn = [t for t in trials if t["tokens"] and t["selection"] in ("random", "full", "balanced")]
    drawn = [t for t in drawn if t["selection"] == "random"] or drawn
    seconds = sum(t["seconds_steps"] for t in drawn)
    tokens, rows = sum(t["tokens"] for t in drawn), sum(t["rows"] * t["epochs"] for t in drawn)
    if not seconds or not rows or recipe.training is None:
        return {"seconds": None, "tokens": None, "flops": None, "tokens_of_a_row": None}
    whole = run.index.n * recipe.training.epochs * tokens / rows
    return {
        "seconds": whole * seconds / tokens,
        "tokens": whole,
        "flops": whole * sum(t["flops"] for t in drawn) / tokens,
        "tokens_of_a_row": tokens / rows,
    }


def parameters(model: str) -> int | None:
    """Return how many weights lie in a model's folder, from the heads of its safetensors; None for any other."""
    folder = Path(model)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    total = 0
    for file in files:
        with file.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            head = json.loads(handle.read(size))
        total += sum(prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__")
    return total or None
