"""Token log-probabilities: against the float64 reference, and under every batch."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from curate import models
from curate.exceptions import InputError, ModelError
from curate.models import head, loading, weights
from curate.models.reference import load_reference, reference_logprobs
from curate.models.transformers_lm import TransformersLM
from curate.seeding import rng_for
from tests.models.tiny import save_tiny_model

Row = tuple[np.ndarray, np.ndarray]
COMMON: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 512}
SMALL: dict[str, Any] = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def rows_of(n: int, *, longest: int = 120, seed: int = 0) -> list[Row]:
    """Rows of random ids and masks, among them short ones, one with nothing scored and two of equal length."""
    rng = rng_for(seed, "rows")
    lengths = [2, 3, 7, 7, longest, *rng.integers(2, longest, size=n)][:n]
    rows = [(rng.integers(0, 512, size=t).astype(np.int32), rng.random(t) < 0.5) for t in lengths]
    for _, mask in rows:
        mask[0] = False
        mask[-1] = True
    rows[-1][1][:] = False
    return rows


def worst(found: list[Any], expected: list[Any]) -> float:
    assert [f.shape for f in found] == [e.shape for e in expected]
    return max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True) if e.size)


@pytest.fixture(scope="module")
def lm(tiny_model: Path) -> TransformersLM:
    return TransformersLM(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Callable[[list[Row]], list[np.ndarray]]:
    loaded = load_reference(str(tiny_model))
    return lambda rows: reference_logprobs(loaded, rows)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_model_that_finds_all_tokens_alike_gives_log_of_one_over_the_vocabulary(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "flat")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ids, mask = np.arange(1, 6, dtype=np.int32), np.array([False, True, True, False, True])
    (found,) = TransformersLM(str(folder), device="cpu").token_logprobs([(ids, mask)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [-math.log(512)] * 3, rtol=1e-6)


# --- parity ----------------------------------------------------------------------------------------------------------


def test_float32_is_within_1e_4_nats_of_the_reference(lm: TransformersLM, reference: Any) -> None:
    rows = rows_of(24)
    expected = reference(rows)
    assert np.std(np.concatenate(expected)) > 0.3  # the model tells tokens apart, so a wrong position would show
    assert worst(lm.token_logprobs(rows), expected) < 1e-4


def test_long_rows_and_small_chunks_of_the_head(
    lm: TransformersLM, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm._head, "block", 1)
    rows = rows_of(12, longest=256)
    assert sum(m.sum() for _, m in rows) > 2 * 256  # several chunks
    assert worst(lm.token_logprobs(rows), reference(rows)) < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_are_near(dtype: Any, tiny_model: Path, reference: Any) -> None:
    lm = TransformersLM(str(tiny_model), dtype=dtype, device="cpu")
    assert lm.dtype == dtype and lm.by_hidden_states
    rows = rows_of(12)
    found, expected = lm.token_logprobs(rows), reference(rows)
    error = worst(found, expected)
    assert 1e-4 < error < 0.2  # it did compute in that type, and got it right
    bias = np.mean(np.concatenate(found) - np.concatenate(expected))
    assert abs(bias) < 5e-3


CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "opt": lambda: transformers.OPTConfig(
        **(SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": True})
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "mistral, sliding window": lambda: transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8),
    "gemma2, soft cap": lambda: transformers.Gemma2Config(
        **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=16, final_logit_softcapping=3.0
    ),
    "cohere, scale": lambda: transformers.CohereConfig(**SMALL, logit_scale=0.5),
    "granite, scale": lambda: transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
    "mamba": lambda: transformers.MambaConfig(**COMMON, hidden_size=32, state_size=4, num_hidden_layers=2),
    "modernbert decoder": lambda: transformers.ModernBertDecoderConfig(
        **SMALL, cls_token_id=1, sep_token_id=2, local_attention=16
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_architectures(name: str, tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "model", CONFIGS[name]()))
    rows = rows_of(10)
    expected = reference_logprobs(load_reference(folder), rows)
    lm = TransformersLM(folder, device="cpu", batch_tokens=400)
    # The head of ModernBERT's decoder does not read its last hidden states: the load-time test has to notice.
    assert lm.by_hidden_states == (name != "modernbert decoder")
    assert worst(lm.token_logprobs(rows), expected) < 1e-4


@pytest.mark.parametrize("name", ["gemma2, soft cap", "cohere, scale", "granite, scale"])
def test_an_architecture_that_does_something_unknown_to_its_logits_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(save_tiny_model(tmp_path / "model", CONFIGS[name]()))
    rows = rows_of(8)
    expected = reference_logprobs(load_reference(folder), rows)
    monkeypatch.setattr(head, "logit_map", lambda config: (lambda z: z, 1.0))
    lm = TransformersLM(folder, device="cpu")
    assert not lm.by_hidden_states and "scoring by full forward passes" in caplog.text
    assert worst(lm.token_logprobs(rows), expected) < 1e-4


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_the_batch_budget_changes_nothing(batch_tokens: int, lm: TransformersLM, tiny_model: Path) -> None:
    rows = rows_of(24)
    other = TransformersLM(str(tiny_model), device="cpu", batch_tokens=batch_tokens)
    assert worst(other.token_logprobs(rows), lm.token_logprobs(rows)) < 1e-5


def test_order_and_company_change_nothing(lm: TransformersLM) -> None:
    rows = rows_of(24)
    together = lm.token_logprobs(rows)
    shuffled = rng_for(1, "order").permutation(len(rows))
    back = [None] * len(rows)
    for i, found in zip(shuffled, lm.token_logprobs([rows[i] for i in shuffled]), strict=True):
        back[i] = found
    assert worst(back, together) < 1e-5
    assert worst([lm.token_logprobs([row])[0] for row in rows], together) < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(
    threads: int, lm: TransformersLM, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(40)
    expected = lm.token_logprobs(rows)
    other = TransformersLM(str(tiny_model), device="cpu", batch_tokens=200)
    seen: set[tuple[int, int]] = set()
    other._model.base_model.register_forward_pre_hook(
        lambda *_: seen.add((threading.get_ident(), torch.get_num_threads()))
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert worst(other.token_logprobs(rows), expected) < 1e-5
        assert torch.get_num_threads() == threads  # as it was found
    finally:
        torch.set_num_threads(before)
    assert {n for _, n in seen} == {1}  # no thread shares its products
    assert (threading.get_ident() in {t for t, _ in seen}) == (threads == 1)


def test_a_model_that_changes_when_it_is_run_is_run_by_one_thread(tmp_path: Path) -> None:
    """Rotary frequencies that follow the length: two threads would compute with each other's."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**(SMALL | {"max_position_embeddings": 64}), rope_parameters=rope)
    folder = str(save_tiny_model(tmp_path / "dynamic", config))
    assert not TransformersLM(folder, device="cpu")._one_batch_per_thread
    assert TransformersLM(str(save_tiny_model(tmp_path / "plain")), device="cpu")._one_batch_per_thread


