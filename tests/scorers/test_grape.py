"""GRAPE: the paper's number, and the guards before it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import models
from curate.exceptions import InputError
from curate.models.reference import load_reference, reference_logprobs
from curate.scorers.grape import GRAPE
from curate.scorers.likelihood import TargetLikelihood
from curate.scorers.text_heuristics import TextHeuristics, repetition
from tests.scorers.test_cut_off import CUT, PROSE
from tests.scorers.test_likelihood import ask, pool, table

LOOP = "the cat sat on the mat and " * 8 + "so it ends."


@pytest.fixture(autouse=True, scope="module")
def _unload() -> Iterator[None]:
    yield
    models.unload()


def candidates(responses: list[str], extras: list[Any] | None = None) -> pa.Table:
    said = [None if e is None else json.dumps(e) for e in extras or [None] * len(responses)]
    return with_extra(table([ask("Which one?", response) for response in responses]), said)


def with_extra(examples: pa.Table, extras: list[str | None] | None = None) -> pa.Table:
    return examples.append_column("extra", pa.array(extras or [None] * examples.num_rows, pa.string()))


def grape(model: Path, **params: Any) -> GRAPE:
    return GRAPE(model=str(model), device="cpu", **params)


def reasons(model: Path, examples: pa.Table, **params: Any) -> list[str | None]:
    return grape(model, **params).score(examples)["reason"].to_pylist()


def test_the_number_is_the_papers(tiny_model: Path) -> None:
    """The mean over the last response and its end token, of "Question: {x}\\nAnswer: {y}", in float64."""
    examples = with_extra(pool(12))
    out = grape(tiny_model, max_repetition=None, min_tokens=None).score(examples)
    rows = models.encoder(str(tiny_model), template="plain", turns="last").encode(examples["messages"].to_pylist())
    expected = reference_logprobs(load_reference(str(tiny_model)), [(r.ids, r.mask) for r in rows])
    assert out.column_names == ["mean_logprob", "sum_logprob", "tokens", "perplexity", "reason"]
    for got, values in zip(out.to_pylist(), expected, strict=True):
        assert got["reason"] is None and got["tokens"] == values.size
        assert got["mean_logprob"] == pytest.approx(values.mean(), abs=1e-4)
        assert got["sum_logprob"] == pytest.approx(values.sum(), abs=1e-4 * values.size)
        assert got["perplexity"] == pytest.approx(np.exp(-values.mean()), rel=1e-4)


def test_likelihood_of_the_same_template_gives_the_same_numbers(tiny_model: Path) -> None:
    examples = with_extra(pool(12))
    mine = grape(tiny_model).score(examples)
    other = TargetLikelihood(model=str(tiny_model), device="cpu", template="plain", turns="last").score(examples)
    there = np.array([r is None for r in mine["reason"].to_pylist()])
    assert there.sum() > 6
    assert np.array_equal(mine["mean_logprob"].to_numpy()[there], other["mean_logprob"].to_numpy()[there])


def test_each_guard_has_its_reason_and_its_switch(tiny_model: Path) -> None:
    examples = candidates([PROSE, CUT["a sentence in a paragraph"], CUT["a code block"], LOOP, "a"])
    cut, repetitive, short = (
        ["cut off: the last sentence has no end, unlike those before it", "cut off: a code block is left open"],
        "repetitive: above 0.5 of its trigrams occurred before",
        "shorter than min_tokens=3",
    )
    assert reasons(tiny_model, examples) == [None, *cut, repetitive, short]
    assert reasons(tiny_model, examples, drop_cut_off=False) == [None, None, None, repetitive, short]
    assert reasons(tiny_model, examples, max_repetition=None) == [None, *cut, None, short]
    assert reasons(tiny_model, examples, min_tokens=None) == [None, *cut, repetitive, None]
    off = {"drop_cut_off": False, "max_repetition": None, "min_tokens": None}
    assert reasons(tiny_model, examples, **off) == [None] * 5
    (row,) = grape(tiny_model).score(examples.slice(3, 1)).to_pylist()
    assert row == dict.fromkeys(("mean_logprob", "sum_logprob", "tokens", "perplexity")) | {"reason": repetitive}


def test_the_limits_of_the_guards_are_the_numbers(tiny_model: Path) -> None:
    """ "x y x y x y": trigrams xyx, yxy, xyx, yxy, of which two of four occurred before; "a" and the end: two tokens."""
    examples = candidates(["x y x y x y", "a"])
    assert repetition(["x y x y x y", "a"]).tolist() == [0.5, 0.0]
    assert reasons(tiny_model, examples, min_tokens=None) == [None, None]  # not above a half
    assert reasons(tiny_model, examples, min_tokens=None, max_repetition=0.49)[0] == (
        "repetitive: above 0.49 of its trigrams occurred before"
    )
    (tokens,) = set(grape(tiny_model, min_tokens=None).score(examples.slice(1))["tokens"].to_pylist())
    assert reasons(tiny_model, examples.slice(1), min_tokens=tokens) == [None]
    assert reasons(tiny_model, examples.slice(1), min_tokens=tokens + 1) == [f"shorter than min_tokens={tokens + 1}"]


def test_repetition_is_that_of_the_heuristics() -> None:
    rows = [ask("q", text) for text in (PROSE, LOOP, "a", "你好你好你好你好", "one two three")]
    found = TextHeuristics().score(table(rows))["repetition"].to_pylist()
    assert repetition([messages[-1]["content"] for messages in rows]).tolist() == found


def test_a_finish_reason_comes_before_the_text(tiny_model: Path) -> None:
    whole, open_end = PROSE, CUT["a sentence in a paragraph"]
    said = [
        (whole, {"finish_reason": "length"}, "cut off: finish_reason length"),
        (whole, {"finish_reason": "MAX_TOKENS"}, "cut off: finish_reason max_tokens"),
        (whole, {"stop_reason": "max_tokens"}, "cut off: finish_reason max_tokens"),
        (open_end, {"finish_reason": "stop"}, None),
        (open_end, {"finish_reason": None}, "cut off: the last sentence has no end, unlike those before it"),
        (open_end, {"finish_reason": 3}, "cut off: the last sentence has no end, unlike those before it"),
        (whole, {"note": "finish_reason"}, None),
        (whole, {}, None),
    ]
    examples = candidates([text for text, _, _ in said], [extra for _, extra, _ in said])
    assert reasons(tiny_model, examples) == [wanted for _, _, wanted in said]
    assert reasons(tiny_model, examples, drop_cut_off=False) == [None] * len(said)


def test_the_model_never_reads_what_a_guard_stops(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = grape(tiny_model)
    scorer.open()
    assert scorer._lm is not None
    seen: list[int] = []
    forward = scorer._lm.forward
    monkeypatch.setattr(scorer._lm, "forward", lambda rows, q: seen.append(len(rows)) or forward(rows, q))
    scorer.score(candidates([PROSE, LOOP, "a", PROSE + "Once more, with feeling."]))
    assert seen == [2]


def test_rows_of_many_characters_are_measured_in_pieces(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row numbers of a second piece are its own: a loop there is found there."""
    import curate.numerics.ngrams as ngrams

    cut = ngrams.blocks
    monkeypatch.setattr(ngrams, "blocks", lambda *columns: cut(*columns, characters=100))
    found = reasons(tiny_model, candidates([PROSE, PROSE, LOOP, PROSE]), drop_cut_off=False)
    assert found == [None, None, "repetitive: above 0.5 of its trigrams occurred before", None]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"max_repetition": 1.5}, "grape: max_repetition=1.5; a share from 0 to 1, or null, was asked."),
        ({"max_repetition": float("nan")}, "grape: max_repetition=nan; a share"),
        ({"min_tokens": 0}, "grape: min_tokens=0; it must be at least 1, or null."),
    ],
)
def test_parameters_that_cannot_be_meant(params: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        GRAPE(model="m", **params)
    assert str(error.value).startswith(said)


def test_the_guards_are_part_of_what_the_numbers_depend_on(tiny_model: Path) -> None:
    assert grape(tiny_model).identity() != grape(tiny_model, min_tokens=None).identity()
    assert grape(tiny_model)._encode().kind == "plain" and grape(tiny_model).turns == "last"
