"""A real vLLM engine, on the CPU; one for all tests that need no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.exceptions import InputError, ModelError
from curate.models import vllm_engine, vllm_lm
from curate.models.backends import VLLM
from curate.models.base import Sampling
from curate.models.reference import load_reference, reference_logprobs
from curate.models.transformers_lm import TransformersLM
from curate.models.vllm_engine import check_engine
from curate.models.vllm_lm import VLLMLM
from curate.scorers.donod import DONOD
from curate.scorers.ifd import IFD
from curate.scorers.likelihood import TargetLikelihood
from tests.engines import PYTHON, gone, hosts, needs_vllm, wait_until
from tests.scorers.test_likelihood import ask, pool, table

SPEC = VLLM(python=PYTHON or None, batch_tokens=512)


@pytest.fixture(scope="module")
def engine(example_model: str) -> Iterator[VLLMLM]:
    lm = VLLMLM(example_model, SPEC)
    yield lm
    mine = hosts(os.getpid())
    assert mine
    lm.close()
    lm.close()
    assert gone(mine) and not Path(lm._log.name).exists()
    with pytest.raises(ModelError, match="is closed"):
        lm.token_logprobs(rows_of(1))


def rows_of(n: int, longest: int = 300) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(3)
    rows = []
    for size in rng.integers(2, longest, n):
        mask = rng.random(size) < 0.5
        mask[0], mask[-1] = False, True
        rows.append((rng.integers(10, 4000, size).astype(np.int32), mask))
    return rows


def worst(found: Any, expected: Any) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


# -- numbers -------------------------------------------------------------------------------------------------------------


@needs_vllm
def test_float32_is_within_1e_3_nats_of_the_reference(engine: VLLMLM, example_model: str) -> None:
    rows = rows_of(12)
    full = np.ones(2048, dtype=bool)
    full[0] = False
    rows.append((np.random.default_rng(0).integers(10, 4000, 2048).astype(np.int32), full))  # exactly the context
    expected = reference_logprobs(load_reference(example_model), rows)
    assert (engine.dtype, engine.device, engine.context, engine.vocab_size) == ("float32", "cpu", 2048, 4096)
    assert engine.describe()["backend"].startswith("vllm 0.")
    assert worst(engine.token_logprobs(rows), expected) < 1e-3


@needs_vllm
def test_order_and_company_change_nothing(engine: VLLMLM) -> None:
    rows = rows_of(40)
    together = engine.token_logprobs(rows)
    order = np.random.default_rng(1).permutation(len(rows))
    for i, found in zip(order, engine.token_logprobs([rows[i] for i in order]), strict=True):
        np.testing.assert_allclose(found, together[i], atol=1e-4)
    assert worst([engine.token_logprobs([row])[0] for row in rows[:5]], together[:5]) < 1e-4
    assert engine.token_logprobs([]) == []
    ids = np.array([5, 6, 7], dtype=np.int32)
    (nothing,) = engine.token_logprobs([(ids, np.zeros(3, dtype=bool))])
    assert nothing is not None and nothing.size == 0


@needs_vllm
def test_no_more_than_some_batches_are_with_the_engine(engine: VLLMLM, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, 0
    send, receive = engine._send, engine._receive

    def sent(message: dict[str, Any]) -> None:
        nonlocal under_way, most
        under_way += len(message["ids"])
        most = max(most, under_way)
        sizes[message["id"]] = len(message["ids"])
        send(message)

    def received() -> dict[str, Any]:
        nonlocal under_way
        answer = receive()
        under_way -= sizes[answer["id"]]
        return answer

    sizes: dict[int, int] = {}
    monkeypatch.setattr(engine, "_send", sent)
    monkeypatch.setattr(engine, "_receive", received)
    rows = rows_of(60)
    engine.token_logprobs(rows)
    assert sum(len(ids) for ids, _ in rows) > 2 * most and 512 < most <= vllm_engine.AHEAD * 512


@needs_vllm
def test_options_of_one_token_and_of_several(engine: VLLMLM, example_model: str) -> None:
    rng = np.random.default_rng(5)
    prompts = [rng.integers(10, 4000, n).astype(np.int32) for n in (3, 40, 7)]
    options = [
        [np.array([11]), np.array([12]), np.array([13])],
        [np.array([11]), np.array([12, 13, 14])],
        [np.array([15])],
    ]
    found = engine.option_logprobs(prompts, options)
    loaded = load_reference(example_model)
    for prompt, its, values in zip(prompts, options, found, strict=True):
        for option, value in zip(its, values, strict=True):
            ids = np.concatenate([prompt, option])
            (expected,) = reference_logprobs(loaded, [(ids, np.arange(ids.size) >= prompt.size)])
            assert value == pytest.approx(expected.sum(), abs=1e-3)


@needs_vllm
def test_generations(engine: VLLMLM, example_model: str) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 4000, n).astype(np.int32) for n in (50, 300, 20)]
    greedy = engine.generate(prompts, Sampling(max_tokens=16))
    theirs = TransformersLM(example_model, device="cpu").generate(prompts, Sampling(max_tokens=16))
    assert [g[0].text for g in greedy] == [g[0].text for g in theirs]
    assert all(1 <= g[0].tokens <= 16 for g in greedy)
    drawn = Sampling(max_tokens=12, temperature=1.0, n=3, seed=4)
    first = engine.generate(prompts, drawn)
    assert len({g.text for g in first[1]}) == 3  # texts of one prompt have seeds of their own
    assert engine.generate(prompts[1:2], drawn)[0] == first[1]  # whatever comes along
    assert engine.generate(prompts[1:2], Sampling(max_tokens=12, temperature=1.0, n=3, seed=5))[0] != first[1]
    word = max(greedy[0][0].text.split(), key=len)
    (stopped,) = engine.generate(prompts[:1], Sampling(max_tokens=16, stop=(word,)))
    assert stopped[0].finished and word not in stopped[0].text
    full = np.full(2048, 5, dtype=np.int32)
    assert engine.generate([full, prompts[0]], Sampling(max_tokens=4))[0] is None


# -- scorers -------------------------------------------------------------------------------------------------------------


@needs_vllm
def test_scorers_give_what_transformers_gives(
    engine: VLLMLM, example_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.models.load", lambda *_, **__: engine)
    monkeypatch.setattr("curate.models.release", lambda lm: None)
    examples = table([*pool(12)["messages"].to_pylist(), ask("a " * 3000, "b"), ask("a", "b", train=False)])
    for cls in (TargetLikelihood, IFD):
        ours = cls(model=example_model, backend=SPEC).score(examples)
        monkeypatch.undo()
        theirs = cls(model=example_model, device="cpu").score(examples)
        monkeypatch.setattr("curate.models.load", lambda *_, **__: engine)
        assert ours["reason"].equals(theirs["reason"]) and ours["tokens"].equals(theirs["tokens"])
        for name in ours.column_names[:2]:
            a, b = (np.array(t[name].drop_null().to_pylist()) for t in (ours, theirs))
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    with pytest.raises(
        InputError, match="donod asks head-gradient of a forward pass; the backend 'vllm' gives logprobs"
    ):
        DONOD(model=example_model, backend=SPEC)


# -- bad input and bad ends ----------------------------------------------------------------------------------------------


@needs_vllm
def test_rows_that_make_no_sense(engine: VLLMLM) -> None:
    ids, mask = np.array([5, 6, 7], dtype=np.int32), np.array([False, True, True])
    with pytest.raises(InputError, match="the first token is to be scored"):
        engine.token_logprobs([(ids, np.array([True, True, True]))])
    with pytest.raises(InputError, match="the model's vocabulary has 4096"):
        engine.token_logprobs([(np.array([5, 6, 4096], dtype=np.int32), mask)])
    long = np.full(2049, 5, dtype=np.int32)
    with pytest.raises(InputError, match="2049 tokens; the model's context is 2048"):
        engine.token_logprobs([(long, np.arange(2049) > 3)])
    with pytest.raises(ModelError, match="entropy were asked, but vLLM gives log-probabilities only"):
        engine.forward([(ids, mask)], {"entropy"})


@needs_vllm
def test_a_row_that_the_engine_refuses_has_its_reason(engine: VLLMLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because this side believes in a longer context than the engine has."""
    monkeypatch.setattr(engine, "context", 4096)
    rows = [*rows_of(3), (np.full(3000, 7, dtype=np.int32), np.arange(3000) > 5), *rows_of(2)]
    found = engine.forward(rows, {"logprobs"})
    assert [f.reason is None for f in found] == [True, True, True, False, True, True]  # type: ignore[union-attr]
    assert found[3].reason.startswith("vLLM refuses the row: ")  # type: ignore[union-attr]
    assert engine.token_logprobs(rows)[3] is None
    prompt = np.full(3000, 7, dtype=np.int32)
    assert engine.option_logprobs([prompt, prompt[:5]], [[np.array([5])], [np.array([5])]])[0] is None
    assert engine.generate([prompt, prompt[:5]], Sampling(max_tokens=2))[0] is None


