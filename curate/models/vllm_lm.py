"""A causal LM in a vLLM engine: log-probabilities, options, generations.

Rows go to the engine as token ids, so that masks and log-probabilities are of the same tokens.  Log-probabilities of a
prompt are computed without vLLM's prefix cache, which has no logits to give; options of one token each and generations
use it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import ModelError
from curate.models.backends import VLLM
from curate.models.base import LOGPROBS, SMALL, CausalLM, DType, Forward, Generation, Quantity, Row, Sampling
from curate.models.rows import check_row
from curate.models.vllm_engine import VLLMEngine, fetched


class VLLMLM(VLLMEngine, CausalLM):
    """A causal LM in a vLLM engine.

    Parameters
    ----------
    model : a folder or a Hub name; fetched whole before the engine starts, which then asks the Hub for nothing.
    spec : the engine's settings.
    dtype : as in ``TransformersLM``, by the same rule.

    Raises
    ------
    ModelError
        If vLLM is not there or the engine does not start; with the end of its log.
    """

    serves = LOGPROBS

    def __init__(self, model: str, spec: VLLM, *, dtype: DType = "auto") -> None:
        super().__init__(model, spec)
        folder = fetched(model)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        context = spec.context or text.get("max_position_embeddings") or text.get("n_positions")
        if dtype == "auto" and _parameters(folder) < SMALL:
            dtype = "float32"
        options = {
            "model": str(folder),
            "dtype": dtype,
            "max_model_len": context and context + 1,  # room for the token that the engine writes after each row
            "max_num_batched_tokens": max(spec.batch_tokens, 16),
            "tensor_parallel_size": spec.tensor_parallel,
            "gpu_memory_utilization": spec.gpu_memory,
            "enforce_eager": spec.eager,
            "enable_prefix_caching": True,
            "enable_chunked_prefill": True,
            "max_logprobs": 128,
            "trust_remote_code": False,
            "disable_log_stats": True,
            "seed": 0,
        }
        self._has_options = self._start(options)["options"]

    # -- what is asked -----------------------------------------------------------------------------------------------

    def forward(self, rows: Sequence[Row], quantities: Collection[Quantity]) -> list[Forward | None]:
        lacking = sorted(set(quantities) - self.serves)
        if lacking:
            raise ModelError(f"{', '.join(lacking)} were asked, but vLLM gives log-probabilities only.")
        scored = [
            check_row(i, ids, mask, vocab_size=self.vocab_size, context=self.context)
            for i, (ids, mask) in enumerate(rows)
        ]
        # What follows the last scored token has no part in the answer.
        requests = (
            (j, {"do": "score", "ids": rows[j][0][: at[-1] + 1].tolist(), "first": int(at[0])})
            for j, at in enumerate(scored)
            if at.size
        )
        out: list[Forward | None] = [Forward(logprobs=np.empty(0, np.float32)) for _ in rows]
        for j, answer in self._ask(requests):
            if "refused" in answer:
                out[j] = Forward(reason=f"vLLM refuses the row: {answer['refused']}")
                continue
            at = scored[j]
            out[j] = Forward(logprobs=np.array(answer["logprobs"], dtype=np.float32)[at - at[0]])
        return out

    def option_logprobs(
        self, prompts: Sequence[NDArray[np.integer]], options: Sequence[Sequence[NDArray[np.integer]]]
    ) -> list[NDArray[np.float64] | None]:
        # One token an option is one step after the prompt, which the prefix cache serves; longer ones are rows.
        short = [self._has_options and 0 < len(its) <= 128 and all(len(o) == 1 for o in its) for its in options]
        out: list[NDArray[np.float64] | None] = [None] * len(prompts)
        rest = [i for i, s in enumerate(short) if not s]
        found = super().option_logprobs([prompts[i] for i in rest], [options[i] for i in rest])
        for i, values in zip(rest, found, strict=True):
            out[i] = values
        requests = (
            (i, {"do": "options", "ids": prompts[i].tolist(), "options": [int(o[0]) for o in options[i]]})
            for i, s in enumerate(short)
            if s
        )
        for i, answer in self._ask(requests):
            if "refused" not in answer:
                out[i] = np.array(answer["logprobs"], dtype=np.float64)
        return out

    def generate(self, prompts: Sequence[NDArray[np.integer]], sampling: Sampling) -> list[list[Generation] | None]:
        out: list[list[Generation] | None] = [
            [Generation("", 0, False)] * sampling.n if self._room(ids) > 0 else None for ids in prompts
        ]

        def requests() -> Iterator[tuple[int, dict[str, Any]]]:
            for i, ids in enumerate(prompts):
                for k in range(sampling.n if out[i] is not None else 0):
                    settings = {
                        "max_tokens": min(sampling.max_tokens, self._room(ids)),
                        "temperature": sampling.temperature,
                        "top_p": sampling.top_p,
                        "seed": _seed(sampling.seed, ids, k),
                        "stop": list(sampling.stop),
                    }
                    yield i * sampling.n + k, {"do": "generate", "ids": ids.tolist(), "sampling": settings}

        for number, answer in self._ask(requests()):
            texts = out[number // sampling.n]
            if texts is None or "refused" in answer:
                out[number // sampling.n] = None
                continue
            texts[number % sampling.n] = Generation(answer["text"], answer["tokens"], answer["finished"])
        return out

    def _room(self, ids: NDArray[np.integer]) -> int:
        return (self.context or 0) - len(ids)


def _parameters(folder: Path) -> int:
    """Return how many numbers the safetensors files of a folder hold, from their headers."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        count += sum(int(np.prod(t["shape"], dtype=np.int64)) for name, t in header.items() if name != "__metadata__")
    return count


def _seed(seed: int, ids: NDArray[np.integer], k: int) -> int:
    """Return the seed of text ``k`` of a prompt, 63 bits."""
    data = f"{seed}\0{k}\0".encode() + np.asarray(ids, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
