"""Languages of short and long texts; unsure ones, and those without letters."""

from __future__ import annotations

import sys
from functools import cache

import pyarrow as pa
import pytest

from curate.example import MESSAGE_TYPE
from curate.exceptions import InputError, MissingDependencyError
from curate.scorers import Language

pytest.importorskip("py3langid")

KNOWN = {
    "en": "The capital of Norway is Oslo. It is the largest city of the country.",
    "fr": "Comment puis-je améliorer la gestion de mon temps au travail ?",
    "de": "Wie viele Eier legt die Ente am Tag, und was geschieht mit den übrigen?",
    "zh": "珍妮特的鸭子每天下多少颗蛋？请列出你的计算步骤。",
    "ja": "ノルウェーの首都はオスロです。この国で最も大きな都市です。",
    "sw": "Bata wa Janet hutaga mayai kumi na sita kwa siku. Anakula matatu kila asubuhi.",
    "ar": "عاصمة النرويج هي أوسلو، وهي أكبر مدينة في البلاد.",
}


@cache
def scorer() -> Language:
    """Opened once: its model takes a second to load."""
    return Language()


def rows(*texts):
    turns = [[{"role": "user", "content": t}, {"role": "assistant", "content": ""}] for t in texts]
    return pa.table({"messages": pa.array(turns, pa.list_(MESSAGE_TYPE))})


def score(*texts):
    return scorer().score(rows(*texts))


def test_known_languages():
    found = score(*KNOWN.values())
    assert found["language"].to_pylist() == list(KNOWN)
    assert min(found["confidence"].to_pylist()) > 0.5


def test_texts_without_letters_have_none_and_unsure_ones_are_undetermined():
    found = score("", "12 + 30 = 42", "?!", "Tsunami", "x " * 300_000)
    assert found["reason"].to_pylist() == ["no letters"] * 3 + [None, None]
    assert found["language"].to_pylist()[:4] == [None, None, None, "und"]


def test_a_choice_among_some_and_of_the_beginning():
    mixed = KNOWN["en"] + " " + KNOWN["zh"] * 20
    few = Language(characters=60, languages=["en", "fr"], sure=0.0)
    assert few.score(rows(mixed, KNOWN["sw"], "Tsunami"))["language"].to_pylist()[0] == "en"
    assert set(few.score(rows(*KNOWN.values()))["language"].to_pylist()) == {"en", "fr"}
    assert score(mixed)["language"].to_pylist() == ["zh"]


def test_refusals(monkeypatch):
    with pytest.raises(InputError, match=r"languages are codes among .*; found klingon"):
        Language(languages=["en", "klingon"]).check()
    with pytest.raises(InputError, match="one language code or more was asked"):
        Language(languages=[])
    with pytest.raises(InputError, match="sure is a probability, 0 to 1; 2 was found"):
        Language(sure=2)
    with pytest.raises(InputError, match="characters of at least 1 was asked, 0 was found"):
        Language(characters=0)
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'curate-sft\[language\]'"):
        Language().check()
