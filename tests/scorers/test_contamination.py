"""Leaks planted in the shipped pool, out of the shipped targets; and what is no leak."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pytest

import curate
from curate.connectors.source import Source
from curate.example import MESSAGE_TYPE
from curate.exceptions import InputError, StageError
from curate.pipelines.benchmarks import read_benchmark
from curate.scorers import Contamination
from tests.conftest import ROOT

NAMES = ("classification", "code", "maths")


@cache
def items() -> pa.Table:
    """What a run gives: the shipped targets, as benchmarks."""
    sets = [read_benchmark(name, Source(path=str(ROOT / f"examples/targets/{name}.parquet"))) for name in NAMES]
    return pa.concat_tables([table for table, _, _ in sets])


def fitted(of: pa.Table | None = None, **parameters) -> Contamination:
    scorer = Contamination(**parameters)
    scorer.load(scorer.fit(items() if of is None else of))
    return scorer


def rows(*conversations) -> pa.Table:
    turns = [[{"role": role, "content": content} for role, content in turns] for turns in conversations]
    ids = [str(i) for i in range(len(turns))]
    return pa.table({"id": ids, "messages": pa.array(turns, pa.list_(MESSAGE_TYPE))})


def bench(*questions, name="test", answer=None) -> pa.Table:
    turns = [[("user", q), *([("assistant", answer)] if answer else [])] for q in questions]
    return rows(*turns).append_column("group", pa.array([name] * len(questions)))


def asks(prompt, response="Certainly."):
    return [("user", prompt), ("assistant", response)]


def question(name: str, words: int = 20) -> tuple[str, str]:
    """An item of a shipped set: its id and a long question."""
    found = [
        (i, m[0]["content"])
        for i, m, g in zip(*(items()[c].to_pylist() for c in ("id", "messages", "group")), strict=True)
        if g == name and len(m[0]["content"].split()) > words
    ]
    return found[0]


def test_the_shipped_pool_holds_no_shipped_target():
    """Some of its rows are in the targets' wrappers ("Classify the intent of this request …")."""
    pool = curate.read(str(ROOT / "examples/pool")).examples()
    found = fitted().score(pool)
    hit = np.flatnonzero(found["overlap"].to_numpy())
    assert hit.size <= 3, [found["span"][i].as_py() for i in hit]
    wrapped = fitted(common=1.0).score(pool)
    assert np.count_nonzero(wrapped["overlap"].to_numpy()) > 50


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("disguise", "least"),
    [
        (lambda q: q, 1.0),
        (lambda q: q.upper(), 1.0),
        (lambda q: q.replace(" ", "\n  ").replace("?", "!").replace(",", " –"), 1.0),
        (lambda q: "Here is a question for you. Think step by step.\n\n" + q, 0.99),
        (lambda q: q + "\nAnswer:", 0.99),
        (lambda q: "blah " * 3000 + q + " blah" * 3000, 0.99),
        (lambda q: " ".join(q.split()[-16:]), 0.01),
    ],
    ids=["exact", "capitals", "punctuation", "prefix", "suffix", "inside a long text", "the last 16 words"],
)
def test_planted_leaks_are_found(name, disguise, least):
    item, asked = question(name)
    found = fitted().score(rows(asks(disguise(asked)), asks("Say something.", disguise(asked)))).to_pylist()
    for row in found:
        assert row["overlap"] >= least and row["benchmark"] == name and row["reason"] is None
        assert row["span"].startswith(f"{name} {item}: ") and len(row["span"]) < 300


def test_the_span_is_told_as_it_stands_in_the_row():
    known = bench("Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning.", name="gsm8k")
    said = "Hm… “JANET'S  ducks lay 16 eggs\nper day; she eats three for BREAKFAST every day”"
    assert fitted(known).score(rows(asks(said)))["span"].to_pylist() == [
        'gsm8k 0: "JANET\'S ducks lay 16 eggs per day; she eats three for BREAKFAST every"'
    ]
    long = " ".join(f"{i:04}" for i in range(150))
    (span,) = fitted(bench(long)).score(rows(asks(long)))["span"].to_pylist()
    assert span == f"test 0: {long[:200]!r}…"


def test_a_paraphrase_is_not_found():
    known = bench(
        "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?"
    )
    other = "To make one robe you need two bolts of blue and half as much of white fiber. What is the total in bolts?"
    assert fitted(known).score(rows(asks(other)))["overlap"].to_pylist() == [0]


