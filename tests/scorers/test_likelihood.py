"""Likelihood of the response."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import models
from curate.example import MESSAGE_TYPE
from curate.exceptions import InputError, ModelError
from curate.models.reference import load_reference, reference_logprobs
from curate.scorers.likelihood import TargetLikelihood
from curate.testing import check_scorer, odd_examples
from tests.models.tiny import CHATML, save_tiny_model, tiny_tokenizer

WORDS = ["the", "capital", "of", "France", "is", "Paris", "7", "apples", "你好", "😀", "return", "a + b"]


@pytest.fixture(autouse=True, scope="module")
def _unload() -> Iterator[None]:
    yield
    models.unload()


def table(rows: list[list[dict[str, Any]]], tools: list[str | None] | None = None) -> pa.Table:
    return pa.table(
        {
            "messages": pa.array(rows, pa.list_(MESSAGE_TYPE)),
            "tools": pa.array(tools or [None] * len(rows), pa.string()),
        }
    )


def ask(prompt: str, response: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response, **fields}]


def pool(n: int) -> pa.Table:
    rng = np.random.default_rng(0)
    text = lambda: " ".join(rng.choice(WORDS, size=rng.integers(1, 20)))  # noqa: E731
    rows = [[m for _ in range(1 + i % 3) for m in ask(text(), text())] for i in range(n)]
    return table(rows)


def scorer(model: Path, **kwargs: Any) -> TargetLikelihood:
    return TargetLikelihood(model=str(model), device="cpu", **kwargs)


@pytest.mark.parametrize(
    "parameters", [{"dtype": "bfloat16"}, {"template": "plain", "turns": "last", "batch_tokens": 100}], ids=str
)
def test_the_laws_hold(parameters: dict[str, Any], tiny_model: Path) -> None:
    """Beside the defaults, which ``tests/test_contracts.py`` checks."""
    s = scorer(tiny_model, **parameters)
    s.open()  # so that it knows its type, and with it its tolerance
    short = [i for i, chars in enumerate(odd_examples()["chars"].to_pylist()) if chars < 200]
    check_scorer(s, odd_examples().take(short))


def test_columns_are_the_mean_the_sum_the_number_and_the_perplexity(tiny_model: Path) -> None:
    examples = pool(12)
    out = scorer(tiny_model).score(examples)
    assert out.column_names == ["mean_logprob", "sum_logprob", "tokens", "perplexity", "min_k_logprob", "reason"]
    rows = models.encoder(str(tiny_model)).encode(examples["messages"].to_pylist())
    expected = reference_logprobs(load_reference(str(tiny_model)), [(r.ids, r.mask) for r in rows])
    for got, logprobs in zip(out.to_pylist(), expected, strict=True):
        assert got["tokens"] == logprobs.size and got["reason"] is None
        assert got["mean_logprob"] == pytest.approx(logprobs.mean(), abs=1e-4)
        assert got["sum_logprob"] == pytest.approx(logprobs.sum(), abs=1e-4 * logprobs.size)
        assert got["perplexity"] == pytest.approx(math.exp(-logprobs.mean()), rel=1e-4)


def test_any_split_and_any_order_give_the_same_scores(tiny_model: Path) -> None:
    examples = pool(30)
    s = scorer(tiny_model)
    whole = s.score(examples)
    pieces = pa.concat_tables([s.score(examples.slice(i, 7)) for i in range(0, 30, 7)])
    order = np.random.default_rng(1).permutation(30)
    shuffled = s.score(examples.take(order)).take(np.argsort(order))
    for other in (pieces, shuffled):
        assert other["tokens"].equals(whole["tokens"]) and other["reason"].equals(whole["reason"])
        for column in ("mean_logprob", "sum_logprob", "perplexity"):
            np.testing.assert_allclose(other[column], whole[column], rtol=1e-5, err_msg=column)
    assert s.params() == scorer(tiny_model).params()


def test_rows_that_cannot_be_scored_are_null_with_a_reason(tiny_model: Path) -> None:
    rows = [
        ask("a", "b"),
        ask("a", "b", train=False),
        ask("a " * 300, "b"),
        [{"role": "user", "content": "a"}],
        ask("a", "", tool_calls="[broken"),
    ]
    out = scorer(tiny_model).score(table(rows))
    assert out["reason"].to_pylist() == [
        None,
        "no token is in the loss",
        "longer than max_tokens=256",
        "no assistant turn",
        "tools or tool_calls are not JSON",
    ]
    for column in ("mean_logprob", "sum_logprob", "tokens", "perplexity"):
        assert [v is None for v in out[column].to_pylist()] == [False, True, True, True, True]
    alone = scorer(tiny_model).score(table(rows[:1]))
    assert out["mean_logprob"][0].as_py() == pytest.approx(alone["mean_logprob"][0].as_py(), abs=1e-5)


def test_the_limit_is_the_models_context_or_less(tiny_model: Path) -> None:
    (size,) = (row.ids.size for row in models.encoder(str(tiny_model)).encode([ask("one two", "three four")]))
    examples = table([ask("one two", "three four")])
    assert scorer(tiny_model, max_tokens=size).score(examples)["reason"].to_pylist() == [None]
    too_low = scorer(tiny_model, max_tokens=size - 1).score(examples)
    assert too_low["reason"].to_pylist() == [f"longer than max_tokens={size - 1}"]
    raised = scorer(tiny_model, max_tokens=10_000).score(table([ask("a " * 300, "b")]))
    assert raised["reason"].to_pylist() == ["longer than max_tokens=256"]  # the model cannot read more


def test_a_row_of_exactly_the_context_is_scored(tiny_model: Path) -> None:
    encode = models.encoder(str(tiny_model)).encode
    (size,) = (row.ids.size for row in encode([ask("", "b")]))
    full = ask("7" * (256 - size), "b")
    assert encode([full])[0].ids.size == 256
    assert scorer(tiny_model).score(table([full]))["reason"].to_pylist() == [None]


def test_a_row_too_large_for_memory_is_null_and_the_others_are_scored(tiny_model: Path) -> None:
    import torch

    s = scorer(tiny_model, batch_tokens=500)
    s.open()

    def limit(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = s._lm._model.base_model.register_forward_pre_hook(limit, with_kwargs=True)  # type: ignore[union-attr]
    rows = [ask("a", "b"), ask("7" * 100, "b"), ask("c", "d")]
    out = s.score(table(rows))
    hook.remove()
    size = models.encoder(str(tiny_model)).encode(rows)[1].ids.size
    assert out["reason"].to_pylist() == [None, f"out of memory at {size} tokens", None]


def test_grape_setting(tmp_path: Path) -> None:
    """A base model without a chat template gets Question:/Answer:, and the likelier of two answers the higher score."""
    folder = save_tiny_model(tmp_path / "base", tokenizer=tiny_tokenizer(None))
    s = scorer(folder)
    assert s.identity()["template"]["template"] == "plain"
    out = s.score(table([ask("What?", "Paris."), ask("What?", "7 apples are left")]))
    text = "Question: What?\nAnswer: Paris.<|end|>"
    ids = np.array(tiny_tokenizer(None)(text)["input_ids"], dtype=np.int32)
    answer = len(tiny_tokenizer(None)("Question: What?\nAnswer:")["input_ids"])
    mask = np.arange(ids.size) >= answer
    (expected,) = reference_logprobs(load_reference(str(folder)), [(ids, mask)])
    assert out["tokens"][0].as_py() == expected.size
    assert out["mean_logprob"][0].as_py() == pytest.approx(expected.mean(), abs=1e-4)


def test_tool_rows_and_last_turns(tiny_model: Path) -> None:
    call = json.dumps([{"type": "function", "function": {"name": "f", "arguments": "{}"}}])
    tools = json.dumps([{"type": "function", "function": {"name": "f"}}])
    row = [
        *ask("Weather?", "", tool_calls=call),
        {"role": "tool", "content": "rain", "name": "f"},
        {"role": "assistant", "content": "It rains."},
    ]
    both, last = (scorer(tiny_model, turns=turns).score(table([row], [tools])) for turns in ("all", "last"))
    assert both["tokens"][0].as_py() > last["tokens"][0].as_py() > 0
    no_tools = save_tiny_model(tiny_model.parent / "chatml", tokenizer=tiny_tokenizer(CHATML))
    out = scorer(no_tools).score(table([row], [tools]))
    assert out["reason"].to_pylist() == ["the chat template does not show tool calls; use template: plain"]


def test_an_overflow_is_not_a_number_and_says_so(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny_model(tmp_path / "overflow")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    out = scorer(folder, dtype="float16").score(table([ask("a", "b")]))
    assert out["reason"].to_pylist() == ["not a number"] and out["tokens"].null_count == 1


def test_identity_is_the_model_the_template_and_what_changes_numbers(tiny_model: Path, tmp_path: Path) -> None:
    identity = scorer(tiny_model).identity()
    assert identity == json.loads(json.dumps(identity))
    assert identity["model"] == models.identify(str(tiny_model))
    assert identity["template"]["template"] == "chat"
    assert scorer(tiny_model, batch_tokens=7, template="chat").identity() == identity
    for change in ({"turns": "last"}, {"dtype": "bfloat16"}, {"max_tokens": 9}, {"template": "plain"}):
        assert scorer(tiny_model, **change).identity() != identity, change
    assert not models.loading._loaded or scorer(tiny_model)._lm is None  # and nothing was loaded for it
    with pytest.raises(ModelError, match="no such folder"):
        scorer(tmp_path / "nothing").identity()


def test_parameters_that_make_no_sense(tiny_model: Path) -> None:
    for key in ("max_tokens", "batch_tokens"):
        with pytest.raises(InputError, match=f"likelihood: {key}=0; it must be at least 1"):
            scorer(tiny_model, **{key: 0})


def test_open_and_close_can_be_called_twice(tiny_model: Path) -> None:
    models.unload()
    s = scorer(tiny_model)
    s.open()
    s.open()
    s.close()
    s.close()
    (entry,) = models.loading._loaded.values()
    assert entry[1] == [0]
    assert s.score(table([ask("a", "b")]))["reason"].to_pylist() == [None]
    assert s.score(table([])).num_rows == 0
