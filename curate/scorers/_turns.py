"""The turns of a batch of examples, with all that they say."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Turns = Literal["prompt", "response", "both", "conversation"]


def turns(examples: pa.Table, which: Turns) -> tuple[list[str], NDArray[np.int64]]:
    """Return the text of each turn, and of each row how many of them are its own, (n,).

    "response" is the last assistant turn, "prompt" what stands before it (all turns where there is none), "both" the
    two, "conversation" every turn.  A turn's text is its content and, each on a line after it, its thinking and its
    tool calls: an answer may consist of a call alone.
    """
    lists = pa.chunked_array(examples["messages"]).combine_chunks()
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    messages = lists.flatten()
    rows = np.repeat(np.arange(sizes.size), sizes)
    assistant = pc.equal(messages.field("role"), "assistant").to_numpy(zero_copy_only=False)
    last = np.cumsum(sizes)  # where no assistant speaks, every turn is before it
    last[rows[assistant]] = np.flatnonzero(assistant)  # ascending, so that the last one of a row stays
    place = np.arange(rows.size)
    wanted = {
        "prompt": place < last[rows],
        "response": place == last[rows],
        "both": place <= last[rows],
        "conversation": np.ones(rows.size, dtype=bool),
    }[which]
    messages = messages.filter(pa.array(wanted))
    texts = messages.field("content").to_pylist()
    for field in ("thinking", "tool_calls"):
        column = messages.field(field)
        if column.null_count < len(column):
            texts = [f"{text}\n{more}" if more else text for text, more in zip(texts, column.to_pylist(), strict=True)]
    return texts, np.bincount(rows[wanted], minlength=sizes.size)
