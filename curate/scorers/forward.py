"""Scorers that read a forward pass of a language model, and how several of them share one.

A scorer says what it needs: of the whole conversation, of the response alone, or of both (``needs``).  Scorers with the
same model, template, turns and limits are scored together: every text is encoded once and goes through the model once,
with the union of what they asked.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate import models
from curate.base import Column, Scorer
from curate.exceptions import InputError
from curate.models import backends
from curate.models.backends import Backend
from curate.models.base import Forward, Quantity
from curate.scorers.encoded import EncodedScorer

if TYPE_CHECKING:
    import pyarrow as pa

View = Literal["whole", "alone"]
"""The conversation, or its response without what was asked (``EncodedRow.alone``)."""

Needs = Mapping[View, frozenset[Quantity]]


@dataclass
class Passes:
    """What the forward passes over a batch gave one scorer."""

    reasons: list[str | None]
    """Why a row has no pass; its entries in ``of`` are None."""
    tokens: NDArray[np.int64]
    """Scored tokens of each row."""
    length: NDArray[np.int64]
    """All tokens of each row."""
    cut: NDArray[np.int64]
    """Tokens cut off the end of each row (``long_rows="truncate"``)."""
    of: dict[View, list[Forward | None]]
    head_norm: float | None
    """‖W‖_F of the model's output head."""

    def scored(self) -> NDArray[np.int64]:
        """Return the rows that have a pass."""
        return np.flatnonzero([reason is None for reason in self.reasons])


@dataclass(kw_only=True)
class ForwardScorer(EncodedScorer):
    """A scorer that reads forward passes; its subclasses say which quantities, and what they make of them.

    A row is null, with a reason, where the template cannot show it, where no token of it is in the loss, where it is
    longer than the limit (unless ``long_rows`` says otherwise), and where it alone does not fit into memory.
    """

    backend: Backend = "transformers"
    """Where the model runs: transformers, vllm, or an HTTP server; see ``curate.models.backends``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.backend, backends.HTTP) and self.dtype != "auto":
            raise InputError(
                f"{self.name}: dtype={self.dtype!r} was asked of a server, which computes in what it was started with; "
                "leave dtype out."
            )
        for quantities in self.needs.values():
            backends.check(self.backend, quantities, caller=self.name)
        self._lm: models.CausalLM | None = None

    # -- for subclasses ----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def own_columns(self) -> tuple[Column, ...]:
        """The columns that ``_reduce`` returns."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What it asks of a pass over each view."""

    @abstractmethod
    def _reduce(self, passes: Passes) -> dict[str, Any]:
        """Return one array-like per declared column, and optionally "reason" to overrule ``passes.reasons``."""

    def _skip(self, examples: pa.Table, rows: Sequence[models.EncodedRow]) -> list[str | None]:
        """Return why a row needs no pass (None where it does), decided before any is computed."""
        return [None] * len(rows)

    # -- the contract ------------------------------------------------------------------------------------------------

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.own_columns + self.cut_column

    @property
    def tolerance(self) -> float:
        """Rounding: other company is another shape of matrix product, which sums in another order."""
        dtype = self.dtype if self._lm is None else self._lm.dtype
        return 1e-5 if dtype in ("auto", "float32") else 2e-2

    def _source(self) -> dict[str, Any]:
        """Return what the pass itself depends on, as JSON: model, template and backend."""
        weights = not isinstance(self.backend, backends.HTTP)
        model = models.identify(self.model, weights=weights)  # first: it says best what is wrong with a path
        return {"model": model, "template": self._encode().identity(), "backend": backends.identity(self.backend)}

    def check(self) -> None:
        """Ask the backend whether it is there and can give what is needed."""
        models.check(self.model, self.backend, caller=self.name)

    @property
    def passes(self) -> tuple[str, ...]:
        return tuple(self.needs)

    def shared_work(self) -> str:
        """Name the pass: model, backend, template, turns, limits."""
        settings = {
            k: getattr(self, k) for k in ("turns", "dtype", "max_tokens", "long_rows", "batch_tokens", "device")
        }
        backend = backends.settings(self.backend)
        return json.dumps({**self._source(), **settings, "backend": backend}, sort_keys=True)

    def open(self) -> None:
        self._encode()
        if self._lm is None:
            self._lm = models.load(
                self.model,
                dtype=self.dtype,
                device=self.device,
                batch_tokens=self.batch_tokens,
                backend=self.backend,
            )

    def close(self) -> None:
        if self._lm is not None:
            models.release(self._lm)
        self._lm = None

    def describe(self) -> dict[str, str]:
        """Return what produced the numbers, once opened: backend, version, dtype, device, template."""
        return {} if self._lm is None else {**self._lm.describe(), "template": self._encode().kind}

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        (passes,) = _run_passes([self], examples)
        return self._finished(passes)

    @classmethod
    def score_together(cls, scorers: Sequence[Scorer], examples: pa.Table) -> list[pa.Table]:
        together = [s for s in scorers if isinstance(s, ForwardScorer)]
        assert len(together) == len(scorers), "other scorers name other work"
        for scorer in together:
            scorer.open()
        n = examples.num_rows
        if not n:
            return [scorer.score(examples) for scorer in scorers]
        passes = _run_passes(together, examples)
        return [s.table(s._finished(p), n) for s, p in zip(together, passes, strict=True)]

    def _finished(self, passes: Passes) -> dict[str, Any]:
        raw = {"reason": passes.reasons, **self._reduce(passes)}
        return raw | {"cut": passes.cut} if self.long_rows == "truncate" else raw


def _run_passes(scorers: Sequence[ForwardScorer], examples: pa.Table) -> list[Passes]:
    """Encode once, run each view once with the union of what is needed, and hand everyone their own."""
    first = scorers[0]
    lm = first._lm
    assert lm is not None
    rows, reasons, cut = first._rows(examples, lm.context)
    tokens = np.array([int(row.mask.sum()) for row in rows], dtype=np.int64)
    length = np.array([row.ids.size for row in rows], dtype=np.int64)
    own: list[list[str | None]] = []
    for scorer in scorers:
        skipped = scorer._skip(examples, rows)
        own.append([reason or skip for reason, skip in zip(reasons, skipped, strict=True)])

    found: dict[View, list[Forward | None]] = {}
    for view in dict.fromkeys(view for scorer in scorers for view in scorer.needs):
        asking = [i for i, scorer in enumerate(scorers) if view in scorer.needs]
        wanted = [j for j in range(len(rows)) if any(own[i][j] is None for i in asking)]
        shown = {j: rows[j] if view == "whole" else rows[j].alone() for j in wanted}
        for j in (j for j in wanted if shown[j] is None):
            for i in asking:
                own[i][j] = own[i][j] or "nothing stands before the response alone: no header in the template, no BOS"
        able = [(j, row) for j, row in shown.items() if row is not None]
        union = frozenset().union(*(scorers[i].needs[view] for i in asking))
        given: list[Forward | None] = [None] * len(rows)
        for (j, row), forward in zip(able, lm.forward([(row.ids, row.mask) for _, row in able], union), strict=True):
            why = f"out of memory at {row.ids.size} tokens" if forward is None else forward.reason
            given[j] = forward if why is None else None
            if why is not None:
                for i in asking:
                    own[i][j] = own[i][j] or why
        found[view] = given
    return [
        Passes(why, tokens, length, cut, {view: found[view] for view in scorer.needs}, lm.head_norm)
        for scorer, why in zip(scorers, own, strict=True)
    ]
