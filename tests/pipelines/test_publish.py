"""Publishing: readers see one selection, whole, whenever the writer dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from curate.exceptions import RunDirectoryError
from curate.pipelines import publish
from curate.pipelines.store import Store

SELECTIONS: dict[str, dict[str, list[str]]] = {
    "A": {"decisions": ["a", "b"], "provenance": ["train-0", "train-1"], "dataset": ["train-0", "train-1"]},
    "B": {"decisions": ["a"], "provenance": [], "dataset": ["train-0"]},  # nothing was kept
}


def publish_one(store: Store, tag: str) -> None:
    draft = publish.draft(store)
    for folder, names in SELECTIONS[tag].items():
        for name in names:
            store.write_bytes(tag.encode(), draft.directory, folder, name)
    draft.publish({"fingerprint": tag, "account": {}}, SELECTIONS[tag])


def seen(url: str) -> str:
    """Return which selection a reader sees; fails if it sees parts of two."""
    store = Store(url)
    names = {folder: store.list(folder) for folder in publish.FOLDERS}
    tags = {b.decode() for folder, ns in names.items() for b in store.read_many(folder, ns)}
    assert len(tags) == 1, f"a mixture: {tags}"
    tag = tags.pop()
    assert names == SELECTIONS[tag]
    return tag


@pytest.mark.parametrize("place", ["s3", "local", "memory"])
def test_killed_before_every_change_of_publishing(
    place: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process "dies" before its n-th change, for every n; the next one, which repairs that, dies once more."""
    url = {"s3": f"s3://{bucket}/run", "local": str(tmp_path / "run"), "memory": f"memory://{bucket}/run"}[place]
    publish_one(Store(url), "A")

    def dies(n: int, tag: str) -> bool:
        with monkeypatch.context() as patch:
            dying(patch, n, Store(url).fs)
            try:
                publish_one(Store(url), tag)
            except DeathError:
                return True
        return False

    found = []
    n = 1
    while dies(n, "B"):
        found.append(seen(url))
        if n % 2:
            assert dies(n // 2 + 1, "B")  # in the middle of the repair
            found.append(seen(url))
        publish_one(Store(url), "A")
        assert seen(url) == "A"
        n += 1
    assert seen(url) == "B" and n > 4 and set(found) == {"A", "B"}  # before and after the moment it took effect
    if place == "local":
        assert sorted(os.listdir(tmp_path / "run")) == [".curate", "dataset", "decisions", "provenance"]
        assert os.listdir(tmp_path / "run/.curate") == ["done"]
    else:
        assert len(Store(url).list("selections")) == 1


class DeathError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def dying(patch: pytest.MonkeyPatch, n: int, fs: Any) -> None:
    """Die before the n-th change of a file or an object from now on, and at every one after: the dead do nothing."""
    left = n

    def wrapped(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                raise DeathError
            return function(*args, **kwargs)

        return call

    for name in ("pipe_file", "rm"):
        patch.setattr(fs, name, wrapped(getattr(fs, name)))
    for name in ("replace", "makedirs"):
        patch.setattr(os, name, wrapped(getattr(os, name)))


@pytest.mark.parametrize("place", ["s3", "local"])
def test_a_reader_keeps_to_the_selection_that_it_saw_first(place: str, bucket: str, tmp_path: Path) -> None:
    url = f"s3://{bucket}/run" if place == "s3" else str(tmp_path / "run")
    publish_one(Store(url), "A")
    reader = Store(url)
    assert reader.list("dataset") == SELECTIONS["A"]["dataset"]
    publish_one(Store(url), "B")
    with pytest.raises(RunDirectoryError, match=r"a new selection was published .* Start again"):
        reader.read_bytes("decisions", "a")
    assert seen(url) == "B"


def test_a_listing_that_misses_files_loses_none(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"s3://{bucket}/run")
    publish_one(store, "A")
    monkeypatch.setattr(store.fs, "ls", lambda *_, **__: [])
    assert seen(store.url) == "A"


def test_a_file_of_the_new_selection_that_went_missing_stops_the_publishing(bucket: str) -> None:
    store = Store(f"s3://{bucket}/run")
    publish_one(store, "A")
    draft = publish.draft(store)
    for folder, names in SELECTIONS["B"].items():
        for name in names[1:]:
            store.write_bytes(b"B", draft.directory, folder, name)
    with pytest.raises(RunDirectoryError, match=r"1 files of the new selection are gone, first decisions/a"):
        draft.publish({"fingerprint": "B", "account": {}}, SELECTIONS["B"])
    assert seen(store.url) == "A"
