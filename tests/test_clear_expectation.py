r"""The whole of CLEAR with a model whose every probability is known: what comes out is what its mathematics says.

The world.  250 questions "Case i: what is a plus b?", one for each of 5 · 5 · 10 cases, so that shares are exact:

    label        4 in 5 are right, 1 in 5 is planted wrong (t + 1)
    candidate    4 in 5 are right, half of them in the label's words, 1 in 5 is wrong (t + 2)
    judge        6 in 10 see what is true and are sure of it, 2 in 10 see it and are not sure, 1 in 10 is sure of the
                 opposite, 1 in 10 goes by the place alone

The model samples the right number with p = 0.55 and else t + 1.  Asked whether a label is correct it says yes, and asked
again it is less sure: S = ½ (1 + 0.4) = 0.7 of right labels, ½ (1 + 0.2) = 0.6 of wrong ones.  Its samples are the only
thing that is drawn; all the rest is read, and exact.

Confidence.  With k = 4 samples, C = 0.7 · X / k + 0.3 · S, where X samples agree with the label:

    X ~ Bin(4, p)       right labels:   E[C] = 0.7 · 0.55 + 0.3 · 0.7 = 0.595
    Y ~ Bin(4, 1 − p)   wrong labels:   E[C] = 0.7 · 0.45 + 0.3 · 0.6 = 0.495

Filter.  C takes ten values.  From above: X=4, Y=4, X=3, Y=3 are 36% of the rows together, X=2 makes it 65%: the median
lies among the right labels with X = 2 (4.5 standard errors from either end), these tie with it, and CLEAR keeps what is
above: a right label with P(X ≥ 3) = 0.391, a wrong one with P(Y ≥ 3) = 0.241.

Correction.  A judge that is sure has the mean probability 0.9 for its verdict and S = 0.95: q = 0.7 · 0.9 + 0.3 · 0.95
= 0.915; one that is not has 0.6 and S = 0.7: q = 0.63.  Candidate and label differ, and one of them is right, in
1 · 4 · 10 = 40 rows with a wrong label and in 4 · 1 · 10 = 40 with a right one.  So above η = 0.8

    fixed = 40 · 6/10 = 24 of the 50 wrong labels,      harmed = 40 · 1/10 = 4 of the 200 right ones,

and from η = 0.63 down 40 · 8/10 = 32 are fixed: the same 4 are harmed, as the judge in error is sure of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import comb, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from curate import models
from curate.correctors import S3FT, AutoCorrect, LabelVerification, MajorityVote
from curate.example import EXAMPLE_SCHEMA
from curate.models import asking
from curate.numerics.agreement import number
from curate.pipelines.run import Run
from curate.recipe import Recipe
from curate.scorers.candidates import Candidates
from curate.scorers.consistency import Consistency
from curate.scorers.samples import Samples
from curate.scorers.self_reflection import SelfReflection
from curate.scorers.verdict import Verdict
from curate.seeding import rng_for
from curate.selectors import Quantile
from curate.selectors.combine import combine
from tests.conftest import conversation, write_jsonl
from tests.correctors.helpers import told_by
from tests.models.scripted import Scripted, Turn, fenced
from tests.models.tiny import save_tiny_model

N, K, P = 250, 4, 0.55
SURE, UNSURE, WRONG, BY_PLACE = range(4)
JUDGES = [SURE] * 6 + [UNSURE] * 2 + [WRONG, BY_PLACE]
BIAS = 0.04
CASE = re.compile(r"Case (\d+): what is (\d+) plus (\d+)\?")


@dataclass(frozen=True)
class Case:
    """What is true of one row."""

    i: int

    @property
    def question(self) -> str:
        return f"Case {self.i}: what is {self.i + 20} plus {7 * self.i}?"

    @property
    def truth(self) -> int:
        return 8 * self.i + 20

    @property
    def planted(self) -> bool:
        return self.i // 10 % 5 == 0

    @property
    def label(self) -> str:
        return f"It is {self.truth + self.planted}."

    @property
    def candidate_right(self) -> bool:
        return self.i // 50 != 0

    @property
    def judge(self) -> int:
        return JUDGES[self.i % 10]


CASES = [Case(i) for i in range(N)]


def said(turns: list[Turn]) -> tuple[Case, dict[str, str]]:
    """Return the case that is asked about, and the material."""
    text = "\n".join(content for role, content in turns if role == "user")
    match = CASE.search(text)
    assert match
    return Case(int(match[1])), fenced(text)


def writes(turns: list[Turn], k: int) -> str:
    case, material = said(turns)
    if not material:  # the conversation itself: a candidate
        return f"{'That makes' if case.i % 2 else 'It is'} {case.truth + (0 if case.candidate_right else 2)}."
    right = rng_for(0, "sample", case.i, k).random() < P
    return f"{case.i + 20} and {7 * case.i}. Final answer: {case.truth + (0 if right else 1)}"


def chooses(turns: list[Turn]) -> Mapping[str, float]:
    """Half of what it could say is one of the letters; the options' own probabilities are asserted on."""
    case, material = said(turns)
    if "verdict" in material:  # is this verdict correct?
        found = {"A": 0.6, "B": 0.2, "C": 0.2} if case.judge == UNSURE else {"A": 0.9, "C": 0.1}
    elif "first" in material:
        first, second = (number(material[part]) == case.truth for part in ("first", "second"))
        if case.judge == BY_PLACE:
            found = {"A": 0.9, "B": 0.05, "C": 0.05}
        elif first == second:
            found = {"A": 0.1, "B": 0.1, "C": 0.8}
        else:
            sees = first != (case.judge == WRONG)  # holds the first for the better one
            high, low, tie = (0.6, 0.3, 0.1) if case.judge == UNSURE else (0.9, 0.06, 0.04)
            found = {"A": high if sees else low, "B": low if sees else high, "C": tie}
            found = {**found, "A": found["A"] + BIAS, "B": found["B"] - BIAS}  # the first place gains a little
    elif len(turns) == 3:  # is this label correct?  Yes, it says of any
        found = {"A": 1.0}
    else:  # really?
        right = number(material["answer"]) == case.truth
        found = {"A": 0.2, "B": 0.4, "C": 0.4} if right else {"A": 0.1, "B": 0.7, "C": 0.2}
    return {letter: p / 2 for letter, p in found.items()}


