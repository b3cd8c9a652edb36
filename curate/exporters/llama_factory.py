"""LLaMA-Factory: ``conversations`` in strict alternation (or OpenAI ``messages``), and its ``dataset_info.json``.

LLaMA-Factory skips a conversation whose roles do not alternate, or whose number of turns is odd, with a line in its
log; here it is refused.  Its ``openai`` formatting is offered because people ask for it.  It adds to the prompt of
every row a sentence about thinking that curate did not score, and takes tool calls through columns that fill missing
arguments with nulls, so rows with tool calls are refused there.

Source: its ``data/README.md``, and the converters and ``SupervisedDatasetProcessor`` (0.9.5), which
``benchmarks/export/trainers.py`` runs on our rows.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.exporters.base import Facts
from curate.exporters.batch import TOOL, Batch
from curate.exporters.chat import Spelling, list_of, tools_field
from curate.exporters.sharegpt import TURN, WORDS, ShareGPT

_PLAIN = Spelling()
_MEDIA = r"<(?:image|video|audio)>"


@dataclass(kw_only=True)
class LlamaFactory(ShareGPT):
    """Rows for LLaMA-Factory's supervised finetuning.

    Loss
    ----
    Every answer and function call; with ``turns: last`` the last one, by ``mask_history: true``.
    """

    name: ClassVar[str] = "llama-factory"
    formats: ClassVar[tuple[str, ...]] = ("jsonl", "parquet")
    formatting: Literal["sharegpt", "openai"] = "sharegpt"
    """``conversations`` of ``from`` and ``value``, or ``messages`` of ``role`` and ``content``."""
    placeholders: Literal["refuse", "keep"] = "refuse"
    """What to do with a text that holds ``<image>``, ``<video>`` or ``<audio>``.  For a model of text it is text: keep.
    For one that sees or hears, it is the place of a file that the row does not have."""

    def schema(self, facts: Facts) -> pa.Schema:
        if self.formatting == "sharegpt":
            return super().schema(facts)
        tools = [tools_field()] if "tools" in facts.has else []
        return pa.schema([("messages", list_of(_PLAIN.type(frozenset()))), *tools])

    def _look(self, batch: Batch) -> None:
        if self.formatting == "openai":
            batch.refuse_fields(self.holds - {"tool_calls"}, "llama-factory's openai formatting")
        super()._look(batch)
        follows = (batch.role[1:] == TOOL) & (batch.role[:-1] == TOOL) & (batch.place[1:] > 0)
        batch.refuse_turns(
            np.r_[False, follows] if batch.role.size else batch.role == TOOL,
            "alternation",
            "a second result of a tool; llama-factory takes one between two turns of the model",
        )
        if self.placeholders == "refuse":
            content = batch.flat.field("content")
            batch.refuse_turns(
                pc.match_substring_regex(content, _MEDIA).to_numpy(zero_copy_only=False),
                "media-placeholder",
                lambda at: f"holds {_first(content[at].as_py())}; set 'placeholders: keep' for a model of text",
            )

    def _rows(self, batch: Batch, facts: Facts) -> pa.Table:
        if self.formatting == "sharegpt":
            return super()._rows(batch, facts)
        columns: list[Any] = [_PLAIN.lists(batch, frozenset())]
        if "tools" in facts.has:
            columns.append(batch.column("tools"))
        return pa.table(columns, schema=self.schema(facts))

    def companions(self, facts: Facts) -> dict[str, str]:
        openai = self.formatting == "openai"
        columns = {"messages": "messages" if openai else "conversations"}
        if "tools" in facts.has:
            columns["tools"] = "tools"
        entry: dict[str, Any] = {"file_name": "data", "formatting": self.formatting, "columns": columns}
        if openai:
            tags = {"role_tag": "role", "content_tag": "content", "system_tag": "system"}
            entry["tags"] = tags | {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool"}
        else:
            tags = {"role_tag": TURN.field(0).name, "content_tag": TURN.field(1).name, "system_tag": WORDS["system"]}
            entry["tags"] = tags | {"user_tag": WORDS["user"], "assistant_tag": WORDS["assistant"]}
            entry["tags"] |= {"observation_tag": WORDS["tool"], "function_tag": "function_call"}
        options = {"dataset": facts.name, "dataset_dir": "."}
        lines = [f"{key}: {json.dumps(value)}" for key, value in options.items()]
        lines.append(f"mask_history: {'true' if self.turns == 'last' else 'false'}")
        return {
            "dataset_info.json": json.dumps({facts.name: entry}, indent=2, ensure_ascii=False) + "\n",
            "llama_factory.yaml": "\n".join(lines) + "\n",
        }


def _first(text: str) -> str:
    found = re.search(_MEDIA, text)
    return found[0] if found else ""
