"""Handing rows over to a trainer: a folder in its format, whole or not at all.

    DESTINATION/
      data/train-00000-of-0000N.parquet      (or .jsonl, .jsonl.gz, .jsonl.zst)
      refused.parquet                        rows that the format cannot hold, each with its reason; if there are any
      dataset_info.json, axolotl.yaml, …     what the trainer wants beside the data
      export.json                            what this folder is; written last

Two passes over the rows, in the dataset's order.  The first says which rows the format can hold and what its columns
will be; it reads roles and marks, mostly no text, and nothing is written before it is through.  The second converts.
Memory holds one shard of the run and one group of rows of the file that is being written.

Locally the folder is made beside its place (``.NAME.part``) and renamed; an object store, which cannot rename, shows it
by ``export.json``, which goes first and comes back last.  A file of data that was finished before a stop is not made
again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from numpy.typing import NDArray

from curate.exceptions import InputError, RunDirectoryError, RunError
from curate.exporters.base import Exporter, Facts
from curate.exporters.lines import json_lines
from curate.fingerprint import fingerprint
from curate.pipelines.export import ROW_GROUP, cdc_options, write_full_groups
from curate.pipelines.progress import Progress
from curate.pipelines.rows import KeptRows, Rows
from curate.pipelines.store import Store

if TYPE_CHECKING:
    from curate.recipe_parts import ExportSpec

VERSION = 1
"""Raised whenever the same rows would be written differently."""
SHARD_ROWS = 100_000
REFUSED_SCHEMA = pa.schema(
    [
        pa.field("place", pa.int64(), nullable=False),  # in the dataset's order, from 0
        pa.field("id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # a word of the format's documentation
        pa.field("detail", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Export:
    """What an export holds."""

    path: str
    format: str
    file: str
    rows: int
    """Rows written."""
    refused: int
    reasons: dict[str, int]
    """Reason → rows refused, most frequent first."""
    files: list[str]
    """Data files, relative to ``path``."""
    companions: list[str]
    fingerprint: str | None = None
    unchanged: bool = False
    """Whether it was there already."""

    @property
    def text(self) -> str:
        """One line for a person."""
        said = f"{self.rows:,} rows in {len(self.files)} file(s)"
        if self.refused:
            said += f", {self.refused:,} refused ({', '.join(f'{n:,} {w}' for w, n in self.reasons.items())})"
        return f"{self.format}: {said}" + ("; nothing changed" if self.unchanged else "")


# -- the first pass ----------------------------------------------------------------------------------------------------


@dataclass
class _Survey:
    """What the first pass found."""

    held: list[NDArray[np.uint8]] = field(default_factory=list)
    """One bit a row and piece: whether the format can hold it."""
    seen: list[int] = field(default_factory=list)
    """Rows of each piece."""
    counts: list[int] = field(default_factory=list)
    """Rows of each piece that the format can hold."""
    has: frozenset[str] = frozenset()
    reasons: dict[str, int] = field(default_factory=dict)
    first: str = ""
    """The first refused row, in words."""

    @property
    def rows(self) -> int:
        return sum(self.counts)

    @property
    def refused(self) -> int:
        return sum(self.reasons.values())

    def mask(self, piece: int) -> NDArray[np.bool_]:
        return np.unpackbits(self.held[piece], count=self.seen[piece]).astype(bool)

    @property
    def told(self) -> str:
        words = ", ".join(f"{n:,} {w}" for w, n in self.reasons.items())
        return f"{self.refused:,} of {sum(self.seen):,} rows: {words}; the first: {self.first}"


def _survey(rows: Rows, exporter: Exporter, line: Any, spool: Any) -> _Survey:
    """Look at every row; write the refused ones to ``spool`` as they come."""
    survey, place = _Survey(), 0
    writer: pq.ParquetWriter | None = None
    for piece in range(rows.pieces):
        table = rows.read(piece, exporter.looks)
        looked = exporter.look(table)
        held = np.ones(table.num_rows, dtype=bool)
        held[looked.refused.rows] = False
        survey.held.append(np.packbits(held))
        survey.seen.append(table.num_rows)
        survey.counts.append(int(held.sum()))
        survey.has |= looked.has
        if looked.refused.rows.size:
            ids = rows.read(piece, ("id",)).column("id").take(pa.array(looked.refused.rows))
            found = [place + looked.refused.rows, ids, looked.refused.reason, looked.refused.detail]
            told = pa.table(found, schema=REFUSED_SCHEMA)
            survey.first = survey.first or "{id}: {reason}: {detail}".format(**told.slice(0, 1).to_pylist()[0])
            for word in looked.refused.reason:
                survey.reasons[word] = survey.reasons.get(word, 0) + 1
            writer = writer or pq.ParquetWriter(spool, REFUSED_SCHEMA, compression="zstd")
            writer.write_table(told)
        place += table.num_rows
        line.advance(table.num_rows)
    if writer is not None:
        writer.close()
    survey.reasons = dict(sorted(survey.reasons.items(), key=lambda item: (-item[1], item[0])))
    return survey


# -- the second pass ---------------------------------------------------------------------------------------------------


class _File:
    """One file of data: rows in, bytes out."""

    def __init__(self, handle: Any, schema: pa.Schema, file: str) -> None:
        self._lines = self._parquet = None
        self._held: list[pa.Table] = []
        if file == "parquet":
            labels = [p for p in _leaves(schema) if p.rpartition(".")[2] in ("role", "from")]
            options = {"compression": "zstd", "use_dictionary": labels, "write_page_index": True, **cdc_options()}
            self._parquet = pq.ParquetWriter(handle, schema, **options)
        else:
            self._lines = _compressed(handle, file)
        self._own = self._lines is not handle

    def write(self, table: pa.Table) -> None:
        if self._parquet is not None:
            self._held = write_full_groups(self._parquet, [*self._held, table])
        else:
            for data in json_lines(table):
                self._lines.write(data)  # type: ignore[union-attr]

    def __enter__(self) -> _File:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():  # the error in hand tells more
            self._close()

    def _close(self) -> None:
        if self._parquet is not None:
            if self._held:
                self._parquet.write_table(pa.concat_tables(self._held).combine_chunks(), row_group_size=ROW_GROUP)
            self._parquet.close()
        elif self._own:
            self._lines.close()  # type: ignore[union-attr]


def _compressed(handle: Any, file: str) -> Any:
    """Return a stream that writes compressed to the handle, and leaves it open; the handle itself for plain lines.

    The bytes depend on the content alone: gzip would put the time and a name into its header.
    """
    if file.endswith(".gz"):
        return gzip.GzipFile("", "wb", compresslevel=6, fileobj=handle, mtime=0)
    if file.endswith(".zst"):
        return zstandard.ZstdCompressor().stream_writer(handle, closefd=False)
    return handle


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the paths of the columns of a Parquet file of this schema."""

    def walk(path: str, kind: pa.DataType) -> Iterator[str]:
        if pa.types.is_struct(kind):
            for i in range(kind.num_fields):
                yield from walk(f"{path}.{kind.field(i).name}", kind.field(i).type)
        elif pa.types.is_list(kind):
            yield from walk(f"{path}.list.element", kind.value_type)
        else:
            yield path

    return [leaf for f in schema for leaf in walk(f.name, f.type)]


