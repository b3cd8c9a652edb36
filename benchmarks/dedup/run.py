"""Near-duplicates among a million rows: rows per second and memory, beside datasketch and datatrove.

    python benchmarks/dedup/run.py --folder DIR --rivals PYTHON        # about 40 minutes on two cores; 6 GB in DIR
    python benchmarks/dedup/run.py --folder DIR --rivals PYTHON --quick  # 8,000 rows: does it run?

PYTHON is that of an environment with datasketch and datatrove[processing]; ``--pool`` names a pool of real rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.dedup.data import quality, write  # noqa: E402
from benchmarks.pipeline.common import machine  # noqa: E402

THRESHOLD = 0.8
RECALL = "recall, similarity from the threshold on"
RECIPE = """
sources: [{{path: "{data}"{more}}}]
scorers: {{signatures: {{use: minhash}}}}
select: [{{use: near-duplicates, features: signatures, threshold: 0.8}}]
"""


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Run a command to its end; return its seconds, and the highest memory of its processes together, in MiB.

    "own" leaves out pages of files that are mapped, which the system may drop; shared pages count once a process.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    with log.open("w") as out:
        job = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        peak, own = 0, 0
        while job.poll() is None:
            told = []
            try:
                processes = [psutil.Process(job.pid)]
                processes += processes[0].children(recursive=True)
                for process in processes:
                    told.append(process.memory_info())
            except psutil.Error:
                pass
            peak = max(peak, sum(m.rss for m in told))
            own = max(own, sum(m.rss - m.shared for m in told))
            time.sleep(0.1)
    if job.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mib": round(peak / 2**20),
        "own_mib": round(own / 2**20),
    }


def run(folder: Path, data: str, n: int, *, made_up: bool = True) -> tuple[set[int], dict[str, Any]]:
    """``curate run``: from Parquet files to kept rows, with the ledger."""
    import pyarrow.parquet as pq

    recipe, where = folder / "recipe.yaml", folder / "run"
    shutil.rmtree(where, ignore_errors=True)
    recipe.write_text(RECIPE.format(data=data, more=", id: id" if made_up else ""))
    command = [sys.executable, "-m", "curate.cli", "run", str(recipe), "--run", str(where)]
    told: dict[str, Any] = measured(command, folder / "run.log")
    decisions = pq.read_table(str(where / "decisions"), columns=["id", "decision"]).to_pydict()
    gone = {int(i) for i, d in zip(*decisions.values(), strict=True) if made_up and d != "kept"}
    steps = json.loads((where / "manifest.json").read_text())["select"]
    return gone, {**told, "rows_per_second": round(n / told["seconds"]), "account": steps[0]["account"]}


def _sign(file: str) -> str:
    """One file's signatures, as a run's worker makes them, beside the file."""
    import pyarrow.parquet as pq

    from curate.scorers import MinHash

    source = pq.ParquetFile(file)
    parts = []
    for batch in source.iter_batches(2_000, columns=["messages"]):
        import pyarrow as pa

        column = MinHash().score(pa.table({"messages": _typed(batch["messages"])}))["signature"].combine_chunks()
        parts.append(column.values.to_numpy().reshape(-1, 128))
    np.save(file + ".npy", np.concatenate(parts))
    return file + ".npy"


def _typed(messages: Any) -> Any:
    """Messages as the pipeline stores them."""
    import pyarrow as pa

    from curate.example import MESSAGE_TYPE

    turns = messages.flatten()
    fields = [
        turns.field(f.name) if turns.type.get_field_index(f.name) >= 0 else pa.nulls(len(turns), f.type)
        for f in MESSAGE_TYPE
    ]
    return pa.ListArray.from_arrays(messages.offsets, pa.StructArray.from_arrays(fields, fields=list(MESSAGE_TYPE)))


def child(word: str, data: Path) -> None:
    """The two halves by themselves, each measured as a process."""
    if word == "sign":
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(2) as pool:
            list(pool.map(_sign, sorted(map(str, data.glob("*.parquet")))))
        return
    from curate.selectors import NearDuplicates

    parts = [np.load(f, mmap_mode="r") for f in sorted(data.glob("*.parquet.npy"))]
    n = sum(map(len, parts))
    if not (data / "all.npy").exists():
        whole = np.lib.format.open_memmap(data / "all.npy", mode="w+", dtype=np.uint32, shape=(n, 128))
        at = 0
        for part in parts:
            whole[at : at + len(part)] = part
            at += len(part)
        whole.flush()
        del whole
    x = np.load(data / "all.npy", mmap_mode="r")
    start = time.perf_counter()
    chosen = NearDuplicates(threshold=THRESHOLD).select(x)
    seconds = time.perf_counter() - start
    dropped = np.flatnonzero(chosen.instead >= 0).tolist()
    (data / "merge.json").write_text(json.dumps({"dropped": dropped, "seconds": seconds, "account": chosen.account}))


def ours(folder: Path, data: Path, n: int, planted: list[Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    this = [sys.executable, str(HERE / "run.py"), "--child"]
    sign = measured([*this, "sign", str(data)], folder / "sign.log")
    measured([*this, "merge", str(data)], folder / "merge.log")  # writes the array
    merge = measured([*this, "merge", str(data)], folder / "merge.log")
    told = json.loads((data / "merge.json").read_text())
    out["arrays"] = {
        "signatures": sign,
        "merge": {**merge, "select_seconds": round(told["seconds"], 1)},
        "rows_per_second": round(n / (sign["seconds"] + told["seconds"])),
        **quality(set(told["dropped"]), planted, THRESHOLD),
    }
    gone, result = run(folder, f"{data}/*.parquet", n)
    out["curate run"] = {**result, **quality(gone, planted, THRESHOLD)}
    return out


def table(results: dict[str, Any]) -> str:
    """Return the numbers as the README has them."""
    lines = ["| rows | | seconds | rows/s | own memory, MiB | recall | clear of the threshold | precision |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for rows, told in results.items():
        for name, r in told.items() if rows.endswith(" rows") else ():
            if name == "planted":
                continue
            parts = [r["signatures"], r["merge"]] if name == "arrays" else [r]
            seconds = parts[0]["seconds"] + (r["merge"]["select_seconds"] if name == "arrays" else 0)
            lines.append(
                f"| {int(rows.split()[0]):,} | {name} | {seconds:.0f} | {r['rows_per_second']:,} | "
                f"{', '.join(str(part['own_mib']) for part in parts)} | {r[RECALL]:.3f} | "
                f"{r['recall, at least 0.05 above it']:.3f} | {r['precision']:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--folder", type=Path, required="--child" not in sys.argv, help="for data, runs and results")
    ask.add_argument("--rivals", help="Python of an environment with datasketch and datatrove")
    ask.add_argument("--pool", help="a pool of real rows, as a glob")
    ask.add_argument("--sizes", type=int, nargs="+", default=[200_000, 1_000_000])
    ask.add_argument("--rivals-up-to", type=int, default=200_000, help="rows that the rivals are given at most")
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = ask.parse_args()
    if given.child:
        child(given.child[0], Path(given.child[1]))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "threshold": THRESHOLD}
    for n in [8_000] if given.quick else given.sizes:
        data = given.folder / f"rows-{n}"
        write(data, n)
        planted = json.loads((data / "planted.json").read_text())
        told = results[f"{n} rows"] = {"planted": len(planted), **ours(given.folder, data, n, planted)}
        for word in ("datasketch", "datatrove") if given.rivals and n <= given.rivals_up_to else ():
            out = given.folder / f"{word}.json"
            command = [given.rivals, str(HERE / "rivals.py"), word, str(data), "2", str(out)]
            used: dict[str, Any] = measured(command, given.folder / f"{word}.log")
            answer = json.loads(out.read_text())
            told[word] = {
                **used,
                "rows_per_second": round(n / used["seconds"]),
                "stages": {k: round(v, 1) for k, v in answer["seconds"].items()},
                **quality(set(answer["dropped"]), planted, THRESHOLD),
            }
        print(json.dumps(told, indent=1), flush=True)
    if given.pool:
        results["pool"] = run(given.folder, given.pool, 1, made_up=False)[1]
        results["pool"].pop("rows_per_second")
        print(json.dumps(results["pool"], indent=1), flush=True)
    print(table(results))
    if not given.quick:
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
