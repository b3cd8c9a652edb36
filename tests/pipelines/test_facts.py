from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from curate.exceptions import InputError, RunDirectoryError
from curate.pipelines.facts import facts_of
from curate.pipelines.store import Store
from curate.report.card import licence, total
from tests.conftest import rows_of, write_jsonl
from tests.hub_server import card_errors
from tests.pipelines.helpers import run

ALL: dict[str, Any] = {"scorers": {}, "select": [], "report": False}


def card_of(job: Any) -> str:
    text = Path(job.store.root, "README.md").read_text(encoding="utf-8")
    assert card_errors(text) == []
    return text


def test_the_card_of_the_example_pool(example_pool: Path, tmp_path: Path) -> None:
    """Every source has one licence of its own, as examples/pool/LICENSES.md says."""
    job = run(example_pool, tmp_path / "run", shard_rows=512, **ALL)
    facts = facts_of(job.store)
    licences = {s.name: licence(next(iter(s.licences))) for s in facts.sources if len(s.licences) == 1}
    assert len(licences) == len(facts.sources) == 12
    assert licences["dolly"] == "cc-by-sa-3.0" and licences["gsm8k"] == "mit"
    assert sum(s.kept for s in facts.sources) == facts.rows == 3077
    assert sum(s.read for s in facts.sources) == 3119
    text = card_of(job)
    assert DatasetCard(text).data.to_dict()["license_name"] == "mixed" and "disagree" not in text
    assert "| copies set aside | 42 | the same conversation as an earlier row |" in text


def test_licences_and_languages_are_the_rows_own_then_the_recipes(tmp_path: Path) -> None:
    rows = rows_of(12, sources=("forum",))
    words: list[Any] = ["MIT", "mit", None, "", ["mit", "isc"], {"name": "x"}, 3, "GPL", "  ", "MIT", "MIT", "MIT"]
    own = [{**row, "license": word, "lang": "en"} for row, word in zip(rows, words, strict=True)]
    plain = [{**row, "extra_license": "x", "nested": {"license": "y"}} for row in rows_of(20, sources=("wiki",))[12:]]
    a = write_jsonl(tmp_path / "a.jsonl", own)
    b = write_jsonl(tmp_path / "b.jsonl", plain)

    def facts(**declared: str) -> Any:
        sources = [{"path": str(a), **declared}, {"path": str(b), **declared, "name": "w"}]
        job = run(a, tmp_path / "run", sources=sources, **ALL)
        return facts_of(job.store), card_of(job)

    undeclared, text = facts()
    forum, wiki = undeclared.sources
    assert forum.licences == {"MIT": 4, "mit": 1, "": 3, "mit, isc": 1, '{"name":"x"}': 1, "3": 1, "GPL": 1}
    assert wiki.licences == {"": 8} and forum.languages == {"en": 12} and wiki.languages == {"": 8}
    assert total(undeclared, "licences")["mit"] == 5
    assert "disagree in: forum." in text and "For 11 rows **none is stated**" in text

    declared, text = facts(license="Apache 2.0", language="de")
    forum, wiki = declared.sources
    assert forum.licences == {"MIT": 4, "mit": 1, "Apache 2.0": 3, "mit, isc": 1, '{"name":"x"}': 1, "3": 1, "GPL": 1}
    assert wiki.licences == {"Apache 2.0": 8} and wiki.languages == {"de": 8} and forum.languages == {"en": 12}
    assert DatasetCard(text).data.language == ["de", "en"]


def test_what_is_declared_changes_the_card_and_nothing_else(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(9))
    job = run(path, tmp_path / "run", **ALL)
    assert "license: unknown" in card_of(job)
    events = (tmp_path / "run/.curate/events.jsonl").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/dataset").iterdir()}
    job = run(path, tmp_path / "run", sources=[{"path": str(path), "license": "odc-by"}], **ALL)
    assert "license: odc-by" in card_of(job)
    assert (tmp_path / "run/.curate/events.jsonl").read_bytes() == events
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run/dataset").iterdir()} == stamps


@pytest.mark.parametrize("shard_rows", [1, 7, 1000])
def test_shards_change_no_fact(tmp_path: Path, shard_rows: int) -> None:
    rows = [{**row, "license": "mit" if i % 3 else "isc"} for i, row in enumerate(rows_of(40))]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, rows[0], {"messages": 3}])
    steps = [{"use": "random", "budget": "50%"}]
    whole = facts_of(run(path, tmp_path / "whole", scorers={}, select=steps, report=False).store)
    assert (
        facts_of(run(path, tmp_path / "cut", scorers={}, select=steps, report=False, shard_rows=shard_rows).store)
        == whole
    )
    assert {n for _, n, _ in whole.stages[1:]} == {1, 20} and whole.stages[0][1] == 42
    assert sum(n for _, n, _ in whole.stages[1:]) == 42


def test_an_evaluation_beside_the_dataset_is_shown_and_a_broken_one_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(9))
    job = run(path, tmp_path / "run", **ALL)
    (tmp_path / "run/evaluation.json").write_text('[{"benchmark": "gsm8k", "ours": 0.5, "random": 0.4}]')
    run(path, tmp_path / "run", **ALL)
    assert "| gsm8k | 0.5 | 0.4 |" in card_of(job)
    for broken, said in (
        ("{", "this is no JSON"),
        ("[1]", "a list of flat records was asked.*found 1"),
        ('[{"a": []}]', "flat"),
    ):
        (tmp_path / "run/evaluation.json").write_text(broken)
        with pytest.raises(InputError, match=rf"evaluation.json: .*{said}"):
            facts_of(job.store)


def test_there_are_no_facts_of_a_run_that_is_not_finished(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows_of(9))
    job = run(path, tmp_path / "run", until="read")
    for store in (job.store, Store(str(tmp_path))):
        with pytest.raises(RunDirectoryError, match=r"holds no finished run; run its recipe to the end first"):
            facts_of(store)


def test_a_rehearsal_says_so_and_the_run_loads_as_the_card_says(tmp_path: Path) -> None:
    from datasets import load_dataset

    from curate.pipelines.run import Run
    from tests.pipelines.helpers import recipe

    path = write_jsonl(tmp_path / "a.jsonl", rows_of(30))
    job = Run(recipe(path, **ALL, output={"shard_rows": 4}), tmp_path / "run", "sync", limit=10, quiet=True)
    job.execute()
    assert "**A rehearsal**: only the first 10 rows" in card_of(job)
    loaded = load_dataset(str(tmp_path / "run"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 10 and loaded.column_names == ["messages"]
    assert json.loads((tmp_path / "run/.curate/card.json").read_text())["facts"]["limit"] == 10
