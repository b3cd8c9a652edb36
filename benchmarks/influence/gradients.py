"""Gradient features in batches, beside the published way, one row at a time.

    python benchmarks/influence/gradients.py                     # 81M parameters, r = 128, d = 8192; two threads
    python benchmarks/influence/gradients.py --quick             # a tiny model: does it run?
    python benchmarks/influence/gradients.py --device cuda --shape 1.5B --rows 256 --dtypes bfloat16

The same model of random weights, rows, adapter and Adam averages.  Timed, one after the other in each repeat:

    bare        per-example gradients in batches, handed to nothing
    features    the same, Adam's form, count-sketch, lengths, float16 into a file
    published   the way of ``published.py``, its projection measured on some columns and multiplied

Nothing is timed before, in float32, the features of some rows by the dense law agree with those of autograd's
gradients, one row at a time, to 1e-4 of their largest number, and the cosines after the count-sketch with those of the
full vectors to 4.5 of the standard deviations that its formula gives.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "forward"))

from common import SHAPES, interleaved, machine, random_rows, saved, summary, synchronize
from published import ROWS, Published

from curate.models.base import DType, Row
from curate.models.gradients import Adam, GradientLM
from curate.models.lora import Lora, Weights
from curate.models.projection import Projection
from curate.seeding import rng_for


def checkpoint(lm: GradientLM) -> tuple[Weights, Adam]:
    """Return made-up weights of an adapter in training, and averages of its gradients."""
    weights, first, second = {}, {}, {}
    for name, (out, into) in lm.weights.items():
        rng = rng_for(0, "benchmark", name)
        weights[name] = (rng.standard_normal((out, into)) / (into**0.5 if ".lora_A." in name else 100)).astype("f4")
        first[name] = (1e-4 * rng.standard_normal((out, into))).astype("f4")
        second[name] = np.square(1e-3 * rng.standard_normal((out, into))).astype("f4")
    return weights, Adam(first, second)


def agreement(lm: GradientLM, theirs: Published, rows: Sequence[Row], adam: Adam, d: int) -> dict[str, float]:
    """Compare before anything is timed.

    Raises
    ------
    SystemExit
        If the two ways disagree.
    """
    steps = torch.stack([theirs.step(theirs.gradient(row)) for row in rows])
    dense, sketch = Projection(256, law="rademacher"), Projection(d)
    expected = torch.zeros(len(rows), dense.d, device=steps.device)
    sizes = [out * into for out, into in lm.weights.values()]
    for name, piece in zip(lm.weights, steps.split(sizes, dim=1), strict=True):
        dense.add(expected, name, piece)
    expected /= torch.linalg.vector_norm(expected, dim=1, keepdim=True)
    ours, reasons = lm.features(rows, dense, adam)
    apart = float(np.abs(ours - expected.cpu().numpy()).max() / expected.abs().max())

    unit = (steps / torch.linalg.vector_norm(steps, dim=1, keepdim=True)).double()
    exact = (unit @ unit.T).cpu().numpy()
    sketched, _ = lm.features(rows, sketch, adam)
    between = np.triu_indices(len(rows), 1)
    found = np.float64(sketched) @ np.float64(sketched).T
    # Of a cosine, the lengths being projected too: (1 − c²)² / d to first order, below the formula's (1 + c²) / d.
    deviations = np.abs(found - exact)[between] / np.sqrt((1 + exact[between] ** 2) / d)
    if any(reasons) or not apart < 1e-4 or not deviations.max() < 4.5:
        raise SystemExit(f"no agreement: features apart by {apart:.1e}, cosines by {deviations} deviations; {reasons}")
    return {"features_apart": apart, "cosines_apart_in_deviations": round(float(deviations.max()), 2)}


def measure(folder: str, lora: Lora, rows: list[Row], dtype: DType, args: argparse.Namespace) -> dict[str, Any]:
    lm = GradientLM(folder, lora=lora, dtype=dtype, device=args.device, batch_tokens=args.batch_tokens)
    weights, adam = checkpoint(lm)
    lm.put(weights)
    theirs = Published(folder, lora, weights, adam, dtype=dtype, device=args.device)
    result: dict[str, Any] = {"parameters": sum(out * into for out, into in lm.weights.values())}
    if dtype == "float32":
        short = [(ids[:100], np.arange(100) >= 60) for ids, _ in rows[:4]]
        result |= agreement(lm, theirs, short, adam, args.d)
        print(result, flush=True)
    projection = Projection(args.d)
    with tempfile.TemporaryDirectory() as out:

        def store() -> None:
            features, reasons = lm.features(rows, projection, adam)
            assert not any(reasons)
            np.save(Path(out) / "features.npy", features.astype(np.float16))

        ways = {"bare": lambda: lm.gradients(rows, lambda numbers, name, gradient: None), "features": store}
        some = rows[: args.published_rows]
        lm.features(rows[:2], projection, adam)  # signs are drawn
        if args.device.startswith("cuda"):  # kernels are chosen by shape
            for way in ways.values():
                way()
        theirs.seconds(some[:1], args.d, 128, "bits")
        seconds: dict[str, list[float]] = {"bare": [], "features": []}
        parts: list[tuple[float, float]] = []
        for _ in range(args.repeats):
            for name, its in interleaved(ways, 1, args.device).items():
                seconds[name] += its
            parts.append(theirs.seconds(some, args.d, args.columns, "bits"))
    share = len(rows) / len(some)
    seconds["published"] = [share * sum(part) for part in parts]
    result |= summary(seconds, "bare")
    median = result["median"]
    result |= {
        "rows_per_s": {name: round(len(rows) / s, 3) for name, s in median.items()},
        "published_seconds_of": {
            "gradients": [round(share * g, 3) for g, _ in parts],
            "projection": [round(share * p, 3) for _, p in parts],
        },
        "features_over_bare": round(median["features"] / median["bare"], 3),
        "published_over_features": round(median["published"] / median["features"], 2),
    }
    if not args.device.startswith("cuda"):
        # As the published projector draws, on 128 columns.
        began = time.perf_counter()
        theirs.project(torch.zeros(min(ROWS, len(rows)), result["parameters"]), 128, "bernoulli")
        drawn = (time.perf_counter() - began) * args.d / 128 * -(-len(rows) // ROWS)
        gradients = float(np.median(result["published_seconds_of"]["gradients"]))
        result["published_over_features_with_its_own_drawing"] = round((gradients + drawn) / median["features"], 1)
    if args.device.startswith("cuda"):
        result["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    synchronize(args.device)
    lm.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="81M", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=16, help="a multiple of 16, which are projected at once")
    parser.add_argument("--published-rows", type=int, default=16, help="of them; its time is multiplied accordingly")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--r", type=int, default=128)
    parser.add_argument("--d", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=1024, help="columns that the published projection is timed on")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.shape, args.rows, args.r, args.d, args.columns, args.repeats = "tiny", 8, 8, 512, 128, 1
    args.published_rows = min(args.published_rows, args.rows)
    if not args.quick and (args.rows % ROWS or args.published_rows % ROWS):
        parser.error(f"--rows and --published-rows: multiples of {ROWS} were asked, which are projected at once")
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = random_rows(args.rows, vocabulary=SHAPES[args.shape]["vocab_size"])
    lora = Lora(r=args.r, alpha=4 * args.r)
    results: dict[str, Any] = {
        "machine": machine(args.device),
        "shape": args.shape,
        "rows": len(rows),
        "published_rows": args.published_rows,
        "tokens": int(sum(ids.size for ids, _ in rows)),
        "r": args.r,
        "d": args.d,
        "columns_of_the_published_projection_timed": args.columns,
        "batch_tokens": args.batch_tokens,
    }
    for dtype in args.dtypes:
        with saved(args.shape, dtype) as folder:
            results[dtype] = measure(folder, lora, rows, dtype, args)
        print(dtype, json.dumps(results[dtype], indent=2), flush=True)
    if not args.quick:
        out = args.out or Path(__file__).with_name(f"gradients{'-cuda' if args.device.startswith('cuda') else ''}.json")
        out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
