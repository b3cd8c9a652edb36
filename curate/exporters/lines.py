"""An Arrow table as JSON lines, column by column: no text becomes a Python object.

What ``json.dumps(row, ensure_ascii=False)`` writes for each row, with two differences: a null field is left out (a
trainer asks ``"tool_calls" in message``), and a text of Arrow's JSON type stands there as the value that it spells.
A row is one line: JSON's strings hold no raw newline, and a newline between JSON values is white space, so it becomes a
space.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def json_array(texts: pa.Array) -> pa.Array:
    """Return JSON texts as Arrow's JSON type.

    In JSON lines they stand as what they spell; from Parquet, ``datasets`` (4.7 and later) gives a trainer the values.
    """
    return pa.ExtensionArray.from_storage(pa.json_(), texts)


def json_lines(table: pa.Table) -> Iterable[memoryview]:
    """Yield the table's rows as JSON lines, in UTF-8, in pieces of any size.

    The first field of every struct, and the first column, must not be null: the commas of the others hang on them.
    """
    for batch in table.to_batches():
        if batch.num_rows:
            struct = pa.StructArray.from_arrays(batch.columns, fields=list(batch.schema))
            text = pc.binary_join_element_wise(_spelt(struct), "", "\n")
            offsets = np.frombuffer(text.buffers()[1], np.int32, len(text) + 1, text.offset * 4)
            yield memoryview(text.buffers()[2])[offsets[0] : offsets[-1]]


def _spelt(array: pa.Array) -> pa.Array:
    """Return the JSON text of each value; null where it is null."""
    kind = array.type
    if pa.types.is_struct(kind):
        return _objects(array)
    if pa.types.is_list(kind):
        return _lists(array)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return array.cast(pa.string())
    if isinstance(kind, pa.JsonType):
        return pc.replace_substring(pc.replace_substring(array.storage, "\n", " "), "\r", " ")
    return quoted(array)


def _objects(array: pa.StructArray) -> pa.Array:
    pieces: list[pa.Array | str] = []
    for i, field in enumerate(array.type):
        text, name = _spelt(array.field(i)), json.dumps(field.name)
        if i == 0:
            pieces += [f"{{{name}:", text]
        elif text.null_count == 0:
            pieces += [f",{name}:", text]
        elif text.null_count < len(text):
            named = pc.binary_join_element_wise(f",{name}:", text, "")
            pieces.append(pc.fill_null(named, ""))
    return pc.binary_join_element_wise(*pieces, "}", "")


def _lists(array: pa.ListArray) -> pa.Array:
    lengths = pc.list_value_length(array)
    offsets = np.r_[0, np.cumsum(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False))].astype(np.int32)
    values = _spelt(array.flatten())
    mask = array.is_null() if array.null_count else None
    lists = pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)
    return pc.binary_join_element_wise("[", pc.binary_join(lists, ","), "]", "")


def quoted(text: pa.Array) -> pa.Array:
    r"""Return texts as JSON strings, in their quotes; null where they are null.

    Polars escapes them as members of one-field objects (three times as fast as a pass in Arrow per character that needs
    an escape); the rest of the object is taken off again.
    """
    import polars as pl

    member = pl.struct(pl.col("t")).struct.json_encode().str.strip_prefix('{"t":').str.strip_suffix("}")
    found = pl.DataFrame({"t": pl.from_arrow(text)}).select(pl.when(pl.col("t").is_not_null()).then(member))
    return found.to_arrow().column(0).combine_chunks().cast(pa.string())
