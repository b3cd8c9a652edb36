from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import curate
from curate.connectors import hub_datasets
from curate.connectors.discover import discover, label
from curate.connectors.hub_datasets import Address, address, dataset_of, files_of, own_configs, splits_by_name, unpinned
from curate.connectors.source import Source
from curate.exceptions import SchemaError, SourceError
from curate.recipe import Recipe
from tests.conftest import rows_of
from tests.connectors.helpers import read_all
from tests.hub_server import TOKEN, Fault, Hub
from tests.pipelines.helpers import computed, kept_ids, run

NAME = "lab/pool"


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def card(configs: list[dict[str, Any]]) -> bytes:
    import yaml

    return f"---\n{yaml.safe_dump({'configs': configs})}---\n# Card\n".encode()


ROWS = rows_of(40)
HALVES = {
    "data/train-00000-of-00002.parquet": parquet(ROWS[:20]),
    "data/train-00001-of-00002.parquet": parquet(ROWS[20:]),
}


# -- hf:// URLs --------------------------------------------------------------------------------------------------------


def test_a_file_a_folder_a_glob_and_a_whole_repository_are_read_at_one_commit(hub: Hub) -> None:
    others = {"more/extra.jsonl": jsonl(ROWS[:5]), ".hidden/x.jsonl": b"{", "README.md": b"# x"}
    sha = hub.add(NAME, HALVES | others, private=True).branches["main"]
    root = f"hf://datasets/{NAME}"
    pinned = f"hf://datasets/{NAME}@{sha}"
    found = [f"{pinned}/{name}" for name in HALVES]
    for path, expected in {
        f"{root}/data/train-00000-of-00002.parquet": found[:1],
        f"{root}@main/data/train-00001-of-00002.parquet": found[1:],
        f"{root}@{sha}/data": found,
        f"{root}/data/*.parquet": found,
        f"{root}/**/*.jsonl": [f"{pinned}/more/extra.jsonl"],
        root: [*found, f"{pinned}/more/extra.jsonl"],
    }.items():
        assert [s.url for s in discover([Source(path=path)])] == expected, path
    result = read_all(root)
    assert result.rows == 45
    assert set(result.table["file"].to_pylist()) == {*found, f"{pinned}/more/extra.jsonl"}


def test_a_label_says_nothing_of_the_commit() -> None:
    for path in (
        "hf://datasets/lab/pool@0123abc/data/train-00000-of-00002.parquet",
        "hf://datasets/lab/pool/train.json",
    ):
        assert label(path) == "pool"
    assert label("hf://datasets/lab/pool@refs/convert/parquet/default/train/0000.parquet") == "pool"
    assert label("data/a@b.jsonl") == "a@b"


def test_addresses_are_taken_apart_and_put_together_again() -> None:
    for url, parts in {
        "hf://datasets/a/b": Address("dataset", "a/b", None, ""),
        "hf://datasets/a/b@v1/x/y@z.parquet": Address("dataset", "a/b", "v1", "x/y@z.parquet"),
        "hf://datasets/a/b@refs/convert/parquet/c/t.parquet": Address(
            "dataset", "a/b", "refs/convert/parquet", "c/t.parquet"
        ),
        "hf://datasets/a/b@refs/pr/3": Address("dataset", "a/b", "refs/pr/3", ""),
        "hf://a/b/c d?.json": Address("model", "a/b", None, "c d?.json"),
        "hf://spaces/a/b@x/c": Address("space", "a/b", "x", "c"),
    }.items():
        assert address(url) == parts and str(parts) == url
        assert unpinned(url) == url.replace(f"@{parts.revision}", "", 1)
    assert address("hf://buckets/a/b/c") is None
    for bad in ("hf://datasets/a", "hf://x", "hf://", "hf://datasets//b/c"):
        with pytest.raises(SourceError, match=r"hf://datasets/USER/NAME/PATH was asked"):
            address(bad)
    assert dataset_of("hf:a/b@v:c/d") == dataset_of("hf://datasets/a/b@v/c") == "a/b"
    assert dataset_of("hf://a/b/c") is dataset_of("data/a/b") is None


