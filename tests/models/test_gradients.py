"""Gradients of single rows: against autograd, one row at a time, and under every batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from curate.exceptions import InputError, ModelError
from curate.models import gradients, lora
from curate.models.gradients import Adam, GradientLM
from curate.models.head import cross_entropy_slopes
from curate.models.lora import Lora
from curate.models.projection import Projection
from curate.models.reference import reference_adam, reference_gradients
from curate.seeding import rng_for
from tests.models.test_transformers_lm import CONFIGS, Row, rows_of
from tests.models.tiny import save_tiny_model

ADAPTER = Lora(r=4, alpha=8, layers=("q_proj", "v_proj"))
Gradient = dict[str, np.ndarray]


def trained(lm: GradientLM, seed: int = 0) -> dict[str, np.ndarray]:
    """Adapter weights of which none is 0."""
    return {name: 0.1 * rng_for(seed, name).normal(size=shape).astype(np.float32) for name, shape in lm.weights.items()}


def make(model: Path | str, **settings: Any) -> GradientLM:
    lm = GradientLM(str(model), device="cpu", **({"batch_tokens": 400} | settings))
    if settings.get("layers") is None:
        lm.put(trained(lm))
    return lm


def taken(lm: GradientLM, rows: list[Row]) -> tuple[list[Gradient], list[str | None]]:
    out: list[Gradient] = [{} for _ in rows]

    def take(numbers: np.ndarray, name: str, g: torch.Tensor) -> None:
        for i, its in zip(numbers, g, strict=True):
            out[i][name] = its.numpy().copy()

    return out, lm.gradients(rows, take)


def one_at_a_time(lm: GradientLM, rows: list[Row]) -> list[Gradient]:
    model = lm._adapted or lm._model
    named = lora.parameters(model) if lm._adapted is not None else dict(model.named_parameters())
    weights = {name: named[name] for name in lm.weights}
    return [reference_gradients(model, weights, row) if row[1].any() else {} for row in rows]


def flat(gradient: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([gradient[name].astype(np.float64).ravel() for name in sorted(gradient)])


def worst(found: list[Gradient], expected: list[Gradient]) -> float:
    """The largest relative error of a row's gradient."""
    assert [set(f) for f in found] == [set(e) for e in expected] and any(found)
    pairs = [(flat(f), flat(e)) for f, e in zip(found, expected, strict=True) if e]
    return max(float(np.linalg.norm(f - e) / np.linalg.norm(e)) for f, e in pairs)


@pytest.fixture(scope="module")
def lm(tiny_model: Path) -> GradientLM:
    return make(tiny_model, lora=ADAPTER)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_the_slope_of_the_loss_in_the_logits_by_hand() -> None:
    """Logits 0, 0, log 2: p = 1/4, 1/4, 1/2, so δ = (−3/4, 1/4, 1/2) for the first word; a weight of 2 doubles it."""
    z = torch.tensor([[0.0, 0.0, np.log(2)]] * 2, dtype=torch.float64)
    found = cross_entropy_slopes(z, torch.tensor([0, 2]), torch.tensor([1.0, 2.0]))
    np.testing.assert_allclose(found, [[-0.75, 0.25, 0.5], [0.5, 0.5, -1.0]], rtol=1e-12)


def test_a_sure_prediction_keeps_the_digits_of_its_slope() -> None:
    z = torch.tensor([[60.0, 0.0]], dtype=torch.float32)
    found = cross_entropy_slopes(z, torch.tensor([0]), torch.tensor([1.0]))
    np.testing.assert_allclose(found, [[-np.exp(-60), np.exp(-60)]], rtol=1e-5)


@pytest.mark.parametrize("paper", [False, True])
def test_adams_step_by_hand(paper: bool) -> None:
    """g = 2, m = 1, v = 4, β₁ = β₂ = ½, ε = 0: m′ = 3/2, v′ = 4.  After one step, 1 − ½² = ¾ divides both."""
    g, half = torch.full((1, 1, 1), 2.0), 0.5
    adam = Adam({}, {}, beta1=half, beta2=half, eps=0.0, inside_root=not paper, steps=1)
    gradients._step(g, torch.tensor([[half * 1.0]]), torch.tensor([[half * 4.0]]), adam)
    expected = (1.5 / 0.75) / np.sqrt(4 / 0.75) if paper else 0.75
    assert g.item() == pytest.approx(expected, rel=1e-6)


