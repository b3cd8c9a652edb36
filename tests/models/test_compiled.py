"""Layers through torch.compile."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from curate.exceptions import ModelError
from curate.models.transformers_lm import TransformersLM
from tests.models.test_transformers_lm import rows_of
from tests.models.tiny import save_tiny_model


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")
def test_compiled_layers_give_the_same_numbers(tiny_model: Path) -> None:
    compiled = TransformersLM(str(tiny_model), device="cpu", compiled=True)
    assert hasattr(compiled._model.base_model.layers[0], "_compiled_call_impl")
    assert compiled._model.base_model.layers[0]._compiled_call_impl is not None
    assert compiled._model.base_model.layers[-1]._compiled_call_impl is None  # left to the hooks of last_mlp
    plain = TransformersLM(str(tiny_model), device="cpu")
    rows = rows_of(12)
    wants = {"logprobs", "entropy", "head-gradient", "hidden-weighted"}
    for a, b in zip(compiled.forward(rows, wants), plain.forward(rows, wants), strict=True):
        assert a is not None and b is not None
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-5)
        np.testing.assert_allclose(a.hidden_weighted, b.hidden_weighted, atol=1e-5)
        np.testing.assert_allclose(a.head_gradient, b.head_gradient, rtol=1e-3, atol=1e-6)


def test_a_model_without_layers_says_so(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.models.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer(None)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="compile was asked, but GPT2Model has no list of layers"):
        TransformersLM(str(tmp_path), device="cpu", compiled=True)


def test_a_layer_that_cannot_be_compiled_stops_the_start(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: setattr(self, "forward", broken))
    with pytest.raises(ModelError, match=r"RuntimeError: no compiler.*needs a C\+\+ compiler"):
        TransformersLM(str(save_tiny_model(tiny_model.parent / "again")), device="cpu", compiled=True)
