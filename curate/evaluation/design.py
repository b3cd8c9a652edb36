"""Which trainings an evaluation asks for: what is compared, at what, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curate import models
from curate.budget import Budget
from curate.evaluation import contenders as make
from curate.evaluation.contenders import Contender, Share
from curate.evaluation.grid import Grid, Point
from curate.evaluation.held_out import HeldOut
from curate.evaluation.trial import Setting
from curate.exceptions import InputError
from curate.models.proxy import tokens_of
from curate.pipelines.ledger import FinishedRun, score_of
from curate.recipe import Recipe
from curate.seeding import rng_for

if TYPE_CHECKING:
    from curate.models.template import Encoder

UNTRAINED = "zero-shot"
TENTHS = 10
ENOUGH = 0.95
"""Share of the tokens asked that a run must hold: one with a budget in tokens ends up to a row below it."""
_NONE = np.empty(0, dtype=np.int64)


@dataclass
class Design:
    """The plan of an evaluation."""

    recipe: Recipe
    draws: Sequence[Sequence[FinishedRun]]
    """Of each selection, its runs: one, or several draws."""
    names: Sequence[str]
    """Of the selections."""
    seed: int
    setting: Setting
    encoder: Encoder
    held: HeldOut
    _runs: list[Contender] = field(init=False, default_factory=list)

    @property
    def limit(self) -> int | None:
        """Tokens of a row that go through the proxy."""
        known = [n for n in (self.setting.training.max_tokens, models.context(self.setting.model)) if n is not None]
        return min(known, default=None)

    def grid(self) -> Grid:
        """Return the trainings.

        Raises
        ------
        InputError
            If a run has a baseline's name, or has kept less than a budget asks; if the validity of a score is asked
            that has no better direction, or that too few rows have.
        """
        settings = self.recipe.evaluate
        self._runs = [
            make.of_runs(draws, name, self.encoder, self.held.allowed)
            for draws, name in zip(self.draws, self.names, strict=True)
        ]
        names = [name for name in settings.baselines if name != "full" or self.setting.training.epochs > 1]
        notes = []
        if len(names) < len(settings.baselines):
            notes.append("no baseline 'full': in one epoch it is a uniform draw, as 'random' is; ask for more epochs")
        for name in set(names) & set(self.names):
            raise InputError(f"evaluate: a run is called {name!r}, which is a baseline's name; rename its directory.")
        others = make.baselines(self.draws[0][0], names, self.encoder, self.held.allowed, self.seed)
        contenders = [*self._runs, *others]
        grid = Grid({UNTRAINED: "the proxy as it is"} | {c.name: c.about for c in contenders}, notes=notes)
        points = self._points()
        for at in points:
            for seed in range(settings.seeds):
                grid.add(UNTRAINED, at, seed, self.setting, [], Share(_NONE, 0, 1))
                for c in contenders:
                    its = self._share(c, at, seed)
                    whole = c.run and its.places.size == c.order(seed).size
                    if at.rows is None and whole and its.tokens < ENOUGH * (at.tokens or 0):
                        raise InputError(
                            f"evaluate: {at.tokens:,} training tokens of each selection were asked, {c.name!r} has "
                            f"{its.tokens:,}; ask for fewer (evaluate.budgets)."
                        )
                    self._add(grid, c, at, seed, its)
        sizes = self._sizes()
        grid.notes += [
            f"{name}: {len(draws)} draws over {settings.seeds} seeds"
            for name, draws in zip(self.names, self.draws, strict=True)
            if 1 < len(draws) != settings.seeds
        ]
        if len(set(sizes.values())) > 1:
            grid.notes.append(
                "the runs kept "
                + ", ".join(f"{n:,} ({name})" for name, n in sizes.items())
                + "; of each the first rows of its choice are compared, as many as are equal"
            )
        for ref in settings.validity:
            self._tenths(grid, self.recipe.reference(ref, ("evaluate", "validity")), points)
        return grid

    def _add(self, grid: Grid, contender: Contender, at: Point, seed: int, share: Share) -> None:
        grid.add(contender.name, at, seed, self.setting, contender.rows(seed, share.places), share)

    def _lengths(self, contender: Contender, seed: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return tokens_of(contender.rows(seed, places), self.limit)

    def _share(self, contender: Contender, at: Point, seed: int) -> Share:
        """Return the rows of one training."""
        epochs = self.setting.training.epochs
        if at.tokens is None:
            return make.first_rows(contender, seed, at.rows or 0, epochs, self._lengths)
        return make.first_tokens(contender, seed, at.tokens, epochs, self._lengths)

    def _sizes(self) -> dict[str, int]:
        """Return how many rows each run has kept; of several draws the fewest."""
        return {c.name: min(c.order(seed).size for seed in range(len(c.texts))) for c in self._runs}

    def _points(self) -> list[Point]:
        """Return what is compared at: each budget in rows at equal rows, tokens or both, one in tokens as it is."""
        sizes = self._sizes()
        smallest = min(sizes, key=lambda name: sizes[name])
        asked = self.recipe.evaluation_budgets or [Budget(rows=sizes[smallest])]
        rows = {b.limit(self.draws[0][0].index.n) for b in asked if b.tokens is None}
        points: list[Point] = []
        for budget in sorted(n for n in rows if n is not None):
            if not 0 < budget <= sizes[smallest]:
                raise InputError(
                    f"evaluate: {budget:,} rows of each selection were asked, {smallest!r} has {sizes[smallest]:,}; "
                    f"ask for {'more' if budget == 0 else 'fewer'} (evaluate.budgets)."
                )
            for equal in dict.fromkeys(self.recipe.evaluate.equal):
                tokens = None
                if equal == "tokens":
                    tokens = min(
                        int(self._lengths(c, draw, c.order(draw)[:budget]).sum())
                        for c in self._runs
                        for draw in range(len(c.texts))
                    )
                points.append(Point(equal, budget, tokens))
        points += [Point("tokens", None, n) for n in sorted({b.tokens for b in asked if b.tokens is not None})]
        if any(at.tokens == 0 for at in points):
            raise InputError("evaluate: 0 training tokens of each selection were asked; ask for more.")
        return points

    def _tenths(self, grid: Grid, score: str, points: Sequence[Point]) -> None:
        """Add trainings on rows of each tenth of the pool, in the order of a score, at the smallest budget.

        In tokens where tokens are equal anywhere: a score that goes with length would else be held for one that tells
        good rows.
        """
        values, better = score_of(self.draws[0][0], self.recipe, score)
        if better is None:
            raise InputError(f"evaluate: {score!r} has no better direction; the validity of a score needs one.")
        able = np.flatnonzero(self.held.allowed & ~np.isnan(values))
        if able.size < TENTHS:
            raise InputError(f"evaluate: {able.size} rows have the score {score!r}; {TENTHS} at least were asked.")
        order = able[np.argsort(-values[able] if better else values[able], kind="stable")]

        def drawn(i: int, group: NDArray[np.int64]) -> Contender:
            def of(seed: int) -> NDArray[np.int64]:
                return rng_for(self.seed, "evaluate", "validity", score, seed, i).permutation(group)

            return Contender(f"{score} #{i + 1}", f"tenth {i + 1} of {score}", of, self._runs[0].texts)

        tenths = [drawn(i, group) for i, group in enumerate(np.array_split(order, TENTHS))]
        in_tokens = [at.tokens for at in points if at.tokens is not None]
        seeds = range(self.recipe.evaluate.seeds)
        if in_tokens:
            at = Point("tokens", None, min(in_tokens), score)
            least = min(self._share(c, at, seed).tokens for c in tenths for seed in seeds)
            at = replace(at, tokens=min(least, min(in_tokens)))
        else:
            at = Point("rows", min(*(at.rows or 0 for at in points), able.size // TENTHS, able.size), None, score)
        for seed in seeds:
            for c in tenths:
                self._add(grid, c, at, seed, self._share(c, at, seed))
