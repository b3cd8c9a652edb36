from __future__ import annotations

import json
import pickle

import pytest
from pydantic import TypeAdapter

from curate.connectors.source import ROLES, Source
from curate.exceptions import InputError, SchemaError


def test_a_recipe_entry_becomes_a_source() -> None:
    given = {
        "path": "a.jsonl",
        "columns": {"instruction": "q", "candidates": ["a", "b"]},
        "max_chars": None,
        "broken": "keep",
    }
    source = TypeAdapter(Source).validate_python(given)
    assert source.mapping == {"prompt": "q", "responses": ["a", "b"]}
    assert source.paths == ["a.jsonl"]
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"format": "jsonlines"},
            InputError,
            r"format 'jsonlines' is not known; did you mean 'jsonl'\? Known: auto, csv",
        ),
        (
            {"columns": {"respons": "a"}},
            SchemaError,
            r"'respons' is no role of a column; did you mean 'response'\? Roles: messages",
        ),
        ({"columns": {"output": "a", "response": "b"}}, SchemaError, "output, response mean the same role"),
        (
            {"columns": {"prompt": ["a", "b"]}},
            SchemaError,
            r"prompt is one column, \['a', 'b'\] was found; only responses",
        ),
        ({"max_chars": 0}, InputError, "max_chars: 1 or more was asked, 0 was found"),
        ({"delimiter": ";;"}, InputError, "one character was asked, ';;' was found"),
        ({"path": []}, InputError, "a file, a directory, a glob or a URL was asked"),
    ],
)
def test_what_cannot_be_meant_is_said_at_once(options: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Source(**({"path": "x"} | options))


def test_the_reading_is_json_and_holds_all_but_the_path() -> None:
    a, b = (
        Source(path="a", columns={"prompt": "q", "response": "r"}),
        Source(path="b", columns={"prompt": "q", "response": "r"}),
    )
    assert json.loads(json.dumps(a.reading())) == a.reading() == b.reading()
    for change in (
        {"schema": "alpaca"},
        {"id": "x"},
        {"max_chars": 5},
        {"name": "n"},
        {"header": ["a"]},
        {"broken": "keep"},
    ):
        assert Source(path="a", **change).reading() != Source(path="a").reading()


def test_every_role_can_be_declared() -> None:
    for role in ROLES:
        assert Source(path="x", columns={role: "c"}).mapping == {role: "c"}
