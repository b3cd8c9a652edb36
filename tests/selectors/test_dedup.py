"""Exact, near and semantic duplicates: which rows stay, and which row each of the others names."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from curate.exceptions import InputError
from curate.numerics.minhash import signatures
from curate.numerics.shingles import shingles
from curate.seeding import rng_for
from curate.selectors import ExactDuplicates, NearDuplicates, SemDeDup


def test_of_equal_rows_the_lowest_stays():
    x = np.array([[3, 1], [2, 2], [3, 1], [0, 0], [2, 2], [3, 1]], dtype=np.uint64)
    chosen = ExactDuplicates().select(x)
    assert chosen.indices.tolist() == [0, 1, 3]
    assert chosen.instead.tolist() == [-1, -1, 0, -1, 1, 0]
    assert chosen.account == {"groups": 2, "dropped": 3, "largest_group": 3}
    assert chosen.threshold == 1.0 and chosen.basis[2] == 1.0 and np.isnan(chosen.basis[0])
    assert chosen.explain(2) == ("row 2: not chosen: the same as a row that stays, the limit is 1 (similarity 1).")


def test_of_equal_rows_the_best_stays_and_the_best_come_first():
    x = np.array([[3, 1], [2, 2], [3, 1], [0, 0], [2, 2]], dtype=np.uint64)
    chosen = ExactDuplicates().select(x, quality=np.array([1.0, 5.0, 2.0, 9.0, 5.0]))
    assert chosen.indices.tolist() == [3, 1, 2]
    assert chosen.instead.tolist() == [2, -1, -1, -1, 1]
    assert ExactDuplicates().select(x, 2, quality=np.array([1.0, 5.0, 2.0, 9.0, 5.0])).indices.tolist() == [3, 1]


@given(arrays(np.uint64, st.tuples(st.integers(0, 30), st.just(2)), elements=st.integers(0, 3)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_exact_duplicates_are_those_of_a_dictionary(x, weighed):
    quality = rng_for(len(x), "quality").integers(0, 3, len(x)).astype(float)
    chosen = ExactDuplicates().select(x, quality=quality if weighed else None)
    best: dict = {}
    for row in sorted(range(len(x)), key=lambda i: (-quality[i] if weighed else 0, i)):
        best.setdefault(tuple(x[row]), row)
    assert chosen.indices.tolist() == list(best.values())
    assert [best[tuple(row)] for row in x] == np.where(chosen.instead < 0, np.arange(len(x)), chosen.instead).tolist()


def signed(texts, places=128):
    return signatures(*shingles(texts, 5, "words"), places)


def words(n, seed=0):
    return [f"w{i}" for i in rng_for(seed, "words").integers(0, 10**6, n)]


def test_near_duplicates_by_the_jaccard_similarity():
    text = words(200)
    close, far = list(text), list(text)
    close[50] = "other"  # 5 of 196 shingles: J = 191 / 201 = 0.95
    far[10:190:12] = ["other"] * 15  # 75: J = 121 / 271 = 0.45
    x = signed([" ".join(t) for t in (text, words(200, 1), close, far, text)])
    chosen = NearDuplicates().select(x)
    assert chosen.indices.tolist() == [0, 1, 3] and chosen.instead.tolist() == [-1, -1, 0, -1, 0]
    assert chosen.basis[4] == 1.0 and abs(chosen.basis[2] - 0.95) < 4 * chosen.account["standard_error"]
    told = {"bands": 21, "places_a_band": 6, "found_at_threshold": 0.9983, "standard_error": 0.0354}
    assert {key: chosen.account[key] for key in told} == told
    assert chosen.account["groups"] == 1 and chosen.account["largest_group"] == 3 and chosen.bound == 0.8
    assert NearDuplicates().select(x, quality=np.array([0, 0, 2.0, 0, 1])).instead.tolist() == [2, -1, -1, -1, 2]


def test_planted_copies_are_found():
    rng = rng_for(0, "planted")
    texts, origin = [], []
    for i in range(600):
        text = words(150, i)
        texts.append(" ".join(text))
        if i % 3 == 0:
            at = rng.choice(150, 2, replace=False)  # 10 of 146 shingles: J = 136 / 156 = 0.87
            for j in at.tolist():
                text[j] = "changed"
            texts.append(" ".join(text))
            origin.append(len(texts) - 1)
    chosen = NearDuplicates().select(signed(texts))
    dropped = np.flatnonzero(chosen.instead >= 0)
    assert set(dropped) <= set(origin) and (chosen.instead[dropped] == dropped - 1).all()
    assert dropped.size > 0.97 * len(origin)


def test_every_dropped_row_is_as_similar_as_asked_to_the_row_it_names():
    rng = rng_for(0, "chains")
    x = rng.integers(0, 4, (400, 16)).astype(np.uint32)
    for threshold in (0.4, 0.5, 0.75):
        chosen = NearDuplicates(threshold=threshold).select(x)
        dropped = np.flatnonzero(chosen.instead >= 0)
        assert dropped.size
        same = (x[dropped] == x[chosen.instead[dropped]]).mean(axis=1)
        np.testing.assert_array_equal(same, chosen.basis[dropped])
        assert (same >= threshold).all() and (chosen.instead[chosen.instead[dropped]] == -1).all()


def test_a_threshold_that_floating_point_cannot_hold():
    x = np.zeros((2, 100), dtype=np.uint32)
    x[1, :45] = 1
    assert NearDuplicates(threshold=0.55).select(x).instead.tolist() == [-1, 0]  # 0.55 · 100 is 55.00000000000001
    assert NearDuplicates(threshold=0.56).select(x).size == 2


def reference_semantic(x, epsilon, order):
    units = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    kept, instead = [], np.full(len(x), -1)
    for row in order:
        cosines = units[kept] @ units[row] if kept else np.array([-1.0])
        if cosines.max() > 1 - epsilon:
            instead[row] = kept[int(cosines.argmax())]
        else:
            kept.append(row)
    return instead


def test_semantic_duplicates_over_all_pairs():
    x = rng_for(0, "vectors").normal(size=(200, 3)).astype(np.float32)
    quality = rng_for(0, "quality").permutation(200).astype(float)
    chosen = SemDeDup(epsilon=0.02, clusters=1).select(x, quality=quality)
    np.testing.assert_array_equal(chosen.instead, reference_semantic(x, 0.02, np.argsort(-quality)))
    assert chosen.indices.tolist() == [i for i in np.argsort(-quality) if chosen.instead[i] < 0]
    assert chosen.account["clusters"] == 1 and chosen.bound == 0.98
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    away = ((units - units.mean(axis=0)) ** 2).sum(axis=1)
    without = SemDeDup(epsilon=0.02, clusters=1).select(x)  # the paper's order: the farthest from the centroid stays
    np.testing.assert_array_equal(without.instead, reference_semantic(x, 0.02, np.argsort(-away, kind="stable")))
    assert without.indices.tolist() == np.flatnonzero(without.instead < 0).tolist()


def test_semantic_duplicates_within_clusters():
    rng = rng_for(0, "blobs")
    centres = np.eye(8)[:4] * 5
    x = (centres[rng.integers(0, 4, 300)] + rng.normal(size=(300, 8))) * rng.uniform(0.1, 9, (300, 1))
    x[200:250] = x[:50] * 3  # copies, but for their length
    quality = np.zeros(300)
    chosen = SemDeDup(epsilon=1e-6, clusters=4).select(x.astype(np.float32), quality=quality)
    np.testing.assert_array_equal(np.flatnonzero(chosen.instead >= 0), np.arange(200, 250))
    np.testing.assert_array_equal(chosen.instead[200:250], np.arange(50))
    assert chosen.account["clusters"] == 4 and chosen.account["groups"] == 50


def test_semantic_duplicates_of_the_odd_rows():
    zeros = SemDeDup().select(np.zeros((5, 3), dtype=np.float32))
    assert zeros.indices.tolist() == [0] and (zeros.instead[1:] == 0).all()
    same = SemDeDup(clusters=3).select(np.full((40, 3), 2.0))
    assert same.indices.tolist() == [0] and same.account["largest_group"] == 40
    huge = SemDeDup().select(np.array([[1e30, 0], [2e30, 0], [1e-30, 0], [0, 1e30]], dtype=np.float32))
    assert huge.instead.tolist() == [-1, 0, 0, -1]


@pytest.mark.parametrize("selector", [ExactDuplicates(), NearDuplicates(), SemDeDup()])
def test_empty_and_single_pools_and_budgets(selector):
    assert selector.select(np.empty((0, 4), dtype=np.uint32)).account["dropped"] == 0
    assert selector.select(np.ones((1, 4), dtype=np.uint32)).indices.tolist() == [0]
    x = np.ones((9, 4), dtype=np.uint32)
    assert selector.select(x).indices.tolist() == [0]
    with pytest.raises(InputError, match="2 rows"):
        selector.select(x, 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: NearDuplicates(threshold=0),
            "a threshold above 0 and up to 1, a Jaccard similarity, was asked; 0 was",
        ),
        (lambda: NearDuplicates(threshold=1.01), "1.01 was found"),
        (lambda: NearDuplicates(recall=1), "a recall between 0 and 1 was asked, 1 was found"),
        (lambda: SemDeDup(epsilon=0), "an epsilon between 0 and 1 was asked, 0 was found"),
        (lambda: SemDeDup(clusters=0), "clusters of at least 1 was asked, 0 was found"),
        (lambda: SemDeDup(iterations=0), "iterations of at least 1"),
    ],
)
def test_bad_parameters(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_standard_error_is_that_of_the_threshold():
    x = np.zeros((2, 50), dtype=np.uint32)
    assert NearDuplicates(threshold=0.9).select(x).account["standard_error"] == round(math.sqrt(0.09 / 50), 4)