def _columns(exporter: Exporter, has: frozenset[str]) -> tuple[str, ...]:
    """Return the columns that the rows are made of, without the fields of a turn that no row uses."""
    optional = ("name", "tool_calls", "tool_call_id", "thinking")
    used = ["messages.role", "messages.content", *(f"messages.{f}" for f in optional if f in has), "messages.train"]
    return (*used, *(c for c in exporter.reads if c != "messages"))


def _write(
    rows: Rows, exporter: Exporter, facts: Facts, survey: _Survey, place: _Place, shard_rows: int, line: Any
) -> None:
    """Write the files that are not there yet."""
    schema, columns = exporter.schema(facts), _columns(exporter, facts.has)
    there = set(place.list("data"))
    cuts = np.r_[0, np.cumsum(survey.counts)]
    for number, name in enumerate(facts.files):
        start, stop = number * shard_rows, min((number + 1) * shard_rows, survey.rows)
        if name.partition("/")[2] in there:
            line.advance(stop - start)
            continue
        first = int(np.searchsorted(cuts, start, side="right")) - 1
        with place.writing(*name.split("/")) as handle, _File(handle, schema, facts.file) as out:
            for piece in range(first, rows.pieces):
                if cuts[piece] >= stop:
                    break
                lo, hi = max(start - cuts[piece], 0), min(stop - cuts[piece], survey.counts[piece])
                if hi <= lo:
                    continue
                table = rows.read(piece, columns)
                if survey.counts[piece] < survey.seen[piece]:
                    table = table.filter(pa.array(survey.mask(piece)))
                out.write(exporter.rows(table.slice(lo, hi - lo), facts))
                line.advance(int(hi - lo))


