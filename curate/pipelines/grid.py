"""The trainings that an evaluation asks for, and what of them is compared with each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from curate.models.base import Row
from curate.pipelines.contenders import Share
from curate.pipelines.trial import Setting


@dataclass(frozen=True)
class Wanted:
    """One training that is asked for: whose rows, how many, with which seed."""

    name: str
    equal: str
    budget: int
    tokens: int | None
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

    def add(
        self,
        name: str,
        equal: str,
        budget: int,
        tokens: int | None,
        seed: int,
        setting: Setting,
        rows: list[Row],
        share: Share,
    ) -> None:
        key = setting.key(rows, epochs=share.epochs, seed=seed)
        self.rows.setdefault(key, rows)
        self.wanted.append(Wanted(name, equal, budget, tokens, seed, key, share))

    def groups(self) -> dict[tuple[str, int, int | None], list[Wanted]]:
        """Return what is compared with each other."""
        out: dict[tuple[str, int, int | None], list[Wanted]] = {}
        for w in self.wanted:
            out.setdefault((w.equal, w.budget, w.tokens), []).append(w)
        return out
