"""The contracts, and the laws their implementations keep.  ``curate.testing`` checks each law on any subclass.

Parameters are dataclass fields: typed, documented one by one, checked when a recipe is read, and part of the stage's
fingerprint.  Building an object does no work; what is learned or loaded ends in ``_``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from curate.budget import Budget, Quota, cut, interleave
from curate.exceptions import InputError, StageError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column that a scorer writes."""

    name: str
    unit: str
    """What one unit of it is: "nats per token", "tokens", "share of characters"."""
    higher_is_better: bool | None = None
    """None where neither direction is better in itself (a length, a token count)."""
    dtype: str = "float64"
    """"float64" or "int64"; "float32[DIM]" for a feature vector."""


class Parameters:
    """Shared by every part that a recipe can name: its word, its version, its parameters."""

    name: ClassVar[str]
    """The word that recipes use: "likelihood"."""
    version: ClassVar[int] = 1
    """Raised whenever the same parameters would give other numbers; part of the fingerprint."""

    def params(self) -> dict[str, Any]:
        """Return the parameters, as given."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]

    def identity(self) -> dict[str, Any]:
        """Return what the numbers depend on besides the rows, as JSON: name, version, parameters.

        A scorer that reads a model adds the model's identity (revision, or a digest of its weights).
        """
        return {"name": self.name, "version": self.version, "params": self.params()}


class Scorer(Parameters, ABC):
    """A pure function of examples: one or more columns per example.

    Laws (``curate.testing.check_scorer``)
    --------------------------------------
    1. One value per row and column, in row order; the declared columns and no others.
    2. A row that cannot be scored is null in every column and has a reason; no stand-in values.  NaN is not a value:
       it becomes null with the reason "not a number".
    3. The rows that come along do not matter: any split into batches, and any order, gives each row the same value
       (exactly, or within the tolerance the scorer documents for a floating-point model).
    4. The examples are not changed, nor are the parameters by scoring.
    """

    reads: ClassVar[tuple[str, ...]] = ("messages",)
    """Columns of the example schema that it needs; only these are loaded."""
    resource: ClassVar[str] = "cpu"
    """"cpu", or "model" for a stage that holds a model (and takes a GPU where there is one)."""
    fit_rows: ClassVar[int] = 0
    """How many examples ``fit`` wants to see; 0 for a scorer that learns nothing."""

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """The columns it writes; the first is the one meant when only the stage is named."""

    @abstractmethod
    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        """Return one array-like per declared column, and optionally "reason" (str or None per row)."""

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        """Learn from at most ``fit_rows`` examples; return the state as named arrays.

        The pipeline fits once per run, on the examples with the smallest content keys (so that no sharding or order
        changes the sample), and hands the state to every worker by ``load``.
        """
        raise NotImplementedError(f"{type(self).__name__} learns nothing")

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a state that ``fit`` returned."""

    def open(self) -> None:
        """Load what scoring needs (a model).  Called once per worker before the first batch; calling twice is free."""

    def close(self) -> None:
        """Give back what ``open`` took."""

    @final
    def score(self, examples: pa.Table) -> pa.Table:
        """Score the examples; return the declared columns and "reason", one row per example.

        Raises
        ------
        InputError
            If a column that the scorer reads is missing.
        StageError
            If the subclass breaks law 1 (wrong columns or lengths).
        """
        import pyarrow as pa

        missing = [c for c in self.reads if c not in examples.column_names]
        if missing:
            raise InputError(f"{self.name} reads {missing}, which the examples lack; found {examples.column_names}.")
        self.open()
        raw = dict(self._score(examples)) if examples.num_rows else {c.name: [] for c in self.columns}
        given = raw.pop("reason", None)
        names = [c.name for c in self.columns]
        if set(raw) != set(names):
            raise StageError(f"{self.name}: columns {names} were declared, {sorted(raw)} were returned.")
        n = examples.num_rows
        reason = np.full(n, None, dtype=object)
        if given is not None:
            reason[:] = list(given)
        arrays: dict[str, pa.Array] = {}
        for column in self.columns:
            array = _as_arrow(raw[column.name], column, caller=self.name)
            if len(array) != n:
                raise StageError(f"{self.name}: {n} rows were asked, column {column.name!r} has {len(array)}.")
            arrays[column.name] = array
            for i in np.flatnonzero(np.asarray(array.is_null())):
                reason[i] = reason[i] or "not a number"
        unscored = np.array([r is not None for r in reason], dtype=bool)
        if unscored.any():  # law 2: null in one column, null in all
            mask = pa.array(~unscored)
            for key, array in arrays.items():
                arrays[key] = pa.compute.if_else(mask, array, pa.scalar(None, array.type))
        return pa.table({**arrays, "reason": pa.array(list(reason), pa.string())})


