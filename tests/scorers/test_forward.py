"""Scorers that read a forward pass: alone, and several over one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import models
from curate.exceptions import InputError, StageError
from curate.models.backends import HTTP, VLLM
from curate.models.reference import (
    load_reference,
    reference_entropy,
    reference_head_gradient,
    reference_logprobs,
    reference_step,
)
from curate.scorers.donod import DONOD
from curate.scorers.entropy import ResponseEntropy
from curate.scorers.forward import ForwardScorer
from curate.scorers.hidden_states import HiddenStates
from curate.scorers.ifd import IFD
from curate.scorers.likelihood import TargetLikelihood
from curate.scorers.nuclear_norm import NuclearNorm
from tests.models.tiny import CHATML, GENERATION, UNMARKED, save_tiny_model, tiny_tokenizer
from tests.scorers.test_likelihood import ask, pool, table

ALL: list[tuple[type[ForwardScorer], dict[str, Any]]] = [
    (TargetLikelihood, {}),
    (IFD, {}),
    (DONOD, {}),
    (ResponseEntropy, {}),
    (HiddenStates, {}),
    (NuclearNorm, {"positions": "response"}),
]


@pytest.fixture(autouse=True, scope="module")
def _unload() -> Iterator[None]:
    yield
    models.unload()


def make(cls: type[ForwardScorer], model: Path, **params: Any) -> Any:
    return cls(model=str(model), device="cpu", **params)


def encoded(model: Path, examples: pa.Table) -> list[models.EncodedRow]:
    return models.encoder(str(model)).encode(examples["messages"].to_pylist())


def assert_close(got: pa.Table, wanted: pa.Table, tolerance: float = 1e-5) -> None:
    assert got.schema == wanted.schema and got["reason"].equals(wanted["reason"])
    for name in got.column_names:
        if name != "reason":
            a, b = (np.array(t[name].drop_null().to_pylist(), dtype=np.float64) for t in (got, wanted))
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


# -- one pass, many scores -----------------------------------------------------------------------------------------------


def test_together_is_as_alone_and_the_model_runs_once_a_view(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        *pool(20)["messages"].to_pylist(),
        ask("a", "b", train=False),
        ask("a " * 300, "b"),
        [{"role": "user", "content": "a"}],
    ]
    examples = table(rows)
    scorers = [make(cls, tiny_model, **params) for cls, params in ALL]
    alone = [scorer.score(examples) for scorer in scorers]
    calls = []
    lm = scorers[0]._lm
    forward = lm.forward
    monkeypatch.setattr(
        lm, "forward", lambda rows, wants: calls.append((len(rows), set(wants))) or forward(rows, wants)
    )
    assert len({scorer.shared_work() for scorer in scorers}) == 1
    together = type(scorers[0]).score_together(scorers, examples)
    assert calls == [
        (20, {"logprobs", "entropy", "head-gradient", "hidden-weighted", "logit-norm"}),
        (20, {"logprobs"}),
    ]
    for got, wanted in zip(together, alone, strict=True):
        assert_close(got, wanted)


def test_what_shares_a_pass(tiny_model: Path) -> None:
    word = make(TargetLikelihood, tiny_model).shared_work()
    assert make(DONOD, tiny_model).shared_work() == word
    assert make(IFD, tiny_model, template="chat").shared_work() == word  # what "auto" came to
    for other in ({"template": "plain"}, {"turns": "last"}, {"dtype": "bfloat16"}, {"max_tokens": 9}):
        assert make(DONOD, tiny_model, **other).shared_work() != word, other


def test_no_rows_together(tiny_model: Path) -> None:
    scorers = [make(TargetLikelihood, tiny_model), make(HiddenStates, tiny_model)]
    assert [t.num_rows for t in TargetLikelihood.score_together(scorers, table([]))] == [0, 0]


# -- each against its definition -----------------------------------------------------------------------------------------


def test_entropy_is_the_mean_and_the_largest_over_the_vocabulary(tiny_model: Path) -> None:
    examples = pool(8)
    rows = encoded(tiny_model, examples)
    expected = reference_entropy(load_reference(str(tiny_model)), [(r.ids, r.mask) for r in rows])
    for got, values in zip(make(ResponseEntropy, tiny_model).score(examples).to_pylist(), expected, strict=True):
        assert got["mean_entropy"] == pytest.approx(values.mean(), abs=1e-5)
        assert got["max_entropy"] == pytest.approx(values.max(), abs=1e-5)
        assert got["tokens"] == values.size


def test_donod_is_the_step_that_is_taken(tiny_model: Path) -> None:
    examples, step = pool(5), 0.5  # a long one, so that the second-order part shows
    loaded = load_reference(str(tiny_model))
    weight = loaded.get_output_embeddings().weight.detach().numpy()
    found = make(DONOD, tiny_model, step=step).score(examples).to_pylist()
    for row, got in zip(encoded(tiny_model, examples), found, strict=True):
        don, nod = reference_step(weight, reference_head_gradient(loaded, (row.ids, row.mask)), step)
        assert got["don"] == pytest.approx(don, rel=1e-4) and got["nod"] == pytest.approx(nod, rel=1e-4)
        (logprobs,) = reference_logprobs(loaded, [(row.ids, row.mask)])
        assert got["loss"] == pytest.approx(-logprobs.mean(), abs=1e-5)


@pytest.mark.parametrize("pooling", ["weighted", "mean", "last"])
def test_hidden_states_are_pooled_over_all_tokens(pooling: str, tiny_model: Path) -> None:
    import torch

    examples = pool(6)
    base = load_reference(str(tiny_model)).base_model
    vectors = make(HiddenStates, tiny_model, pooling=pooling).score(examples)["vector"].to_pylist()
    for row, got in zip(encoded(tiny_model, examples), vectors, strict=True):
        with torch.no_grad():
            states = base(input_ids=torch.tensor([row.ids.tolist()]))[0][0].numpy()
        weights = {
            "weighted": np.arange(1.0, len(states) + 1),
            "mean": np.ones(len(states)),
            "last": np.eye(len(states))[-1],
        }[pooling]
        pooled = weights @ states / weights.sum()
        np.testing.assert_allclose(got, pooled / np.linalg.norm(pooled), atol=1e-5)


@pytest.mark.parametrize("positions", ["all", "response"])
def test_nuclear_norm_is_the_sum_of_singular_values(positions: str, tiny_model: Path) -> None:
    import torch

    examples = pool(6)
    loaded = load_reference(str(tiny_model))
    found = make(NuclearNorm, tiny_model, positions=positions).score(examples).to_pylist()
    for row, got in zip(encoded(tiny_model, examples), found, strict=True):
        with torch.no_grad():
            logits = loaded(input_ids=torch.tensor([row.ids.tolist()])).logits[0].numpy()
        if positions == "response":
            logits = logits[np.flatnonzero(row.mask) - 1]
        expected = np.linalg.svd(logits, compute_uv=False).sum()
        assert got["nuclear_norm"] == pytest.approx(expected, rel=1e-5)
        assert got["per_root_token"] == pytest.approx(expected / np.sqrt(len(logits)), rel=1e-5)
        assert got["positions"] == len(logits)


# -- IFD -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", [UNMARKED, GENERATION, CHATML, None], ids=["unmarked", "generation", "chatml", "plain"]
)
def test_the_response_alone_is_its_own_tokens_after_the_header(template: str | None, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", tokenizer=tiny_tokenizer(template))
    tokenizer = tiny_tokenizer(template)
    header = {CHATML: "<|im_start|>assistant\n", None: "Answer:"}.get(template, "<|assistant|>")
    two = [*ask("What is the capital?", "Paris."), *ask("And apples?", "There are 7.")]
    for messages, turns in ((two, "all"), (two, "last"), (ask("a", "b"), "all")):
        (row,) = models.encoder(str(folder), turns=turns).encode([messages])  # type: ignore[arg-type]
        alone = row.alone()
        assert alone is not None
        np.testing.assert_array_equal(alone.ids[alone.mask], row.ids[row.mask])
        before = tokenizer.decode(alone.ids[~alone.mask].tolist()).strip()
        count = 2 if messages is two and turns == "all" else 1
        assert before.removeprefix("<|bos|>").count(header.strip()) == count
        assert "What" not in before and "capital" not in before


def test_ifd_is_the_ratio_of_the_losses_over_the_same_tokens(tiny_model: Path) -> None:
    examples = table([ask("What is the capital?", "Paris."), ask("How many?", "7 apples are left")])
    loaded = load_reference(str(tiny_model))
    for row, got in zip(encoded(tiny_model, examples), make(IFD, tiny_model).score(examples).to_pylist(), strict=True):
        response = np.flatnonzero(row.mask)
        ids = np.r_[row.ids[:1], row.ids[response[0] - 1], row.ids[response]]  # <|bos|><|assistant|>, then the response
        (whole,) = reference_logprobs(loaded, [(row.ids, row.mask)])
        (alone,) = reference_logprobs(loaded, [(ids, np.arange(ids.size) >= 2)])
        assert got["tokens"] == whole.size == alone.size
        assert got["loss"] == pytest.approx(-whole.mean(), abs=1e-5)
        assert got["loss_alone"] == pytest.approx(-alone.mean(), abs=1e-5)
        assert got["ifd"] == pytest.approx(whole.mean() / alone.mean(), rel=1e-5)
        assert got["ifd_perplexity"] == pytest.approx(np.exp(alone.mean() - whole.mean()), rel=1e-5)


def test_a_response_that_nothing_stands_before_has_no_ifd(tmp_path: Path) -> None:
    bare = "{%- for m in messages -%}{{- m.content + '\\n' -}}{%- endfor -%}"
    folder = save_tiny_model(tmp_path / "bare", tokenizer=tiny_tokenizer(bare))
    examples = table([ask("a", "b")])
    out = make(IFD, folder).score(examples)
    assert out["reason"].to_pylist() == ["nothing stands before the response alone: no header in the template, no BOS"]
    likelihood = make(TargetLikelihood, folder)
    together = TargetLikelihood.score_together([likelihood, make(IFD, folder)], examples)
    assert together[0]["reason"].to_pylist() == [None]  # what one scorer lacks is not missing for another
    assert together[1]["reason"].to_pylist() == out["reason"].to_pylist()


# -- long rows -----------------------------------------------------------------------------------------------------------


def test_long_rows_are_dropped_cut_or_stop_the_run(tiny_model: Path) -> None:
    short, long = ask("a", "b"), ask("one two", "three four five six seven eight")
    examples = table([short, long])
    rows = encoded(tiny_model, examples)
    limit = rows[1].ids.size - 3
    dropped = make(TargetLikelihood, tiny_model, max_tokens=limit).score(examples)
    assert (
        dropped["reason"].to_pylist() == [None, f"longer than max_tokens={limit}"] and "cut" not in dropped.column_names
    )

    cut = make(TargetLikelihood, tiny_model, max_tokens=limit, long_rows="truncate").score(examples)
    assert cut["reason"].to_pylist() == [None, None] and cut["cut"].to_pylist() == [0, 3]
    mask = rows[1].mask[:limit]
    (expected,) = reference_logprobs(load_reference(str(tiny_model)), [(rows[1].ids[:limit], mask)])
    assert cut["mean_logprob"][1].as_py() == pytest.approx(expected.mean(), abs=1e-5)
    assert cut["tokens"][1].as_py() == mask.sum()

    with pytest.raises(StageError, match=f"more than max_tokens={limit:,}, and long_rows: stop was asked"):
        make(TargetLikelihood, tiny_model, max_tokens=limit, long_rows="stop").score(examples)


def test_a_row_whose_whole_response_is_cut_off_says_so(tiny_model: Path) -> None:
    out = make(TargetLikelihood, tiny_model, max_tokens=3, long_rows="truncate").score(table([ask("one two", "three")]))
    assert out["reason"].to_pylist() == ["no token in the loss before max_tokens=3"]


# -- backends and parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["vllm", VLLM(batch_tokens=64), HTTP(use="http", url="http://localhost:1/v1")])
def test_a_backend_that_cannot_give_what_is_needed_is_refused_at_once(backend: Any, tiny_model: Path) -> None:
    for cls in (DONOD, ResponseEntropy, HiddenStates, NuclearNorm):
        with pytest.raises(InputError, match=r"Backends that give it: transformers\."):
            make(cls, tiny_model, backend=backend)
    for cls in (TargetLikelihood, IFD):
        make(cls, tiny_model, backend=backend)


def test_a_servers_type_is_its_own(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="dtype='bfloat16' was asked of a server"):
        make(TargetLikelihood, tiny_model, dtype="bfloat16", backend=HTTP(use="http", url="http://h/v1"))


def test_the_backend_is_part_of_the_identity(tiny_model: Path) -> None:
    plain = make(TargetLikelihood, tiny_model).identity()
    assert plain["backend"] == {"use": "transformers"} and json.loads(json.dumps(plain)) == plain
    assert make(TargetLikelihood, tiny_model, backend="vllm").identity()["backend"] == {"use": "vllm"}
    settings = make(TargetLikelihood, tiny_model, backend=VLLM(batch_tokens=64)).identity()
    assert settings["backend"] == {"use": "vllm"}  # how an engine is set up changes no number beyond rounding
    server = make(TargetLikelihood, tiny_model, backend=HTTP(use="http", url="http://h/v1/", served_as="m"))
    assert server.identity()["backend"] == {"use": "http", "url": "http://h/v1", "served_as": "m"}


@pytest.mark.parametrize(
    ("cls", "params", "text"),
    [
        (TargetLikelihood, {"min_k": 0.0}, "min_k=0.0; a share above 0"),
        (DONOD, {"step": -1.0}, "step=-1.0; a finite number above 0"),
        (IFD, {"max_tokens": 0}, "ifd: max_tokens=0; it must be at least 1"),
    ],
)
def test_parameters_that_make_no_sense(cls: Any, params: dict[str, Any], text: str, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=text):
        make(cls, tiny_model, **params)


def test_the_lowest_tokens(tiny_model: Path) -> None:
    examples = pool(6)
    rows = encoded(tiny_model, examples)
    expected = reference_logprobs(load_reference(str(tiny_model)), [(r.ids, r.mask) for r in rows])
    for share in (0.2, 0.5, 1.0):
        found = make(TargetLikelihood, tiny_model, min_k=share).score(examples)["min_k_logprob"].to_pylist()
        for got, values in zip(found, expected, strict=True):
            k = int(np.ceil(share * values.size))
            assert got == pytest.approx(np.sort(values)[:k].mean(), abs=1e-5)
