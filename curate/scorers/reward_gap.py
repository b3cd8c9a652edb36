"""How much better a reward model finds the given answer than another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate import models
from curate.base import Column, Scorer

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.models.reward import RewardLM


@dataclass(kw_only=True)
class RewardGap(Scorer):
    """R(x, y) − R(x, ŷ): how much better a reward model finds a row's last answer than another, in column "own".

    The reward model reads both conversations in its own chat template, or in the plain one; white space around an
    answer does not count.  Conversations longer than its context are null, as are those without an answer in "own".
    """

    name: ClassVar[str] = "reward-gap"
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools", "own")
    resource: ClassVar[str] = "model"
    neutral: ClassVar[tuple[str, ...]] = ("batch_tokens", "device")

    model: str
    """Folder or Hub name of a sequence-classification model of one output, in safetensors."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to compute in; auto: float32 below 10⁹ parameters, as stored above."""
    batch_tokens: int | None = None
    """Tokens of a batch, padding counted."""
    device: str = "auto"

    def __post_init__(self) -> None:
        self._lm: RewardLM | None = None
        self._encoder: models.Encoder | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            Column("gap", "reward", None),
            Column("given_reward", "reward", None),
            Column("own_reward", "reward", None),
        )

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.dtype in ("auto", "float32") else 5e-2

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        params = {k: v for k, v in identity["params"].items() if k != "model"}
        return identity | {
            "params": params,
            "model": models.identify(self.model),
            "template": self._encode().identity(),
        }

    def _encode(self) -> models.Encoder:
        if self._encoder is None:
            self._encoder = models.encoder(self.model, turns="last", special_text="read")
        return self._encoder

    def open(self) -> None:
        if self._lm is not None:
            return
        from curate.models.loading import set_threads, unload
        from curate.models.reward import RewardLM

        set_threads()
        unload(idle=True)
        self._lm = RewardLM(self.model, dtype=self.dtype, device=self.device, batch_tokens=self.batch_tokens)

    def close(self) -> None:
        if self._lm is not None:
            self._lm.close()
        self._lm = None

    def describe(self) -> dict[str, str]:
        return {} if self._lm is None else {**self._lm.describe(), "template": self._encode().kind}

    def _score(self, examples: pa.Table) -> Mapping[str, Any]:
        lm = self._lm
        assert lm is not None
        conversations, tools = examples["messages"].to_pylist(), examples["tools"].to_pylist()
        answers = examples["own"].to_pylist()
        limit = lm.context or 2**62
        reasons: list[str | None] = [None] * len(answers)
        both = [
            [answered(messages, None) for messages in conversations],
            [answered(messages, own or "") for messages, own in zip(conversations, answers, strict=True)],
        ]
        rewards = np.full((2, len(answers)), np.nan)
        encoded = [self._encode().encode(its, tools) for its in both]
        for i, (given, its) in enumerate(zip(*encoded, strict=True)):
            if answers[i] is None:
                reasons[i] = "no answer to hold it against"
            elif given.reason or its.reason:
                reasons[i] = f"to the reward model: {given.reason or its.reason}"
            elif max(given.ids.size, its.ids.size) > limit:
                reasons[i] = f"longer than the reward model's context of {limit} tokens"
        able = [i for i, reason in enumerate(reasons) if reason is None]
        for out, its in zip(rewards, encoded, strict=True):
            for i, reward in zip(able, lm.rewards([its[i].ids for i in able]), strict=True):
                if reward is None:
                    reasons[i] = f"out of memory at {its[i].ids.size} tokens, in the reward model"
                else:
                    out[i] = reward
        return {
            "gap": rewards[0] - rewards[1],
            "given_reward": rewards[0],
            "own_reward": rewards[1],
            "reason": reasons,
        }


def answered(messages: Sequence[Mapping[str, Any]], text: str | None) -> list[Mapping[str, Any]]:
    """Return the conversation up to its last answer, which stands in its own words or in others."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last < 0:
        return list(messages)
    answer = {**messages[last], "content": (messages[last].get("content") or "").strip()}
    if text is not None:
        answer |= {"content": text.strip(), "thinking": None, "tool_calls": None}
    return [*messages[:last], answer]
