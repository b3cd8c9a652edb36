"""The run directory: any fsspec URL, files that appear whole, one run at a time.

Layout (what a person reads stands at the top, what the run needs for itself under ``.curate/``)::

    recipe.yaml  manifest.json
    examples/part-GGGGG-NNNN.parquet        normalised examples; group of input slices, number in the group
    rejected/part-GGGGG.parquet             rows that could not become examples
    scores/STAGE-FINGERPRINT/part-….parquet      row-aligned with the examples that are no duplicates
    features/STAGE-FINGERPRINT/part-….parquet    ids and reasons, and part-….npy: the vectors, memory-mappable
    decisions/part-….parquet                one row for every input row
    dataset/train-00000-of-0000N.parquet    the result        provenance/: the same rows' ids, sources, scores
    .curate/run.json                        marks the directory as ours
    .curate/done/STAGE-FINGERPRINT/PART.json     a finished shard: its digest, counts, seconds
    .curate/events.jsonl                    every shard computed, in order
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import __version__
from curate.exceptions import RunDirectoryError

FORMAT = 1
LABELS = [
    *("decision", "stage", "reason", "score_name", "threshold", "cluster"),
    *("source", "group", "file", "part", "messages.list.element.role", "messages.list.element.name"),
]
"""Columns of few different values.  Parquet's dictionaries are built for these alone: for texts and ids it would begin
one, and give it up when it is a megabyte."""
_STALE = 120.0  # seconds after which a remote lock without a heartbeat is taken over

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
    """Reads and writes one run directory.  Small and picklable: workers get a copy."""

    url: str
    _fs: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_fs": None}

    @property
    def fs(self) -> Any:
        if self._fs is None:
            import fsspec

            self._fs = fsspec.url_to_fs(self.url)[0]
        return self._fs

    @property
    def local(self) -> bool:
        protocol = self.fs.protocol
        return "file" in (protocol if isinstance(protocol, (list, tuple)) else (protocol,))

    @property
    def root(self) -> str:
        import fsspec

        return fsspec.url_to_fs(self.url)[1].rstrip("/")

    def path(self, *parts: str) -> str:
        """Return a path inside the run; parts may not climb out of it."""
        joined = "/".join(parts)
        if not joined:
            return self.root
        if joined.startswith("/") or ".." in joined.split("/"):
            raise RunDirectoryError(f"{joined!r} lies outside the run directory.")
        return f"{self.root}/{joined}"

    # -- reading -----------------------------------------------------------------------------------------------------

    def exists(self, *parts: str) -> bool:
        return self.fs.exists(self.path(*parts))

    def read_bytes(self, *parts: str) -> bytes:
        return self.fs.cat_file(self.path(*parts))

    def read_json(self, *parts: str) -> Any:
        """Return the JSON at a path, or None when it is not there."""
        try:
            return json.loads(self.read_bytes(*parts))
        except FileNotFoundError:
            return None

    def read_jsons(self, directory: str) -> dict[str, Any]:
        """Return every ``NAME.json`` of a directory as {NAME: value}; empty when there is no such directory."""
        try:
            names = [p.rsplit("/", 1)[-1] for p in self.fs.ls(self.path(directory), detail=False)]
        except FileNotFoundError:
            return {}
        return {n[:-5]: self.read_json(directory, n) for n in sorted(names) if n.endswith(".json")}

    def read_table(self, *parts: str, columns: list[str] | None = None) -> pa.Table:
        path = self.path(*parts)
        if self.local:
            return pq.read_table(path, columns=columns, memory_map=False, use_threads=False)
        with self.fs.open(path, "rb") as handle:
            return pq.read_table(handle, columns=columns, use_threads=False)

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
            else:  # an object store shows an object when its upload is complete
                buffer = io.BytesIO()
                yield buffer
                self.fs.pipe_file(path, buffer.getvalue())
        except OSError as error:
            raise explain_write(path, error) from error

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
        """Add a line to ``.curate/events.jsonl`` (local runs only: object stores cannot append)."""
        if self.local:
            try:
                with open(self.path(".curate", "events.jsonl"), "ab") as handle:
                    handle.write(_json(event))
            except OSError as error:
                raise explain_write(self.path(".curate", "events.jsonl"), error) from error

    def remove(self, *parts: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(*parts), recursive=True)

    def list(self, directory: str) -> list[str]:
        """Return the names in a directory, sorted; empty when there is none."""
        try:
            return sorted(p.rsplit("/", 1)[-1] for p in self.fs.ls(self.path(directory), detail=False))
        except FileNotFoundError:
            return []

    def sweep(self, *parts: str) -> None:
        """Remove what interrupted writes left aside, here and in all folders below (object stores keep no such thing).

        Only while nothing is being written: at the start of a run, and when a worker may have died in the middle.
        """
        if self.local:
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
        else:
            probe = f"probe-{uuid.uuid4().hex[:8]}"
            self.write_bytes(b"", ".curate", probe)
            self.remove(".curate", probe)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one run.

        Locally an operating-system lock on ``.curate/lock``: it is released when the process ends, however it ends.  On
        an object store a heartbeat object, taken over when it is older than two minutes.
        """
        who = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if self.local:
            import fcntl

            path = self.path(".curate", "lock")
            with open(path, "a+") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    handle.seek(0)
                    raise self._in_use(handle.read()) from None
                handle.seek(0)
                handle.truncate()
                handle.write(json.dumps(who))
                handle.flush()
                yield
            return
        token, beat = uuid.uuid4().hex, threading.Event()
        held = self.read_json(".curate", "lock.json")
        if held and time.time() - held["beat"] < _STALE:
            raise self._in_use(json.dumps(held))

        def pulse() -> None:
            while not beat.wait(_STALE / 4):
                self.write_json({**who, "token": token, "beat": time.time()}, ".curate", "lock.json")

        self.write_json({**who, "token": token, "beat": time.time()}, ".curate", "lock.json")
        if (self.read_json(".curate", "lock.json") or {}).get("token") != token:
            raise self._in_use("")
        thread = threading.Thread(target=pulse, daemon=True)
        thread.start()
        try:
            yield
        finally:
            beat.set()
            thread.join()
            self.remove(".curate", "lock.json")

    def _in_use(self, holder: str) -> RunDirectoryError:
        try:
            held = json.loads(holder)
            by = f" (process {held['pid']} on {held['host']}, since {held['since']})"
        except (ValueError, KeyError):
            by = ""
        return RunDirectoryError(
            f"{self.root} is in use by another run{by}. Wait for it, stop it, or choose another --run directory."
        )
