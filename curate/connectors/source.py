"""What a recipe says about one source of data: where it is, and how its columns are meant."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from curate import registry
from curate.exceptions import InputError, SchemaError
from curate.urls import refuse_secrets

SchemaName = Literal["auto", "messages", "prompt-completion", "alpaca", "sharegpt", "candidates", "preference"]

ROLES = (
    "messages",  # a list of turns
    "prompt",  # text, or a list of turns
    "input",  # text that follows the prompt
    "history",  # earlier [user, assistant] pairs
    "system",
    "response",  # text, one turn, or a list of turns
    "responses",  # a list of responses, or several columns of one response each
    "scores",  # a list as long as the responses: each part keeps its own in extra
    "chosen",  # the preferred response, or the whole preferred conversation
    "tools",  # tool schemas
)
"""What a column can be declared to be."""

_SPELLINGS = {
    "conversations": "messages",
    "instruction": "prompt",
    "output": "response",
    "completion": "response",
    "candidates": "responses",
    "completions": "responses",
}

READING_VERSION = 2
"""Raised whenever the same rows would be read into other examples."""


@dataclass(kw_only=True)
class Source:
    """One entry of a recipe's ``sources``.

    Raises
    ------
    SchemaError
        For a role in ``columns`` that does not exist; the message has the nearest one.
    InputError
        For a format that no connector goes by, or a number out of range.
    """

    path: str | list[str]
    """A file, a glob, a directory (with all that is nested in it), an fsspec URL, or ``hf:USER/NAME`` for a dataset of
    the Hub; or several of them."""
    format: str = "auto"
    """"parquet", "jsonl", "json", "csv", "tsv" or the word of a third party's connector; "auto" goes by the name of
    each file, and tells JSON from JSON lines by content."""
    schema: SchemaName = "auto"
    """What the rows are; "auto" recognises it from the first rows of every file."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Role → column, where names alone do not tell: ``{prompt: question, response: answer}``.  ``responses`` may be
    several columns: ``{prompt: question, responses: [answer_a, answer_b]}``."""
    id: str | None = None
    """Column that identifies a row; without it, ids come from content.  Part k of a row that holds several responses is
    called ID#k."""
    source: str | None = None
    """Column that says where a row comes from; without it, a text column called ``source`` if there is one."""
    group: str | None = None
    """Column that says which task or capability a row trains; without it, the first text column of ``group``,
    ``category``, ``task``."""
    name: str | None = None
    """One source label for all rows, instead of a column.  Where neither is there, the label is the file's name without
    suffixes and shard numbers, or its folder's for a name that says nothing (``train-00000-of-00004.parquet``)."""
    max_chars: int | None = 1_000_000
    """Rows with more characters of content are rejected ("too-long"); None for no limit."""
    records: str | None = None
    """For a JSON object: the key of the list that holds the rows; without it, one of ``data``, ``examples``, ``rows``,
    ``records``, ``items``, ``samples``, ``train``."""
    delimiter: str | None = None
    """For CSV: the character between cells, a comma if not given (a tab for TSV)."""
    header: list[str] | None = None
    """For CSV and TSV without a header line: the names of the columns."""
    license: str | None = None
    """The licence of its rows, for the dataset card; a row's own column ``license`` or ``licence`` comes first.
    Without either the card says that it is unknown."""
    language: str | None = None
    """The language of its rows ("en"), for the dataset card; a row's own ``language`` or ``lang`` comes first."""
    broken: Literal["stop", "keep"] = "stop"
    """When a file is damaged such that what follows cannot be told apart (a JSON array cut short, a compressed file
    that ends early): stop with file and line, or keep the rows before the damage and list the rest as one rejected row
    ("unreadable-rest")."""

    def __post_init__(self) -> None:
        if not self.path or not all(isinstance(p, str) and p for p in self.paths):
            raise InputError(f"path: a file, a directory, a glob or a URL was asked, {self.path!r} was found.")
        for path in self.paths:
            refuse_secrets(path)
        known = ["auto", *registry.names("connectors")]
        if self.format not in known:
            hint = registry.nearest(self.format, known) or "."
            raise InputError(f"format {self.format!r} is not known{hint} Known: {', '.join(known)}.")
        for role in self.columns:
            if _SPELLINGS.get(role, role) not in ROLES:
                hint = registry.nearest(role, list(ROLES)) or "."
                raise SchemaError(f"columns: {role!r} is no role of a column{hint} Roles: {', '.join(ROLES)}.")
        if len(self.mapping) != len(self.columns):
            raise SchemaError(f"columns: two of {', '.join(self.columns)} mean the same role; give one.")
        for role, column in self.mapping.items():
            if role != "responses" and not isinstance(column, str):
                raise SchemaError(
                    f"columns: {role} is one column, {column!r} was found; only responses may be several."
                )
        if self.max_chars is not None and self.max_chars < 1:
            raise InputError(
                f"max_chars: 1 or more was asked, {self.max_chars} was found; leave it out, or say null for no limit."
            )
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise InputError(f"delimiter: one character was asked, {self.delimiter!r} was found.")

    @property
    def paths(self) -> list[str]:
        """``path``, always as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def mapping(self) -> dict[str, str | list[str]]:
        """``columns`` with every role under its first name ("instruction" is "prompt")."""
        return {_SPELLINGS.get(role, role): column for role, column in self.columns.items()}

    def reading(self) -> dict[str, Any]:
        """Return what the examples depend on besides the files, as JSON: for the fingerprint of the reading stage."""
        return {"version": READING_VERSION} | {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("path", "license", "language")  # where it is, and what is said of it: no row changes
        }