def test_parquet_is_read_by_row_groups_and_lines_as_a_stream(hub: Hub) -> None:
    """No request is for the whole of a large Parquet file, and none for what was not asked."""
    many = [{**row, "noise": bytes(range(256)).hex() * 300} for row in rows_of(120)]
    data = parquet(many, row_group_size=10, compression="none", use_dictionary=False)
    assert len(data) > 15e6
    hub.add(NAME, {"big.parquet": data})
    pieces = discover([Source(path=f"hf://datasets/{NAME}/big.parquet")])
    assert sum(p.rows or 0 for p in pieces) == 120
    hub.ranges.clear()
    pool = curate.read(f"hf://datasets/{NAME}/big.parquet")
    first = next(pool.batches())[0]
    assert first.num_rows and hub.ranges
    sizes = [int(b) - int(a) + 1 for a, b in (said.split("-") for _, said in hub.ranges)]
    assert max(sizes) < 12e6 < len(data)


# -- hf:USER/NAME ------------------------------------------------------------------------------------------------------


def urls(path: str) -> list[str]:
    return [s.url.partition("@")[2].partition("/")[2] for s in discover([Source(path=path)])]


def test_an_id_means_what_datasets_would_load(hub: Hub) -> None:
    hub.add(NAME, HALVES | {"data/test-00000-of-00001.parquet": parquet(ROWS[:3]), "README.md": b"# no metadata"})
    assert urls(f"hf:{NAME}") == list(HALVES)
    assert urls(f"hf:{NAME}:default/test") == urls(f"hf:{NAME}@main:/test") == ["data/test-00000-of-00001.parquet"]
    with pytest.raises(SourceError, match=r"no split is called 'tset'; did you mean 'test'\? It has: test, train"):
        urls(f"hf:{NAME}:/tset")
    with pytest.raises(SourceError, match=r"no config is called 'x'.* It has: default"):
        urls(f"hf:{NAME}:x")
    for bad in ("hf:pool", "hf:a/b/c", "hf:", "hf:a b/c", "hf:/a/b"):
        with pytest.raises(SourceError, match=r"hf:USER/NAME\[@REVISION\]\[:CONFIG\[/SPLIT\]\] was asked"):
            urls(bad)


def test_the_cards_configs_decide(hub: Hub) -> None:
    one, two = {"config_name": "one", "data_files": "a/*.parquet"}, {"config_name": "two", "data_dir": "b"}
    three = {
        "config_name": "three",
        "data_files": [{"split": "dev", "path": ["a/x.parquet", "b"]}, {"split": "all.of_it", "path": "**/*.parquet"}],
    }
    files = {name: parquet(ROWS[:2]) for name in ("a/x.parquet", "a/y.parquet", "b/train.parquet", "b/test.parquet")}
    hub.add(NAME, files | {"README.md": card([one, two, three])})
    assert urls(f"hf:{NAME}:one") == ["a/x.parquet", "a/y.parquet"]
    assert urls(f"hf:{NAME}:two") == ["b/train.parquet"]
    assert urls(f"hf:{NAME}:two/test") == ["b/test.parquet"]
    assert urls(f"hf:{NAME}:three/dev") == ["a/x.parquet", "b/test.parquet", "b/train.parquet"]
    assert len(urls(f"hf:{NAME}:three/all.of_it")) == 4
    with pytest.raises(
        SourceError, match=r"this dataset has 3 configs \(one, two, three\); say which: hf:USER/NAME:CONFIG"
    ):
        urls(f"hf:{NAME}")
    with pytest.raises(SourceError, match=r"this dataset has 2 splits \(dev, all.of_it\); say which"):
        urls(f"hf:{NAME}:three")
    hub.put(NAME, {"README.md": card([one, {**two, "default": True}])})
    assert urls(f"hf:{NAME}") == ["b/train.parquet"]


def test_the_hubs_own_conversion_is_read_where_there_is_no_parquet(hub: Hub) -> None:
    repository = hub.add(NAME, {"train.csv": b"a,b\n", "README.md": b"# x"})
    with pytest.raises(SourceError, match=r"its conversion \(refs/convert/parquet\): there is no such branch"):
        urls(f"hf:{NAME}")
    hub.put(NAME, {"default/train/0000.parquet": HALVES["data/train-00000-of-00002.parquet"]}, "refs/convert/parquet")
    sha = repository.branches["refs/convert/parquet"]
    assert [s.url for s in discover([Source(path=f"hf:{NAME}")])] == [
        f"hf://datasets/{NAME}@{sha}/default/train/0000.parquet"
    ]
    assert read_all(f"hf:{NAME}").rows == 20
    with pytest.raises(SourceError, match=r"the Hub converts the main branch alone; name the files"):
        urls(f"hf:{NAME}@{repository.branches['main']}")
    hub.put(NAME, {"default/partial-train/0000.parquet": b"x"}, "refs/convert/parquet")
    with pytest.raises(SourceError, match=r"converted only the first part of it \(default/partial-train\)"):
        urls(f"hf:{NAME}")


