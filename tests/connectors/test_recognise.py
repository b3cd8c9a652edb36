from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from curate.connectors.discover import discover
from curate.connectors.recognise import recognise
from curate.connectors.recognised import Recognised
from curate.connectors.source import Source
from curate.exceptions import SchemaError
from tests.connectors.helpers import read_all, write

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
H, G = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def look(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> Recognised:
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    source = Source(path=str(path), **options)
    return recognise(discover([source]), source)


READINGS = [
    ({"messages": [U, A]}, "messages", {"messages": "messages"}),
    (
        {"messages": [U, A], "tools": "[]", "system": "s"},
        "messages",
        {"messages": "messages", "system": "system", "tools": "tools"},
    ),
    ({"messages": [U, A], "prompt": "q", "prompt_id": "x"}, "messages", {"messages": "messages"}),
    ({"messages": [U]}, "messages", {"messages": "messages"}),
    ({"messages": [U], "response": "a"}, "prompt-completion", {"messages": "messages", "response": "response"}),
    ({"conversations": [H, G]}, "sharegpt", {"messages": "conversations"}),
    ({"conversations": ["q", "a"]}, "sharegpt", {"messages": "conversations"}),
    ({"conversations": [U, A]}, "messages", {"messages": "conversations"}),
    ({"prompt": "q", "completion": "a"}, "prompt-completion", {"prompt": "prompt", "response": "completion"}),
    ({"prompt": [U], "completion": [A]}, "prompt-completion", {"prompt": "prompt", "response": "completion"}),
    (
        {"prompt": "q", "response": "a", "input": "kept apart"},
        "prompt-completion",
        {"prompt": "prompt", "response": "response"},
    ),
    (
        {"instruction": "q", "input": "", "output": "a"},
        "alpaca",
        {"prompt": "instruction", "input": "input", "response": "output"},
    ),
    ({"Instruction": "q", "Response": "a"}, "alpaca", {"prompt": "Instruction", "response": "Response"}),
    (
        {"instruction": "q", "context": "c", "response": "a"},
        "alpaca",
        {"prompt": "instruction", "input": "context", "response": "response"},
    ),
    (
        {"instruction": "q", "output": "a", "history": [["q", "a"]]},
        "alpaca",
        {"prompt": "instruction", "response": "output", "history": "history"},
    ),
    (
        {"prompt": "q", "responses": ["a"], "scores": [1]},
        "candidates",
        {"prompt": "prompt", "responses": "responses", "scores": "scores"},
    ),
    (
        {"instruction": "q", "input": "x", "response1": "a", "response2": "b"},
        "candidates",
        {"prompt": "instruction", "input": "input", "responses": ["response1", "response2"]},
    ),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", {"prompt": "prompt", "chosen": "chosen"}),
    ({"chosen": [U, A], "rejected": [U, A]}, "preference", {"chosen": "chosen"}),
    (
        {"conversations": [H], "chosen": G, "rejected": G},
        "preference",
        {"messages": "conversations", "chosen": "chosen"},
    ),
]


@pytest.mark.parametrize(("row", "schema", "columns"), READINGS, ids=[" ".join(r) for r, _, _ in READINGS])
def test_what_is_clear_is_recognised_and_reads(
    tmp_path: Path, row: dict[str, Any], schema: str, columns: dict[str, Any]
) -> None:
    found = look(tmp_path, row, row)
    assert (found.schema, found.columns) == (schema, columns)
    result = read_all(tmp_path / "a.jsonl")
    if row != {"messages": [U]}:
        assert result.rejected == []
    assert pickle.loads(pickle.dumps(found)) == found
    assert json.loads(json.dumps(found.identity())) == found.identity()


UNCLEAR = [
    (
        {"text": "x", "code": "y"},
        {},
        r"no schema fits these columns.\nColumns found: 'text' \(text\), 'code' \(text\).\n.*\n"
        r"    columns: {prompt: text, response: code}",
    ),
    (
        {"question": "x", "answer": "y", "n": 3},
        {},
        r"'n' \(number\).\n.*\n    columns: {prompt: question, response: answer}",
    ),
    ({"instruction": "x"}, {}, r"\(a prompt is there, 'instruction', and no response to it\)"),
    (
        {"prompt": "x", "instruction": "y", "response": "z"},
        {},
        r"2 ways: prompt-completion .*; or alpaca .*\n.*\n.*\n    schema: prompt-completion\n    schema: alpaca",
    ),
    (
        {"prompt": "x", "response": "y", "output": "z"},
        {},
        r"2 ways: .*\n.*\n.*\n    columns: {prompt: prompt, response: response}\n"
        r"    columns: {prompt: prompt, response: output}",
    ),
    (
        {"prompt": "q", "messages": [U, A], "chosen": "a", "rejected": "b"},
        {},
        "    schema: messages\n    schema: preference",
    ),
    ({"val": [["a", "b"]], "train": [["c", "d"]]}, {}, "    records: val"),
    ({"id": 1, "scores": {"a": 1}}, {}, "columns: {prompt: PROMPT_COLUMN, response: RESPONSE_COLUMN}"),
    ({"chosen": "a", "rejected": "b"}, {}, "no schema fits"),
    ({"prompt": "q", "response": "a"}, {"schema": "messages"}, "the columns are not those of schema 'messages'"),
    ({"yes": "q", "two words": "a"}, {}, "columns: {prompt: 'yes', response: 'two words'}"),
    (
        {"qestion": "q", "answer": "a"},
        {"columns": {"prompt": "question", "response": "answer"}},
        r"columns: prompt names the column 'question', which the file lacks; did you mean 'qestion'\?",
    ),
    ({"prompt": "q", "response": "a"}, {"id": "uid"}, "id names the column 'uid', which the file lacks"),
    ({"prompt": "q", "response": "a"}, {"group": "topic"}, "group names the column 'topic', which the file lacks"),
]


@pytest.mark.parametrize(("row", "options", "said"), UNCLEAR, ids=[f"{' '.join(r)} {o}" for r, o, _ in UNCLEAR])
def test_what_is_not_clear_stops_with_the_columns_and_the_line_to_add(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(SchemaError, match=said):
        look(tmp_path, row, **options)


@pytest.mark.parametrize(
    ("row", "options", "said"), [u for u in UNCLEAR if "columns: {" in u[2] and "PROMPT_COLUMN" not in u[2]]
)
def test_the_proposed_line_works(tmp_path: Path, row: dict[str, Any], options: dict[str, Any], said: str) -> None:
    import yaml

    with pytest.raises(SchemaError) as error:
        look(tmp_path, row, **options)
    for line in (x.strip() for x in str(error.value).splitlines() if x.startswith("    ")):
        assert look(tmp_path, row, **yaml.safe_load(line)).columns


def test_declared_columns(tmp_path: Path) -> None:
    row = {"q": "x", "a": "y", "alt": "z", "prompt": "other", "response": "other", "messages": [U, A]}
    assert look(tmp_path, row, columns={"prompt": "q", "response": "a"}).columns == {"prompt": "q", "response": "a"}
    assert look(tmp_path, row, columns={"prompt": "q", "responses": ["a", "alt"]}).columns == {
        "prompt": "q",
        "responses": ["a", "alt"],
    }
    assert look(tmp_path, row, columns={"messages": "messages"}).schema == "messages"
    assert look(tmp_path, {"p": [U], "response": "a"}, columns={"prompt": "p"}).columns == {
        "prompt": "p",
        "response": "response",
    }
    assert look(tmp_path, {"turns": [H, G]}, columns={"messages": "turns"}).schema == "sharegpt"
    assert look(tmp_path, {"prompt": "p", "instruction": "q", "output": "a"}, schema="alpaca").columns == {
        "prompt": "instruction",
        "response": "output",
    }
    assert (
        look(
            tmp_path, {"q": "x", "a": "y", "ctx": "z"}, columns={"prompt": "q", "input": "ctx", "response": "a"}
        ).columns["input"]
        == "ctx"
    )
    assert look(tmp_path, {"messages": [U, A], "fns": []}, columns={"tools": "fns"}).columns == {
        "messages": "messages",
        "tools": "fns",
    }
    assert look(tmp_path, {"q": "x", "good": "y", "bad": "z"}, columns={"prompt": "q", "chosen": "good"}).columns == {
        "prompt": "q",
        "chosen": "good",
    }


def test_labels_by_rule_and_by_name(tmp_path: Path) -> None:
    row = {"prompt": "q", "response": "a", "source": "s", "task": "t", "category": "c", "id": "x"}
    found = look(tmp_path, row)
    assert (found.id, found.source, found.group) == (None, "source", "category")
    assert found.text == (
        "prompt-completion: 1 file; prompt from 'prompt', response from 'response'; id from content; "
        "source from column 'source'; "
        "group from column 'category'; kept in extra: task, id; a column 'id' is there: add `id: id` to name rows by it"
    )
    chosen = look(tmp_path, row, id="id", source="task", group="source", name=None)
    assert (chosen.id, chosen.source, chosen.group) == ("id", "task", "source")
    named = look(tmp_path, row, name="mine")
    assert named.source is None and "source 'mine'" in named.text and "source" in named.extra
    assert look(tmp_path, row | {"source": {"a": 1}, "group": 3}).source is None


def test_files_of_two_schemas_stop_and_name_each_side(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"a{i}.jsonl", json.dumps({"messages": [U, A]}))
    write(tmp_path / "b.json", json.dumps([{"instruction": "q", "output": "a"}]))
    write(tmp_path / "c.jsonl", "")
    with pytest.raises(
        SchemaError,
        match=r"(?s)the 7 files of one source are of 2 schemas:\n    messages \(messages\): .*a0.jsonl, .*a3.jsonl and 2 "
        r"more\n    alpaca \(instruction, output\): .*b.json\n.*entry of its own under sources:",
    ):
        read_all(tmp_path)


def test_optional_columns_may_differ_between_files(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", json.dumps({"instruction": "q", "output": "a"}))
    write(
        tmp_path / "b.jsonl",
        json.dumps({"instruction": "q", "input": "x", "output": "a", "system": "s", "category": "c"}),
    )
    result = read_all(tmp_path)
    assert [len(t) for t in result.turns] == [2, 3]
    assert [e["group"] for e in result.examples] == [None, "c"]
    assert [e["source"] for e in result.examples] == ["a", "b"]


def test_a_rare_column_or_a_broken_row_does_not_decide(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": "a"}] * 9 + [{"instruction": "x", "output": 3}]
    found = look(tmp_path, *rows)
    assert found.columns == {"prompt": "prompt", "response": "response"}
    assert look(tmp_path, *([{"messages": [U, A]}] * 3), {"messages": 3}, {"messages": "x"}).schema == "messages"
