"""The same rows are kept, in the same order, however the work is cut up.

    python benchmarks/pipeline/invariance.py               # writes invariance.json; a few minutes on two idle cores
    python benchmarks/pipeline/invariance.py --rows 0      # the whole example pool
    python benchmarks/pipeline/invariance.py --rows 200    # a look; saves nothing unless --save

Rows of the example pool through heuristics, n-gram features, the shipped language model, ranks and kMQ, once as they
are and then, one thing changed at a time: 1, 7 and 64 input files (and as many parts inside the run); 1, 2 and 4 worker
processes; batches of the language model of 1 row and of 64 rows (of the mean length: its budget is in tokens).  The
likelihood is floating-point, and another batch is another matrix product: its largest difference is reported, and that
of every other column must be 0.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import MODEL, POOL, machine, run, save, write_recipe

from curate.seeding import rng_for

TOLERANCE = 1e-4
"""Nats per token, as the likelihood's own benchmark asks; perplexity and sums are reported only."""


def shard(rows: pl.DataFrame, folder: Path, shards: int) -> Path:
    folder.mkdir()
    for i in range(shards):
        lo, hi = rows.height * i // shards, rows.height * (i + 1) // shards
        rows.slice(lo, hi - lo).write_parquet(folder / f"part-{i:05d}-of-{shards:05d}.parquet")
    return folder


def recipe(file: Path, pool: Path, batch_tokens: int | None, shard_rows: int) -> Path:
    likelihood: dict[str, Any] = {"use": "likelihood", "model": str(MODEL)}
    if batch_tokens is not None:
        likelihood["batch_tokens"] = batch_tokens
    return write_recipe(
        file,
        {
            "name": "invariance",
            "sources": [{"path": f"{pool}/*.parquet"}],
            "scorers": {
                "heuristics": {"use": "text-heuristics"},
                "ngrams": {"use": "hashed-ngrams", "dim": 64},
                "likelihood": likelihood,
            },
            "combine": {"quality": {"method": "rank", "of": {"likelihood": 1.0, "heuristics.repetition": 1.0}}},
            "select": [
                {"use": "threshold", "on": "heuristics.repetition", "max": 0.9},
                {"use": "kmq", "features": "ngrams", "quality": "quality", "clusters": 16, "budget": "10%"},
            ],
            "execution": {"shard_rows": shard_rows},
        },
    )


def scores(directory: Path) -> pl.DataFrame:
    """Return every score and feature by id."""
    columns = None
    for stage in sorted((directory / "scores").iterdir()):
        name = stage.name.rpartition("-")[0]
        table = pl.read_parquet(sorted(stage.glob("*.parquet"))).drop("reason")
        table = table.rename({c: f"{name}.{c}" for c in table.columns if c != "id"})
        columns = table if columns is None else columns.join(table, on="id", how="full", coalesce=True)
    for stage in sorted((directory / "features").iterdir()):
        vectors = np.concatenate([np.load(f) for f in sorted(stage.glob("*.npy"))])
        ids = pl.read_parquet(sorted(stage.glob("*.parquet")))["id"]
        table = pl.DataFrame({"id": ids, **{f"vector.{i}": vectors[:, i] for i in range(vectors.shape[1])}})
        columns = table if columns is None else columns.join(table, on="id", how="full", coalesce=True)
    assert columns is not None
    return columns.sort("id")


def kept(directory: Path) -> list[str]:
    table = pl.read_parquet(f"{directory}/decisions/*.parquet").filter(pl.col("decision") == "kept")
    return table.sort("order")["id"].to_list()


def differences(mine: pl.DataFrame, theirs: pl.DataFrame) -> dict[str, float]:
    """Return the largest difference of each column; vectors count as one."""
    assert mine["id"].equals(theirs["id"])
    out: dict[str, float] = {}
    for column in mine.columns[1:]:
        a, b = mine[column], theirs[column]
        assert a.is_null().equals(b.is_null()), f"{column}: other rows were scored"
        name = "vectors" if column.startswith("vector.") else column
        largest = (a.cast(pl.Float64) - b.cast(pl.Float64)).abs().max()
        out[name] = max(out.get(name, 0.0), float(largest or 0.0))  # type: ignore[arg-type]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800, help="a seeded draw of so many rows; 0 for all")
    parser.add_argument("--dir", help="where the runs are made; a temporary folder if not given")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    began = time.perf_counter()
    rows = pl.concat([pl.read_parquet(f) for f in sorted(POOL.glob("*.parquet"))])
    if args.rows and args.rows < rows.height:
        rows = rows[np.sort(rng_for(0, "invariance").permutation(rows.height)[: args.rows])]
    results: dict[str, Any] = {"machine": machine(), "rows": rows.height, "variants": []}
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="curate-invariance-") as temporary:
        folder = Path(temporary)
        pools = {n: shard(rows, folder / f"pool-{n}", n) for n in (1, 7, 64)}

        def one(name: str, shards: int = 1, workers: int = 2, batch_tokens: int | None = None) -> Path:
            start = time.perf_counter()
            directory = folder / name.replace(" ", "-")
            part = max(1, rows.height // shards)
            file = recipe(folder / "recipe.yaml", pools[shards], batch_tokens, part)
            run(file, directory, "--workers", str(workers))
            seconds[name] = round(time.perf_counter() - start, 1)
            return directory

        seconds: dict[str, float] = {}
        base = one("1 shard, 2 workers")
        ids, numbers = kept(base), scores(base)
        tokens = int(np.ceil(float(numbers["likelihood.tokens"].mean()) * 2))  # type: ignore[arg-type]  # with the prompt
        results |= {"kept": len(ids), "base": "1 shard, 2 workers, the default batch", "tokens_of_64_rows": 64 * tokens}
        print(f"base: {len(ids)} of {rows.height} rows kept, {seconds['1 shard, 2 workers']} s", flush=True)
        for name, change in (
            ("7 shards", {"shards": 7}),
            ("64 shards", {"shards": 64}),
            ("1 worker", {"shards": 7, "workers": 1}),
            ("4 workers", {"shards": 7, "workers": 4}),
            ("batches of 1 row", {"batch_tokens": 1}),
            ("batches of 64 rows", {"batch_tokens": 64 * tokens}),
        ):
            directory = one(name, **change)
            off = differences(numbers, scores(directory))
            same = kept(directory) == ids
            entry = {"variant": name, "same_ids_in_the_same_order": same, "largest_differences": off}
            results["variants"].append({**entry, "seconds": seconds[name]})
            told = {c: d for c, d in off.items() if d > 0} or "nothing"
            print(f"{name}: {'the same ids' if same else 'OTHER IDS'}, {seconds[name]} s, off by {told}", flush=True)
            wrong = {c: d for c, d in off.items() if d > 0 and not c.startswith("likelihood.")}
            if not same or wrong or off["likelihood.mean_logprob"] > TOLERANCE:
                raise SystemExit(f"{name}: {'other ids were kept' if not same else f'columns differ: {wrong or off}'}")
    results["seconds"] = round(time.perf_counter() - began, 1)
    if args.save or args.rows == parser.get_default("rows") or args.rows == 0:
        save("invariance.json", results)


if __name__ == "__main__":
    main()
