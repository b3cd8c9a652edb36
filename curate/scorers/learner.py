r"""What a model learns from some rows, and what it still lacks: the learner of iterative refinement.

An adapter is trained on rows that were chosen; the model with it then answers their prompts itself, greedily, and both
answers are held against each other:

    S = log PPL(y | x) − log PPL(ŷ | x)      of the row's answer y and the model's own ŷ, by the model that was trained
    S = R(x, y) − R(x, ŷ)                    rewards of another model, where one judges (``RewardGap``)

Both grow with what there is to learn: a row's answer surprises the model more than its own does, or is better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from curate import models
from curate.base import Column
from curate.exceptions import InputError
from curate.models.lora import Checkpoint
from curate.models.warmup import WarmUp
from curate.scorers._training import fit_by_steps, train_epoch
from curate.scorers.encoded import EncodedScorer
from curate.scorers.reward_gap import RewardGap

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.models.transformers_lm import TransformersLM


def _warm_up() -> WarmUp:
    return WarmUp(epochs=3, batch=64, rate=2e-4)


@dataclass(kw_only=True)
class Learner(EncodedScorer):
    """Trains an adapter on rows, answers them by it, and says how much more there is to learn from each.

    The last answer of a conversation is what is compared; all that stands before it is the prompt.  Null, besides the
    reasons of every scorer of tokens, where nothing is asked before that answer, where the prompt leaves no room for
    another, and where texts do not fit into memory.

    Where this differs from Diversify and Conquer: an adapter takes the place of full fine-tuning (its code trains one,
    too), always from the beginning, on all rows chosen so far; the perplexity is that of the answer given the prompt,
    whereas the paper writes PPL(x ⊕ y), in which a long prompt, the same on both sides, drowns the difference.
    """

    name: ClassVar[str] = "learner"
    reference: ClassVar[str] = (
        'Yu, Chen, Ahmadian & Fadaee 2024, "Diversify and Conquer: Diversity-Centric Data Selection '
        'with Iterative Refinement"'
    )

    warm_up: WarmUp = field(default_factory=_warm_up)
    """How the adapter is trained in each round.  The paper trains all weights for 3 epochs in steps of 64 rows at 1e-5;
    the rate is ours, for an adapter."""
    new_tokens: int = 512
    """Tokens of the model's own answer at most, as in the paper's code."""
    judge: Literal["perplexity", "reward-model"] = "perplexity"
    """What holds the two answers against each other: the perplexity of the model that was trained, or another model's
    reward (which the paper found two points better)."""
    reward_model: str | None = None
    """Folder or Hub name of a sequence-classification model of one output, for the judge "reward-model"."""
    seed: int = 0
    """Of the training; a recipe's own when absent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new_tokens < 1:
            raise InputError(f"learner: new_tokens={self.new_tokens}; it must be at least 1.")
        if (self.judge == "reward-model") != (self.reward_model is not None):
            found = "none is named" if self.reward_model is None else f"judge: {self.judge} was asked beside one"
            raise InputError(
                f"learner: a reward_model belongs to judge: reward-model, and {found}; give both or neither."
            )
        if self.warm_up.seed not in (0, self.seed):
            raise InputError(
                f"learner: seed {self.warm_up.seed} of the warm-up was asked beside seed {self.seed}; leave it out."
            )
        self._lm: TransformersLM | None = None
        self._last_encoder: models.Encoder | None = None
        self._adapter: Checkpoint | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("gap", "nats", None),
            Column("given_nll", "nats", None),
            Column("own_nll", "nats", None),
            Column("own", "text", None, "string"),
            Column("tokens", "tokens", None, "int64"),
        )

    @property
    def tolerance(self) -> float:
        return 1e-3 if self.dtype in ("auto", "float32") else 5e-2

    # -- identity ----------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """All that S depends on; models by what they hold."""
        judge = self.judging()
        return self.of_answers() | {"judge": "perplexity" if judge is None else judge.identity()}

    def of_training(self) -> dict[str, Any]:
        """Return what the trained adapter depends on besides the rows, as JSON."""
        identity = super().identity()
        left_out = ("new_tokens", "judge", "reward_model")
        params = {k: v for k, v in identity["params"].items() if k not in left_out}
        return identity | {"params": json.loads(json.dumps(params, default=asdict))}

    def of_answers(self) -> dict[str, Any]:
        """Return what its answers and their perplexities depend on besides the rows, as JSON."""
        return self.of_training() | {"new_tokens": self.new_tokens}

    def judging(self) -> RewardGap | None:
        """Return what judges the answers, if it is not the model that gave them."""
        if self.reward_model is None:
            return None
        return RewardGap(model=self.reward_model, dtype=self.dtype, device=self.device, batch_tokens=self.batch_tokens)

    def check(self) -> None:
        from curate._imports import require

        require("peft", extra="influence", for_="training an adapter in each round")

    # -- training ----------------------------------------------------------------------------------------------------

    @property
    def fit_steps(self) -> int:
        return self.warm_up.epochs

    def fit(self, sample: pa.Table) -> dict[str, NDArray[Any]]:
        return fit_by_steps(self, sample)

    def fit_step(
        self, step: int, sample: pa.Table, before: Mapping[str, NDArray[Any]] | None
    ) -> dict[str, NDArray[Any]]:
        from curate.models.checkpoints import to_arrays

        rows, reasons, _ = self._rows(sample, models.context(self.model))
        found = train_epoch(self, self.warm_up, rows, reasons, before, which="that were chosen")
        if step == self.fit_steps - 1:  # nothing goes on from here
            found = replace(found, first=None, second=None)
        return to_arrays(found)

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        from curate.models.checkpoints import from_arrays

        self._adapter = from_arrays(state)

    # -- answering ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Load the model, with the adapter that was trained, if one was; the base model without."""
        if self._lm is not None:
            return
        from curate.models.loading import set_threads, unload
        from curate.models.transformers_lm import TransformersLM

        set_threads()
        unload(idle=True)
        self._lm = TransformersLM(
            self.model, dtype=self.dtype, device=self.device, batch_tokens=self.batch_tokens, adapter=self._adapter
        )

    def close(self) -> None:
        if self._lm is not None:
            self._lm.close()
        self._lm = None

    def describe(self) -> dict[str, str]:
        return {} if self._lm is None else {**self._lm.describe(), "template": self._encode().kind}

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        lm = self._lm
        assert lm is not None
        rows, reasons = self._last_answers(examples, lm.context)
        n = len(rows)
        able = [i for i, reason in enumerate(reasons) if reason is None]
        prompts = [rows[i].ids[: int(rows[i].mask.argmax())] for i in able]
        sampling = models.Sampling(max_tokens=self.new_tokens)
        own: list[str | None] = [None] * n
        pairs: list[tuple[NDArray[np.integer], NDArray[np.bool_]]] = []
        there = []
        for i, prompt, written in zip(able, prompts, lm.generate(prompts, sampling), strict=True):
            if written is None:
                reasons[i] = f"out of memory at a prompt of {prompt.size} tokens"
                continue
            assert written[0].ids is not None
            own[i] = written[0].text
            answer = np.concatenate([prompt, written[0].ids])
            pairs += [(rows[i].ids, rows[i].mask), (answer, np.arange(answer.size) >= prompt.size)]
            there.append(i)
        nll = np.full((n, 2), np.nan)
        tokens = np.zeros(n, dtype=np.int64)
        found = lm.token_logprobs(pairs)
        for i, given, its in zip(there, found[::2], found[1::2], strict=True):
            if given is None or its is None:
                reasons[i] = f"out of memory at {rows[i].ids.size} tokens"
            else:
                nll[i] = -given.mean(dtype=np.float64), -its.mean(dtype=np.float64)
                tokens[i] = given.size + its.size
        return {
            "gap": nll[:, 0] - nll[:, 1],
            "given_nll": nll[:, 0],
            "own_nll": nll[:, 1],
            "own": ["" if text is None else text for text in own],
            "tokens": tokens,
            "reason": reasons,
        }

    def _last_answers(
        self, examples: pa.Table, context: int | None
    ) -> tuple[list[models.EncodedRow], list[str | None]]:
        """Return the rows as tokens with the last answer alone in the mask, and why one cannot be compared."""
        if self._last_encoder is None:
            self._last_encoder = models.encoder(
                self.model, template=self.template, turns="last", special_text=self.special_text
            )
        conversations = examples["messages"].to_pylist()
        rows = self._last_encoder.encode(conversations, examples["tools"].to_pylist())
        limit = int(min(self.max_tokens or 2**62, context or 2**62))
        reasons: list[str | None] = []
        for messages, row in zip(conversations, rows, strict=True):
            reason = row.reason
            if reason is None and row.ids.size > limit:
                reason = f"longer than max_tokens={limit}"
            if reason is None and not row.mask.any():
                reason = "no token is in the loss"
            if reason is None and not asked(messages):
                reason = "nothing is asked before the last answer"
            if reason is None and context is not None and int(row.mask.argmax()) >= context:
                reason = f"the prompt fills the model's context of {context} tokens"
            reasons.append(reason)
        return rows, reasons


def asked(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether anything is said before the last answer by somebody else than the assistant."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    return any(m["role"] in ("user", "tool") and (m.get("content") or "").strip() for m in messages[:last])
