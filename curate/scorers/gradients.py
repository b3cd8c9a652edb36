r"""Gradient features: what a training step on a row would change, as a vector (LESS).

    g   = ∂L/∂θ of the row's mean loss over its scored tokens, θ the weights of a LoRA adapter
    Γ   = (β₁ m + (1 − β₁) g) / √(β₂ v + (1 − β₂) g² + ε)      the step that Adam would make, for rows of the pool
    x_t = P Γ / ‖P Γ‖₂, or P g / ‖P g‖₂ for targets            P a random projection to ``dims`` numbers
    x   = (√w_1 x_1, …, √w_T x_T),   w_t = η_t / Σ η           over checkpoints t of a warm-up, η_t its average rate

The dot product of a row's x and a target's is LESS's influence, Σ_t w_t cos(Γ_t, g_t).  Both have length 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate import models
from curate.base import Column
from curate.budget import Budget
from curate.exceptions import InputError, ModelError
from curate.models.lora import Checkpoint, Lora
from curate.models.projection import Law, Projection
from curate.models.warmup import WarmUp
from curate.scorers._training import fit_by_steps, train_epoch
from curate.scorers.encoded import EncodedScorer
from curate.seeding import rng_for

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.models.gradients import Adam, GradientLM

_SAMPLE = 10**9


@dataclass(kw_only=True)
class Gradients(EncodedScorer):
    """One vector of length 1 per row, float16, ``dims`` numbers a checkpoint.

    A warm-up trains a LoRA adapter on a sample of the pool, once for the run; its checkpoints, one an epoch, are where
    gradients are taken.  Or ``checkpoints`` names adapters that are there.  With ``warm_up: null`` the adapter is as it
    begins, B = 0: gradients in A are 0 then, and LESS found such features no better than chance.

    Null, besides the reasons of every scorer of tokens, where a gradient is 0 or no number.

    Differs from the published code: gradients of a batch of rows come from one backward pass, the projection is a count
    sketch unless Rademacher's is asked (unbiased, the same bound on its variance: ``curate.models.projection``), and
    gradients are not rounded to float16 before it.
    """

    name: ClassVar[str] = "gradients"
    reference: ClassVar[str] = (
        'Xia, Malladi, Gururangan, Arora & Chen 2024, "LESS: Selecting Influential Data for Targeted Instruction '
        'Tuning" (arXiv:2402.04333)'
    )

    side: Literal["pool", "targets"] = "pool"
    """Rows to train on (the optimizer's step), or targets (the plain gradient).  A run asks both by itself."""
    dims: int = 8192
    """Numbers a checkpoint."""
    projection: Law = "count-sketch"
    """The law of the random projection: count-sketch, or rademacher, dense and slow."""
    optimizer: Literal["adam", "adam-paper", "sgd"] = "adam"
    """Whose step a row of the pool makes: Adam's as in LESS's code (ε inside of the root, no bias correction), Adam's
    as in its paper, or plain gradient descent's."""
    warm_up: WarmUp | None = field(default_factory=WarmUp)
    """How the adapter is trained before; null: not at all."""
    sample: int | str = "5%"
    """Rows of the pool that it is trained on: a number, a share, or "100%"."""
    checkpoints: list[str] | None = None
    """Folders of adapters that take the place of a warm-up (peft's, with the optimizer's state of this package or of
    Hugging Face's Trainer)."""
    weights: list[float] | None = None
    """What each checkpoint counts; by default its average learning rate."""
    lora: Lora | None = None
    """The adapter without a warm-up; by default the warm-up's, or that of the checkpoints."""
    layers: list[str] | None = None
    """Full linear layers instead of an adapter, by name or pattern ("*.down_proj"); needs no warm-up."""
    seed: int = 0
    """Of the sample, the adapter's beginning and the projection; a recipe's own when absent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dims < 1:
            raise InputError(f"gradients: dims={self.dims}; it must be at least 1.")
        if self.checkpoints is not None and not self.checkpoints:
            raise InputError("gradients: checkpoints: [] names no adapter; leave it out to train one.")
        if self.layers is not None and (self.trained or self.lora is not None):
            raise InputError(
                "gradients: layers: are those of the model itself, which no adapter's warm-up trains; add warm_up: "
                "null, and leave checkpoints and lora out."
            )
        if not self.trained and self.side == "pool" and self.optimizer != "sgd":
            raise InputError(
                f"gradients: optimizer: {self.optimizer} was asked, but without a warm-up Adam has no averages; "
                "add optimizer: sgd."
            )
        if self.lora is not None and self.trained:
            raise InputError("gradients: lora: is for gradients without a warm-up; write it into warm_up.")
        if self.warm_up is not None and self.warm_up.seed not in (0, self.seed):
            raise InputError(
                f"gradients: seed {self.warm_up.seed} of the warm-up was asked beside seed {self.seed}; one seed is "
                "for sample, adapter and projection alike: leave the warm-up's out."
            )
        if self.weights is not None and len(self.weights) != self.count:
            raise InputError(
                f"gradients: {self.count} checkpoints have {len(self.weights)} weights; one each was asked."
            )
        if Budget.parse(self.sample).tokens is not None:
            raise InputError(f"gradients: sample: rows or a share of them was asked, {self.sample!r} was found.")
        self._lm: GradientLM | None = None
        self._checkpoints: list[Checkpoint] | None = None
        self._steps: dict[int, Adam] = {}

    @property
    def trained(self) -> bool:
        """Whether gradients are taken at checkpoints of a training."""
        return self.checkpoints is not None or self.warm_up is not None

    @property
    def count(self) -> int:
        """Checkpoints."""
        if self.checkpoints is not None:
            return len(self.checkpoints)
        return 1 if self.warm_up is None else self.warm_up.epochs

    @property
    def passes(self) -> tuple[str, ...]:
        return tuple(f"checkpoint {t + 1}" for t in range(self.count))

    @property
    def columns(self) -> tuple[Column, ...]:
        vector = Column("vector", "coordinates of a unit vector", dtype=f"float16[{self.dims * self.count}]")
        return (vector, Column("tokens", "tokens", None, "int64"), *self.cut_column)

    @property
    def tolerance(self) -> float:
        return 1e-3 if self.dtype in ("auto", "float32") else 2e-2

    def identity(self) -> dict[str, Any]:
        """Nested parameters as JSON; the folders of checkpoints by what they hold."""
        identity = super().identity()
        params = {k: v for k, v in identity["params"].items() if k != "checkpoints"}
        identity["params"] = json.loads(json.dumps(params, default=asdict))
        return identity

    def _source(self) -> dict[str, Any]:
        if self.checkpoints is None:
            return super()._source()
        from curate.models.checkpoints import digest

        return super()._source() | {"checkpoints": [digest(folder) for folder in self.checkpoints]}

    def check(self) -> None:
        from curate._imports import require

        if self.layers is None:
            require("peft", extra="influence", for_="LoRA gradients")

    def for_targets(self) -> Gradients:
        return replace(self, side="targets")

    # -- the warm-up -------------------------------------------------------------------------------------------------

    @property
    def fit_rows(self) -> int:  # type: ignore[override]
        return 0 if self.checkpoints is not None or self.warm_up is None else _SAMPLE

    def fit_sample(self, n: int) -> NDArray[np.int64]:
        budget = Budget.parse(self.sample)
        wanted = min(n, budget.rows) if budget.rows is not None else int(np.ceil((budget.fraction or 0) * n))
        return np.sort(rng_for(self.seed, "warm-up", "sample").permutation(n)[:wanted])

    @property
    def fit_steps(self) -> int:
        return self.count

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        return fit_by_steps(self, sample)

    def fit_step(
        self, step: int, sample: pa.Table, before: Mapping[str, NDArray[Any]] | None
    ) -> dict[str, NDArray[Any]]:
        from curate.models.checkpoints import to_arrays

        assert self.warm_up is not None
        rows, reasons, _ = self._rows(sample, models.context(self.model))
        last = None if before is None else _of(before, step - 1)
        found = train_epoch(self, self.warm_up, rows, reasons, last, which="of the warm-up")
        return dict(before or {}) | {f"{step}/{name}": value for name, value in to_arrays(found).items()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        from curate.models.checkpoints import from_arrays

        self._checkpoints = [from_arrays(_of(state, t)) for t in range(self.count)]

    # -- scoring -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._encode()
        if self._lm is not None:
            return
        from curate.models.gradients import GradientLM
        from curate.models.loading import set_threads, unload

        set_threads()
        unload(idle=True)
        if self._checkpoints is None and self.checkpoints is not None:
            from curate.models.checkpoints import read

            rates: list[float | None] = [*self.weights] if self.weights else [None] * self.count
            self._checkpoints = [
                read(folder, self.model, rate=rate) for folder, rate in zip(self.checkpoints, rates, strict=True)
            ]
        shapes = [checkpoint.lora for checkpoint in self._checkpoints or ()]
        if any(shape != shapes[0] for shape in shapes):
            raise ModelError(f"gradients: the checkpoints are adapters of different shapes: {shapes}.")
        lora = shapes[0] if shapes else None if self.layers is not None else self.lora or Lora()
        self._lm = GradientLM(
            self.model,
            lora=lora,
            layers=self.layers,
            dtype=self.dtype,
            device=self.device,
            batch_tokens=self.batch_tokens,
            seed=self.seed,
        )
        self._projection = Projection(self.dims, law=self.projection, seed=self.seed)

    def close(self) -> None:
        if self._lm is not None:
            self._lm.close()
        self._lm = None

    def describe(self) -> dict[str, str]:
        if self._lm is None:
            return {}
        if not self.trained:
            adapter = "no warm-up"
        elif self.checkpoints is not None:
            adapter = f"{self.count} checkpoints that were given"
        else:
            adapter = f"{self.count} epochs of warm-up"
        told = ", ".join(f"{k} {v}" for k, v in self._projection.describe().items())
        return {**self._lm.describe(), "template": self._encode().kind, "adapter": adapter, "projection": told}

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        lm = self._lm
        assert lm is not None
        rows, reasons, cut = self._rows(examples, lm.context)
        able = [i for i, reason in enumerate(reasons) if reason is None]
        pairs = [(rows[i].ids, rows[i].mask) for i in able]
        shares = self._shares()
        vectors = np.full((len(rows), self.dims * self.count), np.nan, dtype=np.float32)
        for t, share in enumerate(shares):
            adam = None
            if self._checkpoints is not None:
                lm.put(self._checkpoints[t].weights)
                adam = self._adam(t, self._checkpoints[t])
            found, why = lm.features(pairs, self._projection, adam)
            vectors[able, t * self.dims : (t + 1) * self.dims] = np.sqrt(share) * found
            for i, reason in zip(able, why, strict=True):
                reasons[i] = reasons[i] or reason
        tokens = np.array([int(row.mask.sum()) for row in rows], dtype=np.int64)
        out = {"vector": vectors, "tokens": tokens, "reason": reasons}
        return out | {"cut": cut} if self.long_rows == "truncate" else out

    def _shares(self) -> NDArray[np.float64]:
        """Return what each checkpoint counts, (T,), of sum 1."""
        weights = self.weights or [c.rate for c in self._checkpoints or ()] or [1.0]
        given = np.asarray(weights, dtype=np.float64)
        if not (np.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
            raise InputError(
                f"gradients: weights of at least 0, one of them above, were asked; found {given.tolist()}."
            )
        return given / given.sum()

    def _adam(self, t: int, checkpoint: Checkpoint) -> Adam | None:
        if self.side == "targets" or self.optimizer == "sgd":
            return None
        if t in self._steps:
            return self._steps[t]
        from curate.models.gradients import Adam

        if checkpoint.first is None or checkpoint.second is None:
            raise ModelError(
                "gradients: the optimizer's state was asked with each checkpoint, for Adam's step; one has none. Save "
                "it beside the adapter (Trainer does, as optimizer.pt), or ask for optimizer: sgd."
            )
        paper = self.optimizer == "adam-paper"
        own = self.warm_up
        trained_with = {} if own is None else {"beta1": own.beta1, "beta2": own.beta2, "eps": own.eps}
        self._steps[t] = Adam(
            checkpoint.first, checkpoint.second, inside_root=not paper, steps=checkpoint.steps, **trained_with
        )
        return self._steps[t]


def _of(state: Mapping[str, NDArray[Any]], t: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of checkpoint ``t``."""
    head = f"{t}/"
    return {name.removeprefix(head): value for name, value in state.items() if name.startswith(head)}
