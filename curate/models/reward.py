"""Reward models: one number for a conversation, from a sequence-classification head of one output (Transformers)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import ModelError
from curate.models.base import DType
from curate.models.halving import in_halves
from curate.models.rows import check_prompt
from curate.models.weights import find_device, load_weights

log = logging.getLogger(__name__)

_BATCH_TOKENS = {"cpu": 1024, "other": 16384}


class RewardLM:
    """A reward model in this process.

    Parameters
    ----------
    model : a folder or a Hub name, in safetensors.
    dtype, device, batch_tokens : as of ``TransformersLM``.

    Raises
    ------
    ModelError
        If it cannot be found or loaded, or gives another number of outputs than one.
    """

    def __init__(
        self, model: str, *, dtype: DType = "auto", device: str = "auto", batch_tokens: int | None = None
    ) -> None:
        torch = require("torch", extra="lm", for_=f"the reward model {model!r}")
        self.device = find_device(torch, device)
        loaded = load_weights(model, dtype, kind="AutoModelForSequenceClassification").to(self.device).eval()
        config = loaded.config.get_text_config()
        outputs = int(loaded.config.num_labels)
        if outputs != 1:
            raise ModelError(f"reward model {model!r}: one output was asked; it has {outputs}, one a class.")
        self._model: Any = loaded
        self._pad: int | None = getattr(config, "pad_token_id", None)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.vocab_size = loaded.get_input_embeddings().num_embeddings
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self.batch_tokens = batch_tokens or _BATCH_TOKENS["cpu" if self.device == "cpu" else "other"]

    def rewards(self, rows: Sequence[NDArray[np.integer]]) -> list[float | None]:
        """Return the model's output for each row of token ids (T,); None where a row alone does not fit into memory.

        Raises
        ------
        InputError
            If a row is empty, longer than the context, or has an id outside of the vocabulary.
        """
        for i, ids in enumerate(rows):
            check_prompt(i, ids, vocab_size=self.vocab_size, context=self.context)
        out: list[float | None] = [None] * len(rows)

        def read(batch: Sequence[int]) -> None:
            for i, reward in zip(batch, self._rewards([rows[i] for i in batch]), strict=True):
                out[i] = reward

        def halved(batch: Sequence[int]) -> None:
            log.warning(
                "out of memory at %d rows of %d tokens; they are read again, in halves.",
                len(batch),
                rows[batch[0]].size,
            )

        todo = sorted(range(len(rows)), key=lambda i: -rows[i].size)
        while todo:
            # Without a pad token Transformers cannot tell where a row of a batch ends.
            size = 1 if self._pad is None else max(1, self.batch_tokens // rows[todo[0]].size)
            batch, todo = todo[:size], todo[size:]
            in_halves(batch, read, device=self.device, halved=halved, alone=lambda _: None)
        return out

    def _rewards(self, rows: Sequence[NDArray[np.integer]]) -> list[float]:
        """Return the outputs of one batch; the first row is the longest."""
        import torch

        ids = np.full((len(rows), rows[0].size), 0 if self._pad is None else self._pad, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : row.size] = row
            mask[i, : row.size] = 1
        with torch.inference_mode():
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            found = self._model(**{name: value.to(self.device) for name, value in given.items()}).logits
            return [float(value) for value in found[:, 0].float().cpu()]

    def describe(self) -> dict[str, str]:
        """Return what produced the numbers: backend, dtype, device."""
        import transformers

        return {"backend": f"transformers {transformers.__version__}", "dtype": self.dtype, "device": self.device}

    def close(self) -> None:
        """Give the memory back."""
        self._model = None
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
