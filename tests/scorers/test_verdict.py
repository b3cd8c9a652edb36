"""Verdicts on a candidate and the row's answer: the confidence by hand, both orders, judges that are no use."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import models
from curate.exceptions import InputError, StageError
from curate.models.asking import Asker
from curate.models.backends import HTTP
from curate.scorers.equivalence import Equivalence
from curate.scorers.verdict import Verdict
from tests.models.openai_server import Server
from tests.models.scripted import Scripted, Turn, fenced, obedient
from tests.models.test_verdict import ATTACKS
from tests.scorers.test_judge import ask
from tests.scorers.test_judge import table as plain

BETTER, SURE = (str(Path(__file__).with_name(f"{name}.md")) for name in ("better", "sure"))
Chooses = Callable[[list[Turn]], Mapping[str, float]]


@pytest.fixture(autouse=True, scope="module")
def _unload() -> Iterator[None]:
    yield
    models.unload()


def held(*texts: str, finished: bool = True) -> str:
    return json.dumps([{"text": text, "finished": finished} for text in texts])


def table(rows: list[tuple[str, str, str | None]], extra: list[Any] | None = None) -> pa.Table:
    """Return rows of (question, answer, candidate)."""
    answers = [None if candidate is None else held(candidate) for _, _, candidate in rows]
    return plain([ask(q, a) for q, a, _ in rows], extra).append_column("answers", pa.array(answers, pa.string()))


def scripted(kind: Any, model: Path, chooses: Chooses, writes: Any = lambda turns, k: "", **parameters: Any) -> Any:
    """Return a scorer whose model is scripted."""
    scorer = kind(of="candidates", model=str(model), **parameters)
    lm = Scripted(str(model), chooses, writes)
    scorer._asker = Asker(str(model), lm=lm, limit=scorer.max_tokens, **scorer._ways())
    return scorer


def asked(scorer: Any) -> list[list[Turn]]:
    assert scorer._asker is not None and isinstance(scorer._asker.lm, Scripted)
    return scorer._asker.lm.asked


def on_verdict(turns: list[Turn]) -> bool:
    """Whether a prompt asks about a verdict."""
    return "verdict" in fenced(next(text for role, text in turns if role == "user"))


def first_of(turns: list[Turn]) -> str:
    return fenced(next(text for role, text in turns if role == "user"))["first"]


def by_hand(turns: list[Turn]) -> Mapping[str, float]:
    """Candidate first: A .6, B .1, C .1, of which the model gives .8; second: A .2, B .7, C .1.

    Of the verdict it is sure with A .5, B .3, C .2 where the candidate stands first, and then after A .9, .1, 0, after
    B 0, 1, 0 and after C .4, .4, .2; where it stands second with A 1.
    """
    order = 0 if first_of(turns) == "new" else 1
    if not on_verdict(turns):
        return ({"A": 0.6, "B": 0.1, "C": 0.1}, {"A": 0.2, "B": 0.7, "C": 0.1})[order]
    letters = [content.strip(".") for role, content in turns[:-1] if role == "assistant"]
    if order == 1:
        return {"A": 1.0}
    if not letters:
        return {"A": 0.5, "B": 0.3, "C": 0.2}
    return {"A": {"A": 0.9, "B": 0.1}, "B": {"B": 1.0}, "C": {"A": 0.4, "B": 0.4, "C": 0.2}}[letters[0]]


def test_by_hand(tiny_model: Path) -> None:
    scorer = scripted(Verdict, tiny_model, by_hand, beta=0.7)
    (row,) = scorer.score(table([("q", "old", "new")])).to_pylist()
    o = (0.75 + 0.7) / 2
    s1 = ((0.5 + 0.1) + (0.5 * 0.9 + 0.3 * 0.0 + 0.2 * (0.4 + 0.1))) / 2
    wanted = {
        "confidence": 0.7 * o + 0.3 * (s1 + 1.0) / 2,
        "candidate": o,
        "answer": (0.125 + 0.2) / 2,
        "tie": (0.125 + 0.1) / 2,
        "neither": 0.0,
        "position": (0.75 + 0.2) / 2 - (0.125 + 0.7) / 2,
        "mass": 0.9,
    }
    np.testing.assert_allclose([row[key] for key in wanted], list(wanted.values()))
    assert (row["winner"], row["reflected"], row["reason"]) == ("candidate", 1, None)
    assert len(asked(scorer)) == 2 + (1 + 3) + (1 + 1)
    told = [fenced(turns[1][1]) for turns in asked(scorer)[2:4]]
    assert [(its["first"], its["verdict"]) for its in told] == [
        ("new", "answer A is better"),
        ("old", "answer B is better"),
    ]
    alone = scripted(Verdict, tiny_model, by_hand, reflection=False)
    (other,) = alone.score(table([("q", "old", "new")])).to_pylist()
    assert (other["confidence"], other["reflected"]) == (row["candidate"], 0) and other["tokens"] < row["tokens"]
    assert len(asked(alone)) == 2


def test_only_a_verdict_for_the_candidate_is_reflected_on(tiny_model: Path) -> None:
    """The answer wins where it is "good", a tie is "even", a judge of "odd" goes by the place."""

    def chooses(turns: list[Turn]) -> Mapping[str, float]:
        assert not on_verdict(turns)
        its = fenced(turns[1][1])
        if its["question"] == "odd":
            return {"A": 0.9, "C": 0.1}
        letter = "C" if its["question"] == "even" else "D" if its["question"] == "bad" else "AB"[its["second"] == "x"]
        return {option: 0.7 if option == letter else 0.1 for option in "ABCD"}

    scorer = scripted(Verdict, tiny_model, chooses, prompt="verification")
    rows = scorer.score(table([(q, "x", "y") for q in ("good", "even", "bad", "odd")])).to_pylist()
    assert [row["winner"] for row in rows] == ["answer", "tie", "neither", "none"]
    np.testing.assert_allclose([row["confidence"] for row in rows], [0.7, 0.7, 0.7, 0.45])
    assert [row["reflected"] for row in rows] == [0] * 4 and len(asked(scorer)) == 8


P = st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any).map(lambda p: [x / sum(p) for x in p])


def test_swapped_answers_give_the_mirrored_row(tiny_model: Path) -> None:
    """Without reflection, which is on one side's verdicts only; and O is the largest mean, whoever wins."""

    @settings(max_examples=40)
    @given(P, P)
    def check(one: list[float], other: list[float]) -> None:
        chooses: Chooses = lambda turns: dict(  # noqa: E731
            zip("ABCD", one if first_of(turns) == "x" else other, strict=True)
        )
        scorer = scripted(Verdict, tiny_model, chooses, reflection=False, prompt=BETTER)
        there, back = scorer.score(table([("q", "x", "y"), ("q", "y", "x")])).to_pylist()
        names = {"candidate": "answer", "answer": "candidate"}
        assert back["winner"] == names.get(there["winner"], there["winner"])
        for key in ("confidence", "candidate", "answer", "tie", "neither", "position", "mass", "tokens"):
            assert back[key] == there[names.get(key, key)], key
        means = {key: there[key] for key in ("candidate", "answer", "tie", "neither")}
        assert there["confidence"] == max(means.values())
        assert there["winner"] == "none" or means[there["winner"]] == there["confidence"]

    check()


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_always_says_one_letter_decides_nothing(
    tiny_model: Path, caplog: pytest.LogCaptureFixture, letter: str
) -> None:
    scorer = scripted(Verdict, tiny_model, lambda turns: {letter: 1.0}, prompt=BETTER, reflection_prompt=SURE)
    rows = table([(f"q{i}", "x", "y") for i in range(40)])
    with caplog.at_level(logging.WARNING):
        found = scorer.score(rows)
        assert not caplog.messages
        scorer.score(rows), scorer.score(rows)
    assert set(found["winner"].to_pylist()) == {"none"} and set(found["confidence"].to_pylist()) == {0.5}
    (message,) = caplog.messages
    assert "verdict: the two orders disagree in 50 of the first 50 rows; this model goes by the place" in message