def _as_arrow(values: Any, column: Column, *, caller: str) -> pa.Array:
    """Return ``values`` as an Arrow array of the column's type; NaN and infinity become null."""
    import pyarrow as pa
    import pyarrow.compute  # noqa: F401  (pa.compute)

    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if column.dtype.startswith("float32["):
        dim = int(column.dtype[len("float32[") : -1])
        matrix = np.ascontiguousarray(np.asarray(values, dtype=np.float32).reshape(-1, dim))
        bad = ~np.isfinite(matrix).all(axis=1)
        flat = pa.array(matrix.reshape(-1), pa.float32())
        return pa.FixedSizeListArray.from_arrays(flat, dim, mask=pa.array(bad))
    try:
        array = values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
        array = array.cast({"float64": pa.float64(), "int64": pa.int64()}[column.dtype])
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise StageError(f"{caller}: column {column.name!r} was declared {column.dtype}: {error}") from error
    if column.dtype == "float64":
        finite = pa.compute.is_finite(array)
        array = pa.compute.if_else(pa.compute.fill_null(finite, False), array, pa.scalar(None, pa.float64()))
    return array


@dataclass(frozen=True)
class Ranking:
    """What a selector's hook returns: rows in order of choice, before any quota or budget."""

    order: NDArray[np.int64]
    """Row numbers, each once; rows that may not be chosen at all are left out."""
    basis: NDArray[np.float64] | None = None
    """(n,) the number by which each row was judged, for the ledger."""
    basis_name: str = "score"
    descending: bool = True
    """Whether a higher basis comes earlier."""
    labels: NDArray[np.int64] | None = None
    """(n,) a cluster or candidate group of each row, for the ledger."""
    gains: NDArray[np.float64] | None = None
    """(len(order),) marginal gain of each choice, where the selector has an objective."""
    why_not: str | None = None
    """Reason for rows that the order leaves out."""


@dataclass(frozen=True)
class Selection:
    """What was chosen, in order of choice, and by what measure."""

    indices: NDArray[np.int64]
    """(k,) distinct row numbers, in order of choice."""
    n: int
    """Rows in the pool."""
    basis: NDArray[np.float64] | None = None
    """(n,) the number by which each row was judged."""
    basis_name: str = "score"
    threshold: float | None = None
    """Basis of the last row kept, where one threshold separates kept from dropped; None otherwise."""
    labels: NDArray[np.int64] | None = None
    gains: NDArray[np.float64] | None = None
    excluded: NDArray[np.bool_] | None = None
    """(n,) rows that could not be chosen under any budget, because of ``why_not``."""
    why_not: str | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(n,) True where a row was chosen."""
        mask = np.zeros(self.n, dtype=bool)
        mask[self.indices] = True
        return mask

    def __len__(self) -> int:
        return self.indices.size


@dataclass(frozen=True)
class Inputs:
    """The arrays of one selection, checked: what a selector's hook receives."""

    n: int
    x: NDArray[Any] | None
    quality: NDArray[np.float64] | None
    groups: NDArray[np.int64] | None
    group_names: list[str]
    cost: NDArray[np.float64] | None


