"""Publishing a selection: decisions, provenance and dataset change together, and at one moment.

A selection is written aside, and takes effect by one small file, ``select.json``, that appears whole:

*On an object store*, which cannot rename, each selection keeps its own folder, ``selections/ID/dataset/…``; the pointer
``.curate/done/select.json`` names the folder and every file in it.  Older folders are removed afterwards.

*Locally* the folders stand at their plain paths.  The selection is written into ``.curate/new``, takes effect by
``.curate/new/select.json``, and is then moved, folder by folder; while that file is there, a folder that has not been
moved yet is read where it stands.

So a reader sees the old selection or the new one, whenever the writer is killed: the next run ends the moving
(``recover``), or removes what never took effect.  A ``Store`` keeps to the selection that it saw first.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curate.exceptions import RunDirectoryError

if TYPE_CHECKING:
    from curate.pipelines.store import Store

FOLDERS = ("decisions", "provenance", "dataset")
POINTER = (".curate", "done", "select.json")
_NEW, _OLD, _SELECTIONS = ".curate/new", ".curate/old", "selections"


@dataclass(frozen=True)
class Draft:
    """A selection that is being written under ``directory``/decisions, …/provenance and …/dataset."""

    store: Store
    directory: str

    def publish(self, mark: dict[str, Any], files: dict[str, list[str]]) -> None:
        """Make it the current selection.

        Parameters
        ----------
        mark : dict
            What the pointer says besides: fingerprint, account.
        files : dict
            Folder → the names of all its files.

        Raises
        ------
        RunDirectoryError
            If a file is missing, or the directory was taken over by another run; the old selection stays.
        """
        store = self.store
        for folder in FOLDERS:
            missing = set(files[folder]) - set(store.list(f"{self.directory}/{folder}"))
            if missing:
                raise RunDirectoryError(
                    f"{store.path(self.directory)}: {len(missing)} files of the new selection are gone, first "
                    f"{folder}/{min(missing)}. Is something else cleaning up there? Run the same command again."
                )
        if store.local:
            for folder in FOLDERS:
                os.makedirs(store.path(self.directory, folder), exist_ok=True)
            store.write_json(mark, self.directory, "select.json")
            _move(store)
        else:
            if store.lease is not None:
                store.lease.check(store, now=True)
            here = self.directory.rpartition("/")[2]
            store.write_json({**mark, "selection": here, "files": files}, *POINTER)
            _remove_others(store, here)
        store.forget_selection()


def draft(store: Store) -> Draft:
    """Begin a new selection; what an earlier one left unfinished is removed."""
    recover(store)
    if store.local:
        return Draft(store, _NEW)
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return Draft(store, f"{_SELECTIONS}/{when}-{uuid.uuid4().hex[:8]}")


def recover(store: Store) -> None:
    """End what a killed run had begun to publish, or remove it if it never took effect.  Only under the lock."""
    if not store.local:
        _remove_others(store, (store.read_json(*POINTER) or {}).get("selection"))
    elif store.exists(_NEW, "select.json"):
        _move(store)
    else:
        store.remove(_NEW)
        store.remove(_OLD)


def _move(store: Store) -> None:
    """Move the folders of a new local selection to their places; can be repeated from wherever it stopped."""
    for folder in FOLDERS:
        new, place = store.path(_NEW, folder), f"{store.root}/{folder}"
        if os.path.isdir(new):
            store.remove(_OLD)
            with contextlib.suppress(FileNotFoundError):
                os.replace(place, store.path(_OLD))
            os.replace(new, place)
    os.makedirs(os.path.dirname(store.path(*POINTER)), exist_ok=True)
    os.replace(store.path(_NEW, "select.json"), store.path(*POINTER))
    store.remove(_OLD)
    store.remove(_NEW)


def _remove_others(store: Store, current: str | None) -> None:
    for each in store.list(_SELECTIONS):
        if each != current:
            store.remove(_SELECTIONS, each)


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Where the current selection stands, and what tells it from any other."""

    identity: str
    folder: str
    """Folder in the run that holds decisions, provenance and dataset; "" for the run itself."""
    files: dict[str, list[str]] | None
    """Folder → its files, where the pointer names them."""


def current(store: Store) -> Selection | None:
    """Return the selection that is in effect, or None before the first."""
    if not store.local:
        pointer = store.read_json(*POINTER)
        if not pointer or "selection" not in pointer:
            return None
        return Selection(pointer["selection"], f"{_SELECTIONS}/{pointer['selection']}", pointer["files"])
    for place in (f"{store.root}/{_NEW}/select.json", f"{store.root}/{'/'.join(POINTER)}"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stat = os.stat(place)  # a file that is moved keeps its number
            return Selection(f"{stat.st_ino}-{stat.st_mtime_ns}", "", None)
    return None


def locate(store: Store, selection: Selection, path: str) -> str:
    """Return where a path of a selection stands now: "dataset/x" → its full path."""
    if selection.folder:
        return f"{store.root}/{selection.folder}/{path}"
    folder = path.partition("/")[0]
    new = f"{store.root}/{_NEW}"
    if os.path.isdir(f"{new}/{folder}") and os.path.exists(f"{new}/select.json"):
        return f"{new}/{path}"
    return f"{store.root}/{path}"


def replaced(store: Store) -> RunDirectoryError:
    return RunDirectoryError(
        f"{store.root}: a new selection was published while the one before was being read. Start again."
    )
