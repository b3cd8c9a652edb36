"""A finished run whose rows try to break its report, and a browser to open it in."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.pipelines.run import Run
from curate.recipe import Recipe
from tests.conftest import conversation, rows_of, write_jsonl

ATTACKS = [
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    "<!-- <script> --!>",
    "]]><svg onload=window.pwned=3>",
    "<img src=x onerror=window.pwned=4>",
    '" onmouseover="window.pwned=5',
    "javascript:window.pwned=6",
    "{{ 7 * 191 }} {% raw %} ${1}",
    "line\u2028separator and paragraph\u2029",
    "access level \u202euser\u202c\u2066\u2069 and zero\u200bwidth",
    "bell \x07 and null \x00 and delete \x7f",
    "family 👨\u200d👩\u200d👧 and \u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "&lt;b&gt; &amp; &quot;",
    "long " + "ä" * 100_000,
]


def nasty_rows() -> list[Any]:
    rows: list[Any] = rows_of(200)
    for i, row in enumerate(rows):
        row["language"] = ("en", "de", "fr")[i % 3]
    for i, attack in enumerate(ATTACKS):
        row = {
            "messages": conversation(f"Question {attack}", f"Answer {i}: {attack}"),
            "source": attack[:60],
            "rating": 9.9,
        }
        rows.append({**row, "group": attack[:60], "language": attack[:30]})
    long = {"source": "👩\u200d🚀 " * 40, "group": "g" * 100_000, "rating": 9.9}  # names that no label has room for
    rows += [{"messages": conversation(f"Long {i}", "name"), **long} for i in range(8)]
    rows += [rows[3], rows[-1]]  # copies
    rows += [{"messages": [{"role": "user", "content": attack}], "source": "a"} for attack in ATTACKS[:6]]  # rejected
    return rows


@pytest.fixture(scope="session")
def nasty_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps over ordinary and hostile rows, with its report; about 3 s."""
    folder = tmp_path_factory.mktemp("report")
    pool = write_jsonl(folder / "pool.jsonl", nasty_rows())
    recipe = Recipe.from_dict(
        {
            "name": "nasty",
            "seed": 3,
            "sources": [{"path": str(pool)}],
            "scorers": {
                "heuristics": {"use": "text-heuristics"},
                "rating": {"use": "column", "column": "rating", "higher_is_better": True},
                "ngrams": {"use": "hashed-ngrams", "dim": 16},
            },
            "combine": {"quality": {"method": "rank", "of": {"rating": 1, "heuristics.repetition": 1}}},
            "select": [
                {"use": "threshold", "on": "rating", "min": 1.5},
                {"use": "kmq", "features": "ngrams", "quality": "quality", "clusters": 8, "budget": "25%"},
            ],
            "execution": {"shard_rows": 64},
        }
    )
    Run(recipe, folder / "run", "sync", quiet=True).execute()
    return folder / "run"


def _chromium() -> str | None:
    named = os.environ.get("CURATE_CHROMIUM")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome"))
    return named or next((path for path in found if path), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium: $CURATE_CHROMIUM, or what PATH has.  With CURATE_REQUIRE_BROWSER=1 it may not be missing."""
    missing = [name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None]
    path = _chromium()
    if path is None or missing:
        reason = f"no browser: chromium {path or 'not found'}, packages missing: {', '.join(missing) or 'none'}"
        if os.environ.get("CURATE_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
