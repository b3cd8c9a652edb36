"""Rows with their texts and reasons, to search and to filter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curate.report.blocks import Rows, Section
from curate.report.text import percent

if TYPE_CHECKING:
    from curate.report.view import View


def sections(view: View) -> list[Section]:
    if not view.samples:
        return []
    shown: dict[str, int] = {}
    for sample in view.samples:
        shown[sample.decision] = shown.get(sample.decision, 0) + 1
    parts = [f"{n:,} of {view.counts[word]:,} {word} ({percent(n / view.counts[word])})" for word, n in shown.items()]
    note = (
        f"{', '.join(parts)}: drawn by the run's seed, decisions in equal shares, rare reasons more often than "
        "their share. Long texts are cut, with a mark. Every row's story: curate why RUN ID."
    )
    return [Section("Rows and reasons", [Rows(view.samples, note)])]
