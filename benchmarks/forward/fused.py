"""Several scores from one forward pass, beside a pass for each.

    python benchmarks/forward/fused.py                          # 81M parameters, float32 and bfloat16, two threads
    python benchmarks/forward/fused.py --device cuda --shape 0.5B --rows 2000 --dtypes bfloat16

The quantities are those that the scorers ask for.  Before anything is timed, each quantity of the fused pass is
compared with that of its own pass, row by row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHAPES, build, interleaved, machine, random_rows, summary

from curate.models.base import Forward, Quantity, Row
from curate.models.transformers_lm import TransformersLM

SCORES: dict[str, frozenset[Quantity]] = {
    "likelihood": frozenset({"logprobs"}),
    "entropy": frozenset({"entropy"}),
    "donod": frozenset({"logprobs", "head-gradient"}),
    "hidden states": frozenset({"hidden-weighted", "hidden-last"}),
}
UNION = frozenset[Quantity]().union(*SCORES.values())
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.1}
"""Relative to 1 + size: the passes differ in the shapes of their matrix products, and so in the order of sums."""


def difference(found: Sequence[Forward | None], expected: Sequence[Forward | None]) -> float:
    """Return the largest difference of what both have, relative to 1 + its size."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        for name in Forward.__dataclass_fields__:
            x, y = getattr(a, name), getattr(b, name)
            if x is not None and y is not None:
                x, y = np.asarray(x), np.asarray(y)
                worst = max(worst, float((np.abs(x - y) / (1 + np.abs(y))).max()))
    return worst


def ways_of(lm: TransformersLM, rows: list[Row]) -> dict[str, Callable[[], Any]]:
    def one(wants: frozenset[Quantity]) -> Callable[[], list[Forward | None]]:
        return lambda: lm.forward(rows, wants)

    return {
        "likelihood": one(SCORES["likelihood"]),
        "likelihood + entropy": one(SCORES["likelihood"] | SCORES["entropy"]),
        "donod (with likelihood)": one(SCORES["donod"]),
        "likelihood + hidden states": one(SCORES["likelihood"] | SCORES["hidden states"]),
        "all four, fused": one(UNION),
        "all four, a pass each": lambda: [lm.forward(rows, wants) for wants in SCORES.values()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="81M", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(TOLERANCE))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("fused.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = random_rows(args.rows, vocabulary=SHAPES[args.shape]["vocab_size"])
    results: dict[str, Any] = {
        "machine": machine(args.device),
        "shape": args.shape,
        "compiled": args.compile,
        "rows": len(rows),
        "tokens": int(sum(ids.size for ids, _ in rows)),
        "scored_tokens": int(sum(mask.sum() for _, mask in rows)),
    }
    for dtype in args.dtypes:
        lm = build(args.shape, dtype, device=args.device, compiled=args.compile)
        fused = lm.forward(rows, UNION)
        agreement = {name: difference(fused, lm.forward(rows, wants)) for name, wants in SCORES.items()}
        print(dtype, "largest difference to a pass of its own:", agreement, flush=True)
        assert max(agreement.values()) < TOLERANCE[dtype], "the passes disagree: nothing is timed"
        seconds = interleaved(ways_of(lm, rows), args.repeats, args.device)
        results[dtype] = {"agreement": agreement, **summary(seconds, "likelihood")}
        for name, ratio in results[dtype]["times likelihood"].items():
            print(f"{dtype:9} {name:28} {ratio:6.2f} × likelihood alone", flush=True)
        lm.close()
    args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
