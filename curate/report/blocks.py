"""What a page is made of: sections of blocks.  Plain data; ``page.py`` turns them into HTML, and escapes every text.

Any stage can add a section.  A function ``sections(view: View) -> list[Section]`` is offered by the entry-point group
``curate.sections`` (see ``docs/report.md``); the built-in sections are such functions too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.diff import Piece
    from curate.report.view import Sample

Cell = str | int | float | None
"""Whole numbers are shown with thousands separators, other numbers with four significant digits, None as a dash."""


@dataclass(frozen=True)
class Share:
    """A table's cell: a number in [0, 1], shown as a percentage over a bar of that length."""

    value: float
    kind: str = "kept"
    """The bar's colour, as the page knows it: kept, dropped, corrected, duplicate, rejected."""


@dataclass(frozen=True)
class Shade:
    """A table's cell: a number of standard deviations with its sign, over a colour that deepens in steps.

    The number says all that the colour says.
    """

    value: float

    @property
    def tone(self) -> str:
        """``up1`` … ``up5``, ``down1`` … ``down5``, or none below a tenth."""
        step = sum(abs(round(self.value, 2)) >= limit for limit in SHADES)  # as it is shown
        return f"{'up' if self.value > 0 else 'down'}{step}" if step else ""


SHADES = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Where the steps of a ``Shade`` begin."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Numbers with their names, side by side."""

    pairs: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Table:
    """Columns of equal length; a column of numbers stands right.  ``caption`` says what a row is."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | Share | Shade]]
    folded: bool = False
    """Whether the reader opens it."""


@dataclass(frozen=True)
class Code:
    """Text in its own lines, as it is."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification, drawn as SVG when the page is made, and its numbers as a table.

    A field ``tip`` in the data, encoded as the marks' ``description``, is what a reader sees on pointing at a mark.
    Colours are CSS variables of the page, so that they follow light and dark: ``var(--kept)``, ``var(--c0)`` …
    """

    title: str
    spec: Mapping[str, Any]
    alt: str
    """What the chart shows, in a sentence, for those who do not see it."""
    table: Table | None = None
    note: str = ""
    key: Sequence[str] = ()
    """Kinds (kept, dropped …) whose colours are told above the chart."""
    wide: bool = False
    """Takes a row of the page for itself, and is drawn a second time for narrow screens."""
    scales: bool = False
    """Drawn once, and scaled to the screen: for a chart with no text in it."""


@dataclass(frozen=True)
class Rows:
    """Rows with their texts and reasons; the reader searches and filters them."""

    samples: Sequence[Sample]
    note: str = ""


@dataclass(frozen=True)
class Examples:
    """A few rows with their texts, in an order that means something; the reader opens them."""

    title: str
    rows: Sequence[tuple[str, Sample]]
    """Why a row stands here, in a few words or numbers, and the row."""


@dataclass(frozen=True)
class Changed:
    """One text that became another."""

    said: str
    """Why, in a few words and numbers."""
    origin: str
    """Which row it is."""
    question: str
    """What the text answers."""
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Changes:
    """Texts with what went struck out and what came marked, word by word; the reader opens them."""

    title: str
    rows: Sequence[Changed]


Block = Text | Facts | Table | Code | Chart | Rows | Examples | Changes


@dataclass(frozen=True)
class Section:
    """One part of a page, with a heading and a place in its contents."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """The title as an address within the page: letters and digits, joined by hyphens."""
        plain = unicodedata.normalize("NFKD", self.title).encode("ascii", "ignore").decode().lower()
        return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "section"
