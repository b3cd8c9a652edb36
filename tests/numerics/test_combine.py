"""Combination of score columns: formulas against loops, and the laws of each method."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.exceptions import InputError
from curate.selectors.combine import combine

METHODS = ["rank", "zscore", "minmax", "topsis"]
NAMES = ["likelihood", "loss", "length"]
HIGHER = {"likelihood": True, "loss": False}
WEIGHTS = {"likelihood": 2.0, "loss": 1.0, "length": 0.5}


def reference(rows: list[list[float]], method: str, weights: list[float], higher: list[bool]) -> list[float]:
    """Each formula as a loop over rows and columns that hold no NaN, in float64."""
    if not rows:
        return []
    n, total = len(rows), sum(weights)
    weights = [w / total for w in weights]
    columns = [[row[j] if up else -row[j] for row in rows] for j, up in enumerate(higher)]
    if method == "topsis":
        columns = [[row[j] for row in rows] for j in range(len(higher))]
        norm = [math.sqrt(sum(v * v for v in column)) for column in columns]
        v = [[w * x / s if s else 0.0 for x in column] for column, w, s in zip(columns, weights, norm, strict=True)]
        best = [max(c) if up else min(c) for c, up in zip(v, higher, strict=True)]
        worst = [min(c) if up else max(c) for c, up in zip(v, higher, strict=True)]
        out = []
        for i in range(n):
            up = math.dist([c[i] for c in v], best)
            down = math.dist([c[i] for c in v], worst)
            out.append(down / (up + down) if up + down else 0.5)
        return out
    parts = []
    for column in columns:
        if method == "rank":
            part = [(sum(w < x for w in column) + (sum(w == x for w in column)) / 2) / n for x in column]
        elif len(set(column)) == 1:
            part = [0.0 if method == "zscore" else 0.5] * n
        elif method == "zscore":
            mean = math.fsum(column) / n
            std = math.sqrt(math.fsum((x - mean) ** 2 for x in column) / n)
            part = [(x - mean) / std for x in column]
        else:
            part = [(x - min(column)) / (max(column) - min(column)) for x in column]
        parts.append(part)
    return [math.fsum(w * part[i] for w, part in zip(weights, parts, strict=True)) for i in range(n)]


# Whole numbers, so that sums, ties and constant columns are what they look like.
TABLES = st.integers(0, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(-4, 4).map(float), min_size=3, max_size=3), min_size=n, max_size=n)
)


def table(rows: list[list[float]]) -> dict[str, np.ndarray]:
    return dict(zip(NAMES, np.array(rows, dtype=np.float64).reshape(-1, 3).T, strict=True))


@pytest.mark.parametrize("method", METHODS)
@given(rows=TABLES)
def test_parity_with_the_formulas(method, rows):
    found = combine(table(rows), method=method, weights=WEIGHTS, directions=HIGHER)
    expected = reference(rows, method, [2.0, 1.0, 0.5], [True, False, True])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_by_hand():
    columns = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([0.0, 0.0, 4.0])}
    assert combine(columns, method="rank").tolist() == pytest.approx([1 / 4, (1 / 2 + 1 / 3) / 2, 5 / 6])
    assert combine(columns, method="minmax", weights={"b": 3}).tolist() == pytest.approx([0, 0.125, 1])
    z = math.sqrt(1.5)
    assert combine({"a": columns["a"]}, method="zscore", directions={"a": False}).tolist() == pytest.approx([z, 0, -z])
    # One column: closeness is the place between the extremes.
    assert combine({"a": columns["a"]}, method="topsis").tolist() == pytest.approx([0, 0.5, 1])
    # ‖(3, 4)‖ = 5, so column by column v = w (0.6, 0.8) and v = (1 - w) (0.8, 0.6), and d⁻ : d⁺ = w : 1 - w for row 1.
    mirror = {"a": np.array([3.0, 4.0]), "b": np.array([4.0, 3.0])}
    assert combine(mirror, method="topsis").tolist() == pytest.approx([0.5, 0.5])
    assert combine(mirror, method="topsis", weights={"a": 1, "b": 3}).tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("method", METHODS)
@given(
    rows=TABLES,
    holes=st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from(NAMES), st.sampled_from([math.nan, math.inf])), max_size=4
    ),
)
def test_rows_with_a_hole_are_nan_and_count_for_nothing(method, rows, holes):
    columns = table(rows)
    hit = np.zeros(len(rows), dtype=bool)
    for row, name, value in holes:
        if row < len(rows):
            columns[name][row] = value
            hit[row] = True
    found = combine(columns, method=method, weights=WEIGHTS)
    assert np.isnan(found).tolist() == hit.tolist()
    alone = combine({name: column[~hit] for name, column in columns.items()}, method=method, weights=WEIGHTS)
    np.testing.assert_array_equal(found[~hit], alone)


@pytest.mark.parametrize("method", METHODS)
@given(rows=TABLES, data=st.data())
def test_rows_may_come_in_any_order(method, rows, data):
    order = np.array(data.draw(st.permutations(range(len(rows)))), dtype=int)
    columns = table(rows)
    found = combine({name: column[order] for name, column in columns.items()}, method=method)
    np.testing.assert_allclose(found, combine(columns, method=method)[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@given(rows=TABLES)
def test_a_row_that_is_at_least_as_good_everywhere_is_not_ranked_below(method, rows):
    found = combine(table(rows), method=method, weights=WEIGHTS, directions=HIGHER)
    turned = np.array(rows).reshape(-1, 3) * [1, -1, 1]
    for i in range(len(rows)):
        worse = (turned <= turned[i]).all(axis=1)
        assert (found[worse] <= found[i] + 1e-12).all()


@pytest.mark.parametrize("method", METHODS)
@given(rows=TABLES, scale=st.sampled_from([2.0**-300, 0.3, 7.0, 2.0**500]), shift=st.sampled_from([0.0, -1e4, 3.0]))
def test_units_do_not_matter(method, rows, scale, shift):
    columns = table(rows)
    other = dict(columns, likelihood=columns["likelihood"] * scale)
    if method != "topsis":  # a shift changes TOPSIS: see the next test
        other["length"] = columns["length"] + shift
    np.testing.assert_allclose(combine(other, method=method), combine(columns, method=method), rtol=0, atol=1e-9)


def test_a_shift_does_change_topsis():
    columns = {"a": np.array([1.0, 2.0, 4.0]), "b": np.array([3.0, 1.0, 2.0])}
    moved = dict(columns, a=columns["a"] + 100)
    assert np.abs(combine(moved, method="topsis") - combine(columns, method="topsis")).max() > 0.1


@settings(max_examples=30)
@given(rows=TABLES)
def test_ranks_survive_any_increasing_function(rows):
    columns = table(rows)
    bent = dict(columns, loss=np.exp(columns["loss"]))
    np.testing.assert_array_equal(combine(bent, method="rank"), combine(columns, method="rank"))


@pytest.mark.parametrize(("method", "value"), [("rank", 0.5), ("zscore", 0.0), ("minmax", 0.5), ("topsis", 0.5)])
def test_a_constant_column(method, value):
    """0.1 three times has a rounded mean other than 0.1, and a computed deviation above 0."""
    assert combine({"a": np.full(3, 0.1)}, method=method).tolist() == [value] * 3
    assert combine({"a": np.zeros(3)}, method=method).tolist() == [value] * 3
    assert combine({"a": np.empty(0)}, method=method).tolist() == []


# -- the product -------------------------------------------------------------------------------------------------------


@given(rows=st.lists(st.lists(st.integers(0, 6).map(float), min_size=3, max_size=3), max_size=12))
def test_the_product_is_the_geometric_mean(rows):
    x = np.array(rows).reshape(-1, 3)
    found = combine(table(rows), method="product", weights=WEIGHTS)
    expected = [math.prod(v ** (w / 3.5) for v, w in zip(row, WEIGHTS.values(), strict=True)) for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    equal = combine(table(rows), method="product")
    product = x.prod(axis=1)
    for i in range(len(rows)):  # the order of the product, its ties included
        np.testing.assert_array_equal(equal > equal[i], product > product[i])
        np.testing.assert_array_equal(equal == equal[i], product == product[i])


def test_the_product_at_the_ends():
    large = {"a": np.array([1e300, 1e299]), "b": np.array([1e300, 1e300])}
    np.testing.assert_allclose(combine(large, method="product"), [1e300, 1e300 / math.sqrt(10)], rtol=1e-12)
    assert combine({"a": np.zeros(2), "b": np.ones(2)}, method="product").tolist() == [0, 0]
    assert combine({"a": np.empty(0)}, method="product").tolist() == []
    holes = combine(
        {"a": [np.nan, 4.0], "b": [-1.0, 9.0]}, method="product"
    )  # a row that is not whole is not looked at
    assert np.isnan(holes[0]) and holes[1] == pytest.approx(6)


@pytest.mark.parametrize(("directions", "more"), [({}, ""), ({"b": False}, ", lower is better there")])
def test_a_product_of_negative_numbers_is_refused(directions, more):
    values = [2.0, -0.5] if not directions else [0.0, 0.5]
    with pytest.raises(InputError, match="asks for numbers of at least 0") as error:
        combine({"a": [1.0, 2.0], "b": values}, method="product", directions=directions)
    assert f"column 'b' has {values[1]} at row 1{more}" in str(error.value)


def test_a_column_of_weight_0_is_not_looked_at():
    columns = {"a": np.array([1.0, 2.0]), "b": np.array([np.nan, 1.0])}
    assert combine(columns, weights={"b": 0}).tolist() == [0.25, 0.75]


def test_huge_values_do_not_overflow():
    for method in METHODS:
        assert np.isfinite(combine({"a": np.array([1e300, 0.0, 2e300])}, method=method)).all()


@pytest.mark.parametrize(
    ("columns", "more", "said"),
    [
        ({}, {}, "combine: at least one column was asked, none was found"),
        ({"a": [1.0]}, {"method": "sum"}, "method is one of rank, zscore, minmax, topsis, product, mean; found 'sum'"),
        ({"a": [1.0]}, {"weights": {"b": 1}}, "weights name ['b'], which are not among the columns ['a']"),
        ({"a": [1.0]}, {"directions": {"b": True}}, "directions name ['b'], which are not among"),
        (
            {"a": [1.0]},
            {"weights": {"a": -1}},
            "weights of at least 0, one of them above 0, were asked; found {'a': -1.0}",
        ),
        ({"a": [1.0]}, {"weights": {"a": 0}}, "found {'a': 0.0}. Say by directions={name: False} that lower is better"),
        ({"a": [1.0]}, {"weights": {"a": math.nan}}, "found {'a': nan}"),
        (
            {"a": [1.0], "b": [1.0, 2.0]},
            {},
            "columns of one length and one dimension were asked, shapes {'a': (1,), 'b': (2,)}",
        ),
    ],
)
def test_what_cannot_be_combined(columns, more, said):
    with pytest.raises(InputError) as error:
        combine(columns, **more)
    assert said in str(error.value)


# -- winsorising -------------------------------------------------------------------------------------------------------


def winsorised(column: list[float], share: Fraction) -> list[float]:
    """The k lowest and the k highest values, brought to the next one; as a sort."""
    k = int(share * len(column))
    ordered = sorted(column)
    return [min(max(x, ordered[k]), ordered[-1 - k]) for x in column] if column else []


@pytest.mark.parametrize("method", METHODS)
@given(rows=TABLES, percent=st.integers(0, 49))
def test_winsorising_is_combining_what_was_winsorised(method, rows, percent):
    columns = table(rows)
    brought = {name: np.array(winsorised(c.tolist(), Fraction(percent, 100))) for name, c in columns.items()}
    found = combine(columns, method=method, directions=HIGHER, winsorise=percent / 100)
    np.testing.assert_array_equal(found, combine(brought, method=method, directions=HIGHER))


def test_an_outlier_does_not_set_the_ideal():
    """1,000 rows, one of them far out: without winsorising TOPSIS cannot tell the others apart."""
    x = np.r_[np.arange(999.0), 1e9]
    plain, held = (combine({"a": x}, method="topsis", winsorise=share) for share in (0.0, 0.001))
    assert np.ptp(plain[:999]) < 1e-5
    assert held[0] == held[1] == 0 and held[997] < held[998] == held[999] == 1
    np.testing.assert_allclose(held[1:998], np.arange(0, 997) / 997, atol=1e-12)  # between the next to the ends


def test_a_share_of_rows_is_exact():
    """29% of 100 rows are 29, although 0.29 · 100 is 28.999999999999996 in floats; below one row nothing moves."""
    x = np.arange(100.0)
    assert combine({"a": x}, method="minmax", winsorise=0.29).tolist() == pytest.approx(np.clip((x - 29) / 41, 0, 1))
    np.testing.assert_array_equal(combine({"a": x}, winsorise=0.0099), combine({"a": x}))


@pytest.mark.parametrize("share", [-0.1, 0.5, math.nan])
def test_a_share_that_cannot_be_brought_in(share):
    with pytest.raises(InputError) as error:
        combine({"a": [1.0]}, winsorise=share)
    assert str(error.value) == f"combine: winsorise is a share of at least 0 and below 0.5; found {share}."


# -- the plain mean, and parts that are missing ------------------------------------------------------------------------


def test_the_mean_takes_numbers_as_they_are() -> None:
    x = {"consistency": np.array([1.0, 0.5, 0.0]), "certainty": np.array([0.0, 0.5, 1.0])}
    found = combine(x, method="mean", weights={"consistency": 0.7, "certainty": 0.3})
    np.testing.assert_allclose(found, [0.7, 0.5, 0.3], rtol=1e-15)
    turned = combine(x, method="mean", directions={"certainty": False})
    np.testing.assert_array_equal(turned, [0.5, 0.0, -0.5])


@given(st.lists(st.tuples(*[st.one_of(st.none(), st.floats(0, 1))] * 3), max_size=10))
@settings(deadline=None)
def test_missing_parts_are_reweighted(rows: list[tuple[float | None, ...]]) -> None:
    x = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=float).reshape(-1, 3)
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    columns = dict(zip(weights, x.T, strict=True))
    found = combine(columns, method="mean", weights=weights, missing="reweight")
    plain = combine(columns, method="mean", weights=weights)
    for i, row in enumerate(rows):
        there = [(w, v) for w, v in zip(weights.values(), row, strict=True) if v is not None]
        if not there:
            assert np.isnan(found[i]) and np.isnan(plain[i])
            continue
        wanted = sum(w * v for w, v in there) / sum(w for w, _ in there)
        assert found[i] == pytest.approx(wanted, rel=1e-12, abs=1e-15)
        assert found[i] == plain[i] if len(there) == 3 else np.isnan(plain[i])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "rank", "missing": "reweight"}, "method='rank', winsorise=0.0; it is for the plain mean"),
        ({"method": "mean", "missing": "reweight", "winsorise": 0.1}, "winsorise=0.1; it is for the plain mean"),
        ({"method": "mean", "missing": "zero"}, "missing is null or reweight; found 'zero'."),
    ],
)
def test_what_cannot_be_reweighted(asked: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as error:
        combine({"a": np.array([0.0, 1.0])}, **asked)  # type: ignore[arg-type]
    assert said in str(error.value)
