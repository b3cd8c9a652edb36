"""A batch of examples as flat arrays, one value a turn; and the rows refused so far, each with its first reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate.example import ROLES

SYSTEM, USER, ASSISTANT, TOOL = range(4)
_START, _UNKNOWN = 4, 4

# Which role may follow which: _FOLLOWS[before, role], with the beginning of the conversation as the last row.
_FOLLOWS = np.zeros((5, 5), dtype=bool)
_FOLLOWS[_START, [SYSTEM, USER]] = True
_FOLLOWS[SYSTEM, USER] = True
_FOLLOWS[USER, ASSISTANT] = True
_FOLLOWS[ASSISTANT, [USER, TOOL]] = True
_FOLLOWS[TOOL, [TOOL, ASSISTANT]] = True


class Batch:
    """The turns of some examples.

    n rows hold m turns; row i has the turns ``starts[i]`` to ``starts[i] + lengths[i]``, ``row`` and ``place`` say of
    each turn in which row it is and where (from 0).
    """

    def __init__(self, examples: pa.Table) -> None:
        self.examples = examples
        self.n = examples.num_rows
        lists = examples.column("messages")
        array = lists.chunk(0) if lists.num_chunks == 1 else lists.combine_chunks()
        self.lengths: NDArray[np.int64] = (
            pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        )
        self.starts: NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        self.flat: pa.StructArray = array.flatten()
        self._reason: list[str | None] = [None] * self.n
        self._detail: list[str] = [""] * self.n
        self._free = np.ones(self.n, dtype=bool)
        self._notes: dict[str, NDArray[np.bool_]] = {}

    # -- the turns ---------------------------------------------------------------------------------------------------

    @cached_property
    def row(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.n), self.lengths)

    @cached_property
    def place(self) -> NDArray[np.int64]:
        return np.arange(len(self.flat)) - np.repeat(self.starts, self.lengths)

    @cached_property
    def last(self) -> NDArray[np.bool_]:
        """(m,) True for the last turn of each row."""
        last = np.zeros(len(self.flat), dtype=bool)
        last[(self.starts + self.lengths - 1)[self.lengths > 0]] = True
        return last

    @cached_property
    def role(self) -> NDArray[np.int64]:
        """(m,) place in ``ROLES``; 4 for any other word."""
        column = self.field("role")
        code = pc.fill_null(pc.index_in(column, value_set=pa.array(ROLES)), _UNKNOWN)
        return code.to_numpy(zero_copy_only=False).astype(np.int64)

    def field(self, name: str) -> pa.Array | None:
        """Return a field of all turns; None where it was not loaded, which a look does with texts."""
        return self.flat.field(name) if self.flat.type.get_field_index(name) >= 0 else None

    def present(self, name: str) -> NDArray[np.bool_]:
        """(m,) True where a turn has the field."""
        values = self.field(name)
        if values is None or values.null_count == len(values):
            return np.zeros(len(self.flat), dtype=bool)
        return values.is_valid().to_numpy(zero_copy_only=False)

    def column(self, name: str) -> pa.Array | None:
        if name not in self.examples.column_names:
            return None
        column = self.examples.column(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """(m,) True for the turns that curate counts: the assistant's, less those marked ``train: false``."""
        train = self.field("train")
        if train is None or train.null_count == len(train):
            return self.role == ASSISTANT
        return (self.role == ASSISTANT) & pc.fill_null(train, True).to_numpy(zero_copy_only=False)

    # -- in rows -----------------------------------------------------------------------------------------------------

    def any(self, turns: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(n,) True for the rows in which any turn is."""
        rows = np.zeros(self.n, dtype=bool)
        if turns.any():
            rows[self.row[turns]] = True
        return rows

    def is_role(self, word: str) -> NDArray[np.bool_]:
        """(n,) True for the rows with a turn of this role."""
        return self.any(self.role == ROLES.index(word))

    # -- refusing ----------------------------------------------------------------------------------------------------

    def refuse(self, rows: NDArray[np.bool_], reason: str, detail: str | Callable[[int], str]) -> None:
        """Refuse the rows where ``rows`` is True, unless an earlier reason stands; ``detail`` may depend on the row."""
        for i in np.flatnonzero(rows & self._free).tolist():
            self._reason[i], self._detail[i] = reason, detail if isinstance(detail, str) else detail(i)
        self._free &= ~rows

    def refuse_turns(self, turns: NDArray[np.bool_], reason: str, detail: str | Callable[[int], str]) -> None:
        """Refuse the rows with a turn where ``turns`` is True; the detail (of a turn's number) tells the first one."""
        if not turns.any():
            return

        def told(i: int) -> str:
            at = int(self.starts[i]) + int(np.argmax(turns[self.starts[i] : self.starts[i] + self.lengths[i]]))
            said = detail if isinstance(detail, str) else detail(at)
            return f"turn {at - self.starts[i]} ({self._word(at)}): {said}"

        self.refuse(self.any(turns), reason, told)

    def note(self, word: str, rows: NDArray[np.bool_]) -> None:
        """Note in which rows something occurs that the columns of the export depend on."""
        self._notes[word] = self._notes.get(word, np.zeros(self.n, dtype=bool)) | rows

    def refusals(self) -> tuple[NDArray[np.int64], list[str], list[str]]:
        rows = np.flatnonzero(~self._free)
        return rows, [self._reason[i] or "" for i in rows.tolist()], [self._detail[i] for i in rows.tolist()]

    def noted(self, without: NDArray[np.int64]) -> frozenset[str]:
        """Return the words noted in at least one row that is not among these."""
        free = np.ones(self.n, dtype=bool)
        free[without] = False
        return frozenset(word for word, rows in self._notes.items() if (rows & free).any())

    def _word(self, at: int) -> str:
        role = self.field("role")
        return str(None if role is None else role[at].as_py())

    # -- checks that several formats share ---------------------------------------------------------------------------

    def check_structure(self) -> None:
        """Refuse what is no conversation that can be trained on.  Curate's readers let none of these through."""
        role = self.role
        self.refuse_turns(role == _UNKNOWN, "wrong-type", f"a role among {', '.join(ROLES)} was asked")
        content = self.field("content")
        if content is not None:
            self.refuse_turns(content.is_null().to_numpy(zero_copy_only=False), "wrong-type", "no text")
            blank = pc.or_(pc.equal(pc.binary_length(content), 0), pc.utf8_is_space(content))
            silent = pc.fill_null(blank, False).to_numpy(zero_copy_only=False)
            if silent.any():
                silent &= (role == USER) | ((role == ASSISTANT) & ~self.present("tool_calls"))
                self.refuse_turns(silent, "empty-turn", "nothing but white space")
        self.refuse(~self.is_role("user"), "no-user-turn", "no turn of the user")
        before = np.r_[_START, role[:-1]] if role.size else role
        before = np.where(self.place == 0, _START, before)
        self.refuse_turns(
            ~_FOLLOWS[before, role],
            "role-order",
            lambda at: "first" if self.place[at] == 0 else f"after {self._word(at - 1)}",
        )
        self.refuse(~self.any(self.last & (role == ASSISTANT)), "no-response", "the last turn is not the assistant's")
        self._check_json()
        for name in ("name", "tool_calls", "tool_call_id", "thinking"):
            if (present := self.present(name)).any():
                self.note(name, self.any(present))

    def _check_json(self) -> None:
        present = self.present("tool_calls")
        if present.any():
            calls = self.field("tool_calls")
            self.refuse_turns(present & (self.role != ASSISTANT), "bad-tool-call", "only the assistant calls tools")
            self._refuse_unlike(calls, wrong_calls, "bad-tool-call")
        tools = self.column("tools")
        if tools is not None and tools.null_count < self.n:
            self._refuse_unlike(tools, wrong_tools, "bad-tools", rows=True)
            self.note("tools", tools.is_valid().to_numpy(zero_copy_only=False))

    def _refuse_unlike(self, texts: Any, wrong: Callable[[str], str | None], reason: str, rows: bool = False) -> None:
        """Refuse where a text is not what it should be; each different text is looked at once."""
        encoded = texts.dictionary_encode()
        faults = [None if text is None else wrong(text) for text in encoded.dictionary.to_pylist()]
        if not any(faults):
            return
        index = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        bad = np.array([*(f is not None for f in faults), False])[index]
        if rows:
            self.refuse(bad, reason, lambda i: str(faults[index[i]]))
        else:
            self.refuse_turns(bad, reason, lambda at: str(faults[index[at]]))

    def refuse_fields(self, holds: frozenset[str], format: str) -> None:
        """Refuse rows with a field of a turn, tools or a system turn that the format has no place for."""
        for name in ("name", "tool_call_id", "thinking", "tool_calls"):
            if name not in holds:
                self.refuse_turns(self.present(name), "no-place", f"{format} has no place for {name!r}")
        if "tool" not in holds:
            self.refuse_turns(self.role == TOOL, "no-place", f"{format} has no place for a tool's turn")
        if "system" not in holds:
            self.refuse_turns(self.role == SYSTEM, "no-place", f"{format} has no place for a system turn")
        tools = self.column("tools")
        if "tools" not in holds and tools is not None and tools.null_count < self.n:
            self.refuse(tools.is_valid().to_numpy(zero_copy_only=False), "no-place", f"{format} has no place for tools")

    def refuse_loss(self, trained: Literal["marked", "all", "last"], turns: Literal["all", "last"]) -> None:
        """Refuse rows of which the trainer would train on other turns than those that curate counts."""
        train = self.field("train")
        if train is not None and train.null_count < len(train):
            marked = pc.fill_null(train, False).to_numpy(zero_copy_only=False)
            self.refuse_turns(
                marked & (self.role != ASSISTANT),
                "loss-mask",
                "marked to be trained on; curate counts assistant turns only",
            )
        wanted = self.counted & self.last if turns == "last" else self.counted
        self.refuse(~self.any(wanted), "loss-mask", "no turn is in the loss")
        if trained == "marked":
            return
        found = self.role == ASSISTANT
        if trained == "last":
            found = found & self.last
        self.refuse_turns(
            found & ~wanted,
            "loss-mask",
            "not in the loss, and the trainer would train on it; axolotl reads such marks",
        )
        self.refuse_turns(
            wanted & ~found,
            "loss-mask",
            "in the loss, and the trainer would train on the last turn only; with 'turns: last' it is not counted",
        )


def wrong_calls(text: str) -> str | None:
    """Return what is wrong with tool calls, or None."""
    try:
        calls = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    if not isinstance(calls, list) or not calls:
        return "a list of calls was asked"
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return "a call without the name of a function"
    return None


def wrong_tools(text: str) -> str | None:
    """Return what is wrong with tool schemas, or None."""
    try:
        tools = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        return "a list of tool schemas was asked"
    return None


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")
