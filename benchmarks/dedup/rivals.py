"""datasketch and datatrove on the same rows; run by ``run.py`` with the Python of an environment that has them."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

BANDS, LENGTH, SHINGLE, PLACES = 21, 6, 5, 128


def shingles(text: str) -> set[bytes]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + SHINGLE]).encode() for i in range(max(1, len(words) - SHINGLE + 1))}


def _signatures(file: str) -> tuple[list[str], Any]:
    import numpy as np
    import pyarrow.parquet as pq
    from datasketch import MinHash

    table = pq.read_table(file, columns=["id", "text"])
    made = MinHash.generator(map(shingles, table["text"].to_pylist()), num_perm=PLACES, seed=1)
    return table["id"].to_pylist(), np.stack([m.hashvalues for m in made])


def datasketch(files: list[str], workers: int) -> tuple[set[int], dict[str, float]]:
    """Signatures in processes by the documented bulk way; then row by row: query, verify, drop or insert."""
    from datasketch import LeanMinHash, MinHash, MinHashLSH

    start = time.perf_counter()
    ids: list[str] = []
    rows = []
    with ProcessPoolExecutor(workers) as pool:
        for names, values in pool.map(_signatures, files):
            ids += names
            rows.append(values)
    signed = time.perf_counter() - start
    like = MinHash(num_perm=PLACES, seed=1)
    index = MinHashLSH(num_perm=PLACES, params=(BANDS, LENGTH))
    held: dict[int, Any] = {}
    dropped: set[int] = set()
    number = 0
    for values in rows:
        for value in values:
            like.hashvalues = value
            lean = LeanMinHash(like)
            if any(held[other].jaccard(lean) >= 0.8 for other in index.query(lean)):
                dropped.add(int(ids[number]))
            else:
                index.insert(number, lean, check_duplication=False)
                held[number] = lean
            number += 1
    return dropped, {"signatures": signed, "merge": time.perf_counter() - start - signed}


def datatrove(files: list[str], workers: int, folder: Path) -> tuple[set[int], dict[str, float]]:
    """Its four stages with its local executor: signatures, buckets, clusters, filter.  Pairs are not verified."""
    import pyarrow.parquet as pq
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig

    shutil.rmtree(folder, ignore_errors=True)
    config = MinhashConfig(
        n_grams=SHINGLE, num_buckets=BANDS, hashes_per_bucket=LENGTH, hash_config=HashConfig(precision=32)
    )
    source = str(Path(files[0]).parent)

    def reader() -> Any:
        return ParquetReader(source, glob_pattern="*.parquet", text_key="text", id_key="id")

    at = {name: str(folder / name) for name in ("signatures", "buckets", "remove", "kept")}
    stages = [
        ([reader(), MinhashDedupSignature(at["signatures"], config)], len(files)),
        ([MinhashDedupBuckets(at["signatures"], at["buckets"], config=config)], BANDS),
        ([MinhashDedupCluster(at["buckets"], at["remove"], config=config)], 1),
        ([reader(), MinhashDedupFilter(at["remove"]), ParquetWriter(at["kept"])], len(files)),
    ]
    times = {}
    for name, (pipeline, tasks) in zip(("signatures", "buckets", "clusters", "filter"), stages, strict=True):
        start = time.perf_counter()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=str(folder / "logs" / name)).run()
        times[name] = time.perf_counter() - start
    seen, kept = (
        {int(i) for f in where for i in pq.read_table(f, columns=["id"])["id"].to_pylist()}
        for where in (files, sorted(map(str, Path(at["kept"]).glob("*.parquet"))))
    )
    return seen - kept, times


if __name__ == "__main__":
    word, data, workers, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    inputs = sorted(map(str, data.glob("*.parquet")))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if word == "datasketch":
        gone, seconds = datasketch(inputs, workers)
    else:
        gone, seconds = datatrove(inputs, workers, out.parent / "datatrove")
    out.write_text(json.dumps({"dropped": sorted(gone), "seconds": seconds}))