def test_a_split_that_is_not_parquet_alone_is_refused(hub: Hub) -> None:
    hub.add(
        NAME,
        HALVES | {"data/train-extra.jsonl": b"{}", "README.md": card([{"config_name": "x", "data_files": "data/*"}])},
    )
    with pytest.raises(
        SourceError, match=r"'train' is not Parquet alone \(it has data/train-extra.jsonl\); name its files"
    ):
        urls(f"hf:{NAME}")


NAMES = st.lists(
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["", "data/", "train/", "test-1/", "a/dev/", "my_eval/x/", "other/"]),
            st.sampled_from(["", "x-", "my", "a_"]),
            st.sampled_from(["train", "testing", "valid", "val", "evaluation", "part", "extra"]),
            st.sampled_from(["", "-00000-of-00001", "-2", "set", "_b"]),
            st.just(".parquet"),
        ),
    ),
    min_size=1,
    max_size=5,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@given(names=NAMES)
def test_splits_are_those_that_datasets_tells_by_name(names: list[str]) -> None:
    """Against ``datasets``' own patterns, on files of every kind of name."""
    import tempfile

    from datasets.data_files import DataFilesDict, get_data_patterns

    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        try:
            patterns = get_data_patterns(folder)
        except ValueError as error:  # data/x-train-00000-of-00001: no name for a split
            assume("Split name should match" not in str(error))
            raise
        theirs = DataFilesDict.from_patterns(patterns, base_path=folder)
        told = {str(s): sorted({str(Path(f).relative_to(folder)) for f in files}) for s, files in theirs.items()}
    assert {split: sorted(set(files)) for split, files in splits_by_name(names).items()} == told


def test_odd_cards_do_no_harm() -> None:
    for odd in ({}, {"configs": None}, {"configs": "x"}, {"configs": ["x", {"data_files": "y"}]}, {"configs": [{}]}):
        assert own_configs(odd, ["a.parquet", ".x/b.parquet", "README.md"]) == {"default": {"train": ["a.parquet"]}}
    configs = own_configs({"configs": [{"config_name": 1, "data_files": {"dev": "./a.*"}}]}, ["a.parquet"])
    assert configs == {"1": {"dev": ["a.parquet"]}}


# -- a run of it -------------------------------------------------------------------------------------------------------


def test_a_run_reads_the_hub_and_knows_when_it_has_changed(hub: Hub, tmp_path: Path) -> None:
    hub.add(NAME, HALVES | {"README.md": b"# one"})

    def go() -> Any:
        return run(Path("unused"), tmp_path / "run", sources=[{"path": f"hf:{NAME}", "license": "mit"}], report=False)

    first = go()
    assert first.manifest["rows"]["input"] == 40
    before = computed(first)
    assert computed(go()) == before  # nothing is read again

    hub.put(NAME, {"README.md": b"# two"})  # another commit, the same rows
    kept = kept_ids(first)
    after = computed(go())
    assert after["read"] > before["read"] and after["heuristics"] == before["heuristics"]
    assert kept_ids(first) == kept

    hub.put(NAME, {"data/train-00001-of-00002.parquet": parquet(rows_of(60)[40:])})
    third = go()
    assert third.manifest["rows"]["input"] == 40 and computed(third)["heuristics"] > after["heuristics"]
    head = third.store.read_bytes("README.md").decode()
    assert "source_datasets:\n- lab/pool\n" in head and "license: mit\n" in head
    said = b"".join(p.read_bytes() for p in (tmp_path / "run").rglob("*.json*"))
    assert TOKEN.encode() not in said


