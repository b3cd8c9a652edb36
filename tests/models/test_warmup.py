"""Warm-up training against torch's AdamW and peft, run plainly in float64; what stopping, budgets and memory change."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.exceptions import InputError, ModelError
from curate.models.base import Row
from curate.models.checkpoints import from_arrays, to_arrays, untrained
from curate.models.dropout import RowDropout
from curate.models.lora import Checkpoint, Lora, attach, fresh, parameters, put
from curate.models.warmup import WarmUp, train_epoch
from curate.seeding import rng_for
from tests.models.tiny import save_tiny_model

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PLAIN = WarmUp(epochs=2, batch=5, rate=1e-2, warmup=0.2, lora=Lora(r=4, alpha=8, dropout=0.0))
DROPPING = replace(PLAIN, lora=replace(PLAIN.lora, dropout=0.3))
FLOAT64: Any = "float64"  # not offered to recipes


def rows_of(n: int, *, longest: int = 40, seed: int = 0) -> list[Row]:
    rng = rng_for(seed, "rows")
    out = []
    for length in [2, 3, longest, *rng.integers(2, longest, size=n)][:n]:
        ids, mask = rng.integers(0, 512, size=length).astype(np.int32), rng.random(length) < 0.5
        mask[0], mask[-1] = False, True
        out.append((ids, mask))
    return out


def plain_training(folder: str, rows: Sequence[Row], settings: WarmUp) -> tuple[Checkpoint, list[float]]:
    """Train all epochs at once in float64: row by row, torch's AdamW, Transformers' schedule; also each step's loss."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double()
    adapted = attach(model, settings.lora, name=folder)
    put(adapted, fresh(adapted, settings.seed))
    adapted.eval()
    named = parameters(adapted)
    assert {p.dtype for p in named.values()} == {torch.float64}
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(
        named.values(), lr=settings.rate, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay
    )
    losses: list[float] = []
    steps = settings.epochs * math.ceil(len(rows) / settings.batch)
    scheduler = transformers.get_scheduler(settings.schedule, optimizer, math.ceil(steps * settings.warmup), steps)
    for epoch in range(settings.epochs):
        order = rng_for(settings.seed, "warm-up", epoch).permutation(len(rows))
        for at in range(0, len(rows), settings.batch):
            chosen = order[at : at + settings.batch]
            losses.append(0.0)
            for i in chosen:
                ids, mask = (torch.from_numpy(part) for part in rows[i])
                labels = torch.where(mask, ids.long(), -100)[None]
                loss = adapted(input_ids=ids.long()[None], labels=labels).loss / len(chosen)
                loss.backward()
                losses[-1] += float(loss.detach())
            if settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(named.values(), settings.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    state = [optimizer.state[p] for p in named.values()]
    weights = {name: p.detach().numpy() for name, p in named.items()}
    first, second = (
        {n: s[key].numpy() for n, s in zip(named, state, strict=True)} for key in ("exp_avg", "exp_avg_sq")
    )
    return Checkpoint(settings.lora, weights, first, second), losses


def train(folder: Any, rows: Sequence[Row], settings: WarmUp, **options: Any) -> list[Checkpoint]:
    found: list[Checkpoint] = []
    for _ in range(settings.epochs):
        found.append(train_epoch(str(folder), rows, settings, found[-1] if found else None, device="cpu", **options))
    return found


def worst(found: Checkpoint, expected: Checkpoint) -> float:
    """Greatest difference of weights and moments, each relative to the largest number of its kind."""
    return max(
        np.abs(getattr(found, part)[name] - theirs).max()
        / max(np.abs(v).max() for v in getattr(expected, part).values())
        for part in ("weights", "first", "second")
        for name, theirs in getattr(expected, part).items()
    )


def same_bits(a: Checkpoint, b: Checkpoint) -> bool:
    x, y = to_arrays(a), to_arrays(b)
    return x.keys() == y.keys() and all(x[k].tobytes() == y[k].tobytes() for k in x)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_rates_by_hand() -> None:
    settings = WarmUp(rate=8.0, warmup=0.25)
    expected = [0, 4, 8, 8 * 5 / 6, 8 * 4 / 6, 8 * 3 / 6, 8 * 2 / 6, 8 * 1 / 6]
    assert [settings.rate_at(k, 8) for k in range(8)] == pytest.approx(expected)
    cosine = replace(settings, schedule="cosine", warmup=0.0)
    assert [cosine.rate_at(k, 2) for k in range(2)] == pytest.approx([8, 4])


def test_rates_fall_as_those_that_less_published() -> None:
    """Its checkpoints are of steps 105, 211, 317 and 420; a cosine's last average would be half as large."""
    rates = np.array([WarmUp().rate_at(k, 420) for k in range(420)])
    averages = [part.mean() for part in np.split(rates, [105, 211, 317])]
    np.testing.assert_allclose(averages, [1.6877e-5, 1.2859e-5, 7.703e-6, 2.5616e-6], rtol=0.011)


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    PLAIN,
    replace(PLAIN, schedule="cosine", clip=0.05, weight_decay=0.1, warmup=0.0),
    replace(PLAIN, clip=None, seed=3, lora=Lora(r=2, alpha=3, dropout=0.0, layers=("v_proj", "down_proj"))),
])  # fmt: skip
def test_two_epochs_are_torch_s_adamw_on_peft_s_adapter(settings: WarmUp, tiny_model: Path) -> None:
    rows = rows_of(12)
    expected, losses = plain_training(str(tiny_model), rows, settings)
    before = untrained(str(tiny_model), settings.lora, seed=settings.seed).weights
    assert max(np.abs(expected.weights[name] - before[name]).max() for name in before) > 1e-2  # it went somewhere
    told: list[float] = []
    found = train(tiny_model, rows, settings, dtype=FLOAT64, batch_tokens=100, told=lambda *its: told.append(its[2]))
    assert worst(found[-1], expected) < 1e-6
    np.testing.assert_allclose(told, losses, rtol=1e-6)
    assert [c.steps for c in found] == [3, 6]
    assert [c.told["loss"] for c in found] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])])


