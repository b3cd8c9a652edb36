"""The JSON Schema of recipes accepts what ``Recipe`` accepts, and refuses what an editor should underline."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from curate import registry
from curate.document import load_yaml
from curate.recipe import Recipe
from curate.schema import field_docs, recipe_schema

ROOT = Path(__file__).resolve().parents[1]
RECIPES = [ROOT / "examples/quickstart.yaml", *sorted((ROOT / "benchmarks").glob("*/*.yaml"))]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema)
    return jsonschema.Draft202012Validator(schema)


def document(path: Path = RECIPES[0]) -> dict[str, Any]:
    return load_yaml(path.read_text(encoding="utf-8"), path)[0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_of_the_repository_are_valid(validator: jsonschema.Draft202012Validator, path: Path) -> None:
    assert [e.message for e in validator.iter_errors(document(path))] == []


def test_the_document_with_all_defaults_is_valid(validator: jsonschema.Draft202012Validator) -> None:
    recipe = Recipe.from_dict(document(), base=ROOT / "examples")
    assert [e.message for e in validator.iter_errors(recipe.document())] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("scorer",), {}),
        (("sources", 0, "pth"), "x"),
        (("scorers", "likelihood", "modle"), "x"),
        (("scorers", "likelihood", "use"), "liklihood"),
        (("select", 0, "use"), "treshold"),
        (("select", 0, "minimum"), 1),
        (("select", 2, "nulls"), "ignore"),
        (("select", 2, "clusters"), -1.5),
        (("combine", "quality", "method"), "sum"),
        (("execution", "workers"), 0),
        (("output", "split"), "a/b"),
        (("seed",), "x"),
    ],
)
def test_what_an_editor_underlines(
    validator: jsonschema.Draft202012Validator, path: tuple[Any, ...], value: Any
) -> None:
    changed = copy.deepcopy(document())
    at = changed
    for key in path[:-1]:
        at = at.setdefault(key, {}) if isinstance(at, dict) else at[key]
    at[path[-1]] = value
    assert not validator.is_valid(changed)


def test_every_word_and_every_parameter_is_described() -> None:
    definitions = recipe_schema()["$defs"]
    for kind in ("scorers", "selectors"):
        for word in registry.names(kind):
            definition = definitions[f"{kind}.{word}"]
            assert definition["description"], word
            for name, spec in definition["properties"].items():
                assert spec.get("description") or "$ref" in spec, (word, name)


def test_docstrings_below_fields_are_found() -> None:
    texts = field_docs(registry.find("selectors", "top-k"))
    assert texts["largest"] == "Whether a higher score is better."
