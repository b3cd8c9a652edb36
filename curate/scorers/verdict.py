r"""A verdict on two answers to a row's prompt, the row's own and a candidate, and how sure the model is of it.

    q = β · O + (1 − β) · S,        O = max_w ½ (p₁(w) + p₂(w)),    S = ½ (S₁ + S₂)              in [0, 1]

p_k(w) is the probability of the verdict w (the candidate, the answer, a tie, neither) with the two answers in order k,
S_k the model's certainty that the verdict which it gave in order k is correct (``curate.models.reflection``).  It is
BSDetector's confidence of a pair (prompt of a judge, verdict), as CLEAR's Auto-Correct asks for it (Chen & Mueller
2024; Chen & Mueller 2023, §3).  There k verdicts are sampled and O is the share that agrees with the one given; here O
is the probability itself, which that share is on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curate.base import Column
from curate.exceptions import InputError
from curate.models.asking import Refused
from curate.models.prompting import Prompt, load_prompt
from curate.models.reflection import check_reflection, reflect
from curate.models.verdict import Winner, check_comparison, compare
from curate.scorers._pairs import Pair, PairScorer
from curate.scorers.asking import check_parts, reference_part

if TYPE_CHECKING:
    import pyarrow as pa

_WORDS: dict[Winner | None, str] = {"a": "candidate", "b": "answer", "tie": "tie", "neither": "neither", None: "none"}


@dataclass(kw_only=True)
class Verdict(PairScorer):
    """Whether the candidate or the row's answer is better, asked in both orders, and the confidence of that verdict.

    ====================  ==========================================================================================
    confidence            q where the candidate wins; O of every other verdict
    winner                candidate, answer, tie, neither; "none" where the orders disagree or two are equally likely
    candidate … neither   the probability of each, mean of both orders; neither is 0 where the prompt has no such option
    position              what standing first gains, −1 to 1; 0 for a fair judge
    mass                  the probability that the model would name an option at all; mean of both orders
    reflected             1 where S is part of the confidence
    tokens                that the model read
    ====================  ==========================================================================================

    O is the largest of the four means: a verdict that both orders agree on is the likeliest of the mean too.  Where
    they disagree it is that of no verdict, and at most ½ for a judge that goes by the place alone.

    Only a verdict for the candidate is reflected on, as no other one replaces an answer.  Where the model cannot be
    asked about it (the prompt is too long, a letter could not be read), O is its confidence: ``reflected`` is 0 there
    though ``winner`` is "candidate".

    A row is null where there is no candidate, where it is empty, was cut, or is the answer itself but for blanks at the
    ends, where nothing was asked, where a prompt is too long or has no place for what the row has, where its reference
    is missing, and (``read: samples``) where no answer could be read as an option.
    """

    name: ClassVar[str] = "verdict"
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools", "extra", "answers")
    reference: ClassVar[str] = (
        'Chen & Mueller 2024, "Automated Data Curation for Robust Language Model Fine-Tuning" (CLEAR, arXiv:2403.12776)'
    )

    prompt: str = "verdict"
    """verdict (which is better), verification (which is right: LoopTool's), or the path of a file of your own; its
    options are A (the first), B (the second), C (a tie) and, if you like, D (neither), its parts question, first,
    second, and if you like conversation, tools and reference."""
    reference_column: str | None = None
    """The column of the source files that holds a reference answer, which the model is shown."""
    reflection: bool = True
    """Whether the model is asked if a verdict for the candidate is correct."""
    reflection_prompt: str = "verdict-reflection"
    """How: the word of a built-in prompt, or the path of a file of your own with the options A (correct), B (incorrect)
    and C (unsure); its parts are those of ``prompt``, and verdict.  A second user turn is the second question, with
    {letter}, the letter chosen first, in the assistant turn before it."""
    beta: float = 0.7
    """β: the weight of O; what is left is that of S.  BSDetector's 0.7."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise InputError(f"verdict: beta={self.beta}; a weight from 0 to 1 was asked.")
        self._second: Prompt | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("confidence", "confidence, 0 to 1"),
            Column("winner", "candidate, answer, tie, neither, none", dtype="string"),
            Column("candidate", "probability", False),
            Column("answer", "probability", True),
            Column("tie", "probability"),
            Column("neither", "probability"),
            Column("position", "probability"),
            Column("mass", "probability"),
            Column("reflected", "0 or 1", None, "int64"),
            Column("tokens", "tokens", None, "int64"),
        )

    def identity(self) -> dict[str, Any]:
        """A digest stands for the path of the second prompt too, where it is used."""
        identity = super().identity()
        identity["params"].pop("reflection_prompt")
        return identity | ({"reflection": self._reflection_file().identity()} if self.reflection else {})

    def describe(self) -> dict[str, str]:
        told = super().describe()
        if told and self.reflection:
            told["reflection"] = f"{self._reflection_file().name}, version {self._reflection_file().version}"
        return told

    def _file(self) -> Prompt:
        """Return the prompt of the verdict; InputError unless both prompts can be used."""
        prompt = super()._file()
        check_comparison(prompt, caller=self.name)
        check_parts(prompt, "question", "first", "second", may=("reference",), caller=self.name)
        shown = f"verdict: the prompt {self.prompt!r}"
        if self.reference_column is None and prompt.parts.get("reference"):
            raise InputError(f"{shown} needs a reference; name its column: reference_column.")
        if self.reference_column is not None and "reference" not in prompt.parts:
            raise InputError(f"{shown} has no {{reference}}; leave reference_column out, or take another prompt.")
        if self.reflection:
            its = self._reflection_file()
            shown = f"verdict: the prompt {self.reflection_prompt!r}"
            if lost := [part for part in prompt.parts if part not in its.parts]:
                raise InputError(f"{shown} has no place for {lost}, which {self.prompt!r} shows; write {{{lost[0]}?}}.")
            if self.reference_column is None and its.parts.get("reference"):
                raise InputError(f"{shown} needs a reference; name its column: reference_column.")
            for letter in "AB":  # one that stands within a line must be short and plain
                shown_parts: dict[str, Any] = dict.fromkeys(its.parts, letter) | {"verdict": prompt.options[letter]}
                its.fill(**shown_parts)
        return prompt

    def _reflection_file(self) -> Prompt:
        if self._second is None:
            its = load_prompt(self.reflection_prompt)
            again = check_reflection(its, shown_as=self.reflection_prompt, caller=self.name) > 1
            needed = ("question", "first", "second", "verdict", *(["letter"] if again else []))
            check_parts(its, *needed, may=("reference",), caller=self.name)
            self._second = its
        return self._second

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        assert self._asker is not None
        prompt, n = self._file(), examples.num_rows
        pairs, reasons = self._pairs(examples, prompt)
        if self.reference_column is not None:
            self._refer(examples, pairs, reasons)
        out = {column.name: np.full(n, np.nan) for column in self.columns if column.dtype == "float64"}
        winner: list[str | None] = [None] * n
        tokens, reflected = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        found = compare(
            self._asker,
            [pair.question for pair in pairs.values()],
            [pair.candidate for pair in pairs.values()],
            [pair.answer for pair in pairs.values()],
            contexts=[pair.context for pair in pairs.values()],
            prompt=prompt,
        )
        for i, verdict in zip(pairs, found, strict=True):
            if isinstance(verdict, Refused):
                reasons[i] = verdict.reason
                continue
            winner[i], tokens[i] = _WORDS[verdict.winner], verdict.tokens
            out["candidate"][i], out["answer"][i] = verdict.a, verdict.b
            for key in ("tie", "neither", "position", "mass"):
                out[key][i] = getattr(verdict, key)
            out["confidence"][i] = max(verdict.a, verdict.b, verdict.tie, verdict.neither)
            self._watch.see(_WORDS[verdict.winner], verdict.mass)

        won = {i: pair for i, pair in pairs.items() if self.reflection and winner[i] == "candidate"}
        for i, (certainty, read) in self._certainties(won).items():
            tokens[i] += read
            if certainty is not None:
                out["confidence"][i] = self.beta * out["confidence"][i] + (1 - self.beta) * certainty
                reflected[i] = 1
        return {**out, "winner": winner, "reflected": reflected, "tokens": tokens, "reason": reasons}

    def _refer(self, examples: pa.Table, pairs: dict[int, Pair], reasons: list[str | None]) -> None:
        """Add the reference to what is shown of each row; one without it has no pair, and a reason."""
        for i, extra in enumerate(examples["extra"].to_pylist()):
            if i in pairs:
                given, missing = reference_part(extra, self.reference_column)
                if missing is None:
                    pairs[i] = replace(pairs[i], context=pairs[i].context | given)
                else:
                    reasons[i] = missing
                    del pairs[i]

    def _certainties(self, pairs: Mapping[int, Pair]) -> dict[int, tuple[float | None, int]]:
        """Return S of a verdict for the candidate, None where the model cannot be asked, and the tokens read for it."""
        if not pairs:
            return {}
        assert self._asker is not None
        means = self._file().options
        texts = [
            {"question": p.question, "first": first, "second": second, "verdict": means[letter], **p.context}
            for p in pairs.values()
            for first, second, letter in ((p.candidate, p.answer, "A"), (p.answer, p.candidate, "B"))
        ]
        found = reflect(self._asker, self._reflection_file(), texts, letter="letter")
        out: dict[int, tuple[float | None, int]] = {}
        for i, one, two in zip(pairs, found[::2], found[1::2], strict=True):
            sure = [its.certainty for its in (one, two) if not isinstance(its, Refused)]
            read = sum(its.tokens for its in (one, two) if not isinstance(its, Refused))
            out[i] = ((sure[0] + sure[1]) / 2 if len(sure) == 2 else None, read)
        return out
