"""``check_scorer`` itself: it passes a good scorer, and finds each broken law."""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from curate.base import Column, Scorer
from curate.example import EXAMPLE_SCHEMA, keys
from curate.exceptions import StageError
from curate.testing import check_scorer, odd_examples

_CALLS = itertools.count()


@dataclass(kw_only=True)
class Good(Scorer):
    """Characters of a row, times a factor.  Every broken scorer below is this one, broken in one place."""

    name = "good"
    reads = ("chars",)
    factor: float = 2.0
    rounding: Literal["down", "up"] = "down"
    limit: int | None = None
    label: str = "x"

    @property
    def columns(self):
        return (Column("size", "characters"),)

    def _score(self, examples):
        chars = examples["chars"].to_numpy().astype(float)
        return {"size": self.factor * chars, "reason": [None if c else "empty" for c in chars.tolist()]}


@dataclass(kw_only=True)
class GoodFit(Good):
    fit_rows = 10

    def fit(self, sample):
        return {"mean": np.array(sample["chars"].to_numpy().mean())}

    def load(self, state):
        self.mean_ = float(state["mean"])

    def _score(self, examples):
        return {"size": examples["chars"].to_numpy() - self.mean_}


@pytest.mark.parametrize("scorer", [Good(), Good(factor=1.5, limit=3), GoodFit()])
def test_a_good_scorer_passes(scorer):
    check_scorer(scorer)


class CentredOnTheBatch(Good):
    def _score(self, examples):
        chars = examples["chars"].to_numpy()
        return {"size": chars - chars.mean()}


class SlightlyBatchDependent(Good):
    def _score(self, examples):
        return {"size": examples["chars"].to_numpy() * 1.0 + 1e-7 * examples.num_rows}


class Tolerant(SlightlyBatchDependent):
    tolerance = 1e-5


class FirstRowOfTheBatchIsNull(Good):
    def _score(self, examples):
        return {"size": np.ones(examples.num_rows), "reason": ["first", *[None] * (examples.num_rows - 1)]}


class IgnoresSlices(Good):
    def _score(self, examples):
        return {"size": examples["chars"].chunk(0).to_numpy().astype(float)}


class NotRepeatable(Good):
    def _score(self, examples):
        return {"size": np.full(examples.num_rows, float(next(_CALLS)))}


class SecretlyReadsMore(Good):
    def _score(self, examples):
        return {"size": np.full(examples.num_rows, float("row" in examples.column_names))}


class BlankReason(Good):
    def _score(self, examples):
        return {"size": np.full(examples.num_rows, np.nan), "reason": [" "] * examples.num_rows}


class ChangesItsParameters(Good):
    def _score(self, examples):
        self.label = self.label + "x" if len(self.label) < 2 else self.label
        return super()._score(examples)


class ForgetsAParameter(Good):
    def identity(self):
        identity = super().identity()
        del identity["params"]["factor"]
        return identity


class ForgetsAChoice(Good):
    def identity(self):
        identity = super().identity()
        del identity["params"]["rounding"]
        return identity


class NeutralButCounted(Good):
    neutral = ("label",)

    def identity(self):
        return {**super().identity(), "label": self.label}


class IdentityIsNotJson(Good):
    def identity(self):
        return {**super().identity(), "shape": (1, 2)}


class ReloadsOnOpen(Good):
    def open(self):
        self.model_ = object()


class DoesNotReopen(Good):
    def close(self):
        self.closed_ = True

    def _score(self, examples):
        return {"size": np.full(examples.num_rows, float(hasattr(self, "closed_")))}


class HasNoUnit(Good):
    @property
    def columns(self):
        return (Column("size", ""),)


class TakesAReservedName(Good):
    @property
    def columns(self):
        return (Column("id", "characters"),)


class ReadsTheUnknown(Good):
    reads = ("chars", "wings")


class BadName(Good):
    name = "Good_Scorer"


def local_class():
    class CannotTravel(Good):
        pass

    return CannotTravel()


class FitDependsOnOrder(GoodFit):
    def fit(self, sample):
        return {"mean": np.array(float(sample["chars"][0].as_py()))}


class FitIsNotRepeatable(GoodFit):
    def fit(self, sample):
        return {"mean": np.array(float(next(_CALLS)))}


class FitReturnsObjects(GoodFit):
    def fit(self, sample):
        return {"mean": "3.0"}


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (CentredOnTheBatch(), "law 3 .random (order|batches) 0.: row .* must not depend on the rows that come along"),
        (SlightlyBatchDependent(), "law 3 .random batches 0.: row .* moved by .* 0 is allowed"),
        (FirstRowOfTheBatchIsNull(), "law 3 .random order 0.: the reason of row .* was"),
        (NotRepeatable(), "law 3 .scored again."),
        (SecretlyReadsMore(), "law 3 .only the columns in `reads`."),
        (BlankReason(), "law 2: the reason of row 0 is blank"),
        (ChangesItsParameters(), "law 4: scoring changed the parameters"),
        (ForgetsAParameter(), "the same whatever 'factor' is"),
        (ForgetsAChoice(), "the same whatever 'rounding' is"),
        (NeutralButCounted(), "depends on 'label', which is neutral"),
        (IdentityIsNotJson(), "changes when it is written as JSON"),
        (local_class(), "cannot be sent to a worker: .*CannotTravel"),
        (ReloadsOnOpen(), "calling it twice is not free, it replaced .'model_'."),
        (DoesNotReopen(), "law 3 .opened again after close."),
        (HasNoUnit(), "column 'size' has no unit"),
        (TakesAReservedName(), "'reason' and 'id' are taken"),
        (ReadsTheUnknown(), "'wings'. are no columns of the example schema"),
        (BadName(), "is not lower-case-with-hyphens"),
        (FitDependsOnOrder(), "in another order: 'mean'"),
        (FitIsNotRepeatable(), "a second time: 'mean'"),
        (FitReturnsObjects(), "'mean' is str, not a plain array"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Scorer) else "",
)
def test_a_broken_scorer_is_found(broken, text):
    with pytest.raises(AssertionError, match=text):
        check_scorer(broken)


def test_a_scorer_that_looks_at_the_first_chunk_only_is_found():
    with pytest.raises(StageError, match="rows were asked, column 'size' has"):
        check_scorer(IgnoresSlices())


def test_the_tolerance_is_the_scorers_or_the_callers():
    check_scorer(SlightlyBatchDependent(), tolerance=1e-5)

    check_scorer(Tolerant())


def test_odd_examples_are_examples():
    examples = odd_examples()
    assert examples.schema == EXAMPLE_SCHEMA
    for row in examples.to_pylist():
        assert (row["content_key"], row["prompt_key"]) == keys(row["messages"], row["tools"])
        assert any(m["role"] == "assistant" for m in row["messages"])
    assert len(set(examples["content_key"].to_pylist())) == examples.num_rows - 1  # one exact copy
    pa.Table.validate(examples, full=True)
