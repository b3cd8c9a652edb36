"""Thousands of rows that something happened to: none is lost from the ledger, and none crashes the run.

A seed draws the rows of a file and what happens to some of them; Hypothesis draws the seed and the size.  A run may stop
with an error of ours (a file in which nothing can be recognised), and most runs may not.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.connectors import read as reading
from curate.connectors.discover import discover
from curate.connectors.recognise import recognise
from curate.connectors.source import Source
from curate.exceptions import CurateError
from curate.pipelines.run import Run
from curate.recipe import Recipe

RUNS = 60
bounded = settings(
    max_examples=RUNS, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
files = given(seed=st.integers(0, 2**32), n=st.integers(1, 90))
numbers = itertools.count()

WORDS = ["the", "cat", "sat", "on", "π", "is", "3.14", "in", "Łódź", "猫", "🙂", "{", "}", "\\", '"', "\t", ""]
JUNK: list[Callable[[random.Random], Any]] = [
    lambda r: None,
    lambda r: r.random() < 0.5,
    lambda r: r.choice([0, -1, 7, 2**31, 2**63, -(2**64), 10**400]),
    lambda r: r.choice([0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")]),
    lambda r: r.choice(["", " ", "\n", "\u200b", "\x00", "\ufeff", "null", "[]", "{", "[1, 2", "user"]),
    lambda r: r.choice(["\ud800", "ok \udfff", "\ud83d", "a\udc80b"]),
    lambda r: "x" * r.choice([1, 300, 70_000]),
    lambda r: [],
    lambda r: {},
    lambda r: [junk(r) for _ in range(r.randrange(4))],
    lambda r: {
        r.choice(["role", "content", "text", "type", "from", "value", "", "\ud800", "é"]): junk(r) for _ in range(2)
    },
    lambda r: nested(r.choice([3, 60, 150])),
    lambda r: [{"role": junk(r), "content": junk(r)}],
    lambda r: [{"type": "text", "text": junk(r)}, {"type": "image", "url": "x"}],
    lambda r: [{"function": {"name": junk(r), "arguments": junk(r)}}],
]
ROLES = ["user", "assistant", "system", "tool", "human", "gpt", "USER ", "developer", "", "critic", "function_call"]


def junk(r: random.Random) -> Any:
    return r.choice(JUNK)(r)


def nested(depth: int) -> Any:
    value: Any = "deep"
    for i in range(depth):
        value = [value] if i % 2 else {"k": value}
    return value


def text(r: random.Random) -> str:
    return " ".join(r.choice(WORDS) for _ in range(r.randrange(1, 30)))


def turns(r: random.Random, who: str, what: str, names: tuple[str, str]) -> list[dict[str, Any]]:
    return [{who: name, what: text(r)} for _ in range(r.choice([1, 1, 1, 2])) for name in names]


ROWS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "messages": lambda r: {"messages": turns(r, "role", "content", ("user", "assistant")), "source": r.choice("ab")},
    "sharegpt": lambda r: {"conversations": turns(r, "from", "value", ("human", "gpt")), "id": str(r.random())},
    "alpaca": lambda r: {"instruction": text(r), "input": r.choice(["", text(r)]), "output": text(r)},
    "prompt-completion": lambda r: {"prompt": text(r), "completion": text(r), "rating": r.random()},
    "candidates": lambda r: {"prompt": text(r), "responses": [text(r) for _ in range(3)], "scores": [1, 2, 3]},
}


def mutate(r: random.Random, row: dict[str, Any]) -> Any:
    """Return the row after one thing happened to it."""
    row = copy.deepcopy(row)
    field = r.choice(list(row))
    lists = [v for v in row.values() if isinstance(v, list) and v]
    what = r.randrange(8)
    if what == 0:
        return junk(r)
    if what == 1:
        del row[field]
    elif what == 2:
        row[r.choice(["tools", "system", "images", "train", "weight", "note", "\ud800"])] = junk(r)
    elif what == 3 or not lists:
        row[field] = junk(r)
    else:
        items = r.choice(lists)
        at = r.randrange(len(items))
        if what == 4:
            items[at] = junk(r)
        elif what == 5:
            del items[at]
        elif what == 6:
            items.insert(at, copy.deepcopy(r.choice(items)))
        elif isinstance(items[at], dict):
            key = r.choice([*items[at], "tool_calls", "name", "thinking", "tool_call_id", "weight"])
            items[at][key] = r.choice(ROLES) if key in ("role", "from") and r.random() < 0.7 else junk(r)
    return row


def lines_of(r: random.Random, n: int) -> list[str]:
    """Return ``n`` rows as JSON: two in five changed, some twice."""
    make = ROWS[r.choice(list(ROWS))]
    rows: list[Any] = []
    for _ in range(n):
        row = make(r)
        if rows and r.random() < 0.08:
            row = copy.deepcopy(r.choice(rows))
        elif r.random() < 0.4:
            row = mutate(r, row)
            while isinstance(row, dict) and row and r.random() < 0.2:
                row = mutate(r, row)
        rows.append(row)
    return [json.dumps(row, ensure_ascii=r.random() < 0.9 or not _encodes(row)) for row in rows]


def _encodes(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def damage(r: random.Random, data: bytes) -> bytes:
    """Return the file after some of its bytes were changed, cut out or put in."""
    out = bytearray(data)
    for _ in range(r.randrange(1, 12)):
        at = r.randrange(len(out)) if out else 0
        what = r.randrange(6)
        if what == 0 and out:
            out[at] ^= 1 << r.randrange(8)
        elif what == 1:
            del out[at : at + r.choice([1, 1, 5, 400])]
        elif what == 2:
            out[at:at] = r.choice(
                [b"\x00", b"\xff", b"\r", b"\n", b"\n\n", b"\\", b'"', b"\xf0\x9f", b"\xed\xa0\x80", b"\xef\xbb\xbf"]
            )
        elif what == 3:
            out[at:at] = (
                b"\n"
                + r.choice([b"[" * 5_000, b"[" * 2_000 + b"]" * 2_000, b'{"a":' * 3_000, b"NaN", b"-", b"{}"])
                + b"\n"
            )
        elif what == 4:
            out[at:at] = out[at : at + r.randrange(300)]
        else:
            del out[r.randrange(len(out) // 2, len(out) + 1) :]
    return bytes(out)


def run(folder: Path, source: dict[str, Any]) -> Run | CurateError:
    """Run the whole pipeline in this process; return the run, or the error of ours that stopped it."""
    document = {
        "name": "mutations",
        "sources": [{"path": str(folder / "pool"), **source}],
        "scorers": {"heuristics": {"use": "text-heuristics"}},
        "select": [{"use": "threshold", "on": "heuristics.repetition", "max": 0.9}, {"use": "random", "budget": "50%"}],
        "execution": {"shard_rows": 32},
    }
    try:
        job = Run(Recipe.from_dict(document), folder / "run", "sync", quiet=True)
        job.execute()
    except CurateError as error:
        assert str(error)
        return error
    return job


def check_ledger(job: Run, rows: list[int]) -> None:
    """Every input row is in the ledger, each part of it once, with a reason."""
    ledger = pl.read_parquet(f"{job.store.root}/decisions/*.parquet")
    assert sorted(set(ledger["row"])) == rows
    assert ledger.select("file", "row", "part").is_unique().all()
    assert ledger["reason"].null_count() == 0 and (ledger["reason"].str.len_chars() > 0).all()
    assert set(ledger["decision"]) <= {"kept", "dropped", "duplicate", "rejected"}
    assert sum(job.manifest["decisions"].values()) == ledger.height
    assert job.manifest["rows"]["input"] == len(rows)
    whole = ledger.filter(pl.col("part") < 0)
    split = ledger.filter(pl.col("part") >= 0)
    assert whole["row"].is_unique().all() and not set(whole["row"]) & set(split["row"])
    for _, parts in split.group_by("row"):
        assert sorted(parts["part"]) == list(range(parts.height))


def folder(root: Path) -> Path:
    """Return a fresh folder: Hypothesis runs many examples inside one test."""
    made = Path(tempfile.mkdtemp(dir=root, prefix=f"{next(numbers)}-"))
    (made / "pool").mkdir()
    return made


@pytest.fixture
def outcomes() -> list[Run | CurateError]:
    return []


def most_went_through(outcomes: list[Run | CurateError]) -> None:
    stopped = [str(o) for o in outcomes if isinstance(o, CurateError)]
    assert len(stopped) < len(outcomes) / 3, "too many runs stopped to prove anything: " + "\n".join(stopped[:5])


def test_mutated_rows(tmp_path: Path, outcomes: list[Run | CurateError]) -> None:
    @bounded
    @files
    def every_row_is_accounted_for(seed: int, n: int) -> None:
        where = folder(tmp_path)
        lines = lines_of(random.Random(seed), n)
        (where / "pool/rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
        outcomes.append(run(where, {"format": "jsonl"}))
        if isinstance(outcomes[-1], Run):
            check_ledger(outcomes[-1], list(range(n)))

    every_row_is_accounted_for()
    most_went_through(outcomes)


def test_damaged_bytes(tmp_path: Path, outcomes: list[Run | CurateError]) -> None:
    @bounded
    @files
    def every_line_is_accounted_for(seed: int, n: int) -> None:
        r = random.Random(seed)
        where = folder(tmp_path)
        data = damage(r, "\n".join(lines_of(r, n)).encode())
        (where / "pool/rows.jsonl").write_bytes(data)
        outcomes.append(run(where, {"format": "jsonl"}))
        if isinstance(outcomes[-1], Run):
            lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            check_ledger(outcomes[-1], [i for i, line in enumerate(lines) if line.strip()])

    every_line_is_accounted_for()
    most_went_through(outcomes)


# -- Parquet: what its types allow ------------------------------------------------------------------------------------


def table_of(r: random.Random, n: int) -> pa.Table:
    """Return ``n`` conversations, two in five with something odd, in one of the forms that writers give them."""
    roles: list[str | None] = []
    contents: list[bytes | None] = []
    lengths: list[int | None] = []
    for _ in range(n):
        turn = turns(r, "role", "content", ("user", "assistant"))
        if r.random() < 0.2:
            turn.insert(0, {"role": "system", "content": text(r)})
        said: list[list[Any]] = [[t["role"], t["content"].encode()] for t in turn]
        if r.random() < 0.4:
            one = r.choice(said)
            what = r.randrange(5)
            if what == 0:
                one[0] = r.choice([None, *ROLES])
            elif what == 1:
                one[1] = r.choice([None, b"", b"  ", "\u200b".encode(), b"\x00", b"x" * 5_000])
            elif what == 2:
                said.remove(one)
            elif what == 3:
                said.append(list(one))
            else:
                said = []
        if lengths and r.random() < 0.05:
            lengths.append(None)
            continue
        roles += [s[0] for s in said]
        contents += [s[1] for s in said]
        lengths.append(len(said))
    if r.random() < 0.3 and contents:
        contents[r.randrange(len(contents))] = r.choice([b"\xff\xfe", b"ok \xed\xa0\x80", b"\xc3"])
    small = r.random() < 0.6
    string, binary, lists = (
        (pa.string(), pa.binary(), pa.ListArray) if small else (pa.large_string(), pa.large_binary(), pa.LargeListArray)
    )
    role: pa.Array = pa.array(roles, string)
    if r.random() < 0.2:
        role = role.dictionary_encode()
    content = pa.array(contents, binary).view(string)
    columns, names = [role, content], ["role", "content"]
    if r.random() < 0.3:
        columns.append(pa.array([r.choice([None, None, "x"]) for _ in roles], string))
        names.append(r.choice(["name", "thinking"]))
    offsets = [0, *itertools.accumulate(k or 0 for k in lengths)]
    size = pa.int32() if small else pa.int64()
    mask = pa.array([k is None for k in lengths]) if None in lengths else None
    messages = lists.from_arrays(pa.array(offsets, size), pa.StructArray.from_arrays(columns, names), mask=mask)
    made = {"messages": messages}
    if r.random() < 0.7:
        source: pa.Array = pa.array([r.choice([None, "", "a", "ł"]) for _ in lengths], string)
        made["source"] = source.dictionary_encode() if r.random() < 0.3 else source
    if r.random() < 0.5:
        made["rating"] = pa.array([r.choice([None, 0.1, float("nan"), float("inf")]) for _ in lengths], pa.float64())
    if r.random() < 0.2:
        made["category"] = pa.array([r.choice([None, 1, 2]) for _ in lengths], pa.int64())
    return pa.table(made)


def test_odd_tables(tmp_path: Path, outcomes: list[Run | CurateError]) -> None:
    """The two ways of reading Parquet give the same examples and rejected rows, and a run of them loses none."""

    def read(where: Path, **source: Any) -> tuple[pa.Table, pa.Table]:
        sources = [Source(path=str(where / "pool"), **source)]
        slices = discover(sources)
        how = recognise(slices, sources[0])
        batches = [b for piece in slices for b in reading.read(piece, sources[0], how, batch_rows=16)]
        return pa.concat_tables([b.examples for b in batches]), pa.concat_tables([b.rejected for b in batches])

    @bounded
    @files
    def both_agree_and_every_row_is_accounted_for(seed: int, n: int) -> None:
        where = folder(tmp_path)
        table = table_of(random.Random(seed), n)
        pq.write_table(table, where / "pool/rows.parquet", row_group_size=40)
        outcomes.append(run(where, {}))
        if isinstance(outcomes[-1], CurateError):
            return
        check_ledger(outcomes[-1], list(range(n)))
        fast = read(where)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading._Rows, "_certain", lambda *_: (None, None))
            slow = read(where)
        assert fast[0].equals(slow[0]) and fast[1].equals(slow[1])

    both_agree_and_every_row_is_accounted_for()
    most_went_through(outcomes)
