"""Digests of normalised texts."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.example import MESSAGE_TYPE
from curate.scorers import MinHash, TextDigest
from curate.scorers._turns import turns


def table(*conversations):
    return pa.table({"messages": pa.array(list(conversations), pa.list_(MESSAGE_TYPE))})


def said(*contents, **last):
    roles = ["user", "assistant"]
    out = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    out[-1].update(last)
    return out


def digests(*texts, **params):
    got = TextDigest(**params).score(table(*(said(text, "ok") for text in texts)))
    return [tuple(d) if d else None for d in got["digest"].to_pylist()]


SAME = [
    ("Hello  world", " hello\tWORLD\n"),
    ("Cafe\u0301", "café"),
    ("ﬁne", "fine"),
    ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
    ("zero\u200bwidth\ufeff", "zerowidth"),
    ("STRASSE", "straße"),
]
OTHER = [("a+b", "a-b"), ("3.14", "314"), ("one two", "onetwo"), ("resume", "résumé"), ("你好", "您好")]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_but_for_how_it_is_written(a, b):
    one, two = digests(a, b, text="prompt")
    assert one == two


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_not_the_same(a, b):
    one, two = digests(a, b, text="prompt")
    assert one != two


def test_what_counts_can_be_chosen():
    def equal(a, b, **params):
        one, two = digests(a, b, text="prompt", **params)
        return one == two

    assert not equal("Print", "print", case=True) and equal("Print it", "Print  it", case=True)
    assert equal("Hello, world!", "hello world", punctuation=False) and not equal("Hello, world!", "hello world")
    assert not equal("3.14", "314", punctuation=False) and equal("don't", "don t", punctuation=False)
    assert equal("你 好", "你好", spaces=False) and not equal("你 好", "你好")


def test_turns_end_where_they_end():
    split = [said("a b", "c"), said("a", "b c"), said("a b c", "", thinking="")]
    assert len({tuple(d) for d in TextDigest().score(table(*split))["digest"].to_pylist()}) == 3


def test_what_is_compared():
    rows = table(said("q", "a", "q2", "x"), said("q", "a", "q2", "y"), said("other", "other", "other", "y"))
    prompt, response, both, whole = (
        [tuple(d) for d in TextDigest(text=w).score(rows)["digest"].to_pylist()]
        for w in ("prompt", "response", "both", "conversation")
    )
    assert prompt[0] == prompt[1] != prompt[2] and response[1] == response[2] != response[0]
    assert len(set(both)) == 3 and both == whole
    assert turns(table(said("q", "a", "after")), "both")[0] == ["q", "a"]
    assert turns(table(said("q", "a", "after")), "conversation")[0] == ["q", "a", "after"]
    assert turns(table([{"role": "user", "content": "q"}]), "response")[1].tolist() == [0]


def test_calls_and_thoughts_tell_answers_apart():
    call = [json.dumps([{"function": {"name": "weather", "arguments": {"city": c}}}]) for c in ("Oslo", "Rome")]
    rows = table(
        said("weather?", "", tool_calls=call[0]), said("weather?", "", tool_calls=call[1]), said("weather?", "")
    )
    got = TextDigest().score(rows)
    assert len({tuple(d) for d in got["digest"].to_pylist()}) == 3
    assert TextDigest(text="response").score(rows)["reason"].to_pylist() == [None, None, "no text"]
    thought = table(said("2+2", "4", thinking="two and two"), said("2+2", "4"))
    assert turns(thought, "response")[0] == ["4\ntwo and two", "4"]


def test_nothing_left_is_null_with_a_reason():
    rows = table(said(" \n\u200b", "\t"), said("?!", "…"), said("x", ""))
    assert TextDigest().score(rows)["reason"].to_pylist() == ["no text", None, None]
    assert TextDigest(punctuation=False).score(rows)["reason"].to_pylist() == ["no text", "no text", None]
    got = MinHash().score(rows)
    assert got["reason"].to_pylist() == ["no words", "no words", None]
    assert MinHash(unit="characters").score(table(said(" \n", "\t")))["reason"].to_pylist() == ["no characters"]
    assert got["signature"].null_count == 2


@given(st.text(max_size=40), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_second_pass_changes_nothing(text, case, punctuation, spaces):
    scorer = TextDigest(case=case, punctuation=punctuation, spaces=spaces)
    once = scorer.normalised(text)
    assert scorer.normalised(once) == once


def test_the_digest_is_of_the_normalised_text():
    import hashlib

    wanted = np.frombuffer(hashlib.blake2b(b"hello world\x1eok", digest_size=16).digest(), dtype="<u8").tolist()
    assert digests("Hello  WORLD") == [tuple(wanted)]
