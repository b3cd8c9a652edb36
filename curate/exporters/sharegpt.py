"""ShareGPT: ``conversations`` of ``from`` and ``value``; ``tools`` as JSON text.

Tool calls are a ``function_call`` turn whose value is JSON: one call, or a list, of ``name`` and ``arguments``.  A
call's id, a turn's name or its thinking have no place there, nor has an answer beside a call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.exporters.base import Facts, SupervisedExporter
from curate.exporters.batch import Batch, wrong_calls
from curate.exporters.calls import plain_calls
from curate.exporters.chat import list_of, listed, tools_field

WORDS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
CALL = "function_call"
TURN = pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])


@dataclass(kw_only=True)
class ShareGPT(SupervisedExporter):
    """Rows of ``conversations``, as many tools read them.

    Loss
    ----
    ``gpt`` and ``function_call`` turns; which of them is for the trainer's own switch to say.
    """

    name: ClassVar[str] = "sharegpt"
    trains: ClassVar[Literal["switched"]] = "switched"
    holds: ClassVar[frozenset[str]] = frozenset({"tool_calls", "tools", "tool", "system"})
    looks: ClassVar[tuple[str, ...]] = ("messages", "tools")
    formats: ClassVar[tuple[str, ...]] = ("jsonl", "parquet", "jsonl.gz", "jsonl.zst")

    def schema(self, facts: Facts) -> pa.Schema:
        return pa.schema([("conversations", list_of(TURN)), *([tools_field()] if "tools" in facts.has else [])])

    def _look(self, batch: Batch) -> None:
        super()._look(batch)
        calls = batch.present("tool_calls")
        if calls.any():
            content = batch.flat.field("content")
            spoken = pc.greater(pc.binary_length(content), 0).to_numpy(zero_copy_only=False)
            batch.refuse_turns(calls & spoken, "no-place", f"{self.name} has no place for text beside a tool call")
            encoded = batch.flat.field("tool_calls").dictionary_encode()
            texts = encoded.dictionary.to_pylist()
            fits = [wrong_calls(t) is not None or plain_calls(t) is not None for t in texts]  # the wrong are refused
            index = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
            batch.refuse_turns(
                ~np.array([*fits, True])[index],
                "no-place",
                f"{self.name} has a place for a call's name and arguments (an object); this one has more, as an id",
            )

    def _rows(self, batch: Batch, facts: Facts) -> pa.Table:
        columns: list[Any] = [listed(said(batch, facts.has), batch.lengths)]
        if "tools" in facts.has:
            columns.append(batch.column("tools"))
        return pa.table(columns, schema=self.schema(facts))


def said(batch: Batch, has: frozenset[str]) -> pa.StructArray:
    """Return the turns of a batch as (from, value)."""
    words, value = pa.array(list(WORDS.values())).take(pa.array(batch.role)), batch.flat.field("content")
    if "tool_calls" in has:
        encoded = batch.flat.field("tool_calls").dictionary_encode()
        texts = pa.array([_value(t) for t in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)
        value, words = pc.coalesce(texts, value), pc.if_else(texts.is_valid(), CALL, words)
    return pa.StructArray.from_arrays([words, value], fields=list(TURN))


def _value(calls: str) -> str:
    found = plain_calls(calls) or []
    return json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False)
