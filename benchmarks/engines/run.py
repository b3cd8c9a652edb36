"""The backends side by side: how far each is from float64, and how many rows a second it scores.

    python benchmarks/engines/run.py --vllm $(scripts/vllm-cpu-env.sh)      # two cores, 3 minutes

Same rows, same token ids, same model.  Agreement with the float64 reference is checked before anything is timed; the
repeats are interleaved.  An engine's start is reported apart.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import models
from curate.models.backends import VLLM
from curate.models.base import CausalLM, DType, Row
from curate.models.reference import load_reference, reference_logprobs
from curate.models.transformers_lm import TransformersLM
from curate.models.vllm_lm import VLLMLM
from curate.seeding import rng_for

ROOT = Path(__file__).resolve().parents[2]
ALLOWED: dict[str, float] = {"float32": 1e-3, "bfloat16": 5e-2}
"""Nats per token of a row's mean that a backend may be off by; of float32 every token."""


def rows_of(model: str, n: int) -> list[Row]:
    """A seeded draw of rows of the example pool that fit into the context, in file order."""
    files = sorted((ROOT / "examples/pool").glob("*.parquet"))
    pool = pa.concat_tables([pq.read_table(f, columns=["messages"]) for f in files])
    rows = [r for r in models.encoder(model).encode(pool["messages"].to_pylist()) if r.reason is None]
    fit = [(r.ids, r.mask) for r in rows if r.ids.size <= 2048 and r.mask.any()]
    chosen = np.sort(rng_for(0, "engines").choice(len(fit), size=min(n, len(fit)), replace=False))
    return [fit[i] for i in chosen]


def errors(found: list[Any], expected: list[Any]) -> dict[str, float]:
    tokens = np.abs(np.concatenate(found) - np.concatenate(expected))
    means = np.array([f.mean(dtype=np.float64) - e.mean() for f, e in zip(found, expected, strict=True)])
    return {
        "token_max": float(tokens.max()),
        "token_median": float(np.median(tokens)),
        "row_mean_max": float(np.abs(means).max()),
        "row_mean_median": float(np.median(np.abs(means))),
        "row_mean_bias": float(means.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "examples/model"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", help="an interpreter that has vLLM", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    given = parser.parse_args()

    rows = rows_of(given.model, given.rows)
    expected = reference_logprobs(load_reference(given.model), rows)
    engines: dict[str, CausalLM] = {}
    out: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "model": models.identify(given.model),
        "rows": len(rows),
        "tokens": int(sum(ids.size for ids, _ in rows)),
        "scored": int(sum(mask.sum() for _, mask in rows)),
        "ways": {},
    }
    dtypes: list[DType] = ["float32", "bfloat16"]
    try:
        for dtype in dtypes:
            for name in ("transformers", "vllm"):
                began = time.perf_counter()
                if name == "vllm":
                    lm: CausalLM = VLLMLM(given.model, VLLM(python=given.vllm), dtype=dtype)
                else:
                    lm = TransformersLM(given.model, dtype=dtype, device="cpu")
                key = f"{name} {dtype}"
                engines[key] = lm
                start = time.perf_counter() - began
                found = errors(lm.token_logprobs(rows), expected)
                worst = found["token_max" if dtype == "float32" else "row_mean_max"]
                assert worst < ALLOWED[dtype], f"{key} is off by {worst} nats"
                out["ways"][key] = {**lm.describe(), "start_seconds": round(start, 1), "errors": found, "seconds": []}
                print(key, out["ways"][key], flush=True)
        for _ in range(given.repeats):
            for key, lm in engines.items():
                began = time.perf_counter()
                lm.token_logprobs(rows)
                out["ways"][key]["seconds"].append(round(time.perf_counter() - began, 3))
    finally:
        for lm in engines.values():
            lm.close()
    for key, way in out["ways"].items():
        median = statistics.median(way["seconds"])
        way["rows_per_second"], way["tokens_per_second"] = round(len(rows) / median, 1), round(out["tokens"] / median)
        print(f"{key:<24}{way['rows_per_second']:>8} rows/s{way['tokens_per_second']:>9} tokens/s")
    given.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
