"""The search for repeated phrases, beside sets of tuples of words; made-up collisions; spellings; wrappers."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curate.numerics import phrases
from curate.numerics.phrases import Phrases, normalised, original, words_of
from tests.numerics.words import reference_words


def plain(text: str) -> tuple[str, ...]:
    return tuple(text[a:b] for a, b in reference_words(text))


def reference(texts, groups, n, common, pieces, rows, count):
    """(share, known text) of every row, as the docstring reads: sets of tuples, one text after another."""
    words = [plain(text) for text in texts]
    half = max(1, n // 2)
    kept = []
    for text, group in zip(words, groups, strict=True):
        same = [other for other, g in zip(words, groups, strict=True) if g == group]
        limit = max(4, common * len(same))
        wrapper = [False] * len(text)
        for i in range(len(text) - half + 1):
            held = sum(any(o[j : j + half] == text[i : i + half] for j in range(len(o))) for o in same)
            if held > limit:
                wrapper[i : i + half] = [True] * half
        starts = [i for i in range(len(text) - n + 1) if 2 * sum(wrapper[i : i + n]) <= n]
        kept.append({text[i : i + n] for i in starts})
    out = []
    for row in range(count):
        said = [piece for piece, of in zip(pieces, rows, strict=True) if of == row]
        grams = {w[i : i + n] for w in map(plain, said) for i in range(len(w) - n + 1)}
        best = (0.0, -1)
        for t, text in enumerate(texts):
            alike = [u for u, g in enumerate(groups) if g == groups[t] and words[u] == words[t]]
            by_character = len(alike) > 1 or not words[t]
            if by_character:
                whole = any("".join(piece.split()) == "".join(text.split()) for piece in said)
            else:
                whole = any(plain(piece) == words[t] for piece in said)
            share = 1.0 if whole else len(kept[t] & grams) / max(1, len(kept[t]))
            if share > best[0]:
                best = (share, t)
        out.append(best)
    return out


WORDS = st.sampled_from(["a", "b", "c", "d", "?", "中", "é"])
TEXT = st.lists(WORDS, max_size=14).map(" ".join)


@given(
    texts=st.lists(
        st.tuples(st.integers(0, 1), TEXT), min_size=1, max_size=8, unique_by=lambda t: (t[0], "".join(t[1].split()))
    ),
    pieces=st.lists(st.tuples(st.integers(0, 3), TEXT), max_size=8),
    n=st.integers(2, 5),
    common=st.sampled_from([0.1, 1.0]),
)
def test_it_finds_what_the_reference_finds(texts, pieces, n, common):
    texts = [(g, t) for g, t in texts if t] or [(0, "a b")]
    groups, known = [g for g, _ in texts], [t for _, t in texts]
    pieces = sorted(pieces, key=lambda p: p[0])
    rows, said = np.array([r for r, _ in pieces], dtype=np.int64), [p for _, p in pieces]
    found = Phrases(known, np.array(groups), n=n, common=common).find(said, rows, 4)
    wanted = reference(known, groups, n, common, said, rows, 4)
    assert [(pytest.approx(s), t) for s, t in wanted] == list(zip(found.share, found.text.tolist(), strict=True))
    for row in np.flatnonzero(found.text >= 0).tolist():
        piece = said[found.piece[row]][found.start[row] : found.end[row]]
        assert rows[found.piece[row]] == row and piece  # where it says that it stands, it stands
        words, text = plain(piece), plain(known[found.text[row]])
        assert any(text[i : i + len(words)] == words for i in range(len(text) + 1))


@given(
    texts=st.lists(
        st.tuples(st.integers(0, 1), TEXT), min_size=1, max_size=8, unique_by=lambda t: (t[0], "".join(t[1].split()))
    ),
    pieces=st.lists(st.tuples(st.integers(0, 3), TEXT), max_size=8),
    n=st.integers(2, 5),
    common=st.sampled_from([0.1, 1.0]),
)
@settings(max_examples=50)
def test_it_tells_of_each_known_text_which_row_holds_most_of_it(texts, pieces, n, common):
    """The other side of ``find``: what the reference says of one known text, row by row."""
    texts = [(g, t) for g, t in texts if t] or [(0, "a b")]
    groups, known = np.array([g for g, _ in texts]), [t for _, t in texts]
    pieces = sorted(pieces, key=lambda p: p[0])
    rows, said = np.array([r for r, _ in pieces], dtype=np.int64), [p for _, p in pieces]
    phrases = Phrases(known, groups, n=n, common=common)
    share, row = phrases.held(said, rows)
    found = phrases.find(said, rows, 4)
    for i in range(4):  # no row holds more of a text than the text says
        assert found.text[i] < 0 or share[found.text[i]] >= found.share[i]
    for t in range(len(known)):
        alone = [find_one(known, groups, n, common, said, rows, i, t) for i in range(4)]
        assert share[t] == pytest.approx(max(alone))
        assert row[t] == (next(i for i, s in enumerate(alone) if s == max(alone)) if max(alone) else -1)


def find_one(texts, groups, n, common, pieces, rows, row, t):
    """Share of known text ``t`` that ``row`` holds, by the reference: the others of its group keep their wrapper."""
    words = [plain(text) for text in texts]
    same = [w for w, g in zip(words, groups, strict=True) if g == groups[t]]
    half, limit = max(1, n // 2), max(4, common * len(same))
    wrapper = [False] * len(words[t])
    for i in range(len(words[t]) - half + 1):
        if sum(any(o[j : j + half] == words[t][i : i + half] for j in range(len(o))) for o in same) > limit:
            wrapper[i : i + half] = [True] * half
    kept = {words[t][i : i + n] for i in range(len(words[t]) - n + 1) if 2 * sum(wrapper[i : i + n]) <= n}
    said = [piece for piece, of in zip(pieces, rows, strict=True) if of == row]
    by_character = same.count(words[t]) > 1 or not words[t]
    whole = any("".join(p.split()) == "".join(texts[t].split()) if by_character else plain(p) == words[t] for p in said)
    grams = {w[i : i + n] for w in map(plain, said) for i in range(len(w) - n + 1)}
    return 1.0 if whole else len(kept & grams) / max(1, len(kept))


def test_a_collision_of_hashes_accuses_nobody(monkeypatch):
    rng = random.Random(0)
    known = [" ".join(rng.choices("abcdefgh", k=12)) for _ in range(20)]
    pieces = [" ".join(rng.choices("abcdefgh", k=30)) for _ in range(20)] + [known[3]]
    rows, groups = np.arange(21), np.arange(20)
    honest = Phrases(known, groups, n=6, common=1.0).find(pieces, rows, 21)
    right = phrases.span_hashes
    monkeypatch.setattr(phrases, "span_hashes", lambda *given: right(*given) & np.uint64(7))
    crowded = Phrases(known, groups, n=6, common=1.0)
    found = crowded.find(pieces, rows, 21)
    assert found.text[20] == 3 and found.share[20] == 1
    # All hashes fall on eight numbers, so some phrases are lost; nobody is accused who is innocent.
    assert set(np.flatnonzero(found.share)) <= set(np.flatnonzero(honest.share))
    assert np.count_nonzero(honest.share) < 21


def test_pieces_of_many_blocks():
    long = [" ".join(f"w{i}" for i in range(start, start + 20_000)) for start in (0, 20_000, 40_000)]
    known = ["w21000 w21001 w21002 w21003", "w39998 w39999", "w39999 w40000"]
    found = Phrases(known, np.zeros(3, np.int64), n=2, common=1.0).find([*long, "w39999, w40000!"], np.arange(4), 4)
    assert found.share.tolist() == [0, 1, 0, 1] and found.text.tolist() == [-1, 0, -1, 2]
    assert long[1][found.start[1] : found.end[1]] == known[0]


def test_neighbours_in_a_text_need_not_be_neighbours_in_the_known_one():
    found = Phrases(["a b x b c"], np.zeros(1, np.int64), n=2, common=1.0).find(["a b c"], np.zeros(1, np.int64), 1)
    assert found.share.tolist() == [0.5] and "a b c"[found.start[0] : found.end[0]] == "a b"


def test_a_wrapper_condemns_nobody():
    wrapper = "answer the question with one word"
    known = [f"{wrapper} {a} {b} {a}{b}" for a, b in ("qr", "st", "uv", "wx", "yz")]
    pieces = [f"{wrapper} m n o", f"{wrapper} q r m", "one word q r qr", f"{wrapper} q r qr"]
    groups, rows = np.zeros(5, np.int64), np.arange(4)
    found = Phrases(known, groups, n=4, common=0.1).find(pieces, rows, 4)
    # Kept of each: "one word a b" (half of it wrapper) and "word a b ab".
    assert found.share.tolist() == [0, 0.5, 1, 1]
    assert Phrases(known, groups, n=4, common=1.0).find(pieces, rows, 4).share[0] > 0
    few = Phrases(known[:4], groups[:4], n=4, common=0.1)  # four may agree by chance
    assert few.find(pieces, rows, 4).share[0] > 0


@pytest.mark.parametrize("seed", range(6))
def test_wrappers_are_those_of_the_reference(seed):
    rng = random.Random(seed)
    n, groups = rng.choice([2, 3, 4, 6]), np.repeat([0, 1], [14, 8])
    heads = [rng.choices("abcdefgh", k=6) for _ in range(3)]
    known = [" ".join([*rng.choice(heads), *rng.choices("abcdefghijkl", k=rng.randint(0, 9))]) for _ in groups]
    pieces = [" ".join([*rng.choice(heads), *rng.choices("abcdefghijkl", k=6)]) for _ in range(30)]
    rows, common = np.arange(30), rng.choice([0.2, 0.5])
    found = Phrases(known, groups, n=n, common=common).find(pieces, rows, 30)
    wanted = reference(known, groups.tolist(), n, common, pieces, rows, 30)
    assert [(pytest.approx(s), t) for s, t in wanted] == list(zip(found.share, found.text.tolist(), strict=True))


def test_of_equal_shares_the_first_known_text_is_told_and_the_longest_run():
    known = ["one two three four five", "two three four five six"]
    pieces = ["two three. Then: two three four five", "six one two"]
    found = Phrases(known, np.array([0, 1]), n=2, common=1.0).find(pieces, np.array([0, 0]), 1)
    assert (found.share[0], found.text[0], found.piece[0]) == (1.0, 0, 0)  # "one two" stands in the other piece
    assert pieces[0][found.start[0] : found.end[0]] == "two three four five"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("STRASSE", "straße"),
        ("Café", "Cafe\u0301"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("soft\u00adly\u200b", "softly"),
        ("It’s—really", "it's - REALLY!"),
        ("ﬁne", "fine"),
        ("x² + y²", "x2 + y2"),
    ],
)
def test_spellings_of_the_same_words(one, other):
    assert words_of(normalised(one)) == words_of(normalised(other))


@given(st.text(max_size=60))
@example("¨\xad")  # one character becomes two, another none
def test_the_original_of_a_word_holds_it(text):
    form = normalised(text)
    for a, b in reference_words(form)[:3]:
        assert form[a:b] in normalised(original(text, a, b))


def test_the_original_where_normalising_changes_lengths():
    text = "ﬁrst… ﬁsh SWIM"
    form = normalised(text)
    assert form == "first... fish swim"
    at = form.index("fish")
    assert original(text, at, at + 4) == "ﬁsh"


def test_no_known_text_and_no_piece():
    nothing = np.empty(0, dtype=np.int64)
    assert Phrases(["a b"], np.zeros(1, np.int64), n=2, common=1.0).find([], nothing, 3).share.tolist() == [0, 0, 0]
    assert Phrases([], nothing, n=2, common=1.0).find(["a b"], np.zeros(1, np.int64), 1).text.tolist() == [-1]


def test_where_words_are_not_enough_every_character_counts():
    known = ["close these: ( [", "close these: { <", "{ { (", "what is 2 + 2?", "close these"]
    groups = np.array([0, 0, 0, 0, 1])
    pieces = ["Close these: ([", "close these: ) )", "{{(", "((", "what is 2 - 2"]
    found = Phrases(known, groups, n=9, common=1.0).find([normalised(p) for p in pieces], np.arange(5), 5)
    # The fifth known text is alone in its group: there its words are enough, as they are for "2 + 2".
    assert found.text.tolist() == [0, 4, 2, -1, 3]