# --- parity ----------------------------------------------------------------------------------------------------------

LLAMA = {"llama": lambda: None} | CONFIGS
NAMES = {"gpt_neox": ("query_key_value", "dense_4h_to_h"), "mamba": ("in_proj", "x_proj"), "opt": ("q_proj", "fc2")}


@pytest.mark.parametrize("full", [False, True], ids=["lora", "layers"])
@pytest.mark.parametrize(
    "name", ["llama", "gpt_neox", "qwen2", "mistral, sliding window", "gemma2, soft cap", "granite, scale", "mamba"]
)
def test_equal_to_autograd(name: str, full: bool, tmp_path: Path) -> None:
    layers = NAMES.get(name, ("q_proj", "k_proj", "o_proj", "down_proj"))
    settings: dict[str, Any] = {"layers": layers} if full else {"lora": Lora(r=4, alpha=8, layers=layers)}
    lm = make(save_tiny_model(tmp_path / "model", LLAMA[name]()), **settings)
    rows = rows_of(10)
    found, reasons = taken(lm, rows)
    assert reasons == [None if mask.any() else "no token is in the loss" for _, mask in rows]
    assert worst(found, one_at_a_time(lm, rows)) < 1e-5


@pytest.mark.parametrize("full", [False, True], ids=["lora", "layers"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "cohere, scale"])
def test_equal_to_autograd_in_float64(name: str, full: bool, tmp_path: Path) -> None:
    layers = NAMES.get(name, ("q_proj", "o_proj", "up_proj"))
    settings: dict[str, Any] = {"layers": layers} if full else {"lora": Lora(r=4, alpha=8, layers=layers)}
    lm = make(save_tiny_model(tmp_path / "model", LLAMA[name]()), dtype="float64", **settings)
    rows = rows_of(10)
    assert worst(taken(lm, rows)[0], one_at_a_time(lm, rows)) < 1e-10


@pytest.mark.parametrize("full", [False, True], ids=["lora", "layers"])
def test_a_bfloat16_model(full: bool, tiny_model: Path) -> None:
    """Within bfloat16's rounding of autograd in float32; the adapter's gradients are float32."""
    settings: dict[str, Any] = {"layers": ["down_proj"]} if full else {"lora": ADAPTER}
    half, rows = make(tiny_model, dtype="bfloat16", **settings), rows_of(10)
    found = taken(half, rows)[0]
    assert {g.dtype for row in found for g in row.values()} == {np.dtype("float32")}
    assert worst(found, one_at_a_time(make(tiny_model, **settings), rows)) < 0.1


def test_a_head_that_is_not_known_goes_through_all_logits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = make(save_tiny_model(tmp_path / "model", CONFIGS["modernbert decoder"]()), layers=["q_proj", "Wo"])
    assert "not its head applied" in caplog.text
    rows = rows_of(10)
    assert worst(taken(lm, rows)[0], one_at_a_time(lm, rows)) < 1e-5


def test_the_head_itself(tiny_model: Path) -> None:
    lm, rows = make(tiny_model, layers=["lm_head", "*.1.mlp.down_proj"]), rows_of(10)
    assert list(lm.weights) == ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"]
    assert worst(taken(lm, rows)[0], one_at_a_time(lm, rows)) < 1e-5


def test_patterns(tiny_model: Path) -> None:
    def chosen(*patterns: str) -> list[str]:
        return [name.removesuffix(".weight") for name in make(tiny_model, layers=patterns).weights]

    assert chosen("down_proj") == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert chosen("model.layers.1.*.q_proj") == ["model.layers.1.self_attn.q_proj"]
    assert len(chosen("*")) == 14  # all but the head
    assert make(tiny_model, layers=["q_proj"]).weights["model.layers.0.self_attn.q_proj.weight"] == (32, 32)


