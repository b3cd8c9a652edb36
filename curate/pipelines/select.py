"""The selection: a chain of steps over the pool, and for every row what became of it and by which number.

A step sees the rows that the steps before it kept.  Rows it cannot judge (a null score) are dropped with the scorer's
own reason, or stop the run, as the step's ``nulls`` says; they are never given a stand-in value.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.budget import Budget
from curate.exceptions import InputError, StageError
from curate.numerics.composition import mixture
from curate.pipelines import gather
from curate.pipelines.correct import ACTIONS, Outcome
from curate.pipelines.index import Index
from curate.pipelines.refine import Refinement
from curate.pipelines.store import Store
from curate.pipelines.vectors import rows_of
from curate.pipelines.worker import Stage
from curate.recipe import Recipe
from curate.recipe_parts import Correction, Step


@dataclass
class Verdicts:
    """What became of each row of the pool, (n,) arrays in canonical order."""

    n: int
    kept: NDArray[np.bool_] = field(init=False)
    step: NDArray[np.int16] = field(init=False)
    """The step that dropped the row; for a kept row the last step; -1 if there are no steps."""
    reason: NDArray[np.int32] = field(init=False)
    """Index into ``reasons``."""
    score: NDArray[np.float64] = field(init=False)
    threshold: NDArray[np.float64] = field(init=False)
    cluster: NDArray[np.int32] = field(init=False)
    order: NDArray[np.int64] = field(init=False)
    """Place in the order of choice, 0 first; -1 for rows that were dropped."""
    instead: NDArray[np.int64] | None = None
    """The row that stands for one that was dropped as its copy; -1 for others; None while there is none."""
    corrected: NDArray[np.int16] | None = None
    """The correction that replaced the row's answer, as a number of ``steps``; -1 for others; None without any."""
    correction: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Of corrected rows "reason", "score" and "threshold" of that correction: later steps have words of their own."""
    corrections: dict[str, str] = field(default_factory=dict)
    """Correction → where it is written down."""
    reasons: list[str] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    """An account of each step, for the manifest: rows in, kept, dropped, threshold."""

    def __post_init__(self) -> None:
        n = self.n
        self.kept = np.ones(n, dtype=bool)
        self.step = np.full(n, -1, dtype=np.int16)
        self.reason = np.full(n, self.code("kept: the recipe has no selection step"), dtype=np.int32)
        self.score = np.full(n, np.nan)
        self.threshold = np.full(n, np.nan)
        self.cluster = np.full(n, -1, dtype=np.int32)
        self.order = np.arange(n, dtype=np.int64)

    def forget_numbers(self) -> None:
        """Give back what only the ledger needed, 26 bytes a row, when it is written down; kept and order stay."""
        del self.step, self.reason, self.score, self.threshold, self.cluster, self.instead
        self.correction = {}

    def stand_in(self, rows: NDArray[np.int64], instead: NDArray[np.int64]) -> None:
        """Note which rows stand for ``rows``."""
        if self.instead is None:
            self.instead = np.full(self.n, -1, dtype=np.int64)
        self.instead[rows] = instead

    def code(self, text: str) -> int:
        """Return the number of a reason, giving it one when it is new."""
        if text not in self._codes:
            self._codes[text] = len(self.reasons)
            self.reasons.append(text)
        return self._codes[text]


def combined(store: Store, index: Index, recipe: Recipe, stages: dict[str, Stage], ref: str) -> NDArray[np.float64]:
    """Return a score column or a combination, (n,); NaN where a row has none."""
    if ref not in recipe.combine:
        stage, _, column = ref.partition(".")
        return gather.score_column(store, index, stages[stage], column)
    from curate.selectors.combine import combine

    spec = recipe.combine[ref]
    weights = {recipe.reference(r, ("combine", ref), combinations=False): w for r, w in spec.of.items()}
    said = {
        recipe.reference(r, ("combine", ref), combinations=False): d == "higher" for r, d in spec.directions.items()
    }
    directions = {r: said.get(r, bool(recipe.direction(r))) for r in weights}
    columns = {r: combined(store, index, recipe, stages, r) for r in weights}
    return combine(
        columns,
        method=spec.method,
        weights=weights,
        directions=directions,
        winsorise=spec.winsorise,
        missing=spec.missing,
    )


def _reweighted(
    store: Store, index: Index, recipe: Recipe, stages: dict[str, Stage], ref: str, rows: NDArray[np.int64]
) -> int:
    """Return how many of the rows have a mean of some of its parts only (``missing: reweight``)."""
    if ref not in recipe.combine or recipe.combine[ref].missing != "reweight":
        return 0
    parts = [recipe.reference(r, ("combine", ref), combinations=False) for r in recipe.combine[ref].of]
    lacks = np.stack([np.isnan(combined(store, index, recipe, stages, part)[rows]) for part in parts])
    return int((lacks.any(axis=0) & ~lacks.all(axis=0)).sum())


def unscored_because(
    store: Store, index: Index, recipe: Recipe, stages: dict[str, Stage], ref: str, rows: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Return reason → rows, for rows that lack the score ``ref``."""
    parts = (
        [ref]
        if ref not in recipe.combine
        else [recipe.reference(r, (), combinations=False) for r in recipe.combine[ref].of]
    )
    left, out = rows, {}
    for stage_name in dict.fromkeys(p.partition(".")[0] for p in parts):
        codes, words = gather.reasons(store, index, stages[stage_name])
        for code, word in enumerate(words):
            hit = left[codes[left] == code]
            if hit.size:
                out[f"no {stage_name}: {word}"] = hit
        left = left[codes[left] < 0]
    if left.size:
        out[f"no {ref}"] = left
    return out


