"""The output head: every quantity against its definition, in float64 and in what models compute in."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from curate.exceptions import ModelError
from curate.models import transformers_lm
from curate.models.base import QUANTITIES, Forward
from curate.models.head import Head, cross_entropy_slopes
from curate.models.reference import (
    load_reference,
    reference_entropy,
    reference_head_gradient,
    reference_logprobs,
    reference_step,
)
from curate.models.transformers_lm import TransformersLM
from curate.scorers.donod import step_norms
from curate.seeding import rng_for
from tests.models.test_transformers_lm import CONFIGS, SMALL, rows_of
from tests.models.tiny import save_tiny_model

OF_LOGITS = {"logprobs", "entropy", "head-gradient"}
PLAIN = SimpleNamespace()
HEADS = {"held": (2**16, 2**30), "small blocks": (1, 2**30), "computed twice": (1, 1)}
"""(logits worked on at once, logits held at once): every way through the head."""

ARCHITECTURES: dict[str, Any] = {
    "llama": None,
    "tied embeddings": CONFIGS["qwen2"],
    "bias of the head": lambda: transformers.PhiConfig(**SMALL),
    "scale, cohere": CONFIGS["cohere, scale"],
    "scale, granite": CONFIGS["granite, scale"],
}


def linear(words: int, width: int, *, bias: bool = False, seed: int = 0, dtype: Any = torch.float64) -> Any:
    head = torch.nn.Linear(width, words, bias=bias)
    rng = rng_for(seed, "head")
    head.weight.data = torch.from_numpy(rng.normal(size=(words, width)) * 0.7)
    if bias:
        head.bias.data = torch.from_numpy(rng.normal(size=words))
    return head.to(dtype).requires_grad_(False)


def states(head: Any, counts: list[int], *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    words, width = head.weight.shape
    rng = rng_for(seed, "states")
    hidden = torch.from_numpy(rng.normal(size=(sum(counts), width))).to(head.weight.dtype)
    return hidden, torch.from_numpy(rng.integers(0, words, size=sum(counts)))


def by_definition(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Log-probabilities, entropies and the gradient of the mean loss in the weight, by autograd in float64."""
    weight = head.weight.double().detach().requires_grad_()
    bias = None if head.bias is None else head.bias.double()
    logp = torch.log_softmax(scale * torch.nn.functional.linear(hidden.double(), weight, bias), dim=-1)
    its = logp.gather(1, targets[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(-its.mean(), weight)
    return its.detach().numpy(), -(logp.exp() * logp).sum(-1).detach().numpy(), gradient


def close(found: float, expected: float, rtol: float) -> None:
    assert abs(found - expected) <= rtol * abs(expected), (found, expected, abs(found / expected - 1))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = ARCHITECTURES[request.param]
    return str(save_tiny_model(tmp_path_factory.mktemp("head") / "model", config and config()))


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", HEADS)
def test_two_words_one_state_by_hand(way: str) -> None:
    """z = (ln 3, 0), so p = (3/4, 1/4); the target is word 1, so δ = (3/4, −3/4) and G = δ · h with h = 1."""
    head = torch.nn.Linear(1, 2, bias=False).double().requires_grad_(False)
    head.weight.data = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    block, hold = HEADS[way]
    (found,) = Head(head, PLAIN, block=block, hold=hold).of_rows(
        torch.ones(1, 1, dtype=torch.float64), torch.tensor([1]), [1], OF_LOGITS
    )
    assert found.logprobs is not None and found.entropy is not None and found.head_gradient is not None
    assert found.logprobs.dtype == found.entropy.dtype == np.float32
    np.testing.assert_allclose(found.logprobs, [math.log(1 / 4)], rtol=1e-6)
    np.testing.assert_allclose(found.entropy, [0.75 * math.log(4 / 3) + 0.25 * math.log(4)], rtol=1e-6)
    close(found.head_gradient[0], 0.75 * math.log(3), 1e-12)
    close(found.head_gradient[1], 2 * 0.75**2, 1e-12)


# --- float64: the definitions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", HEADS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("config", [{}, {"logit_scale": 0.3}, {"logits_scaling": 5.0}], ids=str)
def test_float64_is_the_definition(way: str, bias: bool, config: dict[str, float]) -> None:
    head = linear(300, 16, bias=bias)
    counts = [1, 40, 2, 16, 17, 3]  # on both sides of the width: Gram and direct
    hidden, targets = states(head, counts)
    block, hold = HEADS[way]
    ours = Head(head, SimpleNamespace(**config), block=block, hold=hold)
    found = ours.of_rows(hidden, targets, counts, OF_LOGITS)
    for row, h, y in zip(found, hidden.split(counts), targets.split(counts), strict=True):
        logprobs, entropy, gradient = by_definition(head, h, y, ours.scale)
        assert row.logprobs is not None and row.entropy is not None and row.head_gradient is not None
        np.testing.assert_allclose(row.logprobs, logprobs, rtol=1e-6)
        np.testing.assert_allclose(row.entropy, entropy, rtol=1e-6)
        close(row.head_gradient[0], float((head.weight * gradient).sum()), 1e-10)
        close(row.head_gradient[1], float(gradient.square().sum()), 1e-10)
    close(ours.norm, float(head.weight.norm()), 1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("config", [{}, {"logit_scale": -0.3}], ids=str)
@pytest.mark.parametrize("n", [1, 5, 16, 40])
def test_nuclear_norm_is_that_of_the_logits(bias: bool, config: dict[str, float], n: int) -> None:
    head = linear(300, 16, bias=bias)
    hidden, _ = states(head, [n])
    ours = Head(head, SimpleNamespace(**config), block=64, hold=64)
    expected = float(torch.linalg.svdvals(ours.scale * head(hidden)).sum())
    close(ours.nuclear_norm(hidden), expected, 1e-10)


def test_nuclear_norm_of_a_head_of_low_rank_and_of_states_that_repeat() -> None:
    head = linear(300, 16)
    head.weight.data[:, 8:] = head.weight.data[:, :8]
    hidden, _ = states(head, [12])
    hidden[6:] = hidden[:6]
    expected = float(torch.linalg.svdvals(head(hidden)).sum())
    close(Head(head, PLAIN, block=64, hold=64).nuclear_norm(hidden), expected, 1e-7)


# --- whole models ----------------------------------------------------------------------------------------------------


def test_a_step_in_closed_form_is_the_step_that_is_taken(folder: str) -> None:
    """DONOD to 1e-6, relative, in float64: the model, its head, and autograd through the model's own logits."""
    loaded = load_reference(folder)
    head = loaded.get_output_embeddings()
    ours = Head(head, loaded.config.get_text_config(), block=2048, hold=2**22)
    weight = head.weight.detach().numpy()
    rows = [row for row in rows_of(10, longest=90) if row[1].any()]
    assert max(mask.sum() for _, mask in rows) > weight.shape[1]  # both the Gram and the direct product
    for ids, mask in rows:
        at = np.flatnonzero(mask)
        with torch.no_grad():
            hidden = loaded.base_model(input_ids=torch.tensor([ids.tolist()]))[0][0][at - 1]
            (found,) = ours.of_rows(hidden, torch.from_numpy(ids[at].astype(np.int64)), [at.size], {"head-gradient"})
        assert found.head_gradient is not None and found.logprobs is None and found.entropy is None
        slope, square = (np.array([x]) for x in found.head_gradient)
        gradient = reference_head_gradient(loaded, (ids, mask))
        for step in (1e-2, 10.0):
            don, nod = step_norms(slope, square, norm=ours.norm, step=step)
            expected = reference_step(weight, gradient, step)
            close(don[0], expected[0], 1e-6)
            close(nod[0], expected[1], 1e-6)


def test_float32_against_the_reference(folder: str) -> None:
    loaded = load_reference(folder)
    rows = [row for row in rows_of(12) if row[1].any()]
    lm = TransformersLM(folder, device="cpu")
    assert lm.serves == frozenset(QUANTITIES)
    found = lm.forward(rows, QUANTITIES)
    logprobs, entropy = reference_logprobs(loaded, rows), reference_entropy(loaded, rows)
    scale = Head(loaded.get_output_embeddings(), loaded.config, block=64, hold=64).scale
    weight = loaded.get_output_embeddings().weight.detach().double()
    close(lm.head_norm or 0, float(weight.norm()), 1e-6)
    for row, (ids, mask), expected, its_entropy in zip(found, rows, logprobs, entropy, strict=True):
        assert (
            row is not None and row.logprobs is not None and row.entropy is not None and row.head_gradient is not None
        )
        np.testing.assert_allclose(row.logprobs, expected, atol=1e-4)
        np.testing.assert_allclose(row.entropy, its_entropy, atol=1e-4)
        gradient = torch.from_numpy(reference_head_gradient(loaded, (ids, mask)))
        size = float(gradient.norm())
        slope = float((weight * gradient).sum())
        assert abs(row.head_gradient[0] - slope) < 1e-4 * max(1.0, abs(slope))
        close(row.head_gradient[1], size**2, 1e-4)
        with torch.no_grad():
            pass_ = loaded(input_ids=torch.tensor([ids.tolist()]), output_hidden_states=True)
            hidden, z = loaded.base_model(input_ids=torch.tensor([ids.tolist()]))[0][0].numpy(), pass_.logits[0]
        place = np.arange(1, ids.size + 1)[:, None]
        np.testing.assert_allclose(row.hidden_mean, hidden.mean(0), atol=2e-5)
        np.testing.assert_allclose(row.hidden_weighted, (place * hidden).sum(0) / place.sum(), atol=2e-5)
        np.testing.assert_allclose(row.hidden_last, hidden[-1], atol=2e-5)
        close(row.logit_norm_all or 0, float(torch.linalg.svdvals(z).sum()), 1e-5)
        close(row.logit_norm or 0, float(torch.linalg.svdvals(z[np.flatnonzero(mask) - 1]).sum()), 1e-5)
    assert scale == lm._head.scale


@pytest.mark.parametrize("way", HEADS)
def test_bfloat16_is_near(way: str) -> None:
    """Of numbers with 8 bits: the states are what they are, the products are rounded."""
    head = linear(1000, 32, dtype=torch.bfloat16)
    counts = [3, 60, 20]
    hidden, targets = states(head, counts)
    block, hold = HEADS[way]
    found = Head(head, PLAIN, block=block, hold=hold).of_rows(hidden, targets, counts, OF_LOGITS)
    for row, h, y in zip(found, hidden.split(counts), targets.split(counts), strict=True):
        logprobs, entropy, gradient = by_definition(head, h, y)
        assert row.logprobs is not None and row.entropy is not None and row.head_gradient is not None
        np.testing.assert_allclose(row.logprobs, logprobs, atol=0.06)
        np.testing.assert_allclose(row.entropy, entropy, atol=0.06)
        close(row.head_gradient[0], float((head.weight.double() * gradient).sum()), 2e-2)
        close(row.head_gradient[1], float(gradient.square().sum()), 1e-2)


@pytest.mark.parametrize("way", HEADS)
@pytest.mark.parametrize("margin", [4.0, 12.0, 16.0, 25.0, 40.0])
def test_a_sure_prediction_keeps_its_digits(way: str, margin: float) -> None:
    """The target's logit leads by ``margin`` nats: 1 − p is near e^−margin · V, far below float32's rounding of p."""
    words, width, n = 200, 8, 3
    rng = rng_for(0, "sure")
    head = torch.nn.Linear(width, words, bias=False).requires_grad_(False)
    head.weight.data = torch.from_numpy(rng.normal(size=(words, width)) * 0.3).float()
    targets = torch.tensor([7, 9, 11])
    hidden = torch.zeros(n, width)
    hidden[:, 0] = 1
    hidden[:, 1:4] = torch.eye(3)
    head.weight.data[:, :4] *= 0.5
    for i, y in enumerate(targets):
        head.weight.data[y] = 0
        head.weight.data[y, 1 + i] = margin
    block, hold = HEADS[way]
    (found,) = Head(head, PLAIN, block=block, hold=hold).of_rows(hidden, targets, [n], OF_LOGITS)
    assert found.logprobs is not None and found.entropy is not None and found.head_gradient is not None
    z = torch.nn.functional.linear(hidden.double(), head.weight.double())
    rest = torch.exp(z - z.gather(1, targets[:, None]))
    rest.scatter_(1, targets[:, None], 0)
    exact = -torch.log1p(rest.sum(-1)).numpy()  # of log_softmax float64 itself loses digits at a margin of 40
    np.testing.assert_allclose(found.logprobs, exact, rtol=1e-4)
    p = rest / (1 + rest.sum(-1, keepdim=True))
    its_entropy = -exact - (p * (z - z.gather(1, targets[:, None]))).sum(-1).numpy()
    np.testing.assert_allclose(found.entropy, its_entropy, rtol=1e-4)
    delta = p.scatter(1, targets[:, None], -p.sum(-1, keepdim=True))
    gradient = delta.T @ hidden.double() / n
    close(found.head_gradient[0], float((head.weight.double() * gradient).sum()), 1e-4)
    close(found.head_gradient[1], float(gradient.square().sum()), 1e-4)


# --- properties ------------------------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    block=st.sampled_from([1, 700, 2**20]),
    hold=st.sampled_from([1, 5000, 2**20]),
    cut=st.integers(0, 8),
)
def test_how_rows_are_batched_changes_nothing(counts: list[int], block: int, hold: int, cut: int) -> None:
    head = linear(600, 12, bias=True)
    hidden, targets = states(head, counts)
    one = Head(head, PLAIN, block=2**22, hold=2**22)
    expected = [
        one.of_rows(h, y, [n], OF_LOGITS)[0]
        for h, y, n in zip(hidden.split(counts), targets.split(counts), counts, strict=True)
    ]
    ours = Head(head, PLAIN, block=block, hold=hold)
    at = sum(counts[:cut])
    found = ours.of_rows(hidden[:at], targets[:at], counts[:cut], OF_LOGITS) if cut else []
    if counts[cut:]:
        found += ours.of_rows(hidden[at:], targets[at:], counts[cut:], OF_LOGITS)
    for a, b, n in zip(found, expected, counts, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-6)
        np.testing.assert_allclose(a.entropy, b.entropy, rtol=1e-6)
        np.testing.assert_allclose(a.head_gradient, b.head_gradient, rtol=1e-9)
        assert np.shape(a.logprobs) == (n,) and (n > 0 or np.isnan(a.head_gradient).all())


def test_a_row_without_scored_tokens_beside_others(tiny_model: Path) -> None:
    rows = rows_of(5)
    rows[1][1][:] = False
    found = TransformersLM(str(tiny_model), device="cpu").forward(rows, QUANTITIES)
    for row, (_, mask) in zip(found, rows, strict=True):
        assert isinstance(row, Forward) and row.logprobs is not None and row.logprobs.shape == (mask.sum(),)
        assert row.hidden_mean is not None and row.hidden_mean.shape == (32,)
        assert row.head_gradient is not None and np.isnan(row.head_gradient).all() == (not mask.any())


@pytest.mark.parametrize("way", HEADS)
def test_nan_stays_nan(way: str) -> None:
    head = linear(300, 16)
    hidden, targets = states(head, [4, 20])
    hidden[2, 3] = hidden[10, 3] = float("nan")
    block, hold = HEADS[way]
    found = Head(head, PLAIN, block=block, hold=hold).of_rows(hidden, targets, [4, 20], OF_LOGITS)
    for row in found:
        assert row.logprobs is not None and np.isnan(row.logprobs).sum() == 1
        assert row.head_gradient is not None and np.isnan(row.head_gradient).all()


class Largest(TorchDispatchMode):
    """The most numbers that any operation returned, but for the weight itself."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.numel = weight.data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != self.weight:
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("counts", [[100], [500], [30] * 20], ids=str)
def test_no_matrix_of_vocabulary_times_width_exists(counts: list[int]) -> None:
    words, width = 20_000, 384
    head = linear(words, width, dtype=torch.float32)
    hidden, targets = states(head, counts)
    ours = Head(head, PLAIN, block=2**18, hold=2**22)
    with Largest(head.weight) as largest:
        found = ours.of_rows(hidden, targets, counts, OF_LOGITS)
    assert 2**17 < largest.numel <= 2**22 < words * width
    h, y = hidden[: counts[0]], targets[: counts[0]]
    gradient = by_definition(head, h, y)[2]
    assert found[0].head_gradient is not None
    close(found[0].head_gradient[1], float(gradient.square().sum()), 1e-4)


class Doubling(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_a_head_that_is_more_than_its_weight_is_noticed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter, a quantised head: what the module gives is not what its weight says."""
    rows = rows_of(6)
    loaded = load_reference(str(tiny_model))
    loaded.get_output_embeddings().__class__ = Doubling
    expected = reference_logprobs(loaded, rows)
    load = transformers_lm.load_weights

    def doubling(model: str, dtype: Any) -> Any:
        loaded = load(model, dtype)
        loaded.get_output_embeddings().__class__ = Doubling
        return loaded

    monkeypatch.setattr(transformers_lm, "load_weights", doubling)
    lm = TransformersLM(str(tiny_model), device="cpu")
    assert not lm.by_hidden_states and lm.serves == {"logprobs"}
    for found, its in zip(lm.token_logprobs(rows), expected, strict=True):
        np.testing.assert_allclose(found, its, atol=1e-4)


@given(seed=st.integers(0, 99), scale=st.sampled_from([0.1, 3.0, 300.0]))
def test_the_losses_beside_the_slopes_keep_the_digits_of_a_sure_prediction(seed: int, scale: float) -> None:
    z = torch.from_numpy(rng_for(seed, "logits").normal(size=(6, 9)) * scale)
    targets = torch.cat([z[:3].argmax(dim=1), z[3:].argmin(dim=1)])
    others = z.scatter(1, targets[:, None], -torch.inf).logsumexp(dim=1) - z.gather(1, targets[:, None])[:, 0]
    losses = torch.empty(6, dtype=torch.float64)
    cross_entropy_slopes(z.clone(), targets, torch.ones(6), losses)
    expected = torch.where(others < 0, others.exp().log1p(), others + (-others).exp().log1p())
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_capped_head_gives_no_gradient_and_says_so(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "model", CONFIGS["gemma2, soft cap"]()))
    lm = TransformersLM(folder, device="cpu")
    rows = rows_of(6)
    for quantity in ("head-gradient", "logit-norm", "logit-norm-all"):
        assert quantity not in lm.serves
        with pytest.raises(
            ModelError, match=f"{quantity} were asked, but Gemma2ForCausalLM caps its logits; it gives "
        ):
            lm.forward(rows, {quantity, "logprobs"})
    found = lm.forward(rows, {"entropy"})
    for row, expected in zip(found, reference_entropy(load_reference(folder), rows), strict=True):
        assert row is not None and row.entropy is not None
        np.testing.assert_allclose(row.entropy, expected, atol=1e-4)
