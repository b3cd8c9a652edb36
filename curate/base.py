"""The contracts, and the laws their implementations keep.  ``curate.testing`` checks each law on any subclass.

Parameters are dataclass fields: typed, documented one by one, checked when a recipe is read, and part of the stage's
fingerprint.  Building an object does no work; what is learned or loaded ends in ``_``.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

from curate.budget import Budget, Quota, afford, balance, cut
from curate.exceptions import InputError, StageError
from curate.inputs import check_cost, check_numbers, check_pool, codes_of
from curate.selection import Ranking, Selection

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
    """"float64" or "int64"; "string" for a label or evidence; "float32[DIM]", "float16[DIM]" or another kind of number
    in its place, "uint32[DIM]", for a feature vector."""

    @property
    def vector(self) -> tuple[np.dtype[Any], int] | None:
        """Type and length of a feature vector; None for a score."""
        kind, bracket, dim = self.dtype.partition("[")
        return (np.dtype(kind), int(dim[:-1])) if bracket else None

    @property
    def label(self) -> bool:
        """Whether it can tell groups of rows: a text or a whole number."""
        return self.dtype in ("string", "int64")


class Parameters:
    """Shared by every part that a recipe can name: its word, its version, its parameters."""

    name: ClassVar[str]
    """The word that recipes use: "likelihood"."""
    version: ClassVar[int] = 1
    """Raised whenever the same parameters would give other numbers; part of the fingerprint."""

    reference: ClassVar[str | None] = None
    """The work that the method is from, on one line, for citing it: "Hu et al. 2025, *Title* (arXiv:…)"."""
    neutral: ClassVar[tuple[str, ...]] = ()
    """Parameters that change no number beyond the tolerance (a device, a batch size): left out of the fingerprint."""

    def params(self) -> dict[str, Any]:
        """Return the parameters, as given."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]

    def identity(self) -> dict[str, Any]:
        """Return what the numbers depend on besides the rows, as JSON: name, version, parameters that are not neutral.

        A scorer that reads a model adds the model's identity (revision, or a digest of its weights).
        """
        params = {key: value for key, value in self.params().items() if key not in self.neutral}
        return {"name": self.name, "version": self.version, "params": params}

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the parameters: a worker loads and opens for itself what was learned or loaded here."""
        return functools.partial(type(self), **self.params()), ()


class Scorer(Parameters, ABC):
    """A pure function of examples: one or more columns per example.

    Laws (``curate.testing.check_scorer``)
    --------------------------------------
    1. One value per row and column, in row order; the declared columns and no others.
    2. A row that cannot be scored is null in every column and has a reason; no stand-in values.  NaN is not a value:
       it becomes null with the reason "not a number".
    3. The rows that come along do not matter: any split into batches, and any order, gives each row the same value
       (exactly, or within ``tolerance`` for a floating-point model).
    4. The examples are not changed, nor are the parameters by scoring.
    """

    reads: ClassVar[tuple[str, ...]] = ("messages",)
    """Columns of the example schema that it needs; only these are loaded."""
    resource: ClassVar[str] = "cpu"
    """"cpu", or "model" for a stage that holds a model (and takes a GPU where there is one)."""
    fit_rows: ClassVar[int] = 0
    """How many examples ``fit`` wants to see; 0 for a scorer that learns nothing."""
    fits_on: ClassVar[Literal["pool", "targets", "both", "benchmarks", "kept"]] = "pool"
    """Whose examples it learns from: the pool's, those of the recipe's targets, both, those of its benchmarks, or the
    rows of the pool that the selection has kept where a correction uses it.

    Targets and benchmarks tell in "group" which set a row is of (null for a row of the pool); of targets "drawn" says
    whether a row is one of those that count, as many of each set."""
    of: str | None = None
    """The stage whose vectors it reads, as a column "vector" of the examples; or whose column ``takes`` it reads."""
    takes: ClassVar[str] = "vector"
    """What it reads of that stage: "vector", or a column of it, which is then one more column of the examples."""
    evidence: ClassVar[str | None] = None
    """The text column that is told with the reason where a step drops a row by a score of this scorer."""

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """The columns it writes; the first is the one meant when only the stage is named."""

    @property
    def tolerance(self) -> float:
        """How far the rows that come along may move a value v (law 3), in units of max(1, |v|); 0 where they do not."""
        return 0.0

    @abstractmethod
    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        """Return one array-like per declared column, and optionally "reason" (str or None per row).

        A row that cannot be scored is None or NaN, or anything at all where it has a reason.  A feature vector's column
        is an array (n, DIM).  There is at least one example.
        """

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        """Learn from at most ``fit_rows`` examples; return the state as named arrays.

        The pipeline fits once per run, on the examples that ``fit_sample`` names by the order of their content keys (so
        that no sharding or order of files changes the sample), and hands the state to every worker by ``load``.
        """
        raise NotImplementedError(f"{type(self).__name__} learns nothing")

    def fit_sample(self, n: int) -> NDArray[np.int64]:
        """Return which of n examples, in order of their content keys, ``fit`` is to see: the first ``fit_rows``."""
        return np.arange(min(n, self.fit_rows))

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a state that ``fit`` returned."""

    @property
    def fit_steps(self) -> int:
        """How many steps ``fit`` takes, each of which a run keeps: 1, but for a training of several epochs."""
        return 1

    def fit_step(
        self, step: int, sample: pa.Table, before: Mapping[str, NDArray[Any]] | None
    ) -> dict[str, NDArray[Any]]:
        """Return the state after ``step`` (from 0), given the one before; after the last it is what ``fit`` returns."""
        return self.fit(sample)

    def open(self) -> None:
        """Load what scoring needs (a model).  Called once per worker before the first batch; calling twice is free."""

    def close(self) -> None:
        """Give back what ``open`` took."""

    def describe(self) -> dict[str, str]:
        """Return what produced the numbers, once opened, for the manifest: an engine, its version, its type."""
        return {}

    def for_targets(self) -> Scorer:
        """Return the scorer that looks at targets, where their vectors are made in another way than the pool's."""
        return self

    def check(self) -> None:
        """Raise CurateError if scoring cannot work here: asked once, before a run starts.  Loads no model."""

    @property
    def passes(self) -> tuple[str, ...]:
        """Name what it goes over once each, for estimates: two passes take twice the time of one."""
        return ("rows",)

    def shared_work(self) -> str | None:
        """Name the work that equal scorers would do twice, such as one forward pass; None where there is none.

        Stages of a run that give the same name are scored together, by one call of ``score_together``.
        """
        return None

    @classmethod
    def score_together(cls, scorers: Sequence[Scorer], examples: pa.Table) -> list[pa.Table]:
        """Return what ``score`` of each would, the work that they share done once.

        All of them are opened and give one ``shared_work``; the first one's class is asked.
        """
        return [scorer.score(examples) for scorer in scorers]

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
        missing = [c for c in self.reads if c not in examples.column_names]
        if missing:
            raise InputError(f"{self.name} reads {missing}, which the examples lack; found {examples.column_names}.")
        n = examples.num_rows
        if n:
            self.open()
        return self.table(self._score(examples) if n else dict.fromkeys((c.name for c in self.columns), ()), n)

    @final
    def table(self, raw: Mapping[str, Any], n: int) -> pa.Table:
        """Return what ``_score`` gave for ``n`` rows as a table, with the laws applied.

        Raises
        ------
        StageError
            If it breaks law 1 (wrong columns or lengths).
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        names = [c.name for c in self.columns]
        raw = dict(raw)
        given = raw.pop("reason", None)
        if set(raw) != set(names):
            raise StageError(f"{self.name}: columns {names} were declared, {sorted(raw)} were returned.")
        arrays = [_as_arrow(raw[column.name], column, caller=self.name) for column in self.columns]
        reason = [None] * n if given is None else _as_list(given)
        for what, length in [*zip(names, map(len, arrays), strict=True), ("reason", len(reason))]:
            if length != n:
                raise StageError(f"{self.name}: {n} rows were asked, column {what!r} has {length}.")
        null = np.zeros(n, dtype=bool)
        for array in arrays:
            null |= array.is_null().to_numpy(zero_copy_only=False)
        for i in np.flatnonzero(null):
            reason[i] = reason[i] or "not a number"
        reasons = pa.array(reason, pa.string())
        if reasons.null_count < n:  # law 2: null in one column, null in all
            scored = reasons.is_null()
            arrays = [pc.if_else(scored, array, pa.scalar(None, array.type)) for array in arrays]
        return pa.table([*arrays, reasons], names=[*names, "reason"])


def _as_list(values: Any) -> list[Any]:
    """Return Python values; iterating an Arrow array would give scalars, of which a null one is not None."""
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def _as_arrow(values: Any, column: Column, *, caller: str) -> pa.Array:
    """Return ``values`` as an Arrow array of the column's type; NaN and infinity become null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.vector is not None:
        return _as_vectors(values, column, *column.vector, caller=caller)
    if column.dtype == "string":
        try:
            return pa.array(_as_list(values), pa.string())
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise StageError(f"{caller}: column {column.name!r} was declared string: {error}") from error
    try:
        array = pa.array(_as_list(values) if isinstance(values, pa.ChunkedArray) else values, from_pandas=True)
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            raise pa.ArrowTypeError("text was returned")  # the cast below would read numbers out of it
        array = array.cast({"float64": pa.float64(), "int64": pa.int64()}[column.dtype])
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise StageError(f"{caller}: column {column.name!r} was declared {column.dtype}: {error}") from error
    if column.dtype == "float64":
        array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, pa.float64()))
    return array


