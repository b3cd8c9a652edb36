"""The contracts, and the laws their implementations keep.  ``curate.testing`` checks each law on any subclass.

Parameters are dataclass fields: typed, documented one by one, checked when a recipe is read, and part of the stage's
fingerprint.  Building an object does no work; what is learned or loaded ends in ``_``.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

from curate.budget import Budget, Quota, afford, balance, cut
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
    fits_on: ClassVar[Literal["pool", "targets", "both", "benchmarks"]] = "pool"
    """Whose examples it learns from: the pool's, those of the recipe's targets, both, or those of its benchmarks.

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


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a selector's hook returns: rows in order of choice, before any quota or budget."""

    order: NDArray[np.int64]
    """Row numbers, each once; rows that may not be chosen at all are left out."""
    basis: NDArray[np.float64] | None = None
    """(n,) the number by which each row was judged, for the ledger."""
    basis_name: str = "score"
    descending: bool | None = True
    """True if the order goes from a high basis to a low one, False if from low to high; None if it does not follow the
    basis (a draw), so that no threshold can be told."""
    labels: NDArray[np.int64] | None = None
    """(n,) the cluster of each row, for a selector that shares the budget out among clusters."""
    gains: NDArray[np.float64] | None = None
    """(len(order),) marginal gain of each choice, where the selector has an objective."""
    why_not: str | list[str] | None = None
    """Reason for the rows that the order leaves out; or several, and ``which`` says which."""
    which: NDArray[np.int64] | None = None
    """(n,) number of each row's reason among several; of no meaning for rows in the order."""
    beyond: NDArray[np.bool_] | None = None
    """(n,) True for rows left out only because the order ends where the budget does, where each place in it is work."""
    bound: float | None = None
    """The basis at which the left-out rows were turned away, where there is one such number."""
    instead: NDArray[np.int64] | None = None
    """(n,) for a row that the order leaves out, the row that stands for it; -1 for the others."""
    account: dict[str, Any] | None = None
    """What there is to tell of the choice as a whole, as JSON: an objective, how many groups were found."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen, in order of choice, and why each of the other rows was not.

    The ledger takes ``basis``, ``thresholds``, ``labels``, ``place`` and ``reasons()``: an array each, a value a row.
    """

    order: NDArray[np.int64]
    """Rows in order of choice; the first ``size`` were chosen, the others come after the end of the budget."""
    size: int
    """Rows chosen, k."""
    n: int
    """Rows in the pool."""
    basis: NDArray[np.float64] | None = None
    """(n,) the number by which each row was judged."""
    basis_name: str = "score"
    descending: bool | None = True
    """Direction in which the order follows the basis; None where it does not."""
    labels: NDArray[np.int64] | None = None
    """(n,) the cluster of each row."""
    gains: NDArray[np.float64] | None = None
    """(k,) marginal gain of each choice."""
    excluded: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))
    """(n,) rows that no budget could choose: the selector leaves them out, or a quota gives their group no share."""
    why_not: str | list[str] | None = None
    """Why the selector left rows out."""
    which: NDArray[np.int64] | None = None
    """(n,) which of several such reasons is each row's."""
    bound: float | None = None
    """The basis at which they were turned away, where there is one."""
    strata: NDArray[np.int64] | None = None
    """(n,) the quota group (or, without a quota, the cluster) among which the budget was shared out."""
    strata_names: list[str] = field(default_factory=list)
    no_share: NDArray[np.bool_] | None = None
    """(number of strata,) True where a quota gives the group no share."""
    instead: NDArray[np.int64] | None = None
    """(n,) the row that stands for one that was left out as its copy; -1 for the others."""
    account: dict[str, Any] | None = None
    """What the selector tells of the choice as a whole."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """(k,) distinct row numbers, in order of choice."""
        return self.order[: self.size]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(n,) True where a row was chosen."""
        mask = np.zeros(self.n, dtype=bool)
        mask[self.indices] = True
        return mask

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """(n,) place of each row in the order of choice, from 0; -1 for a row that is not in it."""
        place = np.full(self.n, -1, dtype=np.int64)
        place[self.order] = np.arange(self.order.size)
        return place

    @property
    def threshold(self) -> float | None:
        """The one number that separates kept from dropped, in the unit of the basis; None where there is none.

        Where a budget cut an order that follows the basis: the basis of the last row kept.  Where nothing was cut: the
        bound of a selector that has one.  None for draws, and under a quota (each group has its own: ``thresholds``).
        """
        if self.size == self.order.size:
            return self.bound
        if self.basis is None or self.descending is None or self.strata is not None or not self.size:
            return None
        return float(self.basis[self.order[self.size - 1]])

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """(n,) what each row's basis was held against; NaN where that is nothing.

        For rows that the selector left out, its bound; for the others, where a budget cut an order that follows the
        basis, the basis of the last row kept (of their own group, under a quota).
        """
        out = np.full(self.n, np.nan)
        if self.basis is not None and self.descending is not None and self.size < self.order.size:
            out[self.order] = self._last_kept()[self.order]
        if self.bound is not None:
            out[self.excluded if self.size < self.order.size else slice(None)] = self.bound
        return out

    def _last_kept(self) -> NDArray[np.float64]:
        """(n,) basis of the last row kept in each row's stratum; NaN where none was kept."""
        assert self.basis is not None
        strata = np.zeros(self.n, dtype=np.int64) if self.strata is None else self.strata
        last = np.full(int(strata.max(initial=0)) + 1, np.nan)
        last[strata[self.indices]] = self.basis[self.indices]  # assigned in order of choice: the last one stays
        return last[strata]

    def reasons(self) -> NDArray[np.object_]:
        """(n,) why each row was not chosen, None where it was."""
        codes, texts = self.coded_reasons()
        return np.array([*texts, None], dtype=object)[codes]

    def coded_reasons(self) -> tuple[NDArray[np.int32], list[str]]:
        """Return why each row was not chosen as (n,) numbers into a list of texts; -1 where it was.

        Few distinct texts (a handful, or one or two a group), so that the column compresses; the numbers of a single
        row stand in ``basis``, ``thresholds`` and ``place``.
        """
        out = np.full(self.n, -1, dtype=np.int32)
        texts: list[str] = []

        def code(*words: str) -> NDArray[np.int32]:
            texts.extend(words)
            return np.arange(len(texts) - len(words), len(texts), dtype=np.int32)

        left_out = np.ones(self.n, dtype=bool)
        left_out[self.order] = False
        out[left_out] = code("after the last row kept, in the order of choice")
        turned_away = left_out & self.excluded
        why = self.why_not if isinstance(self.why_not, list) else [self.why_not or "left out by the selector"]
        out[turned_away] = code(*why)[0 if self.which is None else self.which[turned_away]]
        if self.no_share is not None:
            assert self.strata is not None
            for stratum in np.flatnonzero(self.no_share):
                out[self.strata == stratum] = code(f"{self.strata_names[stratum]} has no share in the quota")
        past = self.order[self.size :]
        below = "below" if self.descending else "above"
        follows = self.basis is not None and self.descending is not None
        of = "the" if self.strata is None else "its"
        if not follows:
            words = ["after the last row kept, in the order of choice"]
            which = np.zeros(past.size, dtype=np.int8)
        else:
            assert self.basis is not None
            words = [
                f"{self.basis_name} {below} that of {of} last row kept",
                f"{self.basis_name} equal to that of {of} last row kept, which stands earlier in the pool",
            ]
            which = (self.basis[past] == self._last_kept()[past]).astype(np.int8)
        if self.strata is None:
            out[past] = code(*words)[which] if self.size else code("the budget keeps no row")
            return out, texts
        sizes = np.bincount(self.strata[self.order], minlength=len(self.strata_names))
        kept = np.bincount(self.strata[self.indices], minlength=len(self.strata_names))
        numbers = np.empty((len(self.strata_names), len(words)), dtype=np.int32)
        for s, name in enumerate(self.strata_names):
            head = f"{name}, {kept[s]:,} of {sizes[s]:,} kept: "
            numbers[s] = code(*(head + word for word in words)) if kept[s] else code(head + "no place fell to it")
        out[past] = numbers[self.strata[past], which]
        return out, texts

    def explain(self, row: int) -> str:
        """Say in one sentence what became of a row, with its numbers.  O(n): for a person, not for a million rows."""
        place, basis = int(self.place[row]), "" if self.basis is None else f"{self.basis_name} {self.basis[row]:.6g}"
        if 0 <= place < self.size:
            why = f"chosen, place {place + 1:,} of {self.size:,}"
        else:
            limit = self.thresholds[row]
            against = "" if np.isnan(limit) else f", the limit is {limit:.6g}"
            why = f"not chosen: {self.reasons()[row]}{against}"
        if self.strata is not None and place >= 0:
            stratum = self.strata[row]
            ahead = int((self.strata[self.order[:place]] == stratum).sum())
            total = int((self.strata[self.order] == stratum).sum())
            why += f"; {self.strata_names[stratum]}, place {ahead + 1:,} of {total:,}"
        return f"row {row}: {why}" + (f" ({basis})." if basis else ".")

    def __len__(self) -> int:
        return self.size


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
        numbers, n = _pool(x, self.x_name, self.leaves_out_nan, caller=caller)
        labels, names = _labels(groups, n, "groups", caller=caller)
        if self.needs_groups and labels is None:
            raise InputError(f"{caller}: needs groups=, one label a row.")
        if self.needs_quality and quality is None:
            raise InputError(f"{caller}: needs quality=, the score by which rows are taken, higher first.")
        if self.needs_learner and learn is None:
            raise InputError(f"{caller}: needs learn=, what is to be learned from between its rounds.")
        if limits is not None:
            limits = _check_numbers(limits, "limits", n, ndim=1, caller=caller).astype(np.int64)
        if quality is not None:
            quality = _check_numbers(quality, "quality", n, ndim=1, caller=caller)
        costs = None if cost is None else _check_cost(cost, n, caller=caller)
        budget = None if k is None else Budget.parse(k)
        if budget is None or budget.tokens is None:
            costs = None
        if budget is not None:
            afford(budget, n, None, costs, caller=caller)
        of, quota_names = _labels(quota_groups, n, "quota_groups", caller=caller)
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


