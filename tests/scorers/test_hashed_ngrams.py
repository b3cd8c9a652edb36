"""Hashed n-grams, against dense float64 algebra."""

import math
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from curate.example import MESSAGE_TYPE
from curate.exceptions import InputError, StageError
from curate.numerics.ngrams import Characters
from curate.scorers import HashedNgrams
from curate.seeding import rng_for
from tests.numerics.words import lower, reference_words

NOUNS = ["oslo", "rain", "cat", "dog", "number", "table", "python", "loop", "sum", "river"]
VERBS = ["find", "write", "count", "explain", "draw", "sell"]


def table(*texts):
    rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": "answer " + text}] for text in texts]
    return pa.table({"messages": pa.array(rows, pa.list_(MESSAGE_TYPE))})


def pool(n=60, seed=0):
    rng = rng_for(seed, "pool")
    return [" ".join([*rng.choice(VERBS, 2), *rng.choice(NOUNS, rng.integers(1, 12))]) for _ in range(n)]


def fitted(scorer, texts):
    scorer.load(scorer.fit(table(*texts)))
    return scorer


def vectors(scorer, texts):
    column = scorer.score(table(*texts))["vector"].combine_chunks()
    return column.values.to_numpy(zero_copy_only=False).reshape(len(texts), scorer.dim)


def reference_weights(scorer, texts, fit_texts):
    """w(d, b) of the module's docstring, one n-gram after another."""

    def counts(text):
        words = [lower(text[s:e]) for s, e in reference_words(text)]
        grams = [tuple(words[i : i + n]) for n in range(1, scorer.words + 1) for i in range(len(words) - n + 1)]
        bucket = {g: int(Characters.of([" ".join(g)]).words().ngrams(len(g)).hashes[0]) % scorer.buckets for g in grams}
        return Counter(bucket[gram] for gram in grams)

    df = Counter(b for text in fit_texts for b in counts(text))
    out = np.zeros((len(texts), scorer.buckets))
    for row, text in enumerate(texts):
        for b, c in counts(text).items():
            out[row, b] = (1 + math.log(c)) * (1 + math.log((1 + len(fit_texts)) / (1 + df[b])))
    return out


def test_equals_dense_float64_algebra():
    texts = pool()
    scorer = fitted(HashedNgrams(dim=8, buckets=256), texts)
    weights = reference_weights(scorer, texts, texts)
    _, sigma, vt = np.linalg.svd(weights / np.linalg.norm(weights, axis=1, keepdims=True), full_matrices=False)
    assert (sigma[:8] - sigma[1:9] > 1e-3).all()  # else the reference would be arbitrary
    projected = weights @ vt[:8].T
    wanted = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    found = vectors(scorer, texts)
    # Up to the sign of a component, which is checked by itself; float32 components, float32 sums of some 30 terms.
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=2e-6)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=2e-6)
    assert (np.take_along_axis(scorer.components_, np.abs(scorer.components_).argmax(0)[None], 0) > 0).all()


def test_projection_is_exact_given_the_components():
    texts = pool()
    scorer = fitted(HashedNgrams(dim=8, buckets=256), texts)
    fresh = pool(20, seed=1)
    projected = reference_weights(scorer, fresh, texts) @ scorer.components_.astype(np.float64)
    wanted = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(scorer, fresh), wanted, atol=2e-6)  # float32 sums of some 30 terms


def test_vectors_have_length_one_and_likeness_shows():
    scorer = fitted(HashedNgrams(dim=16, buckets=4096), pool(200))
    found = vectors(scorer, ["count the river river", "Count THE river!", "sell python table"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert found[0] @ found[1] > 0.95 > 0.6 > found[0] @ found[2]


def test_fewer_components_than_dim_are_padded_with_zeros():
    texts = ["one two", "three four", "one two"]
    scorer = fitted(HashedNgrams(dim=10, buckets=64, words=1), texts)
    assert scorer.components_.shape == (64, 2)
    found = vectors(scorer, texts)
    assert not found[:, 2:].any()
    np.testing.assert_allclose(found @ found.T, [[1, 0, 1], [0, 1, 0], [1, 0, 1]], atol=1e-6)


def test_reasons():
    scorer = fitted(HashedNgrams(dim=4, buckets=2**16, words=1), ["one two", "two three"])
    reasons = scorer.score(table("one", "", " \n", "?!", "unheard"))["reason"].to_pylist()
    assert reasons == [None, "no words", "no words", "no words", "no known words"]


@pytest.mark.parametrize(
    "params", [{}, {"words": 1}, {"characters": 3}, {"words": 0, "characters": 4}, {"text": "both"}]
)
def test_batches_change_no_bit(params):
    texts = pool(64)
    scorer = fitted(HashedNgrams(dim=12, buckets=512, **params), texts)
    whole = scorer.score(table(*texts))
    for size in (1, 3, 17, 64):
        pieces = pa.concat_tables([scorer.score(table(*texts[i : i + size])) for i in range(0, 64, size)])
        assert pieces.combine_chunks().equals(whole), size


def test_more_texts_than_one_block_holds(monkeypatch):
    texts = pool(64)
    scorer = HashedNgrams(dim=12, buckets=512)
    state = scorer.fit(table(*texts))
    scorer.load(state)
    whole = scorer.score(table(*texts))
    monkeypatch.setattr("curate.numerics.ngrams.blocks.__kwdefaults__", {"characters": 100})
    assert scorer.score(table(*texts)).equals(whole)
    np.testing.assert_array_equal(scorer.fit(table(*texts))["components"], state["components"])


def test_fit_does_not_depend_on_order_or_threads():
    script = (
        "import hashlib\n"
        "from curate.scorers import HashedNgrams\n"
        "from tests.scorers.test_hashed_ngrams import pool, table\n"
        "state = HashedNgrams(dim=32, buckets=2048).fit(table(*pool(400){order}))\n"
        "print(hashlib.sha256(b''.join(state[k].tobytes() for k in sorted(state))).hexdigest())\n"
    )
    digests = set()
    for threads, order in (("1", ""), ("2", "[::-1]")):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        code = script.format(order=order)
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        digests.add(out.stdout)
    assert len(digests) == 1


def test_lanczos_and_the_whole_decomposition_agree():
    """A sample of 40 texts at dim 39 is decomposed by ARPACK, at dim 40 by LAPACK."""
    texts = pool(40)
    one, other = (HashedNgrams(dim=dim, buckets=512).fit(table(*texts))["components"] for dim in (39, 40))
    np.testing.assert_allclose(one, other[:, :39], atol=1e-5)


def test_scoring_before_fitting():
    with pytest.raises(
        StageError, match=re.escape("learns from examples before it scores: call load(fit(sample)) first.")
    ):
        HashedNgrams().score(table("text"))


def test_nothing_to_learn_from():
    with pytest.raises(InputError, match="none of 2 examples has words in its prompt; nothing to learn from"):
        HashedNgrams().fit(table("", "?!"))


def test_a_state_of_another_size():
    state = HashedNgrams(dim=4, buckets=64).fit(table("one two", "three"))
    with pytest.raises(InputError, match="a state of 128 buckets and dim 4 was asked"):
        HashedNgrams(dim=4, buckets=128).load(state)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"dim": 0}, "dim of at least 1 was asked, 0 was found"),
        ({"buckets": 1}, "buckets of at least 2 was asked, 1 was found"),
        ({"words": 0}, "words and characters are both 0; give one of them"),
    ],
)
def test_parameters_that_cannot_be(params, text):
    with pytest.raises(InputError, match=text):
        HashedNgrams(**params)
