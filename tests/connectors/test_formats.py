"""Every format and compression, whole and broken."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.connectors import formats, json_document, jsonl
from curate.connectors.delimited import CSV, TSV
from curate.connectors.formats import Broken, Slice, UnreadableError
from curate.connectors.json_document import JSONDocument
from curate.connectors.jsonl import JSONLines
from curate.connectors.parquet import Parquet
from curate.exceptions import SourceError
from tests.connectors.helpers import COMPRESS, read_all, write

ROWS = [{"prompt": f'Frage {i} – 何?\r\n\t"x", y', "response": f"r{i}" * (i + 1)} for i in range(7)]
PAIR = {"prompt": "p", "response": "r"}


def pairs(rows: list[dict[str, str]]) -> list[list[tuple[str, str]]]:
    return [[("user", r["prompt"]), ("assistant", r["response"])] for r in rows]


def csv_text(rows: list[dict[str, str]], delimiter: str = ",", end: str = "\r\n") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["prompt", "response"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def text_of(kind: str) -> str:
    compact = [json.dumps(r, ensure_ascii=False) for r in ROWS]
    return {
        "jsonl": "\n".join(compact),
        "jsonl crlf": "\r\n".join(compact) + "\r\n",
        "jsonl bom": "\ufeff" + "\n".join(compact) + "\n",
        "json": json.dumps(ROWS),
        "json indented": json.dumps(ROWS, indent=2, ensure_ascii=False),
        "json crlf bom": "\ufeff" + json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
        "json wrapped": json.dumps({"version": {"data": [1]}, "note": "data", "data": ROWS, "more": [1, 2]}),
        "json one after another": "\n\n".join(json.dumps(r, indent=1) for r in ROWS),
        "csv": csv_text(ROWS),
        "csv lf bom": "\ufeff" + csv_text(ROWS, end="\n"),
        "tsv": csv_text(ROWS, "\t"),
    }[kind]


KINDS = [
    "jsonl",
    "jsonl crlf",
    "jsonl bom",
    "json",
    "json indented",
    "json crlf bom",
    "json wrapped",
    "json one after another",
    "csv",
    "csv lf bom",
    "tsv",
]


@pytest.mark.parametrize("suffix", list(COMPRESS))
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_and_compression_gives_the_same_examples(tmp_path: Path, kind: str, suffix: str) -> None:
    result = read_all(write(tmp_path / f"a.{kind.split()[0]}{suffix}", text_of(kind)))
    assert result.turns == pairs(ROWS)
    assert result.table["row"].to_pylist() == list(range(7))
    assert result.rejected == []


def test_parquet_of_every_codec_and_type(tmp_path: Path) -> None:
    want = None
    for codec in ("none", "snappy", "gzip", "zstd"):
        for type_ in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
            table = pa.table({c: pa.array([r[c] for r in ROWS]).cast(type_) for c in ("prompt", "response")})
            pq.write_table(table, tmp_path / "a.parquet", compression=codec)
            result = read_all(tmp_path / "a.parquet")
            assert result.turns == pairs(ROWS)
            want = want or result.table
            assert result.table.equals(want)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_compressed_files_of_several_members_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix]((json.dumps(r) + "\n").encode()) for r in ROWS))
    assert read_all(path).turns == pairs(ROWS)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_compressed_file_cut_short_stops_or_keeps_what_came_before(tmp_path: Path, name: str, suffix: str) -> None:
    rows = [
        {"prompt": f"p{i}", "response": "".join(chr(97 + (i * j * j) % 26) for j in range(999))} for i in range(3000)
    ]
    text = {"a.jsonl": "\n".join(map(json.dumps, rows)), "a.json": json.dumps(rows), "a.csv": csv_text(rows)}[name]
    path = write(tmp_path / f"{name}{suffix}", text)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SourceError, match=rf"{name}{suffix}: row \d+: damaged .* data: .*`broken: keep`"):
        read_all(path)
    kept = read_all(path, broken="keep")
    assert kept.turns == pairs(rows)[: len(kept.turns)]
    if kept.turns:  # bz2 gives nothing of a block that is cut
        assert [r["reason"] for r in kept.rejected][-1] == "unreadable-rest"


def test_not_what_the_name_says(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="damaged gzip data"):
        read_all(_bytes(tmp_path / "a.jsonl.gz", b"plain text"))
    with pytest.raises(
        SourceError,
        match=r"a.jsonl: none of the first 2 records is a row .*; the first: invalid-json: Expecting value.*format: csv",
    ):
        read_all(write(tmp_path / "a.jsonl", "hello\nworld\n"))
    with pytest.raises(
        SourceError, match="row 0: line 1, column 1: a list or an object was expected, 'hello' was found"
    ):
        read_all(write(tmp_path / "a.json", "hello"))
    with pytest.raises(
        SourceError, match=r"none of the first 2 records .* the first: a number, where an object was asked"
    ):
        read_all(write(tmp_path / "b.json", "[1, 2]"))


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.json.zst"])
def test_empty_files_have_no_rows(tmp_path: Path, name: str) -> None:
    for text in ("", " \n\n", "\ufeff"):
        result = read_all(write(tmp_path / name, text))
        assert result.rows == 0 and result.recognised.schema == "nothing"
        assert result.recognised.text == "no rows: 1 file, all empty"
    write(tmp_path / name, "")
    suffix = "jsonl" if "jsonl" in name else "csv"
    write(tmp_path / f"b.{suffix}", csv_text(ROWS) if suffix == "csv" else json.dumps(PAIR))
    assert read_all(tmp_path).rows == (7 if suffix == "csv" else 1)


def test_an_empty_array_and_an_empty_parquet(tmp_path: Path) -> None:
    for text in ("[]", " [ ] ", '{"data": []}'):
        if text.startswith("{"):
            assert read_all(write(tmp_path / "a.json", text), records="data").rows == 0
        else:
            assert read_all(write(tmp_path / "a.json", text)).rows == 0
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "b.parquet")
    assert read_all(tmp_path / "b.parquet").rows == 0


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_a_broken_line_is_one_rejected_row_with_its_number(tmp_path: Path) -> None:
    good = json.dumps(PAIR).encode()
    lines = [
        good,
        b'{"prompt": "a\\c", "response": "r"}',
        b"",
        b'{"prompt": "p", "response": "r"',
        b'{"prompt": "\xff", "response": "r"}',
        b'{"prompt": "\\ud83d", "response": "r"}',
        b"[1]",
        b"null",
        b"[" * 100_000,
        b'{"prompt": "p", "response": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud83d\\ude00", "response": "r"}',
        b"   \r",
        good,
    ]
    result = read_all(_bytes(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert result.rows == 11
    assert result.table["row"].to_pylist() == [0, 10, 12]
    assert result.turns[1][0] == ("user", "😀")
    assert [(r["row"], r["reason"], r["detail"]) for r in result.rejected] == [
        (1, "invalid-escape", "Invalid \\escape at character 13"),
        (3, "invalid-json", "Expecting ',' delimiter at character 32"),
        (4, "invalid-utf8", "byte 0xff at byte 12 of the line: invalid start byte"),
        (5, "invalid-utf8", "turn 0: content: half of a surrogate pair (U+D83D) at character 0"),
        (6, "wrong-type", "a row with named fields was asked, a list was found"),
        (7, "wrong-type", "a row with named fields was asked, nothing was found"),
        (8, "invalid-json", "nested too deeply"),
        (9, "invalid-json", result.rejected[7]["detail"]),
    ]
    assert result.rejected[0]["raw"] == lines[1].decode()
    assert len(result.rejected[6]["raw"]) == 64 * 1024
    assert all(r["file"] == str(tmp_path / "a.jsonl") for r in result.rejected)


def test_an_endless_line_is_rejected_and_the_next_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_RECORD", 100)
    line = json.dumps(PAIR)
    for long in (101, 250, 400):
        path = write(tmp_path / "a.jsonl", f"{line}\n{'x' * long}\n{line}")
        batches = [
            record for batch in JSONLines().records(Slice(source=0, url=str(path), format="jsonl")) for record in batch
        ]
        assert [row for row, _ in batches] == [0, 1, 2]
        assert isinstance(batches[1][1], Broken) and batches[1][1].reason == "too-long"
        assert batches[2][1] == PAIR


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [json.dumps(PAIR), '{"prompt": "é"', "", "{}", '{"prompt": "' + "y" * 300 + '", "response": "\u2028"}']
        ),
        max_size=30,
    ),
    st.integers(1, 700),
)
def test_slices_of_any_size_give_the_same_examples(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "sliced" / "a.jsonl", "\n".join([json.dumps(PAIR), *lines]))
    whole = read_all(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "SLICE_BYTES", size)
        cut = read_all(path, batch_rows=3)
    assert cut.table.equals(whole.table)
    assert cut.rejected_table.equals(whole.rejected_table)


# -- JSON documents ----------------------------------------------------------------------------------------------------


def test_a_broken_element_is_one_rejected_row(tmp_path: Path) -> None:
    good = json.dumps(PAIR)
    escape, word = '{"prompt": "a\\c]", "response": "{"}', '{"prompt": tru, "response": [1]}'
    text = f'[\n{good},\n{escape},\n{word},\n, {good},\nnul, {{"a" 1}},\n{good},\n]\n'
    result = read_all(write(tmp_path / "a.json", text))
    assert result.table["row"].to_pylist() == [0, 4, 7]
    assert [(r["row"], r["reason"], r["detail"]) for r in result.rejected] == [
        (1, "invalid-escape", "line 3, column 14: Invalid \\escape"),
        (2, "invalid-json", "line 4, column 12: Expecting value"),
        (3, "invalid-json", "line 5, column 1: no value before ','"),
        (5, "invalid-json", "line 6, column 1: Expecting value"),
        (6, "invalid-json", "line 6, column 11: Expecting ':' delimiter"),
        (8, "invalid-json", "line 8, column 1: no value before ']'"),
    ]
    assert result.rejected[0]["raw"] == escape


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ('{"prompt": "p", "response": "r"', "row 2: line 4, column 1: Expecting .*the file ends inside this record"),
        ('{"prompt": "p", "respo', "row 2: .*the file ends inside this record"),
        ('{"prompt": "p" ]}, ', r"row 2: line 3, column 16: '\]' closes nothing"),
        (
            f"{json.dumps(PAIR)} {json.dumps(PAIR)}]",
            r"row 3: line 3, column 34: ',' or '\]' was expected, '{' was found",
        ),
        (json.dumps(PAIR), "row 3: line 4, column 1: the file ends inside the list"),
        (f"{json.dumps(PAIR)},", "row 3: line 4, column 1: the file ends inside the list"),
        (
            f"{json.dumps(PAIR)}] trailing",
            "row 3: line 3, column 35: nothing was expected after the list, 'trailing..?n' was found",
        ),
        ("}", "row 2: line 3, column 1: a value was expected, '}' was found"),
    ],
)
def test_an_array_that_breaks_stops_with_the_line_or_keeps_what_came_before(
    tmp_path: Path, rest: str, said: str
) -> None:
    path = write(tmp_path / "a.json", f"[\n{json.dumps(PAIR)},{json.dumps(PAIR)},\n{rest}\n")
    with pytest.raises(SourceError, match=said):
        read_all(path)
    kept = read_all(path, broken="keep")
    n = 3 if "row 3" in said else 2
    assert kept.turns == pairs([PAIR] * n)
    assert kept.reasons == [(n, -1, "unreadable-rest")]


def test_wrapped_rows_are_found_by_key(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.json", json.dumps({"x": {"data": [PAIR]}, "train": [1, 2], "mine": [PAIR, PAIR], "data": [PAIR]})
    )
    assert read_all(path).rows == 1
    assert read_all(path, records="mine").rows == 2
    with pytest.raises(SourceError, match="records: 'mein' holds no list; keys found: x, train, mine, data"):
        read_all(path, records="mein")
    assert read_all(write(tmp_path / "b.json", json.dumps(PAIR))).turns == pairs([PAIR])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(json_values, max_size=12),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 40),
    st.sampled_from(["", "data"]),
)
def test_streamed_json_equals_json(values: list[Any], indent: int | None, ascii_: bool, chunk: int, key: str) -> None:
    text = json.dumps({"a": [values], key: values, "z": 1} if key else values, indent=indent, ensure_ascii=ascii_)
    assert _streamed(text, chunk, key or None) == list(enumerate(values))


@settings(max_examples=150, deadline=None)
@given(st.lists(json_values, max_size=5), st.data())
def test_a_damaged_document_never_loses_what_came_before(values: list[Any], data: st.DataObject) -> None:
    text = json.dumps(values)
    at = data.draw(st.integers(0, len(text) - 1))
    damage = data.draw(st.sampled_from(["", "\\", '"', "]", "}", "{", "[", ",", "x", "\udcff"]))
    text = text[:at] + damage + text[at + data.draw(st.integers(0, 1)) :]
    whole_before = 0
    for n in range(len(values)):  # values that end before the damage
        if len(json.dumps(values[: n + 1])) - 1 < at:
            whole_before = n + 1
    try:
        found = _streamed(text, 7, None)
    except UnreadableError as error:
        found = error.found  # type: ignore[attr-defined]
    assert [v for _, v in found[:whole_before]] == values[:whole_before]
    assert [r for r, _ in found] == list(range(len(found)))


def _streamed(text: str, chunk: int, key: str | None) -> list[tuple[int, Any]]:
    import fsspec

    with fsspec.open("memory://stream/x.json", "wb") as f:
        f.write(text.encode("utf-8", "surrogateescape"))
    out: list[tuple[int, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_document, "CHUNK", chunk)
        try:
            for batch in JSONDocument(records_key=key).records(
                Slice(source=0, url="memory://stream/x.json", format="json")
            ):
                out += batch
        except UnreadableError as error:
            error.found = out  # type: ignore[attr-defined]
            raise
    return out


# -- CSV and TSV -------------------------------------------------------------------------------------------------------


def test_quoted_cells_hold_lines_and_quotes(tmp_path: Path) -> None:
    text = 'prompt,response\r\n"line 1\nline ""2""\r\n,",r\r\n\r\n p ,"r\n"\r\n'
    assert read_all(write(tmp_path / "a.csv", text)).turns == pairs(
        [{"prompt": 'line 1\nline "2"\r\n,', "response": "r"}, {"prompt": " p ", "response": "r\n"}]
    )


def test_broken_records_of_a_table(tmp_path: Path) -> None:
    text = b'prompt,response\np,r\np,r,more\np\n"p"x,r\np,\xff\n\np,r\n'
    result = read_all(_bytes(tmp_path / "a.csv", text))
    assert result.table["row"].to_pylist() == [0, 5]
    assert [(r["row"], r["reason"], r["detail"]) for r in result.rejected] == [
        (1, "too-many-columns", "line 3: 3 cells, the header has 2"),
        (2, "no-response", "the response is missing"),
        (3, "invalid-csv", "line 5: ',' expected after '\"'"),
        (4, "invalid-utf8", "turn 1: content: byte 0xff at character 0"),
    ]
    assert result.rejected[0]["raw"] == "p,r,more\n"


def test_a_quote_left_open_stops_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.csv", 'prompt,response\np,r\n"p,r\np,r\n')
    with pytest.raises(
        SourceError, match=r"row 1: line 3: a quote is opened and not closed before the file ends.*`broken: keep`"
    ):
        read_all(path)
    kept = read_all(path, broken="keep")
    assert kept.turns == pairs([PAIR]) and kept.reasons == [(1, -1, "unreadable-rest")]
    assert kept.rejected[0]["raw"] == '"p,r\np,r\n'
    from curate.connectors import delimited

    monkeypatch.setattr(delimited, "MAX_RECORD", 200)
    with pytest.raises(UnreadableError, match="line 3: a quote is opened and not closed within"):
        list(CSV().read(str(write(tmp_path / "b.csv", 'prompt,response\np,r\n"p,r\n' + "p,r\n" * 200))))


def test_headers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",prompt,prompt,response\n1,p,q,r\n")
    result = read_all(path)
    assert result.turns == pairs([PAIR])
    assert json.loads(result.examples[0]["extra"]) == {"column_0": "1", "prompt.1": "q"}
    bare = write(
        tmp_path / "b.tsv",
        "Was ist das Ergebnis, wenn man von zehn Äpfeln drei abzieht und dann zwei hinzufügt?\t9\nzwei?\t2\n",
    )
    with pytest.raises(Exception, match=r"header: \[prompt, response\]"):
        read_all(bare)
    assert len(read_all(bare, header=["prompt", "response"]).turns) == 2
    semi = write(tmp_path / "c.csv", "prompt;response\np;r\n")
    with pytest.raises(Exception, match='delimiter: ";"'):
        read_all(semi)
    assert read_all(semi, delimiter=";").turns == pairs([PAIR])
    assert TSV().delimiter == "\t"


# -- Parquet -----------------------------------------------------------------------------------------------------------


def test_text_that_is_no_utf8_is_one_rejected_row(tmp_path: Path) -> None:
    raw = pa.array([b"p", b"\xff\xfe", b"q"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"prompt": text, "response": ["r"] * 3}), tmp_path / "a.parquet")
    result = read_all(tmp_path / "a.parquet")
    assert result.table["row"].to_pylist() == [0, 2]
    assert result.rejected[0]["detail"] == "column 'prompt': byte 0xff at byte 0: invalid start byte"


def test_columns_that_json_has_no_form_for(tmp_path: Path) -> None:
    import datetime
    import decimal

    row = {
        "when": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        "day": pa.array([datetime.date(2024, 2, 29)]),
        "price": pa.array([decimal.Decimal("1.50")]),
        "data": pa.array([b"ok"]),
        "bits": pa.array([b"\xff\x00"]),
        "nan": pa.array([math.nan]),
        "none": pa.nulls(1),
        "list": pa.array([[1, None]]),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    }
    pq.write_table(pa.table({"prompt": ["p"], "response": ["r"]} | row), tmp_path / "a.parquet")
    assert json.loads(read_all(tmp_path / "a.parquet").examples[0]["extra"]) == {
        "when": "2023-11-14 22:13:20.123456789",
        "day": "2024-02-29",
        "price": "1.50",
        "data": "ok",
        "bits": "ff00",
        "nan": None,
        "list": [1, None],
        "map": [["a", 1]],
    }


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"prompt": [f"{i * i}" * 9 for i in range(20000)], "response": ["r"] * 20000}),
        path,
        compression="zstd",
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 400] = b"\x00" * 400
    path.write_bytes(bytes(data))
    with pytest.raises(
        SourceError, match=r"a.parquet: this Parquet file is damaged after row \d+: .*Write or download it again"
    ):
        read_all(path)


def test_the_contract_of_connectors(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    text = {"jsonl": JSONLines(), "json": JSONDocument(), "csv": CSV(), "tsv": TSV()}
    for kind, reader in text.items():
        path = write(tmp_path / f"a.{kind}", text_of(kind))
        assert [r for batch in reader.read(str(path)) for r in batch] == list(enumerate(ROWS))
    assert [r for batch in Parquet().read(str(tmp_path / "a.parquet")) for r in batch] == list(enumerate(ROWS))
    broken = write(tmp_path / "b.jsonl.gz", "{\n")
    assert list(JSONLines().read(str(broken))) == [
        [(0, "invalid-json: Expecting property name enclosed in double quotes at character 2")]
    ]
    assert gzip.decompress(broken.read_bytes()) == b"{\n"


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """Peak of Python's and Arrow's allocations while reading 2 and 8 MB: bounded by the batch, not by the file."""
    import tracemalloc

    def peak(n: int) -> int:
        rows = [{"prompt": f"{i} " + "p" * 480, "response": "r" * 500} for i in range(n)]
        folder = tmp_path / str(n)
        folder.mkdir()
        path = folder / name
        if name.endswith("parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=n, use_dictionary=False)
        else:
            write(
                path,
                {"a.json": json.dumps(rows), "a.csv": csv_text(rows)}.get(name) or "\n".join(map(json.dumps, rows)),
            )
        del rows
        from curate.connectors.discover import discover
        from curate.connectors.read import read
        from curate.connectors.recognise import recognise
        from curate.connectors.source import Source

        source = Source(path=str(path))
        pieces = discover([source])
        recognised = recognise(pieces, source)
        base = pa.total_allocated_bytes()
        most = seen = 0
        tracemalloc.start()
        for piece in pieces:
            for batch in read(piece, source, recognised, batch_rows=256):
                seen += batch.rows
                most = max(most, pa.total_allocated_bytes() - base)
        most += tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == n
        return most

    peak(100)  # warm caches
    assert peak(8_000) < 1.5 * peak(2_000) + 2 * 2**20


def test_suffixes_and_compressions() -> None:
    assert formats.compression_of("a.parquet") is None
    assert formats.compression_of("memory://x/a.jsonl.zst") == "zstd"
