"""Losses beside the model's own forward pass, answers of a scripted model, and rows that cannot be measured."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import models
from curate.example import EXAMPLE_SCHEMA
from curate.exceptions import InputError, ModelError
from curate.models.base import Forward, Generation, Quantity, Row, Sampling
from curate.models.measure import MEASURED, Asking, measure, plan, summary
from curate.models.template import Encoder
from curate.testing.scorers import odd_examples
from tests.models.scripted import Scripted
from tests.models.tiny import tiny_tokenizer

FIELDS = [EXAMPLE_SCHEMA.field(name) for name in ("id", "messages", "tools", "group", "extra")]


def examples(
    *rows: tuple[str | None, str, str | None] | tuple[str | None, str, str | None, dict[str, Any]],
) -> pa.Table:
    """(task, question, answer, other columns) → a table of examples."""
    made = []
    for i, (task, asked, answer, *extra) in enumerate(rows):
        turns = [("user", asked)] + ([] if answer is None else [("assistant", answer)])
        made.append(
            {
                "id": f"r{i}",
                "messages": [{"role": role, "content": content} for role, content in turns],
                "group": task,
                "extra": json.dumps(extra[0]) if extra else None,
            }
        )
    return pa.Table.from_pylist(made, pa.schema(FIELDS))


class Actor(Scripted):
    """Says what it is told, with a log-probability of −½ a token unless told otherwise."""

    def __init__(self, model: str, answers: dict[str, str], each: float = -0.5, **given: Any) -> None:
        super().__init__(model, writes=lambda turns, k: answers.get(turns[-2][1], ""), **given)
        self.each, self.samplings = each, []
        self.finished = True

    def forward(self, rows: Sequence[Row], quantities: Collection[Quantity]) -> list[Forward | None]:
        return [Forward(logprobs=np.full(int(mask.sum()), self.each, np.float32)) for _, mask in rows]

    def generate(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[Generation] | None]:
        self.samplings.append(sampling)
        found = super().generate(prompts, sampling)
        return [[Generation(texts[0].text, texts[0].tokens, self.finished)] for texts in found if texts]


@pytest.fixture
def encoder(tiny_model) -> Encoder:
    return models.encoder(str(tiny_model), turns="last")


SUMS = examples(
    ("sums", "1 + 1?", "#### 2"),
    ("sums", "2 + 2?", "#### 4"),
    ("sums", "3 + 3?", "#### 6"),
    ("labels", "warm or cold? ice", "cold"),
    ("labels", "warm or cold? fire", "warm"),
    ("labels", "warm or cold? snow", "cold"),
    ("labels", "warm or cold? sun", "warm"),
    ("prose", "Tell me of Oslo.", "The capital of Norway lies by a fjord of the same name."),
)
SAID = {"1 + 1?": "It is 2", "2 + 2?": "#### 5", "warm or cold? ice": "Cold.", "warm or cold? fire": "it is warm"}


# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_the_models_own_forward_pass(tiny_model, encoder):
    import torch
    from transformers import AutoModelForCausalLM

    lm = models.load(str(tiny_model))
    try:
        found = measure(lm, encoder, SUMS, asking=Asking(generate=False))
    finally:
        models.release(lm)
    assert found.schema == MEASURED and found["reason"].null_count == SUMS.num_rows
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    for messages, row in zip(SUMS["messages"].to_pylist(), found.to_pylist(), strict=True):
        encoded = encoder.encode([messages])[0]
        ids = torch.tensor(encoded.ids.astype(np.int64))
        with torch.no_grad():
            logprobs = plain(ids[None]).logits[0].log_softmax(-1)
        wanted = -sum(logprobs[t - 1, ids[t]].item() for t in np.flatnonzero(encoded.mask))
        assert row["nll"] == pytest.approx(wanted, rel=1e-4) and row["tokens"] == encoded.mask.sum()


def test_order_and_company_change_nothing(tiny_model, encoder):
    lm = models.load(str(tiny_model))
    try:
        whole = measure(lm, encoder, SUMS)
        order = [5, 2, 7, 0, 3, 1, 6, 4]
        other = measure(lm, encoder, SUMS.take(order))
    finally:
        models.release(lm)
    for i, row in zip(order, other.to_pylist(), strict=True):
        one = whole.slice(i, 1).to_pylist()[0]
        assert row.pop("nll") == pytest.approx(one.pop("nll"), rel=1e-4)
        assert row == one


def test_only_the_last_answer_is_measured(tiny_model, encoder):
    talk = [("user", "1 + 1?"), ("assistant", "a long first answer"), ("user", "sure?"), ("assistant", "#### 2")]
    row = {"id": "x", "messages": [{"role": r, "content": c} for r, c in talk], "group": "sums"}
    table = pa.Table.from_pylist([row], pa.schema(FIELDS))
    lm = Actor(str(tiny_model), {"sure?": "#### 2"})
    found = measure(lm, encoder, table).to_pylist()[0]
    tokens = len(lm.tokenizer("#### 2")["input_ids"]) + 1  # and the one that ends the turn
    assert (found["nll"], found["tokens"]) == (0.5 * tokens, tokens)
    assert lm.asked == [[*talk[:3], ("assistant", "")]] and found["correct"]


# -- answers -----------------------------------------------------------------------------------------------------------


def test_answers_are_verified_task_by_task(tiny_model, encoder):
    lm = Actor(str(tiny_model), SAID)
    found = measure(lm, encoder, SUMS).to_pylist()
    assert [row["correct"] for row in found] == [True, False, False, True, False, False, False, None]
    assert [row["outcome"] for row in found[:4]] == ["right", "wrong", "no number", "right"]
    assert [row["found"] for row in found[:5]] == ["2", "5", None, "cold", "it is warm"]
    assert [row["answer"] for row in found[1:4]] == ["#### 5", "", "Cold."]
    assert found[7]["answer"] is None and found[7]["written"] is None
    assert found[7]["outcome"] == "no verifier fits more than half of 1 rows (none fits any)"
    assert len(lm.asked) == 7, "prose is not asked for"


def test_a_cut_answer_may_not_be_one(tiny_model, encoder):
    lm = Actor(str(tiny_model), SAID)
    lm.finished = False
    found = measure(lm, encoder, SUMS).to_pylist()
    assert [row["outcome"] for row in found[:4:3]] == ["cut within its last number", "cut"]


def test_how_much_is_written(tiny_model, encoder):
    lm = Actor(str(tiny_model), SAID)
    tokens = {word: len(lm.tokenizer(word)["input_ids"]) + 1 for word in ("#### 2", "#### 4", "#### 6", "cold", "warm")}
    measure(lm, encoder, SUMS)
    sums, labels = (max(tokens[w] for w in words) for words in (("#### 2", "#### 4", "#### 6"), ("cold", "warm")))
    assert [s.max_tokens for s in lm.samplings] == [sums * 3 // 2 + 8, labels * 3 // 2 + 8]
    assert all(s.temperature == 0 and s.n == 1 and not s.stop for s in lm.samplings)
    measure(lm, encoder, SUMS, asking=Asking(new_tokens=7))
    measure(lm, encoder, SUMS, asking=Asking(new_tokens={"sums": 9}))
    assert [s.max_tokens for s in lm.samplings[2:]] == [7, 7, 9, labels * 3 // 2 + 8]


def test_a_base_model_stops_before_the_next_question(tiny_model):
    lm = Actor(str(tiny_model), {})
    lm.writes = lambda turns, k: "2"
    lm.turns = lambda ids: [("user", ""), ("assistant", "")]
    found = measure(lm, Encoder(tiny_tokenizer(None), turns="last"), SUMS.slice(0, 1))
    assert lm.samplings[0].stop == ("\nQuestion:",) and found["correct"].to_pylist() == [True]


def test_code_is_run_only_when_asked(tiny_model, encoder):
    table = examples(("code", "Add.", "def add(a, b): return a + b", {"meta": {"tests": "assert add(1, 2) == 3"}}))
    lm = Actor(str(tiny_model), {"Add.": "```python\ndef add(a, b): return a + b\n```"})
    found = measure(lm, encoder, table).to_pylist()[0]
    assert (found["correct"], found["outcome"], found["answer"]) == (None, "code was not run", None)
    assert not lm.asked, "what is not run is not written"
    assert measure(lm, encoder, table, asking=Asking(run_code=True))["outcome"].to_pylist() == ["pass"]


def test_a_verifier_can_be_named_by_task(tiny_model, encoder):
    lm = Actor(str(tiny_model), SAID)
    found = measure(lm, encoder, SUMS, asking=Asking(verifiers={"sums": "none", "labels": "number"}))
    outcomes = found["outcome"].to_pylist()
    assert outcomes[0] == "not verified" and outcomes[3] == "the reference is no single number" and not lm.asked
    found = measure(lm, encoder, SUMS, asking=Asking(generate=False))
    assert found["outcome"].to_pylist()[0] == "answers were not asked for" and not lm.asked


# -- what cannot be measured -------------------------------------------------------------------------------------------


def test_rows_without_an_answer_or_a_place_have_a_reason(tiny_model, encoder):
    table = examples(
        ("chat", "Hello?", None),
        ("chat", "x " * 300, "yes"),
        ("chat", "x", "long " * 300),
        ("chat", "spells <|end|>", "no"),
        ("chat", "good?", "yes"),
    )
    lm = Actor(str(tiny_model), {"good?": "Yes."}, context=64)
    found = measure(lm, encoder, table).to_pylist()
    long = "longer than the model's context of 64 tokens"
    assert [row["reason"] for row in found] == [
        "no assistant turn", long, long, "message 0 spells the special token '<|end|>'", None
    ]  # fmt: skip
    assert [row["tokens"] for row in found[:4]] == [0] * 4 and [row["nll"] for row in found[:4]] == [None] * 4
    assert [row["outcome"] for row in found] == [
        "no reference answer",
        "the prompt fills the model's context of 64 tokens",
        "the reference is no option",
        "message 0 spells the special token '<|end|>'",
        "right",
    ]
    assert found[4]["correct"] and len(lm.asked) == 1


@pytest.mark.parametrize("each", [float("nan"), -float("inf")])
def test_a_model_that_gives_no_numbers_is_not_asked(tiny_model, encoder, each):
    lm = Actor(str(tiny_model), SAID, each=each)
    found = measure(lm, encoder, SUMS).to_pylist()
    assert {row["reason"] for row in found} == {"the model's loss is not a number"}
    assert {row["nll"] for row in found} == {None} == {row["correct"] for row in found} and not lm.asked
    assert found[0]["outcome"] == "the model's loss is not a number"


def test_what_does_not_fit_into_memory_says_so(tiny_model, encoder):
    lm = Actor(str(tiny_model), SAID)
    lm.forward = lambda rows, quantities: [None] * len(rows)
    lm.generate = lambda prompts, sampling: [None] * len(prompts)
    found = measure(lm, encoder, SUMS.slice(0, 1)).to_pylist()[0]
    assert found["reason"].startswith("out of memory at") and found["correct"] is None
    assert found["outcome"].startswith("out of memory at a prompt of")


def test_a_failing_model_is_no_measurement(tiny_model, encoder):
    def fail(*given: Any) -> Any:
        raise ModelError("gone")

    lm = Actor(str(tiny_model), SAID)
    lm.generate = fail
    with pytest.raises(ModelError, match="gone"):
        measure(lm, encoder, SUMS)


def test_what_cannot_be_meant_is_refused(tiny_model, encoder):
    lm = Actor(str(tiny_model), SAID)
    with pytest.raises(InputError, match=r"columns id and messages were asked; messages is missing\."):
        measure(lm, encoder, SUMS.drop_columns(["messages"]))
    with pytest.raises(InputError, match="an encoder with turns='last' was asked, turns='all' was found"):
        measure(lm, models.encoder(str(tiny_model)), SUMS)
    with pytest.raises(
        InputError, match="settings for 'sum' were given; the examples' tasks are 'labels', 'prose', 's"
    ):
        measure(lm, encoder, SUMS, asking=Asking(verifiers={"sum": "number"}))
    with pytest.raises(InputError, match="settings for 'sum' were given"):
        measure(lm, encoder, SUMS, asking=Asking(new_tokens={"sum": 3}))
    with pytest.raises(InputError, match="new_tokens=0; at least 1 was asked"):
        measure(lm, encoder, SUMS, asking=Asking(new_tokens=0))
    with pytest.raises(InputError, match="verifier 'judge' was asked"):
        measure(lm, encoder, SUMS, asking=Asking(verifiers={"sums": "judge"}))  # type: ignore[dict-item]
    with pytest.raises(InputError, match="a plan of 8 rows was given for 3 examples"):
        measure(lm, encoder, SUMS.slice(0, 3), planned=plan(SUMS, encoder, context=None))


def test_no_rows_no_columns_no_tasks(tiny_model, encoder):
    lm = Actor(str(tiny_model), SAID)
    empty = measure(lm, encoder, SUMS.slice(0, 0))
    assert empty.schema == MEASURED and empty.num_rows == 0 and summary(empty) == []
    bare = measure(lm, encoder, SUMS.slice(0, 3).select(["id", "messages"]))
    assert bare["task"].to_pylist() == ["examples"] * 3 and bare["correct"].to_pylist() == [True, False, False]


def test_odd_rows_are_measured_or_have_a_reason(tiny_model, encoder):
    lm = Actor(str(tiny_model), {}, context=256)
    lm.writes = lambda turns, k: ""
    found = measure(
        lm, encoder, odd_examples(), asking=Asking(verifiers={"examples": "exact"}, new_tokens=4)
    ).to_pylist()
    assert len(found) == odd_examples().num_rows
    for row in found:
        assert (row["nll"] is None) == (row["reason"] is not None) == (row["tokens"] == 0)
        assert row["outcome"] and (row["correct"] is None) == (row["answer"] is None)


# -- plan and summary --------------------------------------------------------------------------------------------------


def test_a_plan_serves_several_models_and_describes_itself(tiny_model, encoder):
    how = plan(SUMS, encoder, context=None)
    good, bad = Actor(str(tiny_model), SAID), Actor(str(tiny_model), {})
    for lm in (good, bad):
        assert measure(lm, encoder, SUMS, planned=how).equals(measure(lm, encoder, SUMS))
    lines = plan(examples(("sums", "1?", "#### 1"), ("sums", "2?", None)), encoder, context=None).describe()
    assert lines == ["sums: 2 rows, verified by none (no verifier fits more than half of 2 rows (number 1, exact 1)), 0 "
                     "answers asked; 1 without a loss: no assistant turn"]  # fmt: skip
    assert how.describe()[0].startswith(
        "sums: 3 rows, verified by number (the reference is a number in 3 of 3 rows), 3 "
    )


def test_a_summary_counts_by_task(tiny_model, encoder):
    told = summary(measure(Actor(str(tiny_model), SAID), encoder, SUMS))
    assert [t["task"] for t in told] == ["sums", "labels", "prose"]
    assert [t["accuracy"] for t in told] == [pytest.approx(1 / 3), 0.25, None]
    assert [t["verified"] for t in told] == [3, 4, 0] and all(t["nll"] == 0.5 for t in told)
    none = summary(measure(Actor(str(tiny_model), {}, each=float("nan")), encoder, SUMS.slice(0, 2)))
    assert none[0]["nll"] is None and none[0]["reasons"] == {"the model's loss is not a number": 2}
