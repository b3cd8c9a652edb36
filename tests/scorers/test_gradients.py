"""Gradient features as a scorer: what it stores is LESS's influence, whatever made the checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.exceptions import InputError, ModelError, StageError
from curate.models import checkpoints
from curate.models.gradients import Adam, GradientLM
from curate.models.lora import Lora
from curate.models.projection import Projection
from curate.models.warmup import WarmUp
from curate.scorers.gradients import Gradients
from curate.testing import odd_examples

SMALL = WarmUp(epochs=2, batch=4, rate=1e-2, lora=Lora(r=2, alpha=4))


@pytest.fixture(scope="module")
def examples() -> pa.Table:
    table = odd_examples()
    return table.filter(pa.compute.less(table["chars"], 200)).slice(0, 12).combine_chunks()


def matrix(scored: pa.Table) -> np.ndarray:
    vectors = scored.column("vector").combine_chunks().drop_null()
    return np.asarray(vectors.flatten()).reshape(len(vectors), -1).astype(np.float64)


def fitted(examples: pa.Table, model: Path, **changes: Any) -> Gradients:
    settings = {"device": "cpu", "dims": 256, "warm_up": SMALL, "sample": "100%", **changes}
    scorer = Gradients(model=str(model), **settings)
    if scorer.fit_rows:
        scorer.load(scorer.fit(examples.select(list(scorer.reads))))
    return scorer


def test_the_dot_product_of_both_sides_is_less(examples: pa.Table, tiny_model: Path) -> None:
    """Σ_t w_t cos(Γ_t, g_t), from the parts, one by one."""
    pool = fitted(examples, tiny_model)
    targets = pool.for_targets()
    targets.load(pool.fit(examples.select(list(pool.reads))))
    found = matrix(pool.score(examples)) @ matrix(targets.score(examples)).T
    lm = GradientLM(str(tiny_model), lora=SMALL.lora, device="cpu")
    projection = Projection(256)
    rows, reasons, _ = pool._rows(examples, lm.context)
    pairs = [(row.ids, row.mask) for row, reason in zip(rows, reasons, strict=True) if reason is None]
    rates = np.array([c.rate for c in pool._checkpoints or ()])
    expected = np.zeros_like(found)
    for checkpoint, share in zip(pool._checkpoints or (), rates / rates.sum(), strict=True):
        lm.put(checkpoint.weights)
        assert checkpoint.first is not None and checkpoint.second is not None
        steps = lm.features(pairs, projection, Adam(checkpoint.first, checkpoint.second))[0]
        plain = lm.features(pairs, projection)[0]
        expected += share * (steps.astype(np.float64) @ plain.T)
    assert found.shape == expected.shape and np.abs(found - expected).max() < 2e-3  # float16
    assert np.abs(np.linalg.norm(matrix(pool.score(examples)), axis=1) - 1).max() < 2e-3
    assert rates[0] != rates[1] and not np.allclose(found, found.T, atol=1e-2)


def test_a_fit_that_is_stopped_goes_on_to_the_same_bits(examples: pa.Table, tiny_model: Path) -> None:
    scorer = Gradients(model=str(tiny_model), device="cpu", dims=8, warm_up=SMALL, sample="100%")
    sample = examples.select(list(scorer.reads))
    whole = scorer.fit(sample)
    first = scorer.fit_step(0, sample, None)
    again = Gradients(**scorer.params()).fit_step(1, sample, {k: v.copy() for k, v in first.items()})
    assert sorted(again) == sorted(whole)
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def test_the_sample_is_drawn_by_the_seed(tiny_model: Path) -> None:
    def drawn(**changes: Any) -> list[int]:
        return Gradients(model=str(tiny_model), **changes).fit_sample(200).tolist()

    assert len(drawn()) == 10 and drawn() == drawn() != drawn(seed=1)
    assert len(drawn(sample=7)) == 7 and drawn(sample="100%") == list(range(200)) == drawn(sample=500)
    assert len(Gradients(model=str(tiny_model)).fit_sample(1)) == 1


def test_checkpoints_from_folders_are_the_warm_up_that_wrote_them(
    examples: pa.Table, tiny_model: Path, tmp_path: Path
) -> None:
    trained = fitted(examples, tiny_model)
    folders = []
    for t, checkpoint in enumerate(trained._checkpoints or ()):
        folders.append(str(tmp_path / f"epoch-{t}"))
        checkpoints.write(folders[-1], checkpoint, model=str(tiny_model))
    given = fitted(examples, tiny_model, warm_up=None, checkpoints=folders)
    assert given.score(examples).equals(trained.score(examples))
    assert given.identity() == replace(given, checkpoints=list(folders)).identity()
    one = fitted(examples, tiny_model, warm_up=None, checkpoints=folders, weights=[1.0, 0.0])
    found = matrix(one.score(examples))
    assert np.abs(found[:, 256:]).max() == 0 and np.abs(np.linalg.norm(found, axis=1) - 1).max() < 2e-3
    other = fitted(examples, tiny_model, warm_up=None, checkpoints=folders[:1])
    assert other.identity() != given.identity()
    assert "2 checkpoints that were given" in given.describe()["adapter"]


def test_without_a_warm_up_it_says_so(examples: pa.Table, tiny_model: Path) -> None:
    scorer = fitted(examples, tiny_model, warm_up=None, optimizer="sgd", lora=Lora(r=2))
    assert scorer.fit_rows == 0 and scorer.columns[0].dtype == "float16[256]"
    assert matrix(scorer.score(examples)).shape[1] == 256
    assert scorer.describe()["adapter"] == "no warm-up"
    assert scorer.describe()["projection"] == "d 256, law count-sketch, seed 0"


def test_the_laws_agree_within_their_error(examples: pa.Table, tiny_model: Path) -> None:
    sketch, dense = (fitted(examples, tiny_model, dims=2048, projection=law) for law in ("count-sketch", "rademacher"))
    a, b = (matrix(s.score(examples)) for s in (sketch, dense))
    assert np.abs(a @ a.T - b @ b.T).max() < 6 * np.sqrt(2 / 2048) * np.sqrt(2)


def test_rows_without_a_gradient_are_null(examples: pa.Table, tiny_model: Path) -> None:
    short = fitted(examples, tiny_model, max_tokens=20)
    scored = short.score(examples)
    reasons = scored.column("reason").to_pylist()
    assert "longer than max_tokens=20" in reasons
    assert [v is None for v in scored.column("vector").to_pylist()] == [r is not None for r in reasons]


def test_a_warm_up_without_a_usable_row_stops(examples: pa.Table, tiny_model: Path) -> None:
    with pytest.raises(StageError, match="of 12 rows of the warm-up none can be trained on: longer than max_tokens=2"):
        fitted(examples, tiny_model, max_tokens=2)


def test_what_cannot_be_meant(tiny_model: Path, tmp_path: Path) -> None:
    model = str(tiny_model)
    for params, told in [
        ({"warm_up": None}, "without a warm-up Adam has no averages; add optimizer: sgd"),
        ({"dims": 0}, "dims=0"),
        ({"checkpoints": []}, "names no adapter"),
        ({"layers": ["q_proj"]}, "add warm_up: null"),
        ({"lora": Lora()}, "write it into warm_up"),
        ({"warm_up": WarmUp(seed=3)}, "seed 3 of the warm-up was asked beside seed 0"),
        ({"weights": [1.0]}, "4 checkpoints have 1 weights"),
        ({"sample": "5M tokens"}, "rows or a share of them was asked"),
    ]:
        with pytest.raises(InputError, match=told):
            Gradients(model=model, **params)


def test_an_adapter_without_the_optimizers_state_is_refused_for_adam(
    examples: pa.Table, tiny_model: Path, tmp_path: Path
) -> None:
    trained = fitted(examples, tiny_model)
    (bare, _) = trained._checkpoints or ()
    checkpoints.write(str(tmp_path / "bare"), replace(bare, first=None, second=None), model=str(tiny_model))
    with pytest.raises(ModelError, match=r"one has none\. Save it beside the adapter"):
        fitted(examples, tiny_model, warm_up=None, checkpoints=[str(tmp_path / "bare")]).score(examples)
    plain = fitted(examples, tiny_model, warm_up=None, checkpoints=[str(tmp_path / "bare")], optimizer="sgd")
    assert matrix(plain.score(examples)).shape[1] == 256
