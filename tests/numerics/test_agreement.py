"""Agreement of two texts: by hand, against plain loops, and the properties that every function keeps."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.numerics import agreement
from curate.numerics.agreement import exact, final_part, jaccard, mean_of_groups, normalised, number, numeric

TEXTS = st.lists(st.text("ab B.,1 2/-É\n", max_size=12), max_size=8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5 + 7 = 12\n#### 1,234", "1234"),
        ("#### 3\nso the price is 4", "4"),
        ("it is \\boxed{\\frac{3}{4}} of 12", "3/4"),
        ("\\boxed{7} and then \\boxed{8}", "8"),
        ("\\boxed{never closed 9", "9"),
        ("so 12 - 5 = 7 apples.", "7"),
        ("three quarters: 3/4", "3/4"),
        ("-\\frac{1}{2}", "-1/2"),
        ("on 3/4/2020", "2020"),
        ("0.5/2", "2"),
        ("x = −7", "-7"),
        ("12-5", "5"),
        ("from 1990 to -3.50", "-7/2"),
        ("$1,000.50.", "2001/2"),
        ("50%", "50"),
        (".5", "1/2"),
        ("1/0", "0"),
        ("٤٢", "42"),
        ("no number", None),
        ("", None),
        ("#### ", None),
        ("9" * 5000, None),
        ("3 then " + "9" * 5000, "3"),
    ],
)
def test_the_number_that_a_text_ends_in(text: str, value: str | None) -> None:
    assert number(text) == (None if value is None else Fraction(value))


def test_equal_numbers_are_equal_however_they_are_spelt() -> None:
    assert numeric(["#### 0.50", "1,000", "2", "none"], ["\\boxed{1/2}", "it is 1000.0", "3", "none"]).tolist() == [
        1,
        1,
        0,
        0,
    ]


def test_what_exact_match_does_not_see() -> None:
    assert normalised(" “Oslo.”\n ") == "oslo" and normalised("ＯＳＬＯ") == "oslo"
    assert normalised("a  b\tc") == "a b c" and normalised("?!") == "?!"
    assert exact(["Oslo!", "5%", "-5", "?!", ""], ["oslo", "5", "5", "...", ""]).tolist() == [1, 0, 0, 0, 1]


def test_the_part_after_the_marker() -> None:
    assert final_part("so. Final answer: 3 FINAL ANSWER:\n 4 ", "Final answer:") == "4"
    assert final_part("Final answer:", "Final answer:") == ""
    assert final_part("the final word", "Final answer:") is None
    assert final_part("a.b axb 1", "a.b") == "axb 1"  # the marker is no pattern


def test_jaccard_by_hand() -> None:
    a = ["a b c", "", "?!", "Oslo.", "the the the", "a b"]
    b = ["b c d", "", "?", "oslo", "the", "c d"]
    assert jaccard(a, b).tolist() == [0.5, 1, 0, 1, 1, 0]
    assert jaccard([], []).shape == (0,)


def words(text: str) -> set[str]:
    """The words by their definition, for texts of letters with spaces between words."""
    return set(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower()))


@given(TEXTS, TEXTS)
@settings(max_examples=80, deadline=None)
def test_jaccard_is_that_of_sets(a: list[str], b: list[str]) -> None:
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    wanted = []
    for x, y in zip(map(words, a), map(words, b), strict=True):
        wanted.append(len(x & y) / len(x | y) if x | y else None)
    wanted = [float(a[i] == b[i]) if w is None else w for i, w in enumerate(wanted)]
    assert jaccard(a, b).tolist() == wanted


@pytest.mark.parametrize("compare", [exact, numeric, jaccard])
@given(TEXTS)
@settings(max_examples=40, deadline=None)
def test_symmetric_one_for_itself_and_alone_as_in_company(compare: object, texts: list[str]) -> None:
    other = texts[::-1]
    whole = compare(texts, other)  # type: ignore[operator]
    assert ((whole >= 0) & (whole <= 1)).all()
    np.testing.assert_array_equal(whole, compare(other, texts))  # type: ignore[operator]
    alone = [compare([x], [y])[0] for x, y in zip(texts, other, strict=True)]  # type: ignore[operator]
    np.testing.assert_array_equal(whole, alone)
    itself = compare(texts, texts)  # type: ignore[operator]
    known = [compare is not numeric or agreement.number(text) is not None for text in texts]
    np.testing.assert_array_equal(itself, np.array(known, dtype=float))


def test_means_of_groups() -> None:
    found = mean_of_groups(np.array([1.0, 0.0, 0.5]), np.array([2, 2, 0]), 4)
    np.testing.assert_array_equal(found, [0.5, np.nan, 0.5, np.nan])
