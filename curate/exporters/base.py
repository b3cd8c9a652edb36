"""The contract of an export format: examples in, the rows that a trainer reads out, and nothing lost on the way.

An export is made in two looks.  The first (``look``) says of every example whether the format can hold it, and why not;
it reads little (roles and marks, mostly no text).  The second (``rows``) converts those that it can hold.  What the
columns are depends on what occurs in all of them together (``Facts.has``), never on the batch.

**The loss.**  Curate counts and scores the tokens of the assistant turns, less those marked ``train: false``; with
``turns: last``, of the last one only.  A format holds a row only if the trainer that reads it, set up as the companion
file says, trains on exactly these turns: otherwise the row is refused ("loss-mask"), not trained differently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.base import Parameters
from curate.example import MESSAGE_TYPE
from curate.exceptions import InputError, StageError
from curate.exporters.batch import Batch

REASONS: dict[str, str] = {
    "alternation": "the format wants user and assistant turns in strict alternation",
    "bad-tool-call": "tool calls are no JSON list of objects with a name, or stand in another than an assistant turn",
    "bad-tools": "the tools are no JSON list of objects",
    "empty-turn": "a user turn, or an assistant turn that calls no tool, holds nothing but white space",
    "loss-mask": "the trainer would train on other turns than curate counts",
    "media-placeholder": "a text holds what the trainer takes for the place of an image, a video or a sound",
    "no-place": "the format has no place for something that the row holds",
    "no-rejected": "the row has no rejected side, or one that cannot be read",
    "no-response": "the conversation does not end with an assistant turn",
    "no-user-turn": "the conversation has no user turn",
    "role-order": "turns are not in the order system, user, assistant (tool, assistant), user, …",
    "same-sides": "the chosen and the rejected side are the same",
    "unclear-prompt": "it cannot be told where the prompt ends and the two sides begin",
    "wrong-type": "a turn without a role or a text",
}
"""Every reason for which a built-in format refuses a row."""


@dataclass(frozen=True)
class Facts:
    """What an export holds, known before its first row is written."""

    has: frozenset[str] = frozenset()
    """What occurs in at least one row: message fields ("tool_calls", "thinking", …), "tools", "system", and words of
    the format's own.  Columns that no row uses are not written."""
    rows: int = 0
    name: str = "curated"
    """Name of the export, for the trainers that register data under one."""
    file: str = "parquet"
    """"parquet", "jsonl", "jsonl.gz" or "jsonl.zst"."""
    files: tuple[str, ...] = ()
    """Data files, relative to the export's folder."""

    @property
    def pattern(self) -> str:
        """All data files."""
        return f"data/*.{self.file}"


@dataclass(frozen=True, eq=False)
class Refused:
    """Rows that a format cannot hold."""

    rows: NDArray[np.int64]
    """Row numbers in the batch, ascending, each once."""
    reason: list[str]
    """A word of ``REASONS`` (or of the format's own)."""
    detail: list[str]
    """What exactly was found, and what would hold it."""


@dataclass(frozen=True, eq=False)
class Looked:
    """What ``look`` says of a batch."""

    refused: Refused
    has: frozenset[str]
    """What occurs in the rows that are not refused."""


@dataclass(frozen=True, eq=False)
class Converted:
    """A batch in a trainer's format: every example is a row of the table or is refused."""

    table: pa.Table
    refused: Refused


