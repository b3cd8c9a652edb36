"""Models of random weights, interleaved timing, and what the machine is: for the scripts beside it."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from curate.models.base import DType, Row
from curate.models.transformers_lm import TransformersLM
from curate.seeding import rng_for

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "model"

SHAPES: dict[str, dict[str, int]] = {
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000),
    "81M": dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12, vocab_size=32000),
    "0.5B": dict(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
    ),
    "1.5B": dict(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
    ),
}
"""Llama layers, tied embeddings; the last two have the sizes of Qwen 2.5."""


@contextmanager
def saved(shape: str, dtype: DType) -> Iterator[str]:
    """Yield the folder of a model of random weights (seed 0)."""
    config = transformers.LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=4096)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.float32)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        del model
        for name in ("tokenizer.json", "tokenizer_config.json"):  # a folder without one is no model; it is never used
            shutil.copy(EXAMPLE / name, folder)
        yield folder


def build(shape: str, dtype: DType, *, device: str = "cpu", **more: Any) -> TransformersLM:
    """Return a model of random weights (seed 0)."""
    with saved(shape, dtype) as folder:
        return TransformersLM(folder, dtype=dtype, device=device, **more)


def random_rows(n: int, *, vocabulary: int, shortest: int = 100, longest: int = 600) -> list[Row]:
    """Return ``n`` rows of random ids, uniform lengths, of which the last 30 to 70% are scored."""
    rng = rng_for(0, "benchmark", "forward")
    rows = []
    for length in rng.integers(shortest, longest, size=n):
        mask = np.arange(length) >= int(length * (1 - rng.uniform(0.3, 0.7)))
        rows.append((rng.integers(1, vocabulary, size=length).astype(np.int32), mask))
    return rows


def interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return the seconds of each way, one after the other in each repeat, so that a busy minute falls on all."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            synchronize(device)
            start = time.perf_counter()
            way()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def summary(seconds: Mapping[str, list[float]], base: str) -> dict[str, Any]:
    """Return all seconds, their medians, and each median over that of ``base``."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": {name: [round(s, 4) for s in values] for name, values in seconds.items()},
        "median": {name: round(s, 4) for name, s in median.items()},
        f"times {base}": {name: round(s / median[base], 3) for name, s in median.items()},
    }


def machine(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "device": device if not device.startswith("cuda") else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
