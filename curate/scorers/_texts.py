"""The texts of a batch of examples: what comes before the last assistant turn, and that turn."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Text = Literal["prompt", "response", "both"]


def prompts_and_responses(examples: pa.Table) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Return the prompt, the response and the number of assistant turns of every row.

    The texts are those of ``curate.example.prompt_and_response``, read from the Arrow columns without building a
    dictionary per message, which takes several times as long.
    """
    lists = examples["messages"].combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # combine_chunks gives this back for a column without chunks
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
    n = len(lists)
    ends = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
    messages = lists.flatten()
    contents = messages.field("content").to_pylist()
    assistant = np.flatnonzero(pc.equal(messages.field("role"), "assistant").to_numpy(zero_copy_only=False))
    rows = np.searchsorted(ends, assistant, side="right")
    last = np.full(n, -1, dtype=np.int64)
    last[rows] = assistant  # ascending, so that the last one of a row stays
    prompts, responses, start = [], [], 0
    for end, at in zip(ends.tolist(), last.tolist(), strict=True):
        upto = end if at < 0 else at
        prompts.append(contents[start] if upto == start + 1 else "\n".join(contents[start:upto]))
        responses.append(contents[at] if at >= 0 else "")
        start = end
    return prompts, responses, np.bincount(rows, minlength=n)


def texts(examples: pa.Table, which: Text) -> list[str]:
    """Return the prompt, the response, or both (a newline between them) of every row, without blank ends."""
    prompts, responses, _ = prompts_and_responses(examples)
    if which == "prompt":
        return [prompt.strip() for prompt in prompts]
    if which == "response":
        return [response.strip() for response in responses]
    return [f"{prompt}\n{response}".strip() for prompt, response in zip(prompts, responses, strict=True)]
