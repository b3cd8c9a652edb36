"""A proxy's training against a plain loop in float64; what packing, budgets, stopping and bad input change."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.exceptions import InputError, MissingDependencyError, ModelError
from curate.models.base import Row, Sampling
from curate.models.lora import Lora, attach, fresh, parameters, put
from curate.models.packing import packed, refusal
from curate.models.proxy import Trained, Training, _diverged, _untrained, plan, tokens_of, train
from curate.seeding import rng_for
from tests.models.tiny import save_tiny_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

PLAIN = Training(method="full", rate=1e-2, tokens_per_step=60, epochs=2, warmup=0.3, packing=False)
PACKED = replace(PLAIN, packing=True, batch_tokens=64)
ADAPTER = replace(PACKED, method="lora", lora=Lora(r=4, alpha=8, dropout=0.0, layers=("q_proj", "down_proj")))


def rows_of(n: int, *, longest: int = 40, seed: int = 0) -> list[Row]:
    rng = rng_for(seed, "rows")
    out = []
    for length in [2, 3, longest, *rng.integers(2, longest, size=n)][:n]:
        ids, mask = rng.integers(0, 512, size=length).astype(np.int32), rng.random(length) < 0.5
        mask[0], mask[-1] = False, True
        out.append((ids, mask))
    return out


ROWS = rows_of(12)
SIZES = dict(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
GPT2 = dict(
    vocab_size=512, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def go(folder: Any, rows: Sequence[Row], asked: Training, **options: Any) -> Trained:
    return train(str(folder), rows, asked, device="cpu", **options)


@pytest.fixture(scope="module", autouse=True)
def _no_time_for_garbage() -> Iterator[None]:
    """The trainer collects garbage each time it begins: half a second over all that the libraries have in memory."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def packed_once(tiny_model: Path) -> Trained:
    return go(tiny_model, ROWS, PACKED)


def weights_of(proxy: Trained) -> dict[str, Any]:
    return dict(proxy.lm._model.named_parameters())


def same_bits(a: Trained, b: Trained) -> bool:
    x, y = weights_of(a), weights_of(b)
    return (
        x.keys() == y.keys()
        and all(torch.equal(x[k], y[k]) for k in x)
        and a.losses.tobytes() == b.losses.tobytes()
        and (a.steps, a.tokens) == (b.steps, b.tokens)
    )


