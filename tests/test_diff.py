"""What became of a text, word by word: the pieces make both texts, whatever the texts are."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import diff as module
from curate.diff import Piece, brief, diff, plain

WORDS = st.lists(st.sampled_from(["a", "be", "42", " ", "\n", ".", ",", "一", "é", "_", "\u2028", "😀"]), max_size=14)


@settings(max_examples=60)
@given(old=WORDS, new=WORDS, most=st.sampled_from([module.MOST, 3, 0]))
def test_the_pieces_make_both_texts(old: list[str], new: list[str], most: int) -> None:
    a, b = "".join(old), "".join(new)
    pieces = diff(a, b, most)
    assert "".join(p.text for p in pieces if p.kind != "new") == a
    assert "".join(p.text for p in pieces if p.kind != "old") == b
    assert all(p.text for p in pieces)
    assert all((x.kind, y.kind) not in {(k, k) for k in ("same", "old", "new")} for x, y in itertools.pairwise(pieces))


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("", "", ""),
        ("same", "same", "same"),
        ("", "x y", "{+x y+}"),
        ("x y", "", "[-x y-]"),
        ("The cat sat on 42 mats.", "The dog sat on 43 mats!", "The [-cat-]{+dog+} sat on [-42-]{+43+} mats[-.-]{+!+}"),
        ("It is 1152", "It is 1152. Final answer: 1152", "It is 1152{+. Final answer: 1152+}"),
        ("x = 12 apples", "x = 123 apples", "x = [-12-]{+123+} apples"),
        ("one, two, three four five", "one; 2; three four five", "one[-, two,-]{+; 2;+} three four five"),
        ("one, two three four five", "1, 2 three four five", "[-one, two-]{+1, 2+} three four five"),
        ("我有三个苹果", "我有四个苹果", "我有[-三-]{+四+}个苹果"),
        ("quite another text", "nothing in common here", "[-quite another text-]{+nothing in common here+}"),
        ("a <b>bold</b> word", "a <i>bold</i> word", "a <[-b-]{+i+}>bold</[-b-]{+i+}> word"),
    ],
)
def test_by_hand(old: str, new: str, shown: str) -> None:
    assert plain(diff(old, new)) == shown


def test_texts_of_many_words_go_line_by_line_and_take_no_time() -> None:
    rng = random.Random(0)
    lines = [" ".join(rng.choice("abcdefgh") for _ in range(30)) for _ in range(400)]
    other = list(lines)
    other[200] = "another line"
    began = time.perf_counter()
    pieces = diff("\n".join(lines), "\n".join([*other[::-1], "z"]))  # nothing at either end to begin with
    assert time.perf_counter() - began < 5
    assert "".join(p.text for p in pieces if p.kind != "new") == "\n".join(lines)
    near = diff("x\n" + "\n".join(lines), "y\n" + "\n".join([*other, "z"]))
    assert [p.text for p in near if p.kind == "new"] == ["y", "another line", "\nz"]


def test_what_stays_is_cut_between_changes() -> None:
    text = "word " * 100
    pieces = brief(diff(f"{text}a {text}", f"{text}b {text}"), context=10)
    assert plain(pieces) == ("[… 490 characters …]word word [-a-]{+b+} word word[… 491 characters …]")
    assert brief([Piece("new", "x" * 100)], most=10) == [Piece("new", "x" * 10 + "[… 90 characters …]")]
    short = diff("a b c", "a x c")
    assert brief(short) == short
