"""What all file formats share: slices of files, records, broken records, open streams."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from curate.base import Connector
from curate.connectors.hub import asking, is_hub
from curate.exceptions import CurateError, SourceError
from curate.urls import redacted

if TYPE_CHECKING:
    from curate.connectors.source import Source

SLICE_BYTES = 64 * 2**20
"""Aim for one slice: the unit that one task reads."""
REMOTE_BLOCK = 8 * 2**20
"""Read at a time from an object store, instead of a client's own 50 MiB."""
MAX_RECORD = 64 * 2**20
"""Longest record, in bytes of a line or characters of a JSON value: bounds memory when a file is damaged."""
BATCH_ROWS = 1024
BATCH_BYTES = 16 * 2**20
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "google", "azure")
"""Packages whose errors are no OSErrors: no login, an endpoint that does not answer."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of one file that can be read alone."""

    source: int
    """Position of the source in the recipe."""
    url: str
    format: str
    compression: str | None = None
    start: int = 0
    """First byte (JSON lines)."""
    stop: int | None = None
    """Byte after the last one (JSON lines); None reads to the end."""
    row_groups: tuple[int, int] | None = None
    """First row group, and the one after the last (Parquet); None reads all."""
    first_row: int = 0
    """Row (or line) number, in the file, of the first record."""
    rows: int | None = None
    """Exact for Parquet, a count of lines for JSON lines, an estimate from the first records otherwise."""
    bytes: int | None = None
    """On disk."""
    stamp: str = ""
    """Changes when the file does: size and modification time locally, ETag or what the store tells elsewhere."""

    @property
    def fingerprint(self) -> str:
        """What this slice holds, without reading it: 32 hex digits."""
        said = (
            self.url,
            self.format,
            self.compression,
            self.start,
            self.stop,
            self.row_groups,
            self.first_row,
            self.stamp,
        )
        return hashlib.blake2b(repr(said).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Broken:
    """A record that could not be read: data, not an error."""

    reason: str
    """One of ``curate.connectors.normalise.REASONS``."""
    detail: str
    raw: str | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


Record = tuple[int, Any]
"""(row number in the file, the row as JSON-like Python values, or ``Broken``)."""


class UnreadableError(Exception):
    """The rest of a file cannot be told apart into records.  ``read`` makes it a stop or a rejected row."""

    def __init__(self, row: int, detail: str, raw: str | None = None) -> None:
        super().__init__(detail)
        self.row, self.detail, self.raw = row, detail, raw


class FileFormat(Connector):
    """A connector whose files can be cut into slices.

    A third party's format needs no more than ``Connector``: a word, ``suffixes`` and ``read(path)``; each of its files
    is one slice.
    """

    @abstractmethod
    def records(self, piece: Slice) -> Iterator[list[Record]]:
        """Yield the slice's records in batches of bounded size.

        Raises
        ------
        UnreadableError
            Where what follows cannot be told apart into records.
        """

    def cut(self, whole: Slice) -> list[Slice]:
        """Cut a file into slices, in order; by default it stays one."""
        return [whole]

    def read(self, path: str) -> Iterator[list[tuple[int, Any]]]:
        """Yield batches of (row number, row, or the error text that made it unreadable), as every connector does."""
        whole = Slice(source=0, url=path, format=self.name, compression=compression_of(path))
        for batch in self.records(whole):
            yield [(row, str(value) if isinstance(value, Broken) else value) for row, value in batch]


def connector(piece: Slice, source: Source) -> Connector:
    """Return the connector that reads a slice, with the source's options."""
    from curate import registry

    cls = registry.find("connectors", piece.format)
    if piece.format == "json":
        return cls(records_key=source.records)
    if piece.format in ("csv", "tsv"):
        options = {} if source.delimiter is None else {"delimiter": source.delimiter}
        return cls(header=source.header, **options)
    return cls()


def records_of(piece: Slice, source: Source) -> Iterator[list[Record]]:
    """Yield a slice's records, whoever wrote the connector; say what is wrong with a file that cannot be read.

    Raises
    ------
    SourceError
        If the file is not there, may not be read, or a third party's connector fails.
    UnreadableError
        As ``FileFormat.records``; also where a compressed file is damaged.
    """
    reader = connector(piece, source)
    seen = piece.first_row
    with cannot_read(piece.url):
        try:
            if isinstance(reader, FileFormat):
                for batch in reader.records(piece):
                    seen = batch[-1][0] + 1 if batch else seen
                    yield batch
            else:
                for batch in reader.read(piece.url):
                    seen = batch[-1][0] + 1 if batch else seen
                    yield [
                        (row, Broken("unreadable", value) if isinstance(value, str) else value) for row, value in batch
                    ]
        except OSError as error:
            # Arrow's decompressors raise a bare OSError; what the operating system says has a number or a subclass.
            if piece.compression is None or type(error) is not OSError or error.errno is not None:
                raise
            raise UnreadableError(seen, f"damaged {piece.compression} data: {error}") from error


@contextlib.contextmanager
def cannot_read(url: str) -> Iterator[None]:
    """Turn what a file system raises into a SourceError that names the file."""
    try:
        with asking(url, SourceError) if is_hub(url) else contextlib.nullcontext():
            yield
    except (CurateError, UnreadableError):
        raise
    except FileNotFoundError as error:
        raise SourceError(
            f"{url}: no such file; it was there when the sources were listed, or check the path."
        ) from error
    except PermissionError as error:
        raise SourceError(
            f"{url}: may not be read ({error}); check its permissions, or your login for remote files."
        ) from error
    except ImportError as error:
        raise SourceError(f"{url}: {error}; install the package that opens this kind of URL.") from error
    except (OSError, EOFError) as error:
        raise SourceError(f"{url}: cannot be read: {redacted(str(error))}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        said = redacted(str(error)).rstrip(".")
        if "credentials" in said.lower():
            said += "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise SourceError(f"{url}: cannot be read: {said}.") from error


def is_url(path: str) -> bool:
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """Return (fsspec file system, path inside it)."""
    import fsspec

    try:
        # Listings that file systems remember would hide new files from a long-lived process.
        fresh = {} if is_hub(url) else {"use_listings_cache": False}
        return fsspec.core.url_to_fs(url, **fresh)
    except (ImportError, ValueError) as error:
        raise SourceError(
            f"{url}: {error}. Install the package that opens such URLs, or check the part before '://'."
        ) from error


def open_binary(url: str, compression: str | None = None) -> IO[bytes]:
    """Open a file of any place for reading, decompressed; the caller closes it."""
    raw: Any
    if is_url(url):
        fs, path = file_system(url)
        raw = fs.open(path, "rb", block_size=REMOTE_BLOCK)
        if compression is None and not isinstance(raw, io.BytesIO):
            raw = io.BufferedReader(raw, 2**18)  # fsspec's own files read a line without a limit to its length
    else:
        raw = open(url, "rb")  # noqa: SIM115
    if compression is None:
        return raw
    # Arrow's decompressors read files of several members and tell a file that was cut short; zstandard's own stream
    # reader takes the cut for the end.
    return io.BufferedReader(_Decompressed(raw, compression), 2**18)  # type: ignore[return-value]


class _Decompressed(io.RawIOBase):
    def __init__(self, raw: IO[bytes], compression: str) -> None:
        self._raw = raw
        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def compression_of(path: str) -> str | None:
    """Return the compression that a file's name tells."""
    return COMPRESSIONS.get(os.path.splitext(path)[1].lower())


def printable(text: str) -> str:
    """Return text that can be stored as UTF-8: what cannot be is spelt as an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def refuse_utf16(head: bytes, url: str) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SourceError(f"{url}: this text is UTF-16, UTF-8 was asked; convert it (iconv -f UTF-16 -t UTF-8).")
