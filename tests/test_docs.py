"""The documentation: snippets run and print what they say, links resolve, recipes parse, commands exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
import yaml

from curate.cli import app
from curate.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|[\s/])curate ((?!-sft)[^&|;\n]*)")


def blocks(page: Path, *languages: str) -> list[str]:
    return [m[3] for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m[2] in languages]


WITH_SNIPPETS = [page for page in PAGES if blocks(page, "python")]


def outside_blocks(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.fixture
def examples() -> pa.Table:
    """Eight short rows of the shipped pool, for snippets that begin where some examples are at hand."""
    import curate

    rows = curate.read(str(ROOT / "examples/pool/train-00000-of-00004.parquet")).examples()
    return rows.sort_by("chars").slice(0, 8).combine_chunks()


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.name)
def test_snippets_run_and_print_what_they_say(
    page: Path, examples: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets = blocks(page, "python")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("snippet")  # in sys.modules, because a class that travels to a worker is found there
    monkeypatch.setitem(sys.modules, "snippet", module)
    module.__dict__.update(examples=examples, sample=examples)
    for number, snippet in enumerate(snippets):
        printed = io.StringIO()
        code = compile(snippet, f"{page.name}, snippet {number}", "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, module.__dict__)
        for line in snippet.splitlines():
            said = re.match(r"print\(.*\)  # (.*)", line)
            if said:
                assert said[1] in printed.getvalue().splitlines(), f"{page.name} says {line}"


def test_the_readme_shows_what_its_snippet_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pair = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert pair, "README.md: no snippet followed by what it prints"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(pair[1], "README.md", "exec", dont_inherit=True), {"__name__": "snippet"})
    assert printed.getvalue() == pair[2]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ +(.*)$", outside_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_blocks(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert not broken, f"{page.name}: {broken}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_recipes_parse(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml", "yml")):
        document = yaml.safe_load(text)
        if isinstance(document, dict) and "sources" in document:
            path = tmp_path / f"recipe-{number}.yaml"
            path.write_text(text, encoding="utf-8")
            Recipe.load(path)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words behind every ``curate`` in a page's console blocks; output lines are left out."""
    for block in blocks(page, "console", "bash", "sh"):
        lines = block.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")] or lines
        for line in typed:
            for found in COMMAND.finditer(line):
                yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in commands(page):
        level = group
        while words and words[0].startswith("-"):
            assert any(words[0] in p.opts for p in group.params), f"{page.name}: curate has no option {words[0]}"
            words = words[1:]
        if not words:
            continue
        level = group.commands.get(words[0])  # type: ignore[attr-defined]
        assert level is not None, f"{page.name}: there is no command 'curate {words[0]}'"
        known = {option for p in level.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        unknown = [w for w in words[1:] if w.startswith("-") and w.partition("=")[0] not in known]
        assert not unknown, f"{page.name}: 'curate {words[0]}' has no option {unknown}"


def test_the_documentation_names_every_key_of_a_recipe() -> None:
    """A key that is added to a recipe, a source, a step or the output fails here until the page has it."""
    import dataclasses

    from curate.connectors.source import Source
    from curate.recipe_parts import (
        CORRECTION_KEYS,
        STEP_KEYS,
        Combination,
        Document,
        Evaluate,
        Execution,
        Output,
        QuotaSpec,
    )

    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    models = (Document, Combination, QuotaSpec, Evaluate)
    keys = [
        *STEP_KEYS,
        *CORRECTION_KEYS,
        *(f.name for f in dataclasses.fields(Source)),
        *(k for m in models for k in m.model_fields),
    ]
    keys += [f"output.{k}" for k in Output.model_fields] + [f"execution.{k}" for k in Execution.model_fields]
    missing = [key for key in keys if f"`{key}`" not in text]
    assert not missing, f"docs/recipes.md says nothing of {missing}"


def test_the_licences_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    named = (ROOT / "examples/pool/LICENSES.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "examples/pool").glob("*.parquet"))
    assert files
    sources = set(pa.concat_tables([pq.read_table(f, columns=["source"]) for f in files])["source"].to_pylist())
    assert not [s for s in sources if f"| {s} |" not in named]