@pytest.mark.parametrize("form", ["plain", "code", "paper"])
def test_features_are_the_projected_directions(form: str, lm: GradientLM) -> None:
    """Against autograd, Adam in NumPy's float64, and the projection of the whole gradient a weight at a time."""
    rows, projection = rows_of(10), Projection(64, seed=3)
    rng = rng_for(0, "moments")
    first = {name: 1e-2 * rng.normal(size=shape).astype(np.float32) for name, shape in lm.weights.items()}
    second = {name: 1e-4 * rng.random(size=shape).astype(np.float32) for name, shape in lm.weights.items()}
    inside = form == "code"
    adam = None if form == "plain" else Adam(first, second, beta1=0.8, beta2=0.9, inside_root=inside, steps=3)
    found, reasons = lm.features(rows, projection, adam)
    assert found.shape == (10, 64) and found.dtype == np.float32 and reasons[:-1] == [None] * 9
    for row, gradient in zip(found[:-1], one_at_a_time(lm, rows), strict=False):
        total = torch.zeros(1, 64, dtype=torch.float64)
        for name, g in gradient.items():
            if form != "plain":
                steps = None if inside else 3
                g = reference_adam(g, first[name], second[name], beta1=0.8, beta2=0.9, eps=1e-8, steps=steps)
            projection.add(total, name, torch.from_numpy(g)[None])
        np.testing.assert_allclose(row, (total / total.norm()).numpy()[0], atol=2e-5)
    assert np.isnan(found[-1]).all() and reasons[-1] == "no token is in the loss"


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_the_batch_budget_changes_nothing(batch_tokens: int, lm: GradientLM, tiny_model: Path) -> None:
    rows = rows_of(20)
    other = make(tiny_model, lora=ADAPTER, batch_tokens=batch_tokens)
    assert worst(taken(other, rows)[0], taken(lm, rows)[0]) < 1e-5


def test_order_and_company_change_nothing(lm: GradientLM) -> None:
    rows = rows_of(20)
    together = taken(lm, rows)[0]
    order = rng_for(1, "order").permutation(len(rows))
    shuffled = taken(lm, [rows[i] for i in order])[0]
    assert worst(shuffled, [together[i] for i in order]) < 1e-5
    assert worst([taken(lm, [row])[0][0] for row in rows], together) < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads: int, lm: GradientLM, tiny_model: Path) -> None:
    rows = rows_of(40)
    expected = taken(lm, rows)[0]
    other = make(tiny_model, lora=ADAPTER, batch_tokens=200)
    found: list[Gradient] = [{} for _ in rows]
    seen: set[int] = set()

    def take(numbers: np.ndarray, name: str, g: torch.Tensor) -> None:
        seen.add(threading.get_ident())
        for i, its in zip(numbers, g, strict=True):
            found[i][name] = its.numpy().copy()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        other.gradients(rows, take)
        assert torch.get_num_threads() == threads  # as it was found
    finally:
        torch.set_num_threads(before)
    assert worst(found, expected) < 1e-5
    assert (seen == {threading.get_ident()}) == (threads == 1)


def test_what_follows_the_last_scored_token_changes_nothing(lm: GradientLM) -> None:
    (ids, mask), *_ = [row for row in rows_of(20) if row[0].size > 50 and row[1].any()]
    longer = np.concatenate([ids, ids[:9]]), np.concatenate([mask, np.zeros(9, dtype=bool)])
    assert worst(taken(lm, [longer])[0], taken(lm, [(ids, mask)])[0]) < 1e-7


def test_nothing_is_left_in_the_model(lm: GradientLM) -> None:
    lm.gradients(rows_of(10), lambda *_: None)
    assert all(p.grad is None and not p.requires_grad for p in lm._model.parameters())


def test_put_changes_the_gradients(tiny_model: Path) -> None:
    lm, rows = make(tiny_model, lora=ADAPTER), rows_of(6)
    before = taken(lm, rows)[0]
    lm.put(trained(lm, seed=1))
    after = taken(lm, rows)[0]
    assert worst(after, before) > 0.1 and worst(after, one_at_a_time(lm, rows)) < 1e-5


