"""Tool calls in the spelling that a trainer wants.

The example keeps them as its source spelt them: ``[{"type": "function", "function": {"name": …, "arguments": …}}]`` or
``[{"name": …, "arguments": …}]``, with the arguments as an object or as JSON text of one.  A chat template is served
what it prints well: most print the object.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import pyarrow as pa

Arguments = Literal["object", "text"]


def calls_of(text: str, arguments: Arguments) -> list[dict[str, Any]]:
    """Return tool calls with the function apart, and its arguments in one spelling.

    Arguments that are text of no JSON object stay as they are.
    """
    return [_call(call, arguments) for call in json.loads(text)]


def _call(call: dict[str, Any], arguments: Arguments) -> dict[str, Any]:
    call = dict(call) if "function" in call else {"type": "function", "function": call}
    function = call["function"] = dict(call["function"])
    given = function.get("arguments")
    if arguments == "object" and isinstance(given, str):
        try:
            parsed = json.loads(given)
        except (ValueError, RecursionError):
            return call
        if isinstance(parsed, dict):
            function["arguments"] = parsed
    elif arguments == "text" and isinstance(given, dict):
        function["arguments"] = json.dumps(given, ensure_ascii=False)
    return call


def spelt(calls: pa.Array, arguments: Arguments) -> pa.Array:
    """Return JSON texts of tool calls in one spelling; null where there are none.  Each different text once."""
    if calls.null_count == len(calls):
        return calls
    encoded = calls.dictionary_encode()
    texts = [json.dumps(calls_of(t, arguments), ensure_ascii=False) for t in encoded.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(encoded.indices)


def plain_calls(text: str) -> list[dict[str, Any]] | None:
    """Return calls as (name, arguments) and nothing else; None where a call has more (an id), or arguments that are no
    object."""
    out = []
    for call in calls_of(text, "object"):
        function = call.pop("function")
        if call.pop("type", "function") != "function" or any(value is not None for value in call.values()):
            return None
        if set(function) != {"name", "arguments"} or not isinstance(function["arguments"], dict):
            return None
        out.append(function)
    return out


def comparable(messages: list[dict[str, Any]], tools: str | None) -> tuple[list[dict[str, Any]], Any]:
    """Return a conversation such that two spellings of the same one are equal.

    Tool calls and tools as values, arguments as objects, nothing for what is not there, and no mark on an assistant's
    turn that says what its role says.
    """
    out = []
    for message in messages:
        turn = {key: value for key, value in message.items() if value is not None}
        if turn.get("train") is (turn["role"] == "assistant"):
            del turn["train"]
        if "tool_calls" in turn:
            turn["tool_calls"] = calls_of(turn["tool_calls"], "object")
        out.append(turn)
    return out, json.loads(tools) if tools else None