def _as_vectors(values: Any, column: Column, kind: np.dtype[Any], dim: int, *, caller: str) -> pa.Array:
    import pyarrow as pa

    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and null
        matrix = np.asarray(values).astype(kind, copy=False) if len(values) else np.empty((0, dim), dtype=kind)
    if matrix.shape[1:] != (dim,):
        raise StageError(
            f"{caller}: column {column.name!r} was declared {column.dtype}, shape {matrix.shape} was returned."
        )
    bad = ~np.isfinite(matrix).all(axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), dim, mask=pa.array(bad))


Learn = Callable[[int, NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""Called with the number of a round (from 0), all rows chosen so far and those of them that are asked about; returns a
number for each of these: how much more there is to learn from rows like it; NaN where that cannot be told."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arrays of one selection, checked: what a selector's hook receives.  They may be read-only."""

    n: int
    x: NDArray[Any] | None
    """Scores, float64 (n,), or features as they were given, (n, d); None where only the length was given."""
    quality: NDArray[np.float64] | None
    groups: NDArray[np.int64] | None
    """(n,) codes into ``group_names``."""
    group_names: list[str]
    cost: NDArray[np.float64] | None
    """(n,) tokens of each row if the budget is in tokens, else None: what the budget is shared out by."""
    limits: NDArray[np.int64] | None = None
    """(n,) how many rows of its own group each row's group may keep."""
    learn: Learn | None = None
    """What a selector of several rounds learns from between them."""


class Selector(Parameters, ABC):
    """Chooses rows of a pool.  Pure arrays: no files, no model, no Dask.

    Laws (``curate.testing.check_selector``)
    ----------------------------------------
    1. ``k`` distinct rows in order of choice.
    2. If ``nested``, the choice of j is the first j of the choice of k.
    3. Ties go to the lowest row.
    4. The inputs are not written to, nor are the parameters.
    5. The same inputs and seed give the same choice, whatever was selected before and however many threads there are.
    """

    nested: ClassVar[bool] = True
    x_name: ClassVar[str] = "scores"
    """What ``x`` is: "scores" (n,), "features" (n, d) or "nothing" (only its length counts)."""
    codes: ClassVar[bool | None] = False
    """Whether features are codes, whole numbers that are equal or not (digests, signatures); None: either will do."""
    needs_groups: ClassVar[bool] = False
    needs_quality: ClassVar[bool] = False
    """Whether rows are taken by ``quality``, so that it cannot be left out."""
    needs_learner: ClassVar[bool] = False
    """Whether it works in rounds, between which ``learn`` is called."""
    leaves_out_nan: ClassVar[bool] = False
    """Whether a row of ``x`` that is NaN throughout is left out, with a reason; else it is refused, as any NaN is."""

    @property
    def limits_from(self) -> str | None:
        """The source whose rows of each group say how many the group may keep: a run counts them, for ``limits``."""
        return None

    @abstractmethod
    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        """Return at least the first ``k`` rows in order of choice.

        If ``nested``: all rows that may be chosen, in the order or, where it stops at k, in ``Ranking.beyond``.
        """

    @final
    def select(
        self,
        x: NDArray[Any] | int,
        k: Budget | int | str | None = None,
        *,
        quality: NDArray[np.float64] | None = None,
        groups: NDArray[Any] | None = None,
        limits: NDArray[Any] | None = None,
        cost: NDArray[Any] | None = None,
        quota: Quota | None = None,
        quota_groups: NDArray[Any] | None = None,
        learn: Learn | None = None,
    ) -> Selection:
        """Choose rows within a budget: order (the selector), balance (the quota), cut (the budget).

        Parameters
        ----------
        x : array (n,) or (n, d), or the number n where the selector looks at no numbers.
        k : rows, "10%", "50M tokens" or a ``Budget``; None keeps every row that the selector would keep.
        quality : float array (n,), higher is better, for selectors that weigh rows.
        groups : array (n,) of labels that the selector itself works by (prompts).
        limits : array (n,) of whole numbers, how many rows of its group a row's group may keep, for selectors that ask.
        cost : array (n,), tokens of each row, for a budget in tokens.
        quota, quota_groups : shares and the labels (n,) they are over (a source, a task), as an array or an Arrow
            dictionary array; see ``curate.Quota``.
        learn : called between the rounds of a selector that works in several; see ``Learn``.

        Raises
        ------
        InputError
            For arrays of unequal length, NaN or infinite values, a missing input, or a budget that the pool cannot
            fill.  All of it but the last is found before the selector starts to work.
        """
        caller = type(self).__name__
        numbers, n = check_pool(x, self.x_name, self.leaves_out_nan, caller=caller)
        labels, names = codes_of(groups, n, "groups", caller=caller)
        if self.needs_groups and labels is None:
            raise InputError(f"{caller}: needs groups=, one label a row.")
        if self.needs_quality and quality is None:
            raise InputError(f"{caller}: needs quality=, the score by which rows are taken, higher first.")
        if self.needs_learner and learn is None:
            raise InputError(f"{caller}: needs learn=, what is to be learned from between its rounds.")
        if limits is not None:
            limits = check_numbers(limits, "limits", n, ndim=1, caller=caller).astype(np.int64)
        if quality is not None:
            quality = check_numbers(quality, "quality", n, ndim=1, caller=caller)
        costs = None if cost is None else check_cost(cost, n, caller=caller)
        budget = None if k is None else Budget.parse(k)
        if budget is None or budget.tokens is None:
            costs = None
        if budget is not None:
            afford(budget, n, None, costs, caller=caller)
        of, quota_names = codes_of(quota_groups, n, "quota_groups", caller=caller)
        shares = None
        if quota is not None:
            if of is None:
                raise InputError(f"{caller}: a quota needs quota_groups=, one label a row.")
            held = np.bincount(of, costs, len(quota_names)).astype(np.float64)
            shares = quota.weights(quota_names, held)
            quota.amounts(quota_names, shares, held, budget, n, caller=caller)  # what can never be met is found early

        limit = None if budget is None or quota is not None else budget.limit(n)
        inputs = Inputs(
            n=n,
            x=numbers,
            quality=quality,
            groups=labels,
            group_names=names,
            cost=costs,
            limits=limits,
            learn=learn,
        )
        reach = n if limit is None else limit
        if costs is not None and quota is None:  # one row more than any order can pay for
            assert budget is not None and budget.tokens is not None
            reach = min(n, 1 + int(np.searchsorted(np.cumsum(np.sort(costs)), budget.tokens, side="right")))
        ranking = self._rank(inputs, reach)

        order = np.ascontiguousarray(ranking.order, dtype=np.int64)
        strata = strata_names = no_share = None
        account = ranking.account
        if quota is not None and shares is not None:
            assert of is not None
            shared = balance(quota, order, of, quota_names, shares, budget, costs, caller=caller)
            order, kept = shared.order, shared.size
            strata, strata_names, no_share = of, shared.names, shared.no_share
            if shared.account is not None:
                account = (account or {}) | {"quota": shared.account}
        else:
            kept = order.size if budget is None else cut(order, budget, n, costs, caller=caller)
        if shares is None and ranking.labels is not None:
            values, strata = np.unique(ranking.labels, return_inverse=True)
            strata_names = [f"cluster {value}" for value in values]
        excluded = np.zeros(n, dtype=bool)
        if self.nested or reach == n:  # else the order ends where the budget does, and says nothing of other rows
            excluded[:] = True if ranking.beyond is None else ~ranking.beyond
            excluded[order] = False
        return Selection(
            order=order,
            size=kept,
            n=n,
            basis=ranking.basis,
            basis_name=ranking.basis_name,
            descending=ranking.descending,
            labels=ranking.labels,
            gains=None if ranking.gains is None or quota is not None else ranking.gains[:kept],
            excluded=excluded,
            why_not=ranking.why_not,
            which=ranking.which,
            bound=ranking.bound,
            strata=strata,
            strata_names=strata_names or [],
            no_share=no_share,
            instead=ranking.instead,
            account=account,
        )


class Connector(Parameters, ABC):
    """Reads and writes a place or a format.

    Laws: write then read gives the same rows, order and types; ids are unique; a crash leaves no half-written file.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read(self, path: str) -> Iterator[list[tuple[int, Any]]]:
        """Yield batches of (row number, row as a mapping, or the error text that made it unreadable)."""
