"""Drawing without replacement in proportion to weights."""

from __future__ import annotations

import numpy as np
import pytest

from curate.exceptions import InputError
from curate.selectors import Sample


def drawn(x, k, draws=4000, **parameters):
    return np.array([Sample(seed=seed, **parameters).select(np.array(x), k).indices for seed in range(draws)])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_the_first_row_is_drawn_in_proportion_to_its_weight(temperature):
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    shares = np.bincount(drawn(temperature * np.log(weights), 1, temperature=temperature)[:, 0], minlength=4) / 4000
    error = 4 * np.sqrt(weights * (1 - weights) / 4000)  # four standard errors
    assert (np.abs(shares - weights) < error).all()


def test_the_second_is_drawn_from_what_is_left():
    weights = np.array([0.6, 0.3, 0.1])
    pairs = drawn(np.log(weights), 2)
    for first in range(3):
        for second in set(range(3)) - {first}:
            p = weights[first] * weights[second] / (1 - weights[first])
            share = ((pairs[:, 0] == first) & (pairs[:, 1] == second)).mean()
            assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 4000)


def test_a_shift_of_all_scores_changes_nothing_and_draws_nest():
    x = np.arange(50) / 8
    chosen = Sample().select(x, 20).indices
    assert np.array_equal(Sample().select(x - 1024, 20).indices, chosen)
    assert np.array_equal(Sample().select(x, 5).indices, chosen[:5])


def test_a_low_temperature_takes_the_highest_and_scores_of_any_size_do():
    x = np.array([1e300, -1e300, 3.0, 2.0, 2.5])
    assert Sample(temperature=1e-3).select(x, 3).indices.tolist() == [0, 2, 4]
    assert Sample(temperature=1e-300).select(x).indices.tolist() == [0, 2, 4, 3, 1]


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
def test_a_temperature_is_above_0(temperature):
    with pytest.raises(InputError, match="Sample: a temperature above 0 was asked"):
        Sample(temperature=temperature)
