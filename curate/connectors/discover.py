"""Sources → slices: the files that a recipe names, in reading order, each cut into parts that can be read alone."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from curate import registry
from curate.base import Connector
from curate.connectors.formats import (
    COMPRESSIONS,
    Broken,
    FileFormat,
    Slice,
    UnreadableError,
    cannot_read,
    compression_of,
    connector,
    file_system,
    is_url,
    open_binary,
    records_of,
    refuse_utf16,
)
from curate.connectors.hub import is_hub
from curate.connectors.hub_datasets import dataset_of, files_of, look, pinned, unpinned
from curate.connectors.jsonl import BOM, parse
from curate.connectors.source import Source
from curate.exceptions import SourceError

__all__ = ["Slice", "discover", "label"]

NOT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json")
"""Files that stand beside data in folders made by other tools; never read unless named."""
_SHARD = re.compile(r"(?:^|[-_.])(?:\d+[-_]of[-_])?\d+$")
_WILDCARD = re.compile(r"[*?\[]")
_SAYS_NOTHING = ("", "train", "test", "validation", "valid", "dev", "part", "shard", "data", "default", "chunk")
HEAD_LINES = 5
HEAD_BYTES = 2**20
ESTIMATE_ROWS = 64


def discover(sources: list[Source]) -> list[Slice]:
    """Return the slices of every source, in reading order: as the recipe lists them, then by path.

    A directory and a glob give the files whose names end as a known format does (``.parquet``, ``.json.gz``), without
    hidden ones (a name or folder that starts with "." or "_") and ``NOT_DATA``.  A file that two paths of one source
    name is read once.

    Of Parquet only the metadata are read, of local uncompressed JSON lines the line ends, of others the first rows.

    Raises
    ------
    SourceError
        If a path names nothing, a file's format is unknown, or a Parquet file is damaged.
    """
    suffixes = _suffixes()
    return [
        piece
        for number, source in enumerate(sources)
        for url, size, stamp in _files(source, suffixes)
        for piece in _slices(number, source, url, size, stamp, suffixes)
    ]


def label(url: str) -> str:
    """Return a name for the rows of a file: its own without suffixes and shard numbers, or its folder's.

    >>> label("data/gsm8k.jsonl.gz"), label("data/dolly/train-00000-of-00004.parquet")
    ('gsm8k', 'dolly')
    """
    folder, _, name = unpinned(url).rstrip("/").rpartition("/")
    stem, end = os.path.splitext(name)
    if end.lower() in COMPRESSIONS:
        stem = os.path.splitext(stem)[0]
    while (shorter := _SHARD.sub("", stem)) != stem:
        stem = shorter
    if stem.lower() in _SAYS_NOTHING and folder.strip("/") and not folder.endswith(":/"):
        return label(folder)
    return stem or name


def _suffixes() -> dict[str, str]:
    """Return suffix → format, of the built-in formats and of third parties'."""
    found: dict[str, str] = {}
    for word in registry.names("connectors"):
        cls: type[Connector] = registry.find("connectors", word)
        for suffix in cls.suffixes:
            if word in registry.BUILT_IN["connectors"] or suffix not in found:  # a built-in suffix cannot be taken over
                found[suffix] = word
    return found


def _format_of(url: str, suffixes: dict[str, str]) -> str | None:
    root, end = os.path.splitext(url.lower())
    if end in COMPRESSIONS:
        end = os.path.splitext(root)[1]
    return suffixes.get(end)


# -- files -------------------------------------------------------------------------------------------------------------


File = tuple[str, int | None, str]
"""(url, size in bytes, stamp)."""


def _files(source: Source, suffixes: dict[str, str]) -> Iterator[File]:
    """Yield every file of a source, each once."""
    seen: set[str] = set()
    for path in source.paths:
        with cannot_read(path):
            found = _find(path, source, suffixes)
        for url, size, stamp in found:
            if url not in seen:
                seen.add(url)
                yield url, size, stamp


def _find(path: str, source: Source, suffixes: dict[str, str]) -> list[File]:
    if not is_hub(path):
        return _remote(path, source, suffixes) if is_url(path) else _local(path, source, suffixes)
    urls = [pinned(path)] if is_url(path) else files_of(path)
    for url in urls:
        if not glob.has_magic(url):
            look(url)
    return [file for url in urls for file in _remote(url, source, suffixes)]


