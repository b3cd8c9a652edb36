"""What ``Scorer.score`` does around a subclass."""

import pickle
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from curate.base import Column, Scorer
from curate.exceptions import InputError, StageError
from curate.scorers import HashedNgrams

EXAMPLES = pa.table({"extra": ["a", "b", "c"]})


def scorer_of(returned, *columns):
    """A scorer that returns what it is told to."""

    @dataclass(kw_only=True)
    class Told(Scorer):
        name = "told"
        reads = ("extra",)
        opened: int = 0

        @property
        def columns(self):
            return columns or (Column("a", "units"),)

        def open(self):
            self.opened += 1

        def _score(self, examples):
            return returned

    return Told()


def score(returned, *columns):
    return scorer_of(returned, *columns).score(EXAMPLES)


TWO = (Column("a", "units"), Column("b", "units", dtype="int64"))
VECTOR = (Column("v", "units", dtype="float32[2]"),)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5, 3],
        (1.0, 2.5, 3.0),
        np.array([1, 2.5, 3]),
        np.array([1, 2.5, 3], dtype=np.float32),
        pa.array([1.0, 2.5, 3.0]),
        pa.chunked_array([[1.0], [2.5, 3.0]]),
    ],
    ids=lambda v: type(v).__name__,
)
def test_any_array_like_will_do(values):
    table = score({"a": values})
    assert table.schema == pa.schema([("a", pa.float64()), ("reason", pa.string())])
    assert table.to_pydict() == {"a": [1.0, 2.5, 3.0], "reason": [None] * 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None])
def test_what_is_no_number_becomes_null_in_every_column_with_a_reason(bad):
    table = score({"a": [1.0, bad, 3.0], "b": [1, 2, 3]}, *TWO)
    assert table.to_pydict() == {"a": [1.0, None, 3.0], "b": [1, None, 3], "reason": [None, "not a number", None]}


def test_not_a_number_in_a_column_of_whole_numbers():
    table = score({"b": np.array([1.0, np.nan, 3.0])}, TWO[1])
    assert table.to_pydict() == {"b": [1, None, 3], "reason": [None, "not a number", None]}


@pytest.mark.parametrize(
    "reason", [[None, "too long", None], np.array([None, "too long", None]), pa.array([None, "too long", None])]
)
def test_a_reason_makes_the_row_null(reason):
    table = score({"a": [1.0, 2.0, np.nan], "b": [1, 2, 3], "reason": reason}, *TWO)
    assert table.to_pydict() == {
        "a": [1.0, None, None],
        "b": [1, None, None],
        "reason": [None, "too long", "not a number"],
    }


def test_no_reason_is_no_reason():
    assert score({"a": [1, 2, 3], "reason": pa.array([None] * 3, pa.string())})["reason"].null_count == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors(dtype):
    table = score({"v": np.array([[1, 2], [3, np.nan], [5, 6]], dtype=dtype)}, *VECTOR)
    assert table.schema.field("v").type == pa.list_(pa.float32(), 2)
    assert table.to_pydict() == {"v": [[1, 2], None, [5, 6]], "reason": [None, "not a number", None]}
    flat = table["v"].combine_chunks().values.to_numpy(zero_copy_only=False)
    assert flat.shape == (6,), "a null vector must keep its place"


def test_vectors_of_rows_with_a_reason_are_null():
    table = score({"v": np.ones((3, 2)), "reason": ["no text", None, "no text"]}, *VECTOR)
    assert table["v"].to_pylist() == [None, [1, 1], None]


def test_the_returned_array_is_not_written_to():
    vectors = np.array([[1, np.nan], [3, 4], [5, 6]], dtype=np.float32)
    before = vectors.copy()
    score({"v": vectors}, *VECTOR)
    np.testing.assert_array_equal(vectors, before)


def test_no_rows_give_typed_columns_and_open_nothing():
    scorer = scorer_of(None, *TWO, *VECTOR)
    table = scorer.score(EXAMPLES.slice(0, 0))
    assert table.num_rows == 0 and scorer.opened == 0
    assert table.schema.types == [pa.float64(), pa.int64(), pa.list_(pa.float32(), 2), pa.string()]


@pytest.mark.parametrize(
    ("returned", "columns", "text"),
    [
        ({"b": [1, 2, 3]}, (), "told: columns ['a'] were declared, ['b'] were returned."),
        ({"a": [1, 2, 3], "c": [1, 2, 3]}, (), "told: columns ['a'] were declared, ['a', 'c'] were returned."),
        ({"a": [1, 2]}, (), "told: 3 rows were asked, column 'a' has 2."),
        ({"a": [1, 2, 3], "reason": ["x"]}, (), "told: 3 rows were asked, column 'reason' has 1."),
        ({"a": ["1", "2", "3"]}, (), "told: column 'a' was declared float64: text was returned"),
        ({"a": [1, 2, 3], "b": [1, 2.5, 3]}, TWO, "told: column 'b' was declared int64: "),
        ({"a": np.ones((3, 1))}, (), "told: column 'a' was declared float64: "),
        ({"v": np.ones((3, 4))}, VECTOR, "told: column 'v' was declared float32[2], shape (3, 4) was returned."),
        ({"v": np.ones(6)}, VECTOR, "told: column 'v' was declared float32[2], shape (6,) was returned."),
        ({"v": np.ones((2, 2))}, VECTOR, "told: 3 rows were asked, column 'v' has 2."),
    ],
)
def test_a_subclass_that_breaks_law_1(returned, columns, text):
    with pytest.raises(StageError, match=re.escape(text)):
        score(returned, *columns)


def test_a_column_that_is_not_there():
    with pytest.raises(
        InputError, match=re.escape("told reads ['extra'], which the examples lack; found ['messages'].")
    ):
        scorer_of({}).score(pa.table({"messages": [1]}))


def test_learning_is_refused_where_there_is_nothing_to_learn():
    with pytest.raises(NotImplementedError, match="Told learns nothing"):
        scorer_of({}).fit(EXAMPLES)


def test_neutral_parameters_are_left_out_of_the_identity():
    scorer = scorer_of({})
    assert scorer.identity() == {"name": "told", "version": 1, "params": {"opened": 0}}
    type(scorer).neutral = ("opened",)
    assert scorer.identity() == {"name": "told", "version": 1, "params": {}} and scorer.params() == {"opened": 0}


def test_a_part_travels_as_its_parameters():
    """Neither a model nor a state of many megabytes goes to a worker inside the scorer."""
    scorer = HashedNgrams(dim=4, buckets=64)
    scorer.load({"idf": np.ones(64), "components": np.ones((64, 4))})
    scorer.held_ = lambda: "what pickle refuses"
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy == scorer and copy.params() == scorer.params()
    assert copy.idf_ is None and not hasattr(copy, "held_")
