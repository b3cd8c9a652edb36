"""Number, option and exact: by hand, on the shapes in which benchmarks and models write answers."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.verifiers import VERIFIERS, Exact, Item, Number, Option, verifier_of
from curate.verifiers.base import announced
from curate.verifiers.choose import make


def item(reference: str, prompt: str = "?", **data: object) -> Item:
    more = data.get("references", ())
    return Item(prompt, (reference, *more), data)


# -- number ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "text", "outcome"),
    [
        ("16 - 3 = 13, 13 * 2 = $26.\n#### 26", "She sells 13 eggs.\n#### 26", "right"),
        ("#### 26", "The answer is 26.", "right"),
        ("#### 26", "… that leaves $26.00", "right"),
        ("#### 26", "26 dollars for 7 days", "wrong"),  # nothing announces it: the last number counts
        ("#### 26", "The answer is 26 dollars. She needs 7 days.", "right"),
        ("#### 26", "The answer is 25. No: the answer is 26", "right"),
        ("#### 26", "answer: 6 * 4 + 2 = 26", "right"),
        ("#### 26", "I do not know", "no number"),
        ("#### 26", "#### 26\n\nQuestion: What is 1 + 1?", "right"),
        ("#### 1,200", "1200", "right"),
        ("#### -5", "It is −5 degrees", "right"),
        ("#### -5", "5", "wrong"),
        ("0.5", "1/2", "right"),
        ("0.5", "\\frac{1}{2}", "right"),
        ("0.5", "0.50001", "wrong"),
        ("25%", "25 percent", "right"),
        ("12 apples", "12", "right"),
        ("so $x = \\boxed{\\frac{2}{3}}$.", "We get $\\boxed{2/3}$.", "right"),
        ("\\boxed{\\tfrac37}", "\\boxed{\\frac{3}{7}}", "right"),
        ("\\boxed{32,\\!000} feet", "32000", "right"),
        ("\\boxed{156^\\circ}$.", "\\boxed{156}", "right"),
        ("\\boxed{25\\%}$ of it", "25", "right"),
        ("\\[= \\boxed{157}.\\]", "\\boxed{157}", "right"),
        ("\\boxed{21}", "\\boxed{\\sqrt{21}}", "wrong"),  # ends in the same digits, and is another number
        ("\\boxed{4}", "\\boxed{-4, 4}", "wrong"),
        ("\\boxed{4}", "The roots are -4 and 4, so \\boxed{4}", "right"),
        ("\\boxed{4}", "\\boxed{4", "right"),  # a box that was never closed
    ],
)
def test_a_number_is_right_or_wrong(reference, text, outcome):
    found = Number().check(item(reference), text)
    assert (found.outcome, found.correct) == (outcome, outcome == "right")


@pytest.mark.parametrize(
    "reference",
    ["\\boxed{\\sqrt{21}}", "\\boxed{-4, 4}", "\\boxed{2x}", "\\boxed{3032_5}", "\\boxed{\\text{Monday}}", "\\boxed{1:2}",
     "\\boxed{(15,-11)}", "\\boxed{x=9}", "3 or 4", "In 1999", "- 5", "Oslo", "11 \\frac{2}{3}"],
)  # fmt: skip
def test_what_is_no_single_number_is_not_verified(reference):
    found = Number().check(item(reference), reference)
    assert found.correct is None and found.outcome == "the reference is no single number"


def test_a_number_that_may_go_on_does_not_count():
    it = item("#### 42")
    assert Number().check(it, "#### 42", finished=False).outcome == "cut within its last number"
    assert Number().check(it, "#### 42\nQuest", finished=False).correct
    assert Number().check(it, "The answer is 42. So she", finished=False).correct


@given(st.integers(-(10**6), 10**6), st.sampled_from(["#### {}", "\\boxed{{{}}}", "{}", "The answer is {}.", "so {}"]))
def test_every_reference_is_right_and_its_neighbour_wrong(value, form):
    it = item(f"#### {value:,}")
    assert Number().check(it, form.format(value)).correct
    assert not Number().check(it, form.format(value + 1)).correct


@given(st.text(), st.booleans())
def test_any_text_is_right_or_wrong(text, finished):
    options = item("(B)", "Which?\n(A) hot\n(B) cold")
    for verifier, it in ((Number(), item("7")), (Option(), options), (Option(), item("yes")), (Exact(), item("yes"))):
        found = verifier.check(it, text, finished=finished)
        assert found.correct in (True, False)
        assert found == verifier.check(it, text, finished=finished)


@given(st.text(min_size=1))
def test_a_reference_that_is_not_refused_is_right(text):
    for verifier in (Number(), Option(), Exact()):
        it = Item.of([{"role": "user", "content": "?"}, {"role": "assistant", "content": text}])
        assert verifier.refusal(it) is not None or verifier.check(it, text).correct


# -- option ------------------------------------------------------------------------------------------------------------

SHAPES = "Which shape?\nOptions:\n(A) circle\n(B) kite\n(C) hexagon"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(C)", "C"),
        ("C", "C"),
        ("C.", "C"),
        ("c", "C"),
        ("C) hexagon", "C"),
        ("**C**", "C"),
        ("hexagon", "C"),
        ("Hexagon.", "C"),
        ("The answer is C.", "C"),
        ("It has six sides, not four like (B). So the answer is (C).", "C"),
        ("Answer: C", "C"),
        ("Answer: hexagon", "C"),
        ("It must be option C because of its sides", "C"),
        ("Option C", "C"),
        ("I count six corners, which is (C) here", "C"),
        ("(A)", "A"),
        ("(A) or (C)", "A"),  # its beginning counts
        ("Not (A), but (C)", None),  # several, none of them announced
        ("A hexagon has six", None),  # an article
        ("I think so", None),
        ("Answer: D", None),  # was not offered
        ("", None),
    ],
)
def test_the_option_that_a_text_names(text, found):
    finding = Option().check(item("(C)", SHAPES), text)
    assert (finding.found, finding.correct) == (found, found == "C")
    assert finding.outcome == ("right" if found == "C" else "wrong" if found else "no option")


@pytest.mark.parametrize(
    ("reference", "text", "found"),
    [
        ("True", "true", "true"),
        ("True", "False or True is True, so the answer is True", "true"),
        ("False", "The expression is False.", "false"),
        ("False", "not True, so False", None),
        ("no", "No, it is not plausible: yes-men say so", "no"),
        ("yes", "So the answer is yes.", "yes"),
        ("yes", "nobody knows", None),
        ("yes", "true", None),
    ],
)
def test_words_that_come_in_pairs(reference, text, found):
    finding = Option().check(item(reference), text)
    assert (finding.found, finding.correct) == (found, found == reference.lower())


def test_a_letter_is_an_option_only_where_it_was_offered():
    assert Option().refusal(item("D", "Which?\nA. x\nB. y\nC. z\nD. w")) is None
    assert Option().refusal(item("The answer is (D).", "Which?")) is None
    assert Option().refusal(item("D", "Which letter follows C?")) == "the reference is no option"
    assert Option().refusal(item("(maybe)")) == "the reference is no option"


# -- exact -------------------------------------------------------------------------------------------------------------


def test_word_for_word():
    it = item("Oslo", references=["Kristiania"])
    assert Exact().check(it, " oslo.").correct and Exact().check(it, "“KRISTIANIA”").correct
    assert Exact().check(it, "It is Oslo").outcome == "wrong"
    assert Exact().check(it, "Oslo", finished=False).outcome == "cut"
    assert Exact().check(it, " \n").outcome == "no answer"
    assert "7 words" in Exact().refusal(item("one two three four five six seven"))


# -- the choice --------------------------------------------------------------------------------------------------------


def test_the_verifier_is_chosen_by_what_the_rows_hold():
    def chosen(items):
        return verifier_of(items).name

    tests = Item("?", ("def f(): …",), {"tests": "assert f()"})
    assert chosen([tests] * 3) == "code"
    assert chosen([item("#### 3")] * 3) == "number"
    assert chosen([item("(A)", SHAPES)] * 3) == "option"
    assert chosen([item("yes"), item("no")]) == "option"
    assert chosen([item("gas_type"), item("income"), item("weather")]) == "exact"
    assert chosen([item("the red big house there")] * 4) == "exact"  # few labels
    assert chosen([item(f"house number {i} on the left") for i in range(4)]) == "none"  # prose
    assert chosen([item("a b c d e", references=["a b"]), item("f g h i j", references=["f"])]) == "exact"
    assert chosen([]) == "none"


def test_half_of_the_rows_is_not_enough_and_the_rest_is_counted():
    sums, prose = [item(f"#### {i}") for i in range(6)], [item(f"It is a long story of {i} and more") for i in range(6)]
    none = verifier_of(sums + prose)
    assert none.name == "none" and none.rows == 0
    assert none.why == "no verifier fits more than half of 12 rows (number 6, exact 6)"
    number = verifier_of([*sums, item("#### 9"), *prose])
    assert (number.name, number.why, number.rows, number.of) == (
        "number", "the reference is a number in 7 of 13 rows", 7, 13
    )  # fmt: skip


def test_a_verifier_can_be_named():
    prose = [item("It is a long story of many and more words")] * 3
    assert verifier_of(prose, "number") == type(verifier_of(prose))("number", "asked for", 0, 3)
    assert verifier_of([item("3")], "none").name == "none" and make("none") is None
    with pytest.raises(
        InputError, match=r"verifier 'judge' was asked; there are code, option, number, exact and none\."
    ):
        verifier_of(prose, "judge")
    assert all(make(name).name == name for name in VERIFIERS)


def test_an_item_reads_its_row():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital?"},
        {"role": "assistant", "content": "Oslo"},
    ]
    meta = {"references": ["Oslo", "Kristiania", 3], "tests": "assert 1"}
    for held in (meta, json.dumps(meta)):
        it = Item.of(messages, json.dumps({"meta": held, "task": "t"}))
        assert it.prompt == "Be brief.\nCapital?" and it.references == ("Oslo", "Kristiania")
        assert it.data["tests"] == "assert 1" and it.data["task"] == "t"
    for broken in (None, "", "no JSON", "[1]", '{"meta": "no JSON"}', '{"references": 3}'):
        assert Item.of(messages, broken).references == ("Oslo",)
    bare = Item.of(messages[:2])
    assert bare.references == ()
    assert [make(name).refusal(bare) for name in ("number", "option", "exact")] == ["no reference answer"] * 3


def test_an_answer_is_announced_once_more():
    assert announced("The answer is 3. Or so") == "3"
    assert announced("ANSWER: 1\nanswer: 2\nthen 4") == "2"
    assert announced("İ answer is 5") == "5"  # a letter that folds into two
    assert announced("3") is None and announced("the answer is") is None
    assert Fraction(Number().check(item("2.5"), "answer is 5/2").found) == Fraction(5, 2)
