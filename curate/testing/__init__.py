"""Checks that any scorer, selector, corrector or export format can be put through, also those of other packages.

    from curate.testing import check_scorer
    def test_my_scorer():
        check_scorer(MyScorer(parameter=3))

Each check raises AssertionError with the law that was broken and the rows that show it.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "check_scorer": "curate.testing.scorers",
    "odd_examples": "curate.testing.scorers",
    "check_selector": "curate.testing.selectors",
    "check_corrector": "curate.testing.correctors",
    "check_exporter": "curate.testing.exporters",
}
__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
