"""An adapter trained on the rows of a sample, an epoch a step: what the scorers share that learn so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from numpy.typing import NDArray

from curate.exceptions import StageError
from curate.models.base import DType
from curate.models.lora import Checkpoint
from curate.models.template import EncodedRow
from curate.models.warmup import WarmUp

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.base import Scorer

State = dict[str, NDArray[Any]]


class Trainer(Protocol):
    """A scorer with the model that the adapter is for."""

    name: ClassVar[str]
    model: str
    dtype: DType
    device: str
    batch_tokens: int | None
    seed: int


def fit_by_steps(scorer: Scorer, sample: pa.Table) -> State:
    """Return the state after the last step, as a run gets it that is never stopped."""
    state: State | None = None
    for step in range(scorer.fit_steps):
        state = scorer.fit_step(step, sample, state)
    assert state is not None
    return state


def train_epoch(
    scorer: Trainer,
    settings: WarmUp,
    rows: Sequence[EncodedRow],
    reasons: Sequence[str | None],
    before: Mapping[str, NDArray[Any]] | None,
    *,
    which: str,
) -> Checkpoint:
    """Return the checkpoint that one more epoch ends; the order of the rows changes nothing.

    Parameters
    ----------
    settings : of the training, but for the seed, which is the scorer's.
    rows, reasons : the sample as tokens, and why a row cannot be trained on; such rows are left out.
    before : the checkpoint of the epoch before, as arrays; None for the first.
    which : what rows these are, for the error: "that were kept".

    Raises
    ------
    StageError
        If no row can be trained on.
    """
    from curate.models.checkpoints import from_arrays
    from curate.models.loading import set_threads
    from curate.models.warmup import train_epoch

    set_threads()
    usable = [(row.ids, row.mask) for row, reason in zip(rows, reasons, strict=True) if reason is None]
    if not usable:
        told = ", ".join(sorted({str(reason) for reason in reasons})[:3]) or "there is none"
        raise StageError(f"{scorer.name}: of {len(rows):,} rows {which} none can be trained on: {told}.")
    usable.sort(key=lambda row: row[0].tobytes() + row[1].tobytes())
    return train_epoch(
        scorer.model,
        usable,
        replace(settings, seed=scorer.seed),
        None if before is None else from_arrays(before),
        dtype=scorer.dtype,
        device=scorer.device,
        batch_tokens=scorer.batch_tokens,
    )
