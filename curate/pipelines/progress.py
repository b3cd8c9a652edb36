"""Progress for a person: one live line per stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO, Any


def count(n: float) -> str:
    """1234567 → "1.23M": three digits are enough for a rate."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            return f"{n / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    return f"{n:,.0f}"


def duration(seconds: float) -> str:
    """125 → "2m05s"."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Progress:
    """Tells how far each stage is.  ``quiet`` says nothing; results and errors are told by others."""

    interval = 10.0
    """Seconds between plain lines of one stage."""

    def __init__(self, stream: IO[str], *, quiet: bool = False) -> None:
        self.stream, self.quiet = stream, quiet
        self._live: Any = None
        if not quiet and stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            class WithBoard(Bars):
                board: Callable[[int], Any] | None = None

                def get_renderables(self) -> Any:
                    if self.board is not None:
                        yield self.board(self.console.height)
                    yield from super().get_renderables()

            self._live = WithBoard(
                TextColumn("{task.description:<24}"),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),  # moves even while the first shard of a slow stage is under way
                TextColumn("{task.fields[told]}"),
                console=Console(file=stream),
            )
            self._live.start()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.quiet:
            return
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.stream, flush=True)

    @property
    def live(self) -> bool:
        """Whether what is told changes in place."""
        return self._live is not None

    def show(self, board: Callable[[int], Any] | None) -> None:
        """On a terminal, draw what ``board(height of the screen)`` returns above the stages; None: no longer."""
        if self._live is not None:
            self._live.board = board
            self._live.refresh()

    def stage(self, name: str, total: int | None, cached: int = 0) -> Line:
        return Line(self, name, total, cached)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class Line:
    """One stage's line.  Rates count only what this run computed, never what was already there."""

    def __init__(self, progress: Progress, name: str, total: int | None, cached: int) -> None:
        self.progress, self.name, self.total, self.cached = progress, name, total, cached
        self.rows = self.tokens = self.unscored = 0
        self.began = self.told = time.monotonic()
        self._task = None
        if progress._live is not None:
            self._task = progress._live.add_task(name, total=total, completed=cached, told="")

    def text(self) -> str:
        seconds = max(1e-9, time.monotonic() - self.began)
        parts = [f"{self.cached + self.rows:,}{'' if self.total is None else f'/{self.total:,}'} rows"]
        if self.rows:
            parts.append(f"{count(self.rows / seconds)} rows/s")
            if self.tokens:
                parts.append(f"{count(self.tokens / seconds)} tokens/s")
            left = None if self.total is None else self.total - self.cached - self.rows
            if left:
                parts.append(f"{duration(left * seconds / self.rows)} left")
        if self.cached:
            parts.append(f"{self.cached:,} were there")
        if self.unscored:
            parts.append(f"{self.unscored:,} not scored")
        return ", ".join(parts)

    def advance(self, rows: int, tokens: int | None = None, unscored: int = 0) -> None:
        self.rows += rows
        self.tokens += tokens or 0
        self.unscored += unscored
        if self._task is not None:
            self.progress._live.update(self._task, completed=self.cached + self.rows, told=self.text())
        elif time.monotonic() - self.told > Progress.interval:
            self.told = time.monotonic()
            self.progress.say(f"  {self.name}: {self.text()}")

    def finish(self) -> None:
        seconds = time.monotonic() - self.began
        text = f"{self.text()}, {duration(seconds)}" if self.rows else self.text()
        if self._task is not None:
            self.progress._live.update(
                self._task, total=max(1, self.cached + self.rows), completed=max(1, self.cached + self.rows), told=text
            )
        else:
            self.progress.say(f"{self.name}: {text}")
