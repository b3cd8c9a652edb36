"""Prompts and responses read from Arrow, against the plain function on dictionaries."""

import pyarrow as pa
import pytest

from curate.example import MESSAGE_TYPE, prompt_and_response
from curate.scorers._texts import prompts_and_responses, texts
from curate.testing import odd_examples


def table(*conversations):
    rows = [[{"role": role, "content": content} for role, content in messages] for messages in conversations]
    return pa.table({"messages": pa.array(rows, pa.list_(MESSAGE_TYPE))})


UNUSUAL = table(
    [],
    [("user", "no answer")],
    [("assistant", "a"), ("assistant", "b"), ("user", "c")],
    [("user", "p"), ("assistant", "r")],
)


@pytest.mark.parametrize(
    "examples",
    [
        odd_examples().select(["messages"]),
        UNUSUAL,
        UNUSUAL.slice(0, 0),
        UNUSUAL.slice(1, 2),
        pa.concat_tables([UNUSUAL.slice(2), UNUSUAL, UNUSUAL.slice(1, 1)]),
        UNUSUAL.take([3, 1, 2, 0, 3]),
    ],
    ids=["odd", "unusual", "none", "sliced", "chunks", "taken"],
)
def test_equals_the_plain_function(examples):
    prompts, responses, turns = prompts_and_responses(examples)
    wanted = [prompt_and_response(messages) for messages in examples["messages"].to_pylist()]
    assert list(zip(prompts, responses, strict=True)) == wanted
    assert turns.tolist() == [sum(m["role"] == "assistant" for m in row) for row in examples["messages"].to_pylist()]


def test_which_text():
    examples = table([("user", " ask\n"), ("assistant", " answer ")], [("user", ""), ("assistant", "answer")])
    assert texts(examples, "prompt") == ["ask", ""]
    assert texts(examples, "response") == ["answer", "answer"]
    assert texts(examples, "both") == ["ask\n\n answer", "answer"]
