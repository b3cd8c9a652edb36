"""What the site adds to the pages in this folder: pages made from code and from the repository's own files.

``index.md``, ``contributing.md`` and ``changelog.md`` are README.md, CONTRIBUTING.md and CHANGELOG.md;
``reference/recipe.md`` is made from the schema of recipes, ``reference/commands.md`` from the command line itself.
Links that leave this folder (to code, benchmarks, examples) become the plain path: the site holds the documentation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
COPIED = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<!!)\[((?:[^\]\\]|\\.)*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in COPIED.items()}
    made |= {"reference/recipe.md": recipe_page(), "reference/commands.md": commands_page()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    from curate.schema import recipe_schema

    schema = json.dumps(recipe_schema(), indent=1, ensure_ascii=False)
    files.append(File.generated(config, "reference/recipe.schema.json", content=schema))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's own pages, and turn those that leave it into text."""
    name = page.file.src_uri
    base = ROOT if name in COPIED else (ROOT / "docs" / name).parent
    here = Path(name).parent
    back = {source: target for target, source in COPIED.items()}

    def place(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if "://" in target or target.startswith(("#", "mailto:")):
            return found[0]
        path, _, anchor = target.partition("#")
        try:
            inside = (base / path).resolve().relative_to(ROOT).as_posix()
        except ValueError:
            return found[0]
        page_name = back.get(inside, inside.removeprefix("docs/") if inside.startswith("docs/") else None)
        if page_name is None or files.get_file_from_path(page_name) is None:
            return text if "`" in text or text == inside else f"{text} (`{inside}`)"
        steps = "../" * len(here.parts)
        return f"[{text}]({steps}{page_name}{'#' + anchor if anchor else ''})"

    pieces = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(piece if i % 2 else LINK.sub(place, piece) for i, piece in enumerate(pieces))


# -- pages made from code --------------------------------------------------------------------------------------------


def recipe_page() -> str:
    """Return the page of every key of a recipe: types, defaults, meanings."""
    from curate.schema import recipe_schema

    schema = recipe_schema()
    definitions = schema["$defs"]
    lines = [
        "# Recipe keys",
        "",
        "Made from the classes that check a recipe. `curate schema` prints the same as a "
        "[JSON Schema](recipe.schema.json); with `# yaml-language-server: $schema=recipe.schema.json` as a recipe's "
        "first line, editors complete and check it while one types.",
        "",
        "## The document",
        "",
        *_rows(schema["properties"]),
    ]
    for name in ("Source", "Combination", "Quota", "Output", "Execution"):
        lines += ["", f"## {name}", "", definitions[name]["description"], "", *_rows(definitions[name]["properties"])]
    for kind in ("scorers", "selectors", "exporters"):
        named = {k: v for k, v in definitions.items() if k.startswith(f"{kind}.")}
        if named:
            lines += ["", f"## {kind.capitalize()}"]
        for name, definition in named.items():
            own = {k: v for k, v in definition["properties"].items() if k != "use"}
            head = name.partition(".")[2]
            lines += ["", f"### `use: {head}`", "", definition["description"], "", *_rows(own)]
    return "\n".join(lines) + "\n"


def _rows(properties: dict[str, Any]) -> list[str]:
    if not properties:
        return ["No parameters."]
    lines = ["| key | what | default | meaning |", "|---|---|---|---|"]
    for key, spec in properties.items():
        default = f"`{json.dumps(spec['default'], ensure_ascii=False)}`" if "default" in spec else ""
        meaning = spec.get("description", "").replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{key}` | {_kind(spec)} | {default} | {meaning} |")
    return lines


def _kind(spec: dict[str, Any]) -> str:
    if "$ref" in spec:
        return spec["$ref"].rpartition("/")[2]
    if "enum" in spec:
        return ", ".join(f"`{v}`" for v in spec["enum"])
    if "const" in spec:
        return f"`{spec['const']}`"
    if "anyOf" in spec:
        return " or ".join(_kind(s) for s in spec["anyOf"])
    kind = spec.get("type", "any")
    if kind == "array":
        return f"list of {_kind(spec.get('items', {}))}"
    return {"null": "nothing", "object": "mapping", "string": "text"}.get(kind, kind)


def commands_page() -> str:
    """Return the page of the command line, from the command line itself."""
    import typer.main

    from curate.cli import app

    group = typer.main.get_command(app)
    lines = ["# Commands", "", f"{app.info.help}", "", "Exit codes: 0 done, 1 a run cannot go on, 2 usage, 130 Ctrl-C."]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        lines += ["", f"## curate {name}", "", (command.help or "").strip(), "", *_options(command)]
    return "\n".join(lines) + "\n"


def _options(command: Any) -> Iterator[str]:
    yield from ["| argument | meaning |", "|---|---|"]
    for parameter in command.params:
        word = parameter.metavar or parameter.name.upper()
        words = ", ".join(parameter.opts) if parameter.param_type_name == "option" else word
        yield f"| `{words}` | {(getattr(parameter, 'help', None) or '').replace('|', chr(92) + '|')} |"
