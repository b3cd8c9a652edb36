"""Rows per second of likelihood scoring, beside what most tools do and beside the plain loop.

    python benchmarks/likelihood/run.py            # under 6 minutes on two cores
    python benchmarks/likelihood/run.py --device cuda --rows 3000 --batch 16

All ways get the same token ids and masks and give the log-probabilities of the scored tokens.  They are checked against
the float64 reference, row by row, before any of them is timed.  The repeats are interleaved, in one process, so that a
busy minute of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from curate import models
from curate.models.base import Row
from curate.models.reference import load_reference, reference_logprobs
from curate.models.transformers_lm import TransformersLM
from curate.seeding import rng_for

ROOT = Path(__file__).resolve().parents[2]


def padded_batches(lm: TransformersLM, rows: list[Row], size: int) -> list[np.ndarray]:
    """What most tools do: batches in file order, padded, an attention mask, a softmax over all logits of all
    positions."""
    out = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        width = max(ids.size for ids, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        attention = torch.zeros(len(batch), width, dtype=torch.long)
        for i, (row, _) in enumerate(batch):
            ids[i, : row.size] = torch.from_numpy(row)
            attention[i, : row.size] = 1
        ids, attention = ids.to(lm.device), attention.to(lm.device)
        logits = lm._model(input_ids=ids, attention_mask=attention).logits
        logprobs = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(-1, ids[:, 1:, None])[..., 0].cpu().numpy()
        out += [logprobs[i, : mask.size - 1][mask[1:]] for i, (_, mask) in enumerate(batch)]
    return out


def one_row_at_a_time(lm: TransformersLM, rows: list[Row]) -> list[np.ndarray]:
    """The unpadded loop: no padding and no mask, a softmax over all logits of one row."""
    out = []
    for row, mask in rows:
        ids = torch.from_numpy(row.astype(np.int64)).to(lm.device)
        logits = lm._model(input_ids=ids[None]).logits[0]
        logprobs = torch.log_softmax(logits[:-1].float(), dim=-1).gather(-1, ids[1:, None])[:, 0]
        out.append(logprobs.cpu().numpy()[mask[1:]])
    return out


def errors(found: list[Any], expected: list[np.ndarray]) -> dict[str, float]:
    """Differences from the reference in nats: of single tokens, and of the rows' means."""
    tokens = np.abs(np.concatenate(found) - np.concatenate(expected))
    rows = np.array([abs(f.mean(dtype=np.float64) - e.mean()) for f, e in zip(found, expected, strict=True)])
    bias = np.mean([f.mean(dtype=np.float64) - e.mean() for f, e in zip(found, expected, strict=True)])
    return {
        "token_max": float(tokens.max()),
        "token_median": float(np.median(tokens)),
        "row_mean_max": float(rows.max()),
        "row_mean_median": float(np.median(rows)),
        "row_mean_bias": float(bias),
    }


def read_rows(model: str, pool: Path, n: int | None) -> tuple[list[Row], dict[str, Any]]:
    """Return ``n`` rows of the pool (a seeded draw, kept in file order) that fit into the model's context."""
    table = pa.concat_tables([pq.read_table(file, columns=["messages"]) for file in sorted(pool.glob("*.parquet"))])
    messages = table["messages"].to_pylist()
    encoder = models.encoder(model)
    start = time.perf_counter()
    encoded = encoder.encode(messages)
    seconds = time.perf_counter() - start
    context = transformers.AutoConfig.from_pretrained(model).max_position_embeddings
    fits = [i for i, r in enumerate(encoded) if r.reason is None and r.mask.any() and r.ids.size <= context]
    chosen = fits if n is None else sorted(rng_for(0, "benchmark", "likelihood").permutation(fits)[:n].tolist())
    rows = [(encoded[i].ids, encoded[i].mask) for i in chosen]
    lengths = [ids.size for ids, _ in rows]
    about = {
        "pool_rows": len(messages),
        "rows": len(rows),
        "tokens": sum(lengths),
        "scored_tokens": int(sum(mask.sum() for _, mask in rows)),
        "length_quantiles_5_50_95_100": np.percentile(lengths, [5, 50, 95, 100]).round().tolist(),
        "template": encoder.kind,
        "encoding_rows_per_s": round(len(messages) / seconds),
    }
    return rows, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "model"))
    parser.add_argument("--pool", type=Path, default=ROOT / "examples" / "pool")
    parser.add_argument("--rows", type=int, default=200, help="a seeded draw of the pool; 0 for all of it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="rows of a padded batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows, about = read_rows(args.model, args.pool, args.rows or None)
    print(json.dumps(about))
    exact = TransformersLM(args.model, dtype="float32", device=args.device)
    half = TransformersLM(args.model, dtype="bfloat16", device=args.device)
    ways: dict[str, Callable[[], list[Any]]] = {
        "padded batches, float32": lambda: padded_batches(exact, rows, args.batch),
        "one row at a time, float32": lambda: one_row_at_a_time(exact, rows),
        "one row at a time, bfloat16": lambda: one_row_at_a_time(half, rows),
        "curate, float32": lambda: exact.token_logprobs(rows),
        "curate, bfloat16": lambda: half.token_logprobs(rows),
    }

    expected = reference_logprobs(load_reference(args.model), rows)
    agreement = {}
    with torch.inference_mode():
        for name, way in ways.items():  # also the warm-up
            agreement[name] = errors(way(), expected)
            print(f"{name:30} max error of a token {agreement[name]['token_max']:.1e} nats", flush=True)
            limit = 1e-4 if "float32" in name else 0.5
            assert agreement[name]["token_max"] < limit, f"{name} disagrees with the reference: nothing is timed"

        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)

    median = {name: statistics.median(values) for name, values in seconds.items()}
    against = ("padded batches, float32", "one row at a time, float32")
    results = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": args.threads,
            "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "model": models.identify(args.model) | {"parameters": sum(p.numel() for p in exact._model.parameters())},
        "data": about,
        "agreement_nats": agreement,
        "seconds": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
        "rows_per_s": {name: round(len(rows) / s, 1) for name, s in median.items()},
        "tokens_per_s": {name: round(about["tokens"] / s) for name, s in median.items()},
        "ratio": {name: {f"to {a}": round(median[a] / median[name], 2) for a in against} for name in ways},
    }
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    for name in ways:
        print(f"{name:30} {results['rows_per_s'][name]:8.1f} rows/s  {results['ratio'][name]}")


if __name__ == "__main__":
    main()
