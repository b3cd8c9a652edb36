from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from curate.fingerprint import fingerprint, table_digest
from curate.pipelines.index import Index, build_index
from curate.pipelines.ingest import key_array
from curate.pipelines.store import Store


def index_of(keys: list[int], cuts: list[int], store: Store) -> Index:
    """Build an index over parts that hold these keys, cut at these places."""
    accounts: dict[str, Any] = {}
    edges = [0, *sorted(cuts), len(keys)]
    for g, (lo, hi) in enumerate(itertools.pairwise(edges)):
        array = np.array([[k // 3, k] for k in keys[lo:hi]], dtype=">u8").reshape(-1, 2)
        with store.writing(".curate", "keys", f"{g:05d}.npy") as handle:
            np.save(handle, array)
        part = {
            "name": f"part-{g:05d}-0000.parquet",
            "rows": hi - lo,
            "digest": str(keys[lo:hi]),
            "chars": 0,
            "fields": [],
            "tools": False,
            "own_ids": False,
        }
        accounts[f"{g:05d}"] = {"parts": [part] if hi > lo else []}
    return build_index(store, accounts)


@given(keys=st.lists(st.integers(0, 12), max_size=40), data=st.data())
def test_the_first_copy_represents_and_the_pool_is_in_key_order(keys: list[int], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(keys)), max_size=4))
    index = index_of(keys, cuts, Store("memory://index"))
    first = {k: i for i, k in reversed(list(enumerate(keys)))}
    assert [keys[i] for i in index.pool] == sorted(set(keys))
    assert index.pool.tolist() == [first[k] for k in sorted(set(keys))]
    assert index.representative.tolist() == [first[k] for k in keys]
    assert [index.place[i] for i in index.pool] == list(range(index.n))
    assert sum(int(index.kept(p).sum()) for p in index.parts) == index.n == (index.place >= 0).sum()


@given(keys=st.lists(st.integers(0, 30), max_size=40), data=st.data())
def test_shards_change_no_choice(keys: list[int], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(keys)), max_size=6))
    one = index_of(keys, [], Store("memory://index"))
    many = index_of(keys, cuts, Store("memory://index"))
    np.testing.assert_array_equal(one.pool, many.pool)
    np.testing.assert_array_equal(one.representative, many.representative)


def test_keys_order_like_bytes() -> None:
    raw = [bytes([255] * 16), bytes(16), bytes([0] * 15 + [1]), bytes([1] + [0] * 15)]
    column = pa.chunked_array([pa.array([b"x" * 16, *raw], pa.binary(16)).slice(1)])  # an offset, as a slice has
    keys = key_array(column).astype(np.uint64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    assert [raw[i] for i in order] == sorted(raw)


def _table(n: int) -> pa.Table:
    return pa.table(
        {
            "id": [str(i) for i in range(n)],
            "content_key": pa.array([i.to_bytes(16, "big") for i in range(n)], pa.binary(16)),
            "source": pa.array(["s"] * n),
            "group": pa.array([None if i % 2 else "g" for i in range(n)]),
            "extra": pa.array([None] * n, pa.string()),
        }
    )


def test_a_digest_sees_content_and_not_layout() -> None:
    whole = _table(10)
    pieces = pa.concat_tables([whole.slice(0, 3), whole.slice(3)])
    assert table_digest(pieces) == table_digest(whole) == table_digest(_table(20).slice(0, 10))
    assert table_digest(whole.slice(1)) != table_digest(whole)
    changed = whole.set_column(2, "source", pa.array(["s"] * 9 + ["t"]))
    assert table_digest(changed) != table_digest(whole)


def test_fingerprints() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(1) != fingerprint("1")
    assert fingerprint(["a", "b"]) != fingerprint(["ab"])
    assert len(fingerprint(None)) == 16
    assert fingerprint(Path("x")) == fingerprint("x")
