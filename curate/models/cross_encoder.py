"""Cross-encoders for natural-language inference: how a premise stands to a hypothesis, from a classification head.

Any model that Transformers loads for sequence classification and whose labels say which output is contradiction and
which entailment (``id2label`` of its config.json).  Safetensors only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import ModelError
from curate.models.base import DType
from curate.models.halving import in_halves
from curate.models.template import load_tokenizer
from curate.models.weights import find_device, load_weights

log = logging.getLogger(__name__)

Label = Literal["contradiction", "entailment"]

_BATCH_TOKENS = {"cpu": 2048, "other": 16384}
_CONTEXT = 512  # where neither the tokenizer nor the configuration sets a limit that means something


class CrossEncoder:
    """A cross-encoder in this process.

    Parameters
    ----------
    model : a folder or a Hub name, in safetensors.
    dtype, device, batch_tokens : as of ``TransformersLM``.

    Raises
    ------
    ModelError
        If it cannot be found or loaded, or its labels name no contradiction or no entailment.
    """

    def __init__(
        self, model: str, *, dtype: DType = "auto", device: str = "auto", batch_tokens: int | None = None
    ) -> None:
        torch = require("torch", extra="lm", for_=f"the cross-encoder {model!r}")
        self.device = find_device(torch, device)
        self._tokenizer = load_tokenizer(model)
        loaded = load_weights(model, dtype, kind="AutoModelForSequenceClassification").to(self.device).eval()
        self._output = _outputs(loaded.config.id2label, model)
        config = loaded.config.get_text_config()
        limits = [self._tokenizer.model_max_length, _positions(config)]
        self.context = min([int(limit) for limit in limits if limit and limit < 2**31], default=_CONTEXT)
        """Tokens of a pair, special ones counted; what is longer is cut, the longer text first."""
        self._model: Any = loaded
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self.batch_tokens = batch_tokens or _BATCH_TOKENS["cpu" if self.device == "cpu" else "other"]

    def probabilities(
        self, pairs: Sequence[tuple[str, str]], label: Label
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the probability of ``label`` for each (premise, hypothesis), and which pairs were cut: (n,) both.

        The probability is NaN where a pair alone does not fit into memory.
        """
        encoded = self._tokenizer(
            [a for a, _ in pairs],
            [b for _, b in pairs],
            truncation="longest_first",
            max_length=self.context,
            return_overflowing_tokens=False,
        )
        rows = [
            {name: encoded[name][i] for name in ("input_ids", "token_type_ids") if name in encoded}
            for i in range(len(pairs))
        ]
        longest = np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)
        out = np.full(len(pairs), np.nan)

        def read(batch: Sequence[int]) -> None:
            out[batch] = self._batch([rows[i] for i in batch])[:, self._output[label]]

        def halved(batch: Sequence[int]) -> None:
            log.warning(
                "out of memory at %d pairs of %d tokens; they are read again, in halves.", len(batch), longest[batch[0]]
            )

        todo = np.argsort(-longest, kind="stable").tolist()
        while todo:
            size = max(1, self.batch_tokens // int(longest[todo[0]]))
            batch, todo = todo[:size], todo[size:]
            in_halves(batch, read, device=self.device, halved=halved, alone=lambda _: None)
        # Only a pair that fills the context can have been cut; of those the whole length tells.
        cut = longest >= self.context
        for i in np.flatnonzero(cut).tolist():
            cut[i] = len(self._tokenizer(*pairs[i], truncation=False, verbose=False)["input_ids"]) > self.context
        return out, cut

    def _batch(self, rows: list[dict[str, list[int]]]) -> NDArray[np.float64]:
        """Return the probabilities of all labels (n, m) for one batch; the first row is the longest."""
        import torch

        width = len(rows[0]["input_ids"])
        given = {name: np.zeros((len(rows), width), dtype=np.int64) for name in (*rows[0], "attention_mask")}
        given["input_ids"] += self._tokenizer.pad_token_id or 0
        for i, row in enumerate(rows):
            for name, values in row.items():
                given[name][i, : len(values)] = values
            given["attention_mask"][i, : len(row["input_ids"])] = 1
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value).to(self.device) for name, value in given.items()}
            logits = self._model(**tensors).logits
            return np.asarray(torch.softmax(logits.float(), dim=-1).double().cpu().numpy())

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


def _outputs(labels: dict[int, str], model: str) -> dict[Label, int]:
    """Return which output is which, by the names of the labels."""
    out: dict[Label, int] = {}
    wanted: tuple[tuple[Label, str], ...] = (("contradiction", "contradict"), ("entailment", "entail"))
    for label, word in wanted:
        found = [
            int(i)
            for i, name in labels.items()
            if word in str(name).casefold() and not str(name).casefold().startswith(("not", "non"))
        ]
        if len(found) != 1:
            raise ModelError(
                f"cross-encoder {model!r}: labels that name one {label} were asked; its id2label is "
                f"{dict(labels)}. Take a model for natural-language inference with three classes, or name its labels "
                "in its config.json."
            )
        out[label] = found[0]
    return out


def _positions(config: Any) -> int | None:
    """Return how many tokens the positions reach; RoBERTa's begin behind the pad token's."""
    limit = getattr(config, "max_position_embeddings", None)
    offset = (config.pad_token_id or 0) + 1 if "roberta" in str(getattr(config, "model_type", "")) else 0
    return None if not limit or limit < 0 else int(limit) - offset
