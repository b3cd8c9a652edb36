"""Exports of runs: the kept rows in the dataset's order, whole or not at all, once."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import curate
from curate.cli import main
from curate.exceptions import InputError, RecipeError, RunDirectoryError, RunError
from curate.exporters import TRL, Alpaca, Axolotl
from curate.pipelines import handover
from curate.pipelines.run import Run
from curate.recipe import Recipe, exporter_of
from curate.testing import odd_examples
from tests.conftest import conversation, rows_of
from tests.exporters.helpers import LONG, MARKED, lines
from tests.pipelines.helpers import run as run_pool

TOP = [{"use": "top-k", "on": "rating", "budget": "50%"}]


@pytest.fixture
def job(pool_of: Any, tmp_path: Path) -> Run:
    """A run that kept half of 120 rows, two of them with marks."""
    rows = [*rows_of(118), {**LONG, "rating": 99.0}, {**MARKED, "rating": 98.0}]
    return run_pool(pool_of(rows, 3), tmp_path / "run", select=TOP, shard_rows=16)


def dataset(job: Run) -> list[Any]:
    files = sorted(Path(job.store.root, "dataset").iterdir())
    return [row["messages"] for f in files for row in pq.read_table(f).to_pylist()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_kept_rows_in_the_order_of_the_dataset(job: Run) -> None:
    made = curate.export(job, TRL(), file="jsonl", shard_rows=25)
    assert (made.rows, made.refused, made.reasons) == (59, 1, {"loss-mask": 1})
    assert made.files == [f"data/train-{i:05d}-of-00003.jsonl" for i in range(3)]
    found = [row["messages"] for row in lines(Path(made.path))]
    wanted = [[{k: v for k, v in t.items() if v is not None} for t in messages] for messages in dataset(job)]
    refused = pq.read_table(f"{made.path}/refused.parquet").to_pylist()
    assert [r["place"] for r in refused] == [59] and refused[0]["reason"] == "loss-mask"
    assert found == wanted[:59]
    ids = [r["id"] for f in sorted(Path(job.store.root, "provenance").iterdir()) for r in pq.read_table(f).to_pylist()]
    assert refused[0]["id"] == ids[59]


@pytest.mark.parametrize("file", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"])
def test_neither_the_shards_of_the_run_nor_of_the_export_matter(pool_of: Any, tmp_path: Path, file: str) -> None:
    rows = [*rows_of(50), LONG, MARKED]
    trees = []
    for shard_rows in (7, 64):
        done = run_pool(pool_of(rows, 2), tmp_path / str(shard_rows), select=[], scorers={}, shard_rows=shard_rows)
        trees.append(tree(Path(curate.export(done, Axolotl(), tmp_path / f"out-{shard_rows}", file=file).path)))
    names = [n for n in trees[0] if n != "export.json"]
    assert trees[0].keys() == trees[1].keys() and all(trees[0][n] == trees[1][n] for n in names)
    small = curate.export(done, Axolotl(), tmp_path / "small", file=file, shard_rows=9)
    assert len(small.files) == 6
    texts = [
        curate.read(f"{p}/data").examples().column("content_key") for p in (tmp_path / "small", tmp_path / "out-64")
    ]
    assert texts[0].equals(texts[1])


def test_nothing_is_done_twice_and_nothing_stale_stays(job: Run) -> None:
    first = curate.export(job, TRL(), file="jsonl")
    before = tree(Path(first.path))
    stamp = os.stat(f"{first.path}/export.json").st_mtime_ns
    again = curate.export(str(job.store.root), TRL(), file="jsonl")
    assert again.unchanged and again.text.endswith("nothing changed")
    assert os.stat(f"{first.path}/export.json").st_mtime_ns == stamp
    assert dataclasses.replace(again, unchanged=False) == first
    other = curate.export(job, TRL(layout="prompt-completion", turns="last"), shard_rows=30)
    assert not other.unchanged and set(tree(Path(first.path))).isdisjoint(set(before) - {"export.json", "train_trl.py"})
    assert other.refused == 0 and "refused.parquet" not in tree(Path(first.path))


def test_an_export_that_was_stopped_goes_on(job: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = curate.export(job, TRL(), tmp_path / "whole", shard_rows=20)
    written: list[int] = []
    rows = TRL.rows

    def stops(self: TRL, *args: Any) -> Any:
        written.append(1)
        if len(written) > 3:
            raise KeyboardInterrupt
        return rows(self, *args)

    monkeypatch.setattr(TRL, "rows", stops)
    with pytest.raises(KeyboardInterrupt):
        curate.export(job, TRL(), tmp_path / "out", shard_rows=20)
    assert not (tmp_path / "out").exists()
    there = sorted(p.name for p in (tmp_path / ".out.part" / "data").iterdir())
    assert there and all(name.endswith(".parquet") for name in there)
    stamps = {name: (tmp_path / ".out.part/data" / name).stat().st_mtime_ns for name in there}
    monkeypatch.setattr(TRL, "rows", rows)
    curate.export(job, TRL(), tmp_path / "out", shard_rows=20)
    assert {name: (tmp_path / "out/data" / name).stat().st_mtime_ns for name in there} == stamps
    assert tree(tmp_path / "out") == tree(Path(whole.path)) and not (tmp_path / ".out.part").exists()


def test_another_export_does_not_take_up_what_one_left(
    job: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(handover._Place, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            curate.export(job, TRL(), tmp_path / "out")
    made = curate.export(job, TRL(layout="prompt-completion", turns="last"), tmp_path / "out")
    assert pq.read_schema(f"{made.path}/{made.files[0]}").names == ["prompt", "completion"]


def test_strict_and_nothing_to_write(job: Run, tmp_path: Path) -> None:
    said = r"every row was asked for \(strict\), and some cannot be held \(1 of 60 rows: 1 loss-mask; the first: .*"
    with pytest.raises(RunError, match=said):
        curate.export(job, TRL(), tmp_path / "out", strict=True)
    with pytest.raises(RunError, match=r"preference: none of the rows can be held \(60 of 60 rows: 60 no-rejected"):
        curate.export(job, exporter_of("preference", {}), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.part").exists()
    assert curate.export(job, TRL(), tmp_path / "out").refused == 1
    with pytest.raises(RunError, match="strict"):  # also when it is there
        curate.export(job, TRL(), tmp_path / "out", strict=True)


def test_places_that_are_no_place(job: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        RunDirectoryError, match=r"mine is not empty and is no export of curate \(it holds thesis.txt\)"
    ):
        curate.export(job, TRL(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(RunDirectoryError, match="is a file; an export is a folder"):
        curate.export(job, TRL(), tmp_path / "mine" / "thesis.txt")
    with pytest.raises(RunDirectoryError, match="is no run of curate"):
        curate.export(str(tmp_path / "mine"), TRL())
    with pytest.raises(InputError, match=r"alpaca is read from jsonl, parquet, jsonl.gz, jsonl.zst; 'csv' was asked"):
        curate.export(job, Alpaca(), tmp_path / "out", file="csv")
    with pytest.raises(InputError, match="needs a folder: to="):
        curate.export(odd_examples(), TRL())
    with pytest.raises(InputError, match=r"\['tools'\] are missing"):
        curate.export(odd_examples().drop_columns(["tools"]), TRL(), tmp_path / "out")


def test_a_run_that_did_not_end(pool_of: Any, tmp_path: Path) -> None:
    run_pool(pool_of(rows_of(20)), tmp_path / "run", until="read")
    with pytest.raises(RunDirectoryError, match="holds no dataset yet; run it to the end first"):
        curate.export(str(tmp_path / "run"), TRL())


def test_a_url(job: Run) -> None:
    import fsspec

    made = curate.export(job, TRL(), "memory://shelf/trl", file="jsonl")
    fs = fsspec.filesystem("memory")
    names = sorted(p.rpartition("/")[2] for p in fs.find("/shelf/trl"))
    assert names == ["export.json", "refused.parquet", "train-00000-of-00001.jsonl", "train_trl.py"]
    assert len(fs.cat_file("/shelf/trl/data/train-00000-of-00001.jsonl").splitlines()) == made.rows
    assert curate.export(job, TRL(), "memory://shelf/trl", file="jsonl").unchanged
    other = curate.export(job, TRL(), "memory://shelf/trl", file="parquet")
    assert not other.unchanged and not fs.exists("/shelf/trl/data/train-00000-of-00001.jsonl")


def test_the_recipe_exports_at_the_end_of_a_run(pool_of: Any, tmp_path: Path) -> None:
    exports = [{"use": "trl"}, {"use": "alpaca", "name": "plain", "turns": "last", "file": "parquet"}]
    pool = pool_of([*rows_of(20), MARKED])
    done = run_pool(pool, tmp_path / "run", select=[], scorers={}, exports=exports)
    told = done.manifest["exports"]
    assert [(e["format"], e["rows"], e["refused"]) for e in told] == [("trl", 20, 1), ("alpaca", 21, 0)]
    assert sorted(p.name for p in (tmp_path / "run/exports").iterdir()) == ["plain", "trl"]
    assert json.loads((tmp_path / "run/manifest.json").read_text())["exports"] == told
    stamp = (tmp_path / "run/exports/trl/export.json").stat().st_mtime_ns
    run_pool(pool, tmp_path / "run", select=[], scorers={}, exports=exports)
    assert (tmp_path / "run/exports/trl/export.json").stat().st_mtime_ns == stamp
    run_pool(pool, tmp_path / "run", select=[{"use": "random", "budget": 5}], scorers={}, exports=exports)
    assert len(lines_of_parquet(tmp_path / "run/exports/plain/data")) == 5


def lines_of_parquet(folder: Path) -> list[Any]:
    return [row for file in sorted(folder.iterdir()) for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "exports.0 names no format; add 'use: …' \\(alpaca, axolotl"),
        ({"use": "axolot"}, "no exporter is called 'axolot'; did you mean 'axolotl'"),
        ({"use": "trl", "layot": "text"}, "unknown key 'exports.0.layot'; did you mean 'layout'"),
        ({"use": "trl", "layout": "messages", "shard_row": 3}, "did you mean 'shard_rows'"),
        ({"use": "trl", "layout": "chat"}, "'exports.0.layout': input should be 'messages'"),
        ({"use": "trl", "shard_rows": 0}, "'exports.0.shard_rows'"),
        (
            {"use": "llama-factory", "file": "jsonl.gz"},
            "llama-factory is read from jsonl, parquet; 'jsonl.gz' was asked",
        ),
        ({"use": "trl", "name": "../x"}, "'exports.0.name'"),
    ],
)
def test_entries_that_cannot_be_meant(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.from_dict({"sources": [{"path": "x.jsonl"}], "exports": [entry]})


def test_two_exports_of_one_name() -> None:
    with pytest.raises(RecipeError, match=r"two exports are called 'trl'; give one of them another 'name:'"):
        Recipe.from_dict(
            {"sources": [{"path": "x.jsonl"}], "exports": [{"use": "trl"}, {"use": "trl", "layout": "text"}]}
        )


def test_the_command(job: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["export", job.store.root, *words, "--quiet"])
        out, err = capsys.readouterr()
        return int(str(left.value.code)), out, err

    code, out, _ = call(
        "--format", "trl", "--to", str(tmp_path / "out"), "--file", "jsonl", "--set", "thinking=thinking"
    )
    assert (code, out.splitlines()) == (
        0,
        [
            "trl: 59 rows in 1 file(s), 1 refused (1 loss-mask)",
            f"written to {tmp_path / 'out'}",
            f"refused rows are listed in {tmp_path / 'out'}/refused.parquet",
        ],
    )
    assert json.loads((tmp_path / "out/export.json").read_text())["identity"]["params"]["thinking"] == "thinking"
    for words, exit_code, said in (
        (("--format", "trl", "--strict"), 1, "strict"),
        (("--format", "tlr"), 2, "did you mean 'trl'"),
        (("--format", "trl", "--set", "turn=last"), 2, "unknown key 'turn'; did you mean 'turns'"),
        (("--format", "trl", "--set", "turns"), 2, "KEY=VALUE was asked, e.g. --set turns=last"),
    ):
        code, _, err = call(*words)
        assert code == exit_code and said in err
    with pytest.raises(SystemExit):
        main(["list", "exporters"])
    assert "llama-factory" in capsys.readouterr().out.split()


def test_a_pool_is_exported_without_a_run(tmp_path: Path, example_pool: Path) -> None:
    pool = curate.read(str(example_pool / "*.parquet"))
    made = curate.export(pool, TRL(), tmp_path / "out", shard_rows=1000)
    assert made.rows == pool.examples().num_rows and len(made.files) == 4 and made.fingerprint is None
    other = [{"messages": conversation("a", "b")}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in other))
    assert curate.export(curate.read(str(tmp_path / "rows.jsonl")), TRL(), tmp_path / "out", file="jsonl").rows == 1
    assert lines(tmp_path / "out") == other
