"""What Axolotl's and LLaMA-Factory's own code makes of our exports: the tokens that each would train on.

    pip install --no-deps --target /tmp/axolotl axolotl        # and what its import then asks for (addict, fire, …)
    PYTHONPATH=/tmp/axolotl python benchmarks/export/trainers.py axolotl

    pip install --no-deps --target /tmp/lf llamafactory
    PYTHONPATH=/tmp/lf python benchmarks/export/trainers.py llama-factory

Neither can be installed beside the other, nor beside a recent transformers, so this is no test but a script; the tests
hold the exports to the rules that these projects document.  Rows of every kind go through ``curate.export``, the
companion file, the trainer's loader and its tokenisation; the token ids and the loss mask must be those of
``curate.models.template``.  TRL's are in ``tests/exporters/test_trl_trainer.py``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import curate  # noqa: E402
from curate.exporters import Axolotl, LlamaFactory  # noqa: E402
from curate.models.template import Encoder, load_tokenizer  # noqa: E402
from tests.exporters.helpers import ALL, read  # noqa: E402

MODEL = str(ROOT / "examples" / "model")
Tokens = tuple[list[int], list[int]]


def main(trainer: str) -> None:
    tokenizer = load_tokenizer(MODEL)
    out: dict[str, Any] = {"trainer": trainer, "cases": {}}
    for turns in ("all", "last"):
        for file in ("jsonl", "parquet"):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                exporter = {"axolotl": Axolotl, "llama-factory": LlamaFactory}[trainer](turns=turns)
                table = read(place, pool_rows() + ALL)
                made = curate.export(table, exporter, place / "out", file=file)
                held = set(range(table.num_rows)) - refused(place / "out")
                table = table.take(sorted(held))
                found = {"axolotl": axolotl, "llama-factory": llama_factory}[trainer](place / "out", tokenizer)
                wanted = Encoder(tokenizer, turns=turns).encode(
                    table.column("messages").to_pylist(), table.column("tools").to_pylist()
                )
                assert len(found) == len(wanted) == made.rows, (len(found), made.rows)
                same_ids = same_mask = same_trained = 0
                for (ids, labels), row in zip(found, wanted, strict=True):
                    same_ids += ids == row.ids.tolist()
                    same_mask += ids == row.ids.tolist() and [x != -100 for x in labels] == row.mask.tolist()
                    trained = [x for x in labels if x != -100]
                    same_trained += trained == row.ids[row.mask].tolist()
                case = {"rows": made.rows, "refused": made.reasons, "same_tokens": same_ids, "same_mask": same_mask}
                out["cases"][f"{file}, turns: {turns}"] = case | {"same_trained_tokens": same_trained}
    for package in (trainer.replace("llama-factory", "llamafactory"), "datasets", "transformers"):
        out.setdefault("versions", {})[package] = importlib.metadata.version(package)
    print(json.dumps(out, indent=1))
    path = HERE / "trainers.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**results, trainer: out}, indent=1) + "\n")


def pool_rows() -> list[dict[str, Any]]:
    """Return a few rows of the shipped pool."""
    rows = curate.read(str(ROOT / "examples/pool/train-00000-of-00004.parquet")).examples()
    keep = [r for r in rows.slice(0, 400).to_pylist() if r["chars"] < 2000][:40]
    return [{"messages": [{k: v for k, v in t.items() if v is not None} for t in r["messages"]]} for r in keep]


def refused(folder: Path) -> set[int]:
    import pyarrow.parquet as pq

    path = folder / "refused.parquet"
    return set(pq.read_table(path).column("place").to_pylist()) if path.exists() else set()


def axolotl(folder: Path, tokenizer: Any) -> list[Tokens]:
    """Load as the YAML says, and tokenise by Axolotl's ``chat_template`` strategy."""
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset

    said = yaml.safe_load((folder / "axolotl.yaml").read_text())
    entry = said["datasets"][0]
    files = [str(folder / pattern) for pattern in entry["data_files"]]
    data = load_dataset(entry["path"], data_files=files, split=entry["split"], cache_dir=str(folder / "cache"))
    options = {"chat_template": said["chat_template"], "sequence_len": 10**6, "train_on_inputs": False}
    strategy = load(tokenizer, DictDefault(options), ds_cfg=dict(entry))
    found = [strategy.tokenize_prompt(row) for row in data]
    return [(list(row["input_ids"]), list(row["labels"])) for row in found]


def llama_factory(folder: Path, tokenizer: Any) -> list[Tokens]:
    """Load as ``dataset_info.json`` says, and tokenise by LLaMA-Factory's supervised processor."""
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.data.processor import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    said = yaml.safe_load((folder / "llama_factory.yaml").read_text())
    data_args = DataArguments(
        dataset=said["dataset"],
        dataset_dir=str(folder),
        mask_history=said["mask_history"],
        cutoff_len=10**6,
        preprocessing_num_workers=None,
        template=None,
    )
    model_args = SimpleNamespace(cache_dir=str(folder / "cache"), hf_hub_token=None)
    training_args = SimpleNamespace(local_process_index=0)
    (attr,) = get_dataset_list([said["dataset"]], str(folder))
    data = _load_single_dataset(attr, model_args, data_args, training_args)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    processor = SupervisedDatasetProcessor(template, tokenizer, None, data_args)
    made = processor.preprocess_dataset(data[:])
    return list(zip(made["input_ids"], made["labels"], strict=True))


if __name__ == "__main__":
    main(sys.argv[1])
