"""A recipe's text as nested mappings and lists, and the line on which each part of it stands.

YAML by a safe loader, with the booleans of YAML 1.2.  A key that stands twice is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from curate.exceptions import RecipeError

Place = tuple[str | int, ...]
"""Where in a document: ("select", 0, "budget")."""


class _Loader(yaml.SafeLoader):
    """The safe loader with the booleans of YAML 1.2: only true and false; ``on:``, ``yes``, ``no`` are words."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")
)


def load_yaml(text: str, path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    marks: dict[Place, int] = {}

    def walk(node: yaml.Node, at: Place) -> None:
        marks.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                word = str(key.value)
                if word in seen:
                    raise RecipeError(f"{word!r} stands twice.", where=f"{path}:{key.start_mark.line + 1}")
                seen.add(word)
                marks[(*at, word)] = key.start_mark.line + 1
                walk(value, (*at, word))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                walk(value, (*at, i))

    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise RecipeError("the recipe is empty; the least is 'sources: [{path: …}]'.", where=str(path))
            walk(node, ())
            document = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(f"not valid YAML: {getattr(error, 'problem', None) or error}.", where=where) from None
    if not isinstance(document, dict):
        raise RecipeError(
            f"a mapping was asked (sources, scorers, select, …), {type(document).__name__} was found.",
            where=f"{path}:1",
        )
    return document, marks


def parse_value(text: str) -> Any:
    """Read one value as a recipe would; text that is no YAML is itself."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def override(document: Any, dotted: str, value: Any) -> None:
    """Set ``a.b.0.c`` in nested mappings and lists."""
    *parents, last = dotted.split(".")
    at = document
    for depth, part in enumerate(parents):
        try:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        except (IndexError, ValueError, AttributeError):
            raise RecipeError(
                f"--set {dotted}: there is no {'.'.join(parents[: depth + 1])!r} in the recipe."
            ) from None
    try:
        if isinstance(at, list):
            at[int(last)] = value
        elif isinstance(at, dict):
            at[last] = value
        else:
            raise ValueError
    except (IndexError, ValueError):
        raise RecipeError(f"--set {dotted}: there is no such place in the recipe.") from None
