"""The formats that trainers read, one a file; each is loaded when first asked for."""

from __future__ import annotations

import importlib
from typing import Any

from curate.registry import BUILT_IN

_CLASSES = {path.partition(":")[2]: path.partition(":")[0] for path in BUILT_IN["exporters"].values()}
__all__ = sorted(_CLASSES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_CLASSES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
