"""Ready-made recipes, one a method: files to print, put somewhere and change."""

from __future__ import annotations

from importlib.resources import files

from curate.exceptions import InputError
from curate.registry import nearest


def names() -> list[str]:
    """Return the names of the recipes, sorted."""
    found = (entry.name for entry in files("curate").joinpath("pipelines/recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def text(name: str) -> str:
    """Return a recipe as YAML, with its comments.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    name = name.removesuffix(".yaml")
    known = names()
    if name not in known:
        raise InputError(f"no ready-made recipe is called {name!r}{nearest(name, known)} Known: {', '.join(known)}.")
    return files("curate").joinpath(f"pipelines/recipes/{name}.yaml").read_text(encoding="utf-8")


def about(name: str) -> str:
    """Return what a recipe does, in the words of its first line."""
    return text(name).partition("\n")[0].removeprefix("# ")
