"""Rows of every kind that curate reads, for the tests of the formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

import curate
from tests.conftest import write_jsonl

WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}}
TIME = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]


def turn(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


PLAIN = {"messages": [turn("user", 'A "quoted" \\ path?\n\tYes é 😀 \u2028'), turn("assistant", "One.\r\nTwo.")]}
SYSTEM = {"messages": [turn("system", "Be terse."), turn("user", "Who?"), turn("assistant", "Me.")]}
LONG = {
    "messages": [
        turn("user", "First?"),
        turn("assistant", "One."),
        turn("user", "Second?"),
        turn("assistant", "Two."),
    ]
}
MARKED = {
    "messages": [
        turn("user", "First?"),
        turn("assistant", "Not this.", train=False),
        turn("user", "Second?"),
        turn("assistant", "This."),
    ]
}
CALLING = {
    "messages": [
        turn("user", "Weather in Oslo?"),
        turn("assistant", "", tool_calls=[WEATHER]),
        turn("tool", '{"celsius": -3}'),
        turn("assistant", "-3 °C."),
    ],
    "tools": TOOLS,
}
PARALLEL = {
    "messages": [
        turn("user", "Weather and time?"),
        turn("assistant", "", tool_calls=[WEATHER, TIME]),
        turn("tool", "-3"),
        turn("tool", "noon"),
        turn("assistant", "Cold, at noon."),
    ],
    "tools": TOOLS,
}
NAMED = {
    "messages": [
        turn("user", "Weather in Oslo?"),
        turn("assistant", "", tool_calls=[{**WEATHER, "id": "call_1"}]),
        turn("tool", "-3", name="weather", tool_call_id="call_1"),
        turn("assistant", "Cold."),
    ],
    "tools": TOOLS,
}
THINKING = {"messages": [turn("user", "2 + 2?"), turn("assistant", "4", reasoning_content="Two and two.")]}
ALL = [PLAIN, SYSTEM, LONG, MARKED, CALLING, PARALLEL, NAMED, THINKING]


def read(folder: Path, rows: list[Any], **options: Any) -> pa.Table:
    """Return the examples that curate reads from these rows."""
    pool = curate.read(str(write_jsonl(folder / "rows.jsonl", rows)), **options)
    assert not pool.rejected().num_rows, pool.rejected().to_pylist()
    return pool.examples()


def lines(folder: Path) -> list[Any]:
    """Return the rows of an export in JSON lines."""
    return [json.loads(line) for file in sorted((folder / "data").iterdir()) for line in file.open(encoding="utf-8")]
