"""What scorers share that hold the answer that another stage wrote against the row's own: the pair, and a watch over
the judge."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curate import answers
from curate.exceptions import StageError
from curate.models.prompting import Prompt
from curate.scorers.asking import CONTEXT, ChoosingScorer, parts

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

_WATCHED = 50
"""Rows after which a judge that is no use is told of."""
_SILENT = 0.01
"""A mass of the options below which a model would rather say something else."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question, without blank ends."""

    question: str
    candidate: str
    answer: str
    context: dict[str, Any]
    """What else the prompt shows of the row, by its parts."""


@dataclass(kw_only=True)
class PairScorer(ChoosingScorer):
    """A scorer that has a model compare a row's answer with the candidate: the first answer of another stage."""

    reads: ClassVar[tuple[str, ...]] = ("messages", "tools", "answers")
    takes: ClassVar[str] = "answers"

    of: str
    """The stage that wrote the candidates (``candidates``, ``samples``); of several answers the first one counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._watch = Watch(self.name)

    def _pairs(self, examples: pa.Table, prompt: Prompt) -> tuple[dict[int, Pair], list[str | None]]:
        """Return the pair of each row that has one, and why the others have none."""
        pairs: dict[int, Pair] = {}
        reasons: list[str | None] = []
        columns = (examples[key].to_pylist() for key in ("messages", "tools", "answers"))
        for i, (messages, tools, held) in enumerate(zip(*columns, strict=True)):
            its = parts(messages, tools)
            written, wrong = self._candidate(held)
            if isinstance(its, str) or wrong is not None:
                reasons.append(its if isinstance(its, str) else wrong)
                continue
            homeless = [part for part in CONTEXT if its[part] and part not in prompt.parts]
            if homeless:
                reasons.append(f"the prompt {prompt.name!r} has no place for {homeless[0]}, which the row has")
                continue
            context = {part: its[part] for part in CONTEXT if part in prompt.parts}
            pairs[i] = Pair(its["question"] or "", written, (its["answer"] or "").strip(), context)
            reasons.append(None)
        return pairs, reasons

    def _candidate(self, held: str | None) -> tuple[str, str | None]:
        """Return the first of the answers that a row holds, and what is wrong with it."""
        try:
            written = [] if held is None else answers.read(held)
        except ValueError as error:
            raise StageError(
                f"{self.name}: column 'answers' of the stage {self.of!r} is no list of answers ({error}); name a stage "
                "that writes them: candidates, samples."
            ) from error
        if not written:
            return "", "no answers"
        text = written[0].text.strip()
        if not text:
            return "", "the candidate is empty"
        return text, None if written[0].finished else "the candidate was cut"


class Watch:
    """Tells, once, of a judge that goes by the order, says the same of every row, or would name no option at all."""

    def __init__(self, caller: str) -> None:
        self._caller = caller
        self._said: Counter[str] = Counter()
        self._silent = 0
        self._told = False

    def see(self, said: str, mass: float) -> None:
        """Take in what a judge says of a row, "none" where its two orders disagree, and the mass of its options."""
        self._said[said] += 1
        self._silent += mass < _SILENT
        rows = self._said.total()
        if self._told or rows < _WATCHED:
            return
        self._told = True
        (often, times), *_ = self._said.most_common(1)
        if self._said["none"] > 0.9 * rows:
            log.warning(
                "%s: the two orders disagree in %d of the first %d rows; this model goes by the place of an answer or "
                "by a letter, and decides next to nothing.",
                self._caller,
                self._said["none"],
                rows,
            )
        elif times == rows:
            log.warning(
                "%s: it is %r in all of the first %d rows; look at some of them before anything leans on this model.",
                self._caller,
                often,
                rows,
            )
        if self._silent > 0.9 * rows:
            log.warning(
                "%s: in %d of the first %d rows the options together are less likely than %g: this model would rather "
                "refuse or write prose, and what it makes of the options says little.",
                self._caller,
                self._silent,
                rows,
                _SILENT,
            )