@needs_vllm
def test_bfloat16_and_an_engine_that_is_killed(example_model: str) -> None:
    lm = VLLMLM(example_model, SPEC, dtype="bfloat16")
    try:
        assert lm.dtype == "bfloat16"
        rows = rows_of(12)
        expected = reference_logprobs(load_reference(example_model), rows)
        found = lm.token_logprobs(rows)
        assert worst(found, expected) < 0.4
        means = [abs(a.mean() - b.mean()) for a, b in zip(found, expected, strict=True)]
        assert max(means) < 0.05
        os.kill(lm._process.pid, signal.SIGKILL)
        with pytest.raises(
            ModelError, match=r"ended in the middle of its work \(exit -9\); run the same command again"
        ):
            lm.token_logprobs(rows)
    finally:
        lm.close()
    assert not Path(lm._log.name).exists()


@needs_vllm
@pytest.mark.parametrize("moment", ["while loading", "at rest"])
def test_an_engine_ends_with_the_process_that_asked_for_it(moment: str, example_model: str, tmp_path: Path) -> None:
    """By kill -9, which leaves no time to close anything."""
    code = (
        "import sys, time\n"
        "from curate.models.vllm_lm import VLLMLM\n"
        "from curate.models.backends import VLLM\n"
        f"lm = VLLMLM({example_model!r}, VLLM(python={PYTHON!r}))\n"
        "print('ready', flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    wait_until(lambda: hosts(process.pid))
    if moment == "at rest":
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    mine = hosts(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: gone(mine), seconds=20)


@needs_vllm
def test_an_engine_that_does_not_start_says_why(example_model: str) -> None:
    with pytest.raises(
        ModelError, match=r"(?s)the vLLM engine of .* failed: .*divisible by tensor.*\nThe end of its log:"
    ):
        VLLMLM(example_model, VLLM(python=PYTHON, tensor_parallel=3))  # three do not divide the heads
    assert not hosts(os.getpid())[1:]


# -- without an engine ---------------------------------------------------------------------------------------------------


def test_an_interpreter_without_vllm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"x asks for the backend vllm, but there is no interpreter '/no/such'; pip"):
        check_engine(VLLM(python="/no/such"), caller="x")
    with pytest.raises(ModelError, match=r"finds no package vllm; pip install 'curate-sft\[vllm\]'"):
        check_engine(VLLM(python=sys.executable), caller="x")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ModelError, match="fails: out of order"):
        check_engine(VLLM(python=str(broken)), caller="x")


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"gpu_memory": 0.0}, "gpu_memory=0.0"), ({"batch_tokens": 0}, "batch_tokens=0"), ({"context": 0}, "context=0")],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        VLLM(**settings)


def test_parameters_are_counted_from_the_headers(example_model: str) -> None:
    lm = TransformersLM(example_model, device="cpu")
    assert vllm_lm._parameters(Path(example_model)) == sum(p.numel() for p in lm._model.parameters())
