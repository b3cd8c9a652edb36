from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from curate.connectors.source import Source
from curate.exceptions import HubError, InputError, RunDirectoryError
from curate.pipelines import push as module
from curate.pipelines.published import public
from curate.pipelines.push import push
from curate.pipelines.scored import public_url, write_scored
from curate.pipelines.store import Store
from tests.conftest import ROOT, rows_of, write_jsonl, write_parquet
from tests.hub_server import TOKEN, Fault, Hub, User
from tests.pipelines.helpers import run

NAME = "user/demo"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: 243 rows, copies and a rejected row among them, 48 kept in 6 files."""
    folder = tmp_path_factory.mktemp("push")
    rows = [{**row, "license": "mit"} for row in rows_of(240)]
    for i in range(2):
        write_parquet(folder / "pool" / f"train-0000{i}-of-00002.parquet", rows[120 * i :][:120])
    write_jsonl(folder / "pool" / "more.jsonl", [rows[0], {"messages": [], "source": "a"}, rows[5]])
    run(folder / "pool", folder / "run", output={"shard_rows": 9}, report=False)
    return folder


@pytest.fixture
def job(finished: Path, tmp_path: Path) -> SimpleNamespace:
    """A copy of it, in ``tmp_path``."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    store = Store(str(tmp_path / "run"))
    return SimpleNamespace(store=store, manifest=store.read_json("manifest.json"))


def contents(hub: Hub, revision: str = "main", name: str = NAME) -> dict[str, bytes]:
    return {path: blob.data for path, blob in hub.repositories[name].files(revision).items()}


def puts(hub: Hub) -> int:
    return sum(method == "PUT" for method, _, _ in hub.requests)


# -- what a push does --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_push_does_and_writes_nothing(hub: Hub, job: Any) -> None:
    plan = push(job, NAME, with_scores=True, dry_run=True)
    assert not hub.writes()
    assert NAME not in hub.repositories
    done = push(job, NAME, with_scores=True)
    assert done == replace(plan, dry_run=False, commit=done.commit)
    assert done.commits == 1 and done.private and done.new_repository

    repository = hub.repositories[NAME]
    assert repository.private
    assert [entry["message"] for entry in repository.log] == ["initial commit", plan.message]
    assert sorted(repository.log[1]["add"]) == sorted(plan.send)
    there = contents(hub)
    assert {path: len(there[path]) for path in plan.send} == plan.send
    assert there["README.md"].decode() == plan.card
    for file in Path(job.store.root, "dataset").iterdir():
        assert there[f"data/{file.name}"] == file.read_bytes()
    assert set(there) - {".gitattributes"} == set(plan.send) == {
        *(f"data/train-{i:05d}-of-00006.parquet" for i in range(6)),
        *("scores/train-00000-of-00001.parquet", "README.md", "recipe.yaml", "manifest.json"),
    }  # fmt: skip
    text = str(plan)
    assert text.startswith("dry run: nothing is sent\n") and "(new, private)" in text and "commits     1" in text
    assert all(path in text for path in plan.send)


def test_a_second_push_sends_nothing_and_a_smaller_one_removes_what_is_left_over(
    hub: Hub, job: Any, tmp_path: Path
) -> None:
    first = push(job, NAME, with_scores=True)
    hub.requests.clear()
    again = push(job, NAME, with_scores=True)
    assert (again.commits, again.commit, again.send, again.delete) == (0, None, {}, ())
    assert again.same == first.send
    assert not hub.writes()
    assert "commits     0: it is all there" in str(again)

    smaller = run(tmp_path / "pool", tmp_path / "run", output={"shard_rows": 30}, report=False)
    done = push(smaller, NAME)
    assert set(done.delete) == {p for p in first.send if p.startswith(("data/", "scores/"))}
    assert hub.repositories[NAME].log[-1]["delete"] == list(done.delete)  # in the same commit
    assert {p for p in contents(hub) if p.endswith(".parquet")} == {
        f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)
    }


