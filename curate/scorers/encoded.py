"""What scorers of tokens share: a model's template, which turns are scored, the limit of a row's length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate import models
from curate.base import Column, Scorer
from curate.exceptions import InputError, StageError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class EncodedScorer(Scorer):
    """A scorer that shows conversations to a language model.

    A row is null, with a reason, where the template cannot show it, where no token of it is in the loss, where it is
    longer than the limit (unless ``long_rows`` says otherwise), and where it alone does not fit into memory.
    """

    reads: ClassVar[tuple[str, ...]] = ("messages", "tools")
    resource: ClassVar[str] = "model"
    neutral: ClassVar[tuple[str, ...]] = ("batch_tokens", "device")

    model: str
    """Folder or Hub name ("org/name", "org/name@revision") of a causal LM in safetensors."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """How a conversation becomes text: the tokenizer's chat template, GRAPE's Question:/Answer:, or chat where there is
    one."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns are scored; those marked train=false never are."""
    special_text: Literal["drop", "read"] = "drop"
    """Rows whose own text spells a special token ("<|im_end|>"): null with that reason, or read as the tokenizer and
    most trainers do, as that token."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to compute in; auto: float32 below 10⁹ parameters, as stored above."""
    max_tokens: int | None = None
    """The limit of a row's length; by default the model's context."""
    long_rows: Literal["drop", "truncate", "stop"] = "drop"
    """What becomes of longer rows: null with that reason; cut at the end, where the score is then that of a beginning,
    and the column ``cut`` says how many tokens it lacks; or the run stops."""
    batch_tokens: int | None = None
    """Tokens of a batch, padding counted; by default 1024 on a CPU, 16384 on a GPU.  Changes no score beyond
    rounding.  Of the backend transformers; vLLM has its own."""
    device: str = "auto"
    """"cpu", "cuda", "mps"; auto: a GPU where there is one.  Of the backend transformers."""

    def __post_init__(self) -> None:
        for key in ("max_tokens", "batch_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"{self.name}: {key}={value}; it must be at least 1, or left out.")
        self._encoder: models.Encoder | None = None

    @property
    def cut_column(self) -> tuple[Column, ...]:
        """The column of what long rows lost, where they are cut."""
        return (Column("cut", "tokens cut off", None, "int64"),) if self.long_rows == "truncate" else ()

    def identity(self) -> dict[str, Any]:
        """A digest or a commit stands for the model's path, and the template in use for ``template``."""
        identity = super().identity()
        replaced = ("model", "template", "backend")
        identity["params"] = {k: v for k, v in identity["params"].items() if k not in replaced}
        return identity | self._source()

    def _source(self) -> dict[str, Any]:
        """Return what the numbers depend on besides parameters, as JSON: model and template."""
        model = models.identify(self.model)  # first: it says best what is wrong with a path
        return {"model": model, "template": self._encode().identity()}

    def _encode(self) -> models.Encoder:
        if self._encoder is None:
            self._encoder = models.encoder(
                self.model, template=self.template, turns=self.turns, special_text=self.special_text
            )
        return self._encoder

    def _rows(
        self, examples: pa.Table, context: int | None
    ) -> tuple[list[models.EncodedRow], list[str | None], NDArray[np.int64]]:
        """Return the rows as tokens, long ones cut; why a row cannot be scored; how many tokens each one lost."""
        rows = self._encode().encode(examples["messages"].to_pylist(), examples["tools"].to_pylist())
        limit = int(min(self.max_tokens or 2**62, context or 2**62))
        reasons: list[str | None] = []
        cut = np.zeros(len(rows), dtype=np.int64)
        out = []
        for i, row in enumerate(rows):
            reason = row.reason
            if reason is None and row.ids.size > limit:
                if self.long_rows == "stop":
                    raise StageError(
                        f"{self.name}: a row has {row.ids.size:,} tokens, more than max_tokens={limit:,}, and "
                        "long_rows: stop was asked; ask for drop or truncate, or raise the limit."
                    )
                if self.long_rows == "truncate":
                    cut[i] = row.ids.size - limit
                    row = models.EncodedRow(row.ids[:limit], row.mask[:limit], None, row.header[:limit], row.bos)
                else:
                    reason = f"longer than max_tokens={limit}"
            if reason is None and not row.mask.any():
                reason = "no token is in the loss" if not cut[i] else f"no token in the loss before max_tokens={limit}"
            reasons.append(reason)
            out.append(row)
        return out, reasons, cut
