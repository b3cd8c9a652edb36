"""Shared beginnings: found whatever the order of the rows, and without a trace in the numbers."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from curate.models import prefix
from curate.models.prefix import Group, batches, groups
from curate.models.reference import load_reference, reference_logprobs
from curate.models.transformers_lm import TransformersLM
from curate.seeding import rng_for
from tests.models.test_transformers_lm import CONFIGS, SMALL, Row, rows_of, worst
from tests.models.tiny import save_tiny_model

OF_TOKENS = frozenset({"logprobs", "entropy", "head-gradient", "logit-norm"})


def candidates(prompts: list[int], each: int, *, longest: int = 30, seed: int = 0) -> list[Row]:
    """``each`` responses of random lengths to prompts of given lengths; the prompts begin differently."""
    rng = rng_for(seed, "candidates")
    rows = []
    for n in prompts:
        prompt = rng.integers(0, 512, size=n)
        for _ in range(each):
            ids = np.r_[prompt, rng.integers(0, 512, size=rng.integers(1, longest))].astype(np.int32)
            mask = np.arange(ids.size) >= n
            mask[n:-1] &= rng.random(ids.size - n - 1) < 0.8
            rows.append((ids, mask))
    return rows


def shuffled(rows: list[Any], seed: int = 0) -> tuple[list[Any], np.ndarray]:
    order = rng_for(seed, "order").permutation(len(rows))
    return [rows[i] for i in order], order


def of(rows: list[Row]) -> tuple[list[np.ndarray], list[int], np.ndarray]:
    first = [int(np.flatnonzero(mask)[0]) - 1 if mask.any() else 0 for _, mask in rows]
    lengths = np.array([int(np.flatnonzero(mask)[-1]) if mask.any() else 0 for _, mask in rows])
    return [ids for ids, _ in rows], first, lengths


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> TransformersLM:
    return TransformersLM(str(tiny_model), device="cpu", share=False)


@pytest.fixture
def lm(tiny_model: Path) -> TransformersLM:
    return TransformersLM(str(tiny_model), device="cpu")


@pytest.fixture
def seen(lm: TransformersLM) -> list[int]:
    """Tokens of each pass through the model, padding counted."""
    tokens: list[int] = []
    lm._model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return tokens


def differences(found: list[Any], expected: list[Any]) -> float:
    """The largest difference of any quantity, relative for the sizes of gradients and logits."""
    out = [0.0]
    for a, b in zip(found, expected, strict=True):
        out.append(float(np.abs(a.logprobs - b.logprobs).max(initial=0)))
        out.append(float(np.abs(a.entropy - b.entropy).max(initial=0)))
        out += [abs(x - y) / (1 + abs(y)) for x, y in zip(a.head_gradient, b.head_gradient, strict=True)]
        out.append(abs(a.logit_norm - b.logit_norm) / (1 + b.logit_norm))
    return max(out)


# --- which rows ------------------------------------------------------------------------------------------------------


def test_candidates_of_a_prompt_are_one_group_by_hand() -> None:
    a, b = np.arange(100), np.arange(100, 160)
    ids = [np.r_[a, 1, 2], np.r_[b, 5], np.r_[a, 3, 4, 5], np.r_[b, 7, 7]]
    # Each may share all but the last token of its prompt: that one predicts the first scored token.
    found = groups(ids, [99, 59, 99, 59], np.array([101, 60, 102, 61]))
    assert {(g.length, frozenset(g.rows)) for g in found} == {(99, frozenset({0, 2})), (59, frozenset({1, 3}))}


def test_a_beginning_that_all_have_does_not_hide_the_longer_ones() -> None:
    """A system prompt of 40 tokens before everything; three prompts of 60, one of them with a single answer."""
    rng = rng_for(0, "ids")
    system = rng.integers(0, 512, size=40)
    prompts = [np.r_[system, rng.integers(0, 512, size=60)] for _ in range(3)]
    ids = [np.r_[prompts[k], rng.integers(0, 512, size=9)] for k in (0, 1, 1, 2, 1, 2, 2)]
    found = groups(ids, [99] * 7, np.array([108] * 7))
    assert sorted((g.length, tuple(sorted(g.rows))) for g in found) == [(99, (1, 2, 4)), (99, (3, 5, 6))]


def test_short_beginnings_and_small_savings_are_left_alone() -> None:
    rng = rng_for(0, "ids")
    ids = [np.r_[np.arange(15), rng.integers(0, 512, size=5)] for _ in range(9)]
    assert groups(ids, [15] * 9, np.array([19] * 9)) == []
    ids = [np.r_[np.arange(20), rng.integers(0, 512, size=400)] for _ in range(9)]
    assert groups(ids, [20] * 9, np.array([419] * 9)) == []  # 160 tokens of 3,771 saved
    assert groups([], [], np.array([], dtype=np.int64)) == []


def test_groups_have_a_largest_size() -> None:
    ids = [np.r_[np.arange(30), [j]] for j in range(150)]
    found = groups(ids, [30] * 150, np.array([31] * 150))
    assert len(found) == 3 and max(len(g.rows) for g in found) == prefix.LARGEST
    assert sorted(j for g in found for j in g.rows) == list(range(150))


@given(st.data())
def test_no_division_into_groups_saves_more(data: Any) -> None:
    """Beside all divisions of the sorted rows, tried one by one."""
    n = data.draw(st.integers(1, 7))
    words = st.lists(st.integers(0, 1), min_size=1, max_size=5)
    blocks = data.draw(st.lists(words, min_size=n, max_size=n))
    ids = [np.repeat(block, 16).astype(np.int32) for block in blocks]  # in blocks of 16: long enough to share
    lengths = np.array([i.size for i in ids]) + data.draw(st.integers(1, 60))
    found = groups(ids, [i.size for i in ids], lengths)

    def saved(rows: tuple[int, ...]) -> float:
        size = min(ids[j].size for j in rows)
        same = [k for k in range(size) if len({int(ids[j][k]) for j in rows}) > 1]
        common = same[0] if same else size
        if len(rows) == 1:
            return 0.0
        return (len(rows) - 1) * common - prefix.SURCHARGE * lengths[list(rows)].sum() if common >= 16 else -np.inf

    order = sorted(range(n), key=lambda j: ids[j].tobytes())
    best = -np.inf
    for cuts in range(2 ** (n - 1)):
        ends = [k for k in range(1, n) if cuts >> (k - 1) & 1]
        parts = [tuple(order[a:b]) for a, b in zip([0, *ends], [*ends, n], strict=True)]
        best = max(best, sum(map(saved, parts)))
    assert sum(saved(g.rows) for g in found) == pytest.approx(best)
    for g in found:
        assert len({ids[j][: g.length].tobytes() for j in g.rows}) == 1 and len(g.rows) > 1
    rows = [j for g in found for j in g.rows]
    assert len(rows) == len(set(rows))


def test_batches_hold_the_budget() -> None:
    found = [Group(n, (0, 1), 50) for n in (10, 300, 39, 1200, 290, 40, 290)]
    cut = batches(found, 700)
    assert [[g.length for g in batch] for batch in cut] == [[1200], [300, 290], [290], [40, 39], [10]]
    assert [len(batch) for batch in batches(found, 699)] == [1, 1, 2, 2, 1]


# --- the same numbers ------------------------------------------------------------------------------------------------


def test_every_quantity_is_that_of_rows_computed_alone(
    lm: TransformersLM, plain: TransformersLM, seen: list[int]
) -> None:
    assert lm.shares and not plain.shares
    rows, _ = shuffled(candidates([40, 60, 33, 60, 90], 6) + rows_of(12))
    rows += candidates([80, 83, 81], 2, longest=4)  # beginnings of three lengths in one batch
    expected = plain.forward(rows, OF_TOKENS)
    found = lm.forward(rows, OF_TOKENS)
    assert sum(seen) < 0.75 * sum(ids.size for ids, _ in rows)  # it did share
    assert differences(found, expected) < 1e-5
    logprobs = reference_logprobs(load_reference(lm._model.config._name_or_path), rows)
    assert worst([f.logprobs for f in found if f is not None], logprobs) < 1e-4


def test_prompts_go_through_the_model_once(lm: TransformersLM, seen: list[int]) -> None:
    rows = candidates([101], 8, longest=2)  # 100 shared tokens; of each row the prompt's last token is its own
    lm.token_logprobs(rows)
    assert seen == [100, 8]


def test_hidden_states_of_all_tokens_are_computed_whole(lm: TransformersLM, plain: TransformersLM) -> None:
    rows = candidates([40, 60], 4)
    found, expected = (m.forward(rows, {"logprobs", "hidden-mean"}) for m in (lm, plain))
    for a, b in zip(found, expected, strict=True):
        assert a is not None and b is not None
        np.testing.assert_allclose(a.hidden_mean, b.hidden_mean, atol=1e-5)


def test_order_and_company_change_nothing(lm: TransformersLM) -> None:
    rows = candidates([40, 50, 60], 5) + rows_of(8)
    together = lm.token_logprobs(rows)
    mixed, order = shuffled(rows, 1)
    assert worst(lm.token_logprobs(mixed), [together[i] for i in order]) < 1e-5
    assert worst([lm.token_logprobs([row])[0] for row in rows], together) < 1e-5
    for part in (rows[:2], rows[3:9], rows[::2]):
        which = [i for i, row in enumerate(rows) if any(row is r for r in part)]
        assert worst(lm.token_logprobs(part), [together[i] for i in which]) < 1e-5


@pytest.mark.parametrize("batch_tokens", [1, 70, 500, 100_000])
def test_the_batch_budget_changes_nothing(batch_tokens: int, plain: TransformersLM, tiny_model: Path) -> None:
    rows = candidates([40, 90, 60, 61], 7)
    other = TransformersLM(str(tiny_model), device="cpu", batch_tokens=batch_tokens)
    widest: list[int] = []
    other._model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: widest.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    assert worst(other.token_logprobs(rows), plain.token_logprobs(rows)) < 1e-5
    assert max(widest) <= max(batch_tokens, 90)  # a single row or beginning may be longer than the budget


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_are_near(dtype: Any, tiny_model: Path) -> None:
    rows = candidates([40, 60, 90], 6)
    shared, plain = (TransformersLM(str(tiny_model), dtype=dtype, device="cpu", share=s) for s in (True, False))
    assert shared.shares
    assert worst(shared.token_logprobs(rows), plain.token_logprobs(rows)) < 0.1


ARCHITECTURES = {
    **{name: CONFIGS[name] for name in CONFIGS if name not in ("mamba", "modernbert decoder")},
    "mistral, sliding window": lambda: transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=24),
    "bloom, alibi": lambda: transformers.BloomConfig(**SMALL, n_head=4, n_layer=2),
    "phi, partial rotary": lambda: transformers.PhiConfig(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8, sliding_window=16),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str, tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "model", ARCHITECTURES[name]()))
    rows, _ = shuffled(candidates([20, 40, 45, 70], 5))
    lm = TransformersLM(folder, device="cpu", batch_tokens=400)
    assert lm.shares
    assert worst(lm.token_logprobs(rows), reference_logprobs(load_reference(folder), rows)) < 1e-4


def test_a_model_without_such_a_cache_does_not_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(save_tiny_model(tmp_path / "model", CONFIGS["mamba"]()))
    with caplog.at_level(logging.DEBUG, logger="curate"):
        assert not TransformersLM(folder, device="cpu").shares
    assert "MambaForCausalLM keeps no cache that rows could share" in caplog.text


def test_rotary_frequencies_that_follow_the_length_are_not_shared(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**(SMALL | {"max_position_embeddings": 64}), rope_parameters=rope)
    assert not TransformersLM(str(save_tiny_model(tmp_path / "dynamic", config)), device="cpu").shares


def test_a_cache_that_is_wrong_is_noticed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = prefix._update
    monkeypatch.setattr(prefix, "_update", lambda layer, which, *args: update(layer, which.flip(0) * 0, *args))
    assert not TransformersLM(str(tiny_model), device="cpu").shares


# --- threads, memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_the_groups(threads: int, plain: TransformersLM, tiny_model: Path) -> None:
    rows = candidates([40, 90, 60, 61], 7) + rows_of(12)
    other = TransformersLM(str(tiny_model), device="cpu", batch_tokens=200)
    used: set[int] = set()
    other._model.base_model.register_forward_pre_hook(lambda *_: used.add(threading.get_ident()))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert worst(other.token_logprobs(rows), plain.token_logprobs(rows)) < 1e-5
    finally:
        torch.set_num_threads(before)
    assert (threading.get_ident() in used) == (threads == 1)


def test_out_of_memory_while_sharing_is_answered_without(
    lm: TransformersLM, plain: TransformersLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = candidates([40, 60], 5) + rows_of(4)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(prefix.Prefixes, "states", full)
    assert worst(lm.token_logprobs(rows), plain.token_logprobs(rows)) < 1e-5
    assert "out of memory at 5 rows that share their beginnings; each is computed whole." in caplog.text


def test_another_error_is_not_swallowed(lm: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(prefix.Prefixes, "states", broken)
    with pytest.raises(RuntimeError, match="something else"):
        lm.token_logprobs(candidates([40], 3))


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_of_several_tokens_are_exact_and_share_their_prompt(lm: TransformersLM, seen: list[int]) -> None:
    rng = rng_for(0, "options")
    prompts = [rng.integers(0, 512, size=n) for n in (30, 70, 1, 2)]
    options = [[rng.integers(0, 512, size=n) for n in (1, 3, 2, 1, 5)], [rng.integers(0, 512, size=2)], [], [[7], [8]]]
    options = [[np.asarray(o) for o in its] for its in options]
    found = lm.option_logprobs(prompts, options)
    # The prompt of 30 once, but for its last token; five options of five at most; the prompt of 70 with its option, less
    # the last token; the prompt of 2 once for both options.  In no order: batches may be computed by several threads.
    assert sorted(seen) == [2, 25, 29, 71]
    loaded = load_reference(lm._model.config._name_or_path)
    for prompt, its, values in zip(prompts, options, found, strict=True):
        assert values is not None and values.dtype == np.float64 and values.shape == (len(its),)
        for option, value in zip(its, values, strict=True):
            ids = np.r_[prompt, option].astype(np.int64)
            (expected,) = reference_logprobs(loaded, [(ids, np.arange(ids.size) >= prompt.size)])
            assert abs(value - expected.sum()) < 1e-4
