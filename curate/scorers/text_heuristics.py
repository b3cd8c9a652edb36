"""Numbers read off the text alone: length, repetition, kinds of characters, overlap with the prompt.

They find broken rows (loops, boilerplate, mojibake, cut-off answers) that likelihood often likes: repetition is easy to
predict.  None of them measures quality; the direction is stated only where one is meant.

The response is the content of the last assistant turn, the prompt the contents of all turns before it, joined by
newlines; earlier assistant turns belong to the prompt.  Words are those of ``curate.numerics.ngrams``: runs of
letters, marks and digits, lower-cased; in scripts without spaces each letter is a word.  Write W for the number of
words of the response, |w| for the characters of a word, L = Σ|w|, and G_n for its word n-grams in order (W - n + 1 of
them, or none). A share of nothing is 0.

====================  ==================================================================================================
column                formula
====================  ==================================================================================================
response_chars        code points of the response
response_words        W
prompt_chars          code points of the prompt
turns                 assistant messages
mean_word_length      L / max(W, 1)
letter_share          letters and combining marks / characters that are no white space
digit_share           decimal digits / characters that are no white space
symbol_share          characters that are in no word / characters that are no white space
uppercase_share       upper-case letters / letters
non_ascii_share       code points above 127 / characters that are no white space
repetition            1 - |set(G_3)| / |G_3|: share of trigrams that occurred before
duplicate_ngrams      Σ|w| over words inside a 5-gram that occurs at least twice / L; each word once
top_bigram            max over bigrams g occurring c ≥ 2 times of c·|g| / L, at most 1; 0 if none occurs twice
line_repetition       1 - distinct / all lines, without blank ends and blank lines
compression           UTF-8 bytes / bytes of zlib at level 6
prompt_overlap        share of the items of G_3 that are trigrams of the prompt
ends_properly         1 if the last visible character closes a sentence, a quotation, a bracket or a code block
====================  ==================================================================================================

Sources: repetition, duplicate and top n-grams, duplicate lines, symbols and word length are the quality signals of
Rae et al. 2021 (Gopher, arXiv:2112.11446, §A.1.1), the closing character is that of Raffel et al. 2020 (C4, §2.2).
They are given as numbers here, without those papers' thresholds, which were set for web pages.  Other differences:
Gopher splits words at white space, we as above (so that Chinese counts); Gopher takes duplicate n-grams for n = 5…10
and top n-grams for n = 2…4, we one each; its shares are of all characters, ours of characters in words; its top
n-gram may exceed 1 where copies overlap; its symbols are "#" and "…" per word, ours every character in no word.
"""

from __future__ import annotations

import unicodedata
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from curate.base import Column, Scorer

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.numerics.ngrams import Spans

_COLUMNS = (
    Column("repetition", "share of word trigrams", higher_is_better=False),
    Column("duplicate_ngrams", "share of characters in words", higher_is_better=False),
    Column("top_bigram", "share of characters in words", higher_is_better=False),
    Column("line_repetition", "share of lines", higher_is_better=False),
    Column("prompt_overlap", "share of word trigrams"),
    Column("compression", "bytes per compressed byte"),
    Column("response_chars", "characters", dtype="int64"),
    Column("response_words", "words", dtype="int64"),
    Column("prompt_chars", "characters", dtype="int64"),
    Column("turns", "assistant messages", dtype="int64"),
    Column("mean_word_length", "characters"),
    Column("letter_share", "share of visible characters"),
    Column("digit_share", "share of visible characters"),
    Column("symbol_share", "share of visible characters"),
    Column("uppercase_share", "share of letters"),
    Column("non_ascii_share", "share of visible characters"),
    Column("ends_properly", "1 or 0", dtype="int64"),
)

# Sentence ends of the larger scripts; closing brackets and quotation marks are found by Unicode category (Pe, Pf).
_SENTENCE_ENDS = frozenset(".!?…。！？．｡։؟۔।॥။።჻\"'`")


@dataclass(kw_only=True)
class TextHeuristics(Scorer):
    """Seventeen numbers about a response's text; the module's docstring has each formula."""

    name: ClassVar[str] = "text-heuristics"
    reference: ClassVar[str] = (
        'Rae et al. 2021, "Scaling Language Models" (Gopher, arXiv:2112.11446); Raffel et al. 2020 (C4)'
    )

    @property
    def columns(self) -> tuple[Column, ...]:
        return _COLUMNS

    def identity(self) -> dict[str, Any]:
        """Add the version of zlib: another one may compress to other sizes."""
        return {**super().identity(), "zlib": zlib.ZLIB_RUNTIME_VERSION}

    def _score(self, examples: pa.Table) -> dict[str, Any]:
        from curate.numerics.ngrams import blocks
        from curate.scorers._texts import prompts_and_responses

        prompts, responses, turns = prompts_and_responses(examples)
        scored = [i for i, response in enumerate(responses) if response and not response.isspace()]
        prompts, responses = [prompts[i] for i in scored], [responses[i] for i in scored]
        reason = np.full(examples.num_rows, "no response text", dtype=object)
        reason[scored] = None
        out: dict[str, Any] = {column.name: np.zeros(examples.num_rows) for column in _COLUMNS}
        out["turns"] = turns
        scored_rows = np.array(scored, dtype=np.int64)
        for block in blocks(prompts, responses):
            for name, values in measure(prompts[block], responses[block]).items():
                out[name][scored_rows[block]] = values
        return {**out, "reason": reason}


