"""Sources → examples: the first stage, one task per group of input slices.

A group is a run of consecutive slices of about ``shard_rows`` rows.  Its task reads them in order and writes parts of
exactly ``shard_rows`` examples (the last one shorter), the rejected rows, and the content keys that the index needs.
Memory holds one part, however large the file.
"""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.example import EXAMPLE_SCHEMA, REJECTED_SCHEMA
from curate.exceptions import AccountingError
from curate.fingerprint import fingerprint, table_digest
from curate.pipelines.store import Store

if TYPE_CHECKING:
    from curate.connectors.discover import Slice
    from curate.connectors.recognised import Recognised
    from curate.connectors.source import Source

VERSION = 1
OPTIONAL_FIELDS = ("name", "tool_calls", "tool_call_id", "thinking", "train")


@dataclass(frozen=True)
class Group:
    """Consecutive slices that one task reads."""

    number: int
    slices: tuple[Slice, ...]
    fingerprint: str
    limit: int | None = None

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    @property
    def rows(self) -> int:
        """Rows expected (an estimate for text formats)."""
        rows = sum(s.rows or 0 for s in self.slices)
        return rows if self.limit is None else min(rows, self.limit)


def group_slices(
    slices: list[Slice], sources: list[Source], recognised: list[Recognised], *, shard_rows: int, limit: int | None
) -> list[Group]:
    """Group consecutive slices until they hold about ``shard_rows`` rows; a slice of unknown size stands alone."""
    groups: list[tuple[Slice, ...]] = []
    pending: list[Slice] = []
    held = 0
    for piece in slices:
        rows = shard_rows if piece.rows is None else piece.rows
        if pending and held + rows > shard_rows:
            groups.append(tuple(pending))
            pending, held = [], 0
        pending.append(piece)
        held += rows
    if pending:
        groups.append(tuple(pending))
    out: list[Group] = []
    before = ""  # under a limit, where a group is cut depends on the groups before it
    for number, members in enumerate(groups):
        how = [(s.fingerprint, sources[s.source].reading(), recognised[s.source].identity()) for s in members]
        mark = fingerprint("ingest", VERSION, shard_rows, limit, before, how)
        out.append(Group(number, members, mark, limit))
        before = before if limit is None else mark
    return out


def ingest(
    store: Store, group: Group, sources: list[Source], recognised: list[Recognised], shard_rows: int
) -> dict[str, Any]:
    """Read one group; write its parts, its rejected rows and its keys; return (and leave) the account of it."""
    from curate.connectors.read import read

    began = time.perf_counter()
    store.append_event({"stage": "read", "part": group.name, "event": "start", "fingerprint": group.fingerprint})
    store.remove_files(".curate/done/read", [f"{group.name}.json"])
    for directory in ("examples", "rejected"):  # of an earlier reading of other content
        store.remove_files(directory, store.list(directory, f"part-{group.name}"))

    parts: list[dict[str, Any]] = []
    keys: list[np.ndarray] = []
    held: list[pa.Table] = []
    rejected: list[pa.Table] = []
    reasons: collections.Counter[str] = collections.Counter()
    n_held = rows = 0

    def flush(final: bool) -> None:
        nonlocal held, n_held
        table = pa.concat_tables(held) if held else EXAMPLE_SCHEMA.empty_table()
        while table.num_rows >= shard_rows or (final and table.num_rows):
            part, table = table.slice(0, shard_rows).combine_chunks(), table.slice(shard_rows)
            name = f"part-{group.name}-{len(parts):04d}.parquet"
            store.write_table(part, "examples", name)
            parts.append({"name": name, "digest": table_digest(part), **_describe(part)})
            keys.append(key_array(part.column("content_key")))
        held, n_held = ([table] if table.num_rows else []), table.num_rows

    for piece in group.slices:
        left = None if group.limit is None else group.limit - rows
        if left is not None and left <= 0:
            break
        seen: set[int] = set()
        slice_rows = 0
        for batch in read(piece, sources[piece.source], recognised[piece.source]):
            examples, refused, count = batch.examples, batch.rejected, batch.rows
            if left is not None and slice_rows + count > left:
                examples, refused, count = _first_rows(examples, refused, left - slice_rows)
            _check_batch(piece.url, examples, refused, count, seen)
            slice_rows += count
            if examples.num_rows:
                held.append(examples)
                n_held += examples.num_rows
                if n_held >= shard_rows:
                    flush(final=False)
            if refused.num_rows:
                rejected.append(refused)
                reasons.update(refused.column("reason").to_pylist())
            if left is not None and slice_rows >= left:
                break
        rows += slice_rows
    flush(final=True)
    if rejected:
        store.write_table(pa.concat_tables(rejected).combine_chunks(), "rejected", f"part-{group.name}.parquet")
    stacked = np.concatenate(keys) if keys else np.empty((0, 2), dtype=">u8")
    with store.writing(".curate", "keys", f"{group.name}.npy") as handle:
        np.save(handle, stacked, allow_pickle=False)
    account = {
        "fingerprint": group.fingerprint,
        "rows": rows,
        "examples": int(stacked.shape[0]),
        "rejected": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items())),
        "parts": parts,
        "seconds": round(time.perf_counter() - began, 3),
    }
    store.write_json(account, ".curate", "done", "read", f"{group.name}.json")
    store.append_event(
        {"stage": "read", "part": group.name, "event": "done", "fingerprint": group.fingerprint, "rows": rows}
    )
    return account


