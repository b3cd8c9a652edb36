from __future__ import annotations

import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.connectors import read as module
from curate.connectors.discover import discover
from curate.connectors.read import read
from curate.connectors.recognise import recognise
from curate.connectors.source import Source
from curate.example import MESSAGE_TYPE
from curate.exceptions import SourceError
from tests.connectors.helpers import read_all, write

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_a_row_by_hand(tmp_path: Path) -> None:
    row = {
        "messages": [U, A | {"thinking": "t"}],
        "source": "s",
        "category": "c",
        "score": 1.5,
        "none": None,
        "list": [1, {"ü": "x"}],
    }
    result = read_all(write(tmp_path / "pool-00003.jsonl", "\n" + json.dumps(row)))
    blank = {"name": None, "tool_calls": None, "tool_call_id": None, "thinking": None, "train": None}
    example = result.examples[0]
    assert example["id"] == example["content_key"].hex()
    assert example["messages"] == [blank | U, blank | A | {"thinking": "t"}]
    assert {k: example[k] for k in ("tools", "source", "group", "extra", "chars", "file", "row", "part")} == {
        "tools": None,
        "source": "s",
        "group": "c",
        "extra": '{"score": 1.5, "list": [1, {"ü": "x"}]}',
        "chars": 2,
        "file": str(tmp_path / "pool-00003.jsonl"),
        "row": 1,
        "part": -1,
    }


def test_ids(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "responses": ["a", "b"], "id": i} for i in ("x", 7, None, "", True, 1.5, "x")]
    result = read_all(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), id="id")
    assert [e["id"] for e in result.examples] == ["x#0", "x#1", "7#0", "7#1", "x#0", "x#1"]
    assert result.reasons == [(2, -1, "no-id"), (3, -1, "no-id"), (4, -1, "wrong-type"), (5, -1, "wrong-type")]
    one = read_all(write(tmp_path / "b.jsonl", json.dumps({"prompt": "p", "response": "a", "id": 7})), id="id")
    assert one.examples[0]["id"] == "7" and one.examples[0]["extra"] is None


def test_each_response_is_an_example_with_its_score(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": ["a", "", 3, "b"], "scores": [1, 2, 3, 4], "k": "v"}
    result = read_all(write(tmp_path / "a.jsonl", json.dumps(row)))
    assert [(e["row"], e["part"], e["extra"]) for e in result.examples] == [
        (0, 0, '{"k": "v", "scores": 1}'),
        (0, 3, '{"k": "v", "scores": 4}'),
    ]
    assert result.reasons == [(0, 1, "empty-response"), (0, 2, "wrong-type")]
    assert len({e["prompt_key"] for e in result.examples}) == 1
    assert result.rows == 1
    single = read_all(write(tmp_path / "b.jsonl", json.dumps({"prompt": "p", "responses": ["a"]})))
    assert single.examples[0]["part"] == -1


def test_labels(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response": "r", "source": s, "group": g}
        for s, g in (("a", "x"), (None, None), ("", ""), ("b", "y"))
    ]
    path = write(tmp_path / "gsm8k-00001-of-00002.jsonl", "\n".join(map(json.dumps, rows)))
    assert [(e["source"], e["group"]) for e in read_all(path).examples] == [
        ("a", "x"),
        ("gsm8k", None),
        ("gsm8k", None),
        ("b", "y"),
    ]
    assert {e["source"] for e in read_all(path, name="mine").examples} == {"mine"}
    numbers = write(
        tmp_path / "b.jsonl", "\n".join(json.dumps({"prompt": "p", "response": "r", "n": n}) for n in (3, True, [1]))
    )
    assert [e["group"] for e in read_all(numbers, group="n").examples] == ["3", "true", "[1]"]


def test_extra_keeps_what_json_can_hardly_spell(tmp_path: Path) -> None:
    line = '{"prompt": "p", "response": "r", "nan": NaN, "half": "\\ud800", "big": 123456789012345678901234567890}'
    extra = json.loads(read_all(write(tmp_path / "a.jsonl", line)).examples[0]["extra"], parse_constant=pytest.fail)
    assert extra == {"nan": None, "half": "\ud800", "big": 123456789012345678901234567890}


def test_raw_is_cut_and_storable(tmp_path: Path) -> None:
    rows = [{"prompt": "ü" * 70_000, "response": ""}, {"prompt": "\ud800", "response": "r"}]
    raws = [r["raw"] for r in read_all(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))).rejected]
    assert len(raws[0].encode()) <= 64 * 1024 and raws[0].endswith("ü")
    assert raws[1] == '{"prompt": "\\ud800", "response": "r"}'


def test_over_long_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 5, "response": "r" * n} for n in (5, 6)]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_all(path, max_chars=10).reasons == [(1, -1, "too-long")]
    assert read_all(path, max_chars=None).rejected == []


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"prompt": "p", "response": "r"}))
    source = Source(path=str(path))
    pieces = discover([source])
    recognised = recognise(pieces, source)
    piece, source, recognised = pickle.loads(pickle.dumps((pieces[0], source, recognised)))  # as a worker gets them
    assert [b.rows for b in read(piece, source, recognised)] == [1]
    path.unlink()
    with pytest.raises(SourceError, match=r"a.jsonl: no such file; it was there when the sources were listed"):
        list(read(piece, source, recognised))