class Selector(Parameters, ABC):
    """Chooses rows of a pool.  Pure arrays: no files, no model, no Dask.

    Laws (``curate.testing.check_selector``)
    ----------------------------------------
    1. ``k`` distinct rows in order of choice.  2. If ``nested``, the choice of j is the first j of the choice of k.
    3. Ties go to the lowest row.  4. The inputs are not written to.  5. The same inputs and seed give the same choice.
    """

    nested: ClassVar[bool] = True
    x_name: ClassVar[str] = "scores"
    """What ``x`` is: "scores" (n,), "features" (n, d) or "nothing" (only its length counts)."""
    needs_groups: ClassVar[bool] = False

    @abstractmethod
    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        """Return at least the first ``k`` rows in order of choice (all rows, if ``nested``)."""

    @final
    def select(
        self,
        x: NDArray[Any] | int,
        k: Budget | int | str | None = None,
        *,
        quality: NDArray[np.float64] | None = None,
        groups: NDArray[Any] | None = None,
        cost: NDArray[Any] | None = None,
        quota: Quota | None = None,
        quota_groups: NDArray[Any] | None = None,
    ) -> Selection:
        """Choose rows within a budget.

        Parameters
        ----------
        x : array (n,) or (n, d), or the number n where the selector looks at no numbers.
        k : rows, "10%", "50M tokens" or a ``Budget``; None keeps every row that the selector would keep.
        quality : float array (n,), higher is better, for selectors that weigh rows.
        groups : array (n,) of labels that the selector itself works by (prompts, clusters).
        cost : array (n,), tokens of each row, for a budget in tokens.
        quota, quota_groups : shares and the labels (n,) they are over (a source, a task); see ``curate.Quota``.

        Raises
        ------
        InputError
            For arrays of unequal length, NaN or infinite values, a missing input, or a budget that the pool cannot fill.
        """
        caller = type(self).__name__
        n = int(x) if isinstance(x, (int, np.integer)) else len(x)
        numbers = None if isinstance(x, (int, np.integer)) else np.asarray(x)
        if numbers is None and self.x_name != "nothing":
            raise InputError(f"{caller}: an array of {self.x_name} was asked, the number {x} was found.")
        if numbers is not None and self.x_name != "nothing":
            numbers = _check_numbers(numbers, self.x_name, n, ndim=2 if self.x_name == "features" else 1, caller=caller)
        labels, names = _labels(groups, n, "groups", caller=caller)
        if self.needs_groups and labels is None:
            raise InputError(f"{caller}: needs groups=, one label a row.")
        inputs = Inputs(
            n=n,
            x=numbers,
            quality=None if quality is None else _check_numbers(quality, "quality", n, ndim=1, caller=caller),
            groups=labels,
            group_names=names,
            cost=None if cost is None else _check_cost(cost, n, caller=caller),
        )
        budget = None if k is None else Budget.parse(k)
        limit = None if budget is None else budget.limit(n)
        if limit is not None and limit > n:
            raise InputError(f"{caller}: k={limit} rows asked of a pool of n={n}; lower k, or widen the pool.")
        ranking = self._rank(inputs, n if limit is None or quota is not None else limit)
        order = ranking.order
        if quota is not None:
            of, quota_names = _labels(quota_groups, n, "quota_groups", caller=caller)
            if of is None:
                raise InputError(f"{caller}: a quota needs quota_groups=, one label a row.")
            cost_of = inputs.cost if budget is not None and budget.tokens is not None else None
            weight = np.bincount(of, weights=cost_of, minlength=len(quota_names)).astype(np.float64)
            shares = quota.weights(quota_names, weight)
            order = order[interleave(of[order], shares, None if cost_of is None else cost_of[order])]
        kept = order.size if budget is None else cut(order, budget, n, inputs.cost, caller=caller)
        excluded = np.ones(n, dtype=bool)
        excluded[order] = False
        indices = np.ascontiguousarray(order[:kept], dtype=np.int64)
        threshold = None
        if ranking.basis is not None and quota is None and kept and ranking.labels is None:
            threshold = float(ranking.basis[indices[-1]])
        return Selection(
            indices=indices,
            n=n,
            basis=ranking.basis,
            basis_name=ranking.basis_name,
            threshold=threshold,
            labels=ranking.labels,
            gains=None if ranking.gains is None or quota is not None else ranking.gains[:kept],
            excluded=excluded if self.nested or budget is None else None,
            why_not=ranking.why_not,
        )


def _check_numbers(values: Any, what: str, n: int, *, ndim: int, caller: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != ndim:
        raise InputError(f"{caller}: {what} of {ndim} dimension(s) was asked, shape {array.shape} was found.")
    if len(array) != n:
        raise InputError(f"{caller}: {what} has {len(array)} rows, the pool has {n}.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{caller}: {what} must be numbers, dtype {array.dtype} was found.")
    if ndim == 1:
        array = array.astype(np.float64)
    # Row blocks: a memory-mapped feature matrix is never copied whole just to look for NaN.
    block = max(1, 2**24 // max(1, array[:1].size))
    for start in range(0, n, block):
        finite = np.isfinite(array[start : start + block]).reshape(min(block, n - start), -1).all(axis=1)
        if not finite.all():
            first = start + int(np.argmin(finite))
            raise InputError(f"{caller}: {what} holds NaN or infinity, first at row {first} of {n}; drop or score those rows first.")
    return array


def _check_cost(cost: Any, n: int, *, caller: str) -> NDArray[np.float64]:
    array = _check_numbers(cost, "cost", n, ndim=1, caller=caller)
    if n and array.min() < 0:
        raise InputError(f"{caller}: cost is below 0 at row {int(array.argmin())}; a row's tokens are 0 or more.")
    return array


def _labels(labels: Any, n: int, what: str, *, caller: str) -> tuple[NDArray[np.int64] | None, list[str]]:
    if labels is None:
        return None, []
    array = np.asarray(labels)
    if array.shape != (n,):
        raise InputError(f"{caller}: {what} must be one label a row, ({n},); found shape {array.shape}.")
    if array.dtype == object:
        array = np.array(["" if v is None else str(v) for v in array])
    names, codes = np.unique(array, return_inverse=True)
    return codes.astype(np.int64).reshape(n), [v.hex() if isinstance(v, bytes) else str(v) for v in names.tolist()]


@dataclass(frozen=True)
class Corrections:
    """What a corrector did to a batch: old and new travel together."""

    messages: pa.Array
    """The messages after correction, one list per row, in row order."""
    changed: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    """In [0, 1]; NaN where nothing changed."""
    rule: list[str | None]


class Corrector(Parameters, ABC):
    """Rewrites responses.  Laws: a second pass changes nothing; a row it cannot mend comes back as it was."""

    @abstractmethod
    def correct(self, examples: pa.Table) -> Corrections: ...


class Connector(Parameters, ABC):
    """Reads and writes a place or a format.

    Laws: write then read gives the same rows, order and types; ids are unique; a crash leaves no half-written file.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read(self, path: str) -> Iterator[list[tuple[int, Any]]]:
        """Yield batches of (row number, row as a mapping, or the error text that made it unreadable)."""