@dataclass(kw_only=True)
class Exporter(Parameters, ABC):
    """A pure function from examples to the rows of one trainer's format.

    Laws (``curate.testing.check_exporter``)
    ----------------------------------------
    1. Every example is a row, in order, or is refused with a reason; none is cut, split or repaired.
    2. The rows that come along do not matter: any split into batches gives the same rows, given the same ``Facts``.
    3. The table has the schema that ``schema`` says; the examples are not changed.
    4. What was written is read by curate's own reader as the same messages and tools (JSON compared as values).
    """

    reads: ClassVar[tuple[str, ...]] = ("messages", "tools")
    """Columns of the example schema that the rows are made of."""
    looks: ClassVar[tuple[str, ...]] = ("messages", "tools")
    """Columns that ``look`` needs, fields of a turn apart as "messages.role": the fewer, the faster."""

    formats: ClassVar[tuple[str, ...]] = ("parquet", "jsonl", "jsonl.gz", "jsonl.zst")
    """Kinds of file that the trainer reads; the first is the one written unless another is asked."""

    @abstractmethod
    def schema(self, facts: Facts) -> pa.Schema:
        """Return the columns of the rows; text that spells JSON and is to be read as values is a ``pa.json_``."""

    @abstractmethod
    def _look(self, batch: Batch) -> None:
        """Refuse (``batch.refuse``) what the format cannot hold, and note (``batch.note``) what columns depend on.

        The structure of the conversation has been checked.
        """

    @abstractmethod
    def _rows(self, batch: Batch, facts: Facts) -> pa.Table:
        """Return one row per example; all of them have passed ``look``."""

    def companions(self, facts: Facts) -> dict[str, str]:
        """Return the texts of the files that a trainer wants beside the data, by name."""
        return {}

    @final
    def look(self, examples: pa.Table) -> Looked:
        """Say which examples the format cannot hold, and what occurs in the others."""
        batch = Batch(examples)
        batch.check_structure()
        self._look(batch)
        refused = Refused(*batch.refusals())
        return Looked(refused, batch.noted(refused.rows))

    @final
    def rows(self, examples: pa.Table, facts: Facts) -> pa.Table:
        """Convert examples that ``look`` did not refuse.

        Raises
        ------
        StageError
            If a subclass returns another number of rows, or other columns than its schema says.
        """
        table = self._rows(Batch(examples), facts)
        if table.num_rows != examples.num_rows or not table.schema.equals(self.schema(facts)):
            raise StageError(
                f"{self.name}: {examples.num_rows} rows of {self.schema(facts).names} were asked, {table.num_rows} of "
                f"{table.column_names} were returned; this is a bug of that format."
            )
        return table

    @final
    def convert(self, examples: pa.Table, facts: Facts | None = None) -> Converted:
        """Return the batch in the trainer's format.

        ``facts`` are those of the whole export; without them, those of this batch.

        Raises
        ------
        InputError
            If a column is missing.
        """
        missing = [c for c in self.reads if c not in examples.column_names]
        if missing:
            raise InputError(f"{self.name} reads {missing}, which the examples lack; found {examples.column_names}.")
        looked = self.look(examples)
        keep = np.ones(examples.num_rows, dtype=bool)
        keep[looked.refused.rows] = False
        facts = Facts(looked.has, int(keep.sum())) if facts is None else facts
        return Converted(self.rows(examples.filter(pa.array(keep)), facts), looked.refused)


@dataclass(kw_only=True)
class SupervisedExporter(Exporter):
    """A format of whole conversations, whose trainer trains on the assistant turns."""

    turns: Literal["all", "last"] = "all"
    """The assistant turns that are in the loss: all of them, or the last one of each conversation.  As the scorer that
    chose the rows was told (``turns`` of ``likelihood``)."""

    looks: ClassVar[tuple[str, ...]] = (
        *(f"messages.{f.name}" for f in MESSAGE_TYPE if f.name != "content"),
        "tools",
    )
    holds: ClassVar[frozenset[str]] = frozenset(
        {"name", "tool_calls", "tool_call_id", "thinking", "tools", "tool", "system"}
    )
    """Fields of a turn, "tools", and the roles "tool" and "system", that the format has a place for."""
    trains: ClassVar[Literal["marked", "switched", "all", "last"]] = "all"
    """Turns that the trainer trains on: those that the rows mark; all or the last, by a switch that the companion sets;
    always all; always the last."""

    def _look(self, batch: Batch) -> None:
        batch.refuse_fields(self.holds, self.name)
        batch.refuse_loss(self.trained, self.turns)
        batch.note("system", batch.is_role("system"))

    @property
    def trained(self) -> Literal["marked", "all", "last"]:
        """What the trainer trains on, set up for ``turns``."""
        return self.turns if self.trains == "switched" else self.trains


__all__ = [
    "REASONS",
    "Converted",
    "Exporter",
    "Facts",
    "Looked",
    "Refused",
    "SupervisedExporter",
]
