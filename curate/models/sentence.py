"""Sentence encoders in the layout of sentence-transformers: what their files say, and the models.

A folder of that kind has ``modules.json``, which lists what a text goes through (a transformer, pooling, perhaps a
dense layer and a normalisation), a folder a module, and ``config_sentence_transformers.json`` with the prompts that the
model was trained with.  All of that is taken as it stands.  Weights are read from safetensors only, and no code that a
model brings along is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.exceptions import MissingDependencyError, ModelError
from curate.models import identity
from curate.models.backends import VLLM
from curate.models.vllm_engine import VLLMEngine

_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "config.json")
_WANTED = ["*.json", "*.txt", "*.model", "*.jinja"]
_IGNORED = ["onnx/*", "openvino/*"]  # the same weights once more


@dataclass(frozen=True)
class Layout:
    """A sentence encoder as its files describe it."""

    model: str
    """As it was asked for: a folder, "org/name" or "org/name@revision"."""

    @cached_property
    def source(self) -> identity.Source:
        """Where it lies; a Hub name is resolved to a commit once."""
        folder = Path(self.model).expanduser()
        return identity.Source(str(folder)) if folder.is_dir() else identity.locate(self.model)

    def folder(self, *, weights: bool) -> Path:
        """Return its folder, fetched from the Hub if need be; without its weights if not asked."""
        if self.source.revision is None:
            return Path(self.source.name)
        hub = require("huggingface_hub", extra="sentence", for_=f"the Hub model {self.model!r}")
        wanted = [*_WANTED, "*.safetensors"] if weights else _WANTED
        try:
            found = hub.snapshot_download(
                self.source.name, revision=self.source.revision, allow_patterns=wanted, ignore_patterns=_IGNORED
            )
        except Exception as error:  # no network, no access: whichever HTTP library the Hub client of the day uses
            raise ModelError(f"model {self.model!r} cannot be fetched: {type(error).__name__}: {error}") from error
        return Path(found)

    @cached_property
    def modules(self) -> list[tuple[str, str]]:
        """What a text goes through: (kind of module, its folder within the model's), checked."""
        folder = self.folder(weights=False)
        if not (folder / "modules.json").is_file():
            raise ModelError(
                f"model {self.model!r} has no modules.json ({identity._listing(folder)}), so it is no sentence encoder "
                "and does not say how its states become a vector; for a causal language model take hidden-states."
            )
        listed = self._read("modules.json")
        try:
            found = [(str(entry["type"]), str(entry.get("path", ""))) for entry in listed]
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"model {self.model!r}: its modules.json lists no modules: {error!r}.") from error
        strange = [kind for kind, _ in found if not kind.startswith("sentence_transformers.")]
        if strange:
            raise ModelError(
                f"model {self.model!r} brings code of its own ({', '.join(strange)}), which curate does not run; take "
                "a model whose modules are those of sentence-transformers."
            )
        if self.source.revision is None:
            for _, path in found:
                _refuse_pickles(folder / path, self.model)
        return [(kind.rpartition(".")[2], path) for kind, path in found]

    def _read(self, *path: str) -> Any:
        """Return a JSON file of the model; an empty mapping where there is none."""
        file = self.folder(weights=False).joinpath(*path)
        if not file.is_file():
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"model {self.model!r}: its {'/'.join(path)} cannot be read: {error}") from error

    @cached_property
    def width(self) -> int | None:
        """Length of its vectors, from its files; None where they do not say."""
        width: int | None = None
        for kind, path in self.modules:
            config = self._read(path, "config.json")
            if kind == "Transformer":
                text = config.get("text_config") or {}
                sizes = [c.get(key) for c in (config, text) for key in ("hidden_size", "n_embd", "d_model", "dim")]
                width = next((size for size in sizes if isinstance(size, int)), None)
            elif kind == "Pooling":
                width = config.get("embedding_dimension") or config.get("word_embedding_dimension") or width
                width = width and width * len(_pooling(config))
            elif kind == "Dense":
                width = config.get("out_features")
            elif kind not in ("Normalize", "Dropout", "LayerNorm"):
                return None
        return width

    def prompt(self, name: str | None) -> str:
        """Return the words that go before each text: of the prompt of that name, or of the model's default.

        Raises
        ------
        ModelError
            If the model has no prompt of that name.
        """
        config = self._read("config_sentence_transformers.json")
        prompts = config.get("prompts") or {}
        name = name if name is not None else config.get("default_prompt_name")
        if name is None:
            return ""
        if name not in prompts:
            raise ModelError(
                f"model {self.model!r} has no prompt {name!r}; it has {', '.join(map(repr, prompts)) or 'none'}."
            )
        return str(prompts[name])

    def identify(self) -> dict[str, str]:
        """Return what identifies it, as ``curate.models.identify`` does: a digest of a folder, or a Hub commit."""
        modules = self.modules
        if self.source.revision is not None:
            return {"model": self.source.name, "revision": self.source.revision}
        digest = hashlib.blake2b(digest_size=16)
        for name, path in _files(Path(self.source.name), {path for _, path in modules}):
            digest.update(f"{name}\0{identity._file_digest(path)}\n".encode())
        return {"digest": digest.hexdigest()}

    def check_vllm(self, prompt: str) -> None:
        """Raise ModelError unless vLLM's pooling does what the files say."""
        kinds = [kind for kind, _ in self.modules]
        pooling: dict[str, Any] = next(
            (self._read(path, "config.json") for kind, path in self.modules if kind == "Pooling"), {}
        )
        transformer = next((path for kind, path in self.modules if kind == "Transformer"), "")
        trouble = None
        if set(kinds) - {"Transformer", "Pooling", "Dense", "Normalize"} or transformer:
            trouble = f"modules {', '.join(kinds)}"
        elif _pooling(pooling) not in (["cls"], ["mean"], ["lasttoken"]):
            trouble = f"pooling {'+'.join(_pooling(pooling)) or 'of an unknown kind'}"
        elif prompt and pooling.get("include_prompt") is False:
            trouble = "pooling that leaves the prompt out"
        elif self._read("sentence_bert_config.json").get("do_lower_case"):
            trouble = "lower-casing before the tokenizer"
        if trouble:
            raise ModelError(f"model {self.model!r}: {trouble} is nothing that vLLM does; take backend: transformers.")


