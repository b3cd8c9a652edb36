"""What every selector keeps of a pool: how well it covers it, how mixed it is, how repetitive, how long.

    python benchmarks/composition/run.py POOL --cache DIR              # POOL: files as curate.read takes them
    python benchmarks/composition/run.py POOL --cache DIR --minilm     # judged by sentence vectors too: an hour more
    python benchmarks/composition/run.py POOL --cache DIR --quick      # 4,000 rows, nothing saved: does it run?

Each selector keeps a tenth, by the vectors of ``hashed-ngrams`` where it goes by vectors.  Selectors that go by targets
get those of ``examples/targets``.  A result is saved as soon as it is there, and a second run makes only those that are
missing (``--again`` makes all).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import curate
from curate import Quota, registry
from curate.numerics.composition import mixture, nearest_kept
from curate.numerics.kmeans import kmeans
from curate.scorers import BM25, DSIR, HashedNgrams, MinHash, MiniLM
from curate.scorers._texts import prompts_and_responses
from curate.selectors import (
    BIDS,
    KMQ,
    LESS,
    MIG,
    BestPerPrompt,
    ExactDuplicates,
    FacilityLocation,
    KCenter,
    LogDet,
    Longest,
    NearDuplicates,
    Random,
    ReprFilter,
    RoundRobin,
    Sample,
    SemDeDup,
    TopK,
)

HERE = Path(__file__).resolve().parent
TARGETS = HERE.parents[1] / "examples/targets"
SAME_AS = {
    "threshold": "cuts the order of top-k",
    "quantile": "cuts the order of top-k",
    "iterative-kmq": "kmq, but for what it learns by training between its rounds",
}


class Pool:
    """Rows, and what selectors are given of them: each array made once and kept in the cache folder."""

    def __init__(self, path: str, rows: int | None, cache: Path) -> None:
        table = curate.read(path).examples()
        if rows is not None and rows < table.num_rows:
            table = table.take(np.sort(np.random.default_rng(0).choice(table.num_rows, rows, replace=False)))
        self.table, self.n = table.combine_chunks(), table.num_rows
        self.cache = cache / f"{self.n}-rows"
        self.cache.mkdir(parents=True, exist_ok=True)
        prompts, responses, _ = prompts_and_responses(self.table)
        self.prompts = np.unique(np.array(prompts, dtype=object), return_inverse=True)[1]
        self.chars = np.array([len(r) for r in responses], dtype=np.float64)
        self.sources = np.array(self.table["source"].to_pylist(), dtype=object)
        self.targets = pa.concat_tables(
            curate.read(str(path)).examples().append_column("task", pa.array([path.stem] * rows))
            for path in sorted(TARGETS.glob("*.parquet"))
            for rows in [curate.read(str(path)).examples().num_rows]
        )
        self.tasks = self.targets["task"].to_pylist()

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array from the cache, as a memory map; made where it is not there."""
        path = self.cache / f"{name}.npy"
        if not path.exists():
            start = time.perf_counter()
            np.save(path, make())
            print(f"made {name} in {time.perf_counter() - start:.0f} s", flush=True)
        return np.load(path, mmap_mode="r")

    def scored(self, scorer: Any, table: pa.Table | None = None, batch: int = 2048) -> np.ndarray:
        """Return the first column of a scorer, (n,) or (n, d); 0 where a row is null."""
        table = self.table if table is None else table
        parts = [scorer.score(table.slice(i, batch)).column(0) for i in range(0, table.num_rows, batch)]
        column = pa.concat_arrays([chunk for part in parts for chunk in part.chunks])
        if not pa.types.is_fixed_size_list(column.type):
            return np.nan_to_num(column.to_numpy(zero_copy_only=False))
        values = column.flatten().to_numpy(zero_copy_only=False)
        out = np.zeros((len(column), column.type.list_size), dtype=values.dtype)
        out[np.asarray(column.is_valid())] = values.reshape(-1, column.type.list_size)
        return out

    def ngrams(self) -> HashedNgrams:
        state = self.cache / "ngrams-state.npz"
        scorer = HashedNgrams(text="both")
        if not state.exists():
            draw = np.random.default_rng(1).permutation(self.n)[: scorer.fit_rows]
            np.savez(state, **scorer.fit(self.table.take(np.sort(draw))))
        scorer.load(np.load(state))
        return scorer

    def towards_targets(self, scorer: Any) -> np.ndarray:
        """Return the scores of a scorer that learns from the pool and the targets."""
        draw = np.sort(np.random.default_rng(1).permutation(self.n)[: scorer.fit_rows])
        pool, told = self.table.take(draw).select(["messages"]), self.targets.select(["messages"])
        pool = pool.append_column("group", pa.nulls(pool.num_rows, pa.string()))
        pool = pool.append_column("drawn", pa.array([False] * pool.num_rows))
        told = told.append_column("group", pa.array(self.tasks)).append_column(
            "drawn", pa.array([True] * len(self.tasks))
        )
        scorer.load(scorer.fit(pa.concat_tables([pool, told])))
        return self.scored(scorer)


