"""Reading benchmarks: prompts without answers, in every schema; what pools reject stays rejected there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curate.connectors.discover import discover
from curate.connectors.read import read
from curate.connectors.recognise import recognise
from curate.connectors.source import Source
from curate.exceptions import SchemaError
from tests.connectors.helpers import write

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
Q, QA = [("user", "q")], [("user", "q"), ("assistant", "a")]


def take(tmp_path: Path, *rows: dict[str, Any], unanswered: bool = True, **options: Any) -> tuple[list[Any], list[str]]:
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = Source(path=str(path), **options)
    slices = discover([source])
    known = recognise(slices, source, unanswered=unanswered)
    batches = [batch for piece in slices for batch in read(piece, source, known)]
    turns = [[(m["role"], m["content"]) for m in row["messages"]] for b in batches for row in b.examples.to_pylist()]
    return turns, [reason for b in batches for reason in b.rejected.column("reason").to_pylist()]


@pytest.mark.parametrize(
    ("row", "options", "turns"),
    [
        ({"messages": [U]}, {}, Q),
        ({"messages": [U, A]}, {}, QA),
        ({"messages": [U, U]}, {}, [*Q, *Q]),
        ({"messages": [U, {**A, "content": " "}]}, {}, Q),
        ({"messages": [{**U, "role": "system"}, U]}, {}, [("system", "q"), *Q]),
        ({"conversations": [{"from": "human", "value": "q"}]}, {}, Q),
        ({"prompt": "q"}, {}, Q),
        ({"prompt": "q", "system": "s"}, {}, [("system", "s"), *Q]),
        ({"prompt": [U]}, {}, Q),
        ({"prompt": "q", "completion": None}, {}, Q),
        ({"prompt": "q", "completion": ""}, {}, Q),
        ({"prompt": "q", "completion": "a"}, {}, QA),
        ({"instruction": "q", "input": "i"}, {}, [("user", "q\n\ni")]),
        ({"instruction": "q", "input": "", "output": ""}, {}, Q),
        ({"question": "q", "answer": "a"}, {"columns": {"prompt": "question"}}, Q),
        ({"question": "q", "answer": "a"}, {"columns": {"prompt": "question", "response": "answer"}}, QA),
        ({"prompt": "q", "responses": []}, {}, Q),
    ],
)
def test_a_question_counts_with_or_without_its_answer(tmp_path, row, options, turns):
    assert take(tmp_path, row, **options) == ([turns], [])


def test_a_set_of_which_some_rows_have_answers(tmp_path):
    turns, rejected = take(tmp_path, {"messages": [U, A]}, {"messages": [U, A, U]}, {"messages": [U]})
    assert turns == [QA, [*QA, *Q], Q] and not rejected
    assert take(tmp_path, {"messages": [U, A]}, {"messages": [U, A, U]}, {"messages": [U]}, unanswered=False) == (
        [QA],
        ["no-response", "no-response"],
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{**U, "content": " "}]}, "empty-prompt"),
        ({"messages": []}, "no-response"),
        ({"messages": [{**U, "role": "system"}]}, "no-response"),
        ({"messages": [A]}, "role-order"),
        ({"messages": "q"}, "no-messages"),
    ],
)
def test_what_asks_nothing_is_rejected(tmp_path, row, reason):
    assert take(tmp_path, {"messages": [U]}, row) == ([Q], [reason])


def test_pools_still_need_an_answer(tmp_path):
    with pytest.raises(SchemaError, match="a prompt is there, 'prompt', and no response to it"):
        take(tmp_path, {"prompt": "q"}, unanswered=False)
    assert take(tmp_path, {"messages": [U, U, A]}, {"messages": [U, A]}, unanswered=False) == ([QA], ["role-order"])
