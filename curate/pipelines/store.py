"""The run directory: any fsspec URL, files that appear whole, one run at a time.

Layout (what a person reads stands at the top, what the run needs for itself under ``.curate/``)::

    recipe.yaml  manifest.json
    examples/part-GGGGG-NNNN.parquet        normalised examples; group of input slices, number in the group
    rejected/part-GGGGG.parquet             rows that could not become examples
    scores/STAGE-FINGERPRINT/part-….parquet      row-aligned with the examples that are no duplicates
    features/STAGE-FINGERPRINT/part-….parquet    ids and reasons, and part-….npy: the vectors, memory-mappable
    corrections/NAME-FINGERPRINT/part-….parquet  what became of the rows that a correction looked at, old and new
    decisions/part-….parquet                one row for every input row
    dataset/train-00000-of-0000N.parquet    the result        provenance/: the same rows' ids, sources, scores
    .curate/run.json                        marks the directory as ours
    .curate/base.json                       the folder that the recipe's files are named from
    .curate/done/STAGE-FINGERPRINT/PART.json     a finished shard: its digest, counts, seconds
    .curate/done/select.json                the selection in effect
    .curate/events.jsonl                    every shard computed, in order

On an object store decisions, dataset and provenance stand under ``selections/ID/`` (see ``publish``), and events are
objects of their own; ``path``, ``list`` and the readers go by the names above everywhere.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from curate import __version__
from curate.exceptions import RunDirectoryError
from curate.pipelines import events, lock, objects, publish
from curate.urls import refuse_secrets

FORMAT = 1
LABELS = [
    *("decision", "stage", "reason", "score_name", "threshold", "cluster"),
    *("source", "group", "file", "part", "messages.list.element.role", "messages.list.element.name"),
]
"""Columns of few different values.  Parquet's dictionaries are built for these alone: for texts and ids it would begin
one, and give it up when it is a megabyte."""
_AT_ONCE = 8
"""Files fetched from an object store at the same time: a request waits for the network far longer than it works."""
_SMALL = 2 * 2**20
"""A file up to this size is fetched whole, whatever columns are asked: one request is quicker than three."""
_WRITTEN = ("examples", "rejected", "scores", "features", "corrections", "selections", "trials", ".curate")

T = TypeVar("T")
U = TypeVar("U")

_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew past its allowed size",
}


def explain_write(path: str, error: OSError) -> RunDirectoryError:
    """Say in words why a write failed, and what to do."""
    what = _NO_SPACE.get(error.errno or 0)
    if what:
        return RunDirectoryError(
            f"cannot write {path}: {what}. Make room, then run the same command: finished shards are kept."
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return RunDirectoryError(
            f"cannot write {path}: not permitted. Choose another --run directory, or change its permissions."
        )
    return RunDirectoryError(f"cannot write {path}: {error}.")


def _json(value: Any, indent: int | None = None) -> bytes:
    """Return JSON in UTF-8; half a surrogate pair, which a column's name may hold, as JSON's escape for it."""
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


@dataclass
class Store:
    """Reads and writes one run directory.  Small and picklable: workers get a copy.

    A store keeps to one selection: decisions, dataset and provenance are those in effect when it first looked.
    """

    url: str
    lease: lock.Lease | None = field(default=None, repr=False, compare=False)
    """What shows that this run holds an object store's directory."""
    _fs: Any = field(default=None, repr=False, compare=False)
    _inner: str = field(default="", repr=False, compare=False)
    _process: int = field(default=0, repr=False, compare=False)
    _selection: publish.Selection | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        refuse_secrets(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fs": None}

    @property
    def fs(self) -> Any:
        if self._fs is None or self._process != os.getpid():  # connections do not survive a fork
            self._fs, inner = objects.file_system(self.url)
            self._inner, self._process = inner.rstrip("/"), os.getpid()
        return self._fs

    @property
    def local(self) -> bool:
        return "file" in objects.protocols(self.fs)

    @property
    def root(self) -> str:
        return self._inner if self.fs is not None else ""  # finding the file system finds the path

    def path(self, *parts: str) -> str:
        """Return a path inside the run; parts may not climb out of it."""
        joined = "/".join(parts)
        if not joined:
            return self.root
        if joined.startswith("/") or ".." in joined.split("/"):
            raise RunDirectoryError(f"{joined!r} lies outside the run directory.")
        if joined.partition("/")[0] in publish.FOLDERS and (selection := self._selected()):
            return publish.locate(self, selection, joined)
        return f"{self.root}/{joined}"

    def place(self, *parts: str) -> str:
        """Return a path as others write it: with the ``s3://`` that it needs elsewhere."""
        path = self.path(*parts)
        return path if self.local else self.fs.unstrip_protocol(path)

    def _selected(self) -> publish.Selection | None:
        if self._selection is None:
            self._selection = publish.current(self)
        elif self.local and publish.current(self) != self._selection:  # elsewhere each has a folder of its own
            raise publish.replaced(self)
        return self._selection

    def forget_selection(self) -> None:
        """Look again which selection is in effect."""
        self._selection = None

    # -- reading -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        if self.local:
            yield
            return
        try:
            with objects.told(path, "read"):
                yield
        except FileNotFoundError:
            seen = self._selection
            if seen and path.startswith(f"{self.root}/{seen.folder}/") and publish.current(self) != seen:
                raise publish.replaced(self) from None
            raise

    def exists(self, *parts: str) -> bool:
        path = self.path(*parts)
        with self._reading(path):
            return self.fs.exists(path)

    def read_bytes(self, *parts: str) -> bytes:
        path = self.path(*parts)
        with self._reading(path):
            return objects.fetch(self.fs, path)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return a stretch of a file's bytes, by one request."""
        where = self.path(path)
        if self.local:
            with open(where, "rb") as handle:
                handle.seek(start)
                return handle.read(end - start)
        with self._reading(where):
            return self.fs.cat_file(where, start=start, end=end)

    def read_json(self, *parts: str) -> Any:
        """Return the JSON at a path, or None when it is not there."""
        try:
            return json.loads(self.read_bytes(*parts))
        except FileNotFoundError:
            return None

    def read_jsons(self, directory: str) -> dict[str, Any]:
        """Return every ``NAME.json`` of a directory as {NAME: value}; empty when there is no such directory."""
        names = [n for n in self.list(directory) if n.endswith(".json")]
        texts = self.read_many(directory, names)
        return {n[:-5]: json.loads(text) for n, text in zip(names, texts, strict=True)}

    def read_many(self, directory: str, names: list[str]) -> Iterator[bytes]:
        """Yield the contents of several files of a directory, in order; fetched several at a time."""
        return self._ahead(lambda name: self.read_bytes(directory, name), names)

    def read_table(self, *parts: str, columns: list[str] | None = None) -> pa.Table:
        path = self.path(*parts)
        if self.local:
            return pq.read_table(path, columns=columns, memory_map=False, use_threads=False)
        with self._reading(path):
            if columns is None or "messages" in columns:  # nearly all of it
                return pq.read_table(pa.BufferReader(objects.fetch(self.fs, path)), columns=columns, use_threads=False)
            with self.fs.open(path, "rb", cache_type="none") as handle:
                small = handle.size <= _SMALL
                source = pa.BufferReader(objects.fetch(self.fs, path)) if small else handle
                return pq.read_table(source, columns=columns, use_threads=False, pre_buffer=True)

    def read_tables(self, directory: str, names: Iterable[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the tables of several files of a directory, in order; fetched several at a time."""
        return self._ahead(lambda name: self.read_table(directory, name, columns=columns), names)

    def _ahead(self, fetch: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """``map``, but from an object store a few items are fetched ahead; at most ``_AT_ONCE`` are held."""
        if self.local:
            yield from map(fetch, items)
            return
        queue = iter(items)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            waiting = collections.deque(pool.submit(fetch, item) for item in islice(queue, _AT_ONCE))
            try:
                while waiting:
                    done = waiting.popleft().result()
                    waiting.extend(pool.submit(fetch, item) for item in islice(queue, 1))
                    yield done
            finally:
                for future in waiting:
                    future.cancel()

    def events(self) -> list[dict[str, Any]]:
        """Return the log of what was computed; see ``curate.pipelines.events``."""
        return events.read(self)

    def list(self, directory: str, prefix: str = "") -> list[str]:
        """Return the names in a directory (that begin with ``prefix``), sorted; empty when there is none."""
        path = self.path(directory)
        selection = self._selection if directory in publish.FOLDERS else None
        if selection and selection.files is not None:  # as the pointer names them, whatever a listing says
            return sorted(n for n in selection.files[directory] if n.startswith(prefix))
        try:
            with self._reading(path):
                found = self.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        # Consoles make a "folder" by an object of its name with a slash: it stands in its own listing.
        names = (p.rstrip("/")[len(path) :].strip("/") for p in found if p.rstrip("/") != path)
        return sorted(n for n in names if n.startswith(prefix))

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, *parts: str) -> Iterator[Any]:
        """Open a file that appears under its name only when it is complete, and not at all on an error."""
        path = self.path(*parts)
        aside = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            if self.local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                try:
                    with open(aside, "wb") as handle:
                        yield handle
                        handle.flush()
                        os.fsync(handle.fileno())
                    os.replace(aside, path)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(aside)
                    raise
            else:
                with objects.upload(self.fs, path, before=self._check_lease) as handle:
                    yield handle
        except OSError as error:
            raise explain_write(path, error) from error

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check(self)

    def write_bytes(self, data: bytes, *parts: str) -> None:
        with self.writing(*parts) as handle:
            handle.write(data)

    def write_json(self, value: Any, *parts: str) -> None:
        self.write_bytes(_json(value, indent=1), *parts)

    def write_table(self, table: pa.Table, *parts: str) -> None:
        """Write Parquet (zstd).  The bytes depend on the table alone."""
        with self.writing(*parts) as handle:
            pq.write_table(table, handle, compression="zstd", compression_level=1, use_dictionary=LABELS)

    def append_event(self, event: dict[str, Any]) -> None:
        """Log that a shard was begun or finished; see ``curate.pipelines.events``."""
        events.append(self, event)

    def remove(self, *parts: str) -> None:
        """Remove a file, or a directory with all in it; nothing happens if there is none."""
        path = self.path(*parts)
        with contextlib.suppress(FileNotFoundError), self._removing(path):
            self.fs.rm(path, recursive=True)

    def remove_files(self, directory: str, names: Iterable[str]) -> None:
        """Remove files of a directory, those that are there; no more than one request for a thousand."""
        paths = [self.path(*filter(None, (directory, name))) for name in names]
        if self.local:
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        elif paths:
            with contextlib.suppress(FileNotFoundError), self._removing(self.path(directory)):
                self.fs.rm(paths)

    def _removing(self, path: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.local else objects.told(path, "remove")

    def sweep(self, *parts: str) -> None:
        """Remove what interrupted writes left aside, here and in all folders below: files, or open uploads.

        Only while nothing is being written: at the start of a run, and when a worker may have died in the middle.
        """
        if not self.local:
            with objects.told(self.root, "list"):
                objects.abort_uploads(self.fs, self.path(*parts), () if parts else _WRITTEN)
        else:
            for folder, _, names in os.walk(self.path(*parts)):
                for name in names:
                    if name.endswith(".tmp"):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(os.path.join(folder, name))

    # -- ownership ---------------------------------------------------------------------------------------------------

    def claim(self, name: str) -> None:
        """Make the directory ours: create it, or recognise it; refuse one that holds something else.

        Raises
        ------
        RunDirectoryError
            If it cannot be created or written, or holds files that are not a run's.
        """
        try:
            found = [n for n in self.list("") if n]
        except (PermissionError, NotADirectoryError) as error:
            raise RunDirectoryError(
                f"{self.root} cannot be used as a run directory: {error}. Choose another with --run."
            ) from error
        if self.local and os.path.exists(self.root) and not os.path.isdir(self.root):
            raise RunDirectoryError(f"{self.root} is a file; a run needs a directory. Choose another with --run.")
        try:
            mark = self.read_json(".curate", "run.json")
        except (PermissionError, ValueError) as error:
            raise RunDirectoryError(
                f"{self.root} cannot be used as a run directory: {error}. Choose another with --run."
            ) from error
        if found and mark is None and any(n != ".curate" for n in found):
            raise RunDirectoryError(
                f"{self.root} is not empty and is no run of curate (it holds {', '.join(found[:5])}"
                f"{', …' if len(found) > 5 else ''}). Choose another directory with --run."
            )
        if mark is not None and mark.get("format") != FORMAT:
            raise RunDirectoryError(
                f"{self.root} was written in run format {mark.get('format')}, this curate {__version__} reads "
                f"{FORMAT}. "
                "Use the curate that wrote it, or another --run directory."
            )
        if mark is None:
            self.write_json({"format": FORMAT, "name": name, "curate": __version__}, ".curate", "run.json")
        elif self.local:  # elsewhere the lock is the first write
            probe = f"probe-{uuid.uuid4().hex[:8]}"
            self.write_bytes(b"", ".curate", probe)
            self.remove(".curate", probe)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the directory for one run; see ``curate.pipelines.lock``."""
        return lock.hold(self)
