"""DSIR and BM25: by hand, beside their formulas, beside bm25s, and with rows that ask what a target asks."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.example import MESSAGE_TYPE
from curate.exceptions import InputError, StageError
from curate.numerics.ngrams import Characters
from curate.scorers import BM25, DSIR
from curate.scorers._targets import prompt_digest
from curate.seeding import rng_for
from curate.selectors import RoundRobin


def rows(prompts, groups=None, drawn=None, answer="Yes.") -> pa.Table:
    turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": answer}] for p in prompts]
    table = pa.table({"messages": pa.array(turns, pa.list_(MESSAGE_TYPE))})
    if groups is not None:
        table = table.append_column("group", pa.array(groups, pa.string()))
        table = table.append_column("drawn", pa.array([True] * len(prompts) if drawn is None else drawn))
    return table


def sample(pool, targets, **more) -> pa.Table:
    """What a run gives: rows of the pool without a group, targets with their task."""
    given = [*((p, None) for p in pool), *targets]
    return rows([p for p, _ in given], [g for _, g in given], **more)


def fitted(scorer, given: pa.Table):
    scorer.load(scorer.fit(given))
    return scorer


def random_texts(n: int, name: str, vocabulary: int = 40) -> list[str]:
    rng = rng_for(0, "target matching", name)
    return [" ".join(f"w{i}" for i in rng.zipf(1.4, size=rng.integers(1, 30)) % vocabulary) for _ in range(n)]


POOL = random_texts(60, "pool")
TARGETS = [(text, "ab"[i % 2]) for i, text in enumerate(random_texts(9, "targets"))]


def grams(text: str, buckets: int) -> list[int]:
    words = Characters.of([text]).words()
    hashes = np.concatenate([words.ngrams(1).hashes, words.ngrams(2).hashes])
    return [int(h) % buckets for h in hashes.tolist()]


@pytest.mark.parametrize(("normalise", "smoothing"), [("mean", 1.0), ("sum", 0.01)])
def test_dsir_is_its_formula(normalise, smoothing):
    buckets = 97
    scorer = fitted(
        DSIR(text="prompt", buckets=buckets, normalise=normalise, smoothing=smoothing), sample(POOL, TARGETS)
    )
    pool = Counter(b for text in POOL for b in grams(text, buckets))
    total = sum(pool.values())
    p_pool = [(pool[b] + 1) / (total + buckets) for b in range(buckets)]
    p_target = [0.0] * buckets
    for task in "ab":
        counts = Counter(b for text, t in TARGETS if t == task for b in grams(text, buckets))
        for b in range(buckets):
            share = (counts[b] + smoothing * buckets * p_pool[b]) / (sum(counts.values()) + smoothing * buckets)
            p_target[b] += share / 2
    for text, found in zip(POOL, scorer.score(rows(POOL))["log_weight"].to_pylist(), strict=True):
        wanted = math.fsum(math.log(p_target[b] / p_pool[b]) for b in grams(text, buckets))
        assert found == pytest.approx(wanted / (len(grams(text, buckets)) if normalise == "mean" else 1), abs=1e-12)


def test_dsir_prefers_the_words_of_the_targets_and_fears_no_others():
    pool = ["add the numbers please", "sing a song please", "paint a picture please"] * 10
    scorer = fitted(DSIR(text="prompt"), sample(pool, [("add seven numbers", "maths"), ("numbers to add", "maths")]))
    asked = ["add the numbers", "sing a song", "xyzzy plugh"]
    maths, song, unknown = scorer.score(rows(asked))["log_weight"].to_pylist()
    assert maths > 0 and maths > unknown > song
    assert abs(unknown) < 0.01  # that no target has a word says little, where few were seen


def test_each_task_counts_the_same_however_many_rows_it_has():
    few, many = [("red red red", "a"), ("blue blue blue", "b")], [("red red red", "a")] + [("blue blue blue", "b")] * 50
    scores = []
    for targets in (few, many):
        scorer = DSIR(text="prompt", smoothing=1e-9, overlap="keep")
        scores.append(
            fitted(scorer, sample(["red blue"], targets)).score(rows(["red", "blue"]))["log_weight"].to_numpy()
        )
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0), (2.0, 1.0)])
def test_bm25_is_its_formula(k1, b):
    scorer = fitted(BM25(k1=k1, b=b), sample(POOL, TARGETS))
    assert scorer.labels_ == sorted(task for _, task in TARGETS)
    found = np.array(scorer.score(rows(POOL))["bm25"].to_pylist())
    documents = [text.split() for text in POOL]
    mean = sum(map(len, documents)) / len(documents)
    wanted = np.zeros_like(found)
    queries = sorted_targets()
    for i, document in enumerate(documents):
        for j, query in enumerate(queries):
            for word in query.split():
                f, df = document.count(word), sum(word in d for d in documents)
                idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
                wanted[i, j] += idf * f / (f + k1 * (1 - b + b * len(document) / mean))
    np.testing.assert_allclose(found, wanted, rtol=3e-6)


def sorted_targets() -> list[str]:
    """The targets in the order of the columns: by task, then by what they ask."""
    asked = [(task, prompt_digest([{"role": "user", "content": text}]), text) for text, task in TARGETS]
    return [text for *_, text in sorted(asked)]


def test_bm25_agrees_with_bm25s():
    bm25s = pytest.importorskip("bm25s")
    corpus = [text.split() for text in POOL]
    retriever = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    retriever.index(corpus, show_progress=False)
    found = np.array(fitted(BM25(), sample(POOL, TARGETS)).score(rows(POOL))["bm25"].to_pylist())
    for j, query in enumerate(sorted_targets()):
        np.testing.assert_allclose(found[:, j], retriever.get_scores(query.split()), rtol=1e-5)


def test_bm25_looks_for_the_drawn_targets_and_leaves_out_what_any_asks():
    given = sample(
        ["add two numbers", "sing a song"],
        [("add numbers", "a"), ("sing loudly", "b")],
        drawn=[False, False, True, False],
    )
    found = fitted(BM25(), given).score(rows(["add both numbers", "Sing, loudly!", "sing a song", "?"]))
    assert found["bm25"].type.list_size == 1
    assert found["reason"].to_pylist() == [None, "it asks what a target of b asks", None, "no words"]
    assert found["bm25"].to_pylist()[0][0] > 0 and found["bm25"].to_pylist()[2] == [0.0]


def test_round_robin_takes_it_as_it_comes():
    pool = ["add two numbers", "sing a song", "add three numbers", "a song of joy", "paint a wall"]
    scorer = fitted(BM25(), sample(pool, [("add numbers", "maths"), ("a song", "music")]))
    x = np.array(scorer.score(rows(pool))["bm25"].to_pylist(), dtype=np.float32)
    assert set(RoundRobin(targets=scorer.labels_).select(x, 4).indices.tolist()) == {0, 1, 2, 3}


@given(st.text())
def test_a_prompt_is_known_by_its_letters_and_digits(text):
    letters = "".join(c for c in text.casefold() if c.isalnum())
    assert prompt_digest([{"role": "user", "content": text}]) == prompt_digest(
        [{"role": "system", "content": "s"}, {"role": "user", "content": letters or text}]
    )


@pytest.mark.parametrize("scorer", [BM25, DSIR])
def test_rows_that_ask_what_a_target_asks(scorer):
    given = sample(POOL, TARGETS)
    leaked = rows([TARGETS[0][0].upper() + "?!", "w1 w2"])
    assert fitted(scorer(), given).score(leaked)["reason"].to_pylist() == ["it asks what a target of a asks", None]
    assert fitted(scorer(overlap="keep"), given).score(leaked)["reason"].null_count == 2
    with pytest.raises(StageError, match="a row of the pool asks what a target of a asks, and overlap: stop was asked"):
        fitted(scorer(overlap="stop"), given).score(leaked)


@pytest.mark.parametrize("scorer", [BM25, DSIR])
def test_the_order_of_rows_does_not_show(scorer):
    given = sample(POOL, TARGETS)
    one, other = scorer().fit(given), scorer().fit(given.take(rng_for(1, "order").permutation(given.num_rows)))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("scorer", [BM25, DSIR])
def test_what_cannot_be_learned_from(scorer):
    with pytest.raises(InputError, match="rows of the pool and of targets were asked, 60 and 0 were found"):
        scorer().fit(sample(POOL, []))
    with pytest.raises(InputError, match="told apart by a column 'group'"):
        scorer().fit(rows(POOL))
    with pytest.raises(InputError, match="has a word in its prompt"):
        scorer(text="prompt").fit(sample(POOL, [("?!", "a")]))
    with pytest.raises(StageError, match="learns from pool and targets before it scores"):
        scorer().score(rows(POOL))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BM25(k1=0), "k1 above 0 was asked, 0 was found"),
        (lambda: BM25(b=1.5), "b from 0 to 1 was asked, 1.5 was found"),
        (lambda: DSIR(smoothing=0), "smoothing above 0 was asked, 0 was found"),
        (lambda: DSIR(buckets=1), "buckets of at least 2 was asked, 1 was found"),
        (lambda: DSIR(words=0), "words of at least 1 was asked, 0 was found"),
        (
            lambda: DSIR(buckets=64).load(DSIR().fit(sample(POOL, TARGETS))),
            "64 buckets was asked, one of 10000 was found",
        ),
    ],
)
def test_refusals(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_many_scripts_copies_and_a_megabyte():
    pool = [*POOL, "挪威的首都是哪里", "เมืองหลวงของนอร์เวย์", "", "w1 " * 300_000]
    for scorer in (BM25(text="both"), DSIR()):
        fitted(scorer, sample(pool, [*TARGETS, ("挪威的首都", "a")]))
        found = scorer.score(rows([*pool, pool[0]]))
        values = found[scorer.columns[0].name].to_pylist()
        assert found["reason"].null_count == len(pool) + 1 and values[0] == values[-1]