def plain_training(folder: Any, rows: Sequence[Row], asked: Training) -> tuple[dict[str, Any], list[float]]:
    """All steps in float64, a row at a time, all logits, Transformers' own loss; also each step's loss."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().train()
    trained = dict(model.named_parameters())
    if asked.method == "lora":
        adapted = attach(model, asked.lora, name=str(folder))
        put(adapted, fresh(adapted, asked.seed))
        trained = {name: p for name, p in parameters(adapted).items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.0, weight_decay=asked.weight_decay)
    steps = plan(tokens_of(rows), asked)
    losses = []
    for k, chosen in enumerate(steps):
        scored = sum(int(rows[i][1].sum()) for i in chosen)
        losses.append(0.0)
        for i in chosen:
            ids, mask = (torch.from_numpy(part) for part in rows[i])
            labels = torch.where(mask, ids.long(), -100)[None]
            loss = model(input_ids=ids.long()[None], labels=labels, num_items_in_batch=scored).loss
            loss.backward()
            losses[-1] += float(loss.detach())
        if asked.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained.values(), asked.clip)
        optimizer.param_groups[0]["lr"] = asked.rate * asked.share_at(k, len(steps))
        optimizer.step()
        optimizer.zero_grad()
    if asked.method == "lora":
        model = adapted.merge_and_unload()
    return dict(model.named_parameters()), losses


# --- steps -----------------------------------------------------------------------------------------------------------


def test_tokens_by_hand() -> None:
    mask = np.array([0, 1, 0, 1, 0], bool)
    rows = [(np.zeros(5, int), mask), (np.zeros(5, int), np.zeros(5, bool))]
    assert tokens_of(rows).tolist() == [3, 0]
    assert tokens_of(rows, 3).tolist() == [1, 0]
    assert tokens_of(rows, 1).tolist() == [0, 0]


def test_shares_of_the_rate_by_hand() -> None:
    asked = Training(warmup=0.25)
    assert [asked.share_at(k, 6) for k in range(6)] == pytest.approx([1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4])
    assert [replace(asked, schedule="cosine", warmup=0).share_at(k, 2) for k in range(2)] == pytest.approx([1, 0.5])
    assert {replace(asked, schedule="constant", warmup=0).share_at(k, 9) for k in range(9)} == {1.0}


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    size=st.integers(1, 500),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
)
@settings(max_examples=150)
def test_every_epoch_has_each_row_once_in_steps_of_alike_tokens(
    lengths: list[int], size: int, epochs: int, seed: int
) -> None:
    its = np.array(lengths)
    steps = plan(its, Training(tokens_per_step=size, epochs=epochs, seed=seed))
    an_epoch = min(len(its), -(-int(its.sum()) // size))
    assert len(steps) == epochs * an_epoch
    assert all(len(step) for step in steps)
    mean, longest = its.sum() / an_epoch, its.max()
    for epoch in range(epochs):
        its_own = steps[epoch * an_epoch : (epoch + 1) * an_epoch]
        assert sorted(np.concatenate(its_own).tolist()) == list(range(len(its)))
        if longest <= mean:  # else a row is longer than a step, and its neighbours' rows are spread
            assert all(abs(int(its[step].sum()) - mean) <= longest for step in its_own)


def test_steps_depend_on_tokens_alone_and_their_number_can_be_asked() -> None:
    few, many = np.full(10, 100), np.full(100, 10)
    asked = Training(tokens_per_step=100)
    assert len(plan(few, asked)) == len(plan(many, asked)) == 10
    assert len(plan(few, asked, steps=4)) == 4
    longer = plan(few, asked, steps=25)
    assert len(longer) == 25
    assert [step.tolist() for step in longer[:10]] == [step.tolist() for step in plan(few, asked)]
    orders = {tuple(np.concatenate(plan(few, replace(asked, seed=seed))).tolist()) for seed in range(5)}
    assert len(orders) == 5
    assert plan(np.empty(0, int), asked) == []


# --- against the plain loop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [PLAIN, PACKED, replace(ADAPTER, clip=None)])
def test_equals_the_plain_loop_in_float64(tiny_model: Path, asked: Training) -> None:
    found = go(tiny_model, ROWS, asked)
    weights, losses = plain_training(tiny_model, ROWS, asked)
    np.testing.assert_allclose(found.losses, losses, rtol=2e-5)
    start = dict(transformers.AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    moved = 0.0
    for name, p in weights_of(found).items():
        theirs, before = weights[name].detach(), start[name].detach().double()
        moved = max(moved, float((theirs - before).abs().max()))
        # Adam divides by a gradient's own size: where that is nearly 0, rounding decides the sign of a move.
        assert float((p.double() - theirs).norm() / (theirs - before).norm().clamp(min=1e-6)) < 2e-3, name
    assert moved > 1e-2
    assert (found.unpacked is None) == asked.packing
    assert found.diverged is None


@pytest.mark.parametrize("kind", ["neox", "gpt2"])
def test_packed_and_padded_give_the_same_losses_of_other_architectures(tmp_path: Path, kind: str) -> None:
    config = {
        "neox": transformers.GPTNeoXConfig(**SIZES, intermediate_size=64, max_position_embeddings=256),
        "gpt2": transformers.GPT2Config(**GPT2),
    }[kind]
    folder = save_tiny_model(tmp_path / kind, config)
    packed, padded = (go(folder, ROWS, asked, steps=2) for asked in (PACKED, PLAIN))
    assert packed.unpacked is None
    assert padded.unpacked == "packing was not asked"
    np.testing.assert_allclose(packed.losses, padded.losses, rtol=1e-5)


def test_the_budget_of_a_batch_changes_losses_by_rounding_only(tiny_model: Path, packed_once: Trained) -> None:
    for size in (1, 10_000):
        other = go(tiny_model, ROWS, replace(PACKED, batch_tokens=size))
        np.testing.assert_allclose(other.losses, packed_once.losses, rtol=1e-5)


def test_each_packed_row_has_the_states_that_it_has_alone(tiny_model: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = [torch.from_numpy(ids.astype(np.int64)) for ids, _ in ROWS]
    with torch.inference_mode():
        with packed(model, [len(row) for row in rows]) as positions:
            together = model(input_ids=torch.cat(rows)[None], position_ids=positions, use_cache=False).logits[0]
        for row, found in zip(rows, together.split([len(row) for row in rows]), strict=True):
            alone = model(input_ids=row[None], use_cache=False).logits[0]
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"


def test_packing_is_refused_where_rows_would_see_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A layer that hands a state on: its convolution reads the tokens before, whosever they are."""
    config = transformers.Lfm2Config(
        **SIZES, intermediate_size=64, num_key_value_heads=4, layer_types=["conv", "full_attention"]
    )
    folder = save_tiny_model(tmp_path / "model", config)
    found, padded = (go(folder, ROWS, asked, steps=2) for asked in (PACKED, PLAIN))
    assert found.unpacked is not None and "a packed row sees the row before it" in found.unpacked
    assert "rows are padded, not packed" in caplog.text
    np.testing.assert_allclose(found.losses, padded.losses, rtol=1e-5)