def key_array(column: pa.ChunkedArray) -> np.ndarray:
    """Return 16-byte keys as an (n, 2) array of big-endian words, whose order is the order of the bytes."""
    array = column.combine_chunks()
    start, n = array.offset * 16, len(array)
    return np.frombuffer(array.buffers()[1], dtype=">u8", offset=start, count=2 * n).reshape(n, 2).copy()


def _describe(part: pa.Table) -> dict[str, Any]:
    import pyarrow.compute as pc

    messages = part.column("messages").combine_chunks().flatten()
    used = [f for f in OPTIONAL_FIELDS if messages.field(f).null_count < len(messages)]
    return {
        "rows": part.num_rows,
        "chars": pc.sum(part.column("chars")).as_py() or 0,
        "fields": used,
        "tools": part.column("tools").null_count < part.num_rows,
        "own_ids": not _ids_are_keys(part),
    }


def _ids_are_keys(part: pa.Table) -> bool:
    """Whether every id is its content key in hex: all texts and all keys as one stretch of bytes each."""
    import pyarrow.compute as pc

    if not pc.all(pc.equal(pc.binary_length(part.column("id")), 32)).as_py():
        return False
    ids = part.column("id").combine_chunks()
    start = int(np.frombuffer(ids.buffers()[1], np.int32, 1, ids.offset * 4)[0])
    text = memoryview(ids.buffers()[2])[start : start + 32 * len(ids)]
    return bytes(text) == key_array(part.column("content_key")).tobytes().hex().encode("ascii")


def _first_rows(examples: pa.Table, refused: pa.Table, count: int) -> tuple[pa.Table, pa.Table, int]:
    """Cut a batch after its first ``count`` input rows (``--limit``)."""
    import pyarrow.compute as pc

    rows = np.unique(np.r_[examples.column("row").to_numpy(), refused.column("row").to_numpy()])[:count]
    value = pa.array(rows, pa.int64())
    return (
        examples.filter(pc.is_in(examples.column("row"), value)),
        refused.filter(pc.is_in(refused.column("row"), value)),
        rows.size,
    )


def _check_batch(url: str, examples: pa.Table, refused: pa.Table, count: int, seen: set[int]) -> None:
    """Every row read is an example or a rejected row: the reader's side of the accounting."""
    if examples.schema != EXAMPLE_SCHEMA or refused.schema != REJECTED_SCHEMA:
        raise AccountingError(
            f"the reader of {url} returned other columns than the example schema; this is a bug of that reader."
        )
    rows = np.unique(np.r_[examples.column("row").to_numpy(), refused.column("row").to_numpy()])
    if rows.size != count:
        raise AccountingError(
            f"{url}: {count} rows were read, {rows.size} came out as examples or rejected; this is a bug of that "
            "reader."
        )
    if seen and rows.size and int(rows[0]) <= max(seen):
        raise AccountingError(f"{url}: row {int(rows[0])} was read twice; this is a bug of that reader.")
    if rows.size:
        seen.clear()
        seen.add(int(rows[-1]))
