"""Checkpoints: ours and back, ours in peft, Hugging Face's Trainer's in ours; and folders that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.exceptions import InputError, ModelError
from curate.models.checkpoints import digest, from_arrays, read, to_arrays, untrained, write
from curate.models.lora import Checkpoint, Lora, Weights, attach, parameters, put, take
from curate.models.warmup import WarmUp, train_epoch
from curate.seeding import rng_for
from tests.models.tiny import save_tiny_model

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

SHAPE = Lora(r=4, alpha=8, dropout=0.25)


def equal(a: Weights | None, b: Weights | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def base(folder: Path | str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    rng = rng_for(0, "rows")
    rows = [(rng.integers(0, 512, size=9), np.arange(9) > 2) for _ in range(6)]
    settings = WarmUp(epochs=2, batch=2, rate=1e-2, warmup=0.0, lora=SHAPE)
    return train_epoch(str(tiny_model), rows, settings, None, device="cpu")


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """What the Trainer left after the second of two epochs, and the Trainer."""
    out = tmp_path_factory.mktemp("trainer")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "q_proj", "o_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = peft.get_peft_model(base(tiny_model), config)
    rng = rng_for(0, "trainer")
    data = [{"input_ids": (ids := rng.integers(0, 512, size=12).tolist()), "labels": ids} for _ in range(6)]
    arguments = transformers.TrainingArguments(
        str(out), num_train_epochs=2, per_device_train_batch_size=2, learning_rate=1e-2, warmup_steps=0,
        lr_scheduler_type="linear", save_strategy="epoch", logging_steps=1, report_to="none", use_cpu=True, seed=0,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    trainer.train()
    return out / "checkpoint-6", trainer


@pytest.fixture
def folder(trained: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the Trainer's checkpoint, to break."""
    return Path(shutil.copytree(trained[0], tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


# --- ours ------------------------------------------------------------------------------------------------------------


def test_arrays_and_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", **to_arrays(checkpoint))
    with np.load(tmp_path / "c.npz", allow_pickle=False) as arrays:
        back = from_arrays(arrays)
    assert all(equal(getattr(back, part), getattr(checkpoint, part)) for part in ("weights", "first", "second"))
    assert (back.lora, back.steps, back.rate, back.told) == (SHAPE, 3, checkpoint.rate, checkpoint.told)
    bare = from_arrays(to_arrays(replace(checkpoint, first=None, second=None)))
    assert bare.first is None and bare.second is None


def test_a_folder_and_back(checkpoint: Checkpoint, tiny_model: Path, tmp_path: Path) -> None:
    write(str(tmp_path / "c"), checkpoint)
    for back in (read(str(tmp_path / "c")), read(str(tmp_path / "c"), str(tiny_model))):
        assert all(equal(getattr(back, part), getattr(checkpoint, part)) for part in ("weights", "first", "second"))
        assert (back.steps, back.rate, back.told) == (3, checkpoint.rate, checkpoint.told)
    # A file sorts its weights by name, peft's configuration holds a set: the model knows the order.
    assert back.lora == SHAPE and list(back.weights) == list(checkpoint.weights)
    assert read(str(tmp_path / "c"), rate=7.0).rate == 7
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    with pytest.raises(InputError, match="there is something already"):
        write(str(tmp_path / "c"), checkpoint)


def test_peft_loads_our_folder_and_computes_the_same(checkpoint: Checkpoint, tiny_model: Path, tmp_path: Path) -> None:
    write(str(tmp_path / "c"), checkpoint, model=str(tiny_model))
    theirs = peft.PeftModel.from_pretrained(base(tiny_model), str(tmp_path / "c")).eval()
    ours = attach(base(tiny_model), SHAPE, name="tiny").eval()
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        before = ours(input_ids=ids).logits
        put(ours, checkpoint.weights)
        assert torch.equal(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)
        assert float((before - ours(input_ids=ids).logits).abs().max()) > 1e-2
    automatic = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "c"))  # it finds the base by the note
    assert equal(take(automatic), checkpoint.weights)


def test_untrained_needs_no_weights_of_the_model(tiny_model: Path, tmp_path: Path) -> None:
    from curate.models.lora import fresh

    expected = fresh(attach(base(tiny_model), SHAPE, name="tiny"), 5)
    bare = Path(shutil.copytree(tiny_model, tmp_path / "bare"))
    size = (bare / "model.safetensors").stat().st_size
    (bare / "model.safetensors").write_bytes(b"\0" * size)
    found = untrained(str(bare), SHAPE, seed=5)
    assert equal(found.weights, expected) and list(found.weights) == list(expected)
    assert (found.first, found.second, found.steps, found.rate) == (None, None, 0, 1.0)


