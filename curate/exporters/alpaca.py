"""Alpaca: ``instruction``, ``input``, ``output``, and ``system`` and ``history`` where any row has them.

Curate reads ``instruction`` and ``input`` as one turn, with an empty line between.  Where the row came from such
columns, ``extra`` still has the ``input``, and the turn is parted there again; any other turn is all ``instruction``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.exporters.base import Facts, SupervisedExporter
from curate.exporters.batch import SYSTEM, Batch
from curate.exporters.chat import listed

_PAIRS = pa.list_(pa.field("element", pa.list_(pa.field("element", pa.string()))))


@dataclass(kw_only=True)
class Alpaca(SupervisedExporter):
    """Plain Alpaca rows.

    Loss
    ----
    ``output``, and the answers in ``history`` if the trainer trains on them (LLaMA-Factory does, unless
    ``mask_history``); with ``turns: last``, it is for the trainer not to.
    """

    name: ClassVar[str] = "alpaca"
    trains: ClassVar[Literal["switched"]] = "switched"
    holds: ClassVar[frozenset[str]] = frozenset({"system"})
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools", "extra")
    looks: ClassVar[tuple[str, ...]] = ("messages", "tools")
    formats: ClassVar[tuple[str, ...]] = ("jsonl", "parquet", "jsonl.gz", "jsonl.zst")
    input_column: str = "input"
    """Column of the source that held the input, if it was not called so."""

    def schema(self, facts: Facts) -> pa.Schema:
        columns = [(c, pa.string()) for c in ("instruction", "input", "output")]
        columns += [("system", pa.string())] if "system" in facts.has else []
        return pa.schema([*columns, *([("history", _PAIRS)] if "history" in facts.has else [])])

    def _look(self, batch: Batch) -> None:
        super()._look(batch)
        system = batch.role == SYSTEM
        if system.any():
            blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(batch.flat.field("content"))), 0)
            batch.refuse_turns(
                system & blank.to_numpy(zero_copy_only=False),
                "no-place",
                "alpaca has no place for a system turn of nothing but white space",
            )
        batch.note("history", batch.lengths - batch.is_role("system") > 2)

    def _rows(self, batch: Batch, facts: Facts) -> pa.Table:
        content = batch.flat.field("content")
        ends = batch.starts + batch.lengths
        has_system = batch.is_role("system")
        asked = content.take(pa.array(ends - 2))
        columns: dict[str, Any] = {"instruction": asked, "input": pa.repeat(pa.scalar(""), batch.n)}
        columns |= self._parted(asked, batch.column("extra"))
        columns["output"] = content.take(pa.array(ends - 1))
        if "system" in facts.has:
            columns["system"] = content.take(pa.array(batch.starts, mask=~has_system))
        if "history" in facts.has:
            earlier = (batch.role != SYSTEM) & (batch.place < np.repeat(batch.lengths - 2, batch.lengths))
            pairs = (batch.lengths - has_system - 2) // 2
            columns["history"] = listed(
                listed(content.filter(pa.array(earlier)), np.full(int(pairs.sum()), 2)), pairs
            ).cast(_PAIRS)
        return pa.table(columns, schema=self.schema(facts))

    def _parted(self, asked: pa.Array, extra: pa.Array | None) -> dict[str, pa.Array]:
        """Return instruction and input where ``extra`` tells the input, and the two give the turn again."""
        if extra is None:
            return {}
        maybe = pc.fill_null(pc.match_substring(extra, json.dumps(self.input_column)), False)
        rows = np.flatnonzero(maybe.to_numpy(zero_copy_only=False)).tolist()
        if not rows:
            return {}
        instruction, inputs = asked.to_pylist(), [""] * len(asked)
        for i in rows:
            given = json.loads(extra[i].as_py()).get(self.input_column)
            if isinstance(given, str) and given.strip():
                head = instruction[i].removesuffix(given)
                if not head:
                    instruction[i], inputs[i] = "", given
                elif head != instruction[i] and head.endswith("\n\n") and head[:-2].strip():
                    instruction[i], inputs[i] = head[:-2], given
        return {"instruction": pa.array(instruction, pa.string()), "input": pa.array(inputs, pa.string())}

    def companions(self, facts: Facts) -> dict[str, str]:
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        columns |= {c: c for c in ("system", "history") if c in facts.has}
        entry = {"file_name": "data", "formatting": "alpaca", "columns": columns}
        return {"dataset_info.json": json.dumps({facts.name: entry}, indent=2, ensure_ascii=False) + "\n"}
