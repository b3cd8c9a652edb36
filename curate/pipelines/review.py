"""Which rows of a run a person should look at first, written as a review file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from curate import review as review_file
from curate.correctors.review import Review
from curate.exceptions import InputError, RunDirectoryError
from curate.pipelines import audit, publish
from curate.pipelines.corrected import directories
from curate.pipelines.index import Index, build_index
from curate.pipelines.ledger import FinishedRun, recipe_of, score_of
from curate.pipelines.report import write_file
from curate.pipelines.store import Store
from curate.recipe import Recipe
from curate.registry import nearest
from curate.report.text import plural

if TYPE_CHECKING:
    from curate.recipe_parts import Correction

ORDERS = ("worst", "nearest")
ROWS = 200
"""Rows of a list that nobody says the length of."""


@dataclass(frozen=True)
class Listed:
    """A review file that was written."""

    path: str
    rows: int
    of: int
    """Rows that it was drawn from: of those that the correction looks at, the ones with a score and no verdict."""
    on: str
    order: str
    threshold: float | None
    """What "nearest" is near to."""
    proposals: int
    """How many of the rows have one."""
    reviewed: int
    """Rows that were left out because somebody has looked at them."""
    unscored: int
    """Rows that were left out because they have no such score."""
    passed: int
    """Rows that would have come, but have no plain answer: it calls tools, or there is none."""
    file: str | None
    """The review file of the recipe, where it has one."""
    warning: str | None = None
    """Where the score tells no row from another."""

    def __str__(self) -> str:
        by = "the worst" if self.order == "worst" else f"those nearest to {self.threshold:.6g}"
        lines = [f"{plural(self.rows, 'row')} of {self.of:,} to look at, {by} by {self.on}, in {self.path}"]
        if self.proposals:
            lines.append(f"  {self.proposals:,} of them with a proposal")
        for n, why in (
            (self.reviewed, "are reviewed already"),
            (self.unscored, f"have no {self.on}"),
            (self.passed, "have no plain answer"),
        ):
            if n:
                lines.append(f"  left out: {plural(n, 'row')} that {why if n > 1 else _one(why)}")
        if self.warning:
            lines.append(f"warning: {self.warning}")
        if not self.rows:
            return "\n".join(lines)
        lines.append('next: write keep, fix or drop into "verdict" (and "new_answer" for fix), a line a row;')
        if self.file is None:
            lines.append(
                f"then add to the recipe  correct: [{{use: review, file: {Path(self.path).name}}}]  and run it"
            )
        elif Path(self.file).absolute() == Path(self.path):
            lines.append("then run the recipe again")
        else:
            lines.append(f"then append them to {self.file}, and run the recipe again")
        return "\n".join(lines)


def _one(why: str) -> str:
    return why.replace("are ", "is ").replace("have ", "has ")


def review(
    store: Store,
    out: str | Path | None = None,
    *,
    rows: int | None = None,
    on: str | None = None,
    order: str | None = None,
    correction: str | None = None,
    overwrite: bool = False,
) -> Listed:
    """Write the rows of a run that a person should look at first.

    What is not said is as the recipe's review has it (``correct: [{use: review, …}]``), or: 200 rows, the worst by the
    score of the step that it follows, into ``review.jsonl``.  Rows of one score stand in the order of their content, so
    that neither files nor shards matter.

    Parameters
    ----------
    out : the file; the recipe's review file if it has one.
    on : a score column, a combination, or a correction, which is its confidence.
    order : "worst", or "nearest" to the threshold: of the step, or of the correction that ``on`` names.
    correction : which review of the recipe, where it has several.
    overwrite : whether a file in which somebody has written a verdict may be replaced.

    Raises
    ------
    RunDirectoryError
        If there is no run, or none that is scored.
    InputError
        If the recipe has no such review or score, the score knows no better or no threshold, or ``out`` holds verdicts.
    """
    if rows is not None and rows < 1:
        raise InputError(f"review: at least 1 row was asked to be listed, {rows} was found.")
    if order is not None and order not in ORDERS:
        raise InputError(f"review: order is {' or '.join(ORDERS)}; found {order!r}{nearest(order, list(ORDERS))}")
    run, recipe = _open(store)
    entry = _entry(recipe, correction)
    corrector = entry.corrector if entry is not None and isinstance(entry.corrector, Review) else None
    if corrector is not None:
        rows, on, order = rows or corrector.rows_to_review, on or corrector.on, order or corrector.order
    rows, order = rows or ROWS, order or "worst"
    step = entry.after if entry is not None else _last_scored(recipe)
    on = on or (recipe.steps[step].on if step >= 0 else None)
    if on is None:
        raise InputError(f"review: the rows go by a score; name one with --on. This run has {_known(run, recipe)}.")
    target = Path(out) if out is not None else Path(corrector.file if corrector is not None else "review.jsonl")
    if not overwrite:
        _refuse_to_lose(target)
    score, on = _score(run, recipe, on)
    mask = _seen(run, recipe, step, entry.rows if entry is not None else "all")
    threshold = _threshold(run, recipe, step, on) if order == "nearest" else None
    key = _doubt(score, recipe, run, on, threshold)
    unscored = int((mask & np.isnan(key)).sum())
    at = np.flatnonzero(mask & ~np.isnan(key))
    at = at[np.argsort(key[at], kind="stable")]
    done = None if corrector is None else review_file.read(corrector.file)
    left = _without(run, at, frozenset(done.reviewed if done is not None else ()))
    lines, passed = _lines(run, left, rows, on, score)
    equal = left.size > 1 and np.ptp(key[left]) == 0
    warning = f"all {left.size:,} rows are alike by {on}, so that any of them could come first" if equal else None
    path = write_file(review_file.dump(lines), target)
    return Listed(
        path=path,
        rows=len(lines),
        of=left.size,
        on=on,
        order=order,
        threshold=threshold,
        proposals=sum(line.proposal is not None for line in lines),
        reviewed=at.size - left.size,
        unscored=unscored,
        passed=passed,
        file=None if corrector is None else corrector.file,
        warning=warning,
    )


# -- the run and its recipe --------------------------------------------------------------------------------------------


def _open(store: Store) -> tuple[FinishedRun, Recipe]:
    """Return a run that is scored, whether it is selected or not, and its recipe."""
    if store.read_json(".curate", "run.json") is None:
        raise RunDirectoryError(f"{store.root} is no run of curate; name the directory that 'curate run' filled.")
    manifest = store.read_json("manifest.json") or {}
    accounts = store.read_jsons(".curate/done/read")
    status = str(manifest.get("status", "unknown"))
    if not accounts or not (status == "complete" or status == "score complete"):
        raise RunDirectoryError(
            f"{store.root} is not scored to the end (its status is {status!r}); 'curate score' or 'curate run' first."
        )
    return FinishedRun(store, manifest, build_index(store, accounts)), recipe_of(store)


def _entry(recipe: Recipe, wanted: str | None) -> Correction | None:
    """Return the review of the recipe: the one that is named, or the only one."""
    reviews = {c.name: c for c in recipe.corrections if isinstance(c.corrector, Review)}
    if wanted is None and len(reviews) < 2:
        return next(iter(reviews.values()), None)
    if wanted is None:
        raise InputError(f"review: the recipe has {len(reviews)}: {', '.join(reviews)}; name one with --correction.")
    if wanted not in reviews:
        raise InputError(
            f"review: the recipe has no review called {wanted!r}{nearest(wanted, list(reviews))} It has "
            f"{', '.join(reviews) or 'none'}."
        )
    return reviews[wanted]


def _last_scored(recipe: Recipe) -> int:
    """Return the number of the last step that goes by a score; -1 if none does."""
    return max((i for i, step in enumerate(recipe.steps) if step.on is not None), default=-1)


def _refuse_to_lose(path: Path) -> None:
    """Raise InputError if somebody has written verdicts into the file, or it is something else."""
    try:
        found = review_file.read(path)
    except InputError as error:
        raise InputError(
            f"review: {path} is there, and is no review file as it should be. {error} Mend it, write elsewhere with "
            "--out, or say --overwrite."
        ) from None
    if found is not None and found.reviewed:
        raise InputError(
            f"review: {path} holds {plural(len(found.reviewed), 'verdict')}; write the new list elsewhere with --out "
            "and append it when it is filled in, or say --overwrite."
        )


# -- which rows, in which order ----------------------------------------------------------------------------------------


def _score(run: FinishedRun, recipe: Recipe, on: str) -> tuple[NDArray[np.float64], str]:
    """Return a score, (n,) in canonical order, NaN where a row has none; and its full name."""
    corrections = directories(run.store)
    if on in corrections:
        return _confidence(run, corrections[on], "confidence"), on
    full = recipe.reference(on, ("on",))
    return score_of(run, recipe, full)[0], full


def _confidence(run: FinishedRun, directory: str, column: str) -> NDArray[np.float64]:
    """Return a number that a correction wrote of each row, (n,) in canonical order; NaN where it wrote none."""
    index = run.index
    out = np.full(index.n, np.nan)
    for part in index.parts:
        table = audit.sidecar(run.store, directory, part.name, ["id", column])
        if table is None:
            continue
        ids = run.store.read_table("examples", part.name, columns=["id"]).column(0).to_pylist()
        place = index.place[part.start : part.start + part.rows]
        where = {i: p for i, p in zip(ids, place.tolist(), strict=True) if p >= 0}
        for row in table.to_pylist():
            if row[column] is not None:
                out[where[row["id"]]] = row[column]
    return out


def _seen(run: FinishedRun, recipe: Recipe, step: int, rows: str) -> NDArray[np.bool_]:
    """Return (n,) in canonical order: the rows that went into a step, or those of them that it kept or dropped.

    All rows, where nothing was selected yet.  A row that a correction has changed counts as both.
    """
    index: Index = run.index
    out = np.ones(index.n, dtype=bool)
    if step < 0 or publish.current(run.store) is None:
        return out
    after = {s.name: i for i, s in enumerate(recipe.steps)} | {c.name: c.after for c in recipe.corrections}
    corrections = {c.name for c in recipe.corrections if c.after == step}
    last = len(recipe.steps)  # where rows leave that no step has dropped
    for part in index.parts:
        table = run.store.read_table("decisions", part.name, columns=["decision", "stage"])
        decision, stage = (column.combine_chunks().dictionary_encode() for column in table.columns)
        left = np.array([after.get(name, last) for name in stage.dictionary.to_pylist()], dtype=np.int64)
        dropped, corrected = (
            np.array([word == wanted for word in decision.dictionary.to_pylist()])[decision.indices]
            for wanted in ("dropped", "corrected")
        )
        by_correction = np.array([name in corrections for name in stage.dictionary.to_pylist()])[stage.indices]
        at = np.where(dropped, left[stage.indices], last)
        fits = {"all": at >= step, "kept": at > step, "dropped": at == step}[rows] | corrected | by_correction
        place = index.place[part.start : part.start + part.rows]
        out[place[place >= 0]] = fits[place >= 0]
    return out


def _threshold(run: FinishedRun, recipe: Recipe, step: int, on: str) -> float:
    """Return what a score is held against: the step's threshold, or the correction's."""
    corrections = directories(run.store)
    if on in corrections:
        found = _confidence(run, corrections[on], "threshold")
        held = np.unique(found[~np.isnan(found)])
        if held.size:
            return float(held[0])
    name = recipe.steps[step].name if step >= 0 else ""
    for account in run.manifest.get("select", []):
        if account["name"] == name and account.get("score") == on and account.get("threshold") is not None:
            return float(account["threshold"])
    raise InputError(
        f"review: order nearest asks for a threshold, and no one is known that {on} was held against"
        f"{f' by the step {name!r}' if name else ''}; 'curate run' first, name its score with --on, or take --order "
        "worst."
    )


def _doubt(
    score: NDArray[np.float64], recipe: Recipe, run: FinishedRun, on: str, threshold: float | None
) -> NDArray[np.float64]:
    """Return what rows are listed by, the smallest first."""
    if threshold is not None:
        return np.abs(score - threshold)
    better = True if on in directories(run.store) else recipe.direction(on)
    if better is None:
        raise InputError(
            f"review: {on} has no better direction, so that none of its values is worst; take a combination that gives "
            "it one, or --order nearest."
        )
    return score if better else -score


def _known(run: FinishedRun, recipe: Recipe) -> str:
    named = [*run.columns, *recipe.combine, *directories(run.store)]
    return ", ".join(named) or "none"


# -- the lines ---------------------------------------------------------------------------------------------------------


def _without(run: FinishedRun, at: NDArray[np.int64], reviewed: frozenset[str]) -> NDArray[np.int64]:
    """Return those of some rows of the pool that nobody has looked at."""
    if not reviewed:
        return at
    done = np.zeros(run.index.rows, dtype=bool)
    names = [part.name for part in run.index.parts]
    for part, table in zip(run.index.parts, run.store.read_tables("examples", names, ["id"]), strict=True):
        known = pc.is_in(table.column("id"), pa.array(sorted(reviewed), pa.string()))
        done[part.start : part.start + part.rows] = known.to_numpy()
    return at[~done[run.index.pool[at]]]


def _lines(
    run: FinishedRun, at: NDArray[np.int64], rows: int, on: str, score: NDArray[np.float64]
) -> tuple[list[review_file.Line], int]:
    """Return the first lines of the list, and how many rows had no plain answer and were passed over.

    ``at`` are places in the pool in the order of the list.  Whether an answer is plain is seen when its text is read.
    """
    proposals = audit.Proposals(run.store, run.stages)
    out: list[review_file.Line] = []
    passed = 0
    for start in range(0, at.size, rows):
        block = at[start : start + rows]
        texts = _texts(run, np.sort(run.index.pool[block]), proposals)
        for place, row in zip(block.tolist(), run.index.pool[block].tolist(), strict=True):
            id, messages, proposal = texts[row]
            more = {"rank": len(out) + 1, "on": on, "score": float(score[place]), "proposal": proposal}
            line = review_file.line_of(id, messages, **more)
            passed += line is None
            if line is not None:
                out.append(line)
            if len(out) == rows:
                return out, passed
    return out, passed


def _texts(
    run: FinishedRun, rows: NDArray[np.int64], proposals: audit.Proposals
) -> dict[int, tuple[str, list[dict[str, Any]], str | None]]:
    """Return reading-order number → id, messages and proposal."""
    out: dict[int, tuple[str, list[dict[str, Any]], str | None]] = {}
    for part in run.index.parts:
        mine = rows[np.searchsorted(rows, part.start) : np.searchsorted(rows, part.start + part.rows)]
        if mine.size:
            table = run.store.read_table("examples", part.name, columns=["id", "messages"])
            held = table.take(pa.array(mine - part.start)).to_pylist()
            new = proposals.of(part.name, [one["id"] for one in held])
            for row, one in zip(mine.tolist(), held, strict=True):
                out[row] = one["id"], one["messages"], new.get(one["id"])
    return out