def ways(pool: Pool) -> dict[str, Callable[[], Any]]:
    """Return, by name, the call that chooses a tenth."""
    x = pool.kept("ngrams", lambda: pool.scored(pool.ngrams()))
    quality = pool.chars

    def signatures() -> np.ndarray:
        return pool.kept("minhash", lambda: pool.scored(MinHash()))

    def similarity() -> np.ndarray:
        return pool.kept("similarity", lambda: np.asarray(x) @ pool.scored(pool.ngrams(), pool.targets).T)

    def dsir() -> np.ndarray:
        return pool.kept("dsir", lambda: pool.towards_targets(DSIR(overlap="keep")))

    def bm25() -> np.ndarray:
        return pool.kept("bm25", lambda: pool.towards_targets(BM25(overlap="keep")))

    def digests() -> np.ndarray:
        from curate.scorers import TextDigest

        return pool.kept("digests", lambda: pool.scored(TextDigest()))

    def turns(call: Any) -> Any:
        return call.select(similarity(), "10%")

    n, ten = pool.n, "10%"
    by_source = {"quota_groups": pool.sources}
    return {
        "random": lambda: Random().select(n, ten),
        "random, source-balanced": lambda: Random().select(n, ten, quota=Quota(), **by_source),
        "random, tempered": lambda: Random().select(n, ten, quota=Quota(shares="tempered"), **by_source),
        "random, every source 2% to 15%": lambda: Random().select(
            n, ten, quota=Quota(shares="proportional", floor="2%", ceiling="15%", short="take"), **by_source
        ),
        "longest": lambda: Longest().select(pool.chars, ten),
        "best-per-prompt, length": lambda: BestPerPrompt().select(pool.chars, ten, groups=pool.prompts),
        "top-k, DSIR": lambda: TopK().select(dsir(), ten),
        "sample, DSIR": lambda: Sample().select(dsir(), ten),
        "round-robin, BM25": lambda: RoundRobin(targets=pool.tasks).select(bm25(), ten),
        "less": lambda: turns(LESS(targets=pool.tasks)),
        "bids": lambda: turns(BIDS()),
        "round-robin": lambda: turns(RoundRobin(targets=pool.tasks)),
        "exact-duplicates": lambda: ExactDuplicates().select(digests(), ten),
        "near-duplicates": lambda: NearDuplicates().select(signatures(), ten),
        "sem-dedup": lambda: SemDeDup().select(x, ten),
        "kmq": lambda: KMQ().select(x, ten),
        "kmq, length": lambda: KMQ().select(x, ten, quality=quality),
        "k-center": lambda: KCenter().select(x, ten),
        "repr-filter, length": lambda: ReprFilter().select(x, ten, quality=quality),
        "facility-location": lambda: FacilityLocation().select(x, ten),
        "log-det": lambda: LogDet().select(x, ten),
        "mig, length": lambda: MIG().select(x, ten, quality=quality),
        "mig": lambda: MIG().select(x, ten),
    }


