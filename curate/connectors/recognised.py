"""What was found out about the rows of a source: which columns play which role."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from curate.connectors.formats import printable

Mapping_ = dict[str, str | list[str]]
"""Role → column, or several."""


@dataclass(frozen=True)
class Recognised:
    """How the rows of one source are read."""

    schema: str
    """As ``Source.schema``, but never "auto"; "nothing" if all files are empty."""
    columns: Mapping_
    """Role → column (columns, for responses)."""
    id: str | None = None
    source: str | None = None
    group: str | None = None
    name: str | None = None
    extra: tuple[str, ...] = ()
    """Columns seen that have no role."""
    files: dict[str, int] = field(default_factory=dict)
    """File → rows looked at."""
    notes: tuple[str, ...] = ()
    unanswered: bool = False
    """Whether rows that ask something count without an answer, as those of benchmarks do."""

    def identity(self) -> dict[str, Any]:
        """Return what the examples depend on, as JSON."""
        return {
            "schema": self.schema,
            "columns": self.columns,
            "id": self.id,
            "source": self.source,
            "group": self.group,
        }

    @property
    def text(self) -> str:
        """One line to show before anything runs."""
        files = f"{len(self.files)} file{'' if len(self.files) == 1 else 's'}"
        if self.schema == "nothing":
            return f"no rows: {files}, all empty"
        said = ", ".join(
            f"{role} from {' and '.join(map(repr, column)) if isinstance(column, list) else repr(column)}"
            for role, column in self.columns.items()
        )
        parts = [
            f"{self.schema}: {files}; {said}",
            f"id from {'content' if self.id is None else f'column {self.id!r}'}",
            f"source {self._source()}",
        ]
        if self.group is not None:
            parts.append(f"group from column {self.group!r}")
        if self.extra:
            parts.append(f"kept in extra: {', '.join(self.extra)}")
        return printable("; ".join([*parts, *self.notes]))

    def _source(self) -> str:
        if self.name is not None:
            return repr(self.name)
        return "from the file's name" if self.source is None else f"from column {self.source!r}"
