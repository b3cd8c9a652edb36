"""File systems that are reached by requests: what fsspec gives, made safe to build a run on.

What an object store lacks, and what stands in for it:

========================  ============================================================================================
rename                    none: a file is uploaded under its name when it is complete; ``publish`` does without moving
append                    none: ``events`` writes one small object per finished shard
exclusive locks           ``create``, a write that only one of several can win; ``lock`` builds on it
no error in the middle    a write that fails uploads nothing; what a killed process began is aborted by the next run
fresh listings            s3fs and others remember listings; here that is switched off
========================  ============================================================================================

File systems whose uploads can be seen half done (sftp, ftp, smb …) can rename: files are written aside there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any

from curate.exceptions import CurateError, RunDirectoryError
from curate.urls import redacted

WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "cos", "memory", "hf"}
"""Protocols whose objects appear when their upload is complete."""
_IN_MEMORY = 16 * 2**20
"""Bytes that a file may reach before it goes on in a temporary file, until it is uploaded."""


def file_system(url: str) -> tuple[Any, str]:
    """Return (file system, path in it), one that asks the store every time instead of remembering listings.

    Raises
    ------
    RunDirectoryError
        If no installed package opens such URLs.
    """
    import fsspec

    try:
        return fsspec.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        scheme = url.partition("://")[0]
        hint = "pip install 'curate-sft[s3]'" if scheme in ("s3", "s3a") else "install the package that does"
        raise RunDirectoryError(f"{url}: nothing here opens {scheme}:// ({error}); {hint}.") from error


def protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


@contextlib.contextmanager
def told(path: str, doing: str) -> Iterator[None]:
    """Say in words what a store refused; a file that is not there stays a FileNotFoundError.

    Clients raise whatever they are built of (botocore, aiohttp, ssl), so everything that is not ours is told.
    """
    try:
        yield
    except (CurateError, FileNotFoundError, MemoryError):
        raise
    except PermissionError as error:
        raise RunDirectoryError(
            f"cannot {doing} {path}: not permitted ({_line(error)}). Check the login (environment, profile or role) "
            "and what it may do there, or choose another --run."
        ) from error
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise RunDirectoryError(
                f"cannot {doing} {path}: no login was found ({_line(error)}). Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a login never stands in a recipe."
            ) from error
        raise RunDirectoryError(
            f"cannot {doing} {path}: {_line(error)}. When the store answers again, run the same command: finished "
            "shards are kept."
        ) from error


def _line(error: BaseException) -> str:
    said = redacted(" ".join(str(error).split())).rstrip(".")
    return said or type(error).__name__


def fetch(fs: Any, path: str) -> bytes:
    """Return an object, by one request: of s3fs a range "from 0 on" saves asking for the size first."""
    if "s3" not in protocols(fs):
        return fs.cat_file(path)
    try:
        return fs.cat_file(path, start=0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return fs.cat_file(path)  # an empty object has no range


def create(fs: Any, path: str, data: bytes) -> bool:
    """Write an object that is not there yet; return False if one was there, which then stays as it is.

    Where the store has no such write, several may win: ``lock`` tries it out before it relies on it.
    """
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        pass
    except OSError:  # older clients, and stores that answer "conflict" to two at once
        if not fs.exists(path):
            raise
    else:
        return True
    return fetch(fs, path) == data  # an answer that got lost made the client ask again: it was ours


@contextlib.contextmanager
def upload(fs: Any, path: str, before: Callable[[], None] = lambda: None) -> Iterator[IO[bytes]]:
    """Open a file that is uploaded when it is complete, after calling ``before``; an error earlier leaves nothing.

    It is held here meanwhile, in memory and beyond 16 MiB in a temporary file: then an upload has no half, and the
    file can be written in any order.  ``fs.open`` would show what was written so far, as if it were all, on an error.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as held:
        yield held  # type: ignore[misc]
        before()
        with told(path, "write"):
            try:
                _put(fs, path, held)
            except FileNotFoundError as error:  # a write can miss nothing but the bucket
                raise RunDirectoryError(
                    f"cannot write {path}: {_line(error)}. Create the bucket, or choose another --run."
                ) from error


def _put(fs: Any, path: str, held: Any) -> None:
    whole = bool(set(protocols(fs)) & WHOLE)
    place = path if whole else f"{path}.{uuid.uuid4().hex[:12]}.tmp"
    if not whole:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    held.seek(0, os.SEEK_END)
    if held.tell() > _IN_MEMORY:
        held.flush()
        with _named(held) as name:
            fs.put_file(name, place)
    else:
        held.seek(0)
        fs.pipe_file(place, held.read())
    if not whole:
        fs.mv(place, path)


@contextlib.contextmanager
def _named(held: Any) -> Iterator[str]:
    """Return a path of an open temporary file, which has no name of its own."""
    path = f"/proc/self/fd/{held.fileno()}"
    if os.path.exists(path):
        yield path
        return
    with tempfile.NamedTemporaryFile() as copy:
        held.seek(0)
        while block := held.read(2**20):
            copy.write(block)
        copy.flush()
        yield copy.name


def abort_uploads(fs: Any, root: str, folders: tuple[str, ...]) -> int:
    """Abort the uploads into some folders that a killed process left open (S3 keeps their parts, and bills them).

    Returns how many there were; 0 where the store has no such thing, or does not let us see it.
    """
    if "s3" not in protocols(fs):
        return 0
    bucket, _, prefix = root.partition("/")
    n = 0
    with contextlib.suppress(PermissionError, FileNotFoundError, NotImplementedError):
        for folder in folders:
            below = "/".join(p for p in (prefix, folder) if p) + "/"
            for each in fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=below).get("Uploads", []):
                fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"])
                n += 1
    return n


def server_time(fs: Any, path: str) -> float | None:
    """Return when an object was written by the store's own clock, in seconds; None where it does not say."""
    try:
        return fs.modified(path).timestamp()
    except (NotImplementedError, KeyError, AttributeError):
        return None
