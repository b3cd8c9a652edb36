"""The trainings that an evaluation asks for, and what of them is compared with each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from curate.evaluation.contenders import Share
from curate.evaluation.trial import Setting
from curate.models.base import Row


@dataclass(frozen=True)
class Point:
    """What is equal among the selections that are compared, and how much of it."""

    equal: Literal["rows", "tokens"]
    rows: int | None
    """The budget in rows; None where it was asked in tokens."""
    tokens: int | None = None
    """Tokens of an epoch, where these are equal."""
    score: str | None = None
    """The score whose tenths are compared; None for selections."""

    @property
    def title(self) -> str:
        """What is equal, in words."""
        if self.tokens is None:
            return f"{self.rows:,} rows of each"
        as_many = "" if self.rows is None else f" (as many as {self.rows:,} rows have)"
        return f"{self.tokens:,} training tokens of each{as_many}"

    @property
    def amount(self) -> str:
        """What is equal, in as few words as tell it from the other points."""
        amount = f"{self.rows:,} rows" if self.tokens is None else f"{self.tokens:,} tokens"
        return amount if self.score is None else f"{self.score}, {amount}"


@dataclass(frozen=True)
class Wanted:
    """One training that is asked for: whose rows, how many, with which seed."""

    name: str
    at: Point
    seed: int
    key: str
    share: Share


@dataclass
class Grid:
    """The trainings that are asked for.  Two that are the same are made once."""

    about: dict[str, str]
    """Selection → what it is, in the order of the tables."""
    wanted: list[Wanted] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """Trial → its rows."""
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, at: Point, seed: int, setting: Setting, rows: list[Row], share: Share) -> None:
        key = setting.key(rows, epochs=share.epochs, seed=seed)
        self.rows.setdefault(key, rows)
        self.wanted.append(Wanted(name, at, seed, key, share))

    def groups(self) -> dict[Point, list[Wanted]]:
        """Return what is compared with each other."""
        out: dict[Point, list[Wanted]] = {}
        for w in self.wanted:
            out.setdefault(w.at, []).append(w)
        return out
