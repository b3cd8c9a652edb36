"""Everything of a run but a model: read, convert, find copies, store, select, account, write.

    python benchmarks/pipeline/throughput.py                    # 200,000 and 1,000,000 rows; writes throughput.json
    python benchmarks/pipeline/throughput.py --sizes 20000      # a look; saves nothing unless --save

A made-up pool of Parquet shards (about 1 kB a row) goes through ``curate run`` as a process of its own with two
workers.  Checked before anything is timed: on a small pool, the rows kept are those that Polars finds by definition.
Checked after each timed run: every row is accounted for, and the numbers of copies, rejected and kept rows are those
made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import machine, save, start, write_recipe

from curate.seeding import rng_for

SOURCES = {"web": 0.55, "code": 0.25, "maths": 0.15, "chat": 0.05}
SHARE, SHARDS, ROW_GROUP = 0.10, 10, 10_000
MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))


# -- the pool ----------------------------------------------------------------------------------------------------------


def _vocabulary() -> pa.Array:
    """Return 20,000 made-up words of 2 to 12 letters; a few carry letters that take two bytes."""
    rng = rng_for(0, "vocabulary")
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weights = 1 / np.arange(2, 28)
    words = {"".join(rng.choice(letters, rng.integers(2, 13), p=weights / weights.sum())) for _ in range(40_000)}
    chosen = sorted(words)[:20_000]
    return pa.array([w.replace("qu", "é").replace("x", "ß") if i % 50 == 0 else w for i, w in enumerate(chosen)])


def _texts(rng: np.random.Generator, words: pa.Array, lengths: np.ndarray) -> pa.Array:
    """Return texts of so many words; a word's frequency falls as 1/rank, as in any language."""
    n = len(words)
    rank = np.minimum((n + 1) ** rng.random(int(lengths.sum()), dtype=np.float32) - 1, n - 1).astype(np.int32)
    offsets = pa.array(np.r_[0, np.cumsum(lengths)].astype(np.int32))
    return pc.binary_join(pa.ListArray.from_arrays(offsets, words.take(pa.array(rank))), " ")


def make_pool(folder: Path, n: int, seed: int = 0) -> dict[str, int]:
    """Write ``n`` rows over ten shards; of these 1% are exact copies and 0.5% broken.  Return what was made."""
    folder.mkdir(parents=True)
    rng = rng_for(seed, "pool", n)
    words = _vocabulary().take(pa.array(rng_for(0, "ranks").permutation(20_000)))
    rating = (rng.permutation(n) + 1) / n  # all different: no ties to argue about
    made = {"rows": n, "copies": 0, "broken": 0}
    for shard in range(SHARDS):
        lo, hi = n * shard // SHARDS, n * (shard + 1) // SHARDS
        name = f"train-{shard:05d}-of-{SHARDS:05d}.parquet"
        with pq.ParquetWriter(folder / name, _schema(), compression="zstd") as out:
            for start in range(lo, hi, ROW_GROUP):
                rows = min(ROW_GROUP, hi - start)
                table, copies, broken = _rows(rng, words, rows, rating[start : start + rows])
                made["copies"] += copies
                made["broken"] += broken
                out.write_table(table)
    return made


def _schema() -> pa.Schema:
    return pa.schema([("messages", MESSAGES), ("source", pa.string()), ("rating", pa.float64())])


