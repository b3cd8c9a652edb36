"""A number that the rows already carry, as a score."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curate.base import Column, Scorer
from curate.exceptions import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class ColumnValue(Scorer):
    """The value of one column of the source files: a reward, a rating, another tool's score.

    Readers keep every column they do not need in the example's ``extra``; this takes one of them.  ``true`` and
    ``false`` count as 1 and 0, and a text that spells a number as that number (CSV has no other way).  A row gets
    null where the column is not there ("missing"), is null or blank ("empty"), is anything else ("not a number",
    which NaN and infinity are too).
    """

    name: ClassVar[str] = "column"
    reads: ClassVar[tuple[str, ...]] = ("extra",)

    column: str
    """The column, as the files call it."""
    higher_is_better: bool = True
    """Whether a higher value is better; false for a loss or a rate of errors."""
    unit: str = "as given"
    """The unit, for reports."""

    def __post_init__(self) -> None:
        if not self.column:
            raise InputError("column: the name of a column was asked, an empty name was found.")

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("value", self.unit, higher_is_better=self.higher_is_better),)

    def _score(self, examples: pa.Table) -> dict[str, Any]:
        values, reasons = [], []
        for extra in examples["extra"].to_pylist():
            value, reason = _number(json.loads(extra) if extra else {}, self.column)
            values.append(value)
            reasons.append(reason)
        return {"value": values, "reason": reasons}


def _number(row: dict[str, Any], column: str) -> tuple[float | None, str | None]:
    if column not in row:
        return None, f"{column}: missing"
    value = row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, f"{column}: empty"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        return None, f"{column}: not a number"
    return number, None
