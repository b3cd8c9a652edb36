"""Which of many known texts a text repeats, word by word: the search behind decontamination.

Texts are compared as words: Unicode NFKC, case folded, invisible format characters (soft hyphens, zero-width spaces)
left out, then the words of ``curate.numerics.ngrams``, so that punctuation, layout and case do not count, and a
character of Chinese, Japanese or Thai is a word.  Two ways of repeating are found:

* a phrase: n successive words of the known text, in the same order, with nothing between;
* the whole: all words of the known text, and no others.

Phrases that a group of known texts has in common are its wrapper ("Answer with one label. Request:") and give nobody
away.  A word belongs to the wrapper where it stands in a phrase of ⌊n/2⌋ words that more than a share ``common`` of the
group's texts hold, and more than four of them; a phrase of n words of which more than half are wrapper is not looked
for.

Phrases are found by their 64-bit hashes: a table of bits sends most of them away, a sorted array decides.  What is
found is then compared word by word, so that no collision of hashes can accuse a text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from curate.numerics.ngrams import Characters, blocks, mix, span_hashes

_FEW = 4
"""Known texts that may share a phrase by chance, however few there are."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


def normalised(text: str) -> str:
    """Return the text as it is compared: NFKC, case folded, without invisible format characters."""
    if text.isascii():
        return text.lower()
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()


def compact(text: str) -> str:
    """Return a normalised text without white space: what is compared where words say too little."""
    return "".join(text.split())


def original(text: str, start: int, end: int) -> str:
    """Return the part of ``text`` whose normalised form is ``normalised(text)[start:end]``, to a character or so."""
    if text.isascii():
        return text[start:end]
    places = range(len(text) + 1)
    first = bisect_right(places, start, key=lambda i: len(normalised(text[:i]))) - 1
    last = bisect_left(places, end, key=lambda i: len(normalised(text[:i])))
    return text[first:last]