PLANTED = np.array([case.planted for case in CASES])
TELLS = np.array([case.candidate_right != (not case.planted) for case in CASES])  # one of the two is right
JUDGE = np.array([case.judge for case in CASES])
KEPT = {bad: sum(comb(K, x) * q**x * (1 - q) ** (K - x) for x in (3, 4)) for bad, q in ((False, P), (True, 1 - P))}


@dataclass
class Loop:
    """Everything that the stages found of the 250 rows."""

    examples: pa.Table
    answers: pa.Table
    consistency: NDArray[np.float64]
    certainty: NDArray[np.float64]
    confidence: NDArray[np.float64]
    candidates: pa.Table
    verdict: pa.Table
    kept: NDArray[np.bool_]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tokenizer and the template of a model; the script stands in its place."""
    folder = str(save_tiny_model(tmp_path_factory.mktemp("clear") / "tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "load", lambda *_, **__: Scripted(folder, chooses, writes))
        yield folder
    models.unload()


@pytest.fixture(scope="module")
def loop(tiny: str) -> Loop:
    fields = pa.schema([EXAMPLE_SCHEMA.field(name) for name in ("id", "messages", "tools", "extra")])
    told = [conversation(case.question, case.label) for case in CASES]
    columns = [[f"case-{case.i}" for case in CASES], told, [None] * N, [None] * N]
    examples = pa.table([pa.array(c, f.type) for c, f in zip(columns, fields, strict=True)], schema=fields)
    answers = Samples(model=tiny, samples=K).score(examples)
    given = examples.append_column("answers", answers["answers"])
    consistency = Consistency(of="samples", similarity="numeric").score(given)["consistency"].to_numpy()
    certainty = SelfReflection(model=tiny).score(examples)["certainty"].to_numpy()
    confidence = combine(
        {"consistency": consistency, "reflection": certainty},
        method="mean",
        weights={"consistency": 0.7, "reflection": 0.3},
    )
    candidates = Candidates(model=tiny).score(examples)
    verdict = Verdict(model=tiny, of="candidates").score(examples.append_column("answers", candidates["answers"]))
    kept = Quantile(share=0.5, ties="drop").select(confidence).mask
    return Loop(examples, answers, consistency, certainty, confidence, candidates, verdict, kept)


def near(found: float, share: float, n: int) -> bool:
    """Whether a count out of n is within four standard errors of its expectation."""
    return abs(found - n * share) <= 4 * sqrt(n * share * (1 - share))


def test_the_confidence_of_right_and_wrong_labels(loop: Loop) -> None:
    np.testing.assert_allclose(loop.certainty, np.where(PLANTED, 0.6, 0.7), rtol=1e-12)  # read: exact
    for bad, q in ((False, P), (True, 1 - P)):
        agreeing = loop.consistency[bad == PLANTED] * K  # drawn: X or Y of each row
        np.testing.assert_allclose(agreeing, agreeing.round(), atol=1e-9)
        assert near(agreeing.sum(), q, K * len(agreeing))
        for x in range(K + 1):
            share = comb(K, x) * q**x * (1 - q) ** (K - x)
            assert near((agreeing.round() == x).sum(), share, len(agreeing))
    expected = np.where(PLANTED, 0.495, 0.595)
    error = 0.7 * sqrt(P * (1 - P) / K)  # of one C about its expectation
    assert abs((loop.confidence - expected).mean()) < 4 * error / sqrt(N)


def test_the_filter_keeps_what_lies_above_the_median(loop: Loop) -> None:
    agreeing = (loop.consistency * K).round()
    assert np.median(loop.confidence) == pytest.approx(0.7 * 2 / K + 0.3 * 0.7)  # right labels with X = 2
    np.testing.assert_array_equal(loop.kept, agreeing >= 3)
    for bad, n in ((False, 200), (True, 50)):
        assert near(loop.kept[bad == PLANTED].sum(), KEPT[bad], n)
    precision, recall = 0.8 * KEPT[False] / (0.8 * KEPT[False] + 0.2 * KEPT[True]), 1 - KEPT[True]
    assert (round(precision, 3), round(recall, 3)) == (0.866, 0.759)  # of the rows kept; of the wrong ones, dropped
    assert near((loop.kept & ~PLANTED).sum(), precision, int(loop.kept.sum()))


def test_each_verdict_is_what_was_scripted(loop: Loop) -> None:
    winner, confidence = np.array(loop.verdict["winner"].to_pylist()), loop.verdict["confidence"].to_numpy()
    same = ~PLANTED & ~TELLS & (np.arange(N) % 2 == 0)  # both are right, in the same words
    assert set(loop.verdict["reason"].filter(pa.array(same)).to_pylist()) == {"the two answers are the same text"}
    assert loop.verdict["reason"].null_count == N - 80 and same.sum() == 80
    truer = np.where(PLANTED, "candidate", "answer")  # where one of them is right
    for judge, wanted, mean in ((SURE, truer, 0.9), (UNSURE, truer, 0.6), (BY_PLACE, "none", 0.475)):
        rows = TELLS & (judge == JUDGE)
        assert (winner[rows] == np.broadcast_to(wanted, N)[rows]).all()
        lost = rows & (winner != "candidate")  # of these q is the mean probability: the bias is gone from it
        np.testing.assert_allclose(confidence[lost], mean, rtol=1e-12)
    np.testing.assert_allclose(confidence[TELLS & (JUDGE == SURE) & PLANTED], 0.7 * 0.9 + 0.3 * 0.95, rtol=1e-12)
    np.testing.assert_allclose(confidence[TELLS & (JUDGE == UNSURE) & PLANTED], 0.7 * 0.6 + 0.3 * 0.7, rtol=1e-12)
    position = loop.verdict["position"].to_numpy()
    np.testing.assert_allclose(position[TELLS & (JUDGE == SURE)], 2 * BIAS, rtol=1e-9)
    np.testing.assert_allclose(position[TELLS & (JUDGE == BY_PLACE)], 0.85, rtol=1e-9)
    assert (winner[~TELLS & ~same & (JUDGE != BY_PLACE)] == "tie").all()  # both are right, or both wrong


@pytest.mark.parametrize(("eta", "fixed", "harmed"), [(0.0, 32, 4), (0.63, 24, 4), (0.8, 24, 4), (0.92, 0, 0)])
def test_how_many_are_fixed_and_harmed(loop: Loop, eta: float, fixed: int, harmed: int) -> None:
    corrected = AutoCorrect(eta=eta + 1e-9).correct(
        loop.examples, {"candidates": loop.candidates, "verdict": loop.verdict}
    )
    for case, answer in zip(CASES, corrected.answer, strict=True):
        assert answer is None or (number(answer) == case.truth) == case.planted  # a label is fixed or harmed
    replaced = np.array([action == "replace" for action in corrected.action])
    assert ((replaced & PLANTED).sum(), (replaced & ~PLANTED).sum()) == (fixed, harmed)
    assert corrected.action.count(None) == N - fixed - harmed


def outcome(loop: Loop) -> tuple[int, int]:
    """Return how many of the final rows are right and wrong: those corrected, and of the others what the filter kept."""
    corrected = AutoCorrect().correct(loop.examples, {"candidates": loop.candidates, "verdict": loop.verdict})
    right = wrong = 0
    for case, answer, kept in zip(CASES, corrected.answer, loop.kept, strict=True):
        if answer is not None or kept:
            true = number(answer or case.label) == case.truth
            right, wrong = right + true, wrong + (not true)
    return right, wrong


def test_the_data_that_comes_out(loop: Loop) -> None:
    """24 fixed and of the 196 good rows that stay P(X ≥ 3) of them; 4 harmed and of the 26 bad ones P(Y ≥ 3).

    The judge knows nothing of the samples, so that the two are independent: 100.6 right rows and 10.3 wrong ones are
    expected, 9.3% wrong, where the pool has 20% and the filter alone leaves 13.4%.
    """
    right, wrong = outcome(loop)
    assert near(right - 24, KEPT[False], 196) and near(wrong - 4, KEPT[True], 26)
    expected = 24 + 196 * KEPT[False], 4 + 26 * KEPT[True]
    assert [round(value, 1) for value in expected] == [100.6, 10.3]


def test_the_other_correctors_in_the_same_world(loop: Loop) -> None:
    """A majority of the samples, own words for what the label says, and predictions in the place of wrong labels."""
    agreeing = (loop.consistency * K).round()
    vote = told_by(MajorityVote(), loop.examples, answers=loop.answers)
    for row, x in zip(vote, agreeing, strict=True):
        wanted = "the vote agrees" if x >= 3 else "no majority" if x == 2 else "the vote is for another answer"
        assert row[3] == wanted and row[2] == max(x, K - x) / K
    fixed = sum(row[0] == "replace" and case.planted for row, case in zip(vote, CASES, strict=True))
    harmed = sum(row[0] == "replace" and not case.planted for row, case in zip(vote, CASES, strict=True))
    # A label is outvoted where 0 or 1 samples agree: P(X ≤ 1) = P(Y ≥ 3) of the right, P(Y ≤ 1) = P(X ≥ 3) of the wrong.
    assert near(fixed, KEPT[False], 50) and near(harmed, KEPT[True], 200)

    given = loop.examples.append_column("answers", loop.candidates["answers"])
    check = Consistency(of="candidates", similarity="numeric").score(given)
    own = told_by(S3FT(), loop.examples, candidates=loop.candidates, check=check)
    taken = [case for row, case in zip(own, CASES, strict=True) if row[0] == "replace"]
    assert len(taken) == 80 and all(case.candidate_right and not case.planted and case.i % 2 for case in taken)

    verified = told_by(LabelVerification(), loop.examples, candidates=loop.candidates, verdict=loop.verdict)
    assert sum(action == "replace" for action, *_ in verified) == 32 + 4 and "drop" not in [row[0] for row in verified]


def test_a_run_comes_to_the_same_and_asks_once(tiny: str, loop: Loop, tmp_path: Path) -> None:
    rows = [{"id": f"case-{case.i}", "messages": conversation(case.question, case.label)} for case in CASES]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    document: dict[str, Any] = {
        "name": "clear",
        "sources": [{"path": "pool.jsonl", "id": "id"}],
        "scorers": {
            "samples": {"model": tiny, "samples": K},
            "consistency": {"of": "samples", "similarity": "numeric"},
            "reflection": {"use": "self-reflection", "model": tiny},
        },
        "combine": {"confidence": {"method": "mean", "of": {"consistency": 0.7, "reflection": 0.3}}},
        "select": [{"name": "filter", "use": "quantile", "on": "confidence", "share": 0.5, "ties": "drop"}],
        "correct": [{"use": "auto-correct", "candidates": {"model": tiny}, "verdict": {"model": tiny}}],
        "execution": {"shard_rows": 64},
        "report": False,
    }

    def run(**changes: Any) -> dict[str, int]:
        job = Run(Recipe.from_dict({**document, **changes}, tmp_path), tmp_path / "run", "sync", quiet=True)
        job.execute()
        decisions: dict[str, int] = job.manifest["decisions"]
        return decisions

    def written() -> list[tuple[Case, str]]:
        data = pl.read_parquet(tmp_path / "run/dataset/*.parquet")["messages"].to_list()
        twin = pl.read_parquet(tmp_path / "run/provenance/*.parquet")["id"].to_list()
        return [(Case(int(i[5:])), turns[-1]["content"]) for i, turns in zip(twin, data, strict=True)]

    decisions = run()
    right, wrong = outcome(loop)
    assert decisions["corrected"] == 28 and decisions["corrected"] + decisions["kept"] == right + wrong
    assert sum(number(answer) == case.truth for case, answer in written()) == right
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "load", lambda *_, **__: pytest.fail("a model was asked again"))
        looser = run(correct=[{**document["correct"][0], "eta": 0.5}])
        assert looser["corrected"] == 36
        none = run(correct=[{**document["correct"][0], "revert": "all"}])
        assert none == {"kept": int(loop.kept.sum()), "dropped": N - int(loop.kept.sum())}
