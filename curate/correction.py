"""The contract of correctors: what is to become of a row, on what evidence, and by which rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

from curate.base import Parameters
from curate.exceptions import InputError, StageError

if TYPE_CHECKING:
    import pyarrow as pa

Action = Literal["replace", "keep", "drop"]
"""What a corrector wants of a row: another answer, the row as it is, or no row."""


@dataclass(frozen=True)
class Role:
    """What a corrector needs to know of each row, and the scorer that finds it out unless the recipe names another."""

    scorer: str
    columns: tuple[str, ...] = ()
    """Columns of it that the corrector reads; none: its first column, a number, which the corrector is given as
    "value", so that any scorer with such a column will do."""
    of: str | None = None
    """The role whose stage that scorer reads."""
    optional: bool = False
    """Whether the corrector can do without.  One that is ``of`` an optional role is needed where that one is given."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of that scorer that it has by default here: {"prompt": "rewrite"}."""


@dataclass(frozen=True, eq=False)
class Corrections:
    """What is to become of each row of a table, in its order, and on what evidence."""

    action: list[Action | None]
    """None: whatever the selection says."""
    answer: list[str | None]
    """The new answer, where the action is "replace"."""
    confidence: NDArray[np.float64]
    """(n,) in [0, 1], the number that the action was decided by; NaN where there was none."""
    rule: list[str]
    """Why, in few distinct words: "the verdict is for the candidate"."""


class Corrector(Parameters, ABC):
    """Says which answers are to be replaced, by what, and why: a rule over what stages have found.  Asks no model.

    The answer is the content of a row's last assistant turn.  Models write and judge in the stages of its ``roles``,
    which a run keeps; a corrector with other parameters asks for nothing anew.

    Laws (``curate.testing.check_corrector``)
    -----------------------------------------
    1. One action, answer, confidence and rule a row, in row order; an answer where the action is "replace" and nowhere
       else, neither blank nor the row's own.
    2. The rows that come along do not matter.
    3. A second pass replaces nothing: not when it is given the corrected rows with the same evidence.
    4. A row without evidence is left to the selection, and its rule says what is missing.
    5. Neither rows nor evidence nor parameters are changed.
    """

    roles: ClassVar[Mapping[str, Role]] = {}
    """Name → what is needed under it; a key of the recipe's entry."""
    overrules: ClassVar[bool] = False
    """Whether it may replace what an earlier correction has put."""

    @property
    def threshold(self) -> float | None:
        """What ``Corrections.confidence`` is held against, for the ledger; None where it is held against nothing."""
        return None

    @classmethod
    def needed(cls, given: Collection[str]) -> list[str]:
        """Return the roles that cannot be left out where those are given."""
        optional = {name for name, role in cls.roles.items() if role.optional}
        return [name for name, role in cls.roles.items() if name not in optional or role.of in optional & set(given)]

    def check(self) -> None:
        """Raise CurateError if correcting cannot work here: asked once, before a run starts."""

    @abstractmethod
    def _correct(self, rows: Sequence[Mapping[str, Any]]) -> Corrections:
        """Return what is to become of rows that have an answer of plain text; at least one is given.

        Each row holds "id", "messages", "answer" (the content of the last assistant turn) and, under the name of each
        role, the columns of its stage with its "reason"; None under an optional role that the recipe leaves out.
        """

    @final
    def correct(self, examples: pa.Table, evidence: Mapping[str, pa.Table | None]) -> Corrections:
        """Return what is to become of each row.

        Parameters
        ----------
        examples : with "id" and "messages".
        evidence : role → what its stage found, row by row, with "reason"; None for an optional role.

        Raises
        ------
        InputError
            If a role or a column of it is missing, or its rows are not as many.
        StageError
            If the subclass breaks law 1.
        """
        n = examples.num_rows
        given = [name for name in evidence if evidence[name] is not None]
        needed = self.needed(given)
        held: dict[str, list[Any]] = {}
        for name, role in self.roles.items():
            table = evidence.get(name)
            if table is None:
                if name in needed:
                    raise InputError(f"{self.name}: evidence for {name!r} was asked; found {sorted(given)}.")
                held[name] = [None] * n
                continue
            if not role.columns:
                table = self._valued(name, table)
            wanted = [*(role.columns or ("value",)), "reason"]
            if missing := [c for c in wanted if c not in table.column_names]:
                raise InputError(f"{self.name}: {name!r} lacks the columns {missing}; found {table.column_names}.")
            if table.num_rows != n:
                raise InputError(f"{self.name}: {n} rows and {table.num_rows} of {name!r}; as many were asked.")
            held[name] = table.select(wanted).to_pylist()
        ids, conversations = (examples.column(c).to_pylist() for c in ("id", "messages"))
        action: list[Action | None] = [None] * n
        answer: list[str | None] = [None] * n
        rule = [""] * n
        confidence = np.full(n, np.nan)
        rows, able = [], []
        for i, messages in enumerate(conversations):
            last = next((m for m in reversed(messages) if m["role"] == "assistant"), None)
            if last is None or last.get("tool_calls"):
                rule[i] = "no assistant turn" if last is None else "the answer calls tools"
                continue
            found_out = {name: column[i] for name, column in held.items()}
            rows.append({"id": ids[i], "messages": messages, "answer": last["content"], **found_out})
            able.append(i)
        if able:
            found = self._correct(rows)
            for what in ("action", "answer", "confidence", "rule"):
                if len(getattr(found, what)) != len(able):
                    raise StageError(
                        f"{self.name}: {len(able)} rows were asked, {what} has {len(getattr(found, what))}."
                    )
            for place, i in enumerate(able):
                action[i], answer[i], rule[i] = found.action[place], found.answer[place], found.rule[place]
                new = answer[i]
                if (action[i] == "replace") != (new is not None) or (new is not None and not new.strip()):
                    raise StageError(f"{self.name}: row {i} is to be {action[i]!r}, and its new answer is {new!r}.")
                if new is not None and new == rows[place]["answer"]:
                    raise StageError(f"{self.name}: row {i} is to be replaced by what it says already.")
            confidence[able] = found.confidence
        return Corrections(action, answer, confidence, rule)

    def _valued(self, name: str, table: pa.Table) -> pa.Table:
        """Return the evidence with its first column as "value"; InputError unless that is a number."""
        import pyarrow as pa

        first = next((c for c in table.column_names if c not in ("id", "reason")), None)
        if first is None or not (pa.types.is_floating(kind := table[first].type) or pa.types.is_integer(kind)):
            found = "no column" if first is None else f"{first!r}, {kind}"
            raise InputError(f"{self.name}: of {name!r} the first column is read, a number; found {found}.")
        reason = {"reason": table["reason"]} if "reason" in table.column_names else {}
        return pa.table({"value": table[first], **reason})


def answered(messages: Sequence[Mapping[str, Any]], answer: str) -> list[dict[str, Any]]:
    """Return a conversation with another answer in its last assistant turn; the thinking behind the old one goes."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    out = [dict(message) for message in messages]
    out[last]["content"] = answer
    if "thinking" in out[last]:
        out[last]["thinking"] = None
    return out