def _pooling(config: dict[str, Any]) -> list[str]:
    """Return the ways in which a pooling module pools: "mean", "cls", "lasttoken" …"""
    mode = config.get("pooling_mode")
    if mode is not None:
        return [mode] if isinstance(mode, str) else list(mode)
    words = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    on = [key.removeprefix("pooling_mode_") for key, value in config.items() if value is True and "pooling_mode" in key]
    return [words.get(word, word) for word in on]


def _refuse_pickles(folder: Path, model: str) -> None:
    pickles = sorted(path.name for pattern in identity._PICKLES for path in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {model!r}: {folder.name!r} holds pickled weights only ({', '.join(pickles[:3])}); loading a pickle "
            "can run any code, so curate reads safetensors only: convert it once with SentenceTransformer.save()."
        )


def _files(folder: Path, modules: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files that the vectors depend on, by their names within the folder, sorted."""
    patterns = (*_FILES, *identity._TOKENIZER_FILES, *identity._WEIGHT_FILES)
    found = {path for part in {"", *modules} for pattern in patterns for path in (folder / part).glob(pattern)}
    yield from sorted((path.relative_to(folder).as_posix(), path) for path in found if path.is_file())


# -- the models --------------------------------------------------------------------------------------------------------


class SentenceEncoder(Protocol):
    """Texts to vectors."""

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(n,) tokens of each text itself, as far as they are read: without a prompt, without special tokens."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) their vectors, as the model's files say."""
        ...

    def describe(self) -> dict[str, str]: ...

    def close(self) -> None: ...


def check_package() -> None:
    """Raise MissingDependencyError unless sentence-transformers is there; imports nothing (that takes seconds)."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingDependencyError(
            "sentence needs the package 'sentence_transformers': pip install 'curate-sft[sentence]'"
        )


class SentenceTransformersEncoder:
    """An encoder in this process."""

    def __init__(self, layout: Layout, *, prompt: str, dtype: str, device: str, batch_tokens: int) -> None:
        torch = require("torch", extra="sentence", for_="sentence")
        transformers = require("transformers", extra="sentence", for_="sentence")
        package = require("sentence_transformers", extra="sentence", for_="sentence")
        device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        folder, kinds = layout.folder(weights=True), [kind for kind, _ in layout.modules]  # refused if they run code
        shown = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            model = package.SentenceTransformer(
                str(folder.absolute()),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
            self._model = model.to(getattr(torch, dtype)).eval()
        except Exception as error:  # the libraries raise whatever a broken file makes them trip over
            raise ModelError(
                f"sentence: the encoder {layout.model!r} ({', '.join(kinds)}) on device {device!r} was asked; "
                f"{type(error).__name__}: {error}."
            ) from error
        finally:
            if shown:
                transformers.utils.logging.enable_progress_bar()
        self._prompt, self._batch_tokens = prompt, batch_tokens
        self._facts = {"backend": f"sentence-transformers {package.__version__}", "dtype": dtype, "device": device}

    @property
    def width(self) -> int:
        new = "get_embedding_dimension"  # its name since version 6
        return int(getattr(self._model, new if hasattr(self._model, new) else "get_sentence_embedding_dimension")())

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return _counts(self._model.tokenizer, texts, self._model.max_seq_length)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        lengths = self.tokens(texts) + 8  # special tokens; and static models, which have no limit, take no batch of 10⁵
        longest_first = np.argsort(-lengths, kind="stable")
        out: NDArray[np.float32] | None = None
        start = 0
        while start < longest_first.size:
            size = max(1, self._batch_tokens // int(lengths[longest_first[start]]))
            rows = longest_first[start : start + size]
            vectors = self._model.encode(
                [texts[i] for i in rows],
                prompt=self._prompt,
                batch_size=rows.size,
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            vectors = vectors.float().cpu().numpy()
            out = np.empty((len(texts), vectors.shape[1]), dtype=np.float32) if out is None else out
            out[rows] = vectors
            start += rows.size
        return np.empty((0, self.width), dtype=np.float32) if out is None else out

    def describe(self) -> dict[str, str]:
        return self._facts

    def close(self) -> None:
        del self._model


class VLLMEncoder(VLLMEngine):
    """An encoder in a vLLM engine: its pooling runner, which reads pooling and normalisation from the same files."""

    def __init__(self, layout: Layout, spec: VLLM, *, prompt: str, dtype: str) -> None:
        super().__init__(layout.model, spec)
        transformers = require("transformers", extra="sentence", for_="sentence")
        layout.check_vllm(prompt)
        folder = layout.folder(weights=True).absolute()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        except Exception as error:  # as above
            raise ModelError(f"sentence: the tokenizer of {layout.model!r}: {type(error).__name__}: {error}") from error
        self._prompt = prompt
        longest = spec.context or layout._read("config.json").get("max_position_embeddings") or 0
        self._start(
            {
                "model": str(folder),
                "runner": "pooling",
                "dtype": dtype,
                "max_model_len": spec.context,
                # An encoder reads a text in one piece.
                "max_num_batched_tokens": max(spec.batch_tokens, longest),
                "tensor_parallel_size": spec.tensor_parallel,
                "gpu_memory_utilization": spec.gpu_memory,
                "enforce_eager": spec.eager,
                "trust_remote_code": False,
                "disable_log_stats": True,
                "seed": 0,
            }
        )

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return _counts(self._tokenizer, texts, self.context)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        read = self._tokenizer([self._prompt + text for text in texts], truncation=True, max_length=self.context)
        found: list[list[float]] = [[] for _ in texts]
        requests = ((i, {"do": "embed", "ids": list(ids)}) for i, ids in enumerate(read["input_ids"]))
        for i, answer in self._ask(requests):
            if "refused" in answer:
                raise ModelError(f"the vLLM engine of {self._name!r} refuses a text: {answer['refused']}")
            found[i] = answer["vector"]
        return np.array(found, dtype=np.float32)


def _counts(tokenizer: Any, texts: Sequence[str], limit: int | None) -> NDArray[np.int64]:
    if hasattr(tokenizer, "encode_batch"):  # of a static model: a bare tokenizer
        return np.array([len(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)], np.int64)
    cut = {} if limit is None else {"truncation": True, "max_length": limit}
    read = tokenizer(list(texts), add_special_tokens=False, **cut)["input_ids"] if len(texts) else []
    return np.array([len(ids) for ids in read], dtype=np.int64)
