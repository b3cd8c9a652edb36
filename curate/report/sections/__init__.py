"""The sections of a run's report: a function ``sections(view) -> list[Section]`` each, built in or from other packages.

Other packages offer theirs by the entry-point group ``curate.sections``; they follow the built-in ones, by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from curate.report.blocks import Section, Text

if TYPE_CHECKING:
    from curate.report.view import View

BUILT_IN = (
    "flow",
    "corrections",
    "influence",
    "refinement",
    "scores",
    "together",
    "composition",
    "pool_map",
    "baselines",
    "length",
    "rows",
    "record",
)
"""Modules of this package, in the order of the page."""

Maker = Callable[["View"], list[Section]]


def makers() -> Iterator[tuple[str, Callable[[], Maker]]]:
    """Yield (name, what loads the function) of every section there is; nothing is imported yet."""
    from importlib.metadata import entry_points

    for name in BUILT_IN:
        yield name, lambda name=name: importlib.import_module(f"{__name__}.{name}").sections  # type: ignore[misc]
    for entry in sorted(entry_points(group="curate.sections"), key=lambda e: (e.name, e.value)):
        yield entry.name, entry.load


def sections(view: View) -> tuple[list[Section], list[str]]:
    """Return the sections of a report, and what went wrong with those that could not be made.

    A section that fails leaves its name and its error on the page; the others stand.
    """
    made: list[Section] = []
    failures: list[str] = []
    for name, load in makers():
        try:
            found = load()(view)
            if not all(isinstance(section, Section) for section in found):
                raise TypeError("a list of curate.report.blocks.Section was asked")
            made += found
        except Exception as error:  # a stranger's code; and a report with a hole is better than none
            failures.append(f"the section {name!r} could not be made: {type(error).__name__}: {error}")
            made.append(Section(name, [Text(failures[-1])]))
    return made, failures
