"""Length of an example in training tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate import models
from curate.base import Column, Scorer

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class Length(Scorer):
    """Tokens of a conversation: those in the loss, and all of them.

    Ids and mask are those of ``likelihood`` with the same model and template, so a budget in training tokens means the
    tokens that a trainer would see.  Only the tokenizer is read, never the weights.  There is no upper limit here: a
    row too long for the model has its length.  A row that the template cannot show is null, with a reason.
    """

    name: ClassVar[str] = "length"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools")

    model: str
    """Folder or Hub name of the model that will be trained, or of any folder with its tokenizer: a token budget is in
    its tokens."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """As in ``likelihood``."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns count as response; those marked train=false never do."""
    special_text: Literal["drop", "read"] = "drop"
    """As in ``likelihood``."""

    def __post_init__(self) -> None:
        self._encoder: models.Encoder | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("response_tokens", "tokens", None, "int64"),
            Column("total_tokens", "tokens", None, "int64"),
        )

    def identity(self) -> dict[str, Any]:
        """As ``likelihood``'s, but of the tokenizer alone: other weights leave the lengths as they are."""
        identity = super().identity()
        identity["params"] = {"turns": self.turns, "special_text": self.special_text}
        tokenizer = models.identify(self.model, weights=False)
        self.open()
        assert self._encoder is not None
        return identity | {"tokenizer": tokenizer, "template": self._encoder.identity()}

    def open(self) -> None:
        if self._encoder is None:
            self._encoder = models.encoder(
                self.model, template=self.template, turns=self.turns, special_text=self.special_text
            )

    def close(self) -> None:
        self._encoder = None

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        assert self._encoder is not None
        rows = self._encoder.encode(examples["messages"].to_pylist(), examples["tools"].to_pylist())
        return {
            "response_tokens": np.array([np.count_nonzero(row.mask) for row in rows], dtype=np.int64),
            "total_tokens": np.array([row.ids.size for row in rows], dtype=np.int64),
            "reason": [row.reason for row in rows],
        }
