"""Every format keeps the laws, gives back the rows that it was read from, and refuses what its trainer cannot take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curate
from curate import registry
from curate.exporters import TRL, Alpaca, Axolotl, LlamaFactory, OpenInstruct, Preference, ShareGPT
from curate.exporters.base import REASONS, Exporter, Facts
from curate.testing import check_exporter, odd_examples
from tests.exporters.helpers import (
    ALL,
    CALLING,
    LONG,
    MARKED,
    NAMED,
    PARALLEL,
    PLAIN,
    SYSTEM,
    THINKING,
    TIME,
    TOOLS,
    WEATHER,
    lines,
    read,
    turn,
)

EXPORTERS: list[Exporter] = [
    TRL(),
    TRL(layout="prompt-completion", turns="last"),
    TRL(layout="text"),
    TRL(arguments="text", thinking="thinking"),
    Axolotl(),
    Axolotl(turns="last"),
    LlamaFactory(),
    LlamaFactory(formatting="openai", turns="last", placeholders="keep"),
    OpenInstruct(),
    Alpaca(),
    ShareGPT(turns="last"),
]
PAIR = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}


@pytest.mark.parametrize("exporter", EXPORTERS, ids=repr)
def test_laws(exporter: Exporter) -> None:
    check_exporter(exporter)


@pytest.mark.parametrize("layout", ["messages", "implicit", "text"])
def test_laws_of_pairs(tmp_path: Path, layout: Any) -> None:
    rows = [PAIR, {**PAIR, "prompt": "Where? é😀\n"}, {**PAIR, "rejected": "Me."}, {**PAIR, "system": "Be terse."}]
    check_exporter(Preference(layout=layout), read(tmp_path, rows))


def test_every_word_is_a_format() -> None:
    for word in registry.names("exporters"):
        cls = registry.find("exporters", word)
        assert cls.name == word and issubclass(cls, curate.Exporter)
        assert cls.__doc__


def export(folder: Path, exporter: Exporter, rows: list[Any], **options: Any) -> list[Any]:
    """Return the rows of an export in JSON lines."""
    curate.export(read(folder, rows, **options), exporter, folder / "out", file="jsonl")
    return lines(folder / "out")


# -- round trips: the same format gives the same rows ------------------------------------------------------------------

NO_SURROGATES = st.characters(exclude_categories=["Cs"])
SAID = st.text(NO_SURROGATES, min_size=1, max_size=20).filter(lambda t: t.strip())
FREE = st.text(NO_SURROGATES, max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | FREE,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FREE, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": SAID, "arguments": st.dictionaries(FREE, VALUES, max_size=3)}),
        }
    ),
    min_size=1,
    max_size=2,
)
SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def conversations(draw: st.DrawFn, *, tools: bool = True, results: int = 2) -> list[dict[str, Any]]:
    """Draw messages in the order that every reader lets through."""
    messages = [turn("system", draw(SAID))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(turn("user", draw(SAID)))
        if tools and draw(st.booleans()):
            messages.append(turn("assistant", "", tool_calls=draw(CALLS)))
            messages += [turn("tool", draw(FREE)) for _ in range(draw(st.integers(1, results)))]
        messages.append(turn("assistant", draw(SAID)))
    return messages


@st.composite
def message_rows(draw: st.DrawFn) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": draw(conversations())}
    return row | ({"tools": json.dumps(draw(st.lists(st.just(TOOLS[0]), min_size=1)))} if draw(st.booleans()) else {})


@SETTINGS
@given(rows=st.lists(message_rows(), min_size=1, max_size=3))
def test_messages_come_back(tmp_path: Path, rows: list[Any]) -> None:
    for exporter in (TRL(), OpenInstruct()):
        assert export(tmp_path, exporter, rows) == rows


@SETTINGS
@given(rows=st.lists(message_rows(), min_size=1, max_size=3))
def test_prompt_and_completion_come_back(tmp_path: Path, rows: list[Any]) -> None:
    pairs = [
        {
            "prompt": r["messages"][:-1],
            "completion": r["messages"][-1:],
            **({"tools": r["tools"]} if "tools" in r else {}),
        }
        for r in rows
    ]
    assert export(tmp_path, TRL(layout="prompt-completion", turns="last"), pairs) == pairs


@SETTINGS
@given(rows=st.lists(st.fixed_dictionaries({"prompt": SAID, "completion": SAID}), min_size=1, max_size=4))
def test_texts_come_back(tmp_path: Path, rows: list[Any]) -> None:
    assert export(tmp_path, TRL(layout="text"), rows) == rows


PAIRS = st.lists(st.lists(SAID, min_size=2, max_size=2), max_size=2)
ALPACA = st.fixed_dictionaries(
    {"instruction": SAID, "input": st.just("") | SAID, "output": SAID, "history": PAIRS}, optional={"system": SAID}
)


@SETTINGS
@given(rows=st.lists(ALPACA, min_size=1, max_size=4))
def test_alpaca_comes_back(tmp_path: Path, rows: list[Any]) -> None:
    got = export(tmp_path, Alpaca(), rows)
    if not any(r["history"] for r in rows):
        rows = [{k: v for k, v in r.items() if k != "history"} for r in rows]
    assert got == rows


def as_sharegpt(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    words = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    out = []
    for message in messages:
        if "tool_calls" in message:
            calls = [call["function"] for call in message["tool_calls"]]
            value = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
            out.append({"from": "function_call", "value": value})
        else:
            out.append({"from": words[message["role"]], "value": message["content"]})
    return out


@SETTINGS
@given(rows=st.lists(conversations(results=1), min_size=1, max_size=3), tools=st.booleans())
def test_sharegpt_comes_back(tmp_path: Path, rows: list[Any], tools: bool) -> None:
    given_ = [{"conversations": as_sharegpt(r), **({"tools": json.dumps(TOOLS)} if tools else {})} for r in rows]
    for exporter in (ShareGPT(), LlamaFactory(placeholders="keep")):
        assert export(tmp_path, exporter, given_, schema="sharegpt") == given_


@SETTINGS
@given(
    rows=st.lists(st.tuples(conversations(tools=False), SAID, SAID), min_size=1, max_size=3),
    layout=st.sampled_from(["messages", "implicit"]),
)
def test_pairs_come_back(tmp_path: Path, rows: list[Any], layout: Any) -> None:
    given_ = []
    for messages, chosen, rejected in rows:
        sides = [[turn("assistant", chosen)], [turn("assistant", rejected + ("!" if chosen == rejected else ""))]]
        prompt = messages[:-1]
        if layout == "implicit":
            given_.append({"chosen": prompt + sides[0], "rejected": prompt + sides[1]})
        else:
            given_.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    assert export(tmp_path, Preference(layout=layout), given_) == given_


@SETTINGS
@given(rows=st.lists(st.fixed_dictionaries({"prompt": SAID, "chosen": SAID, "rejected": SAID}), min_size=1, max_size=3))
def test_pairs_of_texts_come_back(tmp_path: Path, rows: list[Any]) -> None:
    rows = [{**r, "rejected": r["rejected"] + "!"} if r["chosen"] == r["rejected"] else r for r in rows]
    assert export(tmp_path, Preference(layout="text"), rows) == rows


# -- by hand -----------------------------------------------------------------------------------------------------------


def refusals(folder: Path, exporter: Exporter, rows: list[Any], **options: Any) -> list[tuple[int, str, str]]:
    refused = exporter.convert(read(folder, rows, **options)).refused
    assert set(refused.reason) <= set(REASONS)
    return list(zip(refused.rows.tolist(), refused.reason, refused.detail, strict=True))


def test_trl_has_the_columns_of_its_layout_and_no_other(tmp_path: Path) -> None:
    rows = [{**PLAIN, "prompt": "a stray one", "id": 7, "score": 0.5}]
    assert export(tmp_path, TRL(), rows, columns={"messages": "messages"}) == [PLAIN]
    table = TRL(layout="prompt-completion").convert(read(tmp_path, [PLAIN, SYSTEM])).table
    assert table.column_names == ["prompt", "completion"]


def test_the_loss_decides_which_layout_holds_a_row(tmp_path: Path) -> None:
    marked, split = (
        refusals(tmp_path, TRL(), [PLAIN, MARKED]),
        refusals(tmp_path, TRL(layout="prompt-completion"), [LONG]),
    )
    assert marked == [
        (
            1,
            "loss-mask",
            "turn 1 (assistant): not in the loss, and the trainer would train on it; axolotl reads such marks",
        )
    ]
    assert split == [
        (
            0,
            "loss-mask",
            "turn 1 (assistant): in the loss, and the trainer would train on the last turn only; with 'turns: last' it "
            "is not counted",
        )
    ]
    assert not refusals(tmp_path, TRL(layout="prompt-completion"), [MARKED])
    assert not refusals(tmp_path, TRL(layout="prompt-completion", turns="last"), [LONG])
    assert [r[1] for r in refusals(tmp_path, TRL(turns="last"), [LONG])] == ["loss-mask"]
    prompted = {"messages": [turn("user", "Mine.", train=True), turn("assistant", "Yours.")]}
    for exporter in (TRL(), Axolotl(), OpenInstruct(), ShareGPT(), Alpaca(), LlamaFactory()):
        assert [r[1] for r in refusals(tmp_path, exporter, [prompted])] == ["loss-mask"], exporter.name
    last = {"messages": [*LONG["messages"][:3], turn("assistant", "Not this.", train=False)]}
    assert refusals(tmp_path, Axolotl(turns="last"), [last]) == [(0, "loss-mask", "no turn is in the loss")]


def test_axolotl_marks_what_is_not_in_the_loss(tmp_path: Path) -> None:
    assert export(tmp_path, Axolotl(), [LONG, MARKED]) == [LONG, MARKED]
    (row,) = export(tmp_path, Axolotl(turns="last"), [LONG])
    assert [m.get("train") for m in row["messages"]] == [None, False, None, None]
    said = yaml.safe_load((tmp_path / "out" / "axolotl.yaml").read_text())
    assert said == {
        "datasets": [
            {
                "path": "json",
                "data_files": ["data/*.jsonl"],
                "split": "train",
                "type": "chat_template",
                "field_messages": "messages",
                "message_property_mappings": {"role": "role", "content": "content"},
                "roles_to_train": ["assistant"],
                "train_on_eos": "turn",
                "message_field_training": "train",
            }
        ],
        "chat_template": "tokenizer_default",
    }


def test_arguments_are_objects_for_templates_and_text_for_axolotl(tmp_path: Path) -> None:
    as_text = {
        **WEATHER,
        "function": {**WEATHER["function"], "arguments": json.dumps(WEATHER["function"]["arguments"])},
    }
    flat = {"messages": [turn("user", "?"), turn("assistant", "", tool_calls=[WEATHER["function"]])]}
    texts = {"messages": [turn("user", "?"), turn("assistant", "", tool_calls=[as_text])]}
    for rows in ([flat], [texts]):
        assert export(tmp_path, TRL(), rows)[0]["messages"][1]["tool_calls"] == [WEATHER]
        assert export(tmp_path, Axolotl(), rows)[0]["messages"][1]["tool_calls"] == [as_text]
        assert export(tmp_path, TRL(arguments="text"), rows)[0]["messages"][1]["tool_calls"] == [as_text]
        said = export(tmp_path, ShareGPT(), rows)[0]["conversations"][1]
        assert said == {"from": "function_call", "value": json.dumps(WEATHER["function"])}


def test_thinking_goes_by_the_name_that_the_template_reads(tmp_path: Path) -> None:
    assert export(tmp_path, TRL(), [THINKING]) == [THINKING]
    said = export(tmp_path, TRL(thinking="thinking"), [THINKING])[0]["messages"][1]
    assert said == turn("assistant", "4", thinking="Two and two.")
    said = refusals(tmp_path, ShareGPT(), [THINKING])
    assert said == [(0, "no-place", "turn 1 (assistant): sharegpt has no place for 'thinking'")]


def test_sharegpt_and_alpaca_refuse_what_they_have_no_place_for(tmp_path: Path) -> None:
    both = {"messages": [turn("user", "?"), turn("assistant", "I look.", tool_calls=[TIME])]}
    found = refusals(tmp_path, ShareGPT(), [*ALL, both])
    assert [(row, word) for row, word, _ in found] == [
        (3, "loss-mask"),
        (6, "no-place"),
        (7, "no-place"),
        (8, "no-place"),
    ]
    assert "text beside a tool call" in found[-1][2]
    identified = {"messages": [turn("user", "?"), turn("assistant", "", tool_calls=[{**TIME, "id": "1"}])]}
    assert "this one has more, as an id" in refusals(tmp_path, ShareGPT(), [identified])[0][2]
    assert [row for row, _, _ in refusals(tmp_path, Alpaca(), ALL)] == [3, 4, 5, 6, 7]


def alternates(row: dict[str, Any]) -> bool:
    """LLaMA-Factory's documented rule: after a system turn, odd places are the user's, even ones the model's."""
    words = [t["from"] for t in row["conversations"] if t["from"] != "system"]
    odd, even = {"human", "observation"}, {"gpt", "function_call"}
    return len(words) % 2 == 0 and all(w in (odd, even)[i % 2] for i, w in enumerate(words))