def test_other_reasons_against_packing() -> None:
    def why(config: Any, longest: int = 39) -> str | None:
        return refusal(transformers.AutoModelForCausalLM.from_config(config), longest)

    windowed = transformers.MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=8)
    assert why(windowed) == "its layers see 8 tokens, and the longest row has 39"
    assert why(windowed, 8) is None
    assert (why(transformers.FalconConfig(**SIZES)) or "").startswith("packed rows cannot go through it: TypeError")
    assert why(transformers.BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4)) == (
        "its attention is 'eager', not 'sdpa'"
    )


def test_half_precision_stays_near(tiny_model: Path, packed_once: Trained) -> None:
    half = go(tiny_model, ROWS, replace(PACKED, dtype="bfloat16"))
    np.testing.assert_allclose(half.losses, packed_once.losses, rtol=0.05)
    assert half.losses.tolist() != packed_once.losses.tolist()
    assert half.lm.dtype == "bfloat16"


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [PACKED, replace(ADAPTER, rate=5e-2)])
def test_the_model_that_comes_back_is_the_trained_one(tiny_model: Path, asked: Training) -> None:
    row = ROWS[2]
    found = go(tiny_model, [row], replace(asked, tokens_per_step=1000, schedule="constant"), steps=10)
    (after,) = found.lm.token_logprobs([row])
    assert -after.mean() < found.losses[-1] < found.losses[0] - 1
    (texts,) = found.lm.generate([row[0][:5]], Sampling(max_tokens=3))
    assert texts is not None and len(texts) == 1


def test_counts_by_hand(tiny_model: Path) -> None:
    ids = np.arange(1, 11)
    rows = [
        (ids, np.array([0] * 5 + [1] * 3 + [0] * 2, bool)),  # 7 tokens before the last scored one
        (ids, np.zeros(10, bool)),  # nothing to learn
        (ids, np.array([0] * 9 + [1], bool)),  # nothing before the cut
        (ids, np.array([0] + [1] * 9, bool)),  # cut to 8, of which 7 are scored
    ]
    asked = replace(PACKED, max_tokens=8, epochs=3)
    found = go(tiny_model, rows, asked)
    assert (found.tokens, found.scored, found.epochs, found.steps) == (3 * 14, 3 * 10, 3.0, 3)
    assert (found.cut, found.left_out, found.resumed) == (2, 2, 0)
    n = sum(p.numel() for p in weights_of(found).values()) - 512 * 32  # the table that is not the head
    assert found.flops == 6.0 * n * 42
    adapter = go(tiny_model, rows, replace(asked, method="lora", lora=Lora(r=2, alpha=2, dropout=0.0)))
    assert adapter.flops == (4.0 * n + 6 * 2 * 2 * (4 * 32 + 2 * 48)) * 42
    assert found.seconds > 0


