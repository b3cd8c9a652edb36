"""Text heuristics, against the formulas written out on strings."""

import unicodedata
import zlib
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.example import MESSAGE_TYPE, prompt_and_response
from curate.scorers import TextHeuristics
from curate.testing import odd_examples
from tests.numerics.words import lower, reference_words


def score(*conversations):
    rows = [[{"role": role, "content": content} for role, content in messages] for messages in conversations]
    return TextHeuristics().score(pa.table({"messages": pa.array(rows, pa.list_(MESSAGE_TYPE))})).to_pylist()


def ask(prompt, response):
    return [("user", prompt), ("assistant", response)]


def share(part, whole):
    return part / whole if whole else 0.0


def reference(messages):
    """The table of the module's docstring, formula by formula."""
    prompt, response = prompt_and_response(messages)
    if not response.strip():
        return None
    words = [lower(response[s:e]) for s, e in reference_words(response)]
    total = sum(map(len, words))
    asked = [lower(prompt[s:e]) for s, e in reference_words(prompt)]

    def grams(n, of=words):
        return [tuple(of[i : i + n]) for i in range(len(of) - n + 1)]

    visible = [c for c in response if not c.isspace()]
    category = [unicodedata.category(c) for c in visible]
    letters = [c for c, kind in zip(visible, category, strict=True) if kind[0] == "L"]
    fives = Counter(grams(5))
    inside = {i + j for i, g in enumerate(grams(5)) if fives[g] > 1 for j in range(5)}
    tops = [count * sum(map(len, gram)) for gram, count in Counter(grams(2)).items() if count > 1]
    lines = [line.strip() for line in response.split("\n") if line.strip()]
    data = response.encode()
    last = response.rstrip()[-1]
    return {
        "repetition": share(len(grams(3)) - len(set(grams(3))), len(grams(3))),
        "duplicate_ngrams": share(sum(len(words[i]) for i in inside), total),
        "top_bigram": min(1.0, share(max(tops, default=0), total)),
        "line_repetition": 1 - len(set(lines)) / len(lines),
        "prompt_overlap": share(sum(g in set(grams(3, asked)) for g in grams(3)), len(grams(3))),
        "compression": len(data) / len(zlib.compress(data, 6)),
        "response_chars": len(response),
        "response_words": len(words),
        "prompt_chars": len(prompt),
        "turns": sum(m["role"] == "assistant" for m in messages),
        "mean_word_length": share(total, len(words)),
        "letter_share": share(sum(kind[0] in "LM" for kind in category), len(visible)),
        "digit_share": share(category.count("Nd"), len(visible)),
        "symbol_share": share(sum(kind[0] not in "LMN" for kind in category), len(visible)),
        "uppercase_share": share(sum(c.isupper() for c in letters), len(letters)),
        "non_ascii_share": share(sum(ord(c) > 127 for c in visible), len(visible)),
        "ends_properly": int(last in ".!?…。！？．｡։؟۔।॥။።჻\"'`" or unicodedata.category(last) in ("Pe", "Pf")),
    }


def assert_equal_to_reference(examples):
    found = TextHeuristics().score(examples).to_pylist()
    for row, messages in zip(found, examples["messages"].to_pylist(), strict=True):
        wanted = reference(messages)
        reason = row.pop("reason")
        if wanted is None:
            assert reason == "no response text" and set(row.values()) == {None}
        else:
            assert reason is None and row == wanted  # whole numbers and one division: no tolerance


def test_equals_the_reference_on_odd_examples():
    assert_equal_to_reference(odd_examples())


WORDS = st.lists(st.sampled_from(["a", "B", "b", "Ää", "中", "文", ".", "\n", "42", "x!", "\u00a0"]), max_size=25)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_equals_the_reference_on_repetitive_texts(rows):
    messages = [
        [{"role": "user", "content": " ".join(p)}, {"role": "assistant", "content": " ".join(r)}] for p, r in rows
    ]
    assert_equal_to_reference(pa.table({"messages": pa.array(messages, pa.list_(MESSAGE_TYPE))}))


def test_by_hand():
    (row,) = score(ask("say a b c", "A b c!\nA b c."))
    assert row["response_words"] == 6 and row["mean_word_length"] == 1.0
    assert row["repetition"] == 0.25  # abc bca cab abc
    assert row["prompt_overlap"] == 0.5  # abc, twice of four
    assert row["top_bigram"] == 4 / 6  # "a b" twice
    assert row["duplicate_ngrams"] == 0.0  # abcab, bcabc
    assert row["line_repetition"] == 0.0  # "A b c!" is not "A b c."
    assert row["symbol_share"] == 2 / 8 and row["uppercase_share"] == 2 / 6 and row["letter_share"] == 6 / 8
    assert (row["response_chars"], row["prompt_chars"], row["turns"], row["ends_properly"]) == (13, 9, 1, 1)


def test_duplicate_ngrams_by_hand():
    (row,) = score(ask("p", "One two three four five! Six; one two three four five? Seven."))
    assert row["duplicate_ngrams"] == 2 * len("onetwothreefourfive") / len("onetwothreefourfive" * 2 + "sixseven")
    assert row["repetition"] == 3 / 10  # one two three, two three four, three four five


def test_a_loop_is_found_and_prose_is_not():
    loop, prose = score(
        ask("p", "I will not. " * 50), ask("p", "Each word of this short sentence differs from every other.")
    )
    assert loop["repetition"] > 0.9 and loop["duplicate_ngrams"] == 1.0 and loop["compression"] > 10
    assert prose["repetition"] == prose["duplicate_ngrams"] == prose["top_bigram"] == 0.0


def test_the_last_assistant_turn_is_the_response_and_the_rest_is_the_prompt():
    (row,) = score([*ask("one", "two two two"), *ask("three", "four")])
    assert (row["turns"], row["response_chars"], row["prompt_chars"]) == (2, 4, len("one\ntwo two two\nthree"))


@pytest.mark.parametrize(
    ("response", "ends"),
    [("Yes.", 1), ("Yes", 0), ("是。", 1), ("f(x)", 1), ("```", 1), ("Yes. \n", 1), ("a,", 0), ("“Yes”", 1)],
)
def test_ends_properly(response, ends):
    assert score(ask("p", response))[0]["ends_properly"] == ends


def test_more_rows_than_one_block_holds(monkeypatch):
    examples = odd_examples()
    whole = TextHeuristics().score(examples)
    monkeypatch.setattr("curate.numerics.ngrams.blocks.__kwdefaults__", {"characters": 100})
    assert TextHeuristics().score(examples).equals(whole)


def test_every_column_is_in_the_docstring():
    import curate.scorers.text_heuristics as module

    assert module.__doc__ is not None
    table = module.__doc__.split("=====\n")[2]
    listed = [line.split()[0] for line in table.splitlines() if line[:1].isalpha()]
    assert sorted(listed) == sorted(column.name for column in TextHeuristics().columns)
    assert np.isin([c.dtype for c in TextHeuristics().columns], ["float64", "int64"]).all()
