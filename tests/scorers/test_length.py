"""Length in training tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate import models
from curate.scorers.length import Length
from curate.scorers.likelihood import TargetLikelihood
from tests.models.tiny import tiny_tokenizer
from tests.scorers.test_likelihood import ask, pool, table


def test_by_hand(tiny_model: Path) -> None:
    out = Length(model=str(tiny_model)).score(table([ask("ab", "xyz"), ask("ab", "")]))
    tokens = lambda text: len(tiny_tokenizer()(text)["input_ids"])  # noqa: E731
    # <|bos|> <|user|> prompt <|end|> <|assistant|> response <|end|>
    assert out["response_tokens"].to_pylist() == [tokens("xyz") + 1, 1]
    assert out["total_tokens"].to_pylist() == [tokens("ab") + tokens("xyz") + 5, tokens("ab") + 5]


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("turns", ["all", "last"])
def test_counts_what_likelihood_scores(template: str, turns: str, tiny_model: Path) -> None:
    examples = pool(20)
    length = Length(model=str(tiny_model), template=template, turns=turns).score(examples)  # type: ignore[arg-type]
    likelihood = TargetLikelihood(model=str(tiny_model), template=template, turns=turns, device="cpu").score(examples)  # type: ignore[arg-type]
    assert length["response_tokens"].equals(likelihood["tokens"])
    models.unload()


def test_long_rows_have_their_length_and_unshown_rows_a_reason(tiny_model: Path) -> None:
    rows = [ask("a " * 300, "b"), ask("a", "b", train=False), [{"role": "user", "content": "a"}]]
    out = Length(model=str(tiny_model)).score(table(rows))
    assert out["total_tokens"][0].as_py() > 256
    assert out["response_tokens"].to_pylist() == [2, 0, None]
    assert out["reason"].to_pylist() == [None, None, "no assistant turn"]


def test_weights_are_not_needed(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    bare, full = Length(model=str(tmp_path)), Length(model=str(tiny_model))
    examples = pool(5)
    assert bare.score(examples).equals(full.score(examples))


def test_identity_is_the_tokenizers(tiny_model: Path) -> None:
    identity = Length(model=str(tiny_model)).identity()
    assert identity["tokenizer"] == models.identify(str(tiny_model), weights=False)
    assert Length(model=str(tiny_model), template="plain").identity() != identity
    assert Length(model=str(tiny_model), turns="last").identity() != identity
