"""Candidates that share a prompt, beside each from scratch.

    python benchmarks/forward/sharing.py                        # 81M parameters, float32 and bfloat16, two threads
    python benchmarks/forward/sharing.py --device cuda --shape 0.5B --prompts 200 --dtypes bfloat16

Rows come in random order.  Log-probabilities are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHAPES, build, interleaved, machine, summary

from curate.models.base import Row
from curate.seeding import rng_for

CASES = {
    "eight candidates, prompts three times as long": (8, 300, 100),
    "eight candidates, prompts as long": (8, 150, 150),
    "two candidates, prompts as long": (2, 150, 150),
    "eight options of two tokens": (8, 300, 2),
    "no prompt in common": (1, 300, 100),
}
"""Candidates of a prompt, its tokens, and a candidate's."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5, "float16": 0.5}
"""Nats, of single tokens."""


def candidates(prompts: int, case: tuple[int, int, int], vocabulary: int) -> list[Row]:
    each, before, own = case
    rng = rng_for(0, "benchmark", "sharing")
    rows = []
    for _ in range(prompts):
        prompt = rng.integers(1, vocabulary, size=before)
        for _ in range(each):
            length = before + max(1, int(own * rng.uniform(0.8, 1.2)))
            ids = np.r_[prompt, rng.integers(1, vocabulary, size=length - before)].astype(np.int32)
            rows.append((ids, np.arange(length) >= before))
    return [rows[i] for i in rng.permutation(len(rows))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="81M", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=64, help="of each case, about")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(TOLERANCE))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("sharing.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    results: dict[str, Any] = {"machine": machine(args.device), "shape": args.shape}
    for dtype in args.dtypes:
        shared = build(args.shape, dtype, device=args.device)
        apart = build(args.shape, dtype, device=args.device, share=False)
        assert shared.shares, "the model does not share"
        results[dtype] = {}
        for name, case in CASES.items():
            rows = candidates(max(1, args.rows // case[0]), case, SHAPES[args.shape]["vocab_size"])
            found, expected = (np.concatenate(lm.token_logprobs(rows)) for lm in (shared, apart))
            worst = float(np.abs(found - expected).max())
            assert worst < TOLERANCE[dtype], f"{name}: {worst} nats apart: nothing is timed"
            ways = {"shared": partial(shared.token_logprobs, rows), "from scratch": partial(apart.token_logprobs, rows)}
            its = summary(interleaved(ways, args.repeats, args.device), "shared")
            results[dtype][name] = {"rows": len(rows), "agreement_nats": worst, **its}
            print(f"{dtype:9} {name:48} {its['times shared']['from scratch']:5.2f} ×", flush=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