def test_llama_factory_alternates_and_registers_the_data(tmp_path: Path, example_pool: Path) -> None:
    table = curate.read(str(example_pool / "train-00000-of-00004.parquet")).examples()
    made = curate.export(table, LlamaFactory(), tmp_path / "pool")
    assert made.rows == table.num_rows and all(map(alternates, lines(tmp_path / "pool")))
    assert refusals(tmp_path, LlamaFactory(), [CALLING, PARALLEL]) == [
        (
            1,
            "alternation",
            "turn 3 (tool): a second result of a tool; llama-factory takes one between two turns of the model",
        )
    ]
    export(tmp_path, LlamaFactory(turns="last"), [CALLING, LONG])
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())["curated"]
    assert (info["file_name"], info["formatting"]) == ("data", "sharegpt")
    assert info["columns"] == {"messages": "conversations", "tools": "tools"}
    assert info["tags"]["function_tag"] == "function_call"
    assert yaml.safe_load((tmp_path / "out/llama_factory.yaml").read_text())["mask_history"] is True


@pytest.mark.parametrize("word", ["<image>", "<video>", "<audio>"])
def test_the_place_of_an_image_is_refused_or_kept(tmp_path: Path, word: str) -> None:
    row = {"messages": [turn("user", f"What is this? {word}"), turn("assistant", "A tag.")]}
    (found,) = refusals(tmp_path, LlamaFactory(), [row])
    assert found[1:] == (
        "media-placeholder",
        f"turn 0 (user): holds {word}; set 'placeholders: keep' for a model of text",
    )
    assert not refusals(tmp_path, LlamaFactory(placeholders="keep"), [row])
    assert not refusals(tmp_path, TRL(), [row])