def test_two_seeds_differ_and_one_repeats_itself(tiny_model: Path, packed_once: Trained) -> None:
    python, arrays, theirs = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    told: list[tuple[int, int, float]] = []
    again = go(tiny_model, ROWS, PACKED, told=lambda *its: told.append(its))
    assert same_bits(packed_once, again)
    assert not same_bits(packed_once, go(tiny_model, ROWS, replace(PACKED, seed=1)))
    assert told == [(k + 1, again.steps, loss) for k, loss in enumerate(again.losses)]
    assert random.getstate() == python
    assert (np.random.get_state()[1] == arrays).all()
    assert torch.equal(torch.random.get_rng_state(), theirs)


# --- stopped and continued -------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def until(last: int) -> Any:
    def told(step: int, *_: Any) -> None:
        if step == last:
            raise Killed  # before the checkpoint of this step

    return told


def test_stopped_and_continued_gives_the_same_bits(tiny_model: Path, tmp_path: Path, packed_once: Trained) -> None:
    def go_on(**options: Any) -> Trained:
        return go(tiny_model, ROWS, PACKED, directory=tmp_path, every=0, **options)

    for last in (3, 5):
        with pytest.raises(Killed):
            go_on(told=until(last))
    # The last one was being written when the power went.
    (tmp_path / "checkpoint-4" / "curate.json").unlink()
    (tmp_path / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    resumed = go_on()
    assert resumed.resumed == 3
    assert same_bits(packed_once, resumed)
    again = go_on()
    assert again.resumed == packed_once.steps
    assert same_bits(packed_once, again)


def test_what_an_adapter_drops_is_the_same_after_a_stop(tiny_model: Path, tmp_path: Path) -> None:
    asked = replace(ADAPTER, lora=replace(ADAPTER.lora, dropout=0.3))
    with pytest.raises(Killed):
        go(tiny_model, ROWS, asked, directory=tmp_path, every=0, told=until(4))
    resumed = go(tiny_model, ROWS, asked, directory=tmp_path)
    assert resumed.resumed == 3
    assert same_bits(go(tiny_model, ROWS, asked), resumed)


def test_checkpoints_of_another_training_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    go(tiny_model, ROWS, PACKED, directory=tmp_path, steps=1)
    for rows, asked in ((ROWS[::-1], PACKED), (ROWS, replace(PACKED, rate=1e-3))):
        with pytest.raises(
            ModelError, match=r"checkpoint-1 is a checkpoint of other rows, settings or weights; remove"
        ):
            go(tiny_model, rows, asked, directory=tmp_path, steps=1)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_diverging_training_is_told_and_not_raised(tiny_model: Path, tmp_path: Path) -> None:
    found = go(tiny_model, ROWS, replace(PACKED, rate=1e30, clip=None), directory=tmp_path, every=0)
    assert found.diverged is not None and "lower the rate" in found.diverged
    assert found.steps == len(found.losses) <= 10
    again = go(tiny_model, ROWS, replace(PACKED, rate=1e30, clip=None), directory=tmp_path, every=0)
    assert again.diverged == found.diverged


def test_divergence_by_hand() -> None:
    asked: list[int] = []

    def why(losses: list[float], untrained: float = 3.0, *, finite: bool = True) -> str | None:
        return _diverged(
            np.array(losses), finite=finite, planned=8, untrained=lambda last: asked.append(last) or untrained
        )

    assert why([3, 2, 2, 2, 2, 2, 2, 2]) is None
    assert why([3, 9, 9, 9, 9, 9, 3, 3]) is None  # it came back
    assert why([0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.6, 0.6]) is None  # by little
    assert why([3, np.nan]) == "the loss was no number at step 2 of 8; lower the rate"
    assert why([3, 3], finite=False) == "the weights are no numbers after step 2 of 8; lower the rate"
    assert not asked
    assert why([1, 3, 3, 3, 3, 3, 3, 3]) is None  # the first rows were easy
    assert why([3, 3, 4, 5, 6, 7, 7, 8]) == (
        "the loss of the last 2 of 8 steps was 7.50 nats a token, 3.00 without any training; lower the rate"
    )
    assert asked == [2, 2]


def test_easy_rows_first_are_no_divergence(tiny_model: Path) -> None:
    """The loss of what comes last is compared with the untrained model's on the same rows, which the files still hold."""
    untrained = go(tiny_model, ROWS, replace(PACKED, rate=1e-12))
    steps = [[ROWS[i] for i in step] for step in plan(tokens_of(ROWS), PACKED)]
    found = _untrained(str(tiny_model), steps, dtype="float32", device="cpu")
    assert found == pytest.approx(untrained.losses.mean(), rel=1e-5)
    wild = go(tiny_model, ROWS, replace(PACKED, rate=10.0))
    assert wild.diverged is not None and "without any training" in wild.diverged


def test_rows_that_cannot_be_trained_on(tiny_model: Path) -> None:
    ids, mask = np.arange(1, 6), np.array([0, 0, 0, 0, 1], bool)
    with pytest.raises(InputError, match=r"a token in the loss were asked; of 0 none has one before 256 tokens"):
        go(tiny_model, [], PACKED)
    with pytest.raises(InputError, match=r"of 1 none has one before 3 tokens"):
        go(tiny_model, [(ids, mask)], replace(PACKED, max_tokens=3))
    with pytest.raises(InputError, match=r"row 1: ids from 1 to 512; the model's vocabulary has 512"):
        go(tiny_model, [(ids, mask), (np.array([1, 512]), np.array([False, True]))], PACKED)
    with pytest.raises(InputError, match="the first token is to be scored"):
        go(tiny_model, [(ids, ~mask)], PACKED)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs=0; it must be above 0"),
        ({"rate": float("nan")}, "rate=nan; it must be above 0"),
        ({"tokens_per_step": -1}, "tokens_per_step=-1"),
        ({"warmup": 1.0}, r"warmup=1.0; it must be in \[0, 1\)"),
        ({"method": "qlora"}, "method='qlora'; auto, full, lora was asked"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"schedule": "step"}, "schedule='step'"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0; it must be at least 0"),
    ],
)
def test_settings_that_cannot_be_meant(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Training(**wrong)


def test_defaults_follow_the_size_of_the_model() -> None:
    asked = Training()
    assert [asked.method_for(n) for n in (10**6, 10**9)] == ["full", "lora"]
    assert [asked.dtype_for(n) for n in (10**6, 10**9)] == ["float32", "bfloat16"]
    small, middle, large = (asked.rate_for(n) for n in (10**6, 5 * 10**8, 10**10))
    assert small > middle and (middle, large) == (2e-5, 2e-4)
    assert Training(rate=0.5).rate_for(1) == 0.5


def test_a_device_that_the_trainer_would_not_take(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelError, match=r"set CUDA_VISIBLE_DEVICES=1 and ask for 'cuda'"):
        train(str(tiny_model), ROWS, PACKED, device="cuda:1")


def test_without_accelerate(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"'accelerate': pip install 'curate-sft\[evaluate\]'"):
        go(tiny_model, ROWS, PACKED)


def test_a_batch_that_does_not_fit_says_what_to_do(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.models import proxy_trainer

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(proxy_trainer._Trainer, "_states", full)
    with pytest.raises(
        ModelError, match=r"step 1: \d+ rows of \d+ tokens do not fit into memory; lower batch_tokens \(64"
    ):
        go(tiny_model, ROWS, PACKED)
