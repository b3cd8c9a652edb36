"""Vectors of a remote run, mapped from a copy here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from curate.exceptions import RunError
from curate.pipelines import vectors
from curate.pipelines.store import Store


def test_vectors_are_fetched_once_and_their_copies_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path))
    monkeypatch.setenv("CURATE_CACHE_GB", str(2.5 * (128 + 4000) / 2**30))
    store = Store("memory://vectors")
    calls: list[str] = []

    def get(name: str, value: float, rows: int = 100) -> np.ndarray:
        def fill(out: np.ndarray) -> None:
            calls.append(name)
            out[:] = value

        return vectors.mapped(store, name, (rows, 10), fill)

    first = get("a.npy", 1.0)
    assert isinstance(first, np.memmap) and first.shape == (100, 10) and (first == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 2
    get("a.npy", 1.0)
    assert calls == ["a.npy"]
    os.utime(tmp_path / "curate/vectors/a.npy", (0, 0))
    get("b.npy", 2.0)
    get("c.npy", 3.0)
    assert sorted(os.listdir(tmp_path / "curate/vectors")) == ["b.npy", "c.npy"]
    assert (first == 1).all()  # a map lives on without its file
    large = get("d.npy", 4.0, rows=1000)
    assert (large == 4).all() and os.listdir(tmp_path / "curate/vectors") == []
    kept = get("b.npy", 2.0)
    (tmp_path / "curate/vectors/b.npy").write_bytes(b"cut short")
    assert (get("b.npy", 5.0) == 5).all() and kept.shape == (100, 10)
    with pytest.raises(OSError, match="no store"):
        vectors.mapped(store, "e.npy", (1, 1), broken)
    assert sorted(os.listdir(tmp_path / "curate/vectors")) == ["b.npy"]
    monkeypatch.setattr(vectors.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10))
    with pytest.raises(
        RunError, match=r"need 0.0 GiB on this machine, in .*0.0 GiB are free. Make room, or set CURATE_CACHE"
    ):
        get("f.npy", 1.0)
    assert vectors.mapped(store, "none", (0, 7), broken).shape == (0, 7)


def broken(out: np.ndarray) -> None:
    raise OSError("no store")


def test_some_rows_of_a_map_are_a_map_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_IN_MEMORY", 1000)
    monkeypatch.setattr(vectors, "_BLOCK", 7)
    store = Store(str(tmp_path))

    def fill(out: np.ndarray) -> None:
        out[:] = np.arange(100 * 6).reshape(100, 6)

    whole = vectors.mapped(store, "stage-1-2.npy", (100, 6), fill, np.uint32)
    rows = np.flatnonzero(np.arange(100) % 3)
    found = vectors.rows_of(whole, rows)
    assert isinstance(found, np.memmap) and found.dtype == np.uint32
    assert np.array_equal(found, np.asarray(whole)[rows])
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
    assert os.listdir(tmp_path / ".curate/pool") == ["stage-1-2.npy"]  # nothing to clear away, whatever happens
    few = vectors.rows_of(whole, rows[:3])
    assert np.array_equal(few, np.asarray(whole)[rows[:3]])
    vectors.mapped(store, "stage-3-2.npy", (100, 6), fill, np.uint32)
    vectors.mapped(store, "other-1-2.npy", (100, 6), fill, np.uint32)
    assert sorted(os.listdir(tmp_path / ".curate/pool")) == ["other-1-2.npy", "stage-3-2.npy"]