def test_the_openai_formatting_takes_no_tool_calls(tmp_path: Path) -> None:
    exporter = LlamaFactory(formatting="openai")
    assert export(tmp_path, exporter, [PLAIN, SYSTEM]) == [PLAIN, SYSTEM]
    assert [word for _, word, _ in refusals(tmp_path, exporter, [CALLING])] == ["no-place"]


def test_the_input_of_alpaca_is_parted_only_where_it_was(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.\n\nAll.", "input": "1\n\n2", "output": "3"},
        {"instruction": "", "input": "Only this.", "output": "Yes."},
        {"instruction": "No input.", "input": "", "output": "Yes."},
    ]
    assert export(tmp_path, Alpaca(), rows) == rows
    (row,) = export(
        tmp_path, Alpaca(), [{"messages": [turn("user", "Add.\n\n1"), turn("assistant", "1")], "input": "2"}]
    )
    assert row == {"instruction": "Add.\n\n1", "input": "", "output": "1"}
    (row,) = export(
        tmp_path, Alpaca(), [{"messages": [turn("user", "Add.\n\n"), turn("assistant", "1")], "input": "2"}]
    )
    assert row == {"instruction": "Add.\n\n", "input": "", "output": "1"}


# -- pairs -------------------------------------------------------------------------------------------------------------


