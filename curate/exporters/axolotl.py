"""Axolotl: ``messages`` for its ``chat_template`` type, with a mark on every turn that differs from its role.

Source: Axolotl's documentation of conversation formats, and ``ChatTemplateStrategy`` (0.19), which
``benchmarks/export/trainers.py`` runs on our rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import yaml

from curate.exporters.base import Facts, SupervisedExporter
from curate.exporters.batch import ASSISTANT, Batch
from curate.exporters.chat import OPTIONAL, Spelling, list_of, listed, tools_field

# JSON text, because the keys of an object would depend on the other rows; Axolotl parses it.
_SPELLING = Spelling("reasoning_content", "text", OPTIONAL)


@dataclass(kw_only=True)
class Axolotl(SupervisedExporter):
    """Rows for Axolotl's ``type: chat_template``, and the part of its YAML that reads them.

    Loss
    ----
    The assistant turns, by ``roles_to_train``; a turn that is not in the loss is marked ``train: false``, so every
    conversation is held, with ``turns: last`` too.
    """

    name: ClassVar[str] = "axolotl"
    trains: ClassVar[Literal["marked"]] = "marked"

    def schema(self, facts: Facts) -> pa.Schema:
        tools = [tools_field()] if "tools" in facts.has else []
        return pa.schema([("messages", list_of(_SPELLING.type(facts.has))), *tools])

    def _look(self, batch: Batch) -> None:
        super()._look(batch)
        batch.note("train", batch.any(self._left_out(batch)))

    def _left_out(self, batch: Batch) -> Any:
        """(m,) True for the assistant turns that are not in the loss."""
        counted = batch.counted & batch.last if self.turns == "last" else batch.counted
        return (batch.role == ASSISTANT) & ~counted

    def _rows(self, batch: Batch, facts: Facts) -> pa.Table:
        struct = _SPELLING.turns(batch, facts.has)
        if "train" in facts.has and self.turns == "last":
            left_out = self._left_out(batch)
            marks = pa.array(np.zeros(len(left_out), dtype=bool), mask=~left_out)  # false, or nothing
            fields = list(struct.type)
            arrays = [marks if f.name == "train" else struct.field(f.name) for f in fields]
            struct = pa.StructArray.from_arrays(arrays, fields=fields)
        columns: list[Any] = [listed(struct, batch.lengths)]
        if "tools" in facts.has:
            columns.append(batch.column("tools"))
        return pa.table(columns, schema=self.schema(facts))

    def companions(self, facts: Facts) -> dict[str, str]:
        dataset: dict[str, Any] = {
            "path": "parquet" if facts.file == "parquet" else "json",
            "data_files": [facts.pattern],
            "split": "train",
            "type": "chat_template",
            "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
        }
        if "thinking" in facts.has:
            dataset["message_property_mappings"]["reasoning_content"] = "reasoning_content"
        if "train" in facts.has:
            dataset["message_field_training"] = "train"
        if "tools" in facts.has:
            dataset["field_tools"] = "tools"
        document = {"datasets": [dataset], "chat_template": "tokenizer_default"}
        return {"axolotl.yaml": yaml.safe_dump(document, sort_keys=False, allow_unicode=True)}
