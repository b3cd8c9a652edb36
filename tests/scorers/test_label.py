"""A column of the user's rows as a label."""

import pyarrow as pa
import pytest

from curate.exceptions import InputError
from curate.scorers import Label


@pytest.mark.parametrize(
    ("extra", "label", "reason"),
    [
        ('{"task": " maths "}', "maths", None),
        ('{"task": 3}', "3", None),
        ('{"task": true}', "true", None),
        ('{"task": ""}', None, "task: empty"),
        ('{"task": null}', None, "task: empty"),
        ('{"task": ["a"]}', None, "task: not a label"),
        ('{"other": "a"}', None, "task: missing"),
        (None, None, "task: missing"),
    ],
)
def test_labels(extra, label, reason):
    got = Label(column="task").score(pa.table({"extra": pa.array([extra], pa.string())})).to_pylist()
    assert got == [{"label": label, "reason": reason}]


def test_a_name_is_asked():
    with pytest.raises(InputError, match="the name of a column was asked"):
        Label(column="")
