"""A column of the user's rows as a score."""

import json
import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.scorers import ColumnValue


def score(extras, **params):
    examples = pa.table({"extra": pa.array(extras, pa.string())})
    return ColumnValue(column="q", **params).score(examples).to_pylist()


@pytest.mark.parametrize(
    ("extra", "value"),
    [
        ('{"q": 1}', 1.0),
        ('{"q": -2.5e-3}', -2.5e-3),
        ('{"q": true}', 1.0),
        ('{"q": false}', 0.0),
        ('{"q": " 4.5 "}', 4.5),
        ('{"q": "1e3", "other": "x"}', 1000.0),
    ],
)
def test_values(extra, value):
    assert score([extra]) == [{"value": value, "reason": None}]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (None, "q: missing"),
        ("{}", "q: missing"),
        ('{"Q": 1}', "q: missing"),
        ('{"q": null}', "q: empty"),
        ('{"q": "  "}', "q: empty"),
        ('{"q": "high"}', "q: not a number"),
        ('{"q": NaN}', "q: not a number"),
        ('{"q": "inf"}', "q: not a number"),
        ('{"q": [1]}', "q: not a number"),
        ('{"q": {"q": 1}}', "q: not a number"),
        ('{"q": 1' + 400 * "0" + "}", "q: not a number"),
    ],
)
def test_reasons(extra, reason):
    assert score([extra, '{"q": 7}']) == [{"value": None, "reason": reason}, {"value": 7.0, "reason": None}]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)))
def test_any_number_comes_back_as_it_was(values):
    assert [row["value"] for row in score([json.dumps({"q": value}) for value in values])] == values


def test_direction_and_unit():
    (column,) = ColumnValue(column="q", higher_is_better=False, unit="nats").columns
    assert (column.name, column.unit, column.higher_is_better) == ("value", "nats", False)


def test_a_column_needs_a_name():
    with pytest.raises(InputError, match=re.escape("the name of a column was asked, an empty name was found")):
        ColumnValue(column="")