def _pool(x: Any, x_name: str, nan_rows: bool, *, caller: str) -> tuple[NDArray[Any] | None, int]:
    """Return the checked array (None if only the length counts) and the number of rows."""
    if isinstance(x, (int, np.integer)) and not isinstance(x, bool):
        if x_name != "nothing":
            raise InputError(f"{caller}: an array of {x_name} was asked, the number {x} was found.")
        if x < 0:
            raise InputError(f"{caller}: a pool of 0 rows or more was asked, {x} was found.")
        return None, int(x)
    array = np.asanyarray(x)  # a memory map stays one
    if array.ndim == 0:
        raise InputError(f"{caller}: an array of {x_name} was asked, {x!r} was found.")
    if x_name == "nothing":
        return None, len(array)
    ndim = 2 if x_name == "features" else 1
    return _check_numbers(array, x_name, len(array), ndim=ndim, nan_rows=nan_rows, caller=caller), len(array)


def _check_numbers(values: Any, what: str, n: int, *, ndim: int, nan_rows: bool = False, caller: str) -> NDArray[Any]:
    array = np.asanyarray(values)
    if array.ndim != ndim:
        raise InputError(f"{caller}: {what} of {ndim} dimension(s) was asked, shape {array.shape} was found.")
    if len(array) != n:
        raise InputError(f"{caller}: {what} has {len(array)} rows, the pool has {n}.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{caller}: {what} must be numbers, dtype {array.dtype} was found.")
    if n and not array[:1].size:
        raise InputError(f"{caller}: {what} of at least one column was asked, shape {array.shape} was found.")
    if ndim == 1:
        array = array.astype(np.float64)  # a copy: the selection keeps it
    # Row blocks: a memory-mapped feature matrix is never copied whole just to look for NaN.
    block = max(1, 2**24 // max(1, array[:1].size))
    for start in range(0, n, block):
        piece = array[start : start + block].reshape(min(block, n - start), -1)
        finite = np.isfinite(piece).all(axis=1)
        if nan_rows and not finite.all():
            finite[~finite] = np.isnan(piece[~finite]).all(axis=1)
        if not finite.all():
            first = start + int(np.argmin(finite))
            raise InputError(
                f"{caller}: {what} holds NaN or infinity, first at row {first} of {n}; drop or score those rows first."
            )
    return array


def _check_cost(cost: Any, n: int, *, caller: str) -> NDArray[np.float64]:
    array = _check_numbers(cost, "cost", n, ndim=1, caller=caller)
    if n and array.min() < 0:
        raise InputError(f"{caller}: cost is below 0 at row {int(array.argmin())}; a row's tokens are 0 or more.")
    return array


def _labels(labels: Any, n: int, what: str, *, caller: str) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Return (codes, names) of labels of any kind: text, whole numbers, byte keys (named in hex), None (named "")."""
    if labels is None:
        return None, []
    if hasattr(labels, "dictionary"):
        return _dictionary_labels(labels, n, what, caller=caller)
    array = np.asarray(labels)
    if array.shape != (n,):
        raise InputError(f"{caller}: {what} must be one label a row, ({n},); found shape {array.shape}.")
    if array.dtype.kind in "iub":
        values, codes = np.unique(array, return_inverse=True)
        return codes.astype(np.int64).reshape(n), [str(v) for v in values.tolist()]
    words = ["" if v is None else v.hex() if isinstance(v, bytes) else str(v) for v in array.tolist()]
    names = sorted(set(words))
    code = {name: i for i, name in enumerate(names)}
    return np.fromiter(map(code.__getitem__, words), dtype=np.int64, count=n), names


def _dictionary_labels(labels: pa.DictionaryArray, n: int, what: str, *, caller: str) -> tuple[Any, list[str]]:
    """Return (codes, names) of labels that are numbered already: no text of a row is made."""
    if len(labels) != n:
        raise InputError(f"{caller}: {what} must be one label a row, ({n},); found shape ({len(labels)},).")
    words = ["" if v is None else str(v) for v in labels.dictionary.to_pylist()]
    codes = labels.indices.to_numpy(zero_copy_only=False)
    there = np.bincount(codes, minlength=len(words)) > 0
    names = sorted({word for word, used in zip(words, there, strict=True) if used})
    rank = {name: i for i, name in enumerate(names)}
    return np.array([rank.get(word, 0) for word in words], dtype=np.int64)[codes], names


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