def test_scores_of_every_input_row_stand_in_the_second_config(hub: Hub, job: Any, tmp_path: Path) -> None:
    push(job, NAME, with_scores=True)
    table = pl.read_parquet(io.BytesIO(contents(hub)["scores/train-00000-of-00001.parquet"]))
    ledger = pl.read_parquet(f"{job.store.root}/decisions/*.parquet")
    assert table.height == ledger.height == 243
    assert table.drop("file").select(c for c in ledger.columns if c != "file").equals(ledger.drop("file"))
    assert set(table["file"]) == {"more.jsonl", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"}
    for stage in ("heuristics", "rating"):
        scores = pl.read_parquet(f"{job.store.root}/scores/{stage}-*/*.parquet")
        column = scores.columns[1]
        here = table.filter(pl.col("decision").is_in(["kept", "dropped"])).select("id", said=f"{stage}.{column}")
        assert here.join(scores, on="id").filter(pl.col("said").ne_missing(pl.col(column))).is_empty()
        unjudged = table.filter(pl.col("decision").is_in(["duplicate", "rejected"]))
        assert unjudged.height == 3 and unjudged[f"{stage}.{column}"].null_count() == 3


@pytest.mark.parametrize("shard_rows", [1, 7, 100, 243, 244])
def test_the_scores_table_is_the_same_however_it_is_cut(job: Any, tmp_path: Path, shard_rows: int) -> None:
    whole = write_scored(job.store, job.manifest["stages"], tmp_path / "whole")
    files = write_scored(job.store, job.manifest["stages"], tmp_path / "cut", shard_rows=shard_rows)
    assert [pq.read_metadata(f).num_rows for f in files] == [
        min(shard_rows, 243 - start) for start in range(0, 243, shard_rows)
    ]
    assert pa.concat_tables(map(pq.read_table, files)).equals(pq.read_table(whole[0]))


def test_a_run_that_keeps_nothing_is_pushed_as_an_empty_dataset(hub: Hub, tmp_path: Path, pool_of: Any) -> None:
    none = [{"use": "random", "budget": 0}]
    push(run(pool_of(rows_of(9)), tmp_path / "run", scorers={}, select=none, report=False), NAME, with_scores=True)
    assert pq.read_table(io.BytesIO(contents(hub)["data/train-00000-of-00001.parquet"])).num_rows == 0
    assert pq.read_table(io.BytesIO(contents(hub)["scores/train-00000-of-00001.parquet"])).num_rows == 9


def test_a_branch_is_made_from_main_and_main_stays(hub: Hub, job: Any, tmp_path: Path) -> None:
    push(job, NAME)
    before = contents(hub)
    other = run(tmp_path / "pool", tmp_path / "run", output={"shard_rows": 30}, report=False)
    plan = push(other, NAME, revision="v2", dry_run=True)
    assert plan.new_branch and "branch      v2 (new)" in str(plan)
    done = push(other, NAME, revision="v2", message="the second\nof two")
    assert done == replace(plan, dry_run=False, commit=done.commit, message=done.message)
    assert contents(hub) == before
    assert "data/train-00000-of-00002.parquet" in contents(hub, "v2")
    assert "data/train-00000-of-00006.parquet" not in contents(hub, "v2")
    assert hub.repositories[NAME].log[-1]["message"] == "the second\nof two"
    assert not push(other, NAME, revision="v2").commits

    done = push(other, "user/fresh", revision="v1")  # neither the repository nor the branch is there
    assert done.new_repository and done.new_branch
    assert "manifest.json" in contents(hub, "v1", "user/fresh") and set(contents(hub, "main", "user/fresh")) == {
        ".gitattributes"
    }


def test_large_files_in_parts_long_listings_in_pages_and_many_files_in_batches(
    hub: Hub, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.multipart_bytes, hub.page = 1000, 2
    monkeypatch.setattr(module, "BATCH", 2)
    said: list[str] = []
    push(job, NAME, say=said.append)
    assert [line.partition(",")[0] for line in said] == [f"uploaded {n} of 9 files" for n in (2, 4, 6, 8, 9)]
    assert puts(hub) > 6
    assert len(hub.repositories[NAME].log) == 2
    for file in Path(job.store.root, "dataset").iterdir():
        assert contents(hub)[f"data/{file.name}"] == file.read_bytes()
    assert not push(job, NAME).commits


def test_a_run_on_an_object_store_is_pushed_too(hub: Hub, job: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(job.store.root, "/pushed", recursive=True)
    try:
        push("memory://pushed", NAME)
    finally:
        memory.rm("/pushed", recursive=True)
    assert not push(job, NAME).commits


def test_a_report_goes_along_and_folders_of_this_machine_do_not(hub: Hub, job: Any, tmp_path: Path) -> None:
    source = yaml.safe_load(job.store.read_bytes("recipe.yaml"))["sources"][0]["path"]
    job.store.write_bytes(f"<html>the report of {source}</html>".encode(), "report.html")
    push(job, NAME, with_scores=True)
    there = contents(hub)
    assert there["report.html"].decode() == "<html>the report of …/pool</html>"
    for path, data in there.items():
        text = pq.read_table(io.BytesIO(data)).to_pylist().__repr__() if path.endswith(".parquet") else data.decode()
        assert str(tmp_path.parent) not in text, path
    recipe = yaml.safe_load(there["recipe.yaml"])
    assert recipe["sources"] == [{"path": "…/pool"}] and recipe["select"][1]["clusters"] == 8
    assert json.loads(there["manifest.json"])["decisions"] == job.manifest["decisions"]


def test_urls_lose_what_opens_doors() -> None:
    assert public_url("https://me:pw@host:8/a/b.parquet?X-Amz-Signature=1#x") == "https://host:8/a/b.parquet"
    assert public_url("s3://key:secret@bucket/a b") == "s3://bucket/a b"
    assert public_url("hf://datasets/a/b@main/c?d.parquet") == "hf://datasets/a/b@main/c?d.parquet"
    said = {"path": ["s3://k:s@b/x", "/home/me/x.parquet", "~/y", "C:\\me\\z", "data/*.parquet", "text: /a"], "n": 1}
    assert public(said)["path"] == ["s3://b/x", "…/x.parquet", "…/y", "…/z", "data/*.parquet", "text: /a"]


# -- what is there already ---------------------------------------------------------------------------------------------


def unchanged(hub: Hub, name: str = NAME) -> Any:
    repository = hub.repositories[name]
    return (repository.private, dict(repository.branches), len(repository.commits))


def refused(hub: Hub, job: Any, match: str, **options: Any) -> None:
    """A push that is refused, dry or not, without a word written."""
    before = unchanged(hub)
    hub.requests.clear()
    for dry_run in (True, False):
        with pytest.raises(InputError, match=match):
            push(job, NAME, dry_run=dry_run, **options)
    assert not hub.writes() and unchanged(hub) == before


def test_a_repository_with_other_columns_is_refused_unless_overwritten(hub: Hub, job: Any, tmp_path: Path) -> None:
    push(job, NAME)
    tools = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    rows = [{**row, "tools": tools} for row in rows_of(20)]
    path = write_jsonl(tmp_path / "tools" / "a.jsonl", rows)
    other = run(path, tmp_path / "other", scorers={}, select=[], report=False)
    refused(hub, other, r"user/demo: it holds a dataset with other columns: 'tools' is only here\. Push to another")
    done = push(other, NAME, overwrite=True)
    assert set(done.delete) == {f"data/train-{i:05d}-of-00006.parquet" for i in range(6)}
    refused(hub, job, r"'tools' is only there")

    buffer = io.BytesIO()
    pq.write_table(pa.table({"messages": ["text"], "tools": ["x"]}), buffer)
    hub.put(NAME, {"data/train-00000-of-00001.parquet": buffer.getvalue()})
    refused(hub, other, r"'messages' is string there, list<.*> here")


@pytest.mark.parametrize("marker", [None, b"{}", b"not json", b'{"push": {"format": 99}}'])
def test_a_repository_that_curate_did_not_make_is_refused_unless_overwritten(
    hub: Hub, job: Any, marker: bytes | None
) -> None:
    theirs = {
        "README.md": b"# Mine",
        "LICENSE": b"mine",
        "figure.png": b"\x89PNG",
        "data/x.csv.gz": b"a",
        "train.jsonl": b"{}\n",
    } | ({} if marker is None else {"manifest.json": marker})
    hub.add(NAME, theirs, private=True)
    refused(hub, job, r"user/demo: it was not made by curate \(it holds data/x.csv.gz, figure.png, .*--overwrite")
    plan = push(job, NAME, overwrite=True, dry_run=True)
    assert plan.delete == ("data/x.csv.gz", "train.jsonl")
    push(job, NAME, overwrite=True)
    assert contents(hub)["LICENSE"] == b"mine" and contents(hub)["figure.png"] == b"\x89PNG"
    assert not set(plan.delete) & set(contents(hub))


def test_a_repository_with_nothing_but_a_readme_is_as_good_as_new(hub: Hub, job: Any) -> None:
    hub.add(NAME, {"README.md": b"soon", "LICENSE.md": b"l"})
    plan = push(job, NAME)
    assert not plan.private  # as it is
    assert contents(hub)["README.md"].decode() == plan.card and contents(hub)["LICENSE.md"] == b"l"


def test_nobody_is_shown_or_hidden_a_repository_by_a_push(hub: Hub, job: Any) -> None:
    hub.add(NAME)
    refused(hub, job, r"--private was asked, the repository is public; change that in its settings", private=True)
    assert not push(job, NAME, private=False).private
    hub.repositories[NAME].private = True
    refused(hub, job, r"--public was asked, the repository is private", private=False)
    assert push(job, "user/open", private=False).private is False
    assert not hub.repositories["user/open"].private
    assert "(new, PUBLIC)" in str(push(job, "user/other", private=False, dry_run=True))


def test_private_that_the_hub_makes_public_stops_before_anything_is_sent(hub: Hub, job: Any) -> None:
    def publish() -> None:
        hub.repositories[NAME].private = False

    with (
        hub.failing(Fault("GET /api/datasets/user/demo$", "go", after=1, before=publish)),
        pytest.raises(HubError, match=r"private was asked, but the Hub made it public\. Nothing was sent"),
    ):
        push(job, NAME)
    assert puts(hub) == 0


def test_what_cannot_be_meant_is_said_before_the_hub_is_asked(
    hub: Hub, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo", "a/b/c", "us er/demo", "user/demo.git", "user/", "../x"):
        with pytest.raises(InputError, match=r"push to "):
            push(job, name)
    for revision in ("refs/pr/1", "0" * 40, "-x", "a b", ""):
        with pytest.raises(InputError, match=r"is no branch's name"):
            push(job, NAME, revision=revision)
    with pytest.raises(RunDirectoryError, match=r"holds no finished run; run its recipe to the end first"):
        push(tmp_path, NAME)
    half = run(tmp_path / "pool", tmp_path / "half", until="score", report=False)
    with pytest.raises(RunDirectoryError, match=r"no finished run"):
        push(half, NAME)
    assert not hub.requests
    monkeypatch.setattr(module, "MOST_FILES", 3)
    with pytest.raises(InputError, match=r"9 files would change in one commit, 3 at most .* larger output.shard_rows"):
        push(job, NAME)
    assert not hub.writes()


# -- faults ------------------------------------------------------------------------------------------------------------

PASSING = [
    Fault("GET /api/whoami", "429", 2, headers={"Retry-After": "7"}),
    Fault("GET /api/datasets/user/demo$", "500", 4),
    Fault("GET /api/datasets/.*/tree/", "503", 2),
    Fault("POST /api/repos/create", "429", 1, headers={"Retry-After": "3"}),
    Fault("POST /api/repos/create", "lose", 1),
    Fault("POST /api/datasets/.*/preupload/", "500", 3),
    Fault("POST .*/lfs/objects/batch", "429", 2, headers={"Retry-After": "5"}),
    Fault("PUT /lfs/", "500", 3),
    Fault("PUT /lfs/", "cut", 3),
    Fault("POST /lfs/.*/verify", "502", 1),
    Fault("POST /api/validate-yaml", "500", 1),
    Fault("POST /api/datasets/.*/commit/", "500", 4),
    Fault("POST /api/datasets/.*/commit/", "429", 1, headers={"Retry-After": "11"}),
    Fault("POST /api/datasets/.*/commit/", "lose", 1),
    Fault("POST /api/datasets/.*/branch/", "504", 1),
    Fault("POST /api/datasets/.*/branch/", "lose", 1),
]


@pytest.mark.parametrize(
    "fault", PASSING, ids=lambda f: f"{f.match.split('/')[-2 if f.match.endswith('/') else -1]}-{f.what}"
)
def test_what_passes_is_waited_for_and_the_result_is_as_if_nothing_had_been(hub: Hub, job: Any, fault: Fault) -> None:
    fault = replace(fault)
    revision = "v1" if "branch" in fault.match else None
    with hub.failing(fault):
        done = push(job, NAME, revision=revision)
    assert fault.times == 0 and hub.waits
    if "Retry-After" in fault.headers:
        assert float(fault.headers["Retry-After"]) in {*hub.waits, *(w - 1 for w in hub.waits)}
    repository = hub.repositories[NAME]
    assert repository.branches[done.revision] == done.commit == repository.log[-1]["sha"]
    assert len(repository.log) == 2  # a commit whose answer was lost is not made again
    assert set(done.send) < set(contents(hub, done.revision))
    assert not push(job, NAME, revision=revision).commits


LASTING = [
    (Fault("GET /api/whoami", "500", 99), r"the Hub failed \(500\), also when asked again"),
    (
        Fault("POST /api/repos/create", "403", 99, message="no rights"),
        r"not permitted \(no rights\); this needs a token",
    ),
    (Fault("POST .*/preupload/", "429", 99), r"too many requests, also after waiting"),
    (Fault("PUT /lfs/", "500", 99, after=2), r"the Hub failed \(500\), also when asked again"),
    (Fault("PUT /lfs/", "cut", 99, after=2), r"the Hub cannot be reached"),
    (Fault("PUT /lfs/", "403", 99, after=2), r"not permitted"),
    (Fault("POST /lfs/.*/verify", "404", 99), r"there is no such|refused"),
    (Fault("POST .*/lfs/objects/batch", "402", 99, message="quota"), r"asks for payment \(quota\)"),
    (Fault("POST /api/validate-yaml", "400", 99), r"the Hub's client failed: ValueError: Invalid metadata|refused"),
    (Fault("POST .*/commit/", "500", 99), r"the Hub failed \(500\)"),
    (Fault("POST .*/commit/", "cut", 99), r"the Hub cannot be reached"),
    (Fault("POST .*/commit/", "429", 99, headers={"Retry-After": "9000"}), r"run the same command again in 9000 s"),
    (
        Fault("POST .*/commit/", "401", 99, message='Token "x" is expired'),
        r"does not accept the token \(Token \"x\" is exp",
    ),
]


@pytest.mark.parametrize(
    ("fault", "said"), LASTING, ids=lambda v: f"{v.match.split('/')[-1]}-{v.what}" if isinstance(v, Fault) else ""
)
def test_what_lasts_is_told_publishes_nothing_and_the_same_command_continues(
    hub: Hub, job: Any, fault: Fault, said: str
) -> None:
    with hub.failing(replace(fault)), pytest.raises(HubError, match=said) as caught:
        push(job, NAME)
    assert str(caught.value).startswith("push to user/demo: ")
    if "whoami" not in fault.match:
        assert str(caught.value).endswith(
            "Nothing was published; what was uploaded is kept, and the same command continues."
        )
    assert "\n" not in str(caught.value)
    if NAME in hub.repositories:
        assert set(contents(hub)) == {".gitattributes"} and hub.repositories[NAME].private
    kept = len(hub.objects)
    assert kept == (6 if "commit" in fault.match else kept)
    hub.requests.clear()
    done = push(job, NAME)
    assert puts(hub) == 6 - kept  # content that is there already is not sent again
    assert set(done.send) < set(contents(hub))


def test_somebody_else_commits_meanwhile(hub: Hub, job: Any) -> None:
    push(job, NAME)
    job.store.write_json([{"benchmark": "x", "score": 0.5}], "evaluation.json")
    race = Fault("POST .*/commit/", "go", before=lambda: hub.put(NAME, {"notes.txt": b"mine"}))
    with (
        hub.failing(race),
        pytest.raises(HubError, match=r"changed by somebody else meanwhile \(A commit has happened"),
    ):
        push(job, NAME)
    assert contents(hub)["notes.txt"] == b"mine" and b"benchmark" not in contents(hub)["README.md"]
    push(job, NAME)
    assert b"| benchmark | score |" in contents(hub)["README.md"] and contents(hub)["notes.txt"] == b"mine"


def test_somebody_else_makes_the_repository_meanwhile(hub: Hub, job: Any) -> None:
    race = Fault("POST /api/repos/create", "go", before=lambda: hub.add(NAME, {"a.csv": b"x"}, private=True))
    with hub.failing(race), pytest.raises(HubError, match=r"somebody else created it meanwhile"):
        push(job, NAME)
    assert puts(hub) == 0


def test_tokens_that_do_not_do(hub: Hub, job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.users[TOKEN].expired = True
    with pytest.raises(HubError, match=r"does not accept the token \(.*expired\); log in again \(hf auth login\)"):
        push(job, NAME)
    hub.users[TOKEN] = User("user", role="read")
    with pytest.raises(HubError, match=r"the token 'laptop' of user may only read; log in with one that may write"):
        push(job, NAME)
    hub.users[TOKEN] = User("user")
    with pytest.raises(HubError, match=r"not permitted \(You don't have the rights to write to other/demo\)"):
        push(job, "other/demo")
    hub.add("other/open")
    with pytest.raises(HubError, match=r"not permitted"):
        push(job, "other/open")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"no token was found; log in \(hf auth login\), or set HF_TOKEN"):
        push(job, NAME, dry_run=True)
    assert puts(hub) == 0 and not [r for r in hub.repositories.values() if len(r.log) > 1]


def test_no_network_and_no_wish_for_one(hub: Hub, job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"the Hub cannot be reached \(.*[Cc]onnection refused\); check the network"):
        push(job, NAME, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.waits.clear()
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set, so the Hub may not be asked; unset it"):
        push(job, NAME)
    assert not hub.waits and not hub.requests


# -- the token, and the command line -----------------------------------------------------------------------------------


@pytest.fixture
def shell(hub: Hub, tmp_path: Path) -> Iterator[Any]:
    """Runs the command line against the test's Hub in a process of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def call(*words: str, code: str = "from curate.cli import main; main()") -> subprocess.CompletedProcess[str]:
        fast = "import curate.connectors.hub as h, huggingface_hub.utils._http as u, types; "
        fast += "h._sleep = lambda s: None; u.time = types.SimpleNamespace(sleep=lambda s: None); "
        command = [sys.executable, "-c", fast + code, *words]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)

    yield call


def test_the_token_is_in_nothing_that_anybody_reads(hub: Hub, job: Any, shell: Any, tmp_path: Path) -> None:
    """Under every kind of fault, with --debug, from a Hub that repeats the token in what it says."""
    directory, echo = job.store.root, "what is {authorization}?"
    faults = [
        Fault("GET /api/whoami", "401", 99, message=echo),
        Fault("GET /api/datasets/user/demo$", "500", 99, message=echo),
        Fault("POST /api/repos/create", "403", 99, message=echo),
        Fault("PUT /lfs/", "500", 99, message=echo),
        Fault("PUT /lfs/", "cut", 99),
        Fault("POST .*/verify", "400", 99, message=echo),
        Fault("POST .*/commit/", "429", 99, message=echo),
        Fault("POST .*/commit/", "400", 99, message=echo),
    ]  # fmt: skip
    for fault in faults:
        with hub.failing(fault):
            done = shell("--debug", "push", directory, NAME, "--with-scores")
        assert done.returncode == 1, done.stderr
        assert "HubError: push to user/demo" in done.stderr  # --debug shows where
        assert TOKEN not in done.stdout + done.stderr, fault
    done = shell("--debug", "push", directory, NAME, "--with-scores")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert not [path for path, data in contents(hub).items() if TOKEN.encode() in data]


def test_a_text_that_holds_the_token_is_not_published(hub: Hub, job: Any) -> None:
    job.store.write_bytes(f"<p>{TOKEN}</p>".encode(), "report.html")
    with pytest.raises(InputError, match=r"report.html holds your token; take it out of there") as caught:
        push(job, NAME)
    assert TOKEN not in str(caught.value) and not hub.requests


def test_the_command_says_what_it_does_and_exits_as_documented(hub: Hub, job: Any, shell: Any) -> None:
    directory = job.store.root
    dry = shell("push", directory, NAME, "--dry-run", "--public")
    assert dry.returncode == 0 and not hub.writes()
    assert re.search(r"repository .*/datasets/user/demo  \(new, PUBLIC\)", dry.stdout)
    assert "\n---\npretty_name: test\nlicense: mit\n" in dry.stdout
    done = shell("push", directory, NAME, "--public", "--message", "first")
    assert done.returncode == 0 and "uploaded 9 of 9 files" in done.stderr
    assert re.search(r'commits     1: [0-9a-f]{40}  "first"', done.stdout)
    assert shell("push", directory, NAME, "-q").stderr == ""
    refused = shell("push", directory, NAME, "--private")
    assert refused.returncode == 2 and refused.stderr.startswith("curate: push to user/demo: --private was asked")


def test_datasets_reads_back_what_was_pushed(hub: Hub, job: Any, shell: Any) -> None:
    push(job, NAME, with_scores=True)
    code = f"""
from datasets import load_dataset, get_dataset_config_names
data, scores = load_dataset({NAME!r}, split="train"), load_dataset({NAME!r}, "scores", split="train")
streamed = next(iter(load_dataset({NAME!r}, split="train", streaming=True)))
print(get_dataset_config_names({NAME!r}), data.num_rows, data.column_names, scores.num_rows, streamed == data[0])
print([m["content"] for m in data["messages"][0]])
"""
    done = shell(code=code)
    assert done.returncode == 0, done.stderr
    kept = pl.read_parquet(f"{job.store.root}/dataset/*.parquet")
    first = [m["content"] for m in kept["messages"][0]]
    assert done.stdout.splitlines() == [f"['default', 'scores'] {kept.height} ['messages'] 243 True", repr(first)]


def test_a_source_has_a_licence_without_being_read_anew() -> None:
    assert Source(path="x", license="mit", language="en").reading() == Source(path="x").reading()
