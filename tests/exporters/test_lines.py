"""JSON lines from Arrow columns are what ``json.dumps`` writes of the rows."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.exporters.lines import json_array, json_lines, quoted

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TURN = st.fixed_dictionaries(
    {"role": TEXT, "content": TEXT, "name": st.none() | TEXT, "train": st.none() | st.booleans()}
)
ROWS = st.lists(st.fixed_dictionaries({"messages": st.lists(TURN, max_size=3), "tools": st.none() | TEXT}), max_size=6)
TYPE = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string()), ("train", pa.bool_())])
SCHEMA = pa.schema([("messages", pa.list_(TYPE)), ("tools", pa.string())])


def reference(rows: list[Any]) -> str:
    def without_nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_nulls(v) for k, v in value.items() if v is not None}
        return [without_nulls(v) for v in value] if isinstance(value, list) else value

    said = (json.dumps(without_nulls(r), ensure_ascii=False, separators=(",", ":")) for r in rows)
    return "".join(f"{line}\n" for line in said)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, data=st.data())
def test_lines_are_those_of_json_dumps_however_the_table_is_sliced(rows: list[Any], data: st.DataObject) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    start = data.draw(st.integers(0, len(rows)))
    piece = pa.concat_tables([table.slice(start), table.slice(0, start)])
    assert b"".join(json_lines(piece)).decode() == reference(piece.to_pylist())


def test_every_character_is_escaped_as_json_does() -> None:
    texts = [chr(i) for i in (*range(0x180), 0x2028, 0x2029, 0xFFFF, 0x1F600)]
    told = [json.dumps(t, ensure_ascii=False) for t in texts]
    assert quoted(pa.array([*texts, None, "", '{"t":}'])).to_pylist() == [*told, None, '""', '"{\\"t\\":}"']


def test_json_stands_as_what_it_spells_on_one_line() -> None:
    calls = json_array(pa.array(['[{"a":\r\n 1}]', None]))
    got = b"".join(json_lines(pa.table({"id": ["x", "y"], "calls": calls}))).decode().splitlines()
    assert [json.loads(line) for line in got] == [{"id": "x", "calls": [{"a": 1}]}, {"id": "y"}]


@pytest.mark.parametrize("column", [pa.array([], pa.string()), pa.array([[]], pa.list_(pa.string()))])
def test_nothing_is_nothing(column: pa.Array) -> None:
    assert b"".join(json_lines(pa.table({"a": column}))) == b'{"a":[]}\n' * len(column)
