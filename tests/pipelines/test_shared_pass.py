"""Stages of a run that share a forward pass: scored together, stored and resumed apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate import models
from curate.exceptions import ModelError
from curate.pipelines.executor import Distributed, visible_gpus
from curate.scorers.forward import ForwardScorer
from tests.conftest import rows_of
from tests.pipelines.helpers import computed, recipe, run

Write = Any


def scorers(model: Path, *names: str) -> dict[str, dict[str, Any]]:
    every = {
        "likelihood": {"use": "likelihood"},
        "ifd": {"use": "ifd"},
        "donod": {"use": "donod"},
        "rds": {"use": "hidden-states"},
        "plain": {"use": "likelihood", "template": "plain"},
    }
    return {n: {**every[n], "model": str(model), "device": "cpu"} for n in names}


def scores(job: Any, name: str) -> pl.DataFrame:
    (folder,) = Path(job.store.root, "scores").glob(f"{name}-*")
    return pl.read_parquet(folder / "*.parquet").sort("id")


@pytest.fixture
def made(pool_of: Write) -> Path:
    return pool_of(rows_of(40))


def test_together_and_alone_give_the_same_sidecars(made: Path, tiny_model: Path, tmp_path: Path) -> None:
    names = ("likelihood", "ifd", "donod")
    together = run(made, tmp_path / "together", scorers=scorers(tiny_model, *names, "plain"), select=[], shard_rows=16)
    assert together.manifest["stages"]["ifd"]["together_with"] == ["likelihood", "donod"]
    assert together.manifest["stages"]["plain"]["together_with"] == []
    engine = together.manifest["stages"]["donod"]["engines"]
    assert [(e["backend"].split()[0], e["dtype"], e["template"]) for e in engine] == [
        ("transformers", "float32", "chat")
    ]
    for name in names:
        alone = run(made, tmp_path / name, scorers=scorers(tiny_model, name), select=[], shard_rows=16)
        a, b = scores(together, name), scores(alone, name)
        assert a.columns == b.columns and a["id"].equals(b["id"]) and a["reason"].equals(b["reason"])
        for column in a.columns[1:-1]:
            np.testing.assert_allclose(a[column].to_numpy(), b[column].to_numpy(), rtol=1e-4, atol=1e-7)


def test_a_scorer_that_joins_later_computes_itself_alone(
    made: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does one whose shard is missing."""
    first = run(made, tmp_path / "run", scorers=scorers(tiny_model, "likelihood"), select=[], shard_rows=16)
    done = computed(first)
    asked = []
    whole = ForwardScorer.score_together.__func__  # type: ignore[attr-defined]

    def spy(cls: Any, its: Any, examples: Any) -> Any:
        asked.append([s.name for s in its])
        return whole(cls, its, examples)

    monkeypatch.setattr(ForwardScorer, "score_together", classmethod(spy))
    job = run(
        made, tmp_path / "run", scorers=scorers(tiny_model, "likelihood", "donod", "rds"), select=[], shard_rows=16
    )
    parts = done["likelihood"]
    assert computed(job) == {**done, "donod": parts, "rds": parts}
    assert asked == [["donod", "hidden-states"]] * parts
    assert job.manifest["stages"]["likelihood"]["computed_now"] == 0
    assert job.manifest["stages"]["donod"]["computed_now"] == 40

    (mark,) = Path(job.store.root, ".curate/done").glob("donod-*")
    sorted(mark.glob("*.json"))[0].unlink()
    again = run(
        made, tmp_path / "run", scorers=scorers(tiny_model, "likelihood", "donod", "rds"), select=[], shard_rows=16
    )
    assert computed(again)["donod"] == parts + 1 and computed(again)["rds"] == parts


def test_a_vector_that_was_cut_says_so_beside_it(made: Path, tiny_model: Path, tmp_path: Path) -> None:
    rds = {"rds": {"use": "hidden-states", "model": str(tiny_model), "max_tokens": 50, "long_rows": "truncate"}}
    job = run(made, tmp_path / "run", scorers=rds, select=[])
    (folder,) = Path(job.store.root, "features").glob("rds-*")
    assert pl.read_parquet(folder / "*.parquet")["cut"].max() > 0


def test_a_scorer_is_asked_before_anything_is_read(
    made: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(self: Any) -> None:
        raise ModelError("no engine here")

    monkeypatch.setattr(ForwardScorer, "check", absent)
    with pytest.raises(ModelError, match="scorer 'likelihood': no engine here"):
        run(made, tmp_path / "run", scorers=scorers(tiny_model, "likelihood"), select=[])
    assert not Path(tmp_path / "run" / "examples").exists()


def test_a_finished_run_needs_no_engine(
    made: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(made, tmp_path / "run", scorers=scorers(tiny_model, "likelihood"), select=[])

    def absent(self: Any) -> None:
        raise ModelError("no engine here")

    monkeypatch.setattr(ForwardScorer, "check", absent)
    run(made, tmp_path / "run", scorers=scorers(tiny_model, "likelihood"), select=[])


def test_models_are_closed_when_the_run_ends(made: Path, tiny_model: Path, tmp_path: Path) -> None:
    models.unload()
    run(made, tmp_path / "run", scorers=scorers(tiny_model, "likelihood"), select=[])
    assert not models.loading._loaded


# -- GPUs ----------------------------------------------------------------------------------------------------------------


def seen(_: int) -> tuple[str | None, int]:
    import os

    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


def test_the_gpus_that_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-1a,")
    assert visible_gpus() == ["2", "GPU-1a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: GPU-x)'\necho 'GPU 1: H200 (UUID: GPU-y)'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert visible_gpus() == ["0", "1"]


def test_models_go_to_workers_with_a_gpu_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with Distributed(workers=3) as cluster:
        assert (cluster.workers, cluster.gpu_workers) == (3, 2)
        found = [result for _, result in cluster.map(((str(i), seen, (i,)) for i in range(12)), model=True)]
        assert {devices for devices, _ in found} == {"5", "7"}
        assert len({pid for _, pid in found}) == 2  # a GPU, a process
    with Distributed(workers=2, gpus=1) as cluster:
        found = [result for _, result in cluster.map(((str(i), seen, (i,)) for i in range(6)), model=True)]
        assert {devices for devices, _ in found} == {"5"}


def test_no_gpu_is_used_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with Distributed(workers=1, gpus=0) as cluster:
        assert cluster.gpu_workers == 0
        assert [r[0] for _, r in cluster.map([("a", seen, (0,))], model=True)] == [""]


def test_the_recipe_says_how_many(made: Path) -> None:
    assert recipe(made).execution.gpus is None
    execution = json.loads(json.dumps(recipe(made).document()))["execution"]
    assert "gpus" in execution
