"""Signatures of examples."""

import numpy as np
import pytest

from curate.exceptions import InputError
from curate.numerics.minhash import signatures
from curate.numerics.shingles import shingles
from curate.scorers import MinHash
from tests.scorers.test_text_digest import said, table


def matrix(scorer, rows):
    column = scorer.score(rows)["signature"].combine_chunks()
    return column.values.to_numpy(zero_copy_only=False).reshape(rows.num_rows, scorer.places)


def test_are_those_of_the_shingles_of_the_whole_conversation():
    rows = table(said("one two three four five", "six seven eight"), said("Ein anderer Text", "ohne Gemeinsames"))
    wanted = signatures(
        *shingles(["one two three four five\nsix seven eight", "ein anderer text\nohne gemeinsames"], 5, "words"), 128
    )
    np.testing.assert_array_equal(matrix(MinHash(), rows), wanted)
    assert matrix(MinHash(), rows).dtype == np.uint32


def test_similarity_follows_the_text():
    text = [f"word{i}" for i in range(300)]
    changed = ["other" if i == 100 else word for i, word in enumerate(text)]
    same, near, far = matrix(
        MinHash(text="prompt"), table(*(said(" ".join(t), "ok") for t in (text, changed, text[::-1])))
    )
    assert abs((same == near).mean() - 291 / 301) < 0.07 and (same == far).mean() < 0.1


def test_short_prompts_by_characters():
    scorer = MinHash(text="prompt", unit="characters", size=3)
    a, b, c = matrix(scorer, table(*(said(t, "ok") for t in ("Was ist 2+2?", "was  ist 2+2?", "Was ist 2+3?"))))
    assert (a == b).all() and 0.2 < (a == c).mean() < 1


def test_seeds_and_sizes_are_other_functions():
    rows = table(said(" ".join(map(str, range(50))), "ok"))
    assert (matrix(MinHash(seed=1), rows) != matrix(MinHash(), rows)).mean() > 0.9
    assert (matrix(MinHash(size=2), rows) != matrix(MinHash(), rows)).mean() > 0.9


def test_a_text_of_megabytes_beside_short_ones():
    text = " ".join(f"word{i}" for i in range(150_000))  # 1.5 MB
    rows = table(said("short", "one"), said(text, "ok"), said(text + " more", "ok"))
    a, b, c = matrix(MinHash(), rows)
    assert (b == c).mean() > 0.95 and (a == b).mean() < 0.05


@pytest.mark.parametrize("params", [{"size": 0}, {"places": 0}])
def test_bad_parameters(params):
    name = next(iter(params))
    with pytest.raises(InputError, match=f"minhash: {name} of at least 1 was asked, 0 was found"):
        MinHash(**params)
