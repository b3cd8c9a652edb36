"""Every rule of every corrector, by hand."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from curate.correctors import S3FT, AutoCorrect, LabelVerification, MajorityVote, Rewrite
from curate.exceptions import InputError, StageError
from tests.correctors.helpers import checks, examples_of, stored, told_by, verdicts, wrote

LONG = "a prompt of 900 tokens is longer than max_tokens=512"


# -- auto-correct, rewrite ---------------------------------------------------------------------------------------------

AUTO: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {  # what is given of a row whose answer is "gold" → what comes out
    "won": (["new"], ("candidate", 0.9), ("replace", "new", 0.9, "the candidate is better")),
    "at eta": (["new"], ("candidate", 0.8), (None, None, 0.8, "the candidate is better, but not surely enough")),
    "below": (["new"], ("candidate", 0.4), (None, None, 0.4, "the candidate is better, but not surely enough")),
    "no number": (["new"], ("candidate", None), (None, None, None, "the candidate is better, but not surely enough")),
    "lost": (["new"], ("answer", 0.99), (None, None, 0.99, "the answer is better")),
    "tie": (["new"], ("tie", 0.99), (None, None, 0.99, "neither is better")),
    "neither": (["new"], ("neither", 0.99), (None, None, 0.99, "both are wrong")),
    "disagree": (["new"], ("none", 0.99), (None, None, 0.99, "the orders disagree")),
    "none, no number": (["new"], ("none", None), (None, None, None, "the orders disagree")),
    "first counts": (["new", "newer"], ("candidate", 1.0), ("replace", "new", 1.0, "the candidate is better")),
    "blank ends": ([" new\n"], ("candidate", 1.0), ("replace", "new", 1.0, "the candidate is better")),
    "empty": ([" \n"], ("candidate", 1.0), (None, None, None, "the candidate is empty")),
    "itself": (["gold"], ("candidate", 1.0), (None, None, None, "the candidate is the answer itself")),
    "itself but for blanks": (
        ["gold \n"], ("candidate", 1.0), (None, None, None, "the candidate is the answer itself"),
    ),
    "cut": (
        (stored("new", finished=False),), ("candidate", 1.0), (None, None, None, "the candidate was cut"),
    ),
    "none written": ([], ("candidate", 1.0), (None, None, None, "no candidate: none was written")),
    "no candidate": (LONG, "no candidate", (None, None, None, f"no candidate: {LONG}")),
    "no verdict": (["new"], LONG, (None, None, None, f"no verdict: {LONG}")),
}  # fmt: skip


@pytest.mark.parametrize("corrector", [AutoCorrect(), Rewrite()], ids=lambda it: it.name)
def test_auto_correct_by_hand(corrector: AutoCorrect) -> None:
    candidates, found = wrote(*[row[0] for row in AUTO.values()]), verdicts(*[row[1] for row in AUTO.values()])
    told = told_by(corrector, examples_of(*["gold"] * len(AUTO)), candidates=candidates, verdict=found)
    assert dict(zip(AUTO, told, strict=True)) == {what: row[2] for what, row in AUTO.items()}
    assert corrector.threshold == 0.8


def test_eta_is_exceeded_and_not_met() -> None:
    for eta, wanted in ((0.0, 3), (0.5, 2), (0.81, 1), (0.99, 0)):
        told = told_by(
            AutoCorrect(eta=eta),
            examples_of(*["gold"] * 4),
            candidates=wrote(*[["new"]] * 4),
            verdict=verdicts(*[("candidate", q) for q in (0.0, 0.5, 0.81, 0.9)]),
        )
        assert sum(action == "replace" for action, *_ in told) == wanted, eta


def test_rewrite_is_auto_correct_with_another_prompt() -> None:
    assert (
        Rewrite.roles["candidates"].params == {"prompt": "rewrite"} and Rewrite.roles.keys() == AutoCorrect.roles.keys()
    )
    assert Rewrite.reference is None and AutoCorrect.reference


def test_blank_ends_of_the_answer_are_no_difference() -> None:
    won = verdicts(("candidate", 0.9))
    ((_, new, _, rule),) = told_by(AutoCorrect(), examples_of(" gold\n"), candidates=wrote(["gold"]), verdict=won)
    assert new is None and rule == "the candidate is the answer itself"


def test_an_answer_that_is_empty_can_be_replaced() -> None:
    told = told_by(AutoCorrect(), examples_of(""), candidates=wrote(["new"]), verdict=verdicts(("candidate", 0.9)))
    assert told == [("replace", "new", 0.9, "the candidate is better")]


@pytest.mark.parametrize(
    ("candidates", "winner", "text"),
    [
        (("oh no",), "candidate", "a column 'answers' is no list of answers (Expecting value"),
        (('["a"]',), "candidate", "name a stage that writes them: candidates, samples."),
        (('{"text": "a"}',), "candidate", "is no list of answers"),
        (["new"], "A", "a verdict is candidate, answer, tie, neither, none; found 'A'."),
    ],
)
def test_stages_of_another_kind_are_refused(candidates: Any, winner: str, text: str) -> None:
    with pytest.raises(StageError) as told:
        told_by(AutoCorrect(), examples_of("gold"), candidates=wrote(candidates), verdict=verdicts((winner, 0.9)))
    assert str(told.value).startswith("auto-correct: ") and text in str(told.value)


# -- s3ft --------------------------------------------------------------------------------------------------------------

OWN, SAID = "own answer, equivalent to the gold one", "paraphrase of the gold answer"
SELF: list[tuple[Any, Any, Any, Any, tuple[Any, ...]]] = [  # own, its check, paraphrase, its check → what comes out
    (["own"], 0.9, ["said"], 0.9, ("replace", "own", 0.9, OWN)),
    (["own"], 0.9, LONG, LONG, ("replace", "own", 0.9, OWN)),
    (["own"], 0.5, ["said"], 0.6, ("replace", "said", 0.6, SAID)),
    (["own"], 0.1, ["said"], 0.5, (None, None, 0.5, "the own answer is not equivalent; the paraphrase is not equivalent")),
    (["own"], 0.1, ["gold"], 0.9, (None, None, None, "the own answer is not equivalent; the paraphrase is the answer itself")),
    (["own"], 0.1, LONG, "x", (None, None, None, f"the own answer is not equivalent; no paraphrase: {LONG}")),
    (["own"], LONG, ["said"], 0.9, ("replace", "said", 0.9, SAID)),
    (["own"], LONG, ["said"], LONG, (None, None, None, f"no check of the own answer: {LONG}; no check of the paraphrase: {LONG}")),
    ([""], 0.9, ["said"], 0.9, ("replace", "said", 0.9, SAID)),
    ((stored("own", finished=False),), 0.9, (stored("said", finished=False),), 0.9,
     (None, None, None, "the own answer was cut; the paraphrase was cut")),
    (["gold"], 0.9, ["said"], 0.9, (None, None, None, "the own answer is the answer itself")),
]  # fmt: skip


def test_s3ft_by_hand() -> None:
    own, check, said, its = zip(*[row[:4] for row in SELF], strict=True)
    told = told_by(
        S3FT(),
        examples_of(*["gold"] * len(SELF)),
        candidates=wrote(*own),
        check=checks(*check),
        paraphrase=wrote(*said),
        paraphrase_check=checks(*its),
    )
    assert told == [row[4] for row in SELF]


def test_s3ft_without_a_paraphrase() -> None:
    told = told_by(
        S3FT(threshold=0.2),
        examples_of(*["gold"] * 3),
        candidates=wrote(["own"], ["own"], LONG),
        check=checks(0.3, 0.2, LONG, name="consistency"),
    )
    assert told == [
        ("replace", "own", 0.3, OWN),
        (None, None, 0.2, "the own answer is not equivalent"),
        (None, None, None, f"no own answer: {LONG}"),
    ]


# -- label-verification ------------------------------------------------------------------------------------------------

LABEL: list[tuple[str, Any, Any, tuple[Any, ...]]] = [  # label, prediction, verdict → what comes out
    ("5", ["6"], ("candidate", 0.51), ("replace", "6", 0.51, "the label is wrong")),
    ("5", ["6"], ("candidate", 0.5), (None, None, 0.5, "the label is wrong, but not surely enough")),
    ("5", ["6"], ("answer", 0.9), (None, None, 0.9, "the prediction is wrong")),
    ("5", ["6"], ("tie", 1.0), (None, None, 1.0, "both are right")),
    ("5", ["6"], ("neither", 0.9), ("drop", None, 0.9, "both are wrong")),
    ("5", ["6"], ("neither", 0.4), (None, None, 0.4, "both are wrong, but not surely enough")),
    ("5", ["6"], ("none", 0.9), (None, None, 0.9, "the orders disagree")),
    ("5", ["6"], LONG, (None, None, None, f"no verdict: {LONG}")),
    ("5", ["5 "], ("candidate", 0.9), (None, None, None, "prediction and label agree")),
    ("5", [""], ("candidate", 0.9), (None, None, None, "the prediction is empty")),
    ("5", (stored("6", finished=False),), ("candidate", 0.9), (None, None, None, "the prediction was cut")),
    ("5", LONG, "no candidate", (None, None, None, f"no prediction: {LONG}")),
]


def test_label_verification_by_hand() -> None:
    labels, predicted, found = zip(*[row[:3] for row in LABEL], strict=True)
    given = {"candidates": wrote(*predicted), "verdict": verdicts(*found)}
    told = told_by(LabelVerification(), examples_of(*labels), **given)
    assert told == [row[3] for row in LABEL]
    leaves = told_by(LabelVerification(both_wrong="leave"), examples_of(*labels), **given)
    assert [(a, b) for a, b in zip(told, leaves, strict=True) if a != b] == [
        (("drop", None, 0.9, "both are wrong"), (None, None, 0.9, "both are wrong")),
        ((None, None, 0.4, "both are wrong, but not surely enough"), (None, None, 0.4, "both are wrong")),
    ]
    assert LabelVerification.roles["verdict"].params == {"prompt": "verification"}


def test_what_counts_as_agreeing() -> None:
    pairs = [
        ("5", "It is 5."),
        ("Oslo", "OSLO."),
        ("Oslo", "So.\nFinal answer: oslo"),
        ("#### 3/4", "0.75"),
        ("a", "b"),
    ]
    wanted = {"text": [], "exact": [1, 2], "numeric": [0, 3]}
    for match, agreeing in wanted.items():
        told = told_by(
            LabelVerification(match=match),
            examples_of(*[label for label, _ in pairs]),
            candidates=wrote(*[[text] for _, text in pairs]),
            verdict=verdicts(*[("candidate", 0.9)] * len(pairs)),
        )
        assert [i for i, row in enumerate(told) if row[3] == "prediction and label agree"] == agreeing, match


# -- majority-vote -----------------------------------------------------------------------------------------------------

CUT = {"text": "It is 9", "finished": False}
VOTES: list[tuple[str, Any, tuple[Any, ...]]] = [  # answer, samples → what comes out
    ("5", ["6 of them", "It is 7", "so 7.0", "14/2"], ("replace", "It is 7", 0.75, "the vote is for another answer")),
    ("= 7", ["It is 6", "7", "7", "7"], (None, None, 0.75, "the vote agrees")),
    ("5", ["6", "6", "7", "7"], (None, None, 0.5, "no majority")),
    ("5", ["6", "6", "7", "8"], (None, None, 0.5, "no majority")),
    ("5", ["6", "6", "7", "8", "6"], ("replace", "6", 0.6, "the vote is for another answer")),
    ("5", ["6", "6"], (None, None, None, "too few samples come to an answer")),
    ("5", ["6", "6", "none", ""], (None, None, None, "too few samples come to an answer")),
    ("five", ["6", "6", "6"], (None, None, 1.0, "the answer comes to nothing that can be compared")),
    ("5", [], (None, None, None, "too few samples come to an answer")),
    ("5", LONG, (None, None, None, f"no samples: {LONG}")),
    ("5", (json.dumps([CUT, CUT, {"text": "6", "finished": True}]),), (None, None, None, "too few samples come to an answer")),
    ("5", ["1 and 2. Final answer: 6\n", "3. Final answer: six or 6", " 6 ", "4"],
     ("replace", "1 and 2. Final answer: 6", 0.75, "the vote is for another answer")),
]  # fmt: skip


def test_majority_vote_by_hand() -> None:
    answers, samples = zip(*[row[:2] for row in VOTES], strict=True)
    told = told_by(MajorityVote(), examples_of(*answers), answers=wrote(*samples))
    assert told == [row[2] for row in VOTES]
    finals = told_by(MajorityVote(put="final"), examples_of(*answers), answers=wrote(*samples))
    assert finals[-1][1] == "6" and finals[0][1] == "It is 7"


def test_votes_over_texts_count_only_behind_the_marker() -> None:
    texts = ["Hm. Final answer: Oslo", "final answer: “OSLO.”", "Oslo", "Final answer: Oslo", "Final answer: Bergen"]
    for answer, action in (("Bergen", "replace"), ("Well. Final answer: oslo!", None), ("oslo", None), ("", None)):
        (told,) = told_by(MajorityVote(kind="exact"), examples_of(answer), answers=wrote(texts))
        assert told[:3] == (action, texts[0] if action else None, 0.75)
    (told,) = told_by(MajorityVote(kind="exact", put="final"), examples_of("Bergen"), answers=wrote(texts))
    assert told[1] == "Oslo"
    (told,) = told_by(MajorityVote(kind="exact"), examples_of("Bergen"), answers=wrote(["Oslo"] * 5))
    assert told[3] == "too few samples come to an answer"


def test_samples_that_come_to_nothing_have_no_vote_and_the_marker_is_the_answers_too() -> None:
    (told,) = told_by(MajorityVote(), examples_of("5"), answers=wrote(["6", "none", "6", "no idea", "6", ""]))
    assert told[:3] == ("replace", "6", 1.0)
    vote = MajorityVote(kind="exact", marker="##")
    (told,) = told_by(vote, examples_of("Well. ## Oslo"), answers=wrote(["## oslo", "a ## Oslo", "## Oslo."]))
    assert told[3] == "the vote agrees"


def test_a_low_share_still_wants_one_largest_cluster() -> None:
    vote = MajorityVote(share=0.2, least=1)
    told = told_by(vote, examples_of("5", "5", "5"), answers=wrote(["6", "7"], ["6", "7", "7", "8"], ["6"]))
    assert [row[:3] for row in told] == [(None, None, 0.5), ("replace", "7", 0.5), ("replace", "6", 1.0)]


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AutoCorrect(eta=1.0), "auto-correct: eta=1.0; a number from 0 up to, but not including, 1 was asked."),
        (lambda: Rewrite(eta=-0.1), "rewrite: eta=-0.1; "),
        (lambda: S3FT(threshold=float("nan")), "s3ft: threshold=nan; "),
        (lambda: LabelVerification(eta=2), "label-verification: eta=2; "),
        (lambda: LabelVerification(marker=" "), "label-verification: a marker of at least one sign was asked"),
        (lambda: MajorityVote(share=1), "majority-vote: share=1; "),
        (lambda: MajorityVote(least=0), "majority-vote: least=0; it must be at least 1."),
        (lambda: MajorityVote(marker=""), "majority-vote: a marker of at least one sign was asked"),
    ],
)
def test_parameters_that_make_no_sense(make: Any, text: str) -> None:
    with pytest.raises(InputError) as told:
        make()
    assert str(told.value).startswith(text)


def test_a_column_of_nulls_is_evidence_of_nothing() -> None:
    nulls = pa.table({"answers": pa.nulls(1, pa.string()), "reason": pa.nulls(1, pa.string())})
    told = told_by(AutoCorrect(), examples_of("gold"), candidates=nulls, verdict=verdicts(("candidate", 0.9)))
    assert told == [(None, None, None, "no candidate: none was written")]