# -- the place ---------------------------------------------------------------------------------------------------------


class _Place:
    """The folder of an export while it is made."""

    def __init__(self, url: str) -> None:
        parent, _, self._name = url.rstrip("/").rpartition("/")
        if not self._name or not parent or parent.endswith(":/"):
            raise InputError(f"--to {url!r}: a folder of its own was asked, as in exports/trl or s3://bucket/trl.")
        self._store = Store(parent)
        self._aside = f".{self._name}.part" if self._store.local else self._name
        self.path = self._store.path(self._name)

    def there(self) -> dict[str, Any] | None:
        """Return what the export that stands here says of itself.

        Raises
        ------
        RunDirectoryError
            If something else stands here.
        """
        if self._store.local and os.path.isfile(self.path):
            raise RunDirectoryError(f"{self.path} is a file; an export is a folder. Choose another with --to.")
        found = self._store.list(self._name)
        said = self._store.read_json(self._name, "export.json") if "export.json" in found else None
        if found and said is None and not (self._aside == self._name and "resume.json" in found):
            raise RunDirectoryError(
                f"{self.path} is not empty and is no export of curate (it holds {', '.join(found[:5])}"
                f"{', …' if len(found) > 5 else ''}). Choose another folder with --to."
            )
        return said if isinstance(said, dict) else None

    def begin(self, mark: str | None) -> None:
        """Make ready; keep the files of an export with the same mark that was stopped."""
        resumed = self._store.read_json(self._aside, "resume.json")
        if mark is None or resumed != {"fingerprint": mark}:
            self._store.remove(self._aside)
        self._store.write_json({"fingerprint": mark}, self._aside, "resume.json")
        self._store.remove(self._aside, "export.json")
        self._store.sweep(self._aside)

    def list(self, folder: str) -> list[str]:
        return self._store.list(f"{self._aside}/{folder}")

    def writing(self, *parts: str) -> Any:
        return self._store.writing(self._aside, *parts)

    def finish(self, account: dict[str, Any]) -> None:
        """Show the export: all of it at one moment, or nearly so where an old one has to go first."""
        self._store.write_json(account, self._aside, "export.json")
        self._store.remove(self._aside, "resume.json")
        if self._aside != self._name:
            self._store.remove(self._name)
            os.replace(self._store.path(self._aside), self.path)


