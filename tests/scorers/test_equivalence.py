"""Whether a candidate says what the row's answer says: by hand, both orders, checks that are no use."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.exceptions import InputError
from curate.scorers.equivalence import Equivalence
from tests.models.scripted import Turn, fenced, obedient
from tests.models.test_verdict import ATTACKS
from tests.scorers.test_judge import ask
from tests.scorers.test_judge import table as plain
from tests.scorers.test_verdict import Chooses, asked, first_of, held, scripted, table

SAME = str(Path(__file__).with_name("same.md"))


def test_equivalence_by_hand(tiny_model: Path) -> None:
    """Answer first: A .4 of .5; candidate first: A .6 of 1.  The same text is not asked about."""

    def chooses(turns: list[Turn]) -> Mapping[str, float]:
        return {"A": 0.4, "B": 0.1} if first_of(turns) == "x" else {"A": 0.6, "B": 0.4}

    scorer = scripted(Equivalence, tiny_model, chooses)
    rows = scorer.score(table([("q", "x", "y"), ("q", "y", "x"), ("q", "x\n", " x")])).to_pylist()
    np.testing.assert_allclose([row["equivalent"] for row in rows], [0.7, 0.7, 1.0])
    np.testing.assert_allclose([row["order_gap"] for row in rows], [0.2, -0.2, 0.0])
    np.testing.assert_allclose([row["mass"] for row in rows], [0.75, 0.75, 1.0])
    assert rows[2]["tokens"] == 0 and rows[0]["tokens"] == rows[1]["tokens"] > 0 and len(asked(scorer)) == 4


def test_equivalence_says_why_there_is_none(tiny_model: Path) -> None:
    rows = [("q", " ", "y"), ("q", "x", " "), ("q", "x", None), (" ", "x", "y"), ("q", "long " * 300, "y")]
    scorer = scripted(Equivalence, tiny_model, lambda turns: {"A": 1.0}, max_tokens=800)
    reasons = scorer.score(table(rows))["reason"].to_pylist()
    assert reasons[:4] == ["the answer is empty", "the candidate is empty", "no answers", "nothing was asked"]
    assert reasons[4].endswith("is longer than max_tokens=800")
    for parameters, said in (
        ({"prompt": "verdict"}, r"has the options \['A', 'B', 'C'\]; A \(they say the same\) and B"),
        ({"prompt": "sample"}, "has the options none"),
    ):
        with pytest.raises(InputError, match=said):
            Equivalence(of="s", model=str(tiny_model), **parameters).check()


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_makes_itself_equivalent(tiny_model: Path, attack: str) -> None:
    reader = obedient(lambda its: "A" if ("Paris" in its["first"]) == ("Paris" in its["second"]) else "B")
    found = scripted(Equivalence, tiny_model, reader).score(
        table([("Capital?", "Paris", attack), ("Capital?", attack, "Paris"), ("Capital?", "Rome", "Paris")])
    )
    assert len(set(found["equivalent"].to_pylist())) == 1 and found["equivalent"][0].as_py() < 0.1


@pytest.mark.parametrize(
    ("chooses", "said"),
    [
        (lambda turns: {"A": 1.0}, "equivalence: it is 'the same' in all of the first 50 rows"),
        (lambda turns: {"B": 1.0}, "equivalence: it is 'different' in all of the first 50 rows"),
        (
            lambda turns: {"AB"[first_of(turns) == "x"]: 1.0},
            "equivalence: the two orders disagree in 50 of the first 50",
        ),
    ],
)
def test_a_check_that_is_no_use_is_told_of(
    tiny_model: Path, caplog: pytest.LogCaptureFixture, chooses: Chooses, said: str
) -> None:
    scorer = scripted(Equivalence, tiny_model, chooses, prompt=SAME)
    with caplog.at_level(logging.WARNING):
        scorer.score(table([(f"q{i}", "x", "y") for i in range(60)]))
    (message,) = caplog.messages
    assert message.startswith(said)


def test_the_context_is_shown_in_both_orders(tiny_model: Path) -> None:
    rows = plain([[*ask("One?", "1"), *ask("Two?", "2")]]).append_column("answers", pa.array([held("II", "zwei")]))
    scorer = scripted(Equivalence, tiny_model, lambda turns: {"A": 1.0})
    assert scorer.score(rows)["equivalent"].to_pylist() == [1.0]
    one, two = (fenced(turns[-2][1]) for turns in asked(scorer))
    assert one == {"conversation": "User: One?\n\nAssistant: 1", "question": "Two?", "first": "2", "second": "II"}
    assert two == one | {"first": "II", "second": "2"}
