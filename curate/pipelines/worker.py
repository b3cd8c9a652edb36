"""What happens inside a worker: one shard in, one file out.

A scorer that was opened stays open, keyed by its stage's fingerprint, so a model loads once per worker.  When a stage
with another model comes, the one before is closed: two models never share a worker's memory.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.base import Scorer
from curate.pipelines.store import Store

_OPEN: dict[str, Scorer] = {}


@dataclass(frozen=True)
class Stage:
    """A scorer under the name that the recipe gives it, and the fingerprint of all its numbers depend on."""

    name: str
    scorer: Scorer
    fingerprint: str
    fitted: bool = False

    @property
    def key(self) -> str:
        return f"{self.name}-{self.fingerprint}"

    @property
    def wide(self) -> bool:
        return self.scorer.columns[0].dtype.startswith("float32[")

    @property
    def directory(self) -> str:
        return f"{'features' if self.wide else 'scores'}/{self.key}"


def opened(store: Store, stage: Stage) -> Scorer:
    """Return the stage's scorer, opened; load it on first use in this worker."""
    if stage.key not in _OPEN:
        if stage.scorer.resource == "model":
            for key in [k for k, s in _OPEN.items() if s.resource == "model"]:
                _OPEN.pop(key).close()
        scorer = stage.scorer
        if stage.fitted:
            held = io.BytesIO(store.read_bytes(".curate", "fit", f"{stage.key}.npz"))
            with np.load(held, allow_pickle=False) as state:
                scorer.load({k: state[k] for k in state.files})
        scorer.open()
        _OPEN[stage.key] = scorer
    return _OPEN[stage.key]


def close_scorers() -> None:
    """Close every scorer that this worker holds."""
    while _OPEN:
        _OPEN.popitem()[1].close()


def fit(store: Store, stage: Stage, rows: dict[str, list[int]]) -> dict[str, Any]:
    """Fit a scorer on chosen rows (part name → row numbers), in the order of their content keys; keep the state."""
    began = time.perf_counter()
    columns = list(dict.fromkeys(("content_key", *stage.scorer.reads)))
    tables = [store.read_table("examples", name, columns=columns).take(pa.array(at)) for name, at in rows.items()]
    sample = pa.concat_tables(tables)
    sample = sample.sort_by("content_key").select(list(stage.scorer.reads)).combine_chunks()
    state = stage.scorer.fit(sample)
    with store.writing(".curate", "fit", f"{stage.key}.npz") as handle:
        np.savez(handle, **state)  # type: ignore[arg-type]
    return {"rows": sample.num_rows, "seconds": round(time.perf_counter() - began, 3)}


def score(store: Store, stage: Stage, part: str, kept: bytes, rows: int, digest: str) -> dict[str, Any]:
    """Score the rows of one part that are no copies; write the sidecar, then the mark that it is finished."""
    began = time.perf_counter()
    stem = part.removesuffix(".parquet")
    store.append_event({"stage": stage.key, "part": stem, "event": "start", "digest": digest})
    mask = np.unpackbits(np.frombuffer(kept, dtype=np.uint8), count=rows).astype(bool)
    table = store.read_table("examples", part, columns=list(dict.fromkeys(("id", *stage.scorer.reads))))
    if not mask.all():
        table = table.filter(pa.array(mask))
    scorer = opened(store, stage)
    loaded = time.perf_counter()
    scored = scorer.score(table.select(list(scorer.reads)))
    ids = pa.table({"id": table.column("id")})
    tokens = _tokens(scorer, scored)
    if stage.wide:
        vectors = scored.column(0).combine_chunks()
        flat = vectors.values.to_numpy(zero_copy_only=False)[vectors.offset * vectors.type.list_size :]
        matrix = flat[: len(vectors) * vectors.type.list_size].reshape(len(vectors), -1)
        missing = np.asarray(vectors.is_null())
        if missing.any():
            matrix = np.where(missing[:, None], np.float32("nan"), matrix)
        with store.writing(*stage.directory.split("/"), f"{stem}.npy") as handle:
            np.save(handle, np.ascontiguousarray(matrix, dtype=np.float32), allow_pickle=False)
        out = ids.append_column("reason", scored.column("reason"))
    else:
        out = ids
        for name in scored.column_names:
            out = out.append_column(name, scored.column(name))
    store.write_table(out.combine_chunks(), *stage.directory.split("/"), part)
    reasons = [r for r in scored.column("reason").to_pylist() if r is not None]
    done = {
        "digest": digest,
        "rows": table.num_rows,
        "unscored": len(reasons),
        "tokens": tokens,
        "seconds": round(time.perf_counter() - loaded, 3),
        "loading": round(loaded - began, 3),
    }
    store.write_json(done, ".curate", "done", stage.key, f"{stem}.json")
    store.append_event({"stage": stage.key, "part": stem, "event": "done", "digest": digest, "rows": table.num_rows})
    return done


def _tokens(scorer: Scorer, scored: pa.Table) -> int | None:
    """Tokens scored, for the progress line: the sum of the scorer's last column that counts tokens."""
    import pyarrow.compute as pc

    names = [c.name for c in scorer.columns if c.unit == "tokens"]
    return int(pc.sum(scored.column(names[-1])).as_py() or 0) if names else None
