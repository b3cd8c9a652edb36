"""The columns of a finished run, as whole arrays: what its report and its comparison with others are computed from.

Reads the columns that are asked for, part by part, and never a text.  A million rows take about 100 MB.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.exceptions import RunDirectoryError
from curate.pipelines import publish
from curate.pipelines.index import Index, Part, build_index
from curate.pipelines.store import Store
from curate.report.view import ScoreColumn

if TYPE_CHECKING:
    import polars as pl

    from curate.recipe import Recipe

T = TypeVar("T")
LABELS = ("decision", "stage", "reason", "score_name", "source", "group")
NUMBERS = ("score", "threshold", "cluster")
_READERS = 4  # parts read at a time: decompression leaves Python's lock alone
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w.-])\d[\d,.]*(?<![,.])(?![\w-])")


def kind_of(reason: str, *, rejected: bool = False) -> str:
    """Return a reason without what varies from row to row, so that like reasons count together.

    ``cluster 54, 5 of 50 kept: after the last row`` → ``cluster N, N of N kept: after the last row``; of a rejected row
    the reader's word alone.
    """
    return reason.partition(": ")[0] if rejected else _VARIES.sub(_stand_in, reason)


def _stand_in(found: re.Match[str]) -> str:
    return "‘…’" if found[0][0] in "'\"" else "N"


def score_of(run: FinishedRun, recipe: Recipe, ref: str) -> tuple[NDArray[np.float64], bool | None]:
    """Return a score column or a combination, by its full name, (pool,) in canonical order; and whether more is better.

    NaN where a row has none.
    """
    from curate.pipelines.select import combined
    from curate.pipelines.worker import Stage

    accounts = run.manifest.get("stages", {})
    stages = {n: Stage(n, recipe.scorers[n], a["fingerprint"]) for n, a in accounts.items() if n in recipe.scorers}
    return combined(run.store, run.index, recipe, stages, ref), recipe.direction(ref)


def recipe_of(store: Store, **changes: Any) -> Recipe:
    """Return the recipe that a run was made by, with other values for some of its sections."""
    import yaml

    from curate.recipe import Recipe

    base = (store.read_json(".curate", "base.json") or {}).get("base", ".")
    return Recipe.from_dict({**yaml.safe_load(store.read_bytes("recipe.yaml")), **changes}, base)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run directory whose decisions are there, and its index."""

    store: Store
    manifest: dict[str, Any]
    index: Index

    @classmethod
    def open(cls, store: Store) -> FinishedRun:
        """Find a finished run.

        Raises
        ------
        RunDirectoryError
            If there is no run, or none that has come to its decisions.
        """
        if store.read_json(".curate", "run.json") is None:
            raise RunDirectoryError(f"{store.root} is no run of curate; name the directory that 'curate run' filled.")
        manifest = store.read_json("manifest.json") or {}
        if publish.current(store) is None or not store.list("decisions"):
            raise RunDirectoryError(
                f"{store.root} holds no decisions yet (its status is {manifest.get('status', 'unknown')!r}); run it to "
                "the end first."
            )
        return cls(store, manifest, build_index(store, store.read_jsons(".curate/done/read")))

    @cached_property
    def stages(self) -> dict[str, str]:
        """Stage → its directory, of the stages whose results are there."""
        found = {kind: set(self.store.list(kind)) for kind in ("scores", "features")}
        out = {}
        for stage, account in self.manifest.get("stages", {}).items():
            key = f"{stage}-{account['fingerprint']}"
            for kind in found:
                if key in found[kind]:
                    out[stage] = f"{kind}/{key}"
        return out

    @cached_property
    def columns(self) -> dict[str, ScoreColumn]:
        """``stage.column`` → what it is, for every score column; feature vectors and texts are none."""
        out = {}
        for stage, directory in self.stages.items():
            if directory.startswith("scores/"):
                known = self.manifest["stages"][stage].get("columns", {})
                for name in self._schema(directory):
                    about = known.get(name, {})
                    full = f"{stage}.{name}"
                    out[full] = ScoreColumn(full, about.get("unit", ""), about.get("higher_is_better"))
        return out

    def _schema(self, directory: str) -> list[str]:
        table = self.store.read_table(*directory.split("/"), self.index.parts[0].name)
        return [f.name for f in table.schema if f.name not in ("id", "reason") and not pa.types.is_string(f.type)]

    def values(self, column: str) -> NDArray[np.float64]:
        """Return a score column of the pool in reading order, float64 (n,); NaN where a row was not scored."""
        stage, _, name = column.partition(".")
        return self._stage_values(stage)[name]

    @cached_property
    def _stage_values(self) -> Callable[[str], dict[str, NDArray[np.float64]]]:
        @lru_cache(maxsize=2)  # a stage's columns are read together, and asked for one after another
        def read(stage: str) -> dict[str, NDArray[np.float64]]:
            directory = self.stages[stage].split("/")
            names = [c.partition(".")[2] for c in self.columns if c.partition(".")[0] == stage]
            tables = list(self.each(lambda part: self.store.read_table(*directory, part.name, columns=names)))
            table = pa.concat_tables(tables)
            return {name: pc.cast(table.column(name), pa.float64()).to_numpy() for name in names}

        return read

    def keys(self) -> NDArray[np.uint64]:
        """Return the content keys of the pool in reading order, (n, 2): what tells a row in any run."""
        groups = sorted({part.group for part in self.index.parts})
        stored = [np.load(io.BytesIO(self.store.read_bytes(".curate", "keys", f"{g}.npy"))) for g in groups]
        return np.concatenate(stored).astype(np.uint64)[np.sort(self.index.pool)]

    def each(self, read: Callable[[Part], T]) -> Iterator[T]:
        """Yield what ``read`` makes of every part of the examples, in reading order; a few are read at a time."""
        yield from self.each_of(self.index.parts, read)

    def each_of(self, parts: Sequence[Part], read: Callable[[Part], T]) -> Iterator[T]:
        """As ``each``, of some parts."""
        with ThreadPoolExecutor(_READERS) as readers:
            yield from readers.map(read, parts)

    def dimension(self, stage: str) -> int:
        """Return the length of a feature stage's vectors."""
        return self.matrix(stage, self.index.parts[0]).shape[1]

    def vectors(self, stage: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors (len(rows), d) of rows of the pool, given by ascending reading-order numbers."""

        def read(part: Part) -> NDArray[np.float32]:
            mine = rows[np.searchsorted(rows, part.start) : np.searchsorted(rows, part.start + part.rows)]
            scored = np.cumsum(self.index.kept(part)) - 1  # copies have no vector
            return self.matrix(stage, part)[scored[mine - part.start]].astype(np.float32)

        return np.concatenate(list(self.each(read)))

    def matrix(self, stage: str, part: Part) -> NDArray[np.floating]:
        """Return the vectors of a part's rows that are no copies; of a local run as a memory map."""
        path = self.store.path(*self.stages[stage].split("/"), f"{part.stem}.npy")
        if self.store.local:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with self.store.fs.open(path, "rb") as handle:
            return np.load(handle, allow_pickle=False)

    def rejected_parts(self) -> list[str]:
        """Names of the ledger's files of rejected rows."""
        return [n for n in self.store.list("decisions") if n.endswith("-rejected.parquet")]

    def ledger(self) -> pl.DataFrame:
        """Return the ledger's columns that ``View.ledger`` tells of, without the language."""
        import polars as pl

        wanted = [*LABELS, *NUMBERS]

        def read(part: Part) -> pa.Table:
            table = _coded(self.store.read_table("decisions", part.name, columns=wanted), rejected=False)
            chars = self.store.read_table("examples", part.name, columns=["chars"])
            return table.append_column("chars", chars.column(0))

        tables = list(self.each(read))
        for name in self.rejected_parts():
            table = _coded(self.store.read_table("decisions", name, columns=wanted), rejected=True)
            tables.append(table.append_column("chars", pa.nulls(table.num_rows, pa.int64())))
        frame = pl.from_arrow(pa.concat_tables(tables).unify_dictionaries().combine_chunks())
        assert isinstance(frame, pl.DataFrame)
        return frame


def _coded(table: pa.Table, *, rejected: bool) -> pa.Table:
    """Return the table with its labels as dictionaries (a reason takes 4 bytes a row), and the kind of reason."""
    out = {}
    for name in table.column_names:
        column = table.column(name)
        out[name] = column.combine_chunks().dictionary_encode() if name in LABELS else column
    reasons = out["reason"]
    kinds = pa.array([kind_of(r, rejected=rejected) for r in reasons.dictionary.to_pylist()], pa.string())
    return pa.table({**out, "kind": kinds.take(reasons.indices).dictionary_encode()})
