"""TRL's own trainer tokenises what was exported: the tokens it trains on are those that curate counts and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import curate
from curate.exporters import TRL, Preference
from curate.models.template import encoder
from tests.exporters.helpers import CALLING, LONG, MARKED, NAMED, PARALLEL, PLAIN, SYSTEM, read

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

ROWS = [PLAIN, SYSTEM, LONG, CALLING, PARALLEL, NAMED]


def load(folder: Path, cache: Path) -> Any:
    """Load an export as its companion file says."""
    code = (folder / "train_trl.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for line in code.splitlines():
        if line.startswith(("from datasets", "features =")):
            exec(line, names)
    options = {"features": names["features"]} if "features" in names else {}
    kind = "parquet" if next((folder / "data").iterdir()).suffix == ".parquet" else "json"
    files = sorted(map(str, (folder / "data").iterdir()))
    return datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(cache), **options)


def prepared(data: Any, model: str, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Return input_ids and labels as ``SFTTrainer`` makes them."""
    config = trl.SFTConfig(output_dir=str(out), max_length=None, report_to=[], use_cpu=True, **options)
    return trl.SFTTrainer(model=model, args=config, train_dataset=data).train_dataset.to_list()


def check(table: pa.Table, rows: list[dict[str, Any]], model: str, turns: Any = "all") -> None:
    wanted = encoder(model, turns=turns).encode(table.column("messages").to_pylist(), table.column("tools").to_pylist())
    assert len(rows) == len(wanted)
    for row, encoded in zip(rows, wanted, strict=True):
        assert row["input_ids"] == encoded.ids.tolist()
        assert [label != -100 for label in row["labels"]] == encoded.mask.tolist()
        assert any(encoded.mask)


@pytest.mark.parametrize("file", ["parquet", "jsonl"])
def test_messages(tmp_path: Path, example_model: str, file: str) -> None:
    table = read(tmp_path, ROWS)
    made = curate.export(table, TRL(), tmp_path / "out", file=file)
    assert made.rows == len(ROWS)
    data = load(tmp_path / "out", tmp_path / "cache")
    assert set(data.column_names) == {"messages", "tools"}
    check(table, prepared(data, example_model, tmp_path / "t", assistant_only_loss=True), example_model)


@pytest.mark.parametrize("file", ["parquet", "jsonl"])
def test_prompt_completion(tmp_path: Path, example_model: str, file: str) -> None:
    table = read(tmp_path, [*ROWS, MARKED])
    made = curate.export(table, TRL(layout="prompt-completion", turns="last"), tmp_path / "out", file=file)
    assert made.rows == len(ROWS) + 1
    data = load(tmp_path / "out", tmp_path / "cache")
    assert set(data.column_names) == {"prompt", "completion", "tools"}
    check(table, prepared(data, example_model, tmp_path / "t"), example_model, turns="last")


def test_a_marked_turn_is_left_out_of_the_loss_by_prompt_completion(tmp_path: Path, example_model: str) -> None:
    table = read(tmp_path, [MARKED])
    curate.export(table, TRL(layout="prompt-completion"), tmp_path / "out")
    rows = prepared(load(tmp_path / "out", tmp_path / "cache"), example_model, tmp_path / "t")
    check(table, rows, example_model)


def test_text(tmp_path: Path, example_model: str) -> None:
    """Two texts go without a template: what is trained on is the answer and the end of sequence."""
    short = {"prompt": "What is 2 + 2?\n", "completion": "Four, I think."}
    made = curate.export(read(tmp_path, [short]), TRL(layout="text"), tmp_path / "out")
    assert made.rows == 1
    row = prepared(load(tmp_path / "out", tmp_path / "cache"), example_model, tmp_path / "t")[0]
    tokenizer = encoder(example_model)._tokenizer
    trained = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(trained) == short["completion"] + tokenizer.eos_token


def test_the_shipped_pool(tmp_path: Path, example_model: str, example_pool: Path) -> None:
    table = curate.read(str(example_pool / "train-00001-of-00004.parquet")).examples()
    table = pa.concat_tables([table.slice(i, 6) for i in range(0, table.num_rows, 97)]).combine_chunks()
    curate.export(table, TRL(), tmp_path / "out")
    data = load(tmp_path / "out", tmp_path / "cache")
    check(table, prepared(data, example_model, tmp_path / "t", assistant_only_loss=True), example_model)


@pytest.mark.parametrize("layout", ["messages", "implicit"])
def test_pairs(tmp_path: Path, example_model: str, layout: Any) -> None:
    """``DPOTrainer`` finds the prompt and the two sides that the row holds."""
    rows = [
        {"prompt": "Who?", "chosen": "Me.", "rejected": "You."},
        {"prompt": "Where?", "chosen": "Here.", "rejected": "There, I think."},
    ]
    table = read(tmp_path, rows)
    curate.export(table, Preference(layout=layout), tmp_path / "out")
    data = load(tmp_path / "out", tmp_path / "cache")
    config = trl.DPOConfig(output_dir=str(tmp_path / "t"), max_length=None, report_to=[], use_cpu=True)
    made = trl.DPOTrainer(model=example_model, args=config, train_dataset=data).train_dataset.to_list()
    encode = encoder(example_model)
    for row, tokens in zip(rows, made, strict=True):
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            encoded = encode.encode([messages])[0]
            ids = encoded.ids.tolist()
            cut = int(encoded.mask.argmax())
            assert tokens["prompt_ids"] == ids[:cut], json.dumps(row)
            assert tokens[f"{side}_ids"] == ids[cut:], json.dumps(row)
