r"""BM25 of every row for every target: which rows of the pool a search for the target would bring up.

    s(x, q) = Σ_{t ∈ q} idf(t) · f / (f + k1·(1 − b + b·|x| / mean |x|))        idf(t) = ln(1 + (N − df + ½)/(df + ½))

over the words t of the target q, each as often as it stands there, with f the times that t stands in the row x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate.base import Column, Scorer
from curate.exceptions import InputError, StageError
from curate.scorers._targets import Asked, Overlap, pool_and_targets, prompt_digest
from curate.scorers._texts import Text, texts

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class BM25(Scorer):
    """One number a target: how well a row answers to a search for the target's words; for ``round-robin`` and ``less``.

    The targets are those drawn of the recipe's ``targets``; N, the document frequencies df and the mean length come
    from a sample of the pool.  The formula is Lucene's: its idf is never below 0, and the constant factor k1 + 1 is
    left out.  Words are those of ``curate.numerics.ngrams``, unstemmed; common ones count little, by their idf.

    A row without words is null, and so, unless ``overlap`` says "keep", is one that asks what a target asks: to train
    on it would be to train on the test.  A row that shares no word with a target has 0 for it.

    Memory: 4 bytes times the targets times their distinct words; 350 targets of 100 words, 15 MB.
    """

    name: ClassVar[str] = "bm25"
    reference: ClassVar[str] = (
        'Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; as in Lucene'
    )
    fit_rows: ClassVar[int] = 20_000
    fits_on: ClassVar[Literal["pool", "targets", "both", "benchmarks"]] = "both"

    text: Text = "prompt"
    """Which text is compared, of the pool's rows and of the targets."""
    k1: float = 1.5
    """How soon more of the same word stops counting; 1.2 to 2 are usual."""
    b: float = 0.75
    """How far long rows pay for their length: 0 not at all, 1 in full."""
    overlap: Overlap = "drop"
    """What becomes of rows that ask what a target asks: null with that reason, scored like others, or the run stops."""

    def __post_init__(self) -> None:
        if not 0 < self.k1 < np.inf:
            raise InputError(f"bm25: k1 above 0 was asked, {self.k1} was found.")
        if not 0 <= self.b <= 1:
            raise InputError(f"bm25: b from 0 to 1 was asked, {self.b} was found.")
        self._terms: NDArray[np.uint64] | None = None
        self._asked: Asked | None = None
        self.labels_: list[str] = []
        """The task of each target, in the order of the columns."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column("bm25", "BM25 of the targets", dtype=f"float32[{len(self.labels_)}]"),)

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        """Return the targets as words: "terms" (V,), each one's "idf", and "times" it stands in target and term."""
        pool, targets = pool_and_targets(sample, caller=self.name)
        tasks = targets.column("group").to_pylist()
        prompts = [prompt_digest(messages) for messages in targets.column("messages").to_pylist()]
        documents = texts(targets, self.text)
        drawn = targets.column("drawn").to_pylist() if "drawn" in targets.column_names else [True] * len(tasks)
        # By task, then by content: how the targets were read does not show.
        chosen = sorted((i for i in range(len(tasks)) if drawn[i]), key=lambda i: (tasks[i], prompts[i], documents[i]))
        words, rows, _ = _words([documents[i] for i in chosen])
        if not words.size:
            raise InputError(f"bm25: not one of {len(chosen)} targets has a word in its {self.text}.")
        terms, term = np.unique(words, return_inverse=True)
        pairs, times = np.unique(np.stack([rows, term.reshape(-1)]), axis=1, return_counts=True)
        found, of, lengths = _words(texts(pool, self.text))
        place, known = _places(terms, found)
        held = np.unique(np.stack([place[known], of[known]]), axis=1)[0]
        frequency = np.bincount(held, minlength=terms.size)
        n = int(np.count_nonzero(lengths))
        return {
            "terms": terms,
            "idf": np.log1p((n - frequency + 0.5) / (frequency + 0.5)),
            "length": np.array([lengths.sum() / max(1, n)]),
            "target": pairs[0],
            "term": pairs[1],
            "times": times,
            "labels": np.array([tasks[i] for i in chosen]),
            **Asked.state(prompts, tasks),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._terms, self._length = state["terms"], max(1.0, float(state["length"][0]))
        self.labels_ = [str(label) for label in state["labels"]]
        self._weights = np.zeros((self._terms.size, len(self.labels_)), dtype=np.float32)
        self._weights[state["term"], state["target"]] = state["times"] * state["idf"][state["term"]]
        self._asked = Asked(state)

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        import scipy.sparse as sp

        if self._terms is None or self._asked is None:
            raise StageError("bm25 learns from pool and targets before it scores: call load(fit(sample)) first.")
        n = examples.num_rows
        found, of, lengths = _words(texts(examples, self.text))
        place, known = _places(self._terms, found)
        key, times = np.unique(of[known] * self._terms.size + place[known], return_counts=True)
        rows, terms = np.divmod(key, self._terms.size)
        spread = self.k1 * (1 - self.b + self.b * lengths / self._length)
        counts = sp.csr_matrix(
            ((times / (times + spread[rows])).astype(np.float32), terms, np.searchsorted(rows, np.arange(n + 1))),
            shape=(n, self._terms.size),
        )
        # SciPy adds up row by row, in the order of the terms: a row's sum does not know of other rows.
        reasons: list[str | None] = [None if there else "no words" for there in lengths]
        self._asked.leave_out(examples, reasons, self.overlap, caller=self.name)
        return {"bm25": counts @ self._weights, "reason": reasons}


def _words(documents: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the hash of every word, the document that it is of, and the number of words of each document."""
    from curate.numerics.ngrams import Characters, blocks

    hashes, rows = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
    for block in blocks(documents):
        words = Characters.of(documents[block]).words()
        hashes.append(words.hashes)
        rows.append(words.rows + block.start)
    of = np.concatenate(rows)
    return np.concatenate(hashes), of, np.bincount(of, minlength=len(documents))


def _places(terms: NDArray[np.uint64], words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each word stands among the terms, and whether it is one of them."""
    place = np.minimum(np.searchsorted(terms, words), terms.size - 1)
    return place, terms[place] == words
