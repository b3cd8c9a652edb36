"""When is a piece of work new?

Work is named by what it depends on, not by when it was done.  A stage's fingerprint covers the scorer's word, its code
version, its parameters, the identity of its model, and what it was fitted on; a shard's digest covers the content of
its rows.  A result is reused exactly when both are the same.  So a changed parameter never finds a stale score, and a
changed budget, selector, worker count or output never causes a new one.  Where things are kept (paths, run directories)
is not part of any fingerprint; how a thing is executed (workers, batch sizes that a scorer declares as such) is not
either.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pyarrow as pa


def fingerprint(*parts: Any) -> str:
    """Return 16 hex characters (64 bits) for JSON-like parts; the order of mapping keys does not matter."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# What a shard's scores may depend on.  Where the rows came from (file, row) is left out: a renamed file is no
# new content.
CONTENT = ("id", "content_key", "source", "group", "extra")


def table_digest(table: pa.Table) -> str:
    """Return a digest of the rows' content, in order; chunking and buffer layout do not matter."""
    digest = hashlib.blake2b(digest_size=16)
    for name in CONTENT:
        column = table.column(name).combine_chunks()
        for batch in pa.table({name: column}).to_batches():
            array = batch.column(0)
            compact = pa.concat_arrays([array, array.slice(0, 0)])  # offsets from zero, no slack
            for buffer in compact.buffers():
                data = b"" if buffer is None else memoryview(buffer)
                digest.update(b"%d:" % len(data))
                digest.update(data)
    return digest.hexdigest()