def judge(pool: Pool, kept: np.ndarray, spaces: dict[str, np.ndarray], clusters: np.ndarray) -> dict[str, Any]:
    """Return what a selection is made of."""
    out: dict[str, Any] = {"rows": int(kept.size)}
    for name, x in spaces.items():
        out[f"coverage, {name}"] = round(float((1 - nearest_kept(x, kept).astype(np.float64)).mean()), 4)
        out[f"near-duplicates, {name}"] = round(float((nearest_kept(x, kept, apart=True) > 0.95).mean()), 4)
    signatures = pool.kept("minhash", lambda: pool.scored(MinHash()))
    copies = NearDuplicates().select(np.asarray(signatures[np.sort(kept)]))
    out["near-duplicates, minhash"] = round(1 - len(copies) / kept.size, 4)
    out["effective sources"] = mixture(np.unique(pool.sources[kept], return_counts=True)[1])["effective"]
    out["effective clusters"] = mixture(np.bincount(clusters[kept]))["effective"]
    chars = pool.chars[kept]
    out["mean characters"], out["median characters"] = round(float(chars.mean())), round(float(np.median(chars)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", help="files of the pool, as curate.read takes them")
    parser.add_argument("--cache", type=Path, required=True, help="folder for vectors and signatures")
    parser.add_argument("--rows", type=int, help="a draw of so many rows")
    parser.add_argument("--minilm", action="store_true", help="judge by the vectors of minilm too")
    parser.add_argument("--only", help="names of selections, separated by semicolons")
    parser.add_argument("--again", action="store_true", help="make results that are there once more")
    parser.add_argument("--quick", action="store_true", help="4,000 rows, and nothing is saved")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="where the results are saved")
    given = parser.parse_args()
    pool = Pool(given.pool, 4000 if given.quick else given.rows, given.cache)
    calls = ways(pool)
    named = {name.partition(",")[0] for name in calls} | set(SAME_AS)
    missing = sorted(set(registry.BUILT_IN["selectors"]) - named)
    assert not missing, f"no selection by {missing}"

    spaces = {"n-grams": pool.kept("ngrams", lambda: pool.scored(pool.ngrams()))}
    if given.minilm:
        encoder = MiniLM(dtype="bfloat16")
        spaces["minilm"] = pool.kept("minilm", lambda: pool.scored(encoder))
        encoder.close()
    count = min(1024, pool.n // 64)
    clusters = pool.kept("clusters", lambda: kmeans(spaces["n-grams"], count).labels)

    file = given.out
    results: dict[str, Any] = {}
    if file.exists() and not given.quick:
        results = json.loads(file.read_text(encoding="utf-8"))
    settings = {"rows": pool.n, "clusters": count, "spaces": list(spaces)}
    if given.again or results.get("settings") != settings:
        results = {}
    results["settings"] = settings
    results["machine"] = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "load before": round(os.getloadavg()[0], 1),
        "numpy": np.__version__,
        "curate": curate.__version__,
    }
    rows = results.setdefault("selections", {})
    rows.setdefault("pool", pool_itself(pool, clusters))
    for name, call in calls.items():
        if name in rows or (given.only and name not in given.only.split(";")):
            continue
        start = time.perf_counter()
        try:
            chosen = call()
        except curate.CurateError as error:  # a budget that it cannot fill, by its own thresholds
            rows[name] = {"refused": str(error)}
        else:
            seconds = time.perf_counter() - start
            rows[name] = {**judge(pool, chosen.indices, spaces, clusters), "seconds": round(seconds, 1)}
        print(name, rows[name], flush=True)
        if not given.quick:
            file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if given.out == HERE / "results.json" and not given.quick:
        readme = HERE / "README.md"
        before, mark, rest = readme.read_text(encoding="utf-8").partition("<!-- results -->\n")
        after = rest.partition("<!-- /results -->")[2]
        readme.write_text(f"{before}{mark}\n{table(rows)}\n\n<!-- /results -->{after}", encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(table(rows), f"\npeak memory {peak:,} MiB")


def pool_itself(pool: Pool, clusters: np.ndarray) -> dict[str, Any]:
    return {
        "rows": pool.n,
        "effective sources": mixture(np.unique(pool.sources, return_counts=True)[1])["effective"],
        "effective clusters": mixture(np.bincount(clusters))["effective"],
        "mean characters": round(float(pool.chars.mean())),
        "median characters": round(float(np.median(pool.chars))),
    }


def table(rows: dict[str, Any]) -> str:
    """Return the results as the README's table."""
    last = list(rows.values())[-1]
    columns = [c for c in last if c not in ("rows", "refused")]
    lines = ["| " + " | ".join(["selection", *columns]) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, row in rows.items():
        cells = [_cell(column, row.get(column)) for column in columns]
        if "refused" in row:
            cells[0] = row["refused"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column.startswith("near"):
        return f"{value:.1%}"
    if column.startswith("effective"):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
