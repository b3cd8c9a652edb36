"""The JSON Schema of recipes, for editors: completion, descriptions and red lines while one types.

Made from the same classes that check a recipe when it is loaded, plugins included, so that the two cannot disagree on
what exists.  What only the whole document can tell (does that score exist?) is left to ``Recipe``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import Any

from pydantic import BaseModel, TypeAdapter

from curate import registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"

STEP_FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "description": "What the ledger calls the step; NUMBER-WORD when absent."},
    "on": {"type": "string", "description": "The score to choose by: STAGE, STAGE.COLUMN or a combination."},
    "features": {"type": "string", "description": "The stage whose vectors the step looks at."},
    "quality": {"type": "string", "description": "The score that weighs rows within a cluster."},
    "groups": {
        "type": "string",
        "description": "The groups that the selector itself works by: prompt, source, group, or a "
        "score column of labels.",
    },
    "budget": {
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "number"}],
        "description": 'How much to keep: rows (5000), a share ("10%"), training tokens ("2M tokens").',
    },
    "cost": {"type": "string", "description": "The column of token counts that a budget in tokens adds up."},
    "nulls": {"enum": ["drop", "stop"], "description": "What to do with rows that lack the score.", "default": "drop"},
}


def recipe_schema() -> dict[str, Any]:
    """Return the schema of a recipe as a JSON-compatible mapping (draft 2020-12)."""
    from curate.connectors.source import Source
    from curate.recipe_parts import Document, QuotaSpec

    schema = _described(Document.model_json_schema(), Document)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for name, definition in list(definitions.items()):
        model = next((m for m in _models(Document) if m.__name__ == name), None)
        if model is not None:
            definitions[name] = _described(definition, model)
    definitions["Source"] = _of_class(Source, definitions)
    quota = QuotaSpec.model_json_schema()
    definitions["Quota"] = _described(quota, QuotaSpec)
    properties = schema["properties"]
    properties["sources"]["items"] = {"$ref": "#/$defs/Source"}
    properties["benchmarks"]["additionalProperties"] = {"$ref": "#/$defs/Source"}
    definitions["Targets"]["properties"]["sets"]["additionalProperties"] = {"$ref": "#/$defs/Source"}
    properties["scorers"]["additionalProperties"] = _choice("scorers", {}, definitions)
    steps = {**STEP_FIELDS, "quota": {"$ref": "#/$defs/Quota", "description": "Shares of the groups in what is kept."}}
    properties["select"]["items"] = _choice("selectors", steps, definitions)
    properties["correct"]["items"] = _choice("correctors", CORRECTION_FIELDS, definitions)
    if "exports" in properties:
        properties["exports"]["items"] = _choice("exporters", EXPORT_FIELDS, definitions)
    return {"$schema": DIALECT, **schema, "title": "A recipe of curate"}


CORRECTION_FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "description": "What the ledger calls the correction; its word when absent."},
    "after": {
        "type": "string",
        "description": "The step of the selection that it follows; the last when absent, or start.",
    },
    "rows": {
        "enum": ["all", "kept", "dropped"],
        "description": "Which of the rows that went into that step it looks at.",
    },
    "revert": {
        "anyOf": [{"const": "all"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Ids whose answers stay as they were.",
    },
}

EXPORT_FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "description": "Names the folder under exports/, and the data where a trainer asks."},
    "to": {"type": "string", "description": "Another folder or URL than RUN/exports/NAME."},
    "file": {"enum": ["parquet", "jsonl", "jsonl.gz", "jsonl.zst"], "description": "Kind of the data files."},
    "shard_rows": {"type": "integer", "minimum": 1, "description": "Rows per file.", "default": 100_000},
    "strict": {"type": "boolean", "description": "Stop if a row cannot be held.", "default": False},
}


def _models(root: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the models that the fields of ``root`` are made of."""
    from curate import recipe_parts

    return [
        m for m in vars(recipe_parts).values() if isinstance(m, type) and issubclass(m, BaseModel) and m is not root
    ]


def _choice(kind: registry.Kind, more: dict[str, dict[str, Any]], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return ``{use: WORD, …}`` for every word of a kind, each with the parameters of its class."""
    words = registry.names(kind)
    branches = []
    for word in words:
        cls = registry.find(kind, word)
        own = _of_class(cls, definitions)
        own["properties"] = {
            "use": {"const": word, "description": own.get("description", "")},
            **own.get("properties", {}),
            **{
                role: {"anyOf": [{"type": "string"}, {"type": "object"}], "description": _role(needed)}
                for role, needed in getattr(cls, "roles", {}).items()
            },
            **more,
        }
        definitions[f"{kind}.{word}"] = own
        branches.append(
            {
                "if": {"properties": {"use": {"const": word}}, "required": ["use"]},
                "then": {"$ref": f"#/$defs/{kind}.{word}"},
            }
        )
    required = [] if kind == "scorers" else ["use"]  # a scorer's own name is its word when it says no other
    return {"type": "object", "properties": {"use": {"enum": words}}, "required": required, "allOf": branches}


def _role(needed: Any) -> str:
    return f"A scorer of the recipe by its name, or an entry for one of its own ({needed.scorer}, unless it says use)."


def _of_class(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter class: no other keys, descriptions from its docstrings."""
    schema = TypeAdapter(cls).json_schema(ref_template="#/$defs/{model}")
    definitions.update(schema.pop("$defs", {}))
    own = {f.name for f in dataclasses.fields(cls) if f.init}
    schema["properties"] = {k: v for k, v in schema.get("properties", {}).items() if k in own}
    schema["additionalProperties"] = False
    return _described(schema, cls)


def _described(schema: dict[str, Any], cls: type) -> dict[str, Any]:
    """Add the first sentence of a class's docstring and the docstrings below its fields."""
    schema = dict(schema)
    schema["description"] = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    texts = field_docs(cls)
    for name, spec in schema.get("properties", {}).items():
        spec.pop("title", None)
        if name in texts:
            spec["description"] = texts[name]
    schema.pop("title", None)
    return schema


def field_docs(cls: type) -> dict[str, str]:
    """Return field → the docstring that stands below it, of a class and those it inherits from."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # built in, or typed at a prompt: there is no source to read
            continue
        if not isinstance(tree.body[0], ast.ClassDef):
            continue
        body = tree.body[0].body
        for statement, after in itertools.pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                out[statement.target.id] = " ".join(after.value.value.split())
    return out
