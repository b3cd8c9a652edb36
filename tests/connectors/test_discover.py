from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.connectors import formats
from curate.connectors.discover import Slice, discover, label
from curate.connectors.jsonl import JSONLines
from curate.connectors.source import Source
from curate.exceptions import SourceError
from tests.connectors.helpers import read_all, write

ROW = json.dumps({"prompt": "p", "response": "r"}) + "\n"


def urls(path: object, **options: object) -> list[str]:
    return [s.url for s in discover([Source(path=path, **options)])]  # type: ignore[arg-type]


def test_directories_nest_globs_match_and_order_is_by_path(tmp_path: Path) -> None:
    for name in (
        "b.jsonl",
        "a.jsonl",
        "deep/er/c.jsonl.gz",
        ".git/x.jsonl",
        "_tmp/y.jsonl",
        "README.md",
        "dataset_info.json",
    ):
        write(tmp_path / name, ROW)
    here = str(tmp_path)
    found = [f"{here}/a.jsonl", f"{here}/b.jsonl", f"{here}/deep/er/c.jsonl.gz"]
    assert urls(here) == found
    assert urls(f"{here}/**") == found
    assert urls(f"{here}/*") == found  # a matching folder is read with what is nested in it
    assert urls(f"{here}/*.jsonl") == found[:2]
    assert urls([f"{here}/b.jsonl", here]) == [found[1], found[0], found[2]]  # each once, as the recipe lists them
    assert urls(f"{here}/_tmp/y.jsonl") == [f"{here}/_tmp/y.jsonl"]  # named outright
    pieces = discover([Source(path=f"{here}/b.jsonl"), Source(path=f"{here}/a.jsonl")])
    assert [(p.source, os.path.basename(p.url)) for p in pieces] == [(0, "b.jsonl"), (1, "a.jsonl")]


def test_nothing_found_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROW)
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(
        SourceError,
        match=r"no data files at .*/tran.jsonl; .* holds notes.txt, train.jsonl; did you mean 'train.jsonl'\?",
    ):
        discover([Source(path=str(tmp_path / "tran.jsonl"))])
    with pytest.raises(SourceError, match=r"no parquet files at .* holds notes.txt, train.jsonl. Known suffixes: .csv"):
        discover([Source(path=str(tmp_path), format="parquet")])
    with pytest.raises(SourceError, match=r"no data files at .*/no/where/\*.csv; .* holds notes.txt"):
        discover([Source(path=str(tmp_path / "no" / "where" / "*.csv"))])


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"sheet.xlsx: no format has this suffix; known: .csv.*saved as CSV.*format: jsonl"
    ):
        discover([Source(path=str(write(tmp_path / "sheet.xlsx", "PK")))])
    with pytest.raises(SourceError, match=r"a.parquet.gz: Parquet inside gzip"):
        discover([Source(path=str(write(tmp_path / "a.parquet.gz", "PAR1")))])
    with pytest.raises(SourceError, match="nosuch://x"):
        discover([Source(path="nosuch://x/y.jsonl")])
    with pytest.raises(SourceError, match=r"UTF-16.*iconv"):
        discover([Source(path=str(write(tmp_path / "wide.jsonl", ROW.encode("utf-16"))))])
    assert urls(str(write(tmp_path / "rows.txt", ROW)), format="jsonl") == [str(tmp_path / "rows.txt")]


def test_truncated_parquet_stops_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["p"] * 999, "response": ["r"] * 999}), path)
    data = path.read_bytes()
    for cut in (0, 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(SourceError, match=r"a.parquet: this is no whole Parquet file .*Write or download it again"):
            discover([Source(path=str(path))])


def test_parquet_is_cut_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"prompt": [f"p{i}" for i in range(100)], "response": ["r"] * 100}), path, row_group_size=30
    )
    whole = discover([Source(path=str(path))])
    assert [(p.row_groups, p.first_row, p.rows) for p in whole] == [((0, 4), 0, 100)]
    from curate.connectors import parquet

    monkeypatch.setattr(parquet, "SLICE_BYTES", 1)
    pieces = discover([Source(path=str(path))])
    assert [(p.row_groups, p.first_row, p.rows) for p in pieces] == [
        ((0, 1), 0, 30),
        ((1, 2), 30, 30),
        ((2, 3), 60, 30),
        ((3, 4), 90, 10),
    ]
    assert read_all(path).table.equals(read_all(path).table)
    assert len({p.fingerprint for p in pieces}) == 4
    assert all(pickle.loads(pickle.dumps(p)) == p for p in pieces)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([b"", b"a", b"bb\r", b"\xc3\xa9" * 9, b"c" * 70000]), max_size=12),
    st.booleans(),
    st.integers(1, 40),
)
def test_lines_are_cut_whole_and_counted(lines: list[bytes], ended: bool, size: int) -> None:
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    with fsspec.open("memory://cut/x.jsonl", "wb") as f:
        f.write(data)
    whole = Slice(source=0, url="memory://cut/x.jsonl", format="jsonl", bytes=len(data))
    from curate.connectors import jsonl

    before, jsonl.SLICE_BYTES = jsonl.SLICE_BYTES, size
    try:
        pieces = JSONLines().cut(whole)
    finally:
        jsonl.SLICE_BYTES = before
    assert b"".join(data[p.start : p.stop] for p in pieces) == data
    for piece in pieces:
        assert piece.first_row == data[: piece.start].count(b"\n")
        assert piece.start == 0 or data[piece.start - 1 : piece.start] == b"\n"
        assert (
            piece.rows == len(data[piece.start : piece.stop].removesuffix(b"\n").split(b"\n"))
            if piece.stop
            else piece.rows == 0
        )