def _local(path: str, source: Source, suffixes: dict[str, str]) -> list[File]:
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.isfile(path):
        found = [path]
    elif os.path.isdir(path):
        found = _data(_walk(path), path, source, suffixes)
    else:
        matches = glob.glob(path, recursive=True)
        files = {f for m in matches for f in (_walk(m) if os.path.isdir(m) else [m])}
        found = _data(sorted(files), _above(path), source, suffixes)
    if not found:
        error = _nothing(path, source, suffixes, _listing(path))
        name = "/".join(path.rsplit("/", 2)[1:])
        if dataset_of(f"hf:{name}") and not os.path.exists(os.path.dirname(path)):
            raise SourceError(f"{error} For the Hub's dataset of that name write hf:{name}.")
        raise error
    out: list[File] = []
    for url in found:
        stat = os.stat(url)
        out.append((url, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}"))
    return out


def _above(pattern: str) -> str:
    """Return the folder above a glob's first wildcard."""
    wildcard = _WILDCARD.search(pattern)
    return pattern[: pattern.rfind("/", 0, wildcard.start())] if wildcard else pattern


def _walk(folder: str) -> list[str]:
    return sorted(os.path.join(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names)


def _remote(path: str, source: Source, suffixes: dict[str, str]) -> list[File]:
    fs, inner = file_system(path)
    if glob.has_magic(inner):
        infos = fs.glob(inner, detail=True)
        files = {p: i for p, i in infos.items() if i["type"] == "file"}
        for folder in (p for p, i in infos.items() if i["type"] == "directory"):
            files |= fs.find(folder, detail=True)
        chosen = _data(sorted(files), _above(inner), source, suffixes)
    elif fs.isdir(inner):
        files = fs.find(inner, detail=True)
        chosen = _data(sorted(files), inner, source, suffixes)
    else:
        files = {inner: fs.info(inner)} if fs.exists(inner) else {}
        chosen = list(files)
    if not chosen:
        folder = inner.rpartition("/")[0]
        names = [os.path.basename(str(p).rstrip("/")) for p in fs.ls(folder, detail=False)] if fs.isdir(folder) else []
        raise _nothing(path, source, suffixes, (folder, sorted(names)) if fs.isdir(folder) else None)
    out = []
    for name in chosen:
        info = files[name]
        tag = next(
            (str(info[k]) for k in ("ETag", "etag", "blob_id", "sha256", "md5Hash", "xet_hash") if info.get(k)), None
        )
        size = info.get("size")
        out.append((fs.unstrip_protocol(name), size, f"{size}-{tag or fs.ukey(name)}"))
    return out


def _data(names: Iterable[str], folder: str, source: Source, suffixes: dict[str, str]) -> list[str]:
    """Keep the names that hold data: not hidden below ``folder``, and of a known suffix (the said format's)."""
    out = []
    for name in names:
        below = name[len(folder) :].strip("/").split("/")
        known = _format_of(name, suffixes)
        if any(p.startswith((".", "_")) for p in below) or below[-1] in NOT_DATA or known is None:
            continue
        if source.format in ("auto", known) or {source.format, known} == {"json", "jsonl"}:
            out.append(name)
    return out


def _listing(path: str) -> tuple[str, list[str]] | None:
    """Return the nearest folder above ``path`` that is there, and what it holds."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder, sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _nothing(path: str, source: Source, suffixes: dict[str, str], held: tuple[str, list[str]] | None) -> SourceError:
    asked = "data" if source.format == "auto" else source.format
    message = f"no {asked} files at {path}"
    if held is not None:
        folder, names = held
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        near = registry.nearest(os.path.basename(path), names)
        message += f"; {folder} holds {shown or 'nothing'}{near}"
    message = message.rstrip("?.") + ("?" if message.endswith("?") else ".")
    return SourceError(
        f"{message} Known suffixes: {', '.join(sorted(suffixes))}, each also with {', '.join(COMPRESSIONS)}."
    )


# -- slices ------------------------------------------------------------------------------------------------------------


def _slices(
    number: int, source: Source, url: str, size: int | None, stamp: str, suffixes: dict[str, str]
) -> list[Slice]:
    compression = compression_of(url)
    word = _format_of(url, suffixes)
    if source.format != "auto" and not (word in ("json", "jsonl") and source.format == word):
        word = source.format
    if word is None:
        raise SourceError(
            f"{url}: no format has this suffix; known: {', '.join(sorted(suffixes))}. Convert the file (a spreadsheet "
            f"can be saved as CSV); or say which known format it has under another name, for example: format: jsonl"
        )
    if word == "parquet" and compression:
        raise SourceError(
            f"{url}: Parquet inside {compression} cannot be read in parts; decompress it (Parquet compresses inside)."
        )
    whole = Slice(source=number, url=url, format=word, compression=compression, bytes=size, stamp=stamp)
    with cannot_read(url):
        if word in ("json", "jsonl") and source.format == "auto":
            whole = dataclasses.replace(whole, format=_json_or_lines(whole))
        reader = connector(whole, source)
        pieces = reader.cut(whole) if isinstance(reader, FileFormat) else [whole]
    if len(pieces) == 1 and pieces[0].rows is None:
        return [dataclasses.replace(pieces[0], rows=_estimate(whole, source))]
    return pieces


def _json_or_lines(whole: Slice) -> str:
    """Tell a JSON document from JSON lines by the first lines, whatever the file is called.

    Lines, if the first value fills its line and more follows, or if any of the first lines alone is an object while the
    first line does not open a list.  A file of a single line is what its name says.
    """
    try:
        with open_binary(whole.url, whole.compression) as stream:
            head = stream.readline(HEAD_BYTES)
            refuse_utf16(head, whole.url)
            lines = [head.removeprefix(BOM)]
            while len(lines) < HEAD_LINES and (line := stream.readline(HEAD_BYTES)):
                lines.append(line)
    except OSError as error:
        if whole.compression is None or type(error) is not OSError:
            raise
        return whole.format  # damaged where it begins: the reader says how
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) < 2:
        return whole.format
    values = [parse(line) for line in lines]
    if any(isinstance(v, dict) for v in values) and lines[0][:1] != b"[":
        return "jsonl"
    if lines[0][:1] == b"[" and isinstance(values[0], list) and not isinstance(values[1], Broken):
        return "jsonl"
    return "json" if whole.format == "json" or lines[0][:1] in (b"[", b"{") else "jsonl"


def _estimate(whole: Slice, source: Source) -> int | None:
    """Estimate a file's rows from the length of its first ones; compressed text is taken to be three times its size."""
    if not whole.bytes:
        return 0 if whole.bytes == 0 else None
    records: list[Any] = []
    try:
        for batch in islice(records_of(whole, source), 1):
            records = [value for _, value in batch[:ESTIMATE_ROWS]]
    except (UnreadableError, SourceError):
        return None  # told when the rows are read
    if not records:
        return 0
    size = sum(
        len(json.dumps(r, default=str, ensure_ascii=False).encode("utf-8", "replace"))
        for r in records
        if not isinstance(r, Broken)
    )
    return max(1, round(whole.bytes * (3 if whole.compression else 1) * len(records) / size)) if size else None
