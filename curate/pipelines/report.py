"""Writes the report of a finished run: one HTML file, from what ``view`` reads and the sections make of it."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curate import __version__
from curate.exceptions import InputError
from curate.fingerprint import fingerprint
from curate.pipelines import publish
from curate.pipelines.store import Store, explain_write
from curate.pipelines.view import SAMPLES
from curate.report.text import number, percent, plural

if TYPE_CHECKING:
    from curate.report.view import View

REPORT = "report.html"
_VERSION = 1
_MARK = (".curate", "done", "report.json")


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    path: str
    bytes: int
    problems: list[str]
    """Sections that could not be made, and why; each stands on the page too."""


def write_report(store: Store, out: str | Path | None = None, *, samples: int = SAMPLES) -> Written:
    """Write a run's report to ``RUN/report.html``, or to a file of another name.

    Raises
    ------
    RunDirectoryError
        If there is no finished run, or the file cannot be written.
    """
    from curate.pipelines.view import view
    from curate.report.page import render
    from curate.report.sections import sections

    if samples < 0:
        raise InputError(f"a report shows 0 rows or more, {samples} were asked.")
    seen = view(store, samples=samples)
    made, problems = sections(seen)
    page = render(
        f"Selection report: {seen.name}",
        summary(seen),
        made,
        counts=seen.counts,
        problems=problems,
        made=f"Made by curate {__version__} from {seen.ledger.height:,} rows. This file holds all that it shows.",
    )
    if out is not None:
        return Written(write_file(page, out), len(_encoded(page)), problems)
    store.write_bytes(_encoded(page), REPORT)
    store.write_json({"key": _key(store), "problems": problems}, *_MARK)
    return Written(store.path(REPORT), len(_encoded(page)), problems)


def write_file(page: str, out: str | Path) -> str:
    """Write a page to a local file, which appears whole; return its path.

    Raises
    ------
    RunDirectoryError
        If it cannot be written.
    """
    path = Path(out).absolute()
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(_encoded(page))
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise explain_write(str(path), error) from error
    return str(path)


def _encoded(page: str) -> bytes:
    return page.encode("utf-8", "backslashreplace")


def refresh(store: Store, *, wanted: bool) -> list[str]:
    """Leave a run with the report of its current selection, if one is wanted, and with none of an earlier one.

    Returns what went wrong with single sections.  Raises as ``write_report``.
    """
    mark = store.read_json(*_MARK)
    if mark and mark["key"] == _key(store) and store.exists(REPORT):
        return list(mark["problems"])
    store.remove(REPORT)
    return write_report(store).problems if wanted else []


def _key(store: Store) -> str:
    """Name what a report shows: the selection, and the code that draws it."""
    current = publish.current(store)
    return fingerprint("report", _VERSION, __version__, current and current.identity)


def summary(view: View) -> str:
    """Say in a few sentences what became of the rows."""
    counts, total = view.counts, view.ledger.height
    kept = counts.get("kept", 0) + counts.get("corrected", 0)
    text = f"Of {plural(total, 'row')}, {number(kept)} ({percent(kept / total)}) were kept"
    if counts.get("corrected"):
        text += f", {number(counts['corrected'])} of them corrected"
    out = []
    if counts.get("rejected"):
        out.append(f"{plural(counts['rejected'], 'row')} could not be read as a conversation")
    if counts.get("duplicate"):
        out.append(f"{number(counts['duplicate'])} repeat an earlier row to the letter")
    steps = [f"{number(s['dropped'])} by {s['name']}" for s in view.steps if s["dropped"]]
    if steps:
        out.append(f"{number(counts.get('dropped', 0))} were dropped: {', '.join(steps)}")
    text += (": " + "; ".join(out) if out else "") + "."
    tokens = next((s["tokens"] for s in reversed(view.steps) if s.get("tokens") is not None), None)
    if tokens is not None:
        text += f" What is kept holds {number(tokens)} tokens."
    if view.manifest.get("limit"):
        text += f" This was a rehearsal on the first {number(view.manifest['limit'])} rows."
    return text
