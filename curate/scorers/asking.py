"""What scorers that ask a model in words share: model, backend, template, prompt file, and a row's texts for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from curate import models
from curate.base import Scorer
from curate.exceptions import InputError
from curate.models import backends
from curate.models.asking import Asker, Read, check_asker
from curate.models.backends import Backend
from curate.models.prompting import Prompt, load_prompt

if TYPE_CHECKING:
    import pyarrow as pa

CONTEXT = ("conversation", "tools")
"""Parts that a prompt may show where a row has them."""


@dataclass(kw_only=True)
class AskingScorer(Scorer):
    """A scorer that puts a row into a prompt and asks a model."""

    resource: ClassVar[str] = "model"
    reads: ClassVar[tuple[str, ...]] = ("messages", "tools")
    neutral: ClassVar[tuple[str, ...]] = ("batch_tokens", "device")

    model: str
    """Folder or Hub name ("org/name", "org/name@revision") of a causal LM in safetensors that follows instructions."""
    prompt: str
    """The word of a built-in prompt, or the path of a prompt file of your own (./mine.md)."""
    backend: Backend = "transformers"
    """Where the model runs: transformers, vllm, or an HTTP server; see ``curate.models.backends``."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """How the prompt becomes text: the tokenizer's chat template, Question:/Answer:, or chat where there is one."""
    max_tokens: int | None = None
    """Longest prompt with the row in it; longer ones are null with that reason.  By default the model's context."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type to compute in; auto: float32 below 10⁹ parameters, as stored above."""
    batch_tokens: int | None = None
    """Tokens of a batch, padding counted; by default 1024 on a CPU, 16384 on a GPU.  Of the backend transformers."""
    device: str = "auto"
    """"cpu", "cuda", "mps"; auto: a GPU where there is one.  Of the backend transformers."""

    def __post_init__(self) -> None:
        for key in ("max_tokens", "batch_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"{self.name}: {key}={value}; it must be at least 1.")
        if isinstance(self.backend, backends.HTTP) and self.dtype != "auto":
            raise InputError(
                f"{self.name}: dtype={self.dtype!r} was asked of a server, which computes in what it was started with; "
                "leave dtype out."
            )
        self._prompt: Prompt | None = None
        self._asker: Asker | None = None

    @property
    def _read(self) -> Read | None:
        """How options are read; None where the model writes."""
        return None

    def _ways(self) -> dict[str, Any]:
        """Return how options are read, for ``Asker``."""
        return {}

    @property
    def tolerance(self) -> float:
        """Rounding: other company is another shape of matrix product, which sums in another order."""
        dtype = self.dtype if self._asker is None else self._asker.lm.dtype
        return 1e-5 if dtype in ("auto", "float32") else 2e-2

    def identity(self) -> dict[str, Any]:
        """Digests stand for the paths of model and prompt, and the template in use for ``template``."""
        identity = super().identity()
        replaced = ("model", "prompt", "template", "backend")
        identity["params"] = {key: value for key, value in identity["params"].items() if key not in replaced}
        weights = not isinstance(self.backend, backends.HTTP)
        return identity | {
            "model": models.identify(self.model, weights=weights),  # first: it says best what is wrong with a path
            "template": models.encoder(self.model, template=self.template).identity(),
            "backend": backends.identity(self.backend),
            "prompt": self._file().identity(),
        }

    def _file(self) -> Prompt:
        """Return the prompt; a subclass checks that it can use it."""
        if self._prompt is None:
            self._prompt = load_prompt(self.prompt)
        return self._prompt

    def check(self) -> None:
        """Read the prompt file, and ask the backend whether it is there and can give what is needed."""
        self._file()
        check_asker(self.model, self.backend, read=self._read, caller=self.name)

    def open(self) -> None:
        self._file()
        if self._asker is None:
            self._asker = Asker(
                self.model,
                backend=self.backend,
                template=self.template,
                dtype=self.dtype,
                device=self.device,
                batch_tokens=self.batch_tokens,
                limit=self.max_tokens,
                **self._ways(),
            )

    def close(self) -> None:
        if self._asker is not None:
            self._asker.close()
        self._asker = None

    def describe(self) -> dict[str, str]:
        """Return what produced the numbers, once opened: backend, type, device, template, prompt."""
        if self._asker is None:
            return {}
        return {**self._asker.describe(), "prompt": f"{self._file().name}, version {self._file().version}"}

    def _texts(self, examples: pa.Table) -> tuple[dict[int, dict[str, Any]], list[str | None]]:
        """Return the parts of the prompt that each row's last answer makes, and why the other rows make none."""
        prompt = self._file()
        texts: dict[int, dict[str, Any]] = {}
        reasons: list[str | None] = []
        for i, row in enumerate(zip(examples["messages"].to_pylist(), examples["tools"].to_pylist(), strict=True)):
            found = parts(*row)
            if not isinstance(found, str):
                homeless = [part for part in CONTEXT if found[part] and part not in prompt.parts]
                if not homeless:
                    texts[i] = {name: text for name, text in found.items() if name in prompt.parts}
                    reasons.append(None)
                    continue
                found = f"the prompt {prompt.name!r} has no place for {homeless[0]}, which the row has"
            reasons.append(found)
        return texts, reasons


@dataclass(kw_only=True)
class ChoosingScorer(AskingScorer):
    """A scorer that has the model choose from options."""

    read: Read = "probabilities"
    """How an option is read: from the probabilities of its tokens, or, where a server gives none, from "samples"."""
    letters: int = 8
    """Answers that are drawn for each prompt with ``read: samples``."""
    seed: int = 0
    """Of these draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.letters < 1:
            raise InputError(f"{self.name}: letters={self.letters}; it must be at least 1.")

    @property
    def _read(self) -> Read:
        return self.read

    def _ways(self) -> dict[str, Any]:
        return {"read": self.read, "samples": self.letters, "seed": self.seed}

    @property
    def tolerance(self) -> float:
        """Rounding; of drawn answers, a near-tie that falls the other way."""
        return super().tolerance if self.read == "probabilities" else 1.0


def check_parts(prompt: Prompt, *needed: str, may: Sequence[str] = (), caller: str) -> None:
    """Raise InputError unless a prompt has the parts that are needed, and no others but ``may`` and ``CONTEXT``."""
    shown = f"{caller}: the prompt {prompt.name!r}"
    if lacking := [part for part in needed if part not in prompt.parts]:
        raise InputError(f"{shown} has the parts {list(prompt.parts)}; {{{lacking[0]}}} is needed.")
    known = (*needed, *may, *CONTEXT)
    if unknown := [part for part in prompt.parts if part not in known]:
        raise InputError(f"{shown} has the parts {unknown}; it may have {', '.join(known)}.")
    if must := [part for part in CONTEXT if prompt.parts.get(part)]:
        raise InputError(f"{shown} needs {must}, which not every row has; write {{{must[0]}?}}.")


def parts(messages: Sequence[Mapping[str, Any]], tools: str | None) -> dict[str, str | None] | str:
    """Return a row's texts as the parts of a prompt file; or why it has none.

    "answer" is the last assistant turn, "question" the turn before it, "conversation" the turns before that, each with
    its speaker, and "tools" the row's own.  A turn's tool calls stand behind its content, as JSON; its thinking is left
    out.  What comes after the last assistant turn is not shown.
    """
    before = before_answer(messages)
    if isinstance(before, str):
        return before
    question = _said(before[-1]) if before[-1]["role"] == "user" else _spoken(before[-1])
    return {
        "question": question,
        "answer": _said(messages[len(before)]),
        "conversation": "\n\n".join(_spoken(m) for m in before[:-1]) or None,
        "tools": tools or None,
    }


def reference_part(extra: str | None, column: str | None) -> tuple[dict[str, str], str | None]:
    """Return the part "reference", which a column of the row's source makes, or why there is none."""
    if column is None:
        return {}, None
    row = json.loads(extra) if extra else {}
    if column not in row:
        return {}, f"{column}: missing"
    value = row[column]
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return ({"reference": text}, None) if text.strip() else ({}, f"{column}: empty")


def before_answer(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]] | str:
    """Return the turns before the last assistant turn; or why there is nothing to answer."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        return "no assistant turn"
    before = messages[:last]
    return before if any(_said(m).strip() for m in before) else "nothing was asked"


def _said(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    return f"{message['content']}\n{calls}".strip("\n") if calls else str(message["content"])


def _spoken(message: Mapping[str, Any]) -> str:
    return f"{message['role'].capitalize()}: {_said(message)}"
