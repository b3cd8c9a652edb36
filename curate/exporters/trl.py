"""TRL: ``messages``, or ``prompt`` and ``completion``, and never both.

A column called ``prompt`` makes TRL read a row as prompt and completion, whatever stands beside it.  So a row has the
columns of its layout, ``tools`` when any row has some, and nothing else.

Source: TRL's documentation of dataset formats, and ``SFTTrainer`` (1.16), which tokenises the rows in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from curate.exporters.base import Facts, SupervisedExporter
from curate.exporters.batch import ASSISTANT, USER, Batch
from curate.exporters.calls import Arguments
from curate.exporters.chat import Spelling, feature, has_json, list_of, tools_field


@dataclass(kw_only=True)
class TRL(SupervisedExporter):
    """Rows for TRL's ``SFTTrainer``.

    Loss
    ----
    ``messages`` with ``assistant_only_loss=True``: every assistant turn.  ``prompt-completion``: the last one; a
    conversation with an earlier assistant turn in the loss needs ``turns: last``, or its mark ``train: false``.
    ``text``: the answer and an end-of-sequence token, without a chat template.
    """

    name: ClassVar[str] = "trl"
    layout: Literal["messages", "prompt-completion", "text"] = "messages"
    """A list of turns; a list of turns and an answer; or two plain texts (one question, one answer, nothing else)."""
    thinking: Literal["reasoning_content", "thinking"] = "reasoning_content"
    """Field for an assistant's thinking: what the model's chat template reads."""
    arguments: Arguments = "object"
    """Arguments of tool calls: as an object, which most chat templates print, or as JSON text of one."""

    @property
    def trained(self) -> Literal["marked", "all", "last"]:
        return "all" if self.layout == "messages" else "last"

    @property
    def _spelling(self) -> Spelling:
        return Spelling(self.thinking, self.arguments)

    def schema(self, facts: Facts) -> pa.Schema:
        if self.layout == "text":
            return pa.schema([("prompt", pa.string()), ("completion", pa.string())])
        turns = list_of(self._spelling.type(facts.has))
        names = ["messages"] if self.layout == "messages" else ["prompt", "completion"]
        tools = [tools_field()] if "tools" in facts.has else []
        return pa.schema([*((name, turns) for name in names), *tools])

    def _look(self, batch: Batch) -> None:
        super()._look(batch)
        if self.layout == "text":
            batch.refuse_fields(frozenset(), "trl's text layout")
            batch.refuse(
                batch.lengths != 2, "no-place", "trl's text layout has a place for one question and one answer"
            )

    def _rows(self, batch: Batch, facts: Facts) -> pa.Table:
        columns: list[Any]
        if self.layout == "text":
            content = batch.flat.field("content")
            columns = [content.filter(pa.array(batch.role == role)) for role in (USER, ASSISTANT)]
            return pa.table(columns, schema=self.schema(facts))
        if self.layout == "messages":
            columns = [self._spelling.lists(batch, facts.has)]
        else:
            columns = [self._spelling.lists(batch, facts.has, only) for only in (~batch.last, batch.last)]
        if "tools" in facts.has:
            columns.append(batch.column("tools"))
        return pa.table(columns, schema=self.schema(facts))

    def companions(self, facts: Facts) -> dict[str, str]:
        loader = "parquet" if facts.file == "parquet" else "json"
        lines, given = ["from datasets import load_dataset", "from trl import SFTConfig, SFTTrainer", ""], ""
        schema = self.schema(facts)
        if loader == "json" and has_json(schema):  # JSON lines cannot say by themselves what is JSON
            lines[0] = "from datasets import Features, load_dataset"
            lines.append(f"features = Features.from_dict({feature(schema)!r})")
            given = ", features=features"
        switch = "assistant_only_loss=True" if self.layout == "messages" else "completion_only_loss=True"
        lines += [
            f'data = load_dataset("{loader}", data_files="{facts.pattern}", split="train"{given})',
            f"# {switch} trains on the turns that curate counted; max_length=None cuts no row.",
            f'config = SFTConfig({switch}, max_length=None, output_dir="out")',
            'trainer = SFTTrainer(model="MODEL", args=config, train_dataset=data)',
            "trainer.train()",
        ]
        return {"train_trl.py": "\n".join(lines) + "\n"}