Refine = Callable[[Step, NDArray[np.int64]], Refinement]
"""(step, places in the pool of the rows that its selector sees) → what it learns from between its rounds."""


Correct = Callable[[Correction, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], Outcome]
"""(correction, rows that it looks at, rows kept so far, rows that earlier corrections replaced) → what becomes of them;
places in the pool."""


def select(
    store: Store,
    index: Index,
    recipe: Recipe,
    stages: dict[str, Stage],
    refine: Refine | None = None,
    correct: Correct | None = None,
) -> Verdicts:
    """Run the steps of the recipe over the pool, and its corrections; ``refine`` is for steps of several rounds.

    Raises
    ------
    StageError
        If a budget is larger than what is left, every row lacks a score, or a step that was told to stop at nulls meets
        one.
    """
    verdicts = Verdicts(index.n)
    alive = np.arange(index.n)
    entered = alive
    for number, move in enumerate(recipe.moves):
        if isinstance(move, Correction):
            assert correct is not None
            alive = _correct(index, verdicts, number, move, entered, alive, correct)
        else:
            entered = alive
            alive = _step(store, index, recipe, stages, verdicts, number, move, alive, refine)
    _tell_mixtures(store, index, recipe, stages, verdicts)
    return verdicts


def _tell_mixtures(store: Store, index: Index, recipe: Recipe, stages: dict[str, Stage], verdicts: Verdicts) -> None:
    """Add to each step's account how mixed the sources, the groups and its quota's groups were before and after it."""
    steps = len(recipe.moves)
    last = np.where(verdicts.kept, steps, verdicts.step)  # the step that dropped a row
    by = [step.quota.by for step in recipe.steps if step.quota is not None]
    for label in dict.fromkeys(("source", "group", *by)) if steps else ():
        codes, names = gather.label_names(store, index, label, stages)
        if len(names) < 2:
            continue
        counts = np.bincount(codes * (steps + 1) + last, minlength=len(names) * (steps + 1)).reshape(-1, steps + 1)
        for number, move in enumerate(recipe.moves):  # a row that a correction brought back has passed its step
            quota = None if isinstance(move, Correction) else move.quota
            if label in ("source", "group") or (quota is not None and quota.by == label):
                verdicts.steps[number].setdefault("mixture", {})[label] = {
                    "before": mixture(counts[:, number:].sum(axis=1)),
                    "after": mixture(counts[:, number + 1 :].sum(axis=1)),
                }


