"""A text that every row carries, taken as its label."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curate.base import Column, Scorer
from curate.exceptions import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class Label(Scorer):
    """A column of the user's rows as a label: what quotas and groups can go by (``quota: {by: NAME.label}``).

    Numbers and truth values are spelt as in JSON; a list or a mapping is null, as is a row without the column.
    """

    name: ClassVar[str] = "label"
    reads: ClassVar[tuple[str, ...]] = ("extra",)

    column: str
    """The column's name in the source."""

    def __post_init__(self) -> None:
        if not self.column:
            raise InputError("label: the name of a column was asked, an empty name was found.")

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("label", "name of a group", dtype="string"),)

    def _score(self, examples: pa.Table) -> dict[str, Any]:
        values, reasons = [], []
        for extra in examples["extra"].to_pylist():
            row = json.loads(extra) if extra else {}
            value, reason = row.get(self.column), None
            if self.column not in row:
                reason = f"{self.column}: missing"
            elif value is None or (isinstance(value, str) and not value.strip()):
                reason = f"{self.column}: empty"
            elif isinstance(value, (list, dict)):
                reason = f"{self.column}: not a label"
            text = value.strip() if isinstance(value, str) else json.dumps(value)
            values.append(None if reason else text)
            reasons.append(reason)
        return {"label": values, "reason": reasons}
