"""Feature vectors from any sentence-transformers model: Reimers and Gurevych 2019, arXiv:1908.10084.

    x = f(prompt + text) / ‖f(prompt + text)‖₂

with f as the model's own files describe it: tokenizer, transformer, pooling, dense layers, and the prompt that it was
trained with.  Where f ends in a normalisation the division changes nothing; where it does not, lengths are given up, so
that a dot product is a cosine with every encoder that curate has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate.base import Column, Scorer
from curate.exceptions import InputError
from curate.models import backends
from curate.models.backends import Backend
from curate.scorers._texts import Text, texts

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.models.sentence import Layout, SentenceEncoder


@dataclass(kw_only=True)
class Sentence(Scorer):
    """One vector of length 1 per text; see the module's docstring.

    A text that leaves no token is null ("no text").  One that is longer than the model reads counts with its beginning
    only, as the model's files say.  Texts are batched by length; the shape of a batch changes rounding.
    """

    name: ClassVar[str] = "sentence"
    reference: ClassVar[str] = 'Reimers & Gurevych 2019, "Sentence-BERT" (arXiv:1908.10084)'
    resource: ClassVar[str] = "model"
    neutral: ClassVar[tuple[str, ...]] = ("device", "batch_tokens")

    model: str
    """Folder or Hub name ("org/name", "org/name@revision") of a sentence-transformers model in safetensors."""
    text: Text = "prompt"
    """What is embedded."""
    prompt_name: str | None = None
    """Which of the model's prompts goes before each text; by default the one that its files say, often none."""
    prompt: str | None = None
    """The words of a prompt of your own, in place of one of the model's: "query: "."""
    dim: int | None = None
    """Keep the first so many coordinates, of models that are trained for that (Matryoshka)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type to compute in."""
    backend: Backend = "transformers"
    """transformers (in this process) or vllm (its pooling runner); see ``curate.models.backends``."""
    batch_tokens: int = 8192
    """Tokens of a batch, padding counted.  Of the backend transformers; vLLM has its own."""
    device: str = "auto"
    """"cpu", "cuda", "mps"; auto: a GPU where there is one.  Of the backend transformers."""

    def __post_init__(self) -> None:
        for key in ("dim", "batch_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError(f"sentence: {key}={value}; it must be at least 1, or left out.")
        if self.prompt is not None and self.prompt_name is not None:
            raise InputError("sentence: prompt and prompt_name are both given; drop one of them.")
        if isinstance(backends.spec(self.backend), backends.HTTP):
            raise InputError("sentence: backends transformers and vllm were asked for vectors, http was found.")
        self.encoder_: SentenceEncoder | None = None
        self._layout: Layout | None = None
        self._width: int | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        width = self._whole_width()
        if self.dim is not None and self.dim > width:
            raise InputError(f"sentence: dim={self.dim} was asked, the vectors of {self.model!r} have {width}.")
        return (Column("vector", "coordinates of a unit vector", dtype=f"float32[{self.dim or width}]"),)

    @property
    def tolerance(self) -> float:
        return 1e-5 if self.dtype == "float32" else 2e-2

    def identity(self) -> dict[str, Any]:
        """A digest or a commit stands for the model's path, and the prompt's words for its name."""
        identity = super().identity()
        replaced = ("model", "backend", "prompt", "prompt_name")
        identity["params"] = {k: v for k, v in identity["params"].items() if k not in replaced}
        model = self._files().identify()  # first: it says best what is wrong with a path
        return {**identity, "model": model, "prompt": self._prompt(), "backend": backends.identity(self.backend)}

    def check(self) -> None:
        """Look whether the model's files are there and say what is needed, and so for the package or the engine."""
        spec = backends.spec(self.backend)
        self._files().identify()
        prompt = self._prompt()
        if isinstance(spec, backends.VLLM):
            from curate.models.vllm_engine import check_engine

            check_engine(spec, caller=self.name)
            self._files().check_vllm(prompt)
        else:
            from curate.models.sentence import check_package

            check_package()

    def open(self) -> None:
        if self.encoder_ is not None:
            return
        from curate.models.sentence import SentenceTransformersEncoder, VLLMEncoder

        spec, prompt = backends.spec(self.backend), self._prompt()
        if isinstance(spec, backends.VLLM):
            self.encoder_ = VLLMEncoder(self._files(), spec, prompt=prompt, dtype=self.dtype)
        else:
            self.encoder_ = SentenceTransformersEncoder(
                self._files(), prompt=prompt, dtype=self.dtype, device=self.device, batch_tokens=self.batch_tokens
            )

    def close(self) -> None:
        if self.encoder_ is not None:
            self.encoder_.close()
        self.encoder_ = None

    def describe(self) -> dict[str, str]:
        return {} if self.encoder_ is None else self.encoder_.describe()

    def _score(self, examples: pa.Table) -> dict[str, Any]:
        assert self.encoder_ is not None
        found = texts(examples, self.text)
        reasons: list[str | None] = [None if count else "no text" for count in self.encoder_.tokens(found)]
        rows = [i for i, reason in enumerate(reasons) if reason is None]
        vectors = np.full((len(found), self.dim or self._whole_width()), np.nan, dtype=np.float32)
        if rows:
            made = self.encoder_.encode([found[i] for i in rows])[:, : self.dim].astype(np.float64)
            lengths = np.linalg.norm(made, axis=1)
            for i in np.flatnonzero(lengths == 0).tolist():
                reasons[rows[i]] = "the vector is zero"
            vectors[rows] = made / np.where(lengths > 0, lengths, 1)[:, None]
        return {"vector": vectors, "reason": reasons}

    def _files(self) -> Layout:
        if self._layout is None:
            from curate.models.sentence import Layout

            self._layout = Layout(self.model)
        return self._layout

    def _prompt(self) -> str:
        return self.prompt if self.prompt is not None else self._files().prompt(self.prompt_name)

    def _whole_width(self) -> int:
        """Return the length of the model's vectors: from its files, or where they do not say from the model itself."""
        if self._width is None:
            self._width = self._files().width
        if self._width is None:
            from curate.models.sentence import SentenceTransformersEncoder

            model = SentenceTransformersEncoder(self._files(), prompt="", dtype="float32", device="cpu", batch_tokens=1)
            self._width = model.width
        return self._width
