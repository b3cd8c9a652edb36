"""Vectors of the whole pool as one memory map, so that the system can drop their pages instead of running out.

Locally the map lives in the run, ``.curate/pool``.  Of a run on an object store a copy is kept on this machine, under
``$CURATE_CACHE`` (``~/.cache``) in ``curate/vectors``: it is named by the content it holds, so it is never stale, and a
second ``select`` fetches nothing.  The copies together keep to ``CURATE_CACHE_GB`` (20): the longest unused go first.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError, RunError

if TYPE_CHECKING:
    from curate.pipelines.store import Store

Fill = Callable[[NDArray[Any]], None]
_HEADER = 128
"""Bytes before the first number of an .npy file of this kind."""


def mapped(store: Store, name: str, shape: tuple[int, int], fill: Fill, kind: Any = np.float32) -> NDArray[Any]:
    """Return a read-only map of ``shape`` and type ``kind``, made by ``fill`` unless it is there under ``name``.

    Raises
    ------
    RunError
        If this machine has no room for the copy of a remote run's vectors.
    """
    if not shape[0]:
        return np.empty(shape, dtype=kind)
    kind = np.dtype(kind)
    if store.local:
        from curate.pipelines.store import explain_write

        folder = Path(store.path(".curate", "pool"))
        if not (folder / name).exists():
            for other in store.list(".curate/pool"):  # older vectors of the same stage
                if other.rsplit("-", 2)[0] == name.rsplit("-", 2)[0]:
                    store.remove(".curate", "pool", other)
            try:
                _write(folder / name, shape, fill, kind)
            except OSError as error:
                raise explain_write(str(folder / name), error) from error
        return np.load(folder / name, mmap_mode="r")
    kept = _folder() / name
    size = _HEADER + kind.itemsize * shape[0] * shape[1]
    with contextlib.suppress(FileNotFoundError, ValueError):  # not there, removed this moment, or cut short
        out = np.load(kept, mmap_mode="r")
        if out.shape == shape:
            os.utime(kept)
            return out
    _make_room(kept.parent, size)
    try:
        _write(kept, shape, fill, kind)
        out = np.load(kept, mmap_mode="r")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise _no_room(kept.parent, size, str(error)) from error
    if size > _allowed():
        kept.unlink()  # the map goes on to be readable, and its room is free when it is let go
    return out


_IN_MEMORY = 2**24
"""Bytes up to which some rows of a map are simply copied."""
_BLOCK = 2**14
"""Rows that are copied at once."""


def rows_of(matrix: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return some rows of a map, read-only: as a map again where they are many, in a file that is gone when it is."""
    size = rows.size * matrix[:1].nbytes
    home = getattr(matrix, "filename", None)
    if home is None or size <= _IN_MEMORY:
        return matrix[rows]
    with tempfile.TemporaryFile(dir=Path(home).parent) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        out = np.memmap(file, dtype=matrix.dtype, mode="r+", shape=(rows.size, *matrix.shape[1:]))
    for start in range(0, rows.size, _BLOCK):
        out[start : start + _BLOCK] = matrix[rows[start : start + _BLOCK]]
    out.flags.writeable = False
    return out


def _write(path: Path, shape: tuple[int, int], fill: Fill, kind: np.dtype[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": kind.str, "fortran_order": False, "shape": shape})
        with open(aside, "wb") as file:
            file.write(header.getvalue())
            file.flush()
            os.posix_fallocate(
                file.fileno(), 0, header.tell() + kind.itemsize * shape[0] * shape[1]
            )  # a full disk is told here
        out = np.memmap(aside, dtype=kind, mode="r+", offset=header.tell(), shape=shape)
        fill(out)
        out.flush()
        del out
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def _folder() -> Path:
    base = os.environ.get("CURATE_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "curate" / "vectors"


def _allowed() -> float:
    said = os.environ.get("CURATE_CACHE_GB", "20")
    try:
        return float(said) * 2**30
    except ValueError:
        raise InputError(f"CURATE_CACHE_GB: a number of gibibytes was asked, {said!r} was found.") from None


def _make_room(folder: Path, size: int) -> None:
    """Remove the longest unused copies until one of ``size`` bytes fits the bound; and what killed processes left."""
    folder.mkdir(parents=True, exist_ok=True)
    allowed = _allowed()
    held = sorted(_files(folder), key=lambda each: each[1].st_mtime)
    total = sum(stat.st_size for _, stat in held)
    for path, stat in held:
        left = path.suffix == ".tmp" and time.time() - stat.st_mtime > 86_400
        if left or (path.suffix == ".npy" and total + size > allowed):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            total -= stat.st_size
    if shutil.disk_usage(folder).free < size:
        raise _no_room(folder, size, f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB are free")


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield path, path.stat()


def _no_room(folder: Path, size: int, found: str) -> RunError:
    return RunError(
        f"the vectors of this run need {size / 2**30:.1f} GiB on this machine, in {folder}: {found}. Make room, or set "
        "CURATE_CACHE to a place that has some."
    )