def _correct(
    index: Index,
    verdicts: Verdicts,
    number: int,
    correction: Correction,
    entered: NDArray[np.int64],
    alive: NDArray[np.int64],
    correct: Correct,
) -> NDArray[np.int64]:
    """Carry out a correction of rows that went into the step before it; return the rows that are left."""
    before = alive.size
    inside = np.zeros(index.n, dtype=bool)
    inside[alive] = True
    rows = entered
    if correction.rows != "all":
        rows = entered[inside[entered] == (correction.rows == "kept")]
    if verdicts.corrected is None:
        verdicts.corrected = np.full(index.n, -1, dtype=np.int16)
        verdicts.correction = {
            "reason": np.zeros(index.n, dtype=np.int32),
            "score": np.full(index.n, np.nan),
            "threshold": np.full(index.n, np.nan),
        }
    taken = np.flatnonzero((verdicts.corrected >= 0) & inside)
    found = correct(correction, rows, alive, taken)
    verdicts.corrections[correction.name] = found.directory
    codes = np.array([verdicts.code(rule) for rule in found.rules], dtype=np.int32)
    threshold = correction.corrector.threshold
    limit = np.nan if threshold is None else threshold
    counts: dict[str, int] = {}
    for place, action in enumerate(ACTIONS):
        hit = found.action == place
        these = found.rows[hit]
        counts[action] = int(these.size)
        verdicts.step[these] = number
        verdicts.reason[these] = codes[found.rule[hit]]
        verdicts.score[these], verdicts.threshold[these] = found.confidence[hit], limit
        verdicts.cluster[these] = -1
        if action == "replace":
            verdicts.corrected[these] = number
            verdicts.correction["reason"][these] = codes[found.rule[hit]]
            verdicts.correction["score"][these], verdicts.correction["threshold"][these] = found.confidence[hit], limit
        else:
            verdicts.corrected[these] = -1  # also what an earlier correction had put there
            if action == "drop":
                inside[these] = False
    staying = found.rows[(found.action == ACTIONS.index("replace")) | (found.action == ACTIONS.index("keep"))]
    back = staying[~inside[staying]]
    inside[back] = True
    verdicts.kept[:] = False
    verdicts.kept[inside] = True
    gone = ~inside
    verdicts.order[gone] = -1
    left = np.concatenate([alive[inside[alive]], back])  # those that come back stand behind the others
    verdicts.order[left] = np.arange(left.size)
    rules = np.bincount(found.rule, minlength=len(found.rules))
    told = {found.rules[i]: int(rules[i]) for i in np.argsort(-rules, kind="stable").tolist()}
    verdicts.steps.append(
        {
            "name": correction.name,
            "use": correction.corrector.name,
            "kind": "correction",
            "in": int(before),
            "kept": int(left.size),
            "dropped": int(before - inside[alive].sum()),
            "asked": int(found.rows.size),
            "corrected": counts["replace"],
            "brought_back": int(back.size),
            "rules": dict(list(told.items())[:50]),
            "score": f"{correction.name}.confidence" if threshold is not None else None,
            "threshold": threshold,
            "budget": None,
            "cost": None,
            "tokens": None,
            **({"warning": found.warning} if found.warning else {}),
        }
    )
    return left


def _step(
    store: Store,
    index: Index,
    recipe: Recipe,
    stages: dict[str, Stage],
    verdicts: Verdicts,
    number: int,
    step: Step,
    alive: NDArray[np.int64],
    refine: Refine | None = None,
) -> NDArray[np.int64]:
    before = alive.size
    columns: dict[str, NDArray[np.float64]] = {}
    reweighted: dict[str, int] = {}
    for role, ref in (("on", step.on), ("quality", step.quality), ("cost", step.cost)):
        if ref is None:
            continue
        column = combined(store, index, recipe, stages, ref)
        if rows := _reweighted(store, index, recipe, stages, ref, alive):
            reweighted[ref] = rows
        missing = alive[np.isnan(column[alive])]
        if missing.size:
            alive = _without(store, index, recipe, stages, verdicts, number, step, ref, alive, missing)
        columns[role] = column
    vectors = None
    if step.features is not None:
        vectors = gather.features(store, index, stages[step.features])
        bad = gather.without_vector(store, index, stages[step.features], vectors, alive)
        if bad.size:
            alive = _without(store, index, recipe, stages, verdicts, number, step, step.features, alive, bad)
    if before and not alive.size:
        raise StageError(
            f"select step {step.name!r}: none of the {before:,} rows left has what it needs; see the reasons in "
            "scores/."
        )

    selector = step.selector
    if step.features is not None and getattr(selector, "targets", ()) is None:
        labels = getattr(stages[step.features].scorer, "labels_", None)
        selector = dataclasses.replace(selector, targets=labels)  # type: ignore[type-var]
    quality = columns.get("quality")
    if quality is not None:
        quality = quality[alive] if recipe.direction(str(step.quality)) is not False else -quality[alive]
    groups = quota_groups = quota = None
    if step.groups is not None:
        groups = gather.labels(store, index, {"prompt": "prompt_key"}.get(step.groups, step.groups), stages)[alive]
    limits = None
    if selector.limits_from is not None:
        limits = _rows_in(store, index, step, selector.limits_from, stages)[alive]
    if step.quota is not None:
        codes, names = gather.label_names(store, index, step.quota.by, stages)
        quota_groups = pa.DictionaryArray.from_arrays(codes[alive], names)
        del codes
        quota = step.quota.quota()
    if selector.x_name == "features":
        assert vectors is not None
        x: Any = vectors if alive.size == index.n else rows_of(vectors, alive)
    elif selector.x_name == "scores":
        x = columns["on"] if alive.size == index.n else columns["on"][alive]
    else:
        x = int(alive.size)
    # A fraction is of the whole pool, not of what the steps before have left of it.
    budget = step.budget
    if budget is not None and budget.fraction is not None:
        budget = Budget(rows=budget.limit(index.n))
    learn = refine(step, alive) if refine is not None and step.learner is not None else None
    try:
        chosen = selector.select(
            x,
            budget,
            quality=quality,
            groups=groups,
            limits=limits,
            cost=None if step.cost is None else columns["cost"][alive],
            quota=quota,
            quota_groups=quota_groups,
            learn=learn,
        )
    except InputError as error:
        raise StageError(f"select step {step.name!r}: {error}") from error

    keep = alive[chosen.indices]
    out = alive[~chosen.mask]
    warning = None
    if selector.x_name == "scores" and alive.size > 1 and np.ptp(x) == 0:
        warning = f"all {alive.size:,} values of {step.on} are {x[0]:.6g}: they tell no row from another"
    verdicts.step[alive] = number
    verdicts.score[alive] = np.nan if chosen.basis is None else chosen.basis
    verdicts.threshold[alive] = chosen.thresholds
    verdicts.cluster[alive] = -1 if chosen.labels is None else chosen.labels
    verdicts.reason[keep] = verdicts.code(f"kept by {step.name}")
    # A selector on plain arrays speaks of "score"; here the score has a name.
    named = step.on is not None and chosen.basis_name == "score"
    which, texts = chosen.coded_reasons()
    which = which[~chosen.mask]
    words = [re.sub(r"\bscore\b", lambda _: str(step.on), text) if named else text for text in texts]
    evidence = _evidence(store, index, stages, step, out)
    if evidence is None:
        numbers = np.full(len(texts), -1, dtype=np.int32)
        for i in np.flatnonzero(np.bincount(which, minlength=len(texts))):
            numbers[i] = verdicts.code(words[i])
        verdicts.reason[out] = numbers[which]
    else:
        told = (f"{words[i]}: {e}" if e else words[i] for i, e in zip(which.tolist(), evidence, strict=True))
        verdicts.reason[out] = np.fromiter(map(verdicts.code, told), dtype=np.int32, count=out.size)
    if chosen.instead is not None:
        copies = np.flatnonzero(chosen.instead >= 0)
        verdicts.stand_in(alive[copies], alive[chosen.instead[copies]])
    verdicts.kept[out] = False
    verdicts.order[out] = -1
    verdicts.order[keep] = np.arange(keep.size)
    verdicts.steps.append(
        {
            "name": step.name,
            "use": selector.name,
            "in": int(before),
            "kept": int(keep.size),
            "dropped": int(before - keep.size),
            "score": None if chosen.basis is None else step.on if named else chosen.basis_name,
            "threshold": chosen.threshold,
            "budget": None if step.budget is None else str(step.budget),
            "cost": step.cost,
            "tokens": int(columns["cost"][keep].sum()) if "cost" in columns else None,
            **({"account": chosen.account} if chosen.account is not None else {}),
            **({"reweighted": reweighted} if reweighted else {}),
            **({"warning": warning} if warning else {}),
            **({"learner": learn.account} if learn is not None else {}),
        }
    )
    return keep