def whole(*said: str) -> list[dict[str, Any]]:
    return [turn(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]


def test_a_pair_parts_where_the_sides_differ(tmp_path: Path) -> None:
    (row,) = export(
        tmp_path, Preference(), [{"chosen": whole("a", "b", "c", "d"), "rejected": whole("a", "b", "c", "e")}]
    )
    assert row == {
        "prompt": whole("a", "b", "c"),
        "chosen": [turn("assistant", "d")],
        "rejected": [turn("assistant", "e")],
    }
    (row,) = export(tmp_path, Preference(), [{"chosen": whole("a", "b", "c", "d"), "rejected": whole("a", "B")}])
    assert row["prompt"] == whole("a") and row["chosen"][0]["content"] == "b" and len(row["chosen"]) == 3


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ({**PAIR, "rejected": None}, "no-rejected", "no 'rejected' among the row's other columns"),
        ({**PAIR, "rejected": "Me."}, "same-sides", "the two sides are the same"),
        ({**PAIR, "rejected": " "}, "no-rejected", "empty-response"),
        ({**PAIR, "rejected": 3}, "no-rejected", "no-messages"),
        ({"chosen": whole("a", "b"), "rejected": whole("A", "b")}, "unclear-prompt", "the sides part at turn 0"),
        (
            {"chosen": whole("a", "b"), "rejected": whole("a", "b", "c", "d")},
            "same-sides",
            "one side begins with the other",
        ),
    ],
)
def test_a_pair_that_is_none(tmp_path: Path, row: Any, reason: str, said: str) -> None:
    (found,) = refusals(tmp_path, Preference(), [PAIR, row] if "prompt" in row else [row])
    assert found[1] == reason and said in found[2]


