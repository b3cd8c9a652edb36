"""Keys and values of texts on their way: each state is what the model says of that text alone, from its beginning."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from curate.models import key_values
from curate.models.key_values import KeyValues, bytes_per_token, closed_up
from curate.models.weights import load_weights
from curate.seeding import rng_for
from tests.models.tiny import save_tiny_model


def base_of(tmp_path: Path, name: str) -> Any:
    if name == "llama":
        folder = save_tiny_model(tmp_path / "model")
    else:
        config = transformers.MistralConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            sliding_window=8,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        folder = save_tiny_model(tmp_path / "model", config)
    return load_weights(str(folder), "float32").eval().base_model


@pytest.mark.parametrize("batch_tokens", [1000, 25, 1])
@pytest.mark.parametrize("name", ["llama", "sliding window"])
def test_states_are_those_of_each_text_alone(name: str, batch_tokens: int, tmp_path: Path) -> None:
    """Prompts of several lengths in passes of several sizes; texts end in the middle, at the end, and all but one."""
    base = base_of(tmp_path, name)
    rng = rng_for(0, "key values")
    prompts = [rng.integers(0, 512, size=n) for n in (21, 12, 12, 5, 1)]
    of = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    texts = [prompts[i].tolist() for i in of]
    with torch.inference_mode():
        kept = KeyValues(base, prompts, of, room=9, batch_tokens=batch_tokens, device="cpu")
        for ended in ([], [1], [], [6, 0, 5], [], [0, 1, 3], []):
            assert len(kept.hidden) == len(texts)
            for state, text in zip(kept.hidden, texts, strict=True):
                whole = base(input_ids=torch.tensor([text]), use_cache=False)[0][0, -1]
                torch.testing.assert_close(state, whole, rtol=1e-4, atol=1e-5)
            tokens = torch.from_numpy(rng.integers(0, 512, size=len(texts)))
            order = closed_up(len(texts), [i for i in range(len(texts)) if i not in ended])
            texts = [[*texts[i], int(tokens[i])] for i in order]
            kept.advance(tokens, order)
    assert len(texts) == 1


def test_memory_is_taken_once_and_given_back_at_once(tmp_path: Path) -> None:
    base = base_of(tmp_path, "llama")
    prompts, of = [np.arange(5, 12), np.arange(5, 8)], np.array([0, 0, 1])
    with torch.inference_mode():
        kept = KeyValues(base, prompts, of, room=4, batch_tokens=100, device="cpu")
        owned = [x for layer in kept._layers if layer for x in (layer._keys, layer._values)]
        assert sum(x.nbytes for x in owned) == 3 * (7 + 4 - 1) * bytes_per_token(base, "cpu")
        before = [x.data_ptr() for x in owned]
        kept.advance(torch.tensor([3, 4, 5]), [0, 2])
        kept.advance(torch.tensor([3, 4]), [0, 1])
        assert [x.data_ptr() for layer in kept._layers if layer for x in (layer._keys, layer._values)] == before
        gone = weakref.ref(owned[0])
        gc.disable()
        try:
            del kept, owned
            assert gone() is None
        finally:
            gc.enable()


def test_a_cache_of_other_things_is_not_taken_for_keys_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(tmp_path, "llama")
    # Numbers of a key and a value, two layers, four bytes.
    assert bytes_per_token(base, "cpu") == 2 * 2 * 4 * base.config.num_key_value_heads * base.config.head_dim
    monkeypatch.setattr(key_values, "_KNOWN", {"DynamicSlidingWindowLayer"})
    assert bytes_per_token(base, "cpu") is None


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_closing_up_moves_the_last_into_the_gaps(goes: list[bool]) -> None:
    going = [i for i, on in enumerate(goes) if on]
    order = closed_up(len(goes), going)
    assert sorted(order) == going
    moved = [i for place, i in enumerate(order) if place != i]
    assert all(i >= len(going) for i in moved)
    assert all(order[i] == i for i in going if i < len(going))
