"""facility-location, log-det and mig as selectors: budgets, quotas, maps on disk, and pools that are not as they should be.

The choices themselves are held against plain searches in tests/numerics.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from curate.budget import Quota
from curate.exceptions import InputError
from curate.seeding import rng_for
from curate.selectors import MIG, FacilityLocation, LogDet, Random

SELECTORS = [FacilityLocation(neighbours=400), LogDet(), MIG(clusters=6)]
EACH = pytest.mark.parametrize("selector", SELECTORS, ids=lambda s: s.name)


@pytest.fixture(scope="module")
def blobs():
    """Six directions, one with 400 rows, the others with 40 each; which is each row's."""
    rng = rng_for(0, "blobs")
    which = rng.permutation(np.repeat(np.arange(6), [400, 40, 40, 40, 40, 40]))
    return (np.eye(6, 24)[which] + 0.05 * rng.normal(size=(600, 24))).astype(np.float32), which


@EACH
def test_every_direction_is_met_at_once(selector, blobs):
    x, which = blobs
    assert np.unique(which[selector.select(x, 6).indices]).size == 6
    assert np.unique(which[Random().select(600, 6).indices]).size < 6


@EACH
def test_a_memory_map_gives_the_same(selector, blobs, tmp_path):
    x, _ = blobs
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    quality = rng_for(1, "quality").random(600)
    chosen = selector.select(mapped, 50, quality=quality)
    assert np.array_equal(chosen.indices, selector.select(x, 50, quality=quality).indices)
    assert np.array_equal(chosen.indices, selector.select(x, quality=quality).indices[:50])


@EACH
def test_half_precision_makes_hardly_a_difference(selector, blobs):
    x, which = blobs
    ours, half = (selector.select(x.astype(kind), 60).indices for kind in (np.float32, np.float16))
    np.testing.assert_allclose(np.bincount(which[ours], minlength=6), np.bincount(which[half], minlength=6), atol=6)


@EACH
def test_quality_is_followed(selector, blobs):
    x, _ = blobs
    quality = rng_for(2, "quality").normal(size=600)
    with_quality = selector.select(x, 60, quality=quality)
    assert quality[with_quality.indices].mean() > 0.5 > quality[selector.select(x, 60).indices].mean() + 0.2
    monotone = selector.select(x, 60, quality=np.exp(quality))  # only the order of quality counts
    assert np.array_equal(monotone.indices, with_quality.indices)


@EACH
def test_quotas_and_tokens(selector, blobs):
    x, _ = blobs
    source = np.array(["a", "b"])[(np.arange(600) % 4 == 0).astype(int)]
    chosen = selector.select(x, 40, quota=Quota(), quota_groups=source)
    assert np.count_nonzero(source[chosen.indices] == "b") == 20
    cost = 1 + np.arange(600) % 7
    chosen = selector.select(x, "100 tokens", cost=cost)
    assert 93 < cost[chosen.indices].sum() <= 100
    assert np.array_equal(chosen.indices, selector.select(x, len(chosen)).indices)


@EACH
def test_the_account_is_of_the_gains(selector, blobs):
    chosen = selector.select(blobs[0], 70)
    account = json.loads(json.dumps(chosen.account))
    assert list(account["objective"]) == ["1", "2", "5", "10", "20", "50", "70"]
    share = account.get("represented", 1)
    assert account["objective"]["70"] == pytest.approx(chosen.gains.sum() / share)
    assert chosen.gains.size == 70 and (np.diff(chosen.gains) <= 1e-9).all()
    assert "place 1 of 70" in chosen.explain(int(chosen.indices[0]))


@EACH
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5], ids=["zeros", "ones", "negative"])
def test_rows_all_the_same_go_by_quality_and_number(selector, value):
    x = np.full((30, 4), value, dtype=np.float32)
    assert selector.select(x, 12).indices.tolist() == list(range(12))
    quality = np.arange(30) // 2 / 15
    order = selector.select(x, quality=quality).indices
    if value or selector.name != "facility-location":
        assert quality[order[1:]].tolist() == sorted(quality[order[1:]], reverse=True)
    pairs = order.reshape(15, 2)  # of each quality two rows
    assert all(place[0] < place[1] for place in (np.argsort(order)[pair] for pair in np.arange(30).reshape(15, 2)))
    assert sorted(pairs.ravel()) == list(range(30))


@EACH
def test_k_above_the_number_of_distinct_rows(selector):
    x = rng_for(3, "distinct").normal(size=(5, 8))[np.arange(50) % 5]
    order = selector.select(x, 50).indices
    assert sorted(order) == list(range(50))
    if selector.name != "mig":  # whose six clusters of five rows are what they are
        assert sorted(order[:5]) == [0, 1, 2, 3, 4]
    assert all(np.diff(np.flatnonzero(order % 5 == copy)).size == 9 for copy in range(5))
    for copy in range(5):
        assert (np.diff(order[order % 5 == copy]) > 0).all()