def test_the_digest_is_of_what_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(str(tmp_path / "a"), checkpoint)
    write(str(tmp_path / "b"), checkpoint)
    write(str(tmp_path / "c"), replace(checkpoint, rate=2.0))
    (tmp_path / "b" / "README.md").write_text("hello")
    a, b, c = (digest(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    with pytest.raises(ModelError, match=r"has no adapter_config\.json \(no such folder\)"):
        digest(str(tmp_path / "d"))


# --- the Trainer's ---------------------------------------------------------------------------------------------------


def test_a_folder_of_the_trainer(trained: tuple[Path, Any], tiny_model: Path) -> None:
    folder, trainer = trained
    found = read(str(folder), str(tiny_model))
    named = parameters(trainer.model)
    assert list(found.weights) == list(named)
    # Alphabetical order is another: k, o, q, v.
    assert [n.split(".")[-3] for n in list(found.weights)[:6:2]] == ["q_proj", "v_proj", "o_proj"]
    assert equal(found.weights, take(trainer.model))
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    for part, key in ((found.first, "exp_avg"), (found.second, "exp_avg_sq")):
        assert equal(part, {name: optimizer.state[p][key].numpy() for name, p in named.items()})
        assert part is not None and all(np.any(v) for v in part.values())
    assert (found.steps, found.told) == (6, {"epoch": 2.0})
    assert found.lora == Lora(r=4, alpha=8, dropout=0.0, layers=("q_proj", "v_proj", "o_proj"))
    # Two epochs of three steps, falling linearly from 1e-2: the second has 3/6, 2/6 and 1/6 of it.
    assert found.rate == pytest.approx(1e-2 * 2 / 6)


def test_its_moments_are_right_for_the_model_that_is_then_built(trained: tuple[Path, Any], tiny_model: Path) -> None:
    found = read(str(trained[0]), str(tiny_model))
    adapted = attach(base(tiny_model), found.lora, name="tiny")
    put(adapted, found.weights)
    assert equal(take(adapted), found.weights)


def test_without_the_model_its_numbers_have_no_names(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"optimizer\.pt numbers the weights in the order of the model; give the model"
    ):
        read(str(folder))


def test_a_rate_that_nobody_logged(folder: Path, tiny_model: Path) -> None:
    edit(folder / "trainer_state.json", lambda s: s["log_history"].__setitem__(slice(3, None), []))  # epoch 1 is there
    with pytest.raises(ModelError, match=r"average learning rate is not known: .*; give the checkpoints' weights"):
        read(str(folder), str(tiny_model))
    assert read(str(folder), str(tiny_model), rate=0.5).rate == 0.5
    (folder / "trainer_state.json").unlink()
    with pytest.raises(ModelError, match="is not known"):
        read(str(folder), str(tiny_model))


def test_an_adapter_alone(folder: Path, tiny_model: Path) -> None:
    (folder / "optimizer.pt").unlink()
    found = read(str(folder))
    assert found.first is None and found.second is None and found.rate == pytest.approx(1e-2 * 2 / 6)
    assert equal(read(str(folder), str(tiny_model)).weights, found.weights)


# --- refused ---------------------------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("it-ran"),))


def test_a_pickle_that_runs_code_does_not(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Harmful(), folder / "optimizer.pt")
    with pytest.raises(ModelError, match=r"optimizer\.pt cannot be read as tensors"):
        read(str(folder), str(tiny_model))
    assert not Path("it-ran").exists()
    torch.load(folder / "optimizer.pt", weights_only=False)  # the pickle does run where it may
    assert Path("it-ran").exists()


def test_another_model(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    other = str(save_tiny_model(tmp_path / "other", config))
    what = r"does not match the model's adapter: of .*layers\.0\.self_attn\.q_proj\.lora_A\.weight, \(4, 48\) was asked"
    with pytest.raises(ModelError, match=what + r" and \(4, 32\) found; it belongs to another model"):
        read(str(folder), other)
    write(str(tmp_path / "ours"), checkpoint)
    with pytest.raises(ModelError, match=what):
        read(str(tmp_path / "ours"), other)


def test_an_optimizer_of_another_training(folder: Path, tiny_model: Path) -> None:
    saved = torch.load(folder / "optimizer.pt", weights_only=True)

    def refuse(change: Callable[[Any], Any], match: str) -> None:
        state = torch.load(folder / "whole.pt", weights_only=True)
        change(state)
        torch.save(state, folder / "optimizer.pt")
        with pytest.raises(ModelError, match=match):
            read(str(folder), str(tiny_model))

    torch.save(saved, folder / "whole.pt")
    refuse(
        lambda s: s["state"][1].update(exp_avg=torch.zeros(32, 8)),
        r"exp_avg of weight 1 is \(32, 8\), but .*layers\.0\.self_attn\.q_proj\.lora_B\.weight is \(32, 4\)",
    )
    refuse(
        lambda s: s["state"].update({0: s["state"][1], 1: s["state"][0]}),
        r"exp_avg of weight 0 is \(32, 4\), but .*q_proj\.lora_A",
    )
    refuse(lambda s: s["param_groups"][0]["params"].pop(), "is of 11 weights, the adapter has 12")
    refuse(lambda s: s["state"].pop(3), r"has no exp_avg of weight 3 \(.*v_proj\.lora_B\.weight\), but nothing; AdamW")
    refuse(
        lambda s: s["state"].update({0: {"state1": torch.zeros(1), "state2": torch.zeros(1)}}),
        r"has no exp_avg of weight 0 .*but state1, state2; AdamW's state is what is read",
    )
    refuse(lambda s: s.pop("state"), r"cannot be read as tensors: KeyError")


def test_our_optimizer_state_of_other_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(str(tmp_path / "c"), checkpoint)
    path = tmp_path / "c" / "optimizer.safetensors"
    moments = load_file(path)
    name = next(iter(checkpoint.weights))
    save_file(moments | {f"second/{name}": torch.zeros(8, 32)}, path)
    with pytest.raises(ModelError, match=rf"of second/{name}, \(4, 32\) was asked and \(8, 32\) found"):
        read(str(tmp_path / "c"))
    save_file({k: v for k, v in moments.items() if k != f"first/{name}"}, path)
    with pytest.raises(ModelError, match=rf"of first/{name}, \(4, 32\) was asked and nothing found"):
        read(str(tmp_path / "c"))
    path.write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"optimizer\.safetensors cannot be read"):
        read(str(tmp_path / "c"))


@pytest.mark.parametrize("key, value", [
    ("use_rslora", True),
    ("use_dora", True),
    ("bias", "all"),
    ("modules_to_save", ["lm_head"]),
    ("rank_pattern", {"q_proj": 8}),
    ("alpha_pattern", {"q_proj": 8}),
    ("fan_in_fan_out", True),
    ("lora_bias", True),
    ("layer_replication", [[0, 2]]),
    ("trainable_token_indices", [3]),
    ("init_lora_weights", "pissa"),
    ("an_option_of_tomorrow", 1),
])  # fmt: skip
def test_options_that_change_what_an_adapter_computes(key: str, value: Any, folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda config: config.update({key: value}))
    with pytest.raises(ModelError, match=f"its adapter has {key}=.*, which changes what it computes; plain LoRA"):
        read(str(folder))


def test_adapters_that_are_none_of_ours(folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda config: config.update(r=8))
    with pytest.raises(ModelError, match=r"lora_A\.weight is \(4, 32\), but adapter_config\.json says r=8"):
        read(str(folder))
    edit(folder / "adapter_config.json", lambda config: config.update(r="four"))
    with pytest.raises(ModelError, match=r"lora: r of at least 1.*were asked|not supported between"):
        read(str(folder))
    edit(folder / "adapter_config.json", lambda config: config.update(r=4))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"holds base_model\.model\.lm_head\.weight, which is no A or B"):
        read(str(folder))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors; adapters that are pickled"):
        read(str(folder))
    edit(folder / "adapter_config.json", lambda config: config.update(peft_type="IA3"))
    with pytest.raises(ModelError, match="is a IA3 adapter; LoRA is what is read"):
        read(str(folder))
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json cannot be read"):
        read(str(folder))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no adapter_config\.json \(README\.md, .*give peft's LoRA folder"):
        read(str(folder))


def test_arrays_of_something_else() -> None:
    with pytest.raises(ModelError, match="a checkpoint's arrays were asked; found mean, scale"):
        from_arrays({"mean": np.zeros(1), "scale": np.zeros(1)})
