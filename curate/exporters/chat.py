"""Turns as chat templates read them: what TRL, Axolotl and open-instruct share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.example import MESSAGE_TYPE
from curate.exporters.batch import Batch
from curate.exporters.calls import Arguments, spelt
from curate.exporters.lines import json_array

OPTIONAL = ("name", "tool_calls", "tool_call_id", "thinking", "train")


@dataclass(frozen=True)
class Spelling:
    """How a trainer's chat template wants a turn."""

    thinking: str = "reasoning_content"
    """Name of the field for thinking."""
    arguments: Arguments = "object"
    """Arguments of a tool call as an object, or as JSON text of one."""
    fields: tuple[str, ...] = field(default=OPTIONAL[:-1])
    """Optional fields that a turn may have."""

    def type(self, has: frozenset[str]) -> pa.StructType:
        """Return the type of a turn, with the optional fields that occur."""
        fields = [pa.field("role", pa.string()), pa.field("content", pa.string())]
        for name in self.fields:
            if name in has:
                out = self.thinking if name == "thinking" else name
                kind = MESSAGE_TYPE.field(name).type
                fields.append(pa.field(out, pa.json_() if name == "tool_calls" else kind))
        return pa.struct(fields)

    def turns(self, batch: Batch, has: frozenset[str], only: NDArray[np.bool_] | None = None) -> pa.StructArray:
        """Return the turns of a batch (those where ``only`` is True) in this spelling."""
        flat = batch.flat if only is None else batch.flat.filter(pa.array(only))
        arrays = [flat.field("role"), flat.field("content")]
        for name in self.fields:
            if name in has:
                values = flat.field(name)
                arrays.append(json_array(spelt(values, self.arguments)) if name == "tool_calls" else values)
        return pa.StructArray.from_arrays(arrays, fields=list(self.type(has)))

    def lists(self, batch: Batch, has: frozenset[str], only: NDArray[np.bool_] | None = None) -> pa.ListArray:
        """Return one list of turns a row."""
        lengths = batch.lengths
        if only is not None:
            lengths = np.bincount(batch.row[only], minlength=batch.n)
        return listed(self.turns(batch, has, only), lengths)


def listed(values: pa.Array, lengths: NDArray[Any]) -> pa.ListArray:
    """Return consecutive values as lists of these lengths."""
    kind = pa.list_(pa.field("element", values.type))
    return pa.ListArray.from_arrays(pa.array(np.r_[0, np.cumsum(lengths)].astype(np.int32)), values, type=kind)


def list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind))


def tools_field() -> pa.Field:
    """Return the column of tool schemas: text that spells JSON, which every trainer parses."""
    return pa.field("tools", pa.string())


def has_json(kind: pa.Schema | pa.DataType) -> bool:
    """Whether any field below is of Arrow's JSON type."""
    if isinstance(kind, pa.Schema):
        return any(has_json(f.type) for f in kind)
    if pa.types.is_list(kind):
        return has_json(kind.value_type)
    if pa.types.is_struct(kind):
        return any(has_json(f.type) for f in kind)
    return isinstance(kind, pa.JsonType)


def feature(kind: pa.Schema | pa.DataType) -> Mapping[str, Any]:
    """Return a type as ``datasets`` describes it (``Features.to_dict``)."""
    if isinstance(kind, pa.Schema) or pa.types.is_struct(kind):
        return {f.name: feature(f.type) for f in kind}
    if isinstance(kind, pa.JsonType):
        return {"_type": "Json"}
    if pa.types.is_list(kind):
        return {"feature": feature(kind.value_type), "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}
