"""The log of what was computed: a line when a shard is begun, a line when it is finished.

It is what shows that nothing is computed twice.  Locally the lines are appended to ``.curate/events.jsonl``, each by
one write.  An object store cannot append: there a shard's lines become one small object under ``.curate/events/`` when
it is finished, named by time and chance.  So of a shard that a killed worker had begun nothing is logged there.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from curate.exceptions import RunDirectoryError

if TYPE_CHECKING:
    from curate.pipelines.store import Store

_FILE = (".curate", "events.jsonl")
_FOLDER = ".curate/events"
_begun: dict[str, list[dict[str, Any]]] = {}
"""Run → lines of shards that this process has begun, while they wait for their end."""


def append(store: Store, event: dict[str, Any]) -> None:
    """Log one event; ``event["event"]`` is "start" or "done"."""
    if store.local:
        from curate.pipelines.store import explain_write

        try:
            with open(store.path(*_FILE), "ab") as handle:
                handle.write(_line(event))
        except OSError as error:
            raise explain_write(store.path(*_FILE), error) from error
        return
    lines = _begun.setdefault(store.url, [])
    lines.append(event)
    if event["event"] == "done":
        mine = [e for e in lines if (e["stage"], e["part"]) == (event["stage"], event["part"])]
        _begun[store.url] = []  # others in it were begun here and failed
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
        store.write_bytes(b"".join(map(_line, mine)), _FOLDER, name)


def read(store: Store) -> list[dict[str, Any]]:
    """Return every event of a run, in order (of time; across machines as good as their clocks)."""
    if store.local:
        try:
            texts = [store.read_bytes(*_FILE)]
        except FileNotFoundError:
            texts = []
    else:
        texts = list(store.read_many(_FOLDER, store.list(_FOLDER)))
    lines = b"".join(texts).splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RunDirectoryError(f"{store.path('.curate')}: the log of events is damaged ({error}).") from error


def _line(event: dict[str, Any]) -> bytes:
    return (json.dumps(event, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
