"""The review file: what is written is read back, and every line that means nothing is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.review import VERDICTS, Line, Review, dump, line_of, read
from tests.conftest import conversation

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def written(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def row(id: str = "a", answer: str = "old", **more: Any) -> dict[str, Any]:
    return {"verdict": "", "new_answer": "", "note": "", "id": id, "answer": answer, **more}


def told(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


@st.composite
def some_lines(draw: Any) -> list[Line]:
    out = []
    for id in draw(st.lists(TEXTS, unique=True, max_size=3)):
        answer = draw(TEXTS)
        verdict = draw(st.sampled_from(["", *VERDICTS]))
        new = draw(TEXTS.filter(lambda text, old=answer: text.strip() and text != old)) if verdict == "fix" else ""
        turns = st.lists(st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}), max_size=2)
        more = {
            "note": draw(TEXTS),
            "rank": draw(st.none() | st.integers(1, 9)),
            "on": draw(st.none() | TEXTS),
            "score": draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
            "question": draw(st.none() | TEXTS),
            "proposal": draw(st.none() | TEXTS),
            "conversation": draw(st.none() | turns),
        }
        out.append(Line(verdict=verdict, new_answer=new, id=id, answer=answer, **more))
    return out


@settings(max_examples=25)
@given(lines=some_lines())
def test_what_is_written_is_read_back(lines: list[Line], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "back.jsonl"
    path.write_bytes(dump(lines).encode())
    found = read(path)
    assert found is not None
    assert list(found.lines) == lines and list(found.numbers) == list(range(1, len(lines) + 1))
    assert set(found.reviewed) == {line.id for line in lines if line.verdict}


@settings(max_examples=25)
@given(lines=some_lines(), data=st.data())
def test_the_digest_is_of_what_was_said_alone(lines: list[Line], data: Any) -> None:
    def digest(held: list[Line]) -> str:
        return Review(tuple(held), tuple(range(len(held)))).digest

    shuffled = data.draw(st.permutations([Line(**{**vars(line), "note": "other", "rank": 7}) for line in lines]))
    unseen = Line(id="\x00 another", answer="x")
    assert digest([*shuffled, unseen]) == digest(lines)
    for i, line in enumerate(lines):
        if line.verdict:
            other = Line(**{**vars(line), "verdict": "drop" if line.verdict == "keep" else "keep", "new_answer": ""})
            assert digest([*lines[:i], other, *lines[i + 1 :]]) != digest(lines)


def test_what_a_person_fills_in_stands_first(tmp_path: Path) -> None:
    text = dump([Line(id="a", answer="Straße\u2028", rank=1, on="rating", score=0.5, question="q")])
    assert text == (
        '{"verdict": "", "new_answer": "", "note": "", "rank": 1, "on": "rating", "score": 0.5, "id": "a", '
        '"question": "q", "answer": "Straße\u2028"}\n'
    )
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + text.replace("\n", "\r\n").encode() + b"\n  \n")
    found = read(path)  # as an editor may leave it: byte order mark, other line ends, blank lines
    assert found is not None and found.numbers == (2,) and found.lines[0].answer == "Straße\u2028"


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") is None
    found = read(written(tmp_path / "empty.jsonl"))
    assert found is not None and not found.lines and not found.reviewed


def test_case_and_spaces_of_a_verdict_do_not_matter(tmp_path: Path) -> None:
    found = read(written(tmp_path / "r.jsonl", row(verdict=" Keep "), row("b", verdict=None, new_answer=None)))
    assert found is not None and [line.verdict for line in found.lines] == ["keep", ""]


def test_the_same_verdict_twice_counts_once(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", row(), row(verdict="keep"), row(verdict="keep", note="again"), row())
    found = read(path)
    assert found is not None and {i: (line.note, n) for i, (line, n) in found.reviewed.items()} == {"a": ("again", 3)}


BAD = [
    ("{", "a JSON object was asked; this is none"),
    ("[1]", "a JSON object was asked; found '[1]'"),
    ('"' + "x" * 99 + '"', "a JSON object was asked; found '\"" + "x" * 39 + "…'"),
    (row(verdikt="keep"), "unknown key 'verdikt'; did you mean 'verdict'? What else is to be said goes into 'note'."),
    ({"id": "a"}, "'answer', a text, was asked; found None. Make the list again."),
    ({"answer": "a", "id": 7}, "'id', a text, was asked; found 7. Make the list again."),
    (row(verdict=["keep"]), "'verdict' is a text; found ['keep']."),
    (row(new_answer=4, verdict="fix"), "'new_answer' is a text; found 4."),
    (row(verdict="kep"), "the verdict is keep, fix or drop (or empty); found 'kep'; did you mean 'keep'?"),
    (row(verdict="fix"), "verdict 'fix' asks for a new_answer, and there is none; write it, or say drop."),
    (row(verdict="fix", new_answer=" \n"), "verdict 'fix' asks for a new_answer, and there is none"),
    (row(verdict="fix", new_answer="old"), "the new_answer is the old one; change it, or say keep."),
    (row(verdict="keep", new_answer="x"), "a new_answer goes with verdict 'fix'; found verdict 'keep'."),
    (row(new_answer="x"), "a new_answer goes with verdict 'fix'; found no verdict. Say fix, or empty new_answer."),
    (row(verdict="fix", new_answer="\ud83d"), "the new_answer holds half a surrogate pair"),
    ('{"id": "a", "answer": "b", "verdict": "keep", "verdict": "drop"}', "the key 'verdict' stands there twice."),
    (row(verdict="keep"), "one verdict a row was asked; 'a' has 'keep' here and 'drop' on line 2."),
    (row(verdict="fix", new_answer="x"), "'a' has 'fix' to 'x' here and 'drop' on line 2. Delete one of the lines."),
    (row(verdict="drop", answer="other"), "'a' has 'drop' here and 'drop' on line 2."),
]


@pytest.mark.parametrize(("line", "text"), BAD, ids=[text[:40] for _, text in BAD])
def test_a_line_that_means_nothing_is_named(tmp_path: Path, line: Any, text: str) -> None:
    path = written(tmp_path / "r.jsonl", "", row(verdict="drop"), line)
    assert told(path).startswith(f"{path}:3: ") and text in told(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"id": "\xff"}')
    assert told(path) == f"{path}: a review file in UTF-8 was asked; byte 8 is not. Save it so."
    assert told(tmp_path) == f"{tmp_path}: the review file cannot be read: Is a directory."


def test_rows_as_lines() -> None:
    plain = line_of("a", conversation("q", "r"), rank=3)
    assert plain == Line(id="a", question="q", answer="r", rank=3)
    talk = [
        {"role": "system", "content": "s"},
        *conversation("q", "r"),
        *conversation("and?", "t"),
        {"role": "user", "content": "bye"},
    ]
    line = line_of("b", talk)
    assert line is not None and (line.question, line.answer) == ("and?", "t")
    assert line.conversation == [{"role": m["role"], "content": m["content"]} for m in talk[:4]]
    alone = line_of("c", [{"role": "assistant", "content": ""}])
    assert alone == Line(id="c", answer="")
    assert line_of("d", conversation("q", "r")[:1]) is None
    assert line_of("e", [*conversation("q", "")[:1], {"role": "assistant", "content": "", "tool_calls": "[]"}]) is None
