"""Words and n-grams as hashes, against exact strings."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.numerics import ngrams
from curate.numerics.ngrams import Characters, blocks
from curate.testing import odd_examples
from tests.numerics.words import lower, reference_words

# Letters that change case, scripts without spaces, marks alone and after letters, digits, signs, astral characters.
TEXTS = st.text(st.sampled_from("aAbB1_ .\n'-éÉe\u0301ßİΣς中文、のノーกา\u0e31ٱहि😀\u200d𠀀२"), max_size=30)
ODD = [m["content"] for row in odd_examples()["messages"].to_pylist() for m in row]


def words_of(text: str) -> list[str]:
    spans = Characters.of([text]).words()
    return [text[s:e] for s, e in zip(spans.starts, spans.ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("?!", []),
        ("Don't stop: 3.14 snake_case", ["Don", "t", "stop", "3", "14", "snake", "case"]),
        ("挪威的首都Oslo是2个字", ["挪", "威", "的", "首", "都", "Oslo", "是", "2", "个", "字"]),
        ("cafe\u0301 ok", ["cafe\u0301", "ok"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("नॉर्वे", ["नॉर्वे"]),
    ],
)
def test_words_by_hand(text, words):
    assert words_of(text) == words


@given(st.lists(TEXTS, max_size=6))
def test_words_equal_the_reference_in_any_batch(texts):
    spans = Characters.of(texts).words()
    offsets = np.cumsum([0, *map(len, texts)])
    wanted = [(i, offsets[i] + s, offsets[i] + e) for i, text in enumerate(texts) for s, e in reference_words(text)]
    assert list(zip(spans.rows, spans.starts, spans.ends, strict=True)) == wanted


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("unit", ["words", "characters"])
def test_equal_hashes_mean_equal_ngrams(unit, n):
    characters = Characters.of(ODD)
    spans = characters.words().ngrams(n) if unit == "words" else characters.ngrams(n)
    found, strings = [], []
    for row, text in enumerate(ODD):
        units = [lower(text[s:e]) for s, e in reference_words(text)] if unit == "words" else list(lower(text))
        strings += [(row, tuple(units[i : i + n])) for i in range(len(units) - n + 1)]
    found = list(zip(spans.rows.tolist(), spans.hashes.tolist(), strict=True))
    assert [row for row, _ in found] == [row for row, _ in strings]
    assert len(set(strings)) == len(set(found)) == len(set(zip(strings, found, strict=True)))  # one to one
    keys = spans.keys().tolist()
    assert len(set(keys)) == len(set(zip(strings, keys, strict=True))) == len(set(strings))


@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(1, 4))
def test_hashes_do_not_depend_on_the_rest_of_the_batch(texts, n):
    def everything(characters):
        return [characters.words().ngrams(n), characters.ngrams(n)]

    for kind, batch in enumerate(everything(Characters.of(texts))):
        alone = [everything(Characters.of([text]))[kind].hashes for text in texts]
        np.testing.assert_array_equal(batch.hashes, np.concatenate(alone))


def test_a_text_longer_than_the_power_tables():
    text = "x" * (5 * ngrams._BLOCK) + " end"
    spans = Characters.of(["a", text]).words()
    assert [text[s - 1 : e - 1] for s, e in zip(spans.starts[1:], spans.ends[1:], strict=True)] == [text[:-4], "end"]
    assert spans.hashes[-1] == Characters.of(["END"]).words().hashes[0]
    assert len(ngrams._powers[0]) <= 4 * ngrams._BLOCK  # the long tables were not kept


@given(st.lists(st.integers(0, 9)), st.integers(1, 12))
def test_blocks_cover_every_row_once_and_keep_the_limit(sizes, limit):
    texts = ["x" * size for size in sizes]
    found = list(blocks(texts, texts, characters=limit))
    assert [i for block in found for i in range(block.start, block.stop)] == list(range(len(sizes)))
    for block in found:
        held = 2 * sum(sizes[block])
        assert held <= limit or block.stop == block.start + 1
    for one, other in itertools.pairwise(found):  # no block could have taken the next row too
        assert 2 * sum(sizes[one.start : other.start + 1]) > limit
