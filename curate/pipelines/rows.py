"""Where the rows of an export come from: a run, a table or a pool, in pieces that can be read more than once."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.exceptions import InputError
from curate.pipelines.corrected import directories, new_answers, with_answers
from curate.pipelines.store import Store

if TYPE_CHECKING:
    from curate.connectors.pool import Pool

_SLICE = 4096


class Rows(ABC):
    """Examples in pieces, each of which can be read again, by columns."""

    pieces: int

    @abstractmethod
    def read(self, piece: int, columns: tuple[str, ...]) -> pa.Table:
        """Return a piece's examples, with at least these columns (a field of a turn as "messages.role")."""


class KeptRows(Rows):
    """The rows that a run kept, in the dataset's order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts = [n for n in store.list("decisions") if n.endswith(".parquet") and "-rejected" not in n]
        self.pieces = len(self._parts)
        self._corrections = directories(store)

    def read(self, piece: int, columns: tuple[str, ...]) -> pa.Table:
        name = self._parts[piece]
        paths = [c.replace("messages.", "messages.list.element.") for c in columns]
        source = self._store.path("examples", name)
        if not self._store.local:
            source = pa.BufferReader(self._store.read_bytes("examples", name))
        with pq.ParquetFile(source) as file:
            table = file.read(paths, use_threads=False)
        ledger = self._store.read_table("decisions", name, columns=["id", "decision", "stage"])
        for stage, directory in self._corrections.items():
            ours = pc.and_(pc.equal(ledger.column("decision"), "corrected"), pc.equal(ledger.column("stage"), stage))
            rows = pc.indices_nonzero(ours).to_numpy().astype(np.int64)
            if rows.size:
                ids = ledger.column("id").take(pa.array(rows)).to_pylist()
                table = with_answers(table, rows, ids, new_answers(self._store, directory, name))
        kept = pc.is_in(ledger.column("decision"), pa.array(["kept", "corrected"]))
        return table if pc.all(kept).as_py() else table.filter(kept)


class TableRows(Rows):
    """A table of examples."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.pieces = -(-table.num_rows // _SLICE)

    def read(self, piece: int, columns: tuple[str, ...]) -> pa.Table:
        names = list(dict.fromkeys(c.partition(".")[0] for c in columns))
        missing = [n for n in names if n not in self._table.column_names]
        if missing:
            raise InputError(
                f"an export reads the columns {names} of the examples; {missing} are missing, "
                f"found {self._table.column_names}."
            )
        return self._table.select(names).slice(piece * _SLICE, _SLICE)


class PoolRows(Rows):
    """What ``curate.read`` found, one slice of a file a piece."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.pieces = len(pool.slices)

    def read(self, piece: int, columns: tuple[str, ...]) -> pa.Table:
        part = dataclasses.replace(self._pool, slices=self._pool.slices[piece : piece + 1])
        return part.examples().select(list(dict.fromkeys(c.partition(".")[0] for c in columns)))
