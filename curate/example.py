"""The example: one training conversation, the schema it is stored in, and what identifies it.

Every reader ends in this schema and every scorer begins from it.  Two keys are computed from content:

* ``content_key`` hashes the messages and the tools: two rows with the same key are exact duplicates.
* ``prompt_key`` hashes what comes before the last assistant turn: rows that share it are candidate responses to
  one prompt.

Both are 128-bit blake2b digests over length-prefixed fields, so no two different conversations can spell the same
bytes. They depend on nothing but content: not on the file, the row number, the shard or the format a row was read from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

ROLES = ("system", "user", "assistant", "tool")

MESSAGE_TYPE = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),  # "" where an assistant turn only calls tools
        pa.field("name", pa.string()),
        pa.field("tool_calls", pa.string()),  # JSON list, as the source spelt it
        pa.field("tool_call_id", pa.string()),
        pa.field("thinking", pa.string()),
        pa.field("train", pa.bool_()),  # null: the role decides; false: never in the loss
    ]
)

EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # the user's, or content_key in hex
        pa.field("messages", pa.list_(MESSAGE_TYPE), nullable=False),
        pa.field("tools", pa.string()),  # JSON list of tool schemas
        pa.field("source", pa.string(), nullable=False),
        pa.field("group", pa.string()),  # task or capability, when the data says
        pa.field("extra", pa.string()),  # JSON object: every other column the row had
        pa.field("content_key", pa.binary(16), nullable=False),
        pa.field("prompt_key", pa.binary(16), nullable=False),
        pa.field(
            "chars", pa.int64(), nullable=False
        ),  # characters of all contents, for estimates before a tokenizer is loaded
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # 0-based row (or line) number in the file
        pa.field(
            "part", pa.int32(), nullable=False
        ),  # 0-based: which response of a row that holds several; -1 when one
    ]
)

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # one of a documented set of words
        pa.field("detail", pa.string()),  # what exactly was found
        pa.field("raw", pa.string()),  # the row as it was read (JSON, or the line), cut at 64 KiB
    ]
)

_REST = ("name", "tool_calls", "tool_call_id", "thinking")
_SPELT_ROLES = {role: b"%d:%s" % (len(role), role.encode()) for role in ROLES}


def _spelt(value: str | None) -> bytes:
    """Return a field as it enters a digest: its length in bytes, and its bytes."""
    if value is None:
        return b"-;"
    data = value.encode("utf-8", "surrogatepass")
    return b"%d:%s" % (len(data), data)


def _update(digest: Any, messages: Sequence[Mapping[str, Any]]) -> None:
    # One update for all fields of all turns, and a short way for turns of role and content: a third of the time.
    parts: list[bytes] = []
    for message in messages:
        role = message["role"]
        parts += (_SPELT_ROLES.get(role) or _spelt(role), _spelt(message["content"]))
        if len(message) == 2:
            parts.append(b"-;-;-;-;-")
        else:
            parts += [_spelt(message.get(field)) for field in _REST]
            parts.append({None: b"-", True: b"t", False: b"f"}[message.get("train")])
    digest.update(b"".join(parts))


def keys(messages: Sequence[Mapping[str, Any]], tools: str | None) -> tuple[bytes, bytes]:
    """Return ``(content_key, prompt_key)`` of one conversation, 16 bytes each.

    The prompt is everything before the last assistant turn, and the tools.  A conversation without an assistant turn is
    all prompt (readers reject it, but its key is defined).
    """
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages))
    digest = hashlib.blake2b(digest_size=16)
    digest.update(_spelt(tools))
    _update(digest, messages[:last])
    prompt = digest.copy()
    prompt.update(b"|prompt")
    _update(digest, messages[last:])
    return digest.digest(), prompt.digest()


def chat(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as a chat template reads them: no empty fields, tool calls as objects."""
    out = []
    for message in messages:
        turn = {"role": message["role"], "content": message["content"]}
        for field in ("name", "tool_call_id", "thinking"):
            if message.get(field) is not None:
                turn[field] = message[field]
        if message.get("tool_calls"):
            turn["tool_calls"] = json.loads(message["tool_calls"])
        out.append(turn)
    return out


def prompt_and_response(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the texts before the last assistant turn (joined by newlines) and the last assistant turn's text."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages))
    prompt = "\n".join(m["content"] for m in messages[:last])
    return prompt, messages[last]["content"] if last < len(messages) else ""
