"""Answers as stages keep them, and what they come to."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.answers import Kind, Written, final_text, final_value, read


def test_what_stages_keep_is_read() -> None:
    held = '[{"text": "a", "finished": true}, {"text": "", "finished": false}, {"text": "b"}]'
    assert read(held) == [Written("a", True), Written("", False), Written("b", True)]
    assert read("[]") == []


@pytest.mark.parametrize("held", ["", "a", "3", '["a"]', "[3]", '[{"finished": true}]', '{"text": "a"}', "null"])
def test_anything_else_is_refused(held: str) -> None:
    with pytest.raises(ValueError):
        read(held)


def test_final_texts_and_values_by_hand() -> None:
    assert final_text("So.\nFINAL ANSWER: Oslo \n") == "Oslo" and final_text(" Oslo ") == "Oslo"
    assert final_text("a Final answer: b Final answer: c") == "c" and final_text("x ## y", "##") == "y"
    assert final_value("1, 2. Final answer: 3/4", "numeric") == Fraction(3, 4)
    assert final_value("#### 5, or Final answer: 6", "numeric") == 6  # the marker comes first
    assert final_value("“OSLO.”", "exact") == final_value("Final answer: oslo", "exact") == "oslo"
    assert final_value("none", "numeric") is None and final_value(" ", "exact") is None


@given(
    text=st.lists(st.sampled_from(["Final answer:", "####", "\\boxed{7}", " ", "7", "\n", "Oslo", "½", "-"])).map(
        "".join
    )
)
@pytest.mark.parametrize("kind", ["numeric", "exact"])
def test_a_text_and_its_final_text_come_to_the_same(kind: Kind, text: str) -> None:
    assert final_value(final_text(text), kind) == final_value(text, kind) == final_value(f" {text}\n", kind)