def test_what_follows_the_last_scored_token_does_not_matter(lm: TransformersLM) -> None:
    (ids, mask), *_ = rows_of(6)[4:]
    mask[60:] = False
    (whole,) = lm.token_logprobs([(ids, mask)])
    (cut,) = lm.token_logprobs([(ids[:60], mask[:60])])
    np.testing.assert_allclose(whole, cut, atol=1e-5)


def test_nothing_to_score(lm: TransformersLM) -> None:
    assert lm.token_logprobs([]) == []
    for ids in (np.empty(0, np.int32), np.arange(4, dtype=np.int32)):
        (found,) = lm.token_logprobs([(ids, np.zeros(ids.size, dtype=bool))])
        assert found.shape == (0,) and found.dtype == np.float32


def test_a_batch_holds_its_budget_padding_counted(lm: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    hook = lm._model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    monkeypatch.setattr(lm, "batch_tokens", 300)
    rows = rows_of(40)
    lm.token_logprobs(rows)
    hook.remove()
    real = sum(int(np.flatnonzero(mask)[-1]) for _, mask in rows if mask.any())
    assert max(sizes) <= 300
    assert sum(sizes) < 1.2 * real  # sorting leaves little padding


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_the_batch_is_halved_until_it_fits(
    error: Exception, tiny_model: Path, lm: TransformersLM, caplog: pytest.LogCaptureFixture
) -> None:
    small = TransformersLM(str(tiny_model), device="cpu", batch_tokens=1000)

    def limit(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > 100:
            raise error

    small._model.base_model.register_forward_pre_hook(limit, with_kwargs=True)
    rows = rows_of(24)
    found, expected = small.token_logprobs(rows), lm.token_logprobs(rows)
    too_long = {i for i, (_, mask) in enumerate(rows) if mask.any() and np.flatnonzero(mask)[-1] > 100}
    assert too_long and {i for i, f in enumerate(found) if f is None} == too_long
    fits = [i for i in range(len(rows)) if i not in too_long]
    assert worst([found[i] for i in fits], [expected[i] for i in fits]) < 1e-5
    assert small.batch_tokens <= 100
    assert "out of memory at" in caplog.text
    caplog.clear()
    small.token_logprobs([rows[i] for i in fits])
    assert "out of memory" not in caplog.text  # the smaller batch stays


def test_torchs_own_allocator_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert weights.is_out_of_memory(torch, caught.value)
    assert not weights.is_out_of_memory(torch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_other_errors_are_not_taken_for_lack_of_memory(tiny_model: Path) -> None:
    broken = TransformersLM(str(tiny_model), device="cpu")

    def fail(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    broken._model.base_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        broken.token_logprobs(rows_of(6))


# --- wrong input and wrong models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "mask", "text"),
    [
        ([1, 2], [True, False], "row 1: the first token is to be scored, but nothing predicts it"),
        ([1, 2], [False], "row 1: ids of shape"),
        ([1, 512], [False, True], "row 1: ids from 1 to 512; the model's vocabulary has 512"),
        ([1] * 257, [False] * 256 + [True], "row 1: 257 tokens; the model's context is 256"),
    ],
)
def test_rows_that_make_no_sense(ids: list[int], mask: list[bool], text: str, lm: TransformersLM) -> None:
    with pytest.raises(InputError, match=text):
        lm.token_logprobs([rows_of(6)[0], (np.array(ids, dtype=np.int32), np.array(mask))])


def test_weights_that_are_missing_are_not_made_up(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "incomplete")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 weights that LlamaForCausalLM needs .* model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        TransformersLM(str(folder), device="cpu")


def test_a_broken_file_and_a_missing_device(tiny_model: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded: "):
        TransformersLM(str(folder), device="cpu")
    missing = "cuda:9" if not torch.cuda.is_available() else "tpu"
    with pytest.raises(ModelError, match=f"device '{missing}' was asked; this process sees cpu"):
        TransformersLM(str(tiny_model), device=missing)


def test_auto_is_float32_for_small_models_and_as_stored_for_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_tiny_model(tmp_path / "half", dtype=torch.bfloat16))
    assert TransformersLM(folder, device="cpu").dtype == "float32"
    monkeypatch.setattr(weights, "SMALL", 1000)
    assert TransformersLM(folder, device="cpu").dtype == "bfloat16"


# --- one copy per process --------------------------------------------------------------------------------------------


def test_load_shares_one_copy_and_frees_it_for_another(tiny_model: Path, tmp_path: Path) -> None:
    models.unload()
    first = models.load(str(tiny_model), device="cpu")
    assert models.load(str(tiny_model), device="cpu") is first
    assert models.load(str(tiny_model), device="cpu", dtype="bfloat16") is not first
    models.release(first)
    other = save_tiny_model(tmp_path / "other", transformers.GPT2Config(**COMMON, n_embd=32, n_layer=1, n_head=4))
    models.load(str(other), device="cpu")
    assert models.load(str(tiny_model), device="cpu") is first  # one holder was left
    models.release(first)
    models.release(first)
    assert models.load(str(tiny_model), device="cpu") is first  # nobody held it, but nobody needed the place
    models.release(first)
    models.load(str(other), device="cpu", dtype="float16")
    assert first._model is None  # type: ignore[attr-defined]
    models.unload()
    assert not loading._loaded


def test_threads_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv(loading.THREADS, raising=False)
        models.set_threads()
        assert torch.get_num_threads() == before
        monkeypatch.setenv(loading.THREADS, str(before + 1))
        models.set_threads()
        assert torch.get_num_threads() == before + 1
        models.set_threads(before)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_loading_leaves_no_progress_bar_and_no_setting_behind(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    TransformersLM(str(tiny_model), device="cpu")
    assert "Loading weights" not in capfd.readouterr().err
    assert transformers.utils.logging.is_progress_bar_enabled() == enabled
