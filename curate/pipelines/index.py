"""Which example is which: exact duplicates, and the order that everything after works in.

Two orders matter.  *Reading order* (sources as the recipe lists them, files by path, rows as they stand) decides which
copy of a duplicate represents it: the first.  *Canonical order* (by content key) is the order in which selectors see
the pool: it depends on nothing but content, so no sharding and no worker count can change a choice, and a tie that
"goes to the lowest row" goes to a row that is lowest by a hash, not to whatever file came first.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.exceptions import SchemaError
from curate.fingerprint import fingerprint
from curate.pipelines.store import Store

_BLOCK = 2**16
"""Rows whose temporaries exist at once."""


@dataclass(frozen=True)
class Part:
    """One file of examples."""

    name: str
    group: str
    start: int
    """Reading-order number of its first row."""
    rows: int
    digest: str
    chars: int

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".parquet")


@dataclass(frozen=True)
class Index:
    parts: tuple[Part, ...]
    pool: NDArray[np.int64]
    """(n,) reading-order numbers of the examples that are no duplicates, in canonical order."""
    representative: NDArray[np.int64]
    """(rows,) for each example in reading order, the number of what represents it: itself, or what it copies."""
    fields: tuple[str, ...]
    tools: bool

    @property
    def n(self) -> int:
        return self.pool.size

    @property
    def rows(self) -> int:
        return self.representative.size

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """(rows,) canonical place of each example in reading order; -1 for a copy."""
        place = np.full(self.rows, -1, dtype=np.int64)
        place[self.pool] = np.arange(self.n)
        return place

    def kept(self, part: Part) -> NDArray[np.bool_]:
        """(part.rows,) False for copies."""
        span = np.arange(part.start, part.start + part.rows)
        return self.representative[part.start : part.start + part.rows] == span

    def digest(self, part: Part) -> str:
        """Digest of the rows of a part that are scored."""
        return fingerprint(part.digest, np.packbits(self.kept(part)).tobytes().hex())

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([(p.name, self.digest(p)) for p in self.parts])


def build_index(store: Store, accounts: dict[str, dict[str, Any]]) -> Index:
    """Find exact duplicates over all parts and order the pool, from the keys alone (24 bytes a row).

    Raises
    ------
    SchemaError
        If two different conversations carry the same id of the user's.
    """
    parts: list[Part] = []
    fields: set[str] = set()
    tools = own_ids = False
    start = 0
    groups = sorted(accounts)
    key = np.empty((sum(part["rows"] for g in groups for part in accounts[g]["parts"]), 2), dtype=np.uint64)
    stored = store.read_many(".curate/keys", [f"{group}.npy" for group in groups])
    for group, data in zip(groups, stored, strict=True):
        keys = np.load(io.BytesIO(data), allow_pickle=False)
        key[start : start + len(keys)] = keys
        for part in accounts[group]["parts"]:
            parts.append(Part(part["name"], group, start, part["rows"], part["digest"], part["chars"]))
            start += part["rows"]
            fields.update(part["fields"])
            tools |= part["tools"]
            own_ids |= part["own_ids"]
    order = np.lexsort((key[:, 1], key[:, 0]))  # stable: copies stay in reading order
    first = np.ones(order.size, dtype=bool)
    for lo in range(1, order.size, _BLOCK):
        here = order[lo - 1 : lo + _BLOCK]
        first[lo : lo + _BLOCK] = (key[here[1:]] != key[here[:-1]]).any(axis=1)
    del key
    pool = order[first]
    representative = np.empty(order.size, dtype=np.int64)
    ahead = 0
    for lo in range(0, order.size, _BLOCK):
        nth = ahead + np.cumsum(first[lo : lo + _BLOCK])
        representative[order[lo : lo + _BLOCK]] = pool[nth - 1]
        ahead = int(nth[-1])
    index = Index(tuple(parts), pool, representative, tuple(f for f in sorted(fields)), tools)
    if own_ids:
        _check_ids(store, index)
    return index


def _check_ids(store: Store, index: Index) -> None:
    """An id names one conversation: refuse a pool in which one id stands for two."""
    import polars as pl

    frames = []
    tables = store.read_tables("examples", [p.name for p in index.parts], ["id", "file", "row"])
    for part, ids in zip(index.parts, tables, strict=True):
        frames.append(pl.DataFrame(ids.filter(pa.array(index.kept(part)))))
    pool = pl.concat(frames)
    clash = pool.filter(pl.col("id").is_duplicated()).sort("id", maintain_order=True)
    if clash.height:
        a, b = clash.row(0), clash.row(1)
        raise SchemaError(
            f"the id {a[0]!r} names two different conversations ({a[1]} row {a[2]}, {b[1]} row {b[2]}); "
            f"{clash['id'].n_unique()} ids clash. Leave 'id:' out of the source to use ids made from content."
        )
