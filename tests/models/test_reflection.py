"""How sure a model is of what it is shown: one question or two, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from curate.exceptions import InputError
from curate.models.asking import Asker, Refused
from curate.models.prompting import Prompt, load_prompt, parse
from curate.models.reflection import Reflection, check_reflection, reflect
from tests.models.scripted import Scripted, Turn

ONE = "---\nversion: 1\noptions: {A: right, B: wrong, C: unsure}\n---\n# user\n\n{answer}\n\n{options}\n"
TWO = ONE + "\n# assistant\n\n{letter}.\n\n# user\n\nSure?\n\n{options}\n"
FIRST = {"A": 0.5, "B": 0.0, "C": 0.25}
AGAIN = {"A": {"A": 0.8, "B": 0.1, "C": 0.1}, "C": {"A": 0.2, "B": 0.6, "C": 0.2}}


def prompt(text: str) -> Prompt:
    return parse(text, name="own", caller="own")


def chooses(turns: list[Turn]) -> Mapping[str, float]:
    letters = [content.strip(".") for role, content in turns[:-1] if role == "assistant"]
    return AGAIN[letters[-1]] if letters else FIRST


def test_by_hand(tiny_model: Path) -> None:
    """p₁ = ⅔, 0, ⅓ with a mass of ¾; what B would lead to is not asked."""
    lm = Scripted(str(tiny_model), chooses)
    asker = Asker(str(tiny_model), lm=lm)
    (once,) = reflect(asker, prompt(ONE), [{"answer": "x"}], letter="letter")
    assert isinstance(once, Reflection) and once.first == once.second == once.certainty
    (found,) = reflect(asker, prompt(TWO), [{"answer": "x"}], letter="letter")
    assert isinstance(found, Reflection) and len(lm.asked) == 1 + 3
    first, second = 2 / 3 + 1 / 6, 2 / 3 * (0.8 + 0.05) + 1 / 3 * (0.2 + 0.1)
    np.testing.assert_allclose([once.first, found.first, found.second], [first, first, second])
    np.testing.assert_allclose([found.certainty, found.mass], [(first + second) / 2, 0.75])
    assert found.tokens > 3 * once.tokens


def test_many_are_each_alone_and_refusals_keep_their_place(tiny_model: Path) -> None:
    asker = Asker(str(tiny_model), lm=Scripted(str(tiny_model), chooses), limit=150)
    texts = [{"answer": text} for text in ("x", "long " * 100, "y", "x")]
    found = reflect(asker, prompt(TWO), texts, letter="letter")
    alone = [reflect(asker, prompt(TWO), [its], letter="letter")[0] for its in texts]
    assert found == alone and found[0] == found[3]
    assert isinstance(found[1], Refused) and "longer than max_tokens=150" in found[1].reason
    assert reflect(asker, prompt(TWO), [], letter="letter") == []
    room = next(its.tokens for its in reflect(asker, prompt(ONE), texts[:1], letter="") if isinstance(its, Reflection))
    tight = Asker(str(tiny_model), lm=Scripted(str(tiny_model), chooses), limit=room)
    assert isinstance(reflect(tight, prompt(TWO), texts[:1], letter="letter")[0], Refused)  # the second does not fit


def test_what_is_no_such_prompt_is_refused() -> None:
    for word in ("self-reflection", "verdict-reflection"):
        assert check_reflection(load_prompt(word), shown_as=word, caller="me") == 2
    assert check_reflection(prompt(ONE), shown_as="x", caller="me") == 1
    three = TWO + "\n# assistant\n\n{letter}.\n\n# user\n\nReally?\n\n{options}\n"
    for its in (prompt(three), load_prompt("equivalence")):
        with pytest.raises(InputError, match=r"me: the prompt 'x' has the options .* A \(correct\), B \(incorrect\)"):
            check_reflection(its, shown_as="x", caller="me")
