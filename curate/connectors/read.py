"""Slices → examples and rejected rows, in batches of bounded size.

Rows go one by one through ``Normaliser``.  For Parquet whose column of turns is a list of (role, content) there is a
second path that looks at a whole batch in Arrow; it takes only rows about which it is certain, gives the others to the
first path, and yields the same table (``tests/connectors/test_read.py`` holds the two together).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.connectors.discover import label
from curate.connectors.formats import Broken, Slice, UnreadableError, cannot_read, connector, printable, records_of
from curate.connectors.normalise import MEDIA_COLUMNS, Normaliser, RejectedError, extra_of, kind, plain
from curate.connectors.parquet import Parquet, as_rows
from curate.connectors.recognise import damaged
from curate.connectors.recognised import Recognised
from curate.connectors.source import Source
from curate.example import EXAMPLE_SCHEMA, MESSAGE_TYPE, REJECTED_SCHEMA, keys

RAW_BYTES = 64 * 1024
BATCH_CHARS = 32 * 2**20
_ROLES = ("system", "user", "assistant")
_VISIBLE = r"[\p{L}\p{N}\p{P}\p{S}]"


@dataclass(frozen=True)
class ReadBatch:
    """What became of some consecutive rows."""

    examples: pa.Table
    """Of ``EXAMPLE_SCHEMA``."""
    rejected: pa.Table
    """Of ``REJECTED_SCHEMA``; together with the examples it holds every input row (each response apart)."""
    rows: int
    """Input rows: records of the file, blank lines not counted."""


def read(piece: Slice, source: Source, recognised: Recognised, *, batch_rows: int = 2048) -> Iterator[ReadBatch]:
    """Read one slice; yield its rows as examples or as rejected rows, in order.

    A batch holds at most ``batch_rows`` input rows; memory holds one batch, however large the file.

    Raises
    ------
    SourceError
        If the file is gone, cannot be read, or is damaged such that the rest cannot be told apart (unless the source
        says ``broken: keep``).
    """
    rows = _Rows(piece, source, recognised)
    reader = connector(piece, source)
    if isinstance(reader, Parquet):
        with cannot_read(piece.url):
            for first, batch in reader.batches(piece):
                for start in range(0, batch.num_rows, batch_rows):
                    yield rows.of_arrow(first + start, batch.slice(start, batch_rows))
        return
    row = piece.first_row
    try:
        for records in records_of(piece, source):
            for start in range(0, len(records), batch_rows):
                for row, value in records[start : start + batch_rows]:
                    rows.add(row, value)
                    if rows.chars > BATCH_CHARS:
                        yield rows.take()
                row += 1
                if rows.count:
                    yield rows.take()
    except UnreadableError as error:
        if source.broken == "stop":
            raise damaged(piece, error) from error
        rows.reject(max(row, error.row), -1, "unreadable-rest", error.detail, error.raw)
        rows.count += 1
        yield rows.take()


class _Rows:
    """Rows on their way into one batch."""

    def __init__(self, piece: Slice, source: Source, recognised: Recognised) -> None:
        self.url, self.recognised = piece.url, recognised
        self.normaliser = Normaliser(source, recognised, drop_nulls=piece.format == "parquet")
        self.max_chars = self.normaliser.max_chars
        self.label = recognised.name if recognised.name is not None else label(piece.url)
        self.scores = recognised.columns.get("scores")
        # The input stays in extra: joined to the instruction, nobody could part the two again (the Alpaca export does).
        roles = {role: column for role, column in recognised.columns.items() if role != "input"}
        taken = {c for column in roles.values() for c in ([column] if isinstance(column, str) else column)}
        labels = (recognised.id, recognised.source, recognised.group)
        self.used = frozenset(taken | {c for c in labels if c is not None})
        self._start()

    def _start(self) -> None:
        self.count = self.chars = 0
        self.examples: dict[str, list[Any]] = {name: [] for name in EXAMPLE_SCHEMA.names if name != "file"}
        self.rejected: dict[str, list[Any]] = {name: [] for name in REJECTED_SCHEMA.names if name != "file"}

    def take(self) -> ReadBatch:
        """Return what was added since the last time."""
        batch = ReadBatch(
            _table(self.examples, EXAMPLE_SCHEMA, self.url),
            _table(self.rejected, REJECTED_SCHEMA, self.url),
            self.count,
        )
        self._start()
        return batch

    def reject(self, row: int, part: int, reason: str, detail: str, raw: str | None) -> None:
        out = self.rejected
        out["row"].append(row)
        out["part"].append(part)
        out["reason"].append(reason)
        out["detail"].append(printable(detail))
        out["raw"].append(None if raw is None else _cut(raw))

    def add(self, row: int, value: Any) -> None:
        """Add one input row: one example or more, or rejected rows."""
        self.count += 1
        if isinstance(value, Broken):
            self.reject(row, -1, value.reason, value.detail, value.raw)
            return
        if not isinstance(value, Mapping):
            self.reject(
                row, -1, "wrong-type", f"a row with named fields was asked, {kind(value)} was found", _raw(value)
            )
            return
        try:
            name = self._id(value)
            source, group = self._labels(value)
            parts = self.normaliser.parts(value)
        except RejectedError as error:
            self.reject(row, -1, error.reason, error.detail, _raw(value))
            return
        for part, response in parts:
            try:
                messages, tools = self.normaliser.conversation(value, response)
            except RejectedError as error:
                self.reject(row, part, error.reason, error.detail, _raw(value))
                continue
            content_key, prompt_key = keys(messages, tools)
            chars = sum([len(m["content"]) for m in messages])
            self.chars += chars
            out = self.examples
            out["id"].append(content_key.hex() if name is None else name if part < 0 else f"{name}#{part}")
            out["messages"].append(messages)
            out["tools"].append(tools)
            out["source"].append(source)
            out["group"].append(group)
            out["extra"].append(extra_of(value, self.used, part, self.scores))  # type: ignore[arg-type]
            out["content_key"].append(content_key)
            out["prompt_key"].append(prompt_key)
            out["chars"].append(chars)
            out["row"].append(row)
            out["part"].append(part)

    def _id(self, row: Mapping[str, Any]) -> str | None:
        column = self.recognised.id
        if column is None:
            return None
        value = row.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return _text(value, column)
        if value is None or isinstance(value, str):
            raise RejectedError("no-id", f"{column}: empty")
        raise RejectedError("wrong-type", f"{column}: text or a whole number was asked, {kind(value)} was found")

    def _labels(self, row: Mapping[str, Any]) -> tuple[str, str | None]:
        source = _word(row, self.recognised.source)
        return self.label if source is None else source, _word(row, self.recognised.group)

    # -- a batch at once -----------------------------------------------------------------------------------------------

    def of_arrow(self, first: int, batch: pa.RecordBatch) -> ReadBatch:
        """Return what becomes of a batch of Arrow rows."""
        certain, fast = self._certain(first, batch)
        if certain is None:
            for i, value in enumerate(as_rows(batch)):
                self.add(first + i, value)
            return self.take()
        others = np.flatnonzero(~certain)
        if others.size == 0:
            return ReadBatch(fast, REJECTED_SCHEMA.empty_table(), batch.num_rows)
        for i, value in zip(others.tolist(), as_rows(batch.take(pa.array(others))), strict=True):
            self.add(first + i, value)
        slow = self.take()
        if not slow.examples.num_rows:  # as most often: what is not plain is broken
            return ReadBatch(fast, slow.rejected, batch.num_rows)
        both = pa.concat_tables([fast, slow.examples]).combine_chunks()
        order = np.argsort(both.column("row").to_numpy(), kind="stable")
        return ReadBatch(both.take(pa.array(order)), slow.rejected, batch.num_rows)

    def _certain(self, first: int, batch: pa.RecordBatch) -> tuple[np.ndarray | None, Any]:
        """Return (mask of the rows that are plain for certain, their examples); (None, None) if this path cannot tell.

        Plain: [system,] user, assistant, user, assistant, …, each with visible text, no other field, no tools.
        """
        roles = self.recognised.columns
        column = roles.get("messages")
        if (
            not isinstance(column, str)
            or {"response", "responses", "chosen"} & roles.keys()
            or len(set(batch.schema.names)) < batch.num_columns
        ):
            return None, None
        if column not in batch.schema.names:
            return None, None
        for other in (roles.get("system"), roles.get("tools"), *MEDIA_COLUMNS):
            if (
                isinstance(other, str)
                and other in batch.schema.names
                and batch.column(other).null_count < batch.num_rows
            ):
                return None, None
        lists = batch.column(column)
        if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)) or lists.null_count:
            return None, None
        if not pa.types.is_struct(lists.type.value_type):
            return None, None
        turns = lists.flatten()
        names = [f.name for f in lists.type.value_type]
        if turns.null_count or len(set(names)) < len(names) or not {"role", "content"} <= set(names):
            return None, None
        fields = dict(zip(names, turns.flatten(), strict=True))
        role, content = fields.pop("role"), fields.pop("content")
        if any(f.null_count < len(turns) for f in fields.values()):
            return None, None
        try:
            batch.validate(full=True)  # above all: is every text UTF-8?
            role, content = (_short_text(x) for x in (role, content))
        except pa.ArrowInvalid:
            return None, None
        if role is None or content is None:
            return None, None

        lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        code = pc.fill_null(pc.index_in(role, value_set=pa.array(_ROLES)), 9).to_numpy(zero_copy_only=False)
        chars = pc.fill_null(pc.utf8_length(content), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        visible = pc.fill_null(pc.match_substring_regex(content, _VISIBLE), False).to_numpy(zero_copy_only=False)
        nonempty = lengths > 0
        system = np.zeros(len(lengths), dtype=np.int64)
        system[nonempty] = code[starts[nonempty]] == 0
        place = np.arange(len(turns)) - np.repeat(starts + system, lengths)  # -1 is the system turn
        good = visible & (code == np.where(place < 0, 0, 1 + place % 2))
        total = np.r_[0, np.cumsum(chars)]
        per_row = total[starts + lengths] - total[starts]
        bad = np.r_[0, np.cumsum(~good)]
        certain = (bad[starts + lengths] == bad[starts]) & (lengths > system) & ((lengths - system) % 2 == 0)
        certain &= per_row <= self.max_chars

        chosen = batch
        if not certain.all():
            chosen = batch.filter(pa.array(certain))
            keep = pa.array(np.repeat(certain, lengths))
            role, content, lengths = role.filter(keep), content.filter(keep), lengths[certain]
        n = chosen.num_rows
        rest = [c for c in batch.schema.names if c not in self.used or c == self.recognised.id]
        cells = as_rows(chosen.select(rest)) if rest else [{}] * n
        try:
            given = None if self.recognised.id is None else [self._id(row) for row in cells]
            labels = [
                _words(chosen, self.recognised.source, self.label),
                _words(chosen, self.recognised.group, None),
            ]
            extra = [extra_of(row, self.used, -1, None) for row in cells] if rest else pa.nulls(n, pa.string())
        except (RejectedError, AttributeError):  # a missing id, a cell with no Python form
            return None, None
        content_key, prompt_key = _plain_keys(role, content, lengths)
        arrays = {
            "id": _hex(content_key) if given is None else given,
            "messages": _as_messages(role, content, lengths),
            "tools": pa.nulls(n, pa.string()),
            "source": labels[0],
            "group": labels[1],
            "extra": extra,
            "content_key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), n, [None, pa.py_buffer(content_key)]),
            "prompt_key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), n, [None, pa.py_buffer(prompt_key)]),
            "chars": per_row[certain],
            "row": first + np.flatnonzero(certain),
            "part": np.full(n, -1, dtype=np.int32),
        }
        return certain, _table(arrays, EXAMPLE_SCHEMA, self.url)


def _short_text(array: pa.Array) -> pa.StringArray | None:
    """Return texts with 32-bit offsets (the bytes stay where they are); None if they are no texts."""
    kind_of = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if not (pa.types.is_string(kind_of) or pa.types.is_large_string(kind_of)):
        return None
    return array.cast(pa.string())


def _words(batch: pa.RecordBatch, column: str | None, missing: str | None) -> pa.Array | list[str | None]:
    """Return the labels in a column, ``missing`` where there is nothing; as ``_word`` finds them."""
    if column is None or column not in batch.schema.names:
        return pa.repeat(pa.scalar(missing, pa.string()), batch.num_rows)
    words = _short_text(batch.column(column))
    if words is None:
        found = [_word(row, column) for row in as_rows(batch.select([column]))]
        return [missing if word is None else word for word in found]
    nothing = pc.fill_null(pc.equal(words, ""), True)
    return pc.if_else(nothing, pa.scalar(missing, pa.string()), words)


def _plain_keys(role: pa.StringArray, content: pa.StringArray, lengths: np.ndarray) -> tuple[bytes, bytes]:
    """Return the content keys and the prompt keys of plain conversations that end with an assistant turn.

    What ``curate.example.keys`` says, on Arrow's buffers: the turns are spelt one after another, so a conversation is
    one stretch of bytes, and no text becomes a Python object.  16 bytes a row each, joined.
    """
    length = pc.binary_length(content).cast(pa.string())
    heads = pa.array([f"{len(r)}:{r}" for r in _ROLES]).take(pc.index_in(role, value_set=pa.array(_ROLES)))
    spelt = pc.binary_join_element_wise(heads, length, ":", content, "-;-;-;-;-", "")  # the five fields it lacks
    data = memoryview(spelt.buffers()[2] or b"")
    at = np.frombuffer(spelt.buffers()[1], np.int32, len(spelt) + 1, spelt.offset * 4)
    ends = np.cumsum(lengths)
    begin = hashlib.blake2b(b"-;", digest_size=16)  # no tools
    contents, prompts = [], []
    for start, answer, end in zip(at[ends - lengths].tolist(), at[ends - 1].tolist(), at[ends].tolist(), strict=True):
        digest = begin.copy()
        digest.update(data[start:answer])
        prompt = digest.copy()
        prompt.update(b"|prompt")
        digest.update(data[answer:end])
        contents.append(digest.digest())
        prompts.append(prompt.digest())
    return b"".join(contents), b"".join(prompts)


def _hex(keys: bytes) -> pa.StringArray:
    """Return 16-byte keys as texts of 32 hex digits."""
    offsets = np.arange(0, 2 * len(keys) + 1, 32, dtype=np.int32)
    text = pa.py_buffer(keys.hex().encode("ascii"))
    return pa.StringArray.from_buffers(len(keys) // 16, pa.py_buffer(offsets), text)


def _as_messages(role: pa.StringArray, content: pa.StringArray, lengths: np.ndarray) -> pa.ListArray:
    """Return plain turns as the example schema's messages, without copying a text."""
    empty = {f.name: pa.nulls(len(role), f.type) for f in MESSAGE_TYPE}
    struct = pa.StructArray.from_arrays(
        list((empty | {"role": role, "content": content}).values()), fields=list(MESSAGE_TYPE)
    )
    offsets = pa.array(np.r_[0, np.cumsum(lengths)].astype(np.int32))
    return pa.ListArray.from_arrays(offsets, struct, type=EXAMPLE_SCHEMA.field("messages").type)


def _table(columns: Mapping[str, Any], schema: pa.Schema, url: str) -> pa.Table:
    n = len(columns["row"])
    arrays = []
    for field in schema:
        value = pa.repeat(pa.scalar(printable(url), pa.string()), n) if field.name == "file" else columns[field.name]
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _word(row: Mapping[str, Any], column: str | None) -> str | None:
    """Return a label: text as it is, a number or true and false in JSON's spelling; None where there is nothing."""
    if column is None:
        return None
    value = row.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return _text(value, column)
    return json.dumps(value) if isinstance(value, bool | int | float) else _text(_raw(value), column)


def _text(value: str, column: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RejectedError("invalid-utf8", f"{column}: no UTF-8 at character {error.start}") from None
    return value


def _raw(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=plain)
    except (ValueError, TypeError, RecursionError):
        return str(type(value).__name__)


def _cut(text: str) -> str:
    data = printable(text).encode("utf-8")
    return printable(text) if len(data) <= RAW_BYTES else data[:RAW_BYTES].decode("utf-8", "ignore")