def test_a_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROW)
    first = discover([Source(path=str(path))])[0]
    assert first.fingerprint == discover([Source(path=str(path))])[0].fingerprint
    os.utime(path, ns=(1, 1))
    assert discover([Source(path=str(path))])[0].fingerprint != first.fingerprint
    assert dataclasses.replace(first, source=3, rows=7).fingerprint == first.fingerprint


def test_memory_urls(tmp_path: Path) -> None:
    for name in ("a.jsonl", "in/b.jsonl"):
        with fsspec.open(f"memory://{tmp_path.name}/{name}", "w") as f:
            f.write(ROW)
    pq.write_table(
        pa.table({"prompt": ["p"], "response": ["q"]}),
        fsspec.open(f"memory://{tmp_path.name}/in/c.parquet", "wb").open(),
    )
    base = f"memory://{tmp_path.name}"
    want = [f"memory:///{tmp_path.name}/{n}" for n in ("a.jsonl", "in/b.jsonl", "in/c.parquet")]
    assert urls(base) == want
    assert urls(f"{base}/**/*.jsonl") == want[:2]
    assert urls(f"{base}/in/b.jsonl") == want[1:2]
    assert read_all(base).turns == [[("user", "p"), ("assistant", a)] for a in "rrq"]
    stamps = [s.fingerprint for s in discover([Source(path=base)])]
    assert stamps == [s.fingerprint for s in discover([Source(path=base)])]
    with pytest.raises(SourceError, match=r"no data files at memory://.*/in/zzz.jsonl; .* holds b.jsonl, c.parquet"):
        discover([Source(path=f"{base}/in/zzz.jsonl")])


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/x/gsm8k.jsonl.gz", "gsm8k"),
        ("/x/dolly/train-00000-of-00004.parquet", "dolly"),
        ("/x/dolly/data/train.parquet", "dolly"),
        ("/x/pool/part_0003.parquet", "pool"),
        ("/x/pool/00000012.parquet", "pool"),
        ("/x/alpaca-00001-of-00002.parquet", "alpaca"),
        ("/x/v1.5_mix.json", "v1.5_mix"),
        ("memory://train.jsonl", "train"),
        ("train.csv", "train"),
    ],
)
def test_labels(url: str, name: str) -> None:
    assert label(url) == name


@pytest.mark.parametrize(
    ("name", "text", "format_"),
    [
        ("a.json", ROW * 3, "jsonl"),
        ("a.json", ROW, "json"),
        ("a.json", "[\n" + ROW + "]", "json"),
        ("a.json", '{"prompt": "p",\n "response": "r"}', "json"),
        ("a.json", '{"a": \\x}\n' + ROW, "jsonl"),
        ("a.json", "\ufeff\n" + ROW * 2, "jsonl"),
        ("a.jsonl", "[\n" + ROW + "]", "json"),
        ("a.jsonl", ROW, "jsonl"),
        ("a.jsonl", "junk\nmore junk\n", "jsonl"),
        ("a.jsonl", '["p", "r"]\n["p", "r"]\n', "jsonl"),
        ("a.jsonl", "", "jsonl"),
        ("a.json.zst", ROW * 3, "jsonl"),
    ],
)
def test_json_and_json_lines_are_told_apart_by_content(tmp_path: Path, name: str, text: str, format_: str) -> None:
    pieces = discover([Source(path=str(write(tmp_path / name, text)))])
    assert {p.format for p in pieces} == {format_}


def test_a_third_party_format_reads_through_the_same_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate import registry
    from curate.base import Connector

    class Ini(Connector):
        name = "ini"
        suffixes = (".ini",)

        def params(self) -> dict:
            return {}

        def read(self, path: str):
            lines = Path(path).read_text().splitlines()
            yield [
                (i, dict([("prompt", a), ("response", b)]) if b else f"no '=' in {a!r}")
                for i, (a, _, b) in enumerate(x.partition("=") for x in lines)
            ]

    names, find = registry.names, registry.find
    monkeypatch.setattr(registry, "names", lambda kind: [*names(kind), "ini"] if kind == "connectors" else names(kind))
    monkeypatch.setattr(registry, "find", lambda kind, word: Ini if word == "ini" else find(kind, word))
    result = read_all(write(tmp_path / "a.ini", "p=r\nbroken\nq=s\n"))
    assert result.turns == [[("user", "p"), ("assistant", "r")], [("user", "q"), ("assistant", "s")]]
    assert result.reasons == [(1, -1, "unreadable")]
    assert result.rejected[0]["detail"] == "no '=' in 'broken'"


def test_row_estimates_are_of_the_right_size(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "response": "answer " * (i % 9 + 1)} for i in range(3000)]
    paths = {
        "a.json": json.dumps(rows),
        "a.jsonl": "".join(json.dumps(r) + "\n" for r in rows),
        "a.csv": "prompt,response\n" + "".join(f"{r['prompt']},{r['response']}\n" for r in rows),
    }
    for name, text in paths.items():
        found = sum(p.rows or 0 for p in discover([Source(path=str(write(tmp_path / name, text)))]))
        assert 0.5 < found / len(rows) < 2, name
    assert formats.compression_of("x.JSON.GZ") == "gzip"
