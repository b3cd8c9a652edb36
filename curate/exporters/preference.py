"""Preference pairs: ``prompt``, ``chosen`` and ``rejected``, where both sides are known.

Readers make an example of the chosen side and leave the rejected one in ``extra``.  Here the two are put together
again.  The prompt is what both sides begin with:

* a rejected text answers what comes before the last assistant turn;
* a rejected conversation (it begins with a system or user turn) parts from the chosen one at the first turn that
  differs, which must be the assistant's;
* rejected turns (they begin with the assistant's) answer what comes before the chosen side's turns.  Where several
  assistant turns follow the last user turn, nobody can tell where these begin, and the row is refused.

Source: TRL's documentation of dataset formats (preference).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from curate.connectors.normalise import Normaliser, RejectedError, check
from curate.example import EXAMPLE_SCHEMA
from curate.exporters.base import Exporter, Facts
from curate.exporters.batch import ASSISTANT, USER, Batch
from curate.exporters.calls import Arguments
from curate.exporters.chat import Spelling, feature, has_json, list_of, tools_field

Messages = list[dict[str, Any]]


@dataclass(kw_only=True)
class Preference(Exporter):
    """Rows for TRL's ``DPOTrainer`` and others that learn from pairs.

    Loss
    ----
    Such a trainer compares the two sides as wholes; marks of single turns have no place in it, so a side with a turn
    marked ``train: false`` is refused.
    """

    name: ClassVar[str] = "preference"
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools", "extra")
    looks: ClassVar[tuple[str, ...]] = ("messages", "tools", "extra")
    layout: Literal["messages", "implicit", "text"] = "messages"
    """A prompt and two sides, as turns; two whole conversations (what open-instruct reads); or three plain texts (one
    question, two answers, nothing else)."""
    rejected: str = "rejected"
    """Column of the source that held the rejected side."""
    thinking: Literal["reasoning_content", "thinking"] = "reasoning_content"
    """Field for an assistant's thinking: what the model's chat template reads."""
    arguments: Arguments = "object"
    """Arguments of tool calls: as an object, which most chat templates print, or as JSON text of one."""

    @property
    def _spelling(self) -> Spelling:
        return Spelling(self.thinking, self.arguments)

    @property
    def _columns(self) -> list[str]:
        return ["chosen", "rejected"] if self.layout == "implicit" else ["prompt", "chosen", "rejected"]

    def schema(self, facts: Facts) -> pa.Schema:
        if self.layout == "text":
            return pa.schema([(c, pa.string()) for c in self._columns])
        turns = list_of(self._spelling.type(facts.has))
        tools = [tools_field()] if "tools" in facts.has else []
        return pa.schema([*((c, turns) for c in self._columns), *tools])

    def _look(self, batch: Batch) -> None:
        pairs = _Pairs(batch, self.rejected)
        refused = pairs.refused
        for reason in dict.fromkeys(reason for reason, _ in refused.values()):
            rows = np.zeros(batch.n, dtype=bool)
            rows[[i for i, (word, _) in refused.items() if word == reason]] = True
            batch.refuse(rows, reason, lambda i: refused[i][1])
        if self.layout == "text":
            batch.refuse_fields(frozenset(), "preference's text layout")
            said = "preference's text layout has a place for one question and two answers only"
            batch.refuse(batch.lengths != 2, "no-place", said)
            batch.refuse(
                np.array([len(side or ()) != 1 or len(side[0]) != 2 for side in pairs.rejected]), "no-place", said
            )
        for name in ("name", "tool_calls", "tool_call_id", "thinking"):
            batch.note(name, np.array([any(t.get(name) is not None for t in side or ()) for side in pairs.rejected]))

    def _rows(self, batch: Batch, facts: Facts) -> pa.Table:
        pairs = _Pairs(batch, self.rejected)
        if self.layout == "text":
            content = batch.flat.field("content")
            columns: list[Any] = [content.filter(pa.array(batch.role == role)) for role in (USER, ASSISTANT)]
            columns.append(pa.array([side[0]["content"] for side in pairs.rejected], pa.string()))
            return pa.table(columns, schema=self.schema(facts))
        if self.layout == "implicit":
            columns = [self._spelling.lists(batch, facts.has), self._lists(pairs.whole(), facts)]
        else:
            prompt = batch.place < np.repeat(pairs.cut, batch.lengths)
            columns = [self._spelling.lists(batch, facts.has, only) for only in (prompt, ~prompt)]
            columns.append(self._lists(pairs.rejected, facts))
        if "tools" in facts.has:
            columns.append(batch.column("tools"))
        return pa.table(columns, schema=self.schema(facts))

    def _lists(self, sides: list[Messages], facts: Facts) -> pa.ListArray:
        """Return lists of turns that stand outside the examples, in this spelling."""
        kind = EXAMPLE_SCHEMA.field("messages").type
        return self._spelling.lists(Batch(pa.table({"messages": pa.array(sides, kind)})), facts.has)

    def companions(self, facts: Facts) -> dict[str, str]:
        lines = ["from datasets import load_dataset", "from trl import DPOConfig, DPOTrainer", ""]
        schema, given = self.schema(facts), ""
        if facts.file != "parquet" and has_json(schema):
            lines[0] = "from datasets import Features, load_dataset"
            lines.append(f"features = Features.from_dict({feature(schema)!r})")
            given = ", features=features"
        loader = "parquet" if facts.file == "parquet" else "json"
        lines += [
            f'data = load_dataset("{loader}", data_files="{facts.pattern}", split="train"{given})',
            'config = DPOConfig(max_length=None, output_dir="out")  # max_length=None cuts no row',
            'trainer = DPOTrainer(model="MODEL", args=config, train_dataset=data)',
            "trainer.train()",
        ]
        return {"train_trl.py": "\n".join(lines) + "\n"}


class _Pairs:
    """The rejected side of each row, and where the two sides begin."""

    def __init__(self, batch: Batch, column: str) -> None:
        self.cut = np.zeros(batch.n, dtype=np.int64)
        """(n,) turns of the prompt."""
        self.rejected: list[Any] = [None] * batch.n
        """Turns of the rejected side after the prompt; None where the row is refused."""
        self.refused: dict[int, tuple[str, str]] = {}
        self._column = column
        self._chosen: list[Messages] = batch.examples.column("messages").to_pylist()
        for i, (text, messages) in enumerate(
            zip(batch.examples.column("extra").to_pylist(), self._chosen, strict=True)
        ):
            try:
                self.cut[i], self.rejected[i] = self._pair(text, messages)
            except RejectedError as error:
                self.refused[i] = error.reason, error.detail

    def whole(self) -> list[Messages]:
        """Return the prompt and the rejected side of each row in one."""
        cut = self.cut.tolist()
        return [turns[:k] + side for turns, k, side in zip(self._chosen, cut, self.rejected, strict=True)]

    @cached_property
    def _normaliser(self) -> Normaliser:
        from curate.connectors.recognised import Recognised
        from curate.connectors.source import Source

        return Normaliser(Source(path="-"), Recognised("messages", {"messages": self._column}))

    def _pair(self, extra: str | None, messages: Messages) -> tuple[int, Messages]:
        """Return (turns of the prompt, rejected turns after it)."""
        given = json.loads(extra).get(self._column) if extra else None
        if given is None:
            raise RejectedError("no-rejected", f"no {self._column!r} among the row's other columns")
        chosen = [{k: v for k, v in turn.items() if v is not None} for turn in messages]
        if not chosen or chosen[-1]["role"] != "assistant":
            raise RejectedError("no-response", "the last turn is not the assistant's")
        try:
            side = self._side(given)
            if side[:1] and side[0]["role"] in ("system", "user"):
                if side[0]["role"] == "user" and chosen[0]["role"] == "system":  # from a column of its own
                    side = [chosen[0], *side]
                cut = next((k for k, (a, b) in enumerate(zip(chosen, side, strict=False)) if a != b), None)
                if cut is None:
                    said = (
                        "the two sides are the same" if len(chosen) == len(side) else "one side begins with the other"
                    )
                    raise RejectedError("same-sides", said)
                if chosen[cut]["role"] != "assistant" or side[cut]["role"] != "assistant":
                    raise RejectedError("unclear-prompt", f"the sides part at turn {cut}, which is not the assistant's")
                rejected = side[cut:]
            else:
                cut, rejected = self._answered(chosen, isinstance(given, str)), side
            check(chosen[:cut] + rejected, math.inf)
        except RejectedError as error:
            if error.reason in ("same-sides", "unclear-prompt"):
                raise
            raise RejectedError("no-rejected", f"the rejected side: {error.reason}: {error.detail}") from None
        if chosen[cut:] == rejected:
            raise RejectedError("same-sides", "the two sides are the same")
        if any(turn.get("train") is not None for turn in chosen[cut:] + rejected):
            raise RejectedError("loss-mask", "a turn is marked; a trainer on pairs compares the sides as wholes")
        return cut, rejected

    def _side(self, given: Any) -> Messages:
        if isinstance(given, str):
            return [{"role": "assistant", "content": given}]
        return self._normaliser.turns([given] if isinstance(given, dict) else given, self._column)

    @staticmethod
    def _answered(chosen: Messages, text: bool) -> int:
        """Return how many turns come before the chosen side, for a rejected side that has no prompt of its own."""
        last_user = max((k for k, turn in enumerate(chosen) if turn["role"] == "user"), default=-1)
        answers = [k for k in range(last_user + 1, len(chosen)) if chosen[k]["role"] == "assistant"]
        if len(answers) > 1 and not text:
            raise RejectedError(
                "unclear-prompt",
                f"{len(answers)} assistant turns follow the last user turn; which is the chosen side's?",
            )
        return answers[-1] if answers else len(chosen) - 1
