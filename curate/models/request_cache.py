"""Answers of a model server, kept on disk as they arrive: a crash repays nothing, and a second run sends nothing.

One SQLite file, safe for several processes of one machine.  An answer is found by a hash of all that it depends on, and
has a checksum of its own: one that does not fit any more counts as absent.  The folder should be on a local disk:
SQLite's write-ahead log is not made for file systems that several machines share.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from curate.exceptions import ModelError

_LAYOUT = 1
_WAIT = 30.0
"""Seconds to wait for another process that is writing."""


def default_folder() -> Path:
    """Return curate's own folder in the user's cache: $CURATE_CACHE, $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("CURATE_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "curate" / "requests"


def key_of(request: dict[str, Any]) -> bytes:
    """Return what a request's answer is found by: blake2b (256 bits) of its canonical JSON."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


class RequestCache:
    """Answers (bytes) by key (bytes), in ``folder/requests.sqlite``, which only the user can read.

    Raises
    ------
    ModelError
        If the folder cannot be written, or the file is damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "requests.sqlite"
        self.written = 0
        """Answers put in by this process."""
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)
        except OSError as error:
            raise ModelError(
                f"the request cache {str(self.path)!r} cannot be written ({error.strerror}); name another folder: "
                "backend: {use: http, cache: FOLDER}, or cache: off."
            ) from error
        try:
            # One thread uses it, though not the one that opens it.
            self._db = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            self._prepare()
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _prepare(self) -> None:
        end = time.monotonic() + _WAIT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:  # SQLite does not wait here by itself
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self._db.execute("PRAGMA synchronous=NORMAL")  # a cut of power may cost the last answers, never the file
        (layout,) = self._db.execute("PRAGMA user_version").fetchone()
        if layout not in (0, _LAYOUT):
            raise sqlite3.DatabaseError(f"it is of layout {layout}, and this curate writes {_LAYOUT}")
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        if not layout:
            self._db.execute(f"PRAGMA user_version={_LAYOUT}")

    def get(self, key: bytes) -> bytes | None:
        """Return an answer; None where there is none, or one whose checksum does not fit."""
        try:
            row = self._db.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        if row is None or not isinstance(row[0], bytes):
            return None
        answer = row[0][8:]
        return answer if _checksum(key, answer) == row[0][:8] else None

    def put(self, key: bytes, answer: bytes) -> None:
        """Keep an answer; it is there for every process when this returns."""
        try:
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, _checksum(key, answer) + answer))
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        self.written += 1

    def close(self) -> None:
        self._db.close()

    def _trouble(self, error: sqlite3.Error) -> ModelError:
        return ModelError(
            f"the request cache {str(self.path)!r} cannot be used: {error}. If the disk is full, make room; if the "
            "file is damaged, delete it (what it held is asked again); or name another folder: "
            "backend: {use: http, cache: FOLDER}, or cache: off."
        )


def _checksum(key: bytes, answer: bytes) -> bytes:
    return hashlib.blake2b(answer, key=key, digest_size=8).digest()