@EACH
@pytest.mark.parametrize("n", [0, 1])
def test_pools_of_no_row_and_one(selector, n):
    x = np.ones((n, 3), dtype=np.float32)
    assert selector.select(x).indices.tolist() == list(range(n))
    assert selector.select(x, n, quality=np.ones(n)).indices.tolist() == list(range(n))
    if n:
        assert selector.select(x, 0).indices.size == 0


@pytest.mark.parametrize("selector", [FacilityLocation(), LogDet()], ids=lambda s: s.name)
def test_rows_of_zeros_come_last(selector):
    x = rng_for(4, "zeros").normal(size=(20, 5))
    x[[0, 7, 13]] = 0
    assert selector.select(x).indices[-3:].tolist() == [0, 7, 13]


def test_a_sample_is_represented_instead_of_all(blobs):
    x, which = blobs
    selector = FacilityLocation(neighbours=400, represent=120)
    chosen = selector.select(x, 6)
    assert np.unique(which[chosen.indices]).size == 6
    assert chosen.account["represented"] == 120
    assert np.array_equal(chosen.indices, FacilityLocation(neighbours=400, represent=120).select(x, 6).indices)
    other = FacilityLocation(neighbours=8, represent=120, seed=1).select(x)
    assert not np.array_equal(other.indices[:6], chosen.indices)
    assert np.unique(other.indices).size == 600  # also rows that are nobody's neighbour
    everyone = FacilityLocation(neighbours=8, represent=600).select(x)
    assert np.array_equal(everyone.indices, FacilityLocation(neighbours=8).select(x).indices)


def test_how_many_rows_are_near_a_chosen_one_is_told(blobs):
    """With few neighbours, few choices in a blob of 400 leave most of it uncovered; the account says so."""
    few, many = (FacilityLocation(neighbours=m).select(blobs[0], 50).account["covered"] for m in (8, 400))
    assert few["1"] < 0.15 and many["1"] > 0.5
    assert few["10"] < 0.6 and many["10"] == pytest.approx(1)


def test_alpha_goes_from_the_features_to_quality(blobs):
    x, _ = blobs
    quality = rng_for(5, "quality").random(600)
    chosen = [FacilityLocation(neighbours=8, alpha=a).select(x, 100, quality=quality) for a in (0.0, 0.5, 1.0)]
    means = [quality[c.indices].mean() for c in chosen]
    assert means == sorted(means)
    assert np.array_equal(chosen[0].indices, FacilityLocation(neighbours=8).select(x, 100).indices)
    assert np.array_equal(chosen[2].indices, np.argsort(-quality, kind="stable")[:100])
    reached = [c.gains.sum() for c in chosen]
    assert reached == sorted(reached, reverse=True)


def test_tags_that_are_given(blobs):
    """The tags of a text column, of which one has most rows: they take turns."""
    x, which = blobs
    tags = np.array(["maths", "code", "prose", "lists", "law", "verse"])[which]
    chosen = MIG(threshold=2).select(x, 60, groups=tags)
    assert np.bincount(which[chosen.indices]).tolist() == [10] * 6
    assert chosen.account["tags"] == 6 and chosen.account["links"] == 0
    assert MIG().select(x + 1, 60, groups=tags).account["links"] > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FacilityLocation(neighbours=0), r"FacilityLocation: neighbours of at least 1 was asked, 0 was found"),
        (lambda: FacilityLocation(represent=0), r"represent of at least 1 was asked, 0 was found"),
        (lambda: FacilityLocation(alpha=1.5), r"alpha from 0 to 1 was asked, 1.5 was found"),
        (lambda: FacilityLocation(alpha=float("nan")), r"alpha from 0 to 1 was asked, nan was found"),
        (lambda: LogDet(jitter=0.0), r"LogDet: a jitter of at least 1e-06 was asked, 0.0 was found"),
        (lambda: LogDet(quality_weight=-1.0), r"quality_weight of 0 or more was asked, -1.0 was found"),
        (lambda: MIG(clusters=0), r"MIG: clusters of at least 1 was asked, 0 was found"),
        (lambda: MIG(threshold=0.0), r"a threshold above 0 was asked, 0.0 was found; take 2 for no links"),
        (lambda: MIG(power=1.0), r"a power above 0 and below 1 was asked, 1.0 was found"),
        (lambda: MIG(weight=-0.5), r"a weight of 0 or more was asked, -0.5 was found"),
        (
            lambda: MIG(quality_scale="proportional").select(np.ones((2, 2)), quality=np.array([1.0, -3.0])),
            r"quality of at least 0, -3 was found at row 1; take quality_scale='rank'",
        ),
    ],
)
def test_parameters_that_cannot_be(make, said):
    with pytest.raises(InputError, match=said):
        make()
