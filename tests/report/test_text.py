from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.report.text import cut, number, percent, plural, redact, short, visible


@given(st.text(alphabet=st.characters(codec=None)))
def test_nothing_that_hides_or_reorders_is_left(text: str) -> None:
    shown = visible(text)
    for character in shown:
        kind = unicodedata.category(character)
        joiner = character in "\u200c\u200d"
        assert kind not in ("Cs", "Zl", "Zp") and (kind != "Cc" or character in "\t\n"), f"U+{ord(character):04X}"
        assert joiner or unicodedata.bidirectional(character) not in (
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )
    assert visible(shown) == shown


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs", "Mn"])).filter(lambda t: visible(t) == t))
def test_what_shows_already_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("a\rb", "a⟨U+000D⟩b"),
        ("\ud800", "⟨U+D800⟩"),
        ("👨\u200d👩", "👨\u200d👩"),
        ("\U000e0041", "⟨U+E0041⟩"),
    ],
)
def test_visible_by_hand(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_cut_says_how_much_is_missing():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abc def", 4) == "abc […3 more characters]"
    assert cut("x" * 2000, 1) == "x […1,999 more characters]"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234567, "1,234,567"), (0, "0"), (-0.123456, "-0.1235"), (float("nan"), "–"), (None, "–"), (3.0, "3"),
        (123456.7, "123,457"), (9999.4, "9,999"), (-1000.25, "-1,000"), (1e-7, "1e-07"), (1e300, "1e+300"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0, "0%"),
        (1, "100%"),
        (0.1, "10%"),
        (0.0123, "1.2%"),
        (0.00001, "<0.1%"),
        (0.99999, ">99.9%"),
        (0.9994, "99.9%"),
    ],
)
def test_percentages_are_0_or_100_only_if_they_are(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_plurals():
    assert [plural(1, "copy"), plural(42, "copy"), plural(1000, "row")] == ["1 copy", "42 copies", "1,000 rows"]


@pytest.mark.parametrize("secret", ["hf_" + "a" * 34, "sk-" + "b" * 40, "ghp_" + "c" * 36, "AKIA" + "D" * 16])
def test_tokens_are_struck_out(secret: str) -> None:
    assert secret not in redact(f"model: x\ntoken: {secret}\n") and "model: x" in redact(f"model: x\ntoken: {secret}")
    assert redact("s3://user:secret@bucket/key") == "s3://***@bucket/key"
    assert redact("hf_small a skill sk-1") == "hf_small a skill sk-1"  # words, not tokens


@given(st.lists(st.text(alphabet="abé長👩 \n", max_size=40), max_size=12, unique=True), st.integers(8, 25))
def test_labels_fit_and_stay_different(names: list[str], room: int) -> None:
    labels = short(names, room)
    assert len(labels) == len(set(labels)) == len(names)
    for name, label in zip(names, labels, strict=True):
        assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in label) <= room and "\n" not in label
        assert label == " ".join(name.split()) or "…" in label or label[-1].isdigit() or label == "(blank)"


def test_labels_by_hand():
    assert short(["a" * 21, "a" * 22, "short", "長" * 11]) == [
        "a" * 19 + "…",
        "a" * 17 + "… 2",
        "short",
        "長" * 9 + "…",
    ]
