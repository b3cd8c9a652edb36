r"""The influence of every row on every target, from vectors that another stage made.

    A_ij = ⟨x_i, t_j⟩ / (‖x_i‖ ‖t_j‖)

Of gradient features that is LESS's influence; of hidden states, RDS+'s similarity; of sentence vectors, their cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Column, Scorer
from curate.exceptions import InputError, StageError
from curate.numerics.attribution import attribute
from curate.scorers._targets import Asked, Overlap, prompt_digest

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
    overlap: Overlap = "drop"
    """What becomes of rows that ask what a target asks: null with that reason, scored like others, or the run stops."""

    def __post_init__(self) -> None:
        self._targets: NDArray[np.float32] | None = None
        self._asked: Asked | None = None
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
        return {
            "targets": rows[order],
            "labels": tasks[scored][order],
            **Asked.state(prompts, tasks.tolist()),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._targets = np.asarray(state["targets"], dtype=np.float32)
        self.labels_ = [str(label) for label in state["labels"]]
        self._asked = Asked(state)

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        if self._targets is None or self._asked is None:
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
        self._asked.leave_out(examples, reasons, self.overlap, caller=self.name)
        return {"influence": influence, "reason": reasons}


def _matrix(vectors: pa.Array) -> NDArray[Any]:
    """Return vectors (n, d); what stands where one is null means nothing."""
    width = vectors.type.list_size
    return np.asarray(vectors.values.slice(vectors.offset * width, len(vectors) * width)).reshape(-1, width)
