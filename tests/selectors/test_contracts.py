"""The laws of ``Selector``, over everything that the registry knows, and over selectors that break them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from curate import registry
from curate.base import Inputs, Ranking, Selector
from curate.testing import check_selector

SETTINGS = {
    "top-k": [{}, {"largest": False}],
    "threshold": [{"min": 0.25}, {"max": 0.5, "largest": False}, {"min": 0.1, "max": 0.3}, {"min": 1e9}],
    "quantile": [{}, {"share": 0.3, "ties": "drop"}, {"share": 0.9, "largest": False, "ties": "drop"}, {"share": 1.0}],
    "random": [{}, {"seed": 7}],
    "sample": [{}, {"temperature": 0.1, "seed": 7}],
    "longest": [{}],
    "best-per-prompt": [{}, {"per_prompt": 2, "largest": False}],
    "kmq": [
        {},
        {"clusters": 3, "quality_scale": "proportional"},
        {"clusters": 50, "quality_scale": "exp", "balance": "equal", "iterations": 2},
        {"within": "closest"},
        {"within": "random", "seed": 3},
    ],
    "k-center": [{}, {"first": "best", "min_quality": 0.3, "max_distance": 0.6}],
    "repr-filter": [{}, {"threshold": 0.5}],
    "iterative-kmq": [{}, {"rounds": 2, "clusters": 3, "evaluate": 1.0}, {"round_rows": 4, "temperature": 0.1}],
    "less": [
        {},
        {"targets": list("aabbbc")},
        {"targets": list("abacab"), "aggregate": "mean"},
        {"aggregate": "max"},
        {"aggregate": "sum"},
    ],
    "bids": [{}, {"clip": 1.5}],
    "round-robin": [
        {},
        {"targets": list("aabbbc")},
        {"targets": list("abcdef")},
        {"targets": list("abacab"), "within": "mean"},
    ],
    "exact-duplicates": [{}],
    "near-duplicates": [{}, {"threshold": 0.3, "recall": 0.5}, {"threshold": 1.0}],
    "sem-dedup": [{}, {"epsilon": 0.5, "clusters": 3}, {"epsilon": 0.2, "clusters": 50, "iterations": 2}],
    "facility-location": [{}, {"neighbours": 3, "alpha": 0.0}, {"neighbours": 2, "represent": 7, "alpha": 0.2}],
    "log-det": [{}, {"jitter": 1e-6, "quality_weight": 0.0}],
    "mig": [{}, {"clusters": 4, "threshold": 0.5, "quality_scale": "proportional"}],
}


def test_every_built_in_selector_is_checked():
    assert set(SETTINGS) == set(registry.BUILT_IN["selectors"])


@pytest.mark.parametrize(("word", "params"), [(word, params) for word, many in SETTINGS.items() for params in many])
def test_laws(word, params):
    cls = registry.find("selectors", word)
    assert cls.name == word
    check_selector(cls(**params))


@dataclass(kw_only=True)
class Good(Selector):
    """What the broken ones differ from."""

    name: ClassVar[str] = "good"
    shift: int = 0

    def _rank(self, inputs: Inputs, k: int) -> Ranking:
        return Ranking(np.argsort(-inputs.x, kind="stable"), basis=inputs.x)


class Twice(Good):
    def _rank(self, inputs, k):
        order = super()._rank(inputs, k).order
        return Ranking(np.r_[order[:1], order[:-1]], basis=inputs.x)


class NotNested(Good):
    def _rank(self, inputs, k):
        order = super()._rank(inputs, k).order
        return Ranking(np.r_[order[:k][::-1], order[k:]])


class TiesToTheHighest(Good):
    def _rank(self, inputs, k):
        return Ranking(np.argsort(inputs.x, kind="stable")[::-1], basis=inputs.x)


class WrongWay(Good):
    def _rank(self, inputs, k):
        return Ranking(np.argsort(inputs.x, kind="stable"), basis=inputs.x)


class Writes(Good):
    x_name: ClassVar[str] = "features"

    def _rank(self, inputs, k):
        inputs.x[:1] += 1  # features come as they were given
        return Ranking(np.arange(inputs.n))


class Unseeded(Good):
    def _rank(self, inputs, k):
        return Ranking(np.random.default_rng().permutation(inputs.n))


class Remembers(Good):
    def _rank(self, inputs, k):
        self.last_ = getattr(self, "last_", 0) + 1
        return Ranking(np.roll(np.arange(inputs.n), self.last_ // 3))


class ChangesItsParameters(Good):
    def _rank(self, inputs, k):
        self.shift += 1
        return super()._rank(inputs, k)


class GreedyTies(Good):
    x_name: ClassVar[str] = "features"

    def _rank(self, inputs, k):
        return Ranking(np.arange(inputs.n)[::-1], gains=np.zeros(inputs.n))


class OutOfThePool(Good):
    def _rank(self, inputs, k):
        return Ranking(np.arange(inputs.n) - 1)


def test_the_good_one_passes():
    check_selector(Good())


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Twice, "law 1.*chosen twice|rows in the mask"),
        (NotNested, "law 2.*not the first of"),
        (TiesToTheHighest, "law 3.*not taken lowest first"),
        (WrongWay, "law 3.*does not follow score"),
        (Writes, "law 4.*an input was written to"),
        (Unseeded, "law [25]"),
        (Remembers, "law [25]"),
        (ChangesItsParameters, "law 4: selecting changed the parameters"),
        (GreedyTies, "law 3.*not taken lowest first"),
        (OutOfThePool, "law 1.*rows outside the pool"),
    ],
)
def test_broken_selectors_are_caught(broken, said):
    with pytest.raises(AssertionError, match=said):
        check_selector(broken())
