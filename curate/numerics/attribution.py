"""Attribution: the influence of every pool row on every target row, as products of their gradient features.

The same products of hidden-state features are similarities (RDS+); nothing here knows which.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError
from curate.numerics.blocks import Blocks

MANIFEST = "features.json"
_SAME = ("d", "law", "seed", "checkpoint")
"""What a manifest says of a projection that both sides of a product must have alike."""
_BLOCK = 2**22  # numbers of a block of features: 16 MB as float32, a thread
_PIECE = 2**19  # numbers that are read together: 1 MB of float16 is still in cache when it becomes float32
_AHEAD = 2**24  # bytes after a block that the system is asked to read in advance


@dataclass(frozen=True, eq=False)
class Features:
    """Feature vectors of n rows in shards, read a block at a time."""

    shards: Sequence[NDArray[Any] | str | os.PathLike[str]]
    """Arrays (rows, d) of float16, float32 or float64, or paths of .npy files of such; in row order."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """What made them: "d", "law", "seed" and "checkpoint", as far as they are known."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Features:
        """Return the .npy files of a folder, by name, with what its ``features.json`` says, if it has one."""
        files = sorted(Path(folder).glob("*.npy"))
        if not files:
            raise InputError(f"attribution: features in .npy files were asked, {folder} holds none.")
        manifest = Path(folder) / MANIFEST
        try:
            made = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        except ValueError as error:
            raise InputError(f"attribution: {manifest} cannot be read: {error}; make the features again.") from error
        return cls(files, made)

    @classmethod
    def of(cls, given: Features | NDArray[Any] | str | os.PathLike[str]) -> Features:
        """Take features, one array, one file, or a folder."""
        if isinstance(given, Features):
            return given
        if isinstance(given, (str, os.PathLike)):
            return cls.open(given) if os.path.isdir(given) else cls([given])
        return cls([given])

    def parts(self) -> list[_Part]:
        """Return the shards, opened.

        Raises
        ------
        InputError
            For a file that is missing, cut short or no .npy file, for another type or number of dimensions, or for
            shards that are not of one width, or not of the width that the manifest says.
        """
        parts = [_Part.of(shard, number) for number, shard in enumerate(self.shards)]
        widths = {part.shape[1]: part.what for part in reversed(parts)}
        if "d" in self.made:
            widths[self.made["d"]] = f"the manifest ({MANIFEST})"
        if len(widths) > 1:
            said = ", ".join(f"{width:,} in {what}" for width, what in widths.items())
            raise InputError(f"attribution: features of one width were asked, {said} were found.")
        return parts


