r"""Observed consistency: how far answers that a model sampled agree with the answer of the row.

    o_j = α · s(y, y'_j) + (1 − α) · 1[y = y'_j]          O = (1/k) Σ_j o_j                      in [0, 1]

y is the row's response, y'_1 … y'_k what the stage ``samples`` drew for its prompt, s a similarity.  Of a sample only
the answer counts: what follows the marker that its prompt demanded.  Chen & Mueller 2023, "Quantifying Uncertainty in
Answers from any Language Model" (BSDetector, §3.1), as CLEAR (Chen & Mueller 2024) applies it to the answers of a data
set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate import answers, models
from curate.base import Column, Scorer
from curate.exceptions import InputError, StageError
from curate.numerics import agreement
from curate.scorers._texts import prompts_and_responses

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.models.cross_encoder import CrossEncoder
    from curate.scorers.minilm import MiniLM

Similarity = Literal["jaccard", "exact", "numeric", "cosine", "nli", "entailment"]
Pairs = list[tuple[str, str]]


@dataclass(kw_only=True)
class Consistency(Scorer):
    """The mean agreement of sampled answers with the response.

    ===========  ==========================================================================================
    similarity   s(y, y')
    ===========  ==========================================================================================
    jaccard      |words of both| / |words of either|
    exact        1 where the texts are equal, case, spaces and punctuation at the ends aside
    numeric      1 where both end in the same number ("####", boxed, else the last): for verifiable answers
    cosine       max(0, cosine of their sentence vectors) by all-MiniLM-L6-v2
    nli          1 − ½ (p(contradiction | y, y') + p(contradiction | y', y)) by a cross-encoder: BSDetector's
    entailment   ½ (p(entailment | y, y') + p(entailment | y', y)) by a cross-encoder
    ===========  ==========================================================================================

    Where the similarity is numeric, "equal" is by number too, so that o = s.  An answer without text agrees with
    nothing but a response without text.  ``agreement`` is the share of the answers that equal the response, ``answers``
    how many were compared, and ``cut`` (of encoders) how many of those were longer than the encoder reads.

    "nli" takes an answer that says nothing of the matter for one that does not contradict it, near 1; for open
    questions "entailment", "cosine" or "jaccard" are the better choice.

    A row is null where it has no answers, where none of them is left, and, for "numeric", where the response has no
    number.
    """

    name: ClassVar[str] = "consistency"
    reference: ClassVar[str] = (
        'Chen & Mueller 2024, "Automated Data Curation for Robust Language Model Fine-Tuning" (CLEAR, arXiv:2403.12776)'
    )
    reads: ClassVar[tuple[str, ...]] = ("messages", "answers")
    takes: ClassVar[str] = "answers"
    neutral: ClassVar[tuple[str, ...]] = ("device",)

    of: str
    """The stage that sampled the answers."""
    similarity: Similarity = "jaccard"
    """How two answers are compared."""
    alpha: float = 0.8
    """α: the weight of the similarity; what is left is that of being equal.  BSDetector's 0.8."""
    encoder: str | None = None
    """Folder or Hub name of the cross-encoder, for nli and entailment: a model for sequence classification in
    safetensors whose labels name contradiction and entailment."""
    marker: str = answers.MARKER
    """What stands before the answer in a sample, as its prompt demands; the last occurrence counts, in any case."""
    unmarked: Literal["whole", "leave out"] = "whole"
    """A sample without the marker: the whole text is its answer, or it is left out."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that an encoder computes in; auto: float32 below 10⁹ parameters, as stored above."""
    device: str = "auto"
    """"auto" (a GPU where there is one), "cpu", "cuda"; for encoders."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"consistency: alpha={self.alpha}; a weight from 0 to 1 was asked.")
        if not self.marker.strip():
            raise InputError("consistency: a marker of at least one sign was asked, a blank one was found.")
        if (self.encoder is None) == (self.similarity in ("nli", "entailment")):
            found = "none was found" if self.encoder is None else f"{self.encoder!r} would not be read"
            raise InputError(
                f"consistency: similarity {self.similarity!r}: {found}; nli and entailment need encoder: a model for "
                "natural-language inference, and the others none."
            )
        self._encoder: CrossEncoder | None = None
        self._sentences: MiniLM | None = None

    @property
    def resource(self) -> str:  # type: ignore[override]
        """ "model" where an encoder compares."""
        return "model" if self.similarity in ("cosine", "nli", "entailment") else "cpu"

    @property
    def columns(self) -> tuple[Column, ...]:
        cut = (Column("cut", "answers", None, "int64"),) if self.resource == "model" else ()
        return (
            Column("consistency", "mean agreement, 0 to 1", True),
            Column("agreement", "share of the answers", True),
            Column("answers", "answers", None, "int64"),
            *cut,
        )

    @property
    def tolerance(self) -> float:
        """Rounding of an encoder: other company is another shape of matrix product."""
        if self.resource == "cpu":
            return 0.0
        return 1e-5 if self.dtype in ("auto", "float32") else 2e-2

    def identity(self) -> dict[str, Any]:
        """A digest or a commit stands for the cross-encoder's path; of MiniLM, the version of its weights."""
        identity = super().identity()
        identity["params"].pop("encoder")
        if self.encoder is not None:
            identity["encoder"] = models.identify(self.encoder)
        if self.similarity == "cosine":
            identity["encoder"] = self._minilm().identity()
        return identity

    def check(self) -> None:
        """Find the encoder; nothing is loaded."""
        if self.encoder is not None:
            models.identify(self.encoder)

    def open(self) -> None:
        if self.similarity == "cosine" and self._sentences is None:
            self._sentences = self._minilm()
            self._sentences.open()
        if self.encoder is not None and self._encoder is None:
            from curate.models.cross_encoder import CrossEncoder

            models.set_threads()
            self._encoder = CrossEncoder(self.encoder, dtype=self.dtype, device=self.device)

    def close(self) -> None:
        for held in (self._sentences, self._encoder):
            if held is not None:
                held.close()
        self._sentences = self._encoder = None

    def describe(self) -> dict[str, str]:
        """Return the similarity, and what an encoder runs on."""
        engine = {} if self._encoder is None else self._encoder.describe()
        return {"similarity": self.similarity, **engine}

    def _minilm(self) -> MiniLM:
        from curate.scorers.minilm import MiniLM

        half = self.dtype in ("bfloat16", "float16")
        return MiniLM(text="response", dtype="bfloat16" if half else "float32", device=self.device)

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        n = examples.num_rows
        _, responses, turns = prompts_and_responses(examples)
        reasons: list[str | None] = [None if count else "no assistant turn" for count in turns]
        pairs: Pairs = []
        rows: list[int] = []
        for i, held in enumerate(examples.column("answers").to_pylist()):
            if held is None:
                reasons[i] = "no answers"
            if reasons[i] is None and self.similarity == "numeric" and agreement.number(responses[i]) is None:
                reasons[i] = "no number in the response"
            if reasons[i] is not None:
                continue
            its = self._answers(held)
            if not its:
                reasons[i] = f"no sample has the marker {self.marker!r}" if answers.read(held) else "no answers"
            pairs += [(responses[i].strip(), answer) for answer in its]
            rows += [i] * len(its)
        # Equal pairs, as of candidates that share a prompt and samples that say the same, are compared once.
        distinct = list(dict.fromkeys(pairs))
        number = {pair: at for at, pair in enumerate(distinct)}
        which = np.array([number[pair] for pair in pairs], dtype=np.int64)
        of = np.array(rows, dtype=np.int64)
        same = _each(agreement.numeric if self.similarity == "numeric" else agreement.exact, distinct)
        alike, cut = self._similarities(distinct, same)
        observed = self.alpha * alike + (1 - self.alpha) * same
        for i in np.unique(of[np.isnan(observed[which])]):
            reasons[i] = "out of memory: an answer and the response are too long for the encoder together"
        out = {
            "consistency": np.clip(agreement.mean_of_groups(observed[which], of, n), 0.0, 1.0),
            "agreement": agreement.mean_of_groups(same[which], of, n),
            "answers": np.bincount(of, minlength=n),
            "reason": reasons,
        }
        return out | ({"cut": np.bincount(of[cut[which]], minlength=n)} if self.resource == "model" else {})

    def _answers(self, held: str) -> list[str]:
        """Return the answers of a row's samples."""
        try:
            texts = [sample.text for sample in answers.read(held)]
        except ValueError as error:
            raise StageError(
                f"consistency: column 'answers' of the stage {self.of!r} is no list of samples ({error}); name a "
                "stage of the scorer samples."
            ) from error
        found = [(text, agreement.final_part(text, self.marker)) for text in texts]
        if self.unmarked == "leave out":
            return [answer for _, answer in found if answer is not None]
        return [text.strip() if answer is None else answer for text, answer in found]

    def _similarities(self, pairs: Pairs, same: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return s of each pair and whether an encoder read it in part only: (n,) both."""
        uncut = np.zeros(len(pairs), dtype=bool)
        if self.similarity in ("exact", "numeric"):
            return same, uncut
        if self.similarity == "jaccard":
            return _each(agreement.jaccard, pairs), uncut
        # Encoders make something of an empty text; it agrees with an empty one and nothing else.
        full = np.array([bool(a.strip()) and bool(b.strip()) for a, b in pairs], dtype=bool)
        out, cut = same.copy(), uncut
        asked = [pairs[i] for i in np.flatnonzero(full)]
        if asked:
            out[full], cut[full] = self._cosines(asked) if self.similarity == "cosine" else self._nli(asked)
        return out, cut

    def _cosines(self, pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        assert self._sentences is not None
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        at = {text: i for i, text in enumerate(texts)}
        vectors, cut = self._sentences.encode(texts)
        a, b = (np.array([at[pair[side]] for pair in pairs], dtype=np.int64) for side in (0, 1))
        # A text that leaves no wordpiece has no vector, and is like its own copy only.
        cosine = np.einsum("ij,ij->i", vectors[a].astype(np.float64), vectors[b].astype(np.float64))
        alike = np.where(np.isnan(cosine), (a == b).astype(np.float64), np.clip(cosine, 0.0, 1.0))
        return alike, cut[a] | cut[b]

    def _nli(self, pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        assert self._encoder is not None
        label: Literal["contradiction", "entailment"] = "contradiction" if self.similarity == "nli" else "entailment"
        found, cut = self._encoder.probabilities([*pairs, *((b, a) for a, b in pairs)], label)
        mean = found.reshape(2, -1).mean(axis=0)
        return (1 - mean if label == "contradiction" else mean), np.asarray(cut.reshape(2, -1).any(axis=0))


def _each(compare: Any, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = compare([a for a, _ in pairs], [b for _, b in pairs])
    return out
