"""How many tokens a second the proxy's training takes, packed and padded, beside the same trainer's plain loop.

    python benchmarks/evaluate/trainer.py                       # the shipped model on rows of the example pool
    python benchmarks/evaluate/trainer.py --threads 1 --dtype bfloat16
    python benchmarks/evaluate/trainer.py --quick --out /dev/null

"Plain" is ``transformers.Trainer`` as its documentation has it: rows in its own random order, as many a step as the
proxy's steps have on average, padded to the longest by its own collator, the model's own loss over all logits.  Tokens
are those that the proxy counts (before a row's last scored one), for all alike.  Losses are compared before anything is
timed: with a learning rate near 0, each way's mean over all scored tokens must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from curate.connectors.pool import read
from curate.models import encoder
from curate.models.base import Row
from curate.models.proxy import Training, plan, tokens_of, train
from curate.models.weights import load_weights
from curate.seeding import rng_for

ROOT = Path(__file__).resolve().parents[2]


def some_rows(n: int, model: str, limit: int) -> list[Row]:
    """Return rows of the pool, drawn at random, cut at ``limit`` tokens."""
    pool = read(str(ROOT / "examples" / "pool")).examples()
    drawn = pool.take(rng_for(0, "trainer").permutation(pool.num_rows)[: 2 * n])
    encoded = encoder(model).encode(drawn.column("messages").to_pylist(), drawn.column("tools").to_pylist())
    rows = [(row.ids[:limit], row.mask[:limit]) for row in encoded if row.reason is None]
    return [row for row in rows if row[1].any()][:n]


class Clock(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter() - self.began


def plainly(model: str, rows: list[Row], settings: Training, rate: float) -> tuple[float, float]:
    """Train by the plain loop for an epoch; return (mean loss of all scored tokens, seconds of the steps)."""
    loaded = load_weights(model, "float32")
    items = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": np.where(mask, ids, -100).tolist()}
        for ids, mask in rows
    ]
    steps = len(plan(tokens_of(rows), settings))
    clock, losses, scored = Clock(), [], []
    pad = transformers.DataCollatorForSeq2Seq(transformers.AutoTokenizer.from_pretrained(model))

    class Watched(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
            scored.append(int((inputs["labels"] != -100).sum()))
            losses.append(super().training_step(model, inputs, *rest))
            return losses[-1]

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=round(len(rows) / steps),
            learning_rate=rate,
            optim="adamw_torch_fused",
            bf16=settings.dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Watched(model=loaded, args=arguments, train_dataset=items, data_collator=pad, callbacks=[clock])
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()
    loss = float(np.average([float(x) for x in losses], weights=scored))
    return loss, clock.seconds


def ours(model: str, rows: list[Row], settings: Training) -> tuple[float, float]:
    found = train(model, rows, settings)
    assert (found.unpacked is None) == settings.packing
    scored = [sum(int(rows[i][1].sum()) for i in step) for step in plan(tokens_of(rows), settings)]
    found.lm.close()
    return float(np.average(found.losses, weights=scored)), found.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "examples" / "model"))
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="8 short rows, once")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("trainer.json"))
    args = parser.parse_args()
    if args.quick:
        args.rows, args.max_tokens, args.repeats = 8, 128, 1
    torch.set_num_threads(args.threads)

    rows = some_rows(args.rows, args.model, args.max_tokens)
    tokens = int(tokens_of(rows).sum())
    still = Training(method="full", rate=1e-12, dtype=args.dtype, tokens_per_step=512 if args.quick else 4096)
    ways = {
        "packed": lambda: ours(args.model, rows, still),
        "padded": lambda: ours(args.model, rows, Training(**{**vars(still), "packing": False})),
        "plain": lambda: plainly(args.model, rows, still, 1e-12),
    }
    losses = {name: way()[0] for name, way in ways.items()}  # the first pass warms up as well
    tolerance = 1e-5 if args.dtype == "float32" else 2e-2
    assert np.allclose(list(losses.values()), losses["plain"], rtol=tolerance), losses
    print("losses", losses, flush=True)

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            seconds[name].append(way()[1])
    rates = {name: tokens / statistics.median(its) for name, its in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:7} {rate:8,.0f} tokens/s, {rate / rates['plain']:.2f} of the plain loop", flush=True)
    results = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rows": len(rows),
        "tokens": tokens,
        "dtype": args.dtype,
        "losses": losses,
        "seconds": {name: [round(s, 3) for s in its] for name, its in seconds.items()},
        "tokens_per_s": {name: round(rate) for name, rate in rates.items()},
    }
    if args.out != Path(os.devnull):
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
