"""Every built-in corrector keeps the laws of its contract; a broken one is told which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import curate.correctors
from curate import registry
from curate.correction import Corrections, Corrector, Role, answered
from curate.exceptions import InputError, StageError
from curate.testing import check_corrector, odd_examples
from tests.conftest import conversation
from tests.correctors.helpers import MESSAGES, checks, examples_of, shown, told_by, varied, verdicts, wrote

# Word → the arguments to check it with, one dict per variant.
CORRECTORS: dict[str, list[dict[str, Any]]] = {
    "auto-correct": [{}, {"eta": 0.0}],
    "rewrite": [{}],
    "s3ft": [{}, {"threshold": 0.0}],
    "label-verification": [{}, {"both_wrong": "leave", "match": "numeric", "eta": 0.0}, {"match": "exact"}],
    "majority-vote": [{}, {"kind": "exact", "least": 1, "share": 0.0}, {"put": "final", "least": 2}],
}
VARIANTS = [(word, params) for word, variants in CORRECTORS.items() for params in variants]
ELSEWHERE = {"review"}  # reads a file that a person wrote: tests/correctors/test_review.py


def test_every_built_in_corrector_is_in_the_table() -> None:
    words = sorted(set(registry.BUILT_IN["correctors"]) - ELSEWHERE)
    assert sorted(CORRECTORS) == words
    classes = [registry.find("correctors", word).__name__ for word in words]
    assert set(classes) <= set(dir(curate.correctors))
    assert all(registry.find("correctors", word).name == word for word in words)


@pytest.mark.parametrize(("word", "params"), VARIANTS)
def test_the_laws(word: str, params: dict[str, Any]) -> None:
    corrector = registry.find("correctors", word)(**params)
    plain = examples_of(*["6 · 7 = 42", "It is 8.", "Oslo", "So 7.\nFinal answer: 42"] * 4)
    examples = pa.concat_tables([odd_examples().select(["id", "messages"]), plain])
    found = []
    for seed in range(3):
        evidence = varied(corrector, examples, seed)
        check_corrector(corrector, examples, evidence, seed=seed)
        found += corrector.correct(examples, evidence).action
    assert "replace" in found  # else the laws say little


@pytest.mark.parametrize(("word", "params"), VARIANTS)
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_company_and_order_change_nothing(word: str, params: dict[str, Any], data: Any, seed: int) -> None:
    corrector = registry.find("correctors", word)(**params)
    answers = data.draw(st.lists(st.sampled_from(["42", "Final answer: 7", "Oslo", "", "  "]), min_size=1, max_size=6))
    examples = examples_of(*answers)
    evidence = varied(corrector, examples, seed)
    whole = shown(corrector.correct(examples, evidence))
    rows = data.draw(st.lists(st.integers(0, len(answers) - 1), max_size=8))  # left out, copied, in any order
    at = pa.array(rows, pa.int64())
    some = corrector.correct(examples.take(at), {name: table.take(at) for name, table in evidence.items()})
    assert shown(some) == [whole[row] for row in rows]


def test_rows_without_a_plain_answer_are_left_with_a_rule() -> None:
    call = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": '[{"name": "f"}]'}]
    examples = examples_of([{"role": "user", "content": "?"}], call, "b")
    corrector = registry.find("correctors", "auto-correct")()
    won = verdicts(*[("candidate", 1.0)] * 3)
    found = told_by(corrector, examples, candidates=wrote(["a"], ["a"], ["a"]), verdict=won)
    assert found == [
        (None, None, None, "no assistant turn"),
        (None, None, None, "the answer calls tools"),
        ("replace", "a", 1.0, "the candidate is better"),
    ]
    none = examples.slice(0, 0)
    assert told_by(corrector, none, candidates=wrote(), verdict=verdicts()) == []


def test_the_last_answer_is_the_one_that_is_replaced() -> None:
    talk = [*conversation("q", "first"), *conversation("r", "second"), {"role": "user", "content": "thanks"}]
    talk[3] = {**talk[3], "thinking": "Hm."}  # type: ignore[dict-item]
    given = [{**message} for message in talk]
    new = answered(talk, "third")
    assert [m["content"] for m in new] == ["q", "first", "r", "third", "thanks"] and new[3]["thinking"] is None
    assert talk == given
    found = told_by(
        registry.find("correctors", "auto-correct")(),
        examples_of(talk),
        candidates=wrote(["second"]),
        verdict=verdicts("the two answers are the same text"),
    )
    assert found == [(None, None, None, "the candidate is the answer itself")]


def test_a_role_without_columns_takes_the_first_number() -> None:
    s3ft, examples = registry.find("correctors", "s3ft")(), examples_of("gold")
    one = {"candidates": wrote(["own"])}
    for name in ("equivalent", "consistency"):
        assert told_by(s3ft, examples, **one, check=checks(0.9, name=name))[0][:3] == ("replace", "own", 0.9)
    text = "s3ft: of 'check' the first column is read, a number; found 'answers', string."
    with pytest.raises(InputError) as told:
        s3ft.correct(examples, {**one, "check": wrote(["own"])})
    assert str(told.value) == text
    with pytest.raises(InputError, match="found no column"):
        s3ft.correct(examples, {**one, "check": pa.table({"reason": ["x"]})})
    with pytest.raises(InputError, match="lacks the columns"):
        s3ft.correct(examples, {**one, "check": pa.table({"equivalent": [0.5]})})


def test_what_is_of_an_optional_role_is_needed_with_it() -> None:
    s3ft, examples = registry.find("correctors", "s3ft"), examples_of("gold")
    assert s3ft.needed([]) == ["candidates", "check"]
    assert s3ft.needed(["paraphrase"]) == ["candidates", "check", "paraphrase_check"]
    evidence = {"candidates": wrote(["own"]), "check": checks(0.1), "paraphrase": wrote(["other"])}
    with pytest.raises(InputError, match="s3ft: evidence for 'paraphrase_check' was asked; found "):
        s3ft().correct(examples, evidence)


# -- what check_corrector notices --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Shout(Corrector):
    """Keeps the laws: capitals, where a check says so."""

    name: ClassVar[str] = "shout"
    roles: ClassVar[Mapping[str, Role]] = {"check": Role("length")}

    def _correct(self, rows: Sequence[Mapping[str, Any]]) -> Corrections:
        out = [self.each(row) for row in rows]
        return Corrections(
            action=["replace" if new else None for new, _, _ in out],
            answer=[new for new, _, _ in out],
            confidence=np.array([np.nan if c is None else c for _, c, _ in out], dtype=np.float64),
            rule=[rule for _, _, rule in out],
        )

    def each(self, row: Mapping[str, Any]) -> tuple[str | None, float | None, str]:
        if row["check"]["value"] is None:
            return None, None, f"no check: {row['check']['reason']}"
        new = row["answer"].upper()
        wanted = new.strip() and new != row["answer"] and row["check"]["value"] > 0.5
        return new if wanted else None, row["check"]["value"], "capitals" if wanted else "as it is"


def laws(corrector: Corrector) -> None:
    examples = examples_of("a", "b", "C", "", "d", "e", "f", [{"role": "user", "content": "?"}])
    check_corrector(corrector, examples, {"check": checks(0.9, 0.1, 0.9, 0.9, "cut", 0.7, 0.6, 0.9)})


def test_what_keeps_the_laws_passes() -> None:
    laws(Shout())


def broken(**changes: Any) -> Corrector:
    return type("Broken", (Shout,), changes)()


def outside(self: Any, row: Any) -> Any:
    return None, 2.0, "sure"


def silent(self: Any, row: Any) -> Any:
    return None, None, ""


def flips(self: Any, row: Any) -> Any:
    return row["answer"].swapcase() + "!", 0.5, "turned"


def invents(self: Any, row: Any) -> Any:
    return None, row["check"]["value"] or 0.0, f"no check: {row['check']['reason']}"


def counts(self: Any, row: Any) -> Any:
    self.__dict__["seen"] = self.__dict__.get("seen", 0) + 1
    return None, None, f"row {self.seen}"


def writes(self: Any, row: Any) -> Any:
    row["messages"][0]["content"] = "gone"
    object.__setattr__(self, "more", 1)
    return Shout.each(self, row)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"each": outside}, "law 1, row 0: confidence 2.0"),
        ({"each": silent}, "law 1, row 0: the rule ''"),
        ({"each": counts}, "law 2, asked again: row 0 was"),
        ({"each": flips}, "law 3: a second pass replaces rows"),
        ({"each": invents}, "law 4, row 0 without any evidence: None with confidence 0.0"),
        ({"each": lambda self, row: (None, None, "left")}, "does not say"),
        ({"roles": {"check": Role("lenght")}}, "no scorer is called 'lenght'"),
        ({"roles": {"check": Role("length", of="other")}}, "which is no role"),
        ({"threshold": 3.0}, "threshold 3.0 is no confidence"),
    ],
)
def test_what_breaks_a_law_is_told_which(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(AssertionError) as told:
        laws(broken(**changes))
    assert text in str(told.value)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ((["replace"], [None], [0.5], ["r"]), "row 0 is to be 'replace', and its new answer is None."),
        ((["keep"], ["new"], [0.5], ["r"]), "row 0 is to be 'keep', and its new answer is 'new'."),
        ((["replace"], [" \n"], [0.5], ["r"]), "and its new answer is ' \\n'."),
        ((["replace"], ["old"], [0.5], ["r"]), "row 0 is to be replaced by what it says already."),
        (([None], [None], [0.5], []), "1 rows were asked, rule has 0."),
    ],
)
def test_the_contract_refuses_what_breaks_law_1(found: Any, text: str) -> None:
    action, answer, confidence, rule = found
    made = Corrections(action, answer, np.array(confidence), rule)
    with pytest.raises(StageError) as told:
        broken(_correct=lambda self, rows: made).correct(examples_of("old"), {"check": checks(1.0)})
    assert str(told.value).endswith(text)


def test_messages_of_the_schema_come_back_as_they_were() -> None:
    examples = odd_examples()
    for messages in examples["messages"].to_pylist():
        if any(m["role"] == "assistant" for m in messages):
            pa.array([answered(messages, "new")], MESSAGES)
