"""What scorers that learn from targets have in common: telling which rows of the pool ask what a target asks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError, StageError

if TYPE_CHECKING:
    import pyarrow as pa

Overlap = Literal["drop", "keep", "stop"]
"""What becomes of rows that ask what a target asks: null with that reason, scored like others, or the run stops."""

Messages = list[dict[str, Any]]
_OTHERS = re.compile(r"[\W_]+")  # whatever is not str.isalnum


def pool_and_targets(sample: pa.Table, *, caller: str) -> tuple[pa.Table, pa.Table]:
    """Part what a scorer that fits on "both" is given: rows of the pool, without a group, and rows of the targets.

    Raises
    ------
    InputError
        If either side has no row.
    """
    import pyarrow.compute as pc

    if "group" not in sample.column_names:
        raise InputError(
            f"{caller}: rows of the pool and of targets were asked, told apart by a column 'group' (the task; null for "
            f"the pool's); found {sample.column_names}."
        )
    target = pc.is_valid(sample.column("group"))
    pool, targets = sample.filter(pc.invert(target)), sample.filter(target)
    if not pool.num_rows or not targets.num_rows:
        raise InputError(
            f"{caller}: rows of the pool and of targets were asked, {pool.num_rows} and {targets.num_rows} were found."
        )
    return pool, targets


def prompt_digest(messages: Messages) -> bytes:
    """Return 16 bytes for what the user asks, all turns: case, spaces and punctuation left out."""
    asked = "\n".join(str(m["content"]) for m in messages if m["role"] == "user")
    letters = _OTHERS.sub("", asked.casefold()) or asked
    return hashlib.blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Asked:
    """What the targets ask: digest of the prompt → task."""

    def __init__(self, state: Mapping[str, NDArray[Any]]) -> None:
        pairs = zip(state["prompts"], state["tasks"], strict=True)
        self._tasks = {digest.tobytes(): str(task) for digest, task in pairs}

    @staticmethod
    def state(prompts: Sequence[bytes], tasks: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return "prompts", digests (rows, 16), and "tasks" (rows,): those of all targets, whatever their order."""
        pairs = sorted(zip(tasks, prompts, strict=True))
        return {
            "prompts": np.frombuffer(b"".join(prompt for _, prompt in pairs), dtype=np.uint8).reshape(-1, 16),
            "tasks": np.array([task for task, _ in pairs]),
        }

    def leave_out(self, examples: pa.Table, reasons: list[str | None], overlap: Overlap, *, caller: str) -> None:
        """Give the rows that ask what a target asks that reason.

        Raises
        ------
        StageError
            At the first of them, if ``overlap`` says "stop".
        """
        if overlap == "keep":
            return
        for i, messages in enumerate(examples.column("messages").to_pylist()):
            task = self._tasks.get(prompt_digest(messages))
            if task is None:
                continue
            reasons[i] = f"it asks what a target of {task} asks"
            if overlap == "stop":
                raise StageError(
                    f"{caller}: a row of the pool asks what a target of {task} asks, and overlap: stop was asked: "
                    f"{messages[0]['content'][:200]!r}."
                )