def _rows(rng: np.random.Generator, words: pa.Array, n: int, rating: np.ndarray) -> tuple[pa.Table, int, int]:
    turns = np.where(rng.random(n) < 0.2, 4, 2)
    role = pa.array(["user", "assistant"]).take(pa.array(np.concatenate([np.arange(t) % 2 for t in turns])))
    long = np.tile([30, 125], int(turns.sum()) // 2)
    content = _texts(rng, words, np.maximum(3, rng.poisson(long * 2 / np.repeat(turns, turns) * 0.8)))
    which = rng.permutation(n)
    broken, copies = which[: n // 200], which[n // 200 : n // 200 + n // 100]
    # Broken: the last answer is white space.
    blank = np.zeros(len(content), dtype=bool)
    blank[np.cumsum(turns)[broken] - 1] = True
    content = pc.if_else(pa.array(blank), "  ", content)
    offsets = pa.array(np.r_[0, np.cumsum(turns)].astype(np.int32))
    struct = pa.StructArray.from_arrays([role, content], names=["role", "content"])
    messages = pa.ListArray.from_arrays(offsets, struct)
    # Copies: a row of the same row group again (of any rating and source), later in the file or earlier.
    origin = np.arange(n)
    good = which[n // 200 + n // 100 :]
    origin[copies] = rng.choice(good, copies.size, replace=True)
    source = rng.choice(list(SOURCES), n, p=list(SOURCES.values()))
    table = pa.table([messages.take(pa.array(origin)), pa.array(source), pa.array(rating)], schema=_schema())
    return table, copies.size, broken.size


def recipe(pool: Path, file: Path, shard_rows: int | None = None) -> Path:
    """Write the recipe: no scorer that reads text, a tenth of the rows, the sources in equal shares."""
    step = {"use": "top-k", "on": "rating", "budget": f"{SHARE:.0%}", "quota": {"by": "source", "shares": SHARES}}
    document = {
        "name": "throughput",
        "report": False,  # benchmarks/report has its cost
        "sources": [{"path": f"{pool}/*.parquet"}],
        "scorers": {"rating": {"use": "column", "column": "rating"}},
        "select": [step],
        "execution": {} if shard_rows is None else {"shard_rows": shard_rows},
    }
    return write_recipe(file, document)


SHARES = {"web": 0.4, "code": 0.3, "maths": 0.2, "chat": 0.1}


# -- measuring ---------------------------------------------------------------------------------------------------------


def tree(root: psutil.Process) -> tuple[int, int]:
    """Return (sum of the proportional set sizes, largest resident set) of a process and its descendants, in bytes."""
    total = largest = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            info = process.memory_full_info()
        except (psutil.Error, OSError):
            continue
        total += getattr(info, "pss", info.uss)
        largest = max(largest, info.rss)
    return total, largest


def run(recipe: Path, directory: Path, workers: int) -> dict[str, Any]:
    """Run ``curate run``; return wall seconds and the peaks of memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    job = start(recipe, directory, "--workers", str(workers))
    root = psutil.Process(job.pid)
    peak = largest = samples = 0
    while job.poll() is None:
        try:
            total, one = tree(root)
        except psutil.Error:
            break
        peak, largest, samples = max(peak, total), max(largest, one), samples + 1
        time.sleep(0.1)
    told = job.communicate()[0]
    seconds = time.perf_counter() - began
    if job.returncode:
        raise SystemExit(f"the run failed:\n{told}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    manifest = json.loads((directory / "manifest.json").read_text())
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "peak_tree_mib": round(peak / 2**20),
        "peak_one_process_mib": round(largest / 2**20),
        "memory_samples": samples,
        "stages": [line for line in told.splitlines() if line.startswith(("read:", "rating:", "decide:", "write:"))],
        "rows": manifest["rows"],
        "decisions": manifest["decisions"],
    }


def copy_file(job: tuple[str, str]) -> int:
    """Copy one Parquet file by row groups: the least that any tool does that reads and writes the rows."""
    source, target = job
    file = pq.ParquetFile(source, pre_buffer=False)
    with pq.ParquetWriter(target, file.schema_arrow, compression="zstd", compression_level=1) as out:
        for group in range(file.num_row_groups):
            out.write_table(file.read_row_group(group, use_threads=False))
    return file.metadata.num_rows


def copy(pool: Path, folder: Path, processes: int) -> float:
    """Return the seconds that copying the pool takes, processes already started."""
    folder.mkdir()
    jobs = [(str(f), str(folder / f.name)) for f in sorted(pool.iterdir())]
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        workers.map(abs, range(processes * 4))
        began = time.perf_counter()
        workers.map(copy_file, jobs, chunksize=1)
        seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


# -- agreement ---------------------------------------------------------------------------------------------------------


def expected(pool: Path) -> pl.DataFrame:
    """Return the rows to keep by the definition, from the files alone: (file, row), in reading order."""
    files = sorted(pool.iterdir())
    frames = [pl.read_parquet(f).with_row_index("row").with_columns(pl.lit(str(f)).alias("file")) for f in files]
    rows = pl.concat(frames).with_row_index("place")
    rows = rows.filter(pl.col("messages").list.last().struct.field("content").str.strip_chars() != "")
    text = pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\x1f")
    rows = rows.with_columns(text.alias("text")).unique("text", keep="first", maintain_order=True)
    k = int(SHARE * rows.height)
    assert all(k * s == round(k * s) for s in SHARES.values()), "choose a size whose shares are whole"
    best = rows.sort("rating", descending=True)
    kept = pl.concat([best.filter(pl.col("source") == s).head(round(k * share)) for s, share in SHARES.items()])
    return kept.sort("place").select("file", pl.col("row").cast(pl.Int64))


def check_small(folder: Path, workers: int) -> int:
    """Compare the rows kept of a small pool with ``expected``, row by row."""
    pool = folder / "pool"
    n = 20_000
    made = make_pool(pool, n)
    file = recipe(pool, folder / "recipe.yaml")
    told = run(file, folder / "run", workers)
    rows = pl.read_parquet(folder / "run/decisions/*.parquet")
    assert rows.height == n and rows.select("file", "row").is_unique().all()
    want = expected(pool)
    got = pl.read_parquet(sorted((folder / "run/provenance").glob("*.parquet"))).select("file", "row")
    assert got.sort("file", "row").equals(want.sort("file", "row")), "the rows kept are not those of the definition"
    check_accounts(told, made)
    return got.height


def check_accounts(told: dict[str, Any], made: dict[str, int]) -> None:
    rows, decisions = told["rows"], told["decisions"]
    assert rows["input"] == made["rows"] == sum(decisions.values())
    assert rows["duplicates"] == decisions["duplicate"] == made["copies"]
    assert rows["rejected"] == decisions["rejected"] == made["broken"]
    assert decisions["kept"] == int(SHARE * rows["pool"] * (1 + 2**-51))


# -- the whole ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, help="examples per shard inside the run; its default if not given")
    parser.add_argument("--dir", help="where the pools and runs are made (several GB); a temporary folder if not given")
    parser.add_argument("--save", action="store_true", help="write throughput.json for other sizes too")
    parser.add_argument("--unchecked", action="store_true", help="leave out the comparison on a small pool")
    args = parser.parse_args()
    results: dict[str, Any] = {
        "machine": machine(),
        "workers": args.workers,
        "shard_rows": args.shard_rows,
        "sizes": [],
    }
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="curate-throughput-") as temporary:
        folder = Path(temporary)
        if not args.unchecked:
            (folder / "small").mkdir()
            results["checked_rows"] = check_small(folder / "small", args.workers)
            print(f"agreement: {results['checked_rows']:,} rows kept of 20,000, as the definition says", flush=True)
        for n in args.sizes:
            here = folder / str(n)
            here.mkdir()
            made = make_pool(here / "pool", n)
            size = sum(f.stat().st_size for f in (here / "pool").iterdir())
            arrow = sum(
                pq.read_metadata(f).row_group(g).total_byte_size
                for f in (here / "pool").iterdir()
                for g in range(pq.read_metadata(f).num_row_groups)
            )
            one, two = copy(here / "pool", here / "copy", 1), copy(here / "pool", here / "copy", 2)
            told = run(recipe(here / "pool", here / "recipe.yaml", args.shard_rows), here / "run", args.workers)
            check_accounts(told, made)
            entry = {
                "rows": n,
                "bytes_on_disk": size,
                "bytes_a_row": round(arrow / n),
                "rows_per_second": round(n / told["seconds"]),
                "copy_rows_per_second_one_process": round(n / one),
                "copy_rows_per_second_two_processes": round(n / two),
                "share_of_copy_one_process": round(one / told["seconds"], 3),
                "share_of_copy_two_processes": round(two / told["seconds"], 3),
                **told,
            }
            results["sizes"].append(entry)
            print(json.dumps(entry, indent=1), flush=True)
            shutil.rmtree(here)
    if args.save or args.sizes == parser.get_default("sizes"):
        save("throughput.json", results)


if __name__ == "__main__":
    main()
