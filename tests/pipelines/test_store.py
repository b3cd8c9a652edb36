from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from curate.exceptions import RunDirectoryError
from curate.pipelines.store import Store


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ValueError, match="half"), store.writing("a", "b.txt") as handle:
        handle.write(b"first half")
        raise ValueError("half")
    assert store.list("a") == []
    store.write_bytes(b"old", "a", "b.txt")
    with pytest.raises(ValueError, match="half"), store.writing("a", "b.txt") as handle:
        handle.write(b"new")
        raise ValueError("half")
    assert store.read_bytes("a", "b.txt") == b"old"
    assert store.list("a") == ["b.txt"]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_tables_and_jsons_come_back(scheme: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path) if scheme == "file" else f"memory://{tmp_path.name}/run")
    table = pa.table({"x": [1, 2, None], "y": [["a"], [], None]})
    store.write_table(table, "t", "part.parquet")
    assert store.read_table("t", "part.parquet").equals(table)
    assert store.read_table("t", "part.parquet", columns=["x"]).column_names == ["x"]
    store.write_json({"ü": 1}, "j", "one.json")
    assert store.read_jsons("j") == {"one": {"ü": 1}}
    assert store.read_json("j", "two.json") is None
    assert store.read_jsons("nowhere") == {}


def test_writing_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in ("a", "b"):
        store.write_table(pa.table({"x": list(range(1000)), "s": [str(i) for i in range(1000)]}), name)
    assert store.read_bytes("a") == store.read_bytes("b")


def test_paths_stay_inside(tmp_path: Path) -> None:
    for bad in ("../x", "/etc/passwd", "a/../../b"):
        with pytest.raises(RunDirectoryError, match="outside the run directory"):
            Store(str(tmp_path)).path(bad)


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match=r"not empty and is no run of curate \(it holds thesis.tex\).*--run"):
        Store(str(tmp_path)).claim("x")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirectoryError, match=r"--run"):
        Store(str(tmp_path / "run")).claim("x")


def test_an_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"cannot (write|be used)"):
        Store("/proc/curate-run").claim("x")


def test_another_format_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.claim("x")
    mark = json.loads((tmp_path / ".curate/run.json").read_text())
    (tmp_path / ".curate/run.json").write_text(json.dumps({**mark, "format": 99}))
    with pytest.raises(RunDirectoryError, match="run format 99"):
        store.claim("x")


def test_claiming_twice_is_fine(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.claim("x")
    store.claim("x")
    assert store.list(".curate") == ["run.json"]


def test_two_runs_in_one_directory(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.claim("x")
    code = f"""
from curate.pipelines.store import Store
with Store({str(tmp_path)!r}).lock():
    print("held", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match=rf"in use by another run \(process {other.pid} on "), store.lock():
            pass
    finally:
        other.kill()
        other.wait()
    with store.lock():  # even a killed run gives the directory back
        pass


def test_a_remote_lock_is_refused_while_it_is_held(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.name}/lock")
    store.claim("x")
    with store.lock(), pytest.raises(RunDirectoryError, match="in use by another run"), store.lock():
        pass
    with store.lock():
        pass


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    """A real failing write: the operating system refuses to let a file of this process grow past 64 KiB."""
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
from curate.pipelines.store import Store
from curate.exceptions import RunDirectoryError
store = Store({str(tmp_path)!r})
try:
    store.write_bytes(b"x" * 1_000_000, "d", "big")
except RunDirectoryError as error:
    print(error)
print(store.list("d"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert "grew past its allowed size. Make room, then run the same command" in done.stdout
    assert done.stdout.endswith("[]\n")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536


def test_what_a_killed_writer_left_aside_is_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes(b"whole", "scores", "x-1", "part.parquet")
    (tmp_path / "scores/x-1/part.parquet.0123456789ab.tmp").write_bytes(b"ha")
    store.sweep()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["part.parquet"]
