"""The texts of a batch of examples: what comes before the last assistant turn, and that turn."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Text = Literal["prompt", "response", "both"]


def _messages(examples: pa.Table) -> pa.ListArray:
    lists = examples["messages"].combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # combine_chunks gives this back for a column without chunks
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
    return lists


def prompts_and_responses(examples: pa.Table) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Return the prompt, the response and the number of assistant turns of every row.

    The texts are those of ``curate.example.prompt_and_response``, read from the Arrow columns without building a
    dictionary per message, which takes several times as long.
    """
    lists = _messages(examples)
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


def conversations(examples: pa.Table, which: Text) -> tuple[list[str], NDArray[np.int64]]:
    """Return texts that a row's words are sought in, and the row of each, ascending.

    The turns up to the last assistant's ("prompt": without it; "response": it alone), each by itself, and, where the
    user speaks more than once before it, all that the user says, joined by newlines.
    """
    lists = _messages(examples)
    n = len(lists)
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    turns = lists.flatten()
    contents = turns.field("content").to_pylist()
    rows = np.repeat(np.arange(n), sizes)
    assistant, user = (
        pc.equal(turns.field("role"), role).to_numpy(zero_copy_only=False) for role in ("assistant", "user")
    )
    last = np.cumsum(sizes)  # where no assistant speaks, all turns are the prompt
    last[rows[assistant]] = np.flatnonzero(assistant)
    place = np.arange(rows.size)
    wanted = {"prompt": place < last[rows], "response": place == last[rows], "both": place <= last[rows]}[which]
    texts, of = [contents[i] for i in np.flatnonzero(wanted).tolist()], rows[wanted]
    if which == "response":
        return texts, of
    asked = np.flatnonzero(user & wanted)
    several = np.flatnonzero(np.bincount(rows[asked], minlength=n) > 1)
    bounds = np.searchsorted(rows[asked], [several, several + 1]).T.tolist()
    joined = ["\n".join(contents[i] for i in asked[a:b].tolist()) for a, b in bounds]
    of = np.concatenate([of, several])
    order = np.argsort(of, kind="stable")
    texts += joined
    return [texts[i] for i in order.tolist()], of[order]