def export(
    rows: Rows,
    exporter: Exporter,
    to: str,
    *,
    file: str | None = None,
    shard_rows: int = SHARD_ROWS,
    name: str = "curated",
    content: str | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> Export:
    """Write examples in a trainer's format into the folder ``to``.

    Parameters
    ----------
    rows : where the examples come from.
    exporter : the format.
    to : a folder of its own, or an fsspec URL of one.  An export that stands there is replaced.
    file : "parquet", "jsonl", "jsonl.gz" or "jsonl.zst"; the format's first choice when absent.
    shard_rows : rows per file.
    name : under which trainers register the data.
    content : fingerprint of the rows; with one, an export that is there already is left as it is, and one that was
        stopped is continued.
    strict : stop if any row would be refused.

    Raises
    ------
    InputError
        If the format is not written in such files, or ``to`` is no folder of its own.
    RunDirectoryError
        If ``to`` holds something else, or cannot be written.
    RunError
        If a row is refused and ``strict`` is set, or if every row is refused.  Nothing is written then.
    """
    file = file or exporter.formats[0]
    if file not in exporter.formats:
        raise InputError(f"{exporter.name} is read from {', '.join(exporter.formats)}; {file!r} was asked.")
    place = _Place(to)
    progress = progress or Progress(sys.stderr, quiet=True)
    identity = exporter.identity()
    mark = None if content is None else fingerprint("export", VERSION, identity, file, shard_rows, name, content)
    there = place.there()
    if mark and there and there.get("fingerprint") == mark and not (strict and there["refused"]):
        there.pop("identity", None)
        return Export(**{**there, "path": place.path, "unchanged": True})

    spool = io.BytesIO()
    survey = _survey(rows, exporter, progress.stage(f"check {exporter.name}", None), spool)
    if survey.refused and (strict or not survey.rows):
        what = (
            "none of the rows can be held"
            if not survey.rows
            else "every row was asked for (strict), and some cannot be held"
        )
        raise RunError(f"{exporter.name}: {what} ({survey.told}). Nothing was written.")
    count = max(1, -(-survey.rows // shard_rows))
    files = tuple(f"data/train-{i:05d}-of-{count:05d}.{file}" for i in range(count))
    facts = Facts(survey.has, survey.rows, name, file, files)
    place.begin(mark)
    line = progress.stage(f"export {exporter.name}", survey.rows)
    _write(rows, exporter, facts, survey, place, shard_rows, line)
    line.finish()
    companions = exporter.companions(facts)
    for title, text in companions.items():
        with place.writing(title) as handle:
            handle.write(text.encode())
    if survey.refused:
        with place.writing("refused.parquet") as handle:
            shutil.copyfileobj(io.BytesIO(spool.getbuffer()), handle)
    made = Export(
        place.path, exporter.name, file, survey.rows, survey.refused, survey.reasons, list(files), [*companions], mark
    )
    said = {k: v for k, v in dataclasses.asdict(made).items() if k not in ("path", "unchanged")}
    place.finish({**said, "identity": identity})
    return made


def export_all(store: Store, specs: list[ExportSpec], name: str, progress: Progress) -> list[dict[str, Any]]:
    """Make the exports that a recipe asks for; return what the manifest says of them.  The run's lock is held."""
    out = []
    for spec in specs:
        to = place_of(spec.options.to) if spec.options.to else f"{store.url.rstrip('/')}/exports/{spec.name}"
        options = spec.options.model_dump(include={"file", "shard_rows", "strict"})
        made = export_run(store, spec.exporter, to, name=name, held=True, progress=progress, **options)
        progress.say(made.text)
        out.append({k: v for k, v in dataclasses.asdict(made).items() if k != "unchanged"})
    return out


def place_of(path: str) -> str:
    """Return a path or URL such that it means the same from any working directory."""
    return path if "://" in path else os.path.abspath(path)


def export_run(
    store: Store,
    exporter: Exporter,
    to: str | None = None,
    *,
    name: str | None = None,
    held: bool = False,
    **options: Any,
) -> Export:
    """Export the rows that a run kept, into RUN/exports/NAME unless ``to`` says otherwise; see ``export``.

    ``held`` says that the caller holds the run's lock.

    Raises
    ------
    RunDirectoryError
        If there is no finished run.
    """
    if store.read_json(".curate", "run.json") is None:
        raise RunDirectoryError(f"{store.root} is no run of curate; name the directory that 'curate run' filled.")
    with contextlib.nullcontext() if held else store.lock():
        done = store.read_json(".curate", "done", "select.json")
        if done is None:
            raise RunDirectoryError(f"{store.root} holds no dataset yet; run it to the end first.")
        title = name or str((store.read_json("manifest.json") or {}).get("name") or "curated")
        to = to or f"{store.url.rstrip('/')}/exports/{exporter.name}"
        return export(KeptRows(store), exporter, to, name=title, content=done["fingerprint"], **options)
