"""An evaluation of a run on S3 is that of the same run on a disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curate.evaluation.evaluate import Evaluation
from curate.pipelines.run import Run
from curate.recipe import Recipe
from tests.evaluation.test_evaluate import made, model, pool
from tests.pipelines.conftest import bucket, server

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("moto")

__all__ = ["bucket", "model", "server"]  # fixtures


def test_a_run_on_s3_is_evaluated_there(
    bucket: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool(tmp_path, rows=40)
    here = made(tmp_path, select=[{"use": "random", "budget": 10}])
    there = Run(Recipe.from_dict(here.recipe.document(), tmp_path), f"s3://{bucket}/runs/one", "sync", quiet=True)
    there.execute()
    settings = {
        "model": model,
        "training": {"tokens_per_step": 128, "rate": 3e-3},
        "seeds": 2,
        "held_out": 4,
        "generate": False,
        "baselines": ["random"],
    }
    local = Evaluation([here.store], None, settings, "sync", None, True).execute()
    found = Evaluation([f"s3://{bucket}/runs/one"], None, settings, "sync", None, True).execute()
    assert found.place == f"s3://{bucket}/runs/one/evaluation"
    assert [t["trial"] for t in found.trials] == [t["trial"] for t in local.trials]
    for ours, theirs in zip(found.comparisons, local.comparisons, strict=True):
        np.testing.assert_allclose(ours.evidence.loss.mean, theirs.evidence.loss.mean, rtol=1e-5)
    assert "kept by s3://" in str(found.about)
    monkeypatch.setattr("curate.models.proxy.train", None)  # the same again trains nothing
    again = Evaluation([f"s3://{bucket}/runs/one"], None, settings, "sync", None, True).execute()
    np.testing.assert_array_equal(again.comparisons[0].evidence.loss.gain, found.comparisons[0].evidence.loss.gain)
