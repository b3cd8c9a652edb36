"""What a training is said to need, against what autograd was seen to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curate.exceptions import ModelError
from curate.models import proxy
from curate.models.lora import Lora, attach
from curate.models.memory import Shape, fits, free, needed, shape
from curate.models.proxy import Training

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LAYERS = ("q_proj", "v_proj", "down_proj")
SIZES = dict(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)


def kept_bytes(model: Any, tokens: int, *, half: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: list[Any] = []
    watched = torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x) or x, lambda x: x)
    with watched, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model.base_model(input_ids=torch.arange(tokens)[None] % 512, use_cache=False)
    sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    return sum(size for where, size in sizes.items() if where not in weights)


def test_sizes_by_hand(tiny_model: Path) -> None:
    its = shape(str(tiny_model), ("q_proj", "v_proj"))
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    assert its.parameters == 2 * 512 * 32 + 2 * (layer + 2 * 32) + 32
    assert its.edges == 2 * (2 * 64 + 2 * 48 + 3 * 96)
    assert its.adapted == 2 * (64 + 48)
    assert its.vocabulary == 512


def test_needs_by_hand() -> None:
    its = Shape(parameters=1000, edges=10, vocabulary=100, adapted=20)
    full = Training(method="full", tokens_per_step=50, batch_tokens=30)
    assert needed(its, full, "cpu") == {"weights": 16_000, "activations": 5 * 10 * 30 + 12 * 30 * 100}
    adapter = Training(method="lora", dtype="bfloat16", lora=Lora(r=3), tokens_per_step=20, batch_tokens=30)
    assert needed(its, adapter, "cpu") == {
        "weights": 2 * 1000 + 16 * 3 * 20,
        "activations": int(2.5 * 10 * 20) + 12 * 20 * 100,
    }


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_activations_are_those_that_autograd_keeps(tmp_path: Path, kind: str, method: Any, half: bool) -> None:
    config = {
        "llama": transformers.LlamaConfig(**SIZES, intermediate_size=176, num_key_value_heads=2),
        "neox": transformers.GPTNeoXConfig(**SIZES, intermediate_size=256),
    }[kind]
    config.save_pretrained(tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    model = transformers.AutoModelForCausalLM.from_config(config)
    if method == "lora":
        layers = ("q_proj", "down_proj") if kind == "llama" else ("query_key_value", "dense_4h_to_h")
        if half:
            model.to(torch.bfloat16)
        attach(model, Lora(r=4, alpha=4, dropout=0.0, layers=layers), name="it")
    kept = kept_bytes(model.train(), 256, half=half)
    asked = Training(method=method, dtype="bfloat16" if half else "float32", batch_tokens=256)
    logits = 12 * 256 * 512
    said = needed(shape(str(tmp_path)), asked, "cpu")["activations"] - logits
    assert 0.6 < kept / said < 1.1


def test_a_model_too_large_is_told_before_it_is_loaded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(proxy, "load_weights", lambda *_: loaded.append(1))
    monkeypatch.setattr("curate.models.memory.free", lambda device: 2**20)
    with pytest.raises(
        ModelError, match=r"0M parameters\) on cpu needs about \d+ MiB: 1 MiB for weights, gradients and"
    ):
        proxy.train(str(tiny_model), [], Training(), device="cpu")
    assert not loaded


def test_what_to_do_about_it(tiny_model: Path) -> None:
    model = str(tiny_model)
    said = fits(model, Training(batch_tokens=512), "cpu", limit=1000)
    assert said is not None
    assert "training all weights" in said and "a batch of 512 tokens; 0 MiB are free." in said
    assert said.endswith(
        "Ask for fewer batch_tokens than 512, an adapter alone (method: lora), dtype: bfloat16, or a smaller model."
    )
    adapter = fits(model, Training(method="lora", dtype="bfloat16", lora=Lora(layers=LAYERS)), "cpu", limit=1000)
    assert adapter is not None
    assert "training an adapter (r=128)" in adapter and "fewer ranks than r=128" in adapter
    assert "dtype" not in adapter
    assert fits(model, Training(), "cpu") is None
    asked = needed(shape(model), Training(), "cpu")
    assert fits(model, Training(), "cpu", limit=sum(asked.values())) is None
    assert fits(model, Training(), "cpu", limit=sum(asked.values()) - 1) is not None
    assert free("cpu") > 2**20
