"""open-instruct (Ai2): ``messages`` of role and content, and optionally ``tools``.

Source: its dataset transformations (``sft_tulu_tokenize_and_truncate_v1``), which render a row with the tokenizer's
chat template and mask what is no assistant turn, and ``last_turn_tulu_tokenize_and_truncate_v1``, which keeps the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from curate.exporters.base import Facts, SupervisedExporter
from curate.exporters.batch import Batch
from curate.exporters.chat import Spelling, list_of, tools_field


@dataclass(kw_only=True)
class OpenInstruct(SupervisedExporter):
    """Rows for open-instruct's supervised finetuning.

    Loss
    ----
    All assistant turns; with ``turns: last`` the last one, by the transformation that the companion file names.
    """

    name: ClassVar[str] = "open-instruct"
    trains: ClassVar[Literal["switched"]] = "switched"
    thinking: Literal["reasoning_content", "thinking"] = "reasoning_content"
    """Field for an assistant's thinking: what the model's chat template reads."""

    @property
    def _spelling(self) -> Spelling:
        return Spelling(self.thinking)

    def schema(self, facts: Facts) -> pa.Schema:
        tools = [tools_field()] if "tools" in facts.has else []
        return pa.schema([("messages", list_of(self._spelling.type(facts.has))), *tools])

    def _rows(self, batch: Batch, facts: Facts) -> pa.Table:
        columns: list[Any] = [self._spelling.lists(batch, facts.has)]
        if "tools" in facts.has:
            columns.append(batch.column("tools"))
        return pa.table(columns, schema=self.schema(facts))

    def companions(self, facts: Facts) -> dict[str, str]:
        lines = ["--dataset_mixer_list", *(f"    {name} 1.0" for name in facts.files)]
        if self.turns == "last":
            lines += ["--dataset_transform_fn", "    last_turn_tulu_tokenize_and_truncate_v1 sft_tulu_filter_v1"]
        return {"open_instruct_options.txt": "\n".join(lines) + "\n"}