def test_a_pair_whose_prompt_is_unclear(tmp_path: Path) -> None:
    calling = {**CALLING, "chosen": CALLING["messages"][1:], "prompt": CALLING["messages"][:1]}
    row = {k: v for k, v in calling.items() if k != "messages"} | {"rejected": [turn("assistant", "Warm.")]}
    (found,) = refusals(tmp_path, Preference(), [row])
    assert found[1:] == ("unclear-prompt", "2 assistant turns follow the last user turn; which is the chosen side's?")


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no-user-turn"),
        ([turn("system", "s"), turn("assistant", "a")], "no-user-turn"),
        ([turn("user", "u")], "no-response"),
        ([turn("assistant", "a"), turn("user", "u"), turn("assistant", "a")], "role-order"),
        ([turn("user", "u"), turn("user", "u"), turn("assistant", "a")], "role-order"),
        ([turn("user", "u"), turn("narrator", "n"), turn("assistant", "a")], "wrong-type"),
        ([turn("user", " "), turn("assistant", "a")], "empty-turn"),
        ([turn("user", "u"), turn("assistant", "")], "empty-turn"),
        ([turn("user", "u"), turn("assistant", "", tool_calls="{")], "bad-tool-call"),
        ([turn("user", "u"), turn("assistant", "", tool_calls='[{"function": {}}]')], "bad-tool-call"),
        ([turn("user", "u"), turn("assistant", "", tool_calls='[{"name": "f", "arguments": NaN}]')], "bad-tool-call"),
        ([turn("user", "u", tool_calls='[{"name": "f"}]'), turn("assistant", "a")], "bad-tool-call"),
    ],
)
def test_tables_that_no_reader_made(messages: list[Any], reason: str) -> None:
    good = odd_examples().slice(0, 1).to_pylist()[0]
    table = pa.Table.from_pylist([good, {**good, "messages": messages}], schema=odd_examples().schema)
    for exporter in (TRL(), Axolotl(), LlamaFactory(), OpenInstruct(), Alpaca(), ShareGPT()):
        refused = exporter.convert(table).refused
        assert (refused.rows.tolist(), refused.reason) == ([1], [reason]), exporter.name