# -- the Arrow path and the row path give the same table ---------------------------------------------------------------

TEXTS = ["q", "a", "", " ", "\u2003", "\x1c", "\u200b", "\u0301", "é" * 3, "😀", "x" * 30, "\x00", None]
ROLES = ["user", "assistant", "system", "tool", "human", "gpt", "User", "x", None]


def turns_of(random: Random) -> Any:
    """Return a conversation that is plain, or nearly so."""
    if random.random() < 0.03:
        return random.choice([None, []])
    turns: list[Any] = [{"role": "system", "content": "s"}] if random.random() < 0.3 else []
    turns += [
        {"role": ("user", "assistant")[i % 2], "content": random.choice("abü")} for i in range(random.randint(1, 6))
    ]
    if random.random() < 0.5:
        at = random.randrange(len(turns))
        if random.random() < 0.5:
            turns[at] = {"role": random.choice(ROLES), "content": "text"}
        else:
            turns[at] = turns[at] | {"content": random.choice(TEXTS)}
    return turns


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    struct=st.sampled_from(["role content", "content role", "role content name", "role content weight"]),
    fill=st.booleans(),
    wide=st.sampled_from(["list", "list", "large", "dictionary"]),
    max_chars=st.sampled_from([None, 8]),
)
def test_the_arrow_path_equals_the_row_path(
    tmp_path_factory: pytest.TempPathFactory, seed: int, struct: str, fill: bool, wide: str, max_chars: int | None
) -> None:
    random = Random(seed)
    text = pa.large_string() if wide == "large" else pa.string()
    role = pa.dictionary(pa.int8(), pa.string()) if wide == "dictionary" else text
    types = {"role": role, "content": text, "name": pa.string(), "weight": pa.int64()}
    item = pa.struct([(f, types[f]) for f in struct.split()])
    spare: dict[str, Any] = {"name": "n", "weight": 0} if fill else {}
    rows = [[U, A], [U, A], *(turns_of(random) for _ in range(30))]
    column = [None if r is None else [{f: (t | spare).get(f) for f in struct.split()} for t in r] for r in rows]
    labels = [random.choice(["s", "", None]) for _ in rows]
    table = {
        "messages": pa.array(column, pa.large_list(item) if wide == "large" else pa.list_(item)),
        "n": np.arange(len(rows)),
        "source": pa.array(labels, pa.large_string() if wide == "large" else pa.string()),
        "group": pa.array(labels).dictionary_encode() if wide == "dictionary" else labels,
    }
    path = tmp_path_factory.getbasetemp() / "arrow.parquet"
    pq.write_table(pa.table(table), path)
    options: dict[str, Any] = {"max_chars": max_chars, "batch_rows": random.randint(3, 40), "group": "group"}
    fast = read_all(path, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Rows, "_certain", lambda *_: (None, None))
        slow = read_all(path, **options)
    assert fast.table.equals(slow.table)
    assert fast.rejected_table.equals(slow.rejected_table)


def test_the_arrow_path_takes_plain_rows_and_only_those(tmp_path: Path) -> None:
    rows = [[U, A], [U], [{"role": "system", "content": "s"}, U, A], [U, A | {"content": "\u2003"}]]
    pq.write_table(
        pa.table(
            {
                "messages": pa.array(rows, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
                "id": list("abcd"),
            }
        ),
        tmp_path / "a.parquet",
    )
    taken: list[Any] = []
    certain = module._Rows._certain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Rows, "_certain", lambda *a: taken.append(certain(*a)) or taken[-1])
        result = read_all(tmp_path / "a.parquet", id="id")
    assert [m.tolist() for m, _ in taken] == [[True, False, True, False]]
    assert [e["id"] for e in result.examples] == ["a", "c"]
    assert result.reasons == [(1, -1, "no-response"), (3, -1, "empty-response")]
    assert result.table.schema.field("messages").type.value_type == MESSAGE_TYPE


def test_a_missing_id_among_plain_rows_is_rejected(tmp_path: Path) -> None:
    table = pa.table({"messages": [[U, A]] * 3, "id": ["a", None, "c"]})
    pq.write_table(table, tmp_path / "a.parquet")
    result = read_all(tmp_path / "a.parquet", id="id")
    assert [e["id"] for e in result.examples] == ["a", "c"] and result.reasons == [(1, -1, "no-id")]


@pytest.mark.parametrize("batch_rows", [1, 3, 1000])
def test_batches_and_row_groups_change_nothing(tmp_path: Path, batch_rows: int) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, A | {"content": "" if i % 7 == 3 else "a"}], "n": i}
        for i in range(50)
    ]
    path = tmp_path / "a.parquet"
    results = []
    for size in (50, 7):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=size)
        results.append(read_all(path, batch_rows=batch_rows))
    whole = read_all(path)
    for result in results:
        assert result.table.equals(whole.table) and result.rejected_table.equals(whole.rejected_table)
    assert whole.rows == 50 and len(whole.rejected) == 7


def test_nothing_heavy_is_imported() -> None:
    import subprocess
    import sys

    heavy = ("torch", "transformers", "dask", "datasets", "faiss", "sklearn", "pandas")
    code = f"import sys, curate.connectors.read; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