def test_before_training_only_b_has_gradients(tiny_model: Path) -> None:
    lm = GradientLM(str(tiny_model), lora=ADAPTER, device="cpu")
    row = rows_of(6)[4]
    ((gradient,), _) = taken(lm, [row])
    assert all((np.abs(g).max() == 0) == (".lora_A." in name) for name, g in gradient.items())
    again = GradientLM(str(tiny_model), lora=ADAPTER, device="cpu", seed=1)
    ((other,), _) = taken(again, [row])
    assert not np.allclose(flat(other), flat(gradient))  # another beginning


# --- rows without a gradient -----------------------------------------------------------------------------------------


def test_a_weight_that_is_not_a_number_hurts_only_the_rows_that_read_it(tmp_path: Path, tiny_model: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][500] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rows = rows_of(12)
    for ids, mask in rows:
        ids[ids == 500] = 499
        mask[-1] = True
    bad = [0, 4]  # the shortest, which is padded, and the longest
    for i in bad:
        rows[i][0][0] = 500
    found, reasons = make(folder, lora=ADAPTER, batch_tokens=100_000).features(rows, Projection(64))
    assert [i for i, reason in enumerate(reasons) if reason] == bad
    assert reasons[4] == "its gradient is not a number" and np.isnan(found[bad]).all()
    others = [i for i in range(12) if i not in bad]
    expected = make(tiny_model, lora=ADAPTER).features([rows[i] for i in others], Projection(64))[0]
    np.testing.assert_allclose(found[others], expected, atol=1e-5)


def test_a_gradient_of_zero(tiny_model: Path) -> None:
    """With A = B = 0 neither has a gradient."""
    lm = make(tiny_model, lora=ADAPTER)
    lm.put({name: np.zeros(shape, dtype=np.float32) for name, shape in lm.weights.items()})
    found, reasons = lm.features(rows_of(6), Projection(16))
    assert reasons == ["its gradient is 0"] * 5 + ["no token is in the loss"] and np.isnan(found).all()


