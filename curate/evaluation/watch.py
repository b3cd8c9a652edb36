"""How far the trainings of an evaluation are: a board that changes on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from curate.evaluation.grid import Grid, Point, Wanted
from curate.pipelines.progress import Progress, count, duration

if TYPE_CHECKING:
    from rich.console import Group

WAITING, UNDER_WAY, DONE, DIVERGED = "·", "◦", "●", "✕"
"""Marks of a training; each stands for one seed."""
_BELOW = 6  # lines of the screen that are not the board's


class Watch:
    """Follows the trials of a grid.

    Parameters
    ----------
    there : trial → what is known of it: those that were carried out before.
    """

    def __init__(self, progress: Progress, grid: Grid, there: Mapping[str, Mapping[str, Any]]) -> None:
        self.progress, self.grid = progress, grid
        self.cached = len(there)
        self.marks = {key: _mark(there[key]) if key in there else WAITING for key in grid.rows}
        self.tokens_left = {w.key: w.share.tokens * w.share.epochs for w in grid.wanted if w.key not in there}
        self._of = {w.key: w for w in reversed(grid.wanted)}
        self._accounts: list[Mapping[str, Any]] = []
        self._began = self._told = time.monotonic()
        if self.tokens_left:
            progress.show(self.board)

    def under_way(self, key: str) -> None:
        self.marks[key] = UNDER_WAY

    def done(self, key: str, account: Mapping[str, Any]) -> None:
        self.marks[key] = _mark(account)
        del self.tokens_left[key]
        self._accounts.append(account)
        w = self._of[key]
        if account["diverged"]:
            self.progress.say(f"{w.name}, {w.at.amount}, seed {w.seed + 1}: {account['diverged']}")
        if not self.progress.live and time.monotonic() - self._told > Progress.interval:
            self._told = time.monotonic()
            self.progress.say(f"  {self.text()}")

    def finish(self) -> None:
        self.progress.show(None)
        took = f", {duration(time.monotonic() - self._began)}" if self._accounts else ""
        self.progress.say(f"{self.text()}{took}")

    def text(self) -> str:
        """Return "trainings: 5 of 28, 1,886 tokens/s, 10m53s left"."""
        seconds = max(1e-9, time.monotonic() - self._began)
        parts = [f"trainings: {len(self.marks) - len(self.tokens_left):,} of {len(self.marks):,}"]
        if tokens := sum(a["tokens"] for a in self._accounts):
            parts.append(f"{count(tokens / seconds)} tokens/s")
        if self.tokens_left and (left := self._left(seconds)) is not None:
            parts.append(f"{duration(left)} left")
        if self.cached:
            parts.append(f"{self.cached:,} were there")
        return ", ".join(parts)

    def _left(self, seconds: float) -> float | None:
        """Return the seconds that are left: each token trained on and each measuring as they were, as many at once."""
        trained = [a for a in self._accounts if a["tokens"] > 0]
        if not trained:
            return None
        a_token = sum(a["seconds_training"] for a in trained) / sum(a["tokens"] for a in trained)
        measuring = sum(a["seconds_measuring"] for a in self._accounts) / len(self._accounts)
        spent = sum(a["seconds_training"] + a["seconds_measuring"] for a in self._accounts)
        at_once = max(1.0, spent / seconds)
        return (sum(self.tokens_left.values()) * a_token + len(self.tokens_left) * measuring) / at_once

    def board(self, height: int) -> Group:
        """Return the grid as a table: a selection a row, what is equal a column, a mark for each seed.

        Of more rows than there is room for, those that are finished are counted, and those that wait.
        """
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        points = list(dict.fromkeys(w.at for w in self.grid.wanted))
        cells: dict[str, dict[Point, list[Wanted]]] = {}
        for w in self.grid.wanted:
            cells.setdefault(w.name, {}).setdefault(w.at, []).append(w)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("")
        for at in points:
            table.add_column(at.amount if at.rows is None or at.tokens is None else f"{at.amount} ({at.rows:,} rows)")
        room = max(1, height - _BELOW)
        busy = [
            n for n, row in cells.items() if any(self.marks[w.key] == UNDER_WAY for its in row.values() for w in its)
        ]
        waits = [
            n for n, row in cells.items() if any(self.marks[w.key] == WAITING for its in row.values() for w in its)
        ]
        shown = set(cells) if len(cells) <= room else set([*busy, *(n for n in waits if n not in busy)][:room])
        for name, row in cells.items():
            if name in shown:
                marks = ["".join(self.marks[w.key] for w in row.get(at, ())) for at in points]
                table.add_row(name, *marks)
        if hidden := [n for n in cells if n not in shown]:
            waiting = sum(n in waits for n in hidden)
            table.add_row(f"{len(hidden) - waiting} finished, {waiting} waiting", style="dim")
        return Group(table, Text(self.text(), no_wrap=True, overflow="ellipsis"))


def _mark(account: Mapping[str, Any]) -> str:
    return DIVERGED if account["diverged"] else DONE
