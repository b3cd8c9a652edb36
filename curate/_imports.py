"""Optional packages: asked for by the part that needs them, when it is used."""

from __future__ import annotations

import importlib
from types import ModuleType

from curate.exceptions import MissingDependencyError


def require(module: str, *, extra: str, for_: str) -> ModuleType:
    """Import ``module``, or say which extra brings it.

    Raises
    ------
    MissingDependencyError
        If the package is not installed.  A package that is installed but broken inside raises its own error: that one
        is the useful one.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingDependencyError(
            f"{for_} needs the package {module!r}: pip install 'curate-sft[{extra}]'"
        ) from error
