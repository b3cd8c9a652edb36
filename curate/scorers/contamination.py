"""Test questions in the pool: word n-grams shared with benchmarks, and whole questions.

Brown et al. 2020 (GPT-3, appendix C) look for 13-grams; Dodge et al. 2021 and later work take 8 to 13.  A paraphrase or
a translation shares no n-gram and is not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Column, Scorer
from curate.exceptions import InputError, StageError
from curate.numerics.phrases import Phrases, compact, normalised, original
from curate.scorers._texts import Text, conversations

if TYPE_CHECKING:
    import pyarrow as pa

_SPAN = 200  # characters of a span that are shown


@dataclass(kw_only=True)
class Contamination(Scorer):
    """How much of a benchmark's item a row holds, and where it stands.

    The items are the rows of the recipe's ``benchmarks``; what the user says in an item, all turns, is its question.

    ============ ===================================================================================================
    overlap      the largest share, over all items, of an item's n-grams that the row holds; 1 where a turn of the
                 row (or all that its user says) is the whole question; 0 where the row holds nothing of any item
    span         benchmark, item and the longest matching words as they stand in the row: ``gsm8k 17: 'Janet’s …'``;
                 empty where there is none
    benchmark    the benchmark's name; empty where there is none
    ============ ===================================================================================================

    Case, punctuation, spaces and Unicode's spellings of one character do not count.  A word is a run of letters and
    digits; in scripts without spaces (Chinese, Japanese, Thai …) each character is one.  A question of fewer than ``n``
    words is found only as a whole, which is also how a short answer stays out: it is not looked for at all.

    What many items of a benchmark share is its wrapper, and condemns no row: see ``common`` and
    ``curate.numerics.phrases``.

    No row is null: one without words holds nothing.  A step ``{use: threshold, on: contamination, max: 0}`` drops every
    row that shares an n-gram, with the span in its reason.
    """

    name: ClassVar[str] = "contamination"
    reference: ClassVar[str] = (
        'Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C (arXiv:2005.14165)'
    )
    reads: ClassVar[tuple[str, ...]] = ("id", "messages")
    fit_rows: ClassVar[int] = 1
    fits_on: ClassVar[Literal["pool", "targets", "both", "benchmarks"]] = "benchmarks"
    evidence: ClassVar[str | None] = "span"

    n: int = 13
    """Words of an n-gram; 8 to 13 are usual.  Fewer find more, and raise more false alarms."""
    text: Text = "both"
    """Which text of the pool's rows is searched."""
    answers: bool = False
    """Whether the benchmarks' answers are looked for too (those of at least ``n`` words)."""
    common: float = 0.01
    """Words that stand in a phrase of ⌊n/2⌋ words held by more than this share of a benchmark's items, and by more than
    four of them, are its wrapper; an n-gram of which more than half is wrapper does not count.  1 for no wrapper."""

    def __post_init__(self) -> None:
        if self.n < 2:
            raise InputError(f"contamination: n of at least 2 words was asked, {self.n} was found; 8 to 13 are usual.")
        if not 0 < self.common <= 1:
            raise InputError(f"contamination: common is a share above 0, at most 1; {self.common} was found.")
        self._phrases: Phrases | None = None
        self._called: list[tuple[str, str]] = []

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("overlap", "share of an item's n-grams", higher_is_better=False),
            Column("span", "benchmark, item and matching words", dtype="string"),
            Column("benchmark", "name", dtype="string"),
        )

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        """Take the items: rows with their benchmark as ``group``, with or without an answer."""
        found: dict[tuple[str, str, bool], str] = {}
        columns = (sample.column(name).to_pylist() for name in ("group", "id", "messages"))
        for benchmark, item, messages in zip(*columns, strict=True):
            for text, question in self._texts(messages):
                key = (str(benchmark or "benchmark"), text, question)
                if compact(text):
                    found[key] = min(item, found.get(key, item))
        if not found:
            raise InputError(
                f"contamination: a benchmark with questions was asked, {sample.num_rows} rows without any were found."
            )
        keys = sorted(found, key=lambda key: (key[0], not key[2], found[key], key[1]))
        texts = [key[1].encode("utf-8", "surrogatepass") for key in keys]
        return {
            "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
            "ends": np.cumsum([len(text) for text in texts]),
            "questions": np.array([key[2] for key in keys]),
            "benchmarks": np.array([key[0] for key in keys]),
            "items": np.array([found[key] for key in keys]),
        }

    def _texts(self, messages: list[dict[str, Any]]) -> list[tuple[str, bool]]:
        """Return what is looked for of an item, normalised, and whether it is the question."""
        asked = "\n".join(m["content"] for m in messages if m["role"] == "user")
        said = [m["content"] for m in messages if m["role"] == "assistant"] if self.answers else []
        return [(normalised(asked), True), *((normalised(text), False) for text in said)]

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        held, ends = state["texts"].tobytes(), state["ends"].tolist()
        texts = [held[a:b].decode("utf-8", "surrogatepass") for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        _, groups = np.unique(state["benchmarks"], return_inverse=True)
        self._phrases = Phrases(texts, groups, n=self.n, common=self.common, whole=state["questions"])
        self._called = list(zip(state["benchmarks"].tolist(), state["items"].tolist(), strict=True))

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        if self._phrases is None:
            raise StageError("contamination learns from benchmarks before it scores: call load(fit(items)) first.")
        pieces, rows = conversations(examples, self.text)
        found = self._phrases.find([normalised(piece) for piece in pieces], rows, examples.num_rows)
        spans, benchmarks = [""] * examples.num_rows, [""] * examples.num_rows
        for row in np.flatnonzero(found.text >= 0).tolist():
            benchmark, item = self._called[found.text[row]]
            words = original(pieces[found.piece[row]], int(found.start[row]), int(found.end[row]))
            words = " ".join(words.split())
            spans[row] = f"{benchmark} {item}: {words[:_SPAN]!r}" + ("…" if len(words) > _SPAN else "")
            benchmarks[row] = benchmark
        return {"overlap": found.share, "span": spans, "benchmark": benchmarks}