def test_recipes_take_ids_as_they_are_and_plain_paths_as_paths(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({"sources": [{"path": ["hf:a/b:c/d", "hf://datasets/a/b/c.parquet", "a/b"]}]}, tmp_path)
    assert recipe.sources[0].paths == ["hf:a/b:c/d", "hf://datasets/a/b/c.parquet", str(tmp_path / "a/b")]
    with pytest.raises(SourceError, match=r"no data files at .*/a/b; .*hf:a/b"):
        discover(recipe.sources[:1] and [Source(path=str(tmp_path / "a/b"))])


def test_what_is_not_a_conversation_is_told_as_of_any_file(hub: Hub) -> None:
    hub.add(NAME, {"a.parquet": parquet([{"foo": 1, "bar": "x"}])})
    with pytest.raises(SchemaError, match=r"hf://datasets/lab/pool@[0-9a-f]{40}/a.parquet: no schema fits"):
        curate.read(f"hf:{NAME}")


# -- what the Hub refuses ----------------------------------------------------------------------------------------------

FORMS = [f"hf:{NAME}", f"hf://datasets/{NAME}/data", f"hf://datasets/{NAME}/data/*.parquet"]


@pytest.mark.parametrize("path", FORMS)
def test_what_cannot_be_read_is_told_as_what_it_is(hub: Hub, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str) -> None:
        with pytest.raises(SourceError, match=match) as caught:
            discover([Source(path=path)])
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert TOKEN not in str(caught.value)

    refused(r"there is no such repository, or this login may not see it; check the name")
    repository = hub.add(NAME, HALVES, private=True)
    hub.users[TOKEN].orgs = ()
    refused(r"there is no such repository, or this login may not see it")
    monkeypatch.setenv("HF_TOKEN", "")
    refused(r"there is no such repository, or it is private; check the name, or log in \(hf auth login")
    repository.private, repository.gated = False, True
    refused(r"access is granted on request only")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.users[TOKEN].expired = True
    refused(r"does not accept the token \(.*is expired\); log in again")
    hub.users[TOKEN].expired, repository.gated = False, False
    with hub.failing(Fault("GET /api/datasets/", "500", 99, message="what is {authorization}?")):
        refused(r"the Hub failed \(500\), also when asked again")
    with hub.failing(Fault("GET /api/datasets/", "cut", 99)):
        refused(r"the Hub cannot be reached")
    with hub.failing(Fault("GET /api/datasets/", "429", 2, headers={"Retry-After": "4"})):
        assert len(discover([Source(path=path)])) == 2
    assert hub.waits[-2:] == [4.0, 4.0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(r"HF_HUB_OFFLINE is set, so the Hub may not be asked; unset it")


def test_a_missing_branch_and_a_missing_file_are_told_apart(hub: Hub) -> None:
    hub.add(NAME, HALVES)
    for path in (f"hf:{NAME}@v9", f"hf://datasets/{NAME}@v9/data"):
        with pytest.raises(SourceError, match=r"there is no such branch, tag or commit; check what stands behind '@'"):
            discover([Source(path=path)])
    with pytest.raises(SourceError, match=r"no data files at .*/data/tran.parquet; .*/data holds train-00000"):
        discover([Source(path=f"hf://datasets/{NAME}/data/tran.parquet")])
    hub.put(NAME, {"b.parquet": parquet(ROWS[:1])})  # another commit, of which nothing is known yet
    with hub.failing(Fault("GET .*/tree/", "500", 99)), pytest.raises(SourceError, match=r"the Hub failed \(500\)"):
        discover([Source(path=f"hf://datasets/{NAME}/data")])


def test_trouble_while_reading_is_waited_for_or_told(hub: Hub) -> None:
    hub.add(NAME, HALVES)
    source = Source(path=f"hf:{NAME}")
    with hub.failing(Fault("GET /cdn/", "500", 2)):
        assert read_all(f"hf:{NAME}").rows == 40
    pieces = discover([source])
    with (
        hub.failing(Fault("GET /cdn/", "403", 99, message="{authorization}")),
        pytest.raises(SourceError, match=r"hf://.*train-0000\d-of-00002.parquet: not permitted") as caught,
    ):
        read_all(f"hf:{NAME}")
    assert TOKEN not in str(caught.value) and pieces


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        curate.exceptions.MissingDependencyError, match=r"the Hub needs .*pip install 'curate-sft\[hub\]'"
    ):
        files_of(f"hf:{NAME}")
    assert hub_datasets.CONVERTED == "refs/convert/parquet"
