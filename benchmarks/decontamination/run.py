"""How much of 21 benchmarks a pool holds, and how fast that is found, beside sets of tuples of words in plain Python.

    python benchmarks/decontamination/run.py --pool FOLDER --benchmarks FOLDER     # three minutes
    python benchmarks/decontamination/run.py --quick                               # the shipped example: does it run?

Each Parquet file of the second folder is one benchmark.  Checked before anything is timed: on a part of the pool, both
ways accuse the same rows (with ``common: 1``, as the plain one knows no wrapper).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import curate
from curate.connectors.source import Source
from curate.numerics.phrases import normalised, words_of
from curate.pipelines.benchmarks import read_benchmark
from curate.scorers import Contamination

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"


class Plain:
    """The way it is mostly done: every n-gram as a tuple of words, in one dictionary; short questions as a whole."""

    def __init__(self, items: pa.Table, n: int, words: Any) -> None:
        self.n, self.words = n, words
        self.grams: set[tuple[str, ...]] = set()
        self.whole: set[tuple[str, ...]] = set()
        for messages in items.column("messages").to_pylist():
            said = tuple(words("\n".join(m["content"] for m in messages if m["role"] == "user")))
            self.whole.add(said)
            self.grams.update(zip(*(said[i:] for i in range(n)), strict=False))

    def hit(self, messages: list[dict[str, Any]]) -> bool:
        texts = [m["content"] for m in messages]
        asked = [m["content"] for m in messages[:-1] if m["role"] == "user"]
        for text in [*texts, "\n".join(asked)]:
            said = tuple(self.words(text))
            if said in self.whole or not self.grams.isdisjoint(zip(*(said[i:] for i in range(self.n)), strict=False)):
                return True
        return False


def fitted(items: pa.Table, **parameters: Any) -> tuple[Contamination, float]:
    began = time.perf_counter()
    scorer = Contamination(**parameters)
    scorer.load(scorer.fit(items))
    return scorer, time.perf_counter() - began


def search(scorer: Contamination, batches: list[pa.Table]) -> tuple[np.ndarray, list[str], list[str], float]:
    """Return overlap, benchmark and span of every row, and the seconds it took."""
    began = time.perf_counter()
    scored = pa.concat_tables([scorer.score(batch) for batch in batches])
    seconds = time.perf_counter() - began
    return scored["overlap"].to_numpy(), scored["benchmark"].to_pylist(), scored["span"].to_pylist(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, default=EXAMPLES / "pool")
    parser.add_argument("--benchmarks", type=Path, default=EXAMPLES / "targets")
    parser.add_argument("--quick", action="store_true", help="the shipped example; saves nothing")
    parser.add_argument("--out", type=Path, default=HERE / "run.json")
    given = parser.parse_args()
    load = os.getloadavg()[0]

    sets = {path.stem: Source(path=str(path)) for path in sorted(given.benchmarks.glob("*.parquet"))}
    tables = {name: read_benchmark(name, source)[0] for name, source in sets.items()}
    items = pa.concat_tables(list(tables.values()))
    pool = curate.read(str(given.pool)).examples().select(["id", "source", "messages"])
    batches = [pool.slice(start, 2048) for start in range(0, pool.num_rows, 2048)]
    sources = pool["source"].to_pylist()
    print(f"{pool.num_rows:,} rows, {items.num_rows:,} items of {len(tables)} benchmarks")

    # Agreement, with our words on both sides (of a row's turns up to its last answer, which these end with).
    part = pool.slice(0, 3000 if given.quick else 10_000)
    plain = Plain(items, 13, lambda text: words_of(normalised(text)))
    ours = search(fitted(items, common=1.0)[0], [part])[0] > 0
    theirs = np.array([plain.hit(messages) for messages in part["messages"].to_pylist()])
    wrong = int(np.count_nonzero(ours != theirs))
    # Ours compares every character where a benchmark has two questions of the same words: fewer can be accused.
    assert not (ours & ~theirs).any() and wrong <= 0.001 * part.num_rows, f"{wrong} rows differ"

    simple = Plain(items, 13, lambda text: re.findall(r"\w+", text.lower()))
    few = part["messages"].to_pylist()
    began = time.perf_counter()
    for messages in few:
        simple.hit(messages)
    plain_rate = len(few) / (time.perf_counter() - began)

    out: dict[str, Any] = {
        "pool_rows": pool.num_rows,
        "items": items.num_rows,
        "rows_that_differ_from_the_plain_way": wrong,
        "plain_python_rows_per_second": round(plain_rate),
        "settings": [],
    }
    for n, common in ((13, 0.01), (10, 0.01), (8, 0.01), (13, 1.0)):
        scorer, seconds_to_fit = fitted(items, n=n, common=common)
        overlap, names, spans, seconds = search(scorer, batches)
        hit = np.flatnonzero(overlap)
        found = {}
        for name, table in tables.items():
            rows = [i for i in hit.tolist() if names[i] == name]
            worst = max(rows, key=lambda i: overlap[i], default=None)
            found[name] = {
                "items": table.num_rows,
                "rows": len(rows),
                "by_source": dict(Counter(sources[i] for i in rows).most_common(4)),
                "largest": None if worst is None else [round(float(overlap[worst]), 3), spans[worst]],
            }
        rate = round(pool.num_rows / seconds)
        out["settings"].append(
            {
                "n": n,
                "common": common,
                "rows_found": int(hit.size),
                "fit_seconds": round(seconds_to_fit, 3),
                "rows_per_second": rate,
                "benchmarks": found,
            }
        )
        print(f"n={n} common={common}: {hit.size:,} rows, {rate:,} rows/s, fitted in {seconds_to_fit:.2f} s")
        if (n, common) == (13, 0.01):
            for name, one in found.items():
                print(f"  {name}: {one['rows']} {one['by_source']} {one['largest'] or ''}")
    print(f"plain Python: {plain_rate:,.0f} rows/s")
    out["machine"] = {"cores": os.cpu_count(), "processor": platform.machine(), "load_before": round(load, 2)}
    out["versions"] = {"python": platform.python_version(), "numpy": np.__version__, "pyarrow": pa.__version__}
    if not given.quick:
        given.out.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