def measure(prompts: list[str], responses: list[str]) -> dict[str, NDArray[Any]]:
    """Return every column but "turns" for responses that hold at least one visible character.

    Counts are whole numbers, so each value depends on its own row alone.  About 60 bytes of memory per character.
    """
    from curate.numerics.ngrams import DIGIT, LETTER, MARK, SPACE, UPPER, WORD, Characters

    n = len(responses)
    characters = Characters.of(responses)
    words = characters.words()
    lengths = words.ends - words.starts
    total_words = np.bincount(words.rows, minlength=n)
    word_chars = _sums(words.rows, lengths, n)

    def count(flag: int) -> NDArray[np.int64]:
        return characters.count((characters.classes & flag) != 0)

    visible = np.diff(characters.offsets) - count(SPACE)
    trigrams = words.ngrams(3)
    keys = trigrams.keys()
    order, first = _group(keys)
    distinct = np.bincount(trigrams.rows[order[first]], minlength=n)
    prompt_keys = np.sort(Characters.of(prompts).words().ngrams(3).keys())
    copied = np.zeros(len(trigrams), dtype=bool)
    if len(prompt_keys):
        keys = keys[order]  # in sorted order, the search runs through the prompts' keys once
        at = np.minimum(np.searchsorted(prompt_keys, keys), len(prompt_keys) - 1)
        copied[order] = prompt_keys[at] == keys
    total_trigrams = np.bincount(trigrams.rows, minlength=n)
    return {
        "repetition": _share(total_trigrams - distinct, total_trigrams),
        "duplicate_ngrams": _share(_duplicated_chars(words, lengths, n), word_chars),
        "top_bigram": np.minimum(_share(_top_bigram_chars(words, lengths, n), word_chars), 1.0),
        "line_repetition": np.array([_line_repetition(response) for response in responses]),
        "prompt_overlap": _share(np.bincount(trigrams.rows[copied], minlength=n), total_trigrams),
        "compression": np.array([_compression(response) for response in responses]),
        "response_chars": np.diff(characters.offsets),
        "response_words": total_words,
        "prompt_chars": np.array([len(prompt) for prompt in prompts]),
        "mean_word_length": _share(word_chars, total_words),
        "letter_share": _share(count(LETTER | MARK), visible),
        "digit_share": _share(count(DIGIT), visible),
        "symbol_share": _share(visible - count(WORD), visible),
        "uppercase_share": _share(count(UPPER), count(LETTER)),
        "non_ascii_share": _share(
            characters.count((characters.codes > 127) & ((characters.classes & SPACE) == 0)), visible
        ),
        "ends_properly": np.array([_ends_properly(response) for response in responses]),
    }


def repetition(responses: list[str]) -> NDArray[np.float64]:
    """Return the column "repetition" alone, (n,)."""
    from curate.numerics.ngrams import Characters

    n = len(responses)
    trigrams = Characters.of(responses).words().ngrams(3)
    order, first = _group(trigrams.keys())
    total = np.bincount(trigrams.rows, minlength=n)
    return _share(total - np.bincount(trigrams.rows[order[first]], minlength=n), total)


def _sums(rows: NDArray[np.int64], values: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return np.bincount(rows, weights=values, minlength=n).astype(np.int64)  # float64 holds these whole numbers exactly


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return part / np.maximum(whole, 1)


def _group(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an order that puts equal keys side by side, and where in it each distinct key begins."""
    order = np.argsort(keys)
    keys = keys[order]
    return order, np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])


def _duplicated_chars(words: Spans, lengths: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Characters of the words that lie inside a 5-gram occurring at least twice in their text."""
    size = 5
    order, first = _group(words.ngrams(size).keys())
    times = np.diff(np.append(first, len(order)))
    starts = words.windows(size)[order[np.repeat(times > 1, times)]]
    change = np.zeros(len(words) + 1, dtype=np.int64)  # +1 where a duplicated 5-gram begins, -1 behind its end
    change[starts] += 1
    change[starts + size] -= 1
    inside = np.cumsum(change)[:-1] > 0
    return _sums(words.rows[inside], lengths[inside], n)


def _top_bigram_chars(words: Spans, lengths: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Largest number of characters that all copies of one bigram (of at least two copies) hold together."""
    starts = words.windows(2)
    bigrams = words.ngrams(2)
    order, first = _group(bigrams.keys())
    times = np.diff(np.append(first, len(order)))
    one = order[first[times > 1]]
    top = np.zeros(n, dtype=np.int64)
    np.maximum.at(top, bigrams.rows[one], times[times > 1] * (lengths[starts[one]] + lengths[starts[one] + 1]))
    return top


def _line_repetition(text: str) -> float:
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return 1 - len(set(lines)) / len(lines)


def _compression(text: str) -> float:
    data = text.encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data, 6))


def _ends_properly(text: str) -> int:
    last = text.rstrip()[-1]
    return int(last in _SENTENCE_ENDS or unicodedata.category(last) in ("Pe", "Pf"))
