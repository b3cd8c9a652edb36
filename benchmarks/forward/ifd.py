"""IFD beside the published way: one row at a time, two whole forward passes with labels, the model's own loss.

    python benchmarks/forward/ifd.py                            # the example pool and model, two threads
    python benchmarks/forward/ifd.py --rows 0                   # the whole pool
    python benchmarks/forward/ifd.py --device cuda --rows 0

Both get the same token ids and masks, of the conversation and of its response alone; tokenising is not in the times.
The ratios of losses are compared, row by row, before anything is timed.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from common import interleaved, machine, summary

from curate import models
from curate.models.base import Row
from curate.models.transformers_lm import TransformersLM
from curate.seeding import rng_for

ROOT = Path(__file__).resolve().parents[2]
Pair = tuple[Row, Row]
"""A conversation, and its response alone."""


def published(lm: TransformersLM, pairs: list[Pair]) -> np.ndarray:
    """Return L(y|x) / L(y) of each row, by the model's own loss of each sequence in a pass of its own."""
    ratios = []
    for pair in pairs:
        losses = []
        for ids, mask in pair:
            tokens = torch.from_numpy(ids.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(mask)[None], tokens, -100)
            loss = lm._model(input_ids=tokens.to(lm.device), labels=labels.to(lm.device)).loss
            losses.append(float(loss))
        ratios.append(losses[0] / losses[1])
    return np.array(ratios)


def ours(lm: TransformersLM, pairs: list[Pair]) -> np.ndarray:
    losses = []
    for view in (0, 1):
        found = lm.token_logprobs([pair[view] for pair in pairs])
        losses.append(np.array([np.nan if row is None else -row.mean(dtype=np.float64) for row in found]))
    return losses[0] / losses[1]


def read_pairs(model: str, pool: Path, n: int | None) -> list[Pair]:
    """Return ``n`` rows of the pool (a seeded draw, kept in file order) that fit into the model's context."""
    table = pa.concat_tables([pq.read_table(file, columns=["messages"]) for file in sorted(pool.glob("*.parquet"))])
    encoded = models.encoder(model).encode(table["messages"].to_pylist())
    context = transformers.AutoConfig.from_pretrained(model).max_position_embeddings
    fits = [i for i, r in enumerate(encoded) if r.reason is None and r.mask.any() and r.ids.size <= context]
    chosen = fits if n is None else sorted(rng_for(0, "benchmark", "ifd").permutation(fits)[:n].tolist())
    pairs = []
    for row in (encoded[i] for i in chosen):
        alone = row.alone()
        if alone is not None:
            pairs.append(((row.ids, row.mask), (alone.ids, alone.mask)))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "model"))
    parser.add_argument("--pool", type=Path, default=ROOT / "examples" / "pool")
    parser.add_argument("--rows", type=int, default=300, help="a seeded draw of the pool; 0 for all of it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ifd.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pairs = read_pairs(args.model, args.pool, args.rows or None)
    results: dict[str, Any] = {
        "machine": machine(args.device),
        "model": models.identify(args.model),
        "rows": len(pairs),
        "tokens": int(sum(ids.size for pair in pairs for ids, _ in pair)),
        "scored_tokens": int(sum(mask.sum() for pair in pairs for _, mask in pair)),
    }
    with torch.inference_mode():
        exact = published(TransformersLM(args.model, dtype="float32", device=args.device), pairs)
        for dtype in args.dtypes:
            lm = TransformersLM(args.model, dtype=dtype, device=args.device)
            fused = TransformersLM(args.model, dtype=dtype, device=args.device, compiled=True)
            ways = {
                "curate": partial(ours, lm, pairs),
                "curate, compiled": partial(ours, fused, pairs),
                "one row at a time": partial(published, lm, pairs),
            }
            names = {name: way() for name, way in ways.items()}  # and whatever is compiled is compiled
            error = {k: float((np.abs(values - exact) / np.maximum(1, exact)).max()) for k, values in names.items()}
            print(dtype, "largest difference of a ratio to one row at a time in float32:", error, flush=True)
            limit = {"float32": 1e-4, "bfloat16": 5e-2}[dtype]
            assert max(error["curate"], error["curate, compiled"]) < limit, "the ways disagree: nothing is timed"
            results[dtype] = {"error": error}
            results[dtype] |= summary(interleaved(ways, args.repeats, args.device), "curate")
            median = results[dtype]["median"]
            for name in ("curate", "curate, compiled"):
                ratio = median["one row at a time"] / median[name]
                print(f"{dtype:9} {name:18} {ratio:5.2f} × one row at a time", flush=True)
        if {"float32", "bfloat16"} <= results.keys():
            exactly, half = results["float32"]["median"]["one row at a time"], results["bfloat16"]["median"]["curate"]
            results["bfloat16"]["one row at a time in float32, times curate"] = round(exactly / half, 3)
            print(f"bfloat16  {exactly / half:5.2f} × one row at a time in float32", flush=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