@dataclass(frozen=True, eq=False)
class _Part:
    what: str
    shape: tuple[int, int]
    array: NDArray[Any]
    """The rows themselves, or a map of their file, of which only the header is looked at."""
    path: str | None = None

    @classmethod
    def of(cls, shard: NDArray[Any] | str | os.PathLike[str], number: int) -> _Part:
        path = os.fspath(shard) if isinstance(shard, (str, os.PathLike)) else None
        what = path or f"shard {number}"
        try:
            array = np.asanyarray(shard) if path is None else _open(path)
        except (OSError, ValueError) as error:
            raise InputError(f"attribution: {what} cannot be read as an .npy file: {error}.") from error
        if array.ndim != 2 or array.dtype.kind != "f":
            raise InputError(
                f"attribution: features (rows, d) of float16, float32 or float64 were asked; {what} is "
                f"{array.dtype} of shape {array.shape}."
            )
        direct = isinstance(array, np.memmap) and array.flags.c_contiguous and array.size > 0
        return cls(what, array.shape, array, path if direct else None)

    def read(self, start: int, stop: int, room: _Room) -> NDArray[np.float32]:
        """Return rows as float32 in ``room``.  A file is read, not mapped: what was read does not stay in memory."""
        count, d = stop - start, self.shape[1]
        rows = room.of("rows", count * d, np.dtype(np.float32)).reshape(count, d)
        if self.path is None:
            rows[...] = self.array[start:stop]
            return rows
        assert isinstance(self.array, np.memmap)
        kind = self.array.dtype
        offset, end = (self.array.offset + row * d * kind.itemsize for row in (start, stop))
        step = max(1, _PIECE // d)
        with open(self.path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # the disk works on what comes next while this block is multiplied
                os.posix_fadvise(file.fileno(), end, _AHEAD, os.POSIX_FADV_WILLNEED)
            file.seek(offset)
            for first in range(0, count, step):
                piece = rows[first : first + step]
                stored = piece if kind == np.float32 else room.of("stored", piece.size, kind).reshape(piece.shape)
                if file.readinto(stored.data) < stored.nbytes:
                    raise InputError(f"attribution: {self.path} was cut short while it was read.")
                if stored is not piece:
                    piece[...] = stored
        return rows


class _Room(threading.local):
    """Memory of a thread that is used again for every block: fresh pages cost a third of a multiplication."""

    def of(self, name: str, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        held = self.__dict__.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            held = self.__dict__[name] = np.empty(size, dtype=dtype)
        return held[:size]


def _open(path: str) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        if os.path.getsize(path) < 1024:  # an array without rows cannot be mapped
            return np.load(path, allow_pickle=False)
        raise


Side = Features | NDArray[Any] | str | os.PathLike[str]


def attribute(
    pool: Side | Sequence[Side],
    targets: Side | Sequence[Side],
    *,
    weights: Sequence[float] | None = None,
    cosine: bool = True,
    out: NDArray[np.float32] | str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    r"""Return A (n, M), the influence of each pool row on each target: A = Σ_t w_t Γ̂_t ĝ_tᵀ over checkpoints t.

    Γ̂_t (n, d) are the pool's features at a checkpoint and ĝ_t (M, d) the targets', rows divided by their length.

    Parameters
    ----------
    pool, targets : ``Features``, an array (rows, d), the path of an .npy file, or a folder of them; several
        checkpoints: a list of these on both sides.  The targets of a checkpoint are held in memory as float32, the pool
        is read in blocks, 16 MB a thread.
    weights : one number a checkpoint, at least 0, rescaled to sum to 1 (LESS takes the average learning rates); None:
        all the same.
    cosine : divide by the lengths of the rows; False takes the products as they are.
    out : where to put A: a float32 array (a memory map, say), or the path of an .npy file, which appears when it is
        complete and is returned as a read-only map.  None: memory.
    threads : blocks under way at one time; when None, twice as many as BLAS was given threads, since some of them wait
        for the disk.  The result does not depend on it.

    Returns
    -------
    float32 array (n, M).  A row is NaN throughout if a feature of it is NaN or infinite at any checkpoint, or if it is
    0 and a cosine was asked: such a row has no influence that is known, and no number stands in for it.

    Raises
    ------
    InputError
        For features of unequal widths, or made by another projection or checkpoint than the other side's, as far as
        their manifests tell; for unequal numbers of rows between checkpoints; for a target that is NaN, infinite, or 0
        where a cosine was asked.

    Notes
    -----
    n·M·d multiply-adds a checkpoint, in float32: relative error about sqrt(d) · 6e-8 of the product of the lengths.  A
    row's result may move by that much when it falls into a block of another size.

    References
    ----------
    Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning" (arXiv:2402.04333).
    """
    pools, aims = _checkpoints(pool), _checkpoints(targets)
    if len(pools) != len(aims) or not pools:
        raise InputError(
            f"attribution: the same checkpoints were asked on both sides, {len(pools)} of the pool and {len(aims)} of "
            "the targets were found."
        )
    shares = _shares(weights, len(pools))
    for t, (one, other) in enumerate(zip(pools, aims, strict=True)):
        _check_made(one.made, other.made, t)
    sides = [(p.parts(), _read_targets(a.parts(), cosine)) for p, a in zip(pools, aims, strict=True)]
    shape = _shape(sides)
    if isinstance(out, (str, os.PathLike)):
        return _to_file(os.fspath(out), shape, sides, shares, cosine, threads)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise InputError(f"attribution: out of float32 {shape} was asked, {out.dtype} {out.shape} was found.")
    _fill(out, sides, shares, cosine, threads)
    return out


_Sides = list[tuple[list[_Part], NDArray[np.float32]]]


def _checkpoints(side: Side | Sequence[Side]) -> list[Features]:
    return [Features.of(one) for one in side] if isinstance(side, (list, tuple)) else [Features.of(side)]  # type: ignore[arg-type]


def _shares(weights: Sequence[float] | None, count: int) -> NDArray[np.float64]:
    given = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (count,):
        raise InputError(f"attribution: one weight a checkpoint was asked, {given.size} for {count} were found.")
    if not (np.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
        raise InputError(f"attribution: weights of at least 0, one of them above, were asked; found {given.tolist()}.")
    return given / given.sum()


def _check_made(pool: Mapping[str, Any], targets: Mapping[str, Any], checkpoint: int) -> None:
    for key in _SAME:
        if key in pool and key in targets and pool[key] != targets[key]:
            raise InputError(
                f"attribution: at checkpoint {checkpoint}, the pool's features have {key} {pool[key]!r}, the targets' "
                f"{targets[key]!r}; products of two different projections or checkpoints mean nothing: make one side "
                "again like the other."
            )


def _read_targets(parts: list[_Part], cosine: bool) -> NDArray[np.float32]:
    """Return the targets (M, d), divided by their lengths if cosines are asked."""
    read = [part.read(0, part.shape[0], _Room()) for part in parts]
    rows = np.concatenate(read) if read else np.empty((0, 0), dtype=np.float32)
    if not rows.size:
        raise InputError(f"attribution: at least one target was asked, features of shape {rows.shape} were found.")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise InputError(f"attribution: {bad.size} of {len(rows)} targets hold NaN or infinity, first target {bad[0]}.")
    if cosine:
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        if not lengths.all():
            raise InputError(f"attribution: target {int(lengths.argmin())} of {len(rows)} is 0: it has no direction.")
        rows = (rows / lengths[:, None]).astype(np.float32)
    return rows


def _shape(sides: _Sides) -> tuple[int, int]:
    shapes = []
    for t, (parts, aims) in enumerate(sides):
        for part in parts[:1]:
            if part.shape[1] != aims.shape[1]:
                raise InputError(
                    f"attribution: at checkpoint {t}, the pool's features have {part.shape[1]:,} dimensions, the "
                    f"targets' {aims.shape[1]:,}; make both by one projection."
                )
        shapes.append((sum(part.shape[0] for part in parts), len(aims)))
    if len(set(shapes)) > 1:
        said = ", ".join(f"{n:,} × {m:,}" for n, m in shapes)
        raise InputError(f"attribution: the same rows and targets were asked of every checkpoint; found {said}.")
    return shapes[0]


def _to_file(
    path: str, shape: tuple[int, int], sides: _Sides, shares: NDArray[np.float64], cosine: bool, threads: int | None
) -> NDArray[np.float32]:
    aside = f"{path}.part"
    try:
        if shape[0]:
            out = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
            _fill(out, sides, shares, cosine, threads)
            out.flush()
            del out
        else:
            with open(aside, "wb") as file:
                np.save(file, np.empty(shape, dtype=np.float32))
        os.replace(aside, path)
    finally:
        if os.path.exists(aside):
            os.unlink(aside)
    return _open(path)


def _fill(
    out: NDArray[np.float32], sides: _Sides, shares: NDArray[np.float64], cosine: bool, threads: int | None
) -> None:
    room = _Room()
    with Blocks(threads, share=2) as blocks:
        for t, (parts, aims) in enumerate(sides):
            work = list(_blocks(parts))

            turned = np.ascontiguousarray(aims.T)

            def one(number: int, t: int = t, turned: NDArray[np.float32] = turned, work: list[Any] = work) -> None:
                part, start, stop, place = work[number]
                scores = _products(part.read(start, stop, room), turned, cosine)
                scores *= np.float32(shares[t])
                if t:
                    scores += out[place : place + len(scores)]
                out[place : place + len(scores)] = scores

            blocks.run(one, range(len(work)))


def _blocks(parts: list[_Part]) -> Iterator[tuple[_Part, int, int, int]]:
    """Yield (part, first row, end, row of the pool at which it begins)."""
    place = 0
    for part in parts:
        rows = max(1, _BLOCK // max(1, part.shape[1]))
        for start in range(0, part.shape[0], rows):
            stop = min(start + rows, part.shape[0])
            yield part, start, stop, place
            place += stop - start


def _products(rows: NDArray[np.float32], turned: NDArray[np.float32], cosine: bool) -> NDArray[np.float32]:
    """Return the products or cosines of rows (b, d), which are overwritten, with targets (d, M), or rows of NaN."""
    with np.errstate(all="ignore"):
        if cosine:
            square = np.einsum("nd,nd->n", rows, rows)
            # Too long or short for squares in float32 (scaling changes no cosine), or 0, or not a number.
            odd = np.flatnonzero(~((square > 1e-30) & (square < 1e30)))
            rows[odd] /= np.abs(rows[odd]).max(axis=1, keepdims=True)
            square[odd] = np.einsum("nd,nd->n", rows[odd], rows[odd])
        scores = rows @ turned
        if cosine:
            scores /= np.sqrt(square)[:, None]
    scores[~np.isfinite(scores).all(axis=1)] = np.nan
    return scores


def group_columns(labels: Sequence[str], m: int, *, caller: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return each column's group and the groups' labels, numbered by first appearance.

    Raises
    ------
    InputError
        If there is not one label for each of the ``m`` columns.
    """
    if isinstance(labels, str) or len(labels) != m:
        found = repr(labels) if isinstance(labels, str) else f"{len(labels)} labels"
        raise InputError(f"{caller}: targets= one label for each of the {m} columns was asked, {found} was found.")
    names = list(dict.fromkeys(map(str, labels)))
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[str(label)] for label in labels], dtype=np.int64), names


def aggregate(a: NDArray[Any], groups: NDArray[np.int64], how: Literal["mean", "sum", "max"]) -> NDArray[Any]:
    """Return for each row one number a group of columns, (n, groups): their mean or sum in float64, or their maximum.

    ``groups`` (M,) numbers each column's group from 0.  Columns are added in order, so a row's result depends on
    nothing but the row.  A row of NaN stays one.
    """
    a = np.asarray(a)
    n, m = a.shape
    count = np.bincount(groups)
    out = np.empty((n, count.size), dtype=a.dtype if how == "max" else np.float64)
    rows = max(1, _BLOCK // max(1, m))
    for start in range(0, n, rows):
        by_column = np.ascontiguousarray(a[start : start + rows].T)
        for group in range(count.size):
            first, *others = np.flatnonzero(groups == group)
            total = by_column[first].astype(out.dtype)
            for column in others:
                if how == "max":
                    np.maximum(total, by_column[column], out=total)
                else:
                    total += by_column[column]
            out[start : start + rows, group] = total / count[group] if how == "mean" else total
    return out