def words_of(text: str) -> list[str]:
    """Return the words of a normalised text."""
    words = Characters.of([text]).words()
    return [text[start:end] for start, end in zip(words.starts.tolist(), words.ends.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class Found:
    """What rows repeat: one known text each, of which they hold the largest share."""

    share: NDArray[np.float64]
    """(n,) share of the known text's phrases that the row holds; 1 if it is the whole; 0 where nothing is repeated."""
    text: NDArray[np.int64]
    """(n,) number of the known text; -1 where nothing is repeated."""
    piece: NDArray[np.int64]
    """(n,) number of the piece in which the longest run of it stands; -1 likewise."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """(n,) where in the normalised piece."""


class Phrases:
    """Known texts, ready to be looked for.

    Parameters
    ----------
    texts : the known texts, normalised, each once a group.
    groups : (T,) the number of each text's group, from 0: whose wrapper it may hold.
    n : words of a phrase, at least 2.
    common : share of a group's texts above which what they have in common is wrapper.
    whole : (T,) bool, the texts that are also looked for as a whole; all of them when None.

    Notes
    -----
    A known text of fewer than n words has no phrase: it is found as a whole only.  Where two texts of a group have the
    same words, or a text has none ("[ ( ] )"), the whole of it is compared by all its characters but white space.
    Memory: about 50 bytes a word of the known texts.
    """

    def __init__(
        self,
        texts: Sequence[str],
        groups: NDArray[np.int64],
        *,
        n: int,
        common: float,
        whole: NDArray[np.bool_] | None = None,
    ) -> None:
        self.n, self._texts = n, texts
        self._words: dict[int, list[str]] = {}
        hashes, rows = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
        for block in blocks(texts):
            words = Characters.of(texts[block]).words()
            hashes.append(words.hashes)
            rows.append(words.rows + block.start)
        word, of = np.concatenate(hashes), np.concatenate(rows)
        bounds = np.searchsorted(of, np.arange(len(texts) + 1))
        kept = _windows(of, n)
        wrapper = np.concatenate([[0], np.cumsum(_wrapper(word, of, groups, max(1, n // 2), common))])
        kept = kept[2 * (wrapper[kept + n] - wrapper[kept]) <= n]
        self._phrases = _Table(span_hashes(word, kept, kept + n), of[kept], kept - bounds[of[kept]])
        self._sizes = np.bincount(self._phrases.of, minlength=len(texts))
        full = span_hashes(word, bounds[:-1], bounds[1:])
        wanted = np.arange(len(texts)) if whole is None else np.flatnonzero(whole)
        self._wholes = _Table(full[wanted], wanted, np.zeros(wanted.size, dtype=np.int64))
        _, same, times = np.unique(
            np.stack([groups.astype(np.uint64), full]), axis=1, return_inverse=True, return_counts=True
        )
        self._by_character = (times[same.reshape(-1)] > 1) | (bounds[1:] == bounds[:-1])

    def find(self, pieces: Sequence[str], rows: NDArray[np.int64], n: int) -> Found:
        """Return what each of ``n`` rows repeats, its normalised texts being the ``pieces`` that ``rows`` says are its.

        A phrase counts once, in whichever piece it stands; a whole is one piece.  Of equal shares the first known text
        is told.
        """
        hit, run, whole = self._all(pieces)
        # Of each row and known text: the share of its phrases, each counted once, and the longest run of them.
        told = np.unique(np.stack([rows[hit[0]], hit[1], hit[6]]), axis=1)
        pairs, phrases = np.unique(told[:2], axis=1, return_counts=True)
        run = run[:, np.lexsort((run[4], run[0], -run[3], run[1], rows[run[0]]))]
        longest = np.unique(np.stack([rows[run[0]], run[1]]), axis=1, return_index=True)[1]
        ends = np.array([len(pieces[i]) for i in whole[0].tolist()], dtype=np.int64)
        piece, of, start, end = np.concatenate(
            [np.stack([*whole, np.zeros_like(ends), ends]), run[[0, 1, 4, 5]][:, longest]], 1
        )
        share = np.concatenate([np.ones(ends.size), phrases / self._sizes[pairs[1]]])
        order = np.lexsort((of, -share, rows[piece]))  # of one known text the whole comes first, as it stands first
        order = order[np.unique(rows[piece[order]], return_index=True)[1]]
        out = Found(np.zeros(n), *(np.full(n, -1, dtype=np.int64) for _ in range(4)))
        for values, column in zip(
            (share, of, piece, start, end), (out.share, out.text, out.piece, out.start, out.end), strict=True
        ):
            column[rows[piece[order]]] = values[order]
        return out

    def held(self, pieces: Sequence[str], rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return of each known text the largest share of its phrases that one row holds, (T,), and that row, (T,).

        The other side of ``find``: share 1 where a piece is the whole, 0 and row -1 where nothing is repeated; of equal
        shares the first row is told.
        """
        hit, _, whole = self._all(pieces)
        pairs, phrases = np.unique(
            np.unique(np.stack([hit[1], rows[hit[0]], hit[6]]), axis=1)[:2], axis=1, return_counts=True
        )
        of = np.concatenate([whole[1], pairs[0]])
        row = np.concatenate([rows[whole[0]], pairs[1]])
        found = np.concatenate([np.ones(whole.shape[1]), phrases / self._sizes[pairs[0]]])
        order = np.lexsort((row, -found, of))
        order = order[np.unique(of[order], return_index=True)[1]]
        share, first = np.zeros(len(self._texts)), np.full(len(self._texts), -1, dtype=np.int64)
        share[of[order]], first[of[order]] = found[order], row[order]
        return share, first

    def _all(self, pieces: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return what the pieces repeat, word for word: phrases and runs as ``_runs``; wholes: piece, known text."""
        hits, wholes = [np.empty((7, 0), dtype=np.int64)], [np.empty((2, 0), dtype=np.int64)]
        for block in blocks(pieces):
            for found, more in zip((hits, wholes), self._look_up(pieces[block]), strict=True):
                more[0] += block.start
                found.append(more)
        whole = np.concatenate(wholes, axis=1)
        same = np.array([self._is(of, pieces[piece]) for piece, of in whole.T.tolist()], dtype=bool)
        return *self._runs(np.concatenate(hits, axis=1), pieces), whole[:, same]

    def _look_up(self, pieces: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return by their hashes what may be repeated.

        Phrases: piece, known text, first word there, first word in the piece, first character and end there, number of
        the phrase.  Wholes: piece, known text.
        """
        characters = Characters.of(pieces)
        words = characters.words()
        bounds = np.searchsorted(words.rows, np.arange(len(pieces) + 1))
        first = words.windows(self.n)
        at, key, place = self._phrases.look_up(span_hashes(words.hashes, first, first + self.n))
        first = first[at]
        piece = words.rows[first]
        begin, end = words.starts[first], words.ends[first + self.n - 1]
        there = [first - bounds[piece], begin - characters.offsets[piece], end - characters.offsets[piece]]
        at, _, whole = self._wholes.look_up(span_hashes(words.hashes, bounds[:-1], bounds[1:]))
        return (
            np.stack([piece, self._phrases.of[place], self._phrases.at[place], *there, key]),
            np.stack([at, self._wholes.of[whole]]),
        )

    def _runs(self, hits: NDArray[np.int64], pieces: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Join phrases that follow one another in a piece and in a known text; keep those whose words are the same.

        Returns
        -------
        The phrases kept, and the runs: piece, known text, first word there, phrases, first character and end.
        """
        piece, of, at, word, *_ = hits
        hits = hits[:, np.lexsort((word, at - word, of, piece))]
        piece, of, at, word, start, end, _ = hits
        follows = np.zeros(piece.size, dtype=bool)
        follows[1:] = (np.diff(piece) == 0) & (np.diff(of) == 0) & (np.diff(at) == 1) & (np.diff(word) == 1)
        first = np.flatnonzero(~follows)
        length = np.diff(np.append(first, piece.size))
        run = np.stack([piece[first], of[first], at[first], length, start[first], end[first + length - 1]])
        spoken = cache(lambda piece, start, end: words_of(pieces[piece][start:end]))  # several texts may say the same
        same = np.array([self._says(of, at, spoken(piece, *ends)) for piece, of, at, _, *ends in run.T.tolist()], bool)
        return hits[:, np.repeat(same, length)], run[:, same]

    def _says(self, of: int, at: int, words: list[str]) -> bool:
        return words == self._words_of(of)[at : at + len(words)]

    def _is(self, of: int, piece: str) -> bool:
        if self._by_character[of]:
            return compact(piece) == compact(self._texts[of])
        return words_of(piece) == self._words_of(of)

    def _words_of(self, of: int) -> list[str]:
        if of not in self._words:
            self._words[of] = words_of(self._texts[of])
        return self._words[of]


class _Table:
    """Where hashes stand: each in one known text or more, in each at the first place of several."""

    def __init__(self, hashes: NDArray[np.uint64], of: NDArray[np.int64], at: NDArray[np.int64]) -> None:
        order = np.lexsort((at, of, hashes))
        hashes, of, at = hashes[order], of[order], at[order]
        fresh = np.ones(hashes.size, dtype=bool)
        fresh[1:] = (hashes[1:] != hashes[:-1]) | (of[1:] != of[:-1])
        self.of, self.at = of[fresh], at[fresh]
        self._keys, starts = np.unique(hashes[fresh], return_index=True)
        self._starts = np.append(starts, self.of.size)
        # One bit of memory in 16 is set, so that one hash in 16 is looked for further; at least a page, at most 64 MB.
        self._mask = np.uint64(2 ** min(26, max(12, 4 + self._keys.size.bit_length())) - 1)
        self._seen = np.zeros(int(self._mask) + 1, dtype=bool)
        self._seen[self._keys & self._mask] = True

    def look_up(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return for every place of each hash that is there: which hash, its number here, the place's number."""
        which = np.flatnonzero(self._seen[hashes & self._mask])
        key = np.searchsorted(self._keys, hashes[which])
        there = np.flatnonzero(np.append(self._keys, np.uint64(0))[key] == hashes[which])
        there = there[key[there] < self._keys.size]
        which, key = which[there], key[there]
        count = self._starts[key + 1] - self._starts[key]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(which, count), np.repeat(key, count), np.repeat(self._starts[key], count) + within


def _windows(of: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the number of the first of every n successive words of one text."""
    return np.flatnonzero(of[n - 1 :] == of[: max(of.size - n + 1, 0)])


def _wrapper(
    word: NDArray[np.uint64], of: NDArray[np.int64], groups: NDArray[np.int64], n: int, common: float
) -> NDArray[np.bool_]:
    """Return which words stand in a phrase of n words that many texts of the group hold."""
    first = _windows(of, n)
    text = of[first]
    limit = np.maximum(_FEW, common * np.bincount(groups))[groups[text]]
    key = mix(span_hashes(word, first, first + n) + groups[text].astype(np.uint64))
    order = np.lexsort((text, key))
    fresh = np.ones(order.size, dtype=bool)
    fresh[1:] = np.diff(key[order]) != 0
    phrase = np.cumsum(fresh) - 1
    fresh[1:] |= np.diff(text[order]) != 0
    texts = np.bincount(phrase[fresh], minlength=1)[phrase] if order.size else phrase
    many = first[order[texts > limit[order]]]
    change = np.zeros(word.size + 1, dtype=np.int64)
    np.add.at(change, many, 1)
    np.add.at(change, many + n, -1)
    return np.cumsum(change[:-1]) > 0
