"""Shingles of texts, against words and characters one after another."""

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.numerics import shingles as module
from curate.numerics.shingles import shingles
from tests.numerics.words import lower, reference_words


def reference(text, size, unit):
    """The distinct shingles, as tuples."""
    text = unicodedata.normalize("NFKC", text)
    if unit == "words":
        units = [lower(text[a:b]) for a, b in reference_words(text)]
    else:
        units = list(lower(" ".join(text.split())))
    if 0 < len(units) < size:
        return [tuple(units)]
    return [tuple(units[i : i + size]) for i in range(len(units) - size + 1)]


def of(texts, size, unit):
    hashes, offsets = shingles(texts, size, unit)
    return [hashes[a:b].tolist() for a, b in itertools.pairwise(offsets)]


TEXTS = [
    "",
    " \n",
    "?!",
    "one",
    "One two",
    "a b c d e f g h",
    "挪威的首都是哪里？",
    "Cafe\u0301 café CAFÉ",
    "ﬁne fine",
    "x  y\tz",
]


@given(st.lists(st.sampled_from(TEXTS) | st.text(max_size=30), max_size=8), st.integers(1, 6))
@pytest.mark.parametrize("unit", ["words", "characters"])
@settings(max_examples=60, deadline=None)
def test_equal_exactly_where_the_words_are(unit, texts, size):
    got = of(texts, size, unit)
    wanted = [reference(text, size, unit) for text in texts]
    assert [len(g) for g in got] == [len(w) for w in wanted]
    name = {}
    for g, w in zip(got, wanted, strict=True):
        for number, shingle in zip(g, w, strict=True):
            assert name.setdefault(number, shingle) == shingle
    assert len(set(name.values())) == len(name)


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_a_long_text_in_pieces_is_the_same(monkeypatch, unit):
    text = "the quick brown 狐 jumps，over the  lazy dog\n" * 60 + "anendlessword" * 40 + " and the end"
    whole = of([text, "short one"], 5, unit)
    monkeypatch.setattr(module, "_CHARACTERS", 50)
    assert of([text, "short one"], 5, unit) == whole


def test_megabytes():
    text = "All work and no play makes Jack a dull boy. " * 60_000  # 2.6 MB
    assert len(set(of([text], 5, "words")[0])) == 10
    hashes, offsets = shingles(["a" * 1_000_000, "b"], 5, "words")  # one endless word
    assert np.diff(offsets).tolist() == [1, 1] and hashes[0] != hashes[1]
