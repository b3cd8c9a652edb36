r"""The influence of every row on every target, from vectors that another stage made.

    A_ij = ⟨x_i, t_j⟩ / (‖x_i‖ ‖t_j‖)

Of gradient features that is LESS's influence; of hidden states, RDS+'s similarity; of sentence vectors, their cosine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Column, Scorer
from curate.exceptions import InputError, StageError
from curate.numerics.attribution import attribute

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class Attribution(Scorer):
    """One number a target: how much a row has to do with it.

    The targets are the recipe's ``targets``, their vectors made by the stage ``of`` (gradients look at targets in a way
    of their own).  The selectors ``bids``, ``less`` and ``round-robin`` choose by what comes of it.

    A row is null where it has no vector, and, unless ``overlap`` says "keep", where it asks what a target asks: the
    same prompt, case, spaces and punctuation aside.  To train on it would be to train on the test.
    """

    name: ClassVar[str] = "attribution"
    reference: ClassVar[str] = (
        'Xia, Malladi, Gururangan, Arora & Chen 2024, "LESS: Selecting Influential Data for Targeted Instruction '
        'Tuning" (arXiv:2402.04333)'
    )
    reads: ClassVar[tuple[str, ...]] = ("messages", "group", "vector")
    fit_rows: ClassVar[int] = 1
    fits_on: ClassVar[Literal["pool", "targets"]] = "targets"

    of: str
    """The stage that makes the vectors of pool and targets: gradients, hidden-states, minilm, hashed-ngrams."""
    overlap: Literal["drop", "keep", "stop"] = "drop"
    """What becomes of rows that ask what a target asks: null with that reason, scored like others, or the run stops."""

    def __post_init__(self) -> None:
        self._targets: NDArray[np.float32] | None = None
        self._prompts: dict[bytes, str] = {}
        self.labels_: list[str] = []
        """The task of each target, in the order of the columns."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("influence", "cosines with the targets", dtype=f"float32[{len(self.labels_)}]"),)

    @property
    def tolerance(self) -> float:
        return 1e-5

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        """Take the targets: rows with their task as ``group``; those without a vector are only kept out of the pool."""
        tasks = np.array([str(task) for task in sample.column("group").to_pylist()])
        prompts = [prompt_digest(m) for m in sample.column("messages").to_pylist()]
        vectors = sample.column("vector").combine_chunks()
        there = np.asarray(vectors.is_valid())
        if not there.any():
            raise StageError("attribution: not one target has a vector.")
        rows = _matrix(vectors)[there].astype(np.float32)
        # By task, then by content: how the targets were read does not show.
        scored = np.flatnonzero(there)
        order = sorted(range(len(rows)), key=lambda i: (tasks[scored[i]], prompts[scored[i]], rows[i].tobytes()))
        names = sorted(range(len(tasks)), key=lambda i: (tasks[i], prompts[i]))
        return {
            "targets": rows[order],
            "labels": tasks[scored][order],
            "prompts": np.frombuffer(b"".join(prompts[i] for i in names), dtype=np.uint8).reshape(-1, 16),
            "tasks": tasks[names],
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._targets = np.asarray(state["targets"], dtype=np.float32)
        self.labels_ = [str(label) for label in state["labels"]]
        pairs = zip(state["prompts"], state["tasks"], strict=True)
        self._prompts = {digest.tobytes(): str(task) for digest, task in pairs}

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        if self._targets is None:
            raise InputError("attribution: no targets were given; a run gives them, or fit and load do.")
        vectors = examples.column("vector").combine_chunks()
        rows = _matrix(vectors)
        if rows.shape[1] != self._targets.shape[1]:
            raise StageError(
                f"attribution: the pool's vectors have {rows.shape[1]:,} numbers, the targets' "
                f"{self._targets.shape[1]:,}; both must be made by one stage."
            )
        influence = attribute(rows, self._targets, threads=1)
        reasons: list[str | None] = [None if there else "no vector" for there in vectors.is_valid().to_pylist()]
        if self.overlap != "keep":
            for i, messages in enumerate(examples.column("messages").to_pylist()):
                task = self._prompts.get(prompt_digest(messages))
                if task is not None:
                    reasons[i] = f"it asks what a target of {task} asks"
                    if self.overlap == "stop":
                        raise StageError(
                            f"attribution: a row of the pool asks what a target of {task} asks, and overlap: stop was "
                            f"asked: {messages[0]['content'][:200]!r}."
                        )
        return {"influence": influence, "reason": reasons}


def _matrix(vectors: pa.Array) -> NDArray[Any]:
    """Return vectors (n, d); what stands where one is null means nothing."""
    width = vectors.type.list_size
    return np.asarray(vectors.values.slice(vectors.offset * width, len(vectors) * width)).reshape(-1, width)


def prompt_digest(messages: list[dict[str, Any]]) -> bytes:
    """Return 16 bytes for what the user asks, all turns: case, spaces and punctuation left out."""
    asked = "\n".join(str(m["content"]) for m in messages if m["role"] == "user")
    letters = "".join(c for c in asked.casefold() if c.isalnum()) or asked
    return hashlib.blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=16).digest()
