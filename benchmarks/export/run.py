"""Export against a plain copy of the same rows; see README.md.

python benchmarks/export/run.py                      # 200,000 and 1,000,000 rows; writes results.json
python benchmarks/export/run.py --sizes 20000        # a look; saves nothing
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "pipeline")]

from common import machine, run, write_recipe  # noqa: E402
from throughput import make_pool  # noqa: E402

CASES = [("trl", "parquet"), ("trl", "jsonl"), ("axolotl", "jsonl"), ("llama-factory", "jsonl"), ("alpaca", "jsonl")]
REPEATS = 2


def export(directory: str, word: str, file: str, out: str) -> None:
    import curate
    from curate import registry

    curate.export(directory, registry.find("exporters", word)(), out, file=file)


def copy(out: str, file: str, to: str) -> None:
    """Read each file of an export and write it again: row group by row group, or as JSON by Polars in slices."""
    import polars as pl
    import pyarrow.parquet as pq

    for source in sorted(Path(out, "data").iterdir()):
        if file == "parquet":
            with pq.ParquetFile(source) as old, pq.ParquetWriter(to, old.schema_arrow, compression="zstd") as new:
                for i in range(old.num_row_groups):
                    new.write_table(old.read_row_group(i, use_threads=False))
        else:
            pl.read_ndjson(source).write_ndjson(to)


def measured(function: Any, *args: str) -> dict[str, float]:
    """Run in a process of its own, imports included once before; the best of a few by processor time."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=REPEATS) as pool:
        runs = [pool.apply(_once, (function, args)) for _ in range(REPEATS)]
    return min(runs, key=lambda r: r["cpu_seconds"])


def _once(function: Any, args: tuple[str, ...]) -> dict[str, float]:
    import polars  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import curate.pipelines.handover  # noqa: F401

    if function is export:
        shutil.rmtree(args[-1], ignore_errors=True)
    began, worked = time.perf_counter(), time.process_time()
    function(*args)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - worked, 2),
        "peak_mib": round(_peak() / 2**20),
    }


def _peak() -> int:
    """Return the largest resident set so far, in bytes (getrusage would tell the parent's, if that was larger)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 2**10


def agree(directory: str, out: str, word: str, file: str) -> None:
    """The export holds the messages of the run's dataset, row by row."""
    import pyarrow.parquet as pq

    import curate

    files = sorted(Path(directory, "dataset").iterdir())
    wanted = [m for f in files for m in pq.read_table(f, columns=["messages"]).column(0).to_pylist()]
    got = curate.read(f"{out}/data").examples().column("messages").to_pylist()
    found = [[{"role": t["role"], "content": t["content"]} for t in m] for m in got]
    assert found == wanted, f"{word} ({file}): the export differs from the dataset"


def one_size(n: int, folder: Path) -> dict[str, Any]:
    made = make_pool(folder / "pool", n)
    recipe = write_recipe(folder / "recipe.yaml", {"name": "e", "sources": [{"path": f"{folder}/pool/*.parquet"}]})
    manifest = run(recipe, folder / "run", "--set", "report=false")
    rows = manifest["dataset"]["rows"]
    out: dict[str, Any] = {"made": made, "rows": rows, "cases": []}
    for word, file in CASES:
        place = str(folder / "out")
        ours = measured(export, str(folder / "run"), word, file, place)
        if n <= 20_000:
            agree(str(folder / "run"), place, word, file)
        plain = measured(copy, place, file, str(folder / "copy"))
        case = {"format": word, "file": file, "export": ours, "copy": plain}
        case["share_of_copy_speed"] = round(plain["cpu_seconds"] / ours["cpu_seconds"], 2)
        case["share_of_copy_speed_wall"] = round(plain["seconds"] / ours["seconds"], 2)
        case["microseconds_a_row"] = round(ours["cpu_seconds"] / rows * 1e6, 2)
        print(n, case, flush=True)
        out["cases"].append(case)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--dir", help="folder for temporary files")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "sizes": []}
    if options.sizes is None:  # agreement first
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            one_size(20_000, Path(folder))
    for n in options.sizes or [200_000, 1_000_000]:
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            results["sizes"].append(one_size(n, Path(folder)))
    if options.sizes is None:
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
