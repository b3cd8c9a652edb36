"""Texts that a model writes: what it would write alone, from the prompt's beginning, one token at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.exceptions import InputError, ModelError
from curate.models import generation
from curate.models.base import Generation, Sampling
from curate.models.generation import PADDING, Text, choose, together
from curate.models.reference import load_reference
from curate.models.template import load_tokenizer
from curate.models.transformers_lm import TransformersLM
from curate.seeding import rng_for
from tests.models.test_transformers_lm import CONFIGS, SMALL
from tests.models.tiny import save_tiny_model


def prompts_of(n: int, *, longest: int = 40, seed: int = 0) -> list[np.ndarray]:
    rng = rng_for(seed, "prompts")
    return [rng.integers(0, 512, size=rng.integers(1, longest)).astype(np.int32) for _ in range(n)]


def greedy_ids(folder: str, prompt: np.ndarray, n: int, ends: set[int]) -> list[int]:
    """The likeliest token each time, in float64, from the beginning each time."""
    loaded = load_reference(folder)
    ids = prompt.tolist()
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(loaded(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def lm(tiny_model: Path) -> TransformersLM:
    return TransformersLM(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


def texts(found: list[list[Generation] | None]) -> list[str]:
    assert all(its is not None for its in found)
    return [text.text for its in found for text in its or []]


# --- greedy ----------------------------------------------------------------------------------------------------------


def test_greedy_is_what_the_model_says_in_float64(lm: TransformersLM, tiny_model: Path, tokenizer: Any) -> None:
    prompts = prompts_of(7)
    found = lm.generate(prompts, Sampling(max_tokens=12))
    for prompt, its in zip(prompts, found, strict=True):
        assert its is not None and len(its) == 1
        ids = greedy_ids(str(tiny_model), prompt, 12, {2})
        ended = ids[-1] == 2
        assert its[0] == Generation(tokenizer.decode(ids, skip_special_tokens=True), len(ids), ended)


@pytest.mark.parametrize("name", [*CONFIGS, "dynamic rotary"])
def test_architectures(name: str, tmp_path: Path) -> None:
    """Those without a cache that can be padded are computed from the beginning for each token: slower, and right."""
    if name == "dynamic rotary":
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
        config = transformers.LlamaConfig(**(SMALL | {"max_position_embeddings": 64}), rope_parameters=rope)
    else:
        config = CONFIGS[name]()
    folder = str(save_tiny_model(tmp_path / "model", config))
    lm = TransformersLM(folder, device="cpu")
    assert lm._caches == (name not in ("mamba", "modernbert decoder", "dynamic rotary"))
    prompts = prompts_of(4)
    tokenizer = load_tokenizer(folder)
    found = lm.generate(prompts, Sampling(max_tokens=6))
    for prompt, its in zip(prompts, found, strict=True):
        assert its is not None
        assert its[0].text == tokenizer.decode(greedy_ids(folder, prompt, 6, {2}), skip_special_tokens=True)


def test_prompts_of_a_batch_and_texts_of_a_prompt_share_passes(tiny_model: Path) -> None:
    lm = TransformersLM(str(tiny_model), device="cpu")
    seen: list[tuple[int, ...]] = []
    lm._model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = [np.arange(10, 30), np.arange(40, 55)]
    lm.generate(prompts, Sampling(max_tokens=4, n=3, temperature=1.0))
    assert seen[0] == (2, 20) and all(shape[0] <= 6 and shape[1] == 1 for shape in seen[1:]) and len(seen) <= 4


@given(
    st.lists(st.integers(1, 2000), max_size=40),
    st.integers(1, 5),
    st.sampled_from([1, 48, 512]),
    st.integers(1, 20_000),
    st.integers(1, 3),
)
def test_prompts_are_written_together_within_the_budget(
    sizes: list[int], n: int, room: int, budget: int, threads: int
) -> None:
    found = together(sizes, Sampling(max_tokens=room, n=n), budget, threads)
    assert sorted(i for batch in found for i in batch) == list(range(len(sizes)))
    in_order = [sizes[i] for batch in found for i in batch]
    assert in_order == sorted(sizes, reverse=True)
    for batch in found:
        longest = sizes[batch[0]] + room
        assert len(batch) == 1 or len(batch) * n * longest <= budget
        assert longest - (sizes[batch[-1]] + room) <= max(PADDING[0] * longest, PADDING[1])


def test_threads_divide_many_texts_and_not_few() -> None:
    sampling = Sampling(max_tokens=50, n=4)
    assert list(map(len, together([50] * 40, sampling, 10**9, 2))) == [20, 20]
    assert list(map(len, together([50] * 10, sampling, 10**9, 2))) == [8, 2]
    assert list(map(len, together([50] * 8, sampling, 10**9, 2))) == [8]
    assert together([], sampling, 10**9, 2) == []


# --- sampled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_text_does_not_depend_on_its_company(top_p: float, lm: TransformersLM, tiny_model: Path) -> None:
    prompts = prompts_of(9)
    sampling = Sampling(max_tokens=15, temperature=0.8, top_p=top_p, n=2, seed=5)
    together = lm.generate(prompts, sampling)
    order = rng_for(0, "order").permutation(9)
    assert lm.generate([prompts[i] for i in order], sampling) == [together[i] for i in order]
    assert [lm.generate([prompt], sampling)[0] for prompt in prompts] == together
    small = TransformersLM(str(tiny_model), device="cpu", batch_tokens=30)
    assert small.generate(prompts, sampling) == together
    # More texts of a prompt: the first two stay. Another seed: others. One prompt twice: the same.
    more = lm.generate(prompts, Sampling(max_tokens=15, temperature=0.8, top_p=top_p, n=3, seed=5))
    assert [its and its[:2] for its in more] == together
    other = lm.generate(prompts, Sampling(max_tokens=15, temperature=0.8, top_p=top_p, n=2, seed=6))
    assert sum(a == b for a, b in zip(texts(other), texts(together), strict=True)) < 3
    assert lm.generate([prompts[3], prompts[3]], sampling) == [together[3]] * 2
    assert len(set(texts(together))) > 15


def test_the_number_of_threads_changes_nothing(lm: TransformersLM, tiny_model: Path) -> None:
    prompts = prompts_of(9)
    sampling = Sampling(max_tokens=8, temperature=0.8)
    expected = lm.generate(prompts, sampling)
    other = TransformersLM(str(tiny_model), device="cpu", batch_tokens=30)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert other.generate(prompts, sampling) == expected
    finally:
        torch.set_num_threads(before)


def test_each_text_has_a_stream_of_its_own() -> None:
    a, b = np.array([5, 6], dtype=np.int32), np.array([5, 7])
    names = [Text.of(prompt, k, Sampling(), None).name for prompt in (a, b) for k in (0, 1)]
    assert len(set(names)) == 4
    assert Text.of(a.astype(np.int64), 0, Sampling(n=9, temperature=1.0), 256).name == names[0]


def test_draws_follow_the_probabilities() -> None:
    """20,000 draws of five tokens; four standard errors."""
    p = np.array([0.05, 0.4, 0.3, 0.2, 0.05])
    for temperature, top_p in ((1.0, 1.0), (2.0, 1.0), (1.0, 0.75), (1.0, 0.7), (0.5, 0.9)):
        q = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
        order = np.argsort(-q)
        kept = order[np.cumsum(q[order]) - q[order] < top_p - 1e-12]
        expected = np.where(np.isin(np.arange(5), kept), q, 0)
        expected /= expected.sum()
        n = 20_000
        z = torch.from_numpy(np.log(p)).expand(n, 5)
        draws = rng_for(0, "draws").random(n)
        found = choose(z, Sampling(temperature=temperature, top_p=top_p), draws.tolist())
        counts = np.bincount(found.numpy(), minlength=5)
        assert (np.abs(counts / n - expected) <= 4 * np.sqrt(expected * (1 - expected) / n)).all(), (temperature, top_p)


def test_the_ends_of_a_draw_by_hand() -> None:
    z = torch.log(torch.tensor([[0.0, 0.5, 0.5, 0.0]])).repeat(4, 1)
    drawn = choose(z, Sampling(temperature=1.0), [0.0, 0.49, 0.51, float(np.nextafter(1, 0))])
    assert drawn.tolist() == [1, 1, 2, 2]
    drawn = choose(z, Sampling(temperature=1.0, top_p=0.4), [0.0, 0.3, 0.7, float(np.nextafter(1, 0))])
    assert len(set(drawn.tolist())) == 1  # one of the two reaches 0.4 alone
    assert choose(torch.tensor([[1.0, 3.0, 2.0]]), Sampling(), [0.0]).tolist() == [1]


@settings(max_examples=50)
@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40), st.floats(0, 1, exclude_max=True), st.data())
def test_sorting_a_few_tokens_first_draws_the_same(z: list[float], u: float, data: Any) -> None:
    sampling = Sampling(
        temperature=data.draw(st.sampled_from([0.3, 1.0])), top_p=data.draw(st.sampled_from([0.1, 0.9]))
    )
    whole = choose(torch.tensor([z]), sampling, [u])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_NUCLEUS", 3)
        few = choose(torch.tensor([z]), sampling, [u])
    assert z[int(whole)] == pytest.approx(z[int(few)], abs=1e-9)  # tokens of one probability may stand in another order


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_stop_is_cut_off(lm: TransformersLM, tokenizer: Any) -> None:
    prompts = prompts_of(5)
    whole = lm.generate(prompts, Sampling(max_tokens=20))
    text = (whole[0] or [])[0].text
    stop = text[len(text) // 2 :][:3]
    found = lm.generate(prompts, Sampling(max_tokens=20, stop=("never this", stop)))
    for its, long in zip(found, whole, strict=True):
        assert its is not None and long is not None
        if stop in long[0].text:
            assert its[0].finished and its[0].text == long[0].text.split(stop)[0]
            assert its[0].tokens <= long[0].tokens
        else:
            assert its == long
    first = (found[0] or [])[0]
    assert first.finished and first.tokens < 20


def test_the_earliest_stop_cuts_and_one_may_be_spelt_by_several_tokens(lm: TransformersLM) -> None:
    (whole,) = lm.generate([np.arange(5, 20)], Sampling(max_tokens=20))
    text = (whole or [])[0].text
    assert len(text) > 8
    (found,) = lm.generate([np.arange(5, 20)], Sampling(max_tokens=20, stop=(text[5:7], text[2:8], text[3])))
    assert (found or [])[0].text == text[: min(text.index(s) for s in (text[5:7], text[2:8], text[3]))]


def test_the_models_own_ends_are_those_of_its_files(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    prompt = np.arange(5, 20)
    ids = greedy_ids(str(folder), prompt, 6, {2})
    config = transformers.GenerationConfig(eos_token_id=[500, ids[3]])
    config.save_pretrained(folder)
    lm = TransformersLM(str(folder), device="cpu")
    (found,) = lm.generate([prompt], Sampling(max_tokens=6))
    tokenizer = load_tokenizer(str(folder))
    where = ids.index(ids[3])
    assert found == [Generation(tokenizer.decode(ids[:where], skip_special_tokens=True), where + 1, True)]


def test_the_context_and_the_limit_cut_and_are_not_an_end(lm: TransformersLM) -> None:
    found = lm.generate([np.arange(3, 9), np.arange(250) + 3, np.arange(256) + 3], Sampling(max_tokens=9))
    tokens = [its[0].tokens for its in found if its]
    assert tokens[1:] == [6, 0] and tokens[0] <= 9
    assert all(its and (its[0].finished or its[0].tokens in (9, 6, 0)) for its in found)
    assert found[2] == [Generation("", 0, False)]
    assert lm.generate([], Sampling()) == []


# --- bad input, memory -----------------------------------------------------------------------------------------------


def test_prompts_that_cannot_be_gone_on_from_are_refused(lm: TransformersLM) -> None:
    with pytest.raises(InputError, match=r"prompt 1: ids of shape \(0,\); at least one token, \(P,\), was asked."):
        lm.generate([np.arange(3), np.arange(0)], Sampling())
    with pytest.raises(InputError, match=r"prompt 0: 257 tokens; the model's context is 256\."):
        lm.generate([np.arange(257)], Sampling())
    with pytest.raises(InputError, match=r"prompt 0: ids from 3 to 512; the model's vocabulary has 512\."):
        lm.generate([np.array([3, 512])], Sampling())


def test_a_model_that_gives_nan_writes_nothing(tiny_model: Path) -> None:
    lm = TransformersLM(str(tiny_model), device="cpu")
    with torch.no_grad():
        lm._model.get_output_embeddings().weight[7, 0] = float("nan")
    with pytest.raises(ModelError, match=r"generate: the model's logits are NaN after 0 tokens of a text\."):
        lm.generate(prompts_of(2), Sampling(max_tokens=3))


@pytest.mark.parametrize("room", [3, 1, 0])
def test_out_of_memory_halves_and_changes_no_text(
    room: int, tiny_model: Path, lm: TransformersLM, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [p for p in prompts_of(6)]
    sampling = Sampling(max_tokens=6, temperature=1.0, n=2)
    expected = lm.generate(prompts, sampling)
    small = TransformersLM(str(tiny_model), device="cpu")

    def limit(_: Any, __: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[0] > room:
            raise torch.OutOfMemoryError("no room")

    small._model.base_model.register_forward_pre_hook(limit, with_kwargs=True)
    found = small.generate(prompts, sampling)
    assert found == (expected if room else [None] * 6)
    assert "out of memory at 12 texts together; they are written again, in halves." in caplog.text


def test_another_error_is_not_swallowed(tiny_model: Path) -> None:
    lm = TransformersLM(str(tiny_model), device="cpu")
    lm._model.base_model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        lm.generate(prompts_of(2), Sampling(max_tokens=3))
