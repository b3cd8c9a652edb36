"""What corrected rows say: the new answers of a selection, in the place of the old ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.correction import answered
from curate.pipelines.publish import POINTER
from curate.pipelines.store import Store


def new_answers(store: Store, directory: str, part: str) -> dict[str, str]:
    """Return id → new answer, of the rows of a part that a correction replaced the answer of."""
    table = store.read_table(*directory.split("/"), part, columns=["id", "action", "applied", "new"])
    found = zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True)
    return {id: new for id, action, applied, new in found if action == "replace" and applied}


def directories(store: Store) -> dict[str, str]:
    """Return correction → where the selection in effect has it written down."""
    return dict((store.read_json(*POINTER) or {}).get("corrections", {}))


def with_answers(table: pa.Table, rows: NDArray[np.int64], ids: list[str], answers: Mapping[str, str]) -> pa.Table:
    """Return the table with new answers in the "messages" of some rows, given by number and id.

    Fields of a message that were not read stay away.
    """
    if not rows.size or "messages" not in table.column_names:
        return table
    column = table.column("messages").combine_chunks()
    old = column.take(pa.array(rows)).to_pylist()
    new = [_put(messages, answers[id]) for messages, id in zip(old, ids, strict=True)]
    at = np.arange(len(column))
    at[rows] = len(column) + np.arange(rows.size)
    both = pa.chunked_array([column, pa.array(new, column.type)])
    return table.set_column(table.column_names.index("messages"), "messages", both.combine_chunks().take(pa.array(at)))


def _put(messages: list[dict[str, object]], answer: str) -> list[dict[str, object]]:
    """Return a conversation with another last answer, in the fields that it was read with."""
    fields = set(messages[0])
    return [{key: value for key, value in m.items() if key in fields} for m in answered(messages, answer)]