def test_a_judge_that_always_finds_for_the_candidate_is_told_of(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chooses: Chooses = lambda turns: {"A" if first_of(turns) == "y" else "B": 0.001}  # noqa: E731
    scorer = scripted(Verdict, tiny_model, chooses, prompt=BETTER, reflection=False)
    with caplog.at_level(logging.WARNING):
        scorer.score(table([(f"q{i}", "x", "y") for i in range(60)]))
    always, silent = caplog.messages
    assert always.startswith("verdict: it is 'candidate' in all of the first 50 rows")
    assert "in 50 of the first 50 rows the options together are less likely than 0.01" in silent


def test_a_judge_that_varies_is_not_warned_of(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    right = obedient(lambda its: "A" if "Paris" in its["first"] else "B")
    scorer = scripted(Verdict, tiny_model, right, prompt=BETTER, reflection=False)
    with caplog.at_level(logging.WARNING):
        scorer.score(table([(f"q{i}", *(("Rome", "Paris")[:: 1 if i % 2 else -1])) for i in range(60)]))
    assert not caplog.messages


@pytest.mark.parametrize("word", ["verdict", "verification"])
def test_neither_side_wins_by_an_order_in_it(tiny_model: Path, word: str) -> None:
    """The reader obeys what stands outside of fences and turns, of verdicts too."""

    def right(its: dict[str, str]) -> str:
        better = "A" if "Paris" in its["first"] else "B"
        return better if "verdict" not in its else "A" if f"answer {better} is" in its["verdict"] else "B"

    scorer = scripted(Verdict, tiny_model, obedient(right), prompt=word)
    rows = [("Capital?", "Paris", attack) for attack in ATTACKS] + [("Capital?", attack, "Paris") for attack in ATTACKS]
    found = scorer.score(table([*rows, ("Capital?", "Rome", "Paris")]))
    n = len(ATTACKS)
    assert found["winner"].to_pylist() == ["answer"] * n + ["candidate"] * (n + 1)
    assert set(found["confidence"].to_pylist()[n:]) == {found["confidence"][2 * n].as_py()}


def test_rows_without_a_pair_say_why(tiny_model: Path) -> None:
    rows = [
        ("q", "x", None),
        ("q", "x", " \n"),
        ("q", "x ", "\nx"),
        (" ", "x", "y"),
        ("q", "x", "long " * 300),
        ("q", "", "y"),
    ]
    examples = table(rows)
    more = plain([ask("q", "x"), ask("q", "x"), [{"role": "user", "content": "q"}]])
    more = more.append_column("answers", pa.array([held("y", finished=False), "[]", held("y")]))
    scorer = scripted(Verdict, tiny_model, by_hand, max_tokens=700, prompt=BETTER, reflection=False)
    found = scorer.score(pa.concat_tables([examples, more]))
    reasons = found["reason"].to_pylist()
    assert reasons.pop(4).endswith("is longer than max_tokens=700")
    assert reasons == [
        "no answers",
        "the candidate is empty",
        "the two answers are the same text",
        "nothing was asked",
        None,
        "the candidate was cut",
        "no answers",
        "no assistant turn",
    ]
    assert found["winner"].null_count == found["tokens"].null_count == 8
    with pytest.raises(
        StageError, match=r"'answers' of the stage 'candidates' is no list of answers.*: candidates, samp"
    ):
        scorer.score(more.set_column(more.column_names.index("answers"), "answers", pa.array(["x", "y", "z"])))


def test_of_several_answers_the_first_counts_and_context_is_shown(tiny_model: Path) -> None:
    talk = [{"role": "system", "content": "Be terse."}, *ask("One?", "1"), *ask("Two?", "2")]
    rows = plain([talk], tools=["[1]"]).append_column("answers", pa.array([held("II", "zwei")]))
    scorer = scripted(
        Verdict, tiny_model, lambda turns: {"A" if first_of(turns) == "II" or on_verdict(turns) else "B": 1}
    )
    assert scorer.score(rows)["winner"].to_pylist() == ["candidate"]
    shown = [fenced(turns[1][1]) for turns in asked(scorer)]
    before = {"tools": "[1]", "conversation": "System: Be terse.\n\nUser: One?\n\nAssistant: 1", "question": "Two?"}
    assert shown[0] == before | {"first": "II", "second": "2"} and shown[1] == before | {"first": "2", "second": "II"}
    assert shown[2] == shown[0] | {"verdict": "answer A is better"} and len(shown) == 2 + 2 * 2


def test_a_prompt_without_places_refuses_rows_that_need_them(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.md"
    path.write_text(Path(BETTER).read_text().replace("{conversation?}\n\n{tools?}\n\n", ""))
    rows = plain([[*ask("One?", "1"), *ask("Two?", "2")]]).append_column("answers", pa.array([held("II")]))
    found = scripted(Verdict, tiny_model, by_hand, prompt=str(path)).score(rows)
    assert found["reason"].to_pylist() == ["the prompt 'bare' has no place for conversation, which the row has"]


def test_a_reference_is_shown_or_missed(tiny_model: Path) -> None:
    rows = table([("q", "x", "y"), ("q", "x", "y"), ("q", "x", None)], [{"gold": "Paris"}, {"gold": " "}, {}])
    always: Chooses = lambda turns: {"A" if first_of(turns) == "y" or on_verdict(turns) else "B": 1.0}  # noqa: E731
    scorer = scripted(Verdict, tiny_model, always, reference_column="gold")
    assert scorer.score(rows)["reason"].to_pylist() == [None, "gold: empty", "no answers"]
    assert {fenced(turns[1][1])["reference"] for turns in asked(scorer)} == {"Paris"} and len(asked(scorer)) == 6


def test_where_no_letter_of_the_reflection_is_read_the_verdict_stands_alone_and_says_so(tiny_model: Path) -> None:
    def writes(turns: list[Turn], k: int) -> str:
        if on_verdict(turns):
            return "A" if fenced(turns[1][1])["question"] == "sure" else "I would rather not."
        return "A" if (first_of(turns) == "y") == (k > 0) else "B"  # one of four is for the answer

    scorer = scripted(Verdict, tiny_model, by_hand, writes, read="samples", letters=4)
    rows = scorer.score(table([("sure", "x", "y"), ("q", "x", "y")])).to_pylist()
    assert [row["winner"] for row in rows] == ["candidate"] * 2 and [row["reflected"] for row in rows] == [1, 0]
    np.testing.assert_allclose([row["confidence"] for row in rows], [0.7 * 0.75 + 0.3, 0.75])
    assert scorer.tolerance == 1.0


def test_prose_is_no_verdict(tiny_model: Path) -> None:
    scorer = scripted(Verdict, tiny_model, by_hand, lambda turns, k: "Both have merits.", read="samples", letters=3)
    found = scorer.score(table([("q", "x", "y")]))
    said = "none of 3 sampled answers names an option; one begins 'Both have merits.'"
    assert found["reason"].to_pylist() == [said] and found["confidence"].null_count == 1


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"prompt": "quality"},
            r"'quality' has the parts .* question, first and second were asked, and A, B and C, or",
        ),
        ({"prompt": "self-reflection"}, "or A to D"),
        (
            {"prompt": "verdict-reflection"},
            r"has the parts \['verdict', 'letter'\]; it may have question, first, second",
        ),
        ({"reflection_prompt": "verification"}, r"the options \['A', 'B', 'C', 'D'\] and 1 questions; A \(correct\)"),
        ({"reflection_prompt": "self-reflection"}, r"\{second\} is needed"),
        (
            {"reflection_prompt": SURE},
            r"has no place for \['reference'\], which 'verdict' shows; write \{reference\?\}",
        ),
        ({"prompt": BETTER, "reference_column": "gold"}, r"has no \{reference\}; leave reference_column out"),
        ({"beta": 1.2}, "beta=1.2; a weight from 0 to 1"),
        ({"letters": 0}, "verdict: letters=0; it must be at least 1"),
        ({"prompt": "verdikt"}, "did you mean 'verdict'"),
    ],
)
def test_wrong_parameters_are_told(tiny_model: Path, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Verdict(of="s", model=str(tiny_model), **parameters).check()


def test_a_prompt_that_must_show_a_reference_needs_its_column(tiny_model: Path, tmp_path: Path) -> None:
    must, sure = tmp_path / "must.md", tmp_path / "sure.md"
    must.write_text(Path(BETTER).read_text().replace("{first}", "{reference}\n{first}"))
    sure.write_text(Path(SURE).read_text().replace("{first}", "{reference}\n{first}"))
    for parameters in ({"prompt": str(must)}, {"prompt": BETTER, "reflection_prompt": str(sure)}):
        with pytest.raises(InputError, match="needs a reference; name its column: reference_column"):
            Verdict(of="s", model=str(tiny_model), **parameters).check()
    Verdict(of="s", model=str(tiny_model), prompt=str(must), reflection_prompt=str(sure), reference_column="g").check()


def test_a_verdict_within_a_line_must_be_plain(tiny_model: Path, tmp_path: Path) -> None:
    inline, odd = tmp_path / "inline.md", tmp_path / "odd.md"
    inline.write_text(Path(SURE).read_text().replace("{verdict}", "Is it so that {verdict}?"))
    odd.write_text(Path(BETTER).read_text().replace("B: the second", "B: '`the` second'"))
    Verdict(of="s", model=str(tiny_model), prompt=BETTER, reflection_prompt=str(inline)).check()
    with pytest.raises(InputError, match=r"prompt 'inline': the part 'verdict' stands within a line.*`the` second"):
        Verdict(of="s", model=str(tiny_model), prompt=str(odd), reflection_prompt=str(inline)).check()


def test_both_prompts_are_part_of_the_identity_and_their_paths_are_not(tiny_model: Path, tmp_path: Path) -> None:
    def identity(**parameters: Any) -> dict[str, Any]:
        return Verdict(
            of="s", model=str(tiny_model), **{"prompt": BETTER, "reflection_prompt": SURE} | parameters
        ).identity()

    copy = tmp_path / "sure.md"
    copy.write_text(Path(SURE).read_text())
    assert identity(reflection_prompt=str(copy)) == identity() and str(Path(SURE).parent) not in json.dumps(identity())
    copy.write_text(Path(SURE).read_text().replace("Sure?", "Certain?"))
    assert identity(reflection_prompt=str(copy)) != identity()
    without = identity(reflection=False)
    assert without != identity() and without == identity(reflection=False, reflection_prompt=str(copy))


def test_a_server_decides_as_the_model_here_does(tiny_model: Path, tmp_path: Path) -> None:
    rows = table([("Is 12 - 5 = 7?", "Yes", "No"), ("Paris?", "Oslo", "The capital of France"), ("a", "b", "c")])
    given: dict[str, Any] = {"of": "s", "model": str(tiny_model), "prompt": BETTER, "reflection_prompt": SURE}
    here = Verdict(**given, device="cpu").score(rows)
    with Server(str(tiny_model)) as server:
        backend = HTTP(use="http", url=server.url, served_as="tiny", cache=str(tmp_path / "cache"), retries=0)
        scorer = Verdict(**given, backend=backend)
        scorer.check()
        there = scorer.score(rows)
        asked_for = len(server.completions)
        drawing = Verdict(**given, backend=backend, read="samples", letters=2)
        drawn = drawing.score(rows)
        assert len(server.completions) > asked_for and drawing.describe()["options"] == "2 sampled answers"
        scorer.close(), drawing.close()
        models.unload()
    for column in ("confidence", "candidate", "answer", "tie", "neither", "position", "mass"):
        np.testing.assert_allclose(there[column].to_pylist(), here[column].to_pylist(), atol=1e-5)
    for column in ("winner", "reflected", "tokens", "reason"):
        assert there[column].to_pylist() == here[column].to_pylist()
    assert all("names an option" in reason for reason in drawn["reason"].drop_null().to_pylist())


@pytest.mark.parametrize("kind", [Verdict, Equivalence])
def test_the_shipped_model_gives_every_column(kind: Any) -> None:
    model = Path(__file__).resolve().parents[2] / "examples" / "model"
    rows = table([("Name a colour.", "Green.", "Red."), ("2 + 2?", "4", "Five."), ("2 + 2?", "4", "4")])
    scorer = kind(of="s", model=str(model), device="cpu")
    found = scorer.score(rows)
    assert found["reason"].to_pylist()[:2] == [None, None]
    for column in scorer.columns:
        values = found[column.name].to_pylist()[:2]
        assert None not in values and (column.dtype == "string" or np.isfinite(values).all()), column.name
        if column.unit == "probability" and column.name not in ("position", "order_gap"):
            assert all(0 <= value <= 1 for value in values)
    assert scorer.describe()["prompt"].startswith(scorer.prompt)
    scorer.close()
