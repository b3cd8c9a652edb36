"""Each spelling of a conversation by hand, each reason by hand, and thousands of mutated rows."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.connectors.normalise import REASONS, Normaliser, RejectedError
from curate.connectors.recognised import Recognised
from curate.connectors.source import Source
from curate.example import MESSAGE_TYPE
from tests.connectors.helpers import read_all, write

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"name": "f", "arguments": {"x": None, "ü": 1}}


def one(
    row: dict[str, Any],
    schema: str = "messages",
    max_chars: int | None = None,
    drop_nulls: bool = False,
    **columns: Any,
) -> Any:
    """Return (messages, tools) of a row, or "reason: detail"."""
    source = Source(path="x", max_chars=max_chars)
    normaliser = Normaliser(source, Recognised(schema, columns or {"messages": "m"}), drop_nulls=drop_nulls)
    try:
        out = [normaliser.conversation(row, response) for _, response in normaliser.parts(row)]
        return out[0] if len(out) == 1 else out
    except RejectedError as error:
        assert error.reason in REASONS
        return str(error)


def turns(*items: Any) -> Any:
    return one({"m": list(items)})


def test_plain_messages_stay_as_they_are() -> None:
    system = {"role": "system", "content": ""}
    assert turns(system, U, A, U, A) == ([system, U, A, U, A], None)
    spaced = {"role": "assistant", "content": " \n a \t"}
    assert turns(U, spaced) == ([U, spaced], None)


def test_other_words_for_roles_and_fields() -> None:
    assert turns({"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}) == ([U, A], None)
    assert turns({"role": "User", "text": "q"}, {"role": " MODEL ", "content": "a"}) == ([U, A], None)
    assert turns({"role": "developer", "content": "s"}, U, A)[0][0] == {"role": "system", "content": "s"}
    assert turns("q", "a", "q", "a") == ([U, A, U, A], None)
    assert one({"m": json.dumps([U, A])}) == ([U, A], None)  # a list spelt in a cell of CSV


def test_tool_turns_of_sharegpt_and_of_openai() -> None:
    call = json.dumps(CALL, ensure_ascii=False)
    shared = turns(
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": ""},
        {"from": "gpt", "value": "a"},
    )
    spelt = json.dumps([{"type": "function", "function": CALL}], ensure_ascii=False)
    assert shared == (
        [U, {"role": "assistant", "content": "", "tool_calls": spelt}, {"role": "tool", "content": ""}, A],
        None,
    )
    for spelling in ([{"type": "function", "function": CALL}], spelt, {"type": "function", "function": CALL}):
        found = turns(
            U,
            {"role": "assistant", "content": None, "tool_calls": spelling},
            {"role": "tool", "content": "1", "tool_call_id": "c", "name": "f"},
            A,
        )
        assert found[0][1] == {"role": "assistant", "content": "", "tool_calls": spelt}
        assert found[0][2] == {"role": "tool", "content": "1", "tool_call_id": "c", "name": "f"}
    assert turns(U, {"role": "assistant", "function_call": CALL})[0][1]["tool_calls"] == json.dumps(
        [CALL], ensure_ascii=False
    )
    odd = ' [ {"name":"f"} ] '
    assert turns(U, {"role": "assistant", "tool_calls": odd})[0][1]["tool_calls"] == odd  # as the source spelt it


def test_calls_that_follow_one_another_become_one_turn() -> None:
    found = turns(
        "q",
        {"from": "function_call", "value": '{"name": "f"}'},
        {"from": "function_call", "value": '[{"name": "g"}]'},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "a"},
    )
    assert [c["function"]["name"] for c in json.loads(found[0][1]["tool_calls"])] == ["f", "g"]
    assert [m["role"] for m in found[0]] == ["user", "assistant", "tool", "assistant"]


def test_typed_parts() -> None:
    parts = [
        {"type": "reasoning", "value": "hm"},
        {"type": "text", "value": "a"},
        "b",
        {"type": "text", "text": "c"},
        {"type": "tool_call", "value": '{"name": "f"}'},
    ]
    found = turns({"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": parts})
    assert found[0] == [
        U,
        {
            "role": "assistant",
            "content": "abc",
            "thinking": "hm",
            "tool_calls": '[{"type": "function", "function": {"name": "f"}}]',
        },
    ]
    assert turns(U, {"role": "assistant", "content": "a", "reasoning_content": "hm"})[0][1]["thinking"] == "hm"


def test_training_marks_are_kept_where_they_differ_from_the_role() -> None:
    marked = turns(U | {"weight": 0}, A | {"train": False}, U | {"loss_weight": 0.0}, A | {"weight": 1})
    assert marked[0] == [U, A | {"train": False}, U, A]
    assert turns(U | {"train": True}, A)[0][0] == U | {"train": True}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "a", "train": False}]}
    assert turns(U, parts, U, A)[0][1] == A | {"train": False}


def test_tools() -> None:
    schema = {"type": "function", "function": {"name": "f", "parameters": {"x": None}}}
    spelt = json.dumps([schema])
    for spelling in ([schema], spelt, schema, [json.dumps(schema)], json.dumps(schema)):
        assert one({"m": [U, A], "t": spelling}, messages="m", tools="t") == ([U, A], spelt)
    for nothing in (None, "", " ", [], "[]"):
        assert one({"m": [U, A], "t": nothing}, messages="m", tools="t") == ([U, A], None)
    assert (
        one({"m": [U, A], "t": [schema]}, messages="m", tools="t", drop_nulls=True)[1]
        == '[{"type": "function", "function": {"name": "f", "parameters": {}}}]'
    )
    assert (
        one({"m": [U, A], "t": "[1]"}, messages="m", tools="t")
        == "bad-tools: t: a list of tool schemas was asked, a list was found"
    )
    assert one({"m": [U, A], "t": "{"}, messages="m", tools="t").startswith("bad-tools: t: Expecting property name")


def test_prompt_and_response() -> None:
    pc = {"prompt": "p", "response": "r"}
    assert one({"p": "q", "r": "a"}, **pc) == ([U, A], None)
    assert one({"p": [U], "r": [A]}, **pc) == ([U, A], None)
    assert one({"p": [U], "r": A}, **pc) == ([U, A], None)
    assert one({"p": [U], "r": "a"}, **pc) == ([U, A], None)
    assert one({"p": "q"}, **pc) == "no-response: the response is missing"
    assert one({"r": "a"}, **pc) == "empty-prompt: p: missing"
    assert one({"p": " ", "r": "a"}, **pc) == "empty-prompt: p: nothing but white space"
    assert one({"p": 1, "r": "a"}, **pc) == "wrong-type: p: text was asked, a number was found"
    assert one({"p": "q", "r": True}, **pc) == "wrong-type: response: text or turns were asked, true or false was found"
    assert (
        one({"p": "q", "r": "a"}, messages="p", response="r")
        == "no-messages: p: a list of turns was asked, text was found"
    )


def test_alpaca() -> None:
    columns = {
        "prompt": "instruction",
        "input": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    }
    row = {"instruction": "do", "input": " this", "output": "a", "system": "s", "history": [["q", "a"]]}
    want = [{"role": "system", "content": "s"}, U, A, {"role": "user", "content": "do\n\n this"}, A]
    assert one(row, **columns) == (want, None)
    assert one(row | {"input": " ", "system": " ", "history": None}, **columns)[0] == [
        {"role": "user", "content": "do"},
        A,
    ]
    assert one(row | {"instruction": ""}, **columns)[0][-2] == {"role": "user", "content": " this"}
    assert one(row | {"history": json.dumps([["q", "a"]])}, **columns) == (want, None)
    assert (
        one(row | {"history": [["q"]]}, **columns) == "wrong-type: history: pairs of texts were asked, a list was found"
    )
    assert (
        one(row | {"history": [["q", ""]]}, **columns) == "empty-response: turn 2: assistant: nothing but white space"
    )
    assert one(row | {"system": 3}, **columns) == "wrong-type: system: text was asked, a number was found"
    assert one({"m": [{"role": "system", "content": "x"}, U, A], "s": "s"}, messages="m", system="s").startswith(
        "role-order: a system turn, and another text"
    )


def test_candidates() -> None:
    many = {"prompt": "p", "responses": "rs"}
    assert one({"p": "q", "rs": ["a", "b"]}, **many) == [([U, A], None), ([U, A | {"content": "b"}], None)]
    assert one({"p": "q", "rs": [[A], {"text": "b", "score": 1}]}, **many)[1][0][1]["content"] == "b"
    assert one({"p": "q", "rs": '["a", "b"]'}, **many)[0] == ([U, A], None)
    assert one({"p": "q", "rs": []}, **many) == "no-response: rs: no response"
    assert one({"p": "q", "rs": 7}, **many) == "wrong-type: rs: a list of responses was asked, a number was found"
    assert one({"p": "q", "r1": "a", "r2": "b"}, prompt="p", responses=["r1", "r2"])[1][0][1]["content"] == "b"


def test_preference_takes_the_chosen_side() -> None:
    both = {"chosen": "c"}
    assert one({"p": "q", "c": "a"}, prompt="p", **both) == ([U, A], None)
    assert one({"p": "q", "c": [A]}, prompt="p", **both) == ([U, A], None)
    assert one({"p": "something else", "c": [U, A]}, prompt="p", **both) == ([U, A], None)
    assert one({"c": [U, A]}, **both) == ([U, A], None)
    assert one({"m": [{"from": "human", "value": "q"}], "c": {"from": "gpt", "value": "a"}}, messages="m", **both) == (
        [U, A],
        None,
    )


REJECTED = [
    ([], "no-response: no turns"),
    ([U], "no-response: the last turn is user"),
    ([U, A, U], "no-response: the last turn is user"),
    ([U, A, {"role": "tool", "content": "x"}], "no-response: the last turn is tool"),
    ([U, A | {"train": False}], "no-response: no assistant turn may be trained on"),
    ([A], "role-order: turn 0: assistant first"),
    ([{"role": "system", "content": "s"}, A], "role-order: turn 1: assistant after system"),
    ([U, U, A], "role-order: turn 1: user after user"),
    ([U, A, A], "role-order: turn 2: assistant after assistant"),
    ([U, {"role": "system", "content": "s"}, A], "role-order: turn 1: system after user"),
    ([U, {"role": "tool", "content": "x"}, A], "role-order: turn 1: tool after user"),
    ([{"role": "tool", "content": "x"}, A], "role-order: turn 0: tool first"),
    ([U, A, {"role": "tool", "content": "x"}, U, A], "role-order: turn 3: user after tool"),
    ([U, A | {"content": "\u2003\n"}], "empty-response: turn 1: assistant: nothing but white space"),
    ([U, {"role": "assistant"}], "empty-response: turn 1: assistant: nothing but white space"),
    ([U, {"role": "assistant", "content": []}], "empty-response: turn 1: assistant: nothing but white space"),
    ([U | {"content": " "}, A], "empty-prompt: turn 0: user: nothing but white space"),
    ([{"role": "judge", "content": "x"}, A], "unknown-role: turn 0: role 'judge'"),
    ([{"content": "x"}, A], "unknown-role: turn 0: role none among content"),
    ([{}, A], "unknown-role: turn 0: role none among no keys"),
    ([{"role": 3, "content": "x"}, A], "unknown-role: turn 0: role 3"),
    ([None, A], "wrong-type: m: turn 0: an object was asked, nothing was found"),
    ([U, A | {"content": 3}], "wrong-type: turn 1: text was asked, a number was found"),
    ([U, A | {"name": 3}], "wrong-type: turn 1: name: text was asked, a number was found"),
    ([U, A | {"weight": "1"}], "wrong-type: turn 1: weight: true, false or a number was asked, text was found"),
    (
        [{"role": "user", "content": [{"type": "image", "url": "x"}]}, A],
        "not-text-part: turn 0: a part of type 'image'",
    ),
    (
        [{"role": "user", "content": [{"type": "text", "text": None}]}, A],
        "wrong-type: turn 0: a part: text was asked, nothing was found",
    ),
    (
        [
            U,
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "a", "train": True}, {"type": "text", "text": "b", "weight": 0}],
            },
        ],
        "mixed-training: turn 1: some parts are to be trained on, some are not",
    ),
    (
        [U, {"role": "assistant", "tool_calls": "f()"}],
        "bad-tool-call: turn 1: tool_calls: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        [U, {"role": "assistant", "tool_calls": [{"id": "x"}]}],
        "bad-tool-call: turn 1: an object with a name was asked, an object without a name was found",
    ),
    (
        [U, {"from": "function_call", "value": "f(x)"}, {"from": "observation", "value": ""}, A],
        "bad-tool-call: turn 1: Expecting value: line 1 column 1 (char 0)",
    ),
    ([U | {"tool_calls": [{"name": "f"}]}, A], "bad-tool-call: turn 0: a user turn calls tools"),
    (
        [U, A | {"content": "a\ud800"}],
        "invalid-utf8: turn 1: content: half of a surrogate pair (U+D800) at character 1",
    ),
    ([U, A | {"thinking": "\udcfe"}], "invalid-utf8: turn 1: thinking: byte 0xfe at character 0"),
]


@pytest.mark.parametrize(("given", "said"), REJECTED, ids=[s for _, s in REJECTED])
def test_what_is_rejected_and_why(given: list[Any], said: str) -> None:
    assert turns(*given) == said


def test_too_long_counts_the_characters_of_contents() -> None:
    row = {"m": [U | {"content": "é" * 5}, A | {"content": "b" * 5, "thinking": "x" * 99}]}
    assert one(row, max_chars=10)[0] == row["m"]
    assert one(row, max_chars=9) == "too-long: 10 characters; max_chars is 9"


def test_images_beside_the_text_are_no_text() -> None:
    assert one({"m": [U, A], "images": ["a.jpg"]}) == "not-text-part: column 'images' is not empty"
    assert one({"m": [U, A], "images": [], "image": None}) == ([U, A], None)


def test_every_field_is_one_of_the_schema() -> None:
    row = [
        U | {"name": "n", "id": 3, "metadata": {}},
        A | {"thinking": "t", "tool_calls": [{"name": "f"}], "train": False},
        {"role": "tool", "content": "", "tool_call_id": "c"},
        A,
    ]
    known = {MESSAGE_TYPE.field(i).name for i in range(MESSAGE_TYPE.num_fields)}
    assert all(set(m) <= known for m in turns(*row)[0])


# -- thousands of mutated rows -----------------------------------------------------------------------------------------

WORDS = [
    "",
    " ",
    "a",
    "user",
    "assistant",
    "gpt",
    "tool",
    "function_call",
    "[1",
    "[[]]",
    '{"name": "f"}',
    "é\ud800",
    "\x00",
]
KEYS = ["role", "content", "from", "value", "type", "text", "name", "function", "x"]


def junk(random: Random, depth: int = 0) -> Any:
    """Return any JSON value."""
    kind = random.randrange(5 if depth > 2 else 8)
    if kind < 3:
        return random.choice([None, True, False, 0, -2, 10**30, 1.5, math.nan, math.inf])
    if kind < 5:
        return random.choice(WORDS)
    if kind < 7:
        return [junk(random, depth + 1) for _ in range(random.randrange(4))]
    return {random.choice(KEYS): junk(random, depth + 1) for _ in range(random.randrange(4))}


def mutant(row: dict[str, Any], random: Random) -> dict[str, Any]:
    """Return the row with one to three of its values, at any depth, replaced or left out."""
    row = copy.deepcopy(row)
    for _ in range(random.randint(1, 3)):
        path = random.choice(paths(row) or [("new",)])
        where: Any = row
        for key in path[:-1]:
            where = where[key]
        if isinstance(where, list) or random.random() < 0.7:
            where[path[-1]] = junk(random)
        else:
            del where[path[-1]]
    return row


GOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {
            "messages": [
                {"role": "system", "content": "s"},
                U,
                A | {"tool_calls": [{"type": "function", "function": CALL}]},
                {"role": "tool", "content": "1"},
                A,
            ],
            "tools": [{"name": "f"}],
            "source": "x",
        },
        {},
    ),
    (
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            "system": "s",
            "category": "c",
        },
        {},
    ),
    ({"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]], "system": "s"}, {}),
    ({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 3], "n": 1}, {}),
    ({"prompt": "p", "chosen": [U, A], "rejected": "r"}, {}),
    ({"prompt": [U], "completion": [A], "id": "x"}, {"id": "id", "group": "id"}),
]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [p for k, v in items for p in paths(v, (*at, k))]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
@pytest.mark.parametrize("good", range(len(GOOD)))
def test_mutated_rows_are_examples_or_rejected_and_never_lost(
    tmp_path_factory: pytest.TempPathFactory, good: int, seed: int
) -> None:
    row, options = GOOD[good]
    random = Random(seed)
    rows = [row] * 60 + [mutant(row, random) for _ in range(50)]
    folder = tmp_path_factory.getbasetemp()
    # read_all checks that each row, and each of its responses, is in exactly one of the two
    lines = read_all(write(folder / "mutated.jsonl", "".join(json.dumps(r) + "\n" for r in rows)), 7, **options)
    assert lines.rows == 110
    assert {e["row"] for e in lines.examples} >= set(range(60))
    array = read_all(write(folder / "mutated.json", json.dumps(rows, indent=1)), **options)
    assert array.table.drop(["file"]).equals(lines.table.drop(["file"]))
    assert array.reasons == lines.reasons


def test_parquet_and_json_give_the_same_keys(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                U,
                A | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
                {"role": "tool", "content": "1", "tool_call_id": "c"},
                A,
            ],
            "tools": [{"name": "f", "p": {"a": 1}}],
        },
        {
            "messages": [
                U,
                A | {"tool_calls": [{"type": "function", "function": {"name": "g", "arguments": {"y": 2}}}]},
                {"role": "tool", "content": "1"},
                A,
            ],
            "tools": [{"name": "g", "p": {"b": 1}}],
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    a = read_all(tmp_path / "a.parquet").table
    b = read_all(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))).table
    assert a.num_rows == 2
    assert a.drop(["file"]).equals(b.drop(["file"]))


def test_the_documentation_lists_every_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reading.md").read_text(encoding="utf-8")
    assert all(f"| `{reason}` | {meaning} |" in page for reason, meaning in REASONS.items())