def _evidence(
    store: Store, index: Index, stages: dict[str, Stage], step: Step, rows: NDArray[np.int64]
) -> list[str | None] | None:
    """Return what the scorer of the step's score can show for some rows, where it has something to show."""
    stage = stages.get(str(step.on).partition(".")[0])
    if stage is None or stage.scorer.evidence is None:
        return None
    return gather.texts(store, index, stage, stage.scorer.evidence, rows)


def _rows_in(store: Store, index: Index, step: Step, source: str, stages: dict[str, Stage]) -> NDArray[np.int64]:
    """Return (n,) how many rows of ``source`` each row's group has in the whole pool, whatever became of them since."""
    groups = gather.labels(store, index, {"prompt": "prompt_key"}.get(str(step.groups), str(step.groups)), stages)
    codes, names = gather.label_names(store, index, "source")
    if source not in names:
        raise StageError(
            f"select step {step.name!r}: no row of the pool is from {source!r}; its sources are "
            f"{', '.join(names[:12])}{' …' if len(names) > 12 else ''}."
        )
    return np.bincount(groups[codes == names.index(source)], minlength=int(groups.max(initial=0)) + 1)[groups]


def _without(
    store: Store,
    index: Index,
    recipe: Recipe,
    stages: dict[str, Stage],
    verdicts: Verdicts,
    number: int,
    step: Step,
    ref: str,
    alive: NDArray[np.int64],
    missing: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Drop the rows that lack ``ref``, each with the scorer's reason; or stop."""
    why = unscored_because(store, index, recipe, stages, ref, missing)
    if step.nulls == "stop":
        told = "; ".join(f"{rows.size:,} × {word}" for word, rows in list(why.items())[:5])
        raise StageError(
            f"select step {step.name!r}: {missing.size:,} rows have no {ref} ({told}), and nulls: stop was asked."
        )
    for word, rows in why.items():
        verdicts.reason[rows] = verdicts.code(word)
    verdicts.step[missing] = number
    verdicts.kept[missing] = False
    verdicts.order[missing] = -1
    verdicts.score[missing] = verdicts.threshold[missing] = np.nan
    verdicts.cluster[missing] = -1
    return alive[~np.isin(alive, missing, assume_unique=True)]
