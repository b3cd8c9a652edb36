"""A model's own answers to the prompts of the rows, stored: what corrections may put in the place of a row's answer.

CLEAR's Auto-Correct (Chen & Mueller 2024) trains the model on the rows that the filter kept, and has it answer all
rows, greedily, in at most 512 tokens.  Here an adapter is trained, an epoch at a time, each of which a run keeps; or a
model is asked as it is.  Nothing is judged: ``verdict``, ``equivalence`` and ``consistency`` compare.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from curate import models
from curate.exceptions import InputError, StageError
from curate.models import backends
from curate.models.asking import Refused
from curate.models.base import Generation, Sampling
from curate.models.lora import Checkpoint
from curate.models.prompting import Prompt
from curate.models.warmup import WarmUp
from curate.scorers._training import fit_by_steps, train_epoch
from curate.scorers.asking import before_answer
from curate.scorers.writing import WritingScorer

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.models.base import CausalLM

_CONVERSATION = Prompt("the conversation itself", 1, "", ())
"""Stands for no prompt file; its version is raised whenever a row would be asked in another way."""


@dataclass(frozen=True, kw_only=True)
class FineTuning(WarmUp):
    """How the adapter is trained."""

    epochs: int = 2
    batch: int = 64
    """Rows of a step."""
    rate: float = 1e-4
    """Highest learning rate.  Ours, for models below 10⁹ parameters; larger ones want less (LESS: 2e-5 at 7·10⁹)."""


@dataclass(kw_only=True)
class Candidates(WritingScorer):
    """Answers to the prompt of each row: one, the likeliest token each time, unless more are asked for.

    Without a prompt file the model is shown what it would be trained on: the row's turns up to its last answer, with
    system turn and tools, through the template.  The row's own answer is not shown.

    With ``train`` the model answers with an adapter that was trained on the rows that the selection kept, on all their
    assistant turns; a row that is longer than ``max_tokens`` or the context is not trained on.
    """

    name: ClassVar[str] = "candidates"
    reference: ClassVar[str] = (
        'Chen & Mueller 2024, "Automated Data Curation for Robust Language Model Fine-Tuning" (CLEAR, arXiv:2403.12776)'
    )
    fits_on: ClassVar = "kept"

    prompt: str | None = None  # type: ignore[assignment]
    """A built-in prompt by its word, or the path of a file of your own, in the place of the row's conversation; its
    parts: question, and if you like answer (the row's own, to be rewritten), conversation and tools."""
    train: FineTuning | None = None
    """How an adapter is trained; absent: the model answers as it is.  Of the backend transformers."""
    seed: int = 0
    """Names the draws; of the training, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature >= 0:
            raise InputError(f"candidates: temperature={self.temperature}; it must be at least 0.")
        if self.samples > 1 and not self.temperature:
            raise InputError(
                f"candidates: samples={self.samples} at temperature 0, where all answers are one; ask for one, or for "
                "a temperature above 0."
            )
        chosen = backends.spec(self.backend)
        if self.train is not None and not isinstance(chosen, backends.Transformers):
            raise InputError(
                f"candidates: train was asked beside backend {chosen.use}; an adapter is trained and used by the "
                "backend transformers. Leave the backend out; or train elsewhere on the rows that were kept (curate "
                "export), name the result as model, and leave train out."
            )
        if self.train is not None and self.train.seed not in (0, self.seed):
            raise InputError(
                f"candidates: seed {self.train.seed} of the training was asked beside seed {self.seed}; leave it out."
            )
        self._adapter: Checkpoint | None = None

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        if self.train is not None:
            identity["params"]["train"] = json.loads(json.dumps(asdict(self.train)))
        return identity

    def _file(self) -> Prompt:
        if self.prompt is None:
            return _CONVERSATION
        prompt = super()._file()
        self._check_prompt(prompt, may=["answer"])
        return prompt

    def check(self) -> None:
        if self.train is not None:
            from curate._imports import require

            require("peft", extra="influence", for_="training an adapter on the rows that were kept")
        super().check()

    # -- training ----------------------------------------------------------------------------------------------------

    @property
    def fit_rows(self) -> int:  # type: ignore[override]
        return 0 if self.train is None else 2**62

    @property
    def fit_steps(self) -> int:
        return 1 if self.train is None else self.train.epochs

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        return fit_by_steps(self, sample)

    def fit_step(
        self, step: int, sample: pa.Table, before: Mapping[str, NDArray[Any]] | None
    ) -> dict[str, NDArray[Any]]:
        from curate.models.checkpoints import to_arrays

        assert self.train is not None
        encoder = models.encoder(self.model, template=self.template)
        rows = encoder.encode(sample["messages"].to_pylist(), sample["tools"].to_pylist())
        limit = int(min(self.max_tokens or 2**62, models.context(self.model) or 2**62))
        reasons = [_why_not(row, limit) for row in rows]
        found = train_epoch(self, self.train, rows, reasons, before, which="that were kept")
        left_out = len(rows) - reasons.count(None)
        found = replace(found, told={**found.told, "left_out": left_out})
        if step == self.fit_steps - 1:  # nothing goes on from here
            found = replace(found, first=None, second=None)
        return to_arrays(found)

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        from curate.models.checkpoints import from_arrays

        self._adapter = from_arrays(state)

    # -- answering ---------------------------------------------------------------------------------------------------

    def _ways(self) -> dict[str, Any]:
        return {} if self.train is None else {"lm": self._trained()}

    def _trained(self) -> CausalLM:
        """Load the model with the adapter that was trained."""
        if self._adapter is None:
            raise StageError("candidates: train was asked, and nothing has been trained yet; call fit, then load.")
        from curate.models.loading import set_threads, unload
        from curate.models.transformers_lm import TransformersLM

        chosen = backends.spec(self.backend)
        assert isinstance(chosen, backends.Transformers)
        set_threads()
        unload(idle=True)
        return TransformersLM(
            self.model,
            dtype=self.dtype,
            device=self.device,
            batch_tokens=self.batch_tokens,
            compiled=chosen.compile,
            adapter=self._adapter,
        )

    def close(self) -> None:
        lm = None if self._asker is None else self._asker.lm
        super().close()
        if lm is not None and self.train is not None:  # nobody else has one with this adapter
            lm.close()

    def describe(self) -> dict[str, str]:
        told = super().describe()
        if told and self._adapter is not None:
            its = self._adapter.told
            told["adapter"] = f"{its['epoch']} epochs on {its['rows']} rows; {its['left_out']} could not be trained on"
        return told

    def _prompts(self, examples: pa.Table) -> tuple[dict[int, Hashable], list[str | None]]:
        if self.prompt is not None:
            return super()._prompts(examples)
        asked: dict[int, Hashable] = {}
        reasons: list[str | None] = []
        columns = (examples[key].to_pylist() for key in self.reads)
        for i, (messages, tools) in enumerate(zip(*columns, strict=True)):
            before = before_answer(messages)
            if isinstance(before, str):
                reasons.append(before)
            else:
                asked[i] = tuple(tuple(turn.items()) for turn in before), tools
                reasons.append(None)
        return asked, reasons

    def _write(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[Generation] | Refused]:
        if self.prompt is not None:
            return super()._write(prompts, sampling)
        assert self._asker is not None
        return self._asker.answer([([dict(turn) for turn in turns], tools) for turns, tools in prompts], sampling)


def _why_not(row: models.EncodedRow, limit: int) -> str | None:
    """Return why a row cannot be trained on; None where it can."""
    if row.reason is None and row.ids.size > limit:
        return f"longer than max_tokens={limit}"
    return row.reason if row.reason or row.mask.any() else "no token is in the loss"