@pytest.mark.parametrize(("late", "most"), [(False, 100), (True, 250)], ids=["forward", "backward"])
def test_the_batch_is_halved_until_it_fits(
    late: bool, most: int, tiny_model: Path, lm: GradientLM, caplog: pytest.LogCaptureFixture
) -> None:
    small = make(tiny_model, lora=ADAPTER, batch_tokens=1000)

    def limit(_: Any, x: torch.Tensor) -> None:
        if x.shape[0] * x.shape[1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    layer = small._model.base_model.layers[1].self_attn.q_proj.lora_A["default"]
    if late:  # when gradients of other layers have been taken already
        layer.register_forward_hook(lambda m, _, out: out.register_hook(lambda g: limit(m, g)) and None)
    else:
        layer.register_forward_pre_hook(lambda m, args: limit(m, args[0]))
    rows = rows_of(24)
    found, reasons = small.features(rows, Projection(64))
    expected, others = lm.features(rows, Projection(64))
    last = [int(np.flatnonzero(mask)[-1]) if mask.any() else 0 for _, mask in rows]
    assert (max(last) > most) == (not late)
    assert reasons == [f"out of memory at {n} tokens" if n > most else o for n, o in zip(last, others, strict=True)]
    fits = [i for i, reason in enumerate(reasons) if reason is None]
    np.testing.assert_allclose(found[fits], expected[fits], atol=1e-5)
    assert small.batch_tokens <= most and "out of memory at" in caplog.text
    caplog.clear()
    small.features([rows[i] for i in fits], Projection(64))
    assert "out of memory" not in caplog.text  # the smaller batch stays


def test_other_errors_are_not_taken_for_lack_of_memory(lm: GradientLM) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        lm.gradients(rows_of(6), fail)


# --- wrong input and wrong models ------------------------------------------------------------------------------------


def test_no_rows(lm: GradientLM) -> None:
    found, reasons = lm.features([], Projection(8))
    assert found.shape == (0, 8) and reasons == []


def test_a_malformed_row(lm: GradientLM) -> None:
    with pytest.raises(InputError, match="row 1: ids from 7 to 9999; the model's vocabulary has 512"):
        lm.gradients([rows_of(6)[4], (np.array([7, 9999]), np.array([False, True]))], lambda *_: None)


@pytest.mark.parametrize(
    ("config", "settings", "told"),
    [
        (None, {"layers": ["up"]}, r"'up' were asked; none fits; its linear layers are down_proj, gate_proj, k_proj"),
        (CONFIGS["gpt2"], {"layers": ["c_attn"]}, r"'c_attn' were asked; what fits is Conv1D; .* are lm_head"),
        (CONFIGS["gpt2"], {"lora": Lora(layers=("c_attn",))}, "c_attn were asked to be adapted; it has lm_head"),
        (
            CONFIGS["qwen2"],
            {"layers": ["lm_head"]},
            "lm_head.weight were asked, which is model.embed_tokens.weight too",
        ),
        (None, {"layers": ["q_proj"], "lora": ADAPTER}, "not both"),
    ],
    ids=["no layer", "Conv1D", "Conv1D adapted", "tied", "both"],
)
def test_layers_that_cannot_be_had(
    config: Callable[[], Any] | None, settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "model", config and config())
    with pytest.raises((ModelError, InputError), match=told):
        GradientLM(str(folder), device="cpu", **settings)


def test_layers_whose_rows_cannot_be_told_apart(tmp_path: Path) -> None:
    lm = make(save_tiny_model(tmp_path / "model", CONFIGS["opt"]()), layers=["fc1"])
    with pytest.raises(ModelError, match=r"layers.0.fc1.weight reads \(\d+, 32\) where rows, tokens and width"):
        lm.gradients(rows_of(6), lambda *_: None)


def test_a_layer_that_is_no_part_of_the_forward_pass(tiny_model: Path) -> None:
    lm = make(tiny_model, layers=["q_proj"])
    lm.weights["model.layers.9.self_attn.q_proj.weight"] = (32, 32)
    with pytest.raises(ModelError, match=r"does not depend on the layer of model.layers.9"):
        lm.gradients(rows_of(6), lambda *_: None)


def test_a_layer_that_is_used_twice(tiny_model: Path) -> None:
    lm = make(tiny_model, layers=["down_proj"])
    layers = lm._model.base_model.layers
    layers[1].mlp.down_proj = layers[0].mlp.down_proj
    with pytest.raises(ModelError, match=r"layers.0.mlp.down_proj.weight is used twice"):
        lm.gradients(rows_of(6), lambda *_: None)


def test_float16_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="float16, in which gradients underflow; ask for dtype bfloat16"):
        GradientLM(str(tiny_model), lora=ADAPTER, dtype="float16", device="cpu")


def test_averages_of_another_model(lm: GradientLM, tiny_model: Path) -> None:
    zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in lm.weights.items()}
    name = list(zeros)[1]
    wrong = zeros | {name: np.zeros((3, 4), dtype=np.float32)}
    with pytest.raises(ModelError, match=rf"second moments .* of {name}, \(32, 4\) was asked and \(3, 4\) found"):
        lm.features(rows_of(5), Projection(8), Adam(zeros, wrong))
    with pytest.raises(ModelError, match=rf"first moments .* of {name}, \(32, 4\) was asked and nothing found"):
        lm.features(rows_of(5), Projection(8), Adam({k: v for k, v in zeros.items() if k != name}, zeros))
    with pytest.raises(ModelError, match="of other, nothing was asked"):
        lm.features(rows_of(5), Projection(8), Adam(zeros | {"other": np.zeros(1, dtype=np.float32)}, zeros))


def test_an_adapters_weights_where_there_is_none(tiny_model: Path) -> None:
    lm = make(tiny_model, layers=["q_proj"])
    with pytest.raises(ModelError, match="gradients here are of the model's own"):
        lm.put({})
