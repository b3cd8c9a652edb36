"""How much of the machine's own matrix-multiply rate scoring reaches.

    python benchmarks/forward/rate.py                           # 81M parameters, float32 and bfloat16, two threads
    python benchmarks/forward/rate.py --compile
    python benchmarks/forward/rate.py --device cuda --shape 1.5B --rows 4000 --dtypes bfloat16

Counted is the arithmetic that the scores need and no more: two operations a weight and token for the layers, for the
last MLP and the head at the scored positions only, the causal half of the attention's square.  Padding, norms, rotary
angles and softmaxes count nothing.  The machine's rate is the best of some large square and of the model's own
products, measured in the same run, by as many threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHAPES, build, interleaved, machine, random_rows, synchronize

from curate.models.base import Row


def operations(rows: list[Row], shape: dict[str, int]) -> float:
    """Return the floating-point operations that the log-probabilities of the rows need."""
    d, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    heads = shape["num_attention_heads"]
    keys = d * shape.get("num_key_value_heads", heads) // heads
    total = 0.0
    for _, mask in rows:
        t, s = int(np.flatnonzero(mask)[-1]), int(mask.sum())  # nothing is predicted from the last token
        total += 2.0 * t * layers * (2 * d * d + 2 * d * keys)
        total += 2.0 * 3 * d * inner * (t * (layers - 1) + s)
        total += 2.0 * layers * t * t * d  # QKᵀ and PV, half of the square each
        total += 2.0 * s * shape["vocab_size"] * d
    return total


def machine_rate(dtype: torch.dtype, shape: dict[str, int], device: str, seconds: float = 1.0) -> dict[str, float]:
    """Return operations a second of some products (m, k, n)."""
    d, inner = shape["hidden_size"], shape["intermediate_size"]
    large = 8192 if device.startswith("cuda") else 2048
    rates = {}
    for m, k, n in ((large, large, large), (large, d, inner), (large, inner, d), (large, d, d)):
        a, b = (torch.randn(size, k, device=device).to(dtype) for size in (m, n))
        torch.nn.functional.linear(a, b)
        synchronize(device)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            torch.nn.functional.linear(a, b)
            synchronize(device)
            count += 1
        rates[f"{m}×{k}×{n}"] = 2.0 * m * k * n * count / (time.perf_counter() - start)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="81M", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = args.out or Path(__file__).with_name("rate_compiled.json" if args.compile else "rate.json")

    shape = SHAPES[args.shape]
    rows = random_rows(args.rows, vocabulary=shape["vocab_size"])
    needed, tokens = operations(rows, shape), sum(ids.size for ids, _ in rows)
    results: dict[str, Any] = {
        "machine": machine(args.device),
        "shape": args.shape,
        "compiled": args.compile,
        "batch_tokens": args.batch_tokens,
        "rows": len(rows),
        "tokens": int(tokens),
        "operations": needed,
    }
    for dtype in args.dtypes:
        lm = build(args.shape, dtype, device=args.device, batch_tokens=args.batch_tokens, compiled=args.compile)
        for _ in range(2):
            lm.token_logprobs(rows)  # kernels are chosen, and compiled, for each shape
        before = machine_rate(getattr(torch, dtype), shape, args.device)
        seconds = interleaved({"scoring": partial(lm.token_logprobs, rows)}, args.repeats, args.device)["scoring"]
        after = machine_rate(getattr(torch, dtype), shape, args.device)
        peak = max(*before.values(), *after.values())
        reached = needed / statistics.median(seconds)
        results[dtype] = {
            "seconds": [round(s, 4) for s in seconds],
            "tokens_per_s": round(tokens / statistics.median(seconds)),
            "gflops": round(reached / 1e9, 1),
            "machine_gflops": {
                "before": {k: round(v / 1e9, 1) for k, v in before.items()},
                "after": {k: round(v / 1e9, 1) for k, v in after.items()},
            },
            "share": round(reached / peak, 3),
        }
        if args.device.startswith("cuda"):
            results[dtype]["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        print(f"{dtype:9} {reached / 1e9:8.1f} of {peak / 1e9:8.1f} GFLOP/s: {reached / peak:.0%}", flush=True)
        lm.close()
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
