"""The corrector that does what people said: its laws, its rules, its identity, and rows that were changed since."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.correctors import Review
from curate.exceptions import InputError
from curate.registry import find
from curate.testing import check_corrector, odd_examples
from tests.correctors.helpers import examples_of, told_by


def written(path: Path, *lines: dict[str, Any]) -> Review:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Review(file=str(path))


def said(id: str, answer: str, verdict: str = "", new_answer: str = "", **more: Any) -> dict[str, Any]:
    return {"id": id, "answer": answer, "verdict": verdict, "new_answer": new_answer, **more}


def pool() -> pa.Table:
    plain = examples_of("one", "two", "three", "four", "five")
    return plain.set_column(plain.column_names.index("id"), "id", pa.array(["r1", "r2", "r3", "r4", "r5"]))


LINES = [
    said("r1", "one", "keep"),
    said("r2", "two", "fix", "2"),
    said("r3", "three", "drop"),
    said("r4", "four"),
    said("of another run", "six", "drop"),
]
FOUND = [
    ("keep", None, None, "kept by a person"),
    ("replace", "2", None, "fixed by a person"),
    ("drop", None, None, "dropped by a person"),
    (None, None, None, "not reviewed"),
    (None, None, None, "not reviewed"),
]


def test_it_does_what_the_file_says(tmp_path: Path) -> None:
    assert find("correctors", "review") is Review
    assert told_by(written(tmp_path / "r.jsonl", *LINES), pool()) == FOUND


def test_the_laws(tmp_path: Path) -> None:
    check_corrector(written(tmp_path / "r.jsonl", *LINES), pool(), {})
    check_corrector(Review(file=str(tmp_path / "none.jsonl")), odd_examples().select(["id", "messages"]), {})


def test_before_there_is_a_file(tmp_path: Path) -> None:
    corrector = Review(file=str(tmp_path / "none.jsonl"))
    corrector.check()
    assert {row[3] for row in told_by(corrector, pool())} == {"no review file yet"}
    written(tmp_path / "none.jsonl", *LINES)
    assert told_by(corrector, pool())[0][3] == "no review file yet"  # a run goes by what it has read at its start
    corrector.identity()
    assert told_by(corrector, pool()) == FOUND


def test_a_fixed_row_is_not_fixed_again(tmp_path: Path) -> None:
    corrector = written(tmp_path / "r.jsonl", *LINES)
    messages = pool().column("messages").to_pylist()
    messages[1][-1]["content"] = "2"
    fixed = pool().set_column(pool().column_names.index("messages"), "messages", pa.array(messages))
    assert told_by(corrector, fixed)[1] == ("keep", None, None, "fixed by a person before")


def test_a_row_that_was_changed_since_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    corrector = written(path, said("r5", "5"), *LINES[:2], said("r4", "vier", "keep"), said("r5", "fünf", "drop"))
    with pytest.raises(InputError) as error:
        told_by(corrector, pool())
    assert str(error.value) == (
        f"{path}:4: the row 'r4' was changed since it was reviewed: its answer is not the one on this line. So it is "
        "on line 5. Delete what no longer holds, and have it reviewed again: 'curate review RUN'."
    )
    alone = written(path, said("r5", "fünf", "fix", "V"))
    with pytest.raises(InputError, match=r"r\.jsonl:1: the row 'r5' was changed .* on this line\. Delete what"):
        told_by(alone, pool())
    assert told_by(written(path, said("r5", "fünf")), pool())[4][3] == "not reviewed"  # nobody said a thing of it


def test_its_identity_is_what_was_said(tmp_path: Path) -> None:
    corrector = written(tmp_path / "r.jsonl", *LINES)
    first = corrector.identity()
    noted = [{**line, "note": "hm", "rank": i} for i, line in enumerate(reversed(LINES))]
    other = written(tmp_path / "elsewhere.jsonl", *noted)
    assert dataclasses.replace(other, on="rating.value", rows_to_review=7, order="nearest").identity() == first
    assert written(tmp_path / "r.jsonl", *LINES[:3]).identity() != first  # somebody's verdict is gone
    nothing = Review(file=str(tmp_path / "none.jsonl")).identity()
    assert nothing["verdicts"] is None
    assert written(tmp_path / "r.jsonl", said("r1", "one")).identity() == nothing  # a list that nobody has filled in


def test_it_travels_with_what_it_read(tmp_path: Path) -> None:
    corrector = written(tmp_path / "r.jsonl", *LINES)
    corrector.check()
    away = pickle.dumps(corrector)
    (tmp_path / "r.jsonl").unlink()
    assert told_by(pickle.loads(away), pool()) == FOUND


def test_a_bad_file_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    corrector = written(tmp_path / "r.jsonl", said("r1", "one", "kep"))
    for ask in (corrector.check, corrector.identity):
        with pytest.raises(InputError, match=r"r\.jsonl:1: the verdict is keep, fix or drop"):
            ask()


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"file": ""}, "review: file: the path of a review file was asked, an empty one was found."),
        ({"file": "s3://b/r.jsonl"}, "review: file: a path on this machine was asked, 's3://b/r.jsonl' was found."),
        ({"file": "r", "rows_to_review": 0}, "review: rows_to_review of at least 1 was asked, 0 was found."),
    ],
)
def test_parameters_that_mean_nothing(params: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as error:
        Review(**params)
    assert str(error.value) == text