def test_tools_that_are_none() -> None:
    row = odd_examples().slice(0, 1).to_pylist()[0]
    table = pa.Table.from_pylist([{**row, "tools": '{"a": 1}'}, {**row, "tools": "["}], schema=odd_examples().schema)
    assert TRL().convert(table).refused.reason == ["bad-tools"] * 2


def test_long_rows_are_written_whole(tmp_path: Path) -> None:
    text = 'é"\\\n' * 30_000
    rows = [{"messages": [turn("user", text), turn("assistant", text + "!")]}]
    for exporter in (TRL(), LlamaFactory(), OpenInstruct()):
        table = read(tmp_path, rows)
        assert curate.export(table, exporter, tmp_path / "o", file="jsonl").rows == 1
        (row,) = lines(tmp_path / "o")
        assert next(iter(row.values()))[0].get("content", text) == text


def test_contents_that_are_no_text_never_become_examples(tmp_path: Path) -> None:
    rows = [
        {"messages": [turn("user", [{"type": "image", "url": "a.png"}]), turn("assistant", "a")]},
        {"messages": [turn("user", 3), turn("assistant", "a")]},
        {"messages": [turn("assistant", "I begin.")]},
        PLAIN,
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    pool = curate.read(str(path))
    assert pool.rejected().column("reason").to_pylist() == ["not-text-part", "wrong-type", "role-order"]
    curate.export(pool, TRL(), tmp_path / "out", file="jsonl")
    assert lines(tmp_path / "out") == [PLAIN]


def test_facts_decide_the_columns_not_the_batch(tmp_path: Path) -> None:
    table = read(tmp_path, [PLAIN, NAMED])
    facts = Facts(TRL().look(table).has)
    parts = [TRL().convert(table.slice(i, 1), facts).table for i in range(2)]
    assert pa.concat_tables(parts).equals(TRL().convert(table).table)
    assert parts[0].schema.equals(parts[1].schema)
    names = [f.name for f in parts[0].schema.field("messages").type.value_type]
    assert names == ["role", "content", "name", "tool_calls", "tool_call_id"]


def test_parquet_and_json_lines_hold_the_same(tmp_path: Path) -> None:
    table = read(tmp_path, [PLAIN, SYSTEM, CALLING, NAMED, THINKING])
    for exporter in (TRL(), Axolotl(), OpenInstruct()):
        for file in ("parquet", "jsonl"):
            curate.export(table, exporter, tmp_path / exporter.name / file, file=file)
        (name,) = (tmp_path / exporter.name / "parquet/data").iterdir()
        found = [without_nulls(row) for row in pq.read_table(name).to_pylist()]
        assert found == lines(tmp_path / exporter.name / "jsonl")


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {k: v for k, v in row.items() if v is not None}
    out["messages"] = [{k: v for k, v in t.items() if v is not None} for t in row["messages"]]
    for message in out["messages"]:
        if "tool_calls" in message:
            message["tool_calls"] = json.loads(message["tool_calls"])
    return out


def test_refused_rows_are_numbered_in_the_batch() -> None:
    refused = TRL().look(odd_examples()).refused
    assert refused.rows.dtype == np.int64 and (np.diff(refused.rows) > 0).all()