CONFIGS = {
    "soft cap": lambda common: transformers.Gemma2Config(
        **common, num_key_value_heads=2, head_dim=8, sliding_window=16, final_logit_softcapping=3.0
    ),
    "scaled": lambda common: transformers.GraniteConfig(**common, logits_scaling=4.0),
    "head unknown": lambda common: transformers.ModernBertDecoderConfig(
        **common, cls_token_id=1, sep_token_id=2, local_attention=16
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_architectures(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    common: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 512}
    common |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = str(save_tiny_model(tmp_path / "model", CONFIGS[name](common | {"max_position_embeddings": 64})))
    settings = replace(PLAIN, epochs=1, lora=replace(PLAIN.lora, layers=("q_proj", "v_proj")))
    rows = rows_of(7)
    expected, losses = plain_training(folder, rows, settings)
    (found,) = train(folder, rows, settings, dtype=FLOAT64)
    assert worst(found, expected) < 1e-6
    assert found.told["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert ("are not its head" in caplog.text) == (name == "head unknown")


def test_a_base_in_bfloat16_is_near_and_its_adapter_stays_float32(tiny_model: Path) -> None:
    rows, settings = rows_of(12), replace(PLAIN, epochs=1)
    (exact,), (half,) = (train(tiny_model, rows, settings, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert {v.dtype for v in half.weights.values()} == {np.dtype(np.float32)}
    assert any((v.view(np.uint32) & 0xFFFF).any() for v in half.weights.values())  # more digits than bfloat16 has
    assert abs(half.told["loss"] - exact.told["loss"]) < 0.02
    assert 1e-4 < worst(half, exact) < 0.5


# --- properties ------------------------------------------------------------------------------------------------------


def test_stopped_and_continued_gives_the_same_bits(tiny_model: Path) -> None:
    rows, settings = rows_of(12), replace(DROPPING, epochs=3)
    straight = train(tiny_model, rows, settings)
    file = io.BytesIO()
    np.savez(file, **to_arrays(straight[0]))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        before = from_arrays(arrays)
    torch.manual_seed(99)  # the process has drawn other numbers since
    torch.rand(7)
    again = train_epoch(str(tiny_model), rows, settings, before, device="cpu")
    assert same_bits(again, straight[1]) and not same_bits(again, straight[2])
    assert [c.steps for c in straight] == [3, 6, 9]
    assert [c.rate for c in straight] == pytest.approx([1e-2 * 1.5 / 3, 1e-2 * 15 / 21, 1e-2 * 6 / 21])


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_the_budget_changes_rounding_only_even_with_dropout(batch_tokens: int, tiny_model: Path) -> None:
    rows = rows_of(12)
    settings = replace(DROPPING, epochs=1)
    (expected,) = train(tiny_model, rows, settings, dtype=FLOAT64, batch_tokens=90)
    (found,) = train(tiny_model, rows, settings, dtype=FLOAT64, batch_tokens=batch_tokens)
    assert worst(found, expected) < 1e-6
    (dry,) = train(tiny_model, rows, replace(PLAIN, epochs=1), dtype=FLOAT64)
    assert worst(dry, expected) > 1e-2  # it did drop


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_rounding_only_and_who_is_first_nothing(threads: int, tiny_model: Path) -> None:
    rows, settings = rows_of(12), replace(DROPPING, epochs=1)
    (expected,) = train(tiny_model, rows, settings, dtype=FLOAT64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = [train(tiny_model, rows, settings, dtype=FLOAT64, batch_tokens=40)[0] for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert worst(found[0], expected) < 1e-6
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_seeds_differ(tiny_model: Path) -> None:
    rows = rows_of(12)
    found = [train(tiny_model, rows, replace(DROPPING, epochs=1, seed=seed))[0] for seed in (0, 1)]
    assert worst(*found) > 1e-2


def test_every_row_of_every_step_drops_by_a_seed_of_its_own(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    true = RowDropout.drawing
    monkeypatch.setattr(RowDropout, "drawing", lambda self, s, lengths: seeds.extend(s) or true(self, s, lengths))
    train(tiny_model, rows_of(6), DROPPING)
    assert len(set(seeds)) == len(seeds) == 2 * 6


def test_an_untrained_checkpoint_begins_as_none_does(tiny_model: Path) -> None:
    rows, settings = rows_of(6), replace(PLAIN, epochs=1, seed=2)
    start = untrained(str(tiny_model), settings.lora, seed=2)
    assert start.first is None and start.steps == 0
    assert {name: not v.any() for name, v in start.weights.items()} == {n: ".lora_B." in n for n in start.weights}
    assert same_bits(*(train_epoch(str(tiny_model), rows, settings, b, device="cpu") for b in (None, start)))


def test_the_loss_of_the_example_model_falls_on_rows_of_the_example_pool(
    example_model: str, example_pool: Path
) -> None:
    import pyarrow.parquet as pq

    from curate.models import encoder

    table = pq.read_table(next(iter(sorted(example_pool.glob("*.parquet")))), columns=["messages"]).slice(0, 60)
    encoded = encoder(example_model).encode(table["messages"].to_pylist())
    rows = [(row.ids, row.mask) for row in encoded if row.reason is None and row.mask.any() and len(row.ids) < 120][:4]
    assert len(rows) == 4
    told: list[tuple[int, int, float]] = []
    settings = WarmUp(epochs=3, batch=2, rate=2e-3, warmup=0.1, lora=Lora(r=8, alpha=16))
    found = train(example_model, rows, settings, told=lambda *its: told.append(its))
    assert [(step, steps) for step, steps, _ in told] == [(i, 6) for i in range(1, 7)]
    assert np.mean([loss for *_, loss in told[:2]]) == pytest.approx(found[0].told["loss"])
    assert found[2].told["loss"] < found[0].told["loss"] - 0.1


# --- bad input, bad luck ---------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_for_good(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, settings = rows_of(10), replace(DROPPING, epochs=1)
    (expected,) = train(tiny_model, rows, settings, dtype=FLOAT64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    true, sizes = transformers.LlamaModel.forward, []

    def forward(self: Any, input_ids: Any, **rest: Any) -> Any:
        if input_ids.shape[1] != 8:  # not the test of the head
            sizes.append(input_ids.numel())
        if input_ids.numel() > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    (found,) = train(tiny_model, rows, settings, dtype=FLOAT64)
    assert worst(found, expected) < 1e-6
    refused = [i for i, size in enumerate(sizes) if size > 80]
    assert refused and refused == list(range(len(refused)))  # it did not try again
    assert sizes[1] == sizes[0] * 2 // 5
    assert "batches of" in caplog.text
    monkeypatch.setattr(transformers.LlamaModel, "forward", lambda self, **_: (_ for _ in ()).throw(MemoryError()))
    monkeypatch.setattr("curate.models.warmup.head_is_known", lambda *_: True)
    with pytest.raises(ModelError, match=r"step 1: row 2 of 39 tokens does not fit into memory alone; ask for shorter"):
        train(tiny_model, rows[:4], settings)


def test_a_row_that_fits_alone_is_taken_alone(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, settings = rows_of(8), replace(DROPPING, epochs=1)
    (expected,) = train(tiny_model, rows, settings, dtype=FLOAT64, batch_tokens=1)
    true, busy = transformers.LlamaModel.forward, threading.Semaphore(1)

    def forward(self: Any, input_ids: Any, **rest: Any) -> Any:
        if not busy.acquire(timeout=0.01):
            raise torch.OutOfMemoryError("CUDA out of memory")
        try:
            time.sleep(0.05)
            return true(self, input_ids=input_ids, **rest)
        finally:
            busy.release()

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (found,) = train(tiny_model, rows, settings, dtype=FLOAT64, batch_tokens=1)
    finally:
        torch.set_num_threads(before)
    assert worst(found, expected) < 1e-6
    assert caplog.text.count("one batch at a time from here on") == 1


def test_another_error_of_the_model_is_its_own(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.models.warmup._Training._gradient", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        train(tiny_model, rows_of(3), PLAIN)


def test_a_loss_that_is_no_number_stops_with_step_and_rows(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"step 3: the loss is not a finite number on rows [\d, ]+; lower the rate"):
        train(tiny_model, rows_of(12), replace(PLAIN, rate=1e38, warmup=0.2))


def test_only_the_rows_that_are_no_number_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [(np.where(ids == 7, 8, ids), mask) for ids, mask in rows_of(4)]
    rows[2][0][0] = 7
    with pytest.raises(ModelError, match="step 1: the loss is not a finite number on rows 2; lower"):
        train(folder, rows, replace(PLAIN, epochs=1))


def test_rows_that_cannot_be_trained_on(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="rows to train on were asked; found none"):
        train(tiny_model, [], PLAIN)
    blank = (np.arange(5), np.zeros(5, dtype=bool))
    with pytest.raises(InputError, match="row 1: no token is in the loss"):
        train(tiny_model, [rows_of(1)[0], blank], PLAIN)
    with pytest.raises(InputError, match="row 0: 300 tokens; the model's context is 256"):
        train(tiny_model, [(np.arange(300), np.arange(300) > 0)], PLAIN)


def test_checkpoints_that_do_not_go_on(tiny_model: Path) -> None:
    rows, model = rows_of(10), str(tiny_model)
    (done,) = train(tiny_model, rows, replace(PLAIN, epochs=1))

    def on(before: Checkpoint, settings: WarmUp = PLAIN, n: int = 10) -> None:
        train_epoch(model, rows[:n], settings, before, device="cpu")

    with pytest.raises(InputError, match="epoch 2 was asked, after the checkpoint; there are 1"):
        on(done, replace(PLAIN, epochs=1))
    with pytest.raises(
        ModelError, match=r"of 2 steps, but these rows make 3 an epoch|of 2 steps, but these rows make 10"
    ):
        on(done, replace(PLAIN, batch=1))
    with pytest.raises(ModelError, match=r"an adapter of Lora\(r=8.*the checkpoint before is of Lora\(r=4"):
        on(done, replace(PLAIN, lora=Lora(r=8)))
    with pytest.raises(ModelError, match="of 2 steps, has no optimizer state"):
        on(replace(done, first=None))
    name = next(iter(done.weights))
    lacking = {k: v for k, v in done.weights.items() if k != name}
    with pytest.raises(ModelError, match=r"the checkpoint before does not match the model's adapter: of .*layers\.0"):
        on(replace(done, weights=lacking))
    assert done.second is not None
    with pytest.raises(ModelError, match=r"the optimizer state .* \(4, 32\) was asked and \(3, 32\) found"):
        on(replace(done, second=dict(done.second) | {name: np.zeros((3, 32), np.float32)}))


def test_float16_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="float16, in which gradients underflow; ask for dtype bfloat16"):
        train(tiny_model, rows_of(3), PLAIN, dtype="float16")


def test_an_adapter_on_the_head_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="an adapter on the output head was asked; leave that layer out"):
        train(tiny_model, rows_of(3), replace(PLAIN, lora=Lora(r=4, layers=("q_proj", "lm_head"))))


@pytest.mark.parametrize("wrong, text", [
    ({"epochs": 0}, "epochs=0; it must be above 0"),
    ({"batch": 0}, "batch=0"),
    ({"rate": float("nan")}, "rate=nan"),
    ({"warmup": 1.0}, r"warmup=1.0; it must be in \[0, 1\)"),
    ({"beta2": 1.0}, "beta2=1.0"),
    ({"schedule": "constant"}, "schedule='constant'; linear or cosine"),
    ({"clip": 0.0}, "clip=0.0; it must be above 0, or None"),
    ({"weight_decay": -1.0}, "weight_decay=-1.0"),
])  # fmt: skip
def test_settings(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        WarmUp(**wrong)
