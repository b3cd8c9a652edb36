"""curate: score, select and hand over instruction-tuning data, with a reason for every row."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name → module that defines it.  Loaded when first asked for, so that `import curate` costs nothing.
_PUBLIC = {
    "Budget": "curate.budget",
    "Quota": "curate.budget",
    "Column": "curate.base",
    "Scorer": "curate.base",
    "Selector": "curate.base",
    "Corrector": "curate.correction",
    "Connector": "curate.base",
    "Exporter": "curate.exporters.base",
    "Selection": "curate.selection",
    "Recipe": "curate.recipe",
    "Run": "curate.pipelines.run",
    "Evaluation": "curate.evaluation.evaluate",
    "CurateError": "curate.exceptions",
    "read": "curate.connectors.pool",
    "score": "curate.pipelines.api",
    "export": "curate.pipelines.api",
}
_SUBPACKAGES = (
    *("scorers", "selectors", "correctors", "connectors", "exporters"),
    *("models", "numerics", "pipelines", "evaluation", "testing"),
)

__all__ = ["__version__", *sorted(_PUBLIC), *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"curate.{name}")
    else:
        raise AttributeError(f"module 'curate' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
