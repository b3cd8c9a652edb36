"""Files on an object store, its faults, and logins."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem

from curate.exceptions import InputError, RunDirectoryError, SourceError, UsageError
from curate.pipelines import objects
from curate.pipelines.run import Run
from curate.pipelines.store import Store
from curate.recipe import Recipe
from curate.urls import refuse_secrets
from tests.conftest import rows_of
from tests.pipelines.helpers import recipe
from tests.pipelines.s3server import KEYS, S3Server, s3
from tests.pipelines.test_publish import publish_one, seen

PoolOf = Callable[..., Path]


@pytest.mark.parametrize("small", [True, False])
def test_a_failing_writer_leaves_no_object(small: bool, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_IN_MEMORY", 2**20 if small else 10)
    store = Store(f"s3://{bucket}/run")
    with pytest.raises(ValueError, match="half"), store.writing("a", "b") as handle:
        handle.write(b"first half")
        raise ValueError("half")
    assert store.list("a") == []
    store.write_bytes(b"the old content", "a", "b")
    with pytest.raises(ValueError, match="half"), store.writing("a", "b") as handle:
        handle.write(b"new")
        raise ValueError("half")
    assert store.read_bytes("a", "b") == b"the old content"
    with store.writing("a", "c") as handle:  # written in any order, as numpy and zip do
        handle.write(b"xxxx")
        handle.seek(0)
        handle.write(b"abc" + bytes(100))
    assert store.read_bytes("a", "c") == b"abc" + bytes(100)


def test_a_large_file_goes_up_in_parts_and_comes_back(bucket: str, server: S3Server) -> None:
    data = np.random.default_rng(0).bytes(110 * 2**20)
    store = Store(f"s3://{bucket}/run")
    store.write_bytes(data, "big")
    assert sum(kind == "PUT" for kind, _ in server.seen) > 1
    assert store.read_bytes("big") == data
    server.seen.clear()
    server.fault = lambda kind, path, n: 403 if kind == "PUT" and n == 1 else None
    with pytest.raises(RunDirectoryError, match="not permitted"):
        store.write_bytes(data, "examples", "big2")
    server.fault = None
    assert store.list("examples") == []
    assert "Uploads" not in s3().call_s3("list_multipart_uploads", Bucket=bucket)


def test_what_killed_uploads_left_is_aborted_and_others_are_left_alone(bucket: str) -> None:
    for key in ("run/examples/part.parquet", "run/exports/x.jsonl", "other/examples/y"):
        s3().call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    Store(f"s3://{bucket}/run").sweep()
    left = {u["Key"] for u in s3().call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]}
    assert left == {"run/exports/x.jsonl", "other/examples/y"}


@pytest.mark.parametrize("ranges", [False, True])
def test_tables_come_back_in_order_and_by_column(ranges: bool, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if ranges:
        monkeypatch.setattr("curate.pipelines.store._SMALL", 0)
    store = Store(f"s3://{bucket}/run")
    names = [f"{i:02d}.parquet" for i in range(20)]
    tables = [
        pa.table({"b": [f"{i}-{j}" * 50 for j in range(200)], "a.x": [i] * 200, "a": [None] * 200}) for i in range(20)
    ]
    for name, table in zip(names, tables, strict=True):
        store.write_table(table, "t", name)
    assert [t.equals(u) for t, u in zip(store.read_tables("t", names), tables, strict=True)] == [True] * 20
    for columns in (["a"], ["a.x", "b"], []):
        got = store.read_table("t", names[3], columns=columns)
        assert got.equals(tables[3].select(columns))
    assert list(store.read_many("t", names[:2])) == [store.read_bytes("t", n) for n in names[:2]]
    with pytest.raises(FileNotFoundError):
        list(store.read_tables("t", [*names, "none"]))


def test_requests_are_few(bucket: str, server: S3Server) -> None:
    """What a run does once for every shard costs one request; a listing of many marks costs one each, at once."""
    store = Store(f"s3://{bucket}/run")

    def cost(what: Callable[[], Any]) -> list[str]:
        server.seen.clear()
        what()
        return [kind for kind, _ in server.seen]

    table = pa.table({"id": ["a"], "messages": [["x"]], "value": [1.0]})
    store.write_json({}, "opened.json")  # the first request of a connection may be sent twice on a busy machine
    assert cost(lambda: store.write_table(table, "examples", "p.parquet")) == ["PUT"]
    assert cost(lambda: store.read_table("examples", "p.parquet", columns=["id", "messages"])) == ["GET"]
    assert cost(lambda: store.read_table("examples", "p.parquet", columns=["value"])) == ["HEAD", "GET"]
    assert cost(lambda: store.write_json({}, ".curate", "done", "x.json")) == ["PUT"]
    assert cost(lambda: store.read_jsons(".curate/done")) == ["LIST", "GET"]
    assert cost(lambda: store.remove_files("examples", ["p.parquet", "q"])) == ["POST"]
    start = {"stage": "s", "part": "p", "event": "start"}
    assert cost(lambda: store.append_event(start)) == []
    assert cost(lambda: store.append_event({**start, "event": "done"})) == ["PUT"]
    assert [e["event"] for e in store.events()] == ["start", "done"]


def test_an_empty_object_and_one_that_is_not_there(bucket: str) -> None:
    store = Store(f"s3://{bucket}/run")
    store.write_bytes(b"", "empty")
    assert store.read_bytes("empty") == b""
    assert store.read_json("none") is None and store.list("none") == [] and store.read_jsons("none") == {}
    store.remove("none")
    store.remove_files("none", ["x"])


def test_what_others_write_is_seen_at_once(bucket: str) -> None:
    store = Store(f"s3://{bucket}/run")
    assert store.list("a") == []
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    other.pipe_file(f"{bucket}/run/a/x", b"1")
    assert store.list("a") == ["x"]
    other.rm_file(f"{bucket}/run/a/x")
    assert store.list("a") == [] and not store.exists("a", "x")


def test_a_console_s_folder_is_an_empty_directory(bucket: str) -> None:
    s3().pipe_file(f"{bucket}/made/", b"")  # what "Create folder" does
    for url in (f"s3://{bucket}/made", f"s3://{bucket}/made/"):
        Store(url).claim("x")
    assert Store(f"s3://{bucket}/made").list("") == [".curate"]
    with pytest.raises(RunDirectoryError, match=r"not empty and is no run of curate \(it holds made\)"):
        Store(f"s3://{bucket}").claim("x")


def test_a_forked_process_makes_connections_of_its_own(bucket: str) -> None:
    store = Store(f"s3://{bucket}/run")
    store.write_bytes(b"before the fork", "x")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(store.read_bytes("x")))
    child.start()
    assert ours.poll(60) and ours.recv() == b"before the fork"
    child.join()


class Renaming(LocalFileSystem):
    """A file system that can rename, and shows files while they are written: as sftp does."""

    protocol = "renaming"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("renaming://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Written and seen in two halves."""
        with open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value[: len(value) // 2])
            file.flush()
            self.halves.append(path)
            file.write(value[len(value) // 2 :])

    halves: list[str] = []


def test_where_half_a_file_can_be_seen_it_is_written_aside(tmp_path: Path) -> None:
    fsspec.register_implementation("renaming", Renaming, clobber=True)
    store = Store(f"renaming://{tmp_path}/run")
    store.claim("x")
    with store.lock():
        publish_one(store, "A")
        publish_one(store, "B")
    assert not store.local and seen(store.url) == "B"
    shown = [p for p in Renaming.halves if "/.curate/lock/" not in p]
    assert shown and all(p.endswith(".tmp") for p in shown)
    assert not list((tmp_path / "run").rglob("*.tmp"))


# -- faults ------------------------------------------------------------------------------------------------------------


def failing(server: S3Server, status: int, times: int, *kinds: str) -> None:
    left = times

    def fault(kind: str, path: str, n: int) -> int | None:
        nonlocal left
        if kind in kinds and left > 0:
            left -= 1
            return status
        return None

    server.fault = fault


@pytest.mark.parametrize("status", [503, 500, 0])
def test_a_store_that_falters_is_asked_again(status: int, bucket: str, server: S3Server) -> None:
    store = Store(f"s3://{bucket}/run")
    failing(server, status, 2, "PUT")
    store.write_bytes(b"x", "a")
    failing(server, status, 2, "GET")
    assert store.read_bytes("a") == b"x"


def test_a_store_that_refuses_is_told(bucket: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    store = Store(f"s3://{bucket}/run")
    store.write_bytes(b"x", "a")
    failing(server, 403, 99, "PUT", "GET", "LIST")
    for action, word in ((lambda: store.write_bytes(b"y", "a"), "write"), (lambda: store.read_bytes("a"), "read")):
        with pytest.raises(
            RunDirectoryError, match=rf"cannot {word} {bucket}/run/a: not permitted \(AccessDenied"
        ) as caught:
            action()
        assert caught.value.exit_code == 1
        assert not any(secret in str(caught.value) for secret in KEYS.values())
    with pytest.raises(RunDirectoryError, match=r"not permitted.*Check the login"):
        store.claim("x")
    failing(server, 503, 999, "PUT")
    with pytest.raises(RunDirectoryError, match=r"cannot write .*SlowDown.*run the same command: finished shards"):
        store.write_bytes(b"y", "a")
    server.fault = None
    assert store.read_bytes("a") == b"x"


def test_a_bucket_that_is_not_there(bucket: str, pool_of: PoolOf) -> None:
    with pytest.raises(RunDirectoryError, match=r"cannot write no-such-bucket/run.*Create the bucket"):
        Run(recipe(pool_of(rows_of(20))), "s3://no-such-bucket/run", "sync", quiet=True).execute()
    with pytest.raises(SourceError, match=r"no-such-bucket/x\.jsonl") as caught:
        Run(recipe(Path("x"), sources=[{"path": "s3://no-such-bucket/x.jsonl"}]), f"s3://{bucket}/r", "sync").execute()
    assert caught.value.exit_code == 2


def test_no_login(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(RunDirectoryError, match=r"no login was found.*Set AWS_ACCESS_KEY_ID"):
        Store(f"s3://{bucket}/run").claim("x")
    with pytest.raises(SourceError, match=r"cannot be read: .*; set AWS_ACCESS_KEY_ID"):
        Run(recipe(Path("x"), sources=[{"path": f"s3://{bucket}/x.jsonl"}]), str(tmp_path / "r"), "sync").execute()


# -- logins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:se/cret@bucket/x",
        "simplecache::s3://AKIA:secret@bucket/x",
        "https://user:secret@host/x.jsonl",
        "https://secret@host/x.jsonl",
        "https://host/x.jsonl?X-Amz-Signature=secret&a=1",
        "https://host/x.jsonl?a=1&sig=secret",
        "sftp://me:secret@host/x",
    ],
)
def test_a_login_in_a_url_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a login stands in this URL") as caught:
        Store(url)
    assert "cret" not in str(caught.value).replace("secrets", "")
    for document_ in ({"sources": [{"path": url}]}, {"sources": [{"path": "x"}], "run": url}):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(document_))
        with pytest.raises(UsageError) as raised:
            Run(Recipe.load(path), None, "sync")
        assert "a login stands in this URL" in str(raised.value) and "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a@b:c@d",
        "abfs://box@account/x",
        "http://host:8080/a@b",
        "hf://datasets/u/n@main/x",
        "/a:b@c",
        "sftp://me@host/x",
    ],
)
def test_urls_without_a_login(url: str) -> None:
    assert refuse_secrets(url) == url