def test_a_short_question_counts_as_a_whole():
    scorer = fitted(bench("What is the capital of France?", answer="Paris is the capital of France."))
    found = scorer.score(
        rows(
            asks("what is the capital of france"),
            asks("Tell me: what is the capital of France?"),
            asks("x", "What is the capital of France?"),
            [*asks("Hello!"), *asks("What is the CAPITAL of France!")],
            asks("Paris is the capital of France."),
        )
    )
    assert found["overlap"].to_pylist() == [1, 0, 1, 1, 0]
    assert found["benchmark"].to_pylist() == ["test", "", "test", "test", ""]
    assert found["span"].to_pylist()[1] == ""


def test_all_turns_of_a_user_are_one_question_too():
    known = rows([("user", "Name a river."), ("user", "And a longer one?")]).append_column("group", pa.array(["mt"]))
    found = fitted(known).score(rows([*asks("Name a river!", "The Po."), *asks("and a longer one", "The Nile.")]))
    assert found["overlap"].to_pylist() == [1]


def test_answers_count_if_asked():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    known = bench("Count, please.", answer=words)
    leaked, short = asks("Go on.", f"Well: {words}."), asks("What was it?", "Sure.")
    assert fitted(known).score(rows(leaked, short))["overlap"].to_pylist() == [0, 0]
    assert fitted(known, answers=True).score(rows(leaked, short))["overlap"].to_pylist() == [1, 0]
    brief = bench("What is it, and why, and since when, and for whom, and how?", answer="Sure.")
    assert fitted(brief, answers=True).score(rows(short))["overlap"].to_pylist() == [0]


@pytest.mark.parametrize(("text", "overlap"), [("prompt", [1, 0]), ("response", [0, 1]), ("both", [1, 1])])
def test_which_text_is_searched(text, overlap):
    _, asked = question("maths")
    assert fitted(text=text).score(rows(asks(asked), asks("A task?", asked)))["overlap"].to_pylist() == overlap


def test_scripts_without_spaces_and_mixed_ones():
    chinese = "珍妮特的鸭子每天下16颗蛋。她每天早上早餐时吃三颗，每天用四颗为自己的朋友做松饼。"
    thai = "เป็ดของเจเน็ตออกไข่วันละ 16 ฟอง เธอกินไข่สามฟองเป็นอาหารเช้าทุกเช้า"
    arabic = "تضع بطات جانيت ست عشرة بيضة في اليوم وتأكل ثلاثا على الفطور كل صباح وتخبز الكعك لأصدقائها"
    scorer = fitted(bench(chinese, thai, arabic, name="mgsm"))
    clean = asks("鸭子每天吃什么？ What do ducks eat? เป็ดกินอะไร")
    found = scorer.score(rows(*(asks(f"Translate, s'il vous plaît: {t} 谢谢") for t in (chinese, thai, arabic)), clean))
    assert found["overlap"].to_pylist() == [1, 1, 1, 0]
    assert [s[:7] for s in found["span"].to_pylist()] == ["mgsm 0:", "mgsm 1:", "mgsm 2:", ""]


def test_empty_texts_and_a_megabyte_are_clean():
    scorer = fitted(bench("?!", "a b c d e f g h i j k l m n"))
    huge = "lorem ipsum " * 90_000
    found = scorer.score(rows(asks("", ""), asks("…"), asks("?!"), [], asks(huge, huge + "a b c d e f g h i j k l m")))
    assert found["reason"].null_count == 5
    assert found["overlap"].to_pylist() == [0, 0, 1, 0, 0.5]


def test_a_pool_that_is_all_benchmark():
    every = items().select(["id", "messages"])
    found = fitted().score(every)
    assert found["overlap"].to_pylist() == [1] * every.num_rows
    assert found["benchmark"].to_pylist() == items()["group"].to_pylist()


def test_the_order_of_items_and_copies_do_not_show():
    one, other = Contamination().fit(items()), Contamination().fit(pa.concat_tables([items()] * 2).slice(7, 250))
    assert {name: value.tolist() for name, value in one.items()} == {n: v.tolist() for n, v in other.items()}


def test_refusals():
    with pytest.raises(InputError, match="n of at least 2 words was asked, 1 was found"):
        Contamination(n=1)
    with pytest.raises(InputError, match="common is a share above 0, at most 1; 0 was found"):
        Contamination(common=0)
    with pytest.raises(StageError, match="learns from benchmarks before it scores"):
        Contamination().score(rows(asks("?")))
    with pytest.raises(InputError, match="questions was asked, 1 rows without any were found"):
        Contamination().fit(bench(" \n"))
