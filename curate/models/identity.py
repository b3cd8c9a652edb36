"""Which model is meant, and what identifies it, without loading it.

A folder is identified by a digest of the files that its numbers depend on, so a folder that moves keeps its scores and
one whose weights change loses them.  A Hub model is identified by its commit: the branch name is resolved once, and
everything is then loaded at that commit.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate._imports import require
from curate.exceptions import ModelError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """Where a model lies: what ``from_pretrained`` is given."""

    name: str
    """The folder's path, or the Hub name."""
    revision: str | None = None
    """The commit, for a Hub model."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Keywords for ``from_pretrained``: one commit, and no code from the model's author."""
        return {"revision": self.revision, "trust_remote_code": False}


def locate(model: str, *, weights: bool = True) -> Source:
    """Return where ``model`` lies: a folder, or a name on the Hub ("org/name", "org/name@revision") at its commit.

    Parameters
    ----------
    weights : whether the weights are needed; False asks for a tokenizer only.

    Raises
    ------
    ModelError
        If there is no such folder or model, if the folder holds something else, or if its weights are pickles.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        _check_folder(folder, weights=weights)
        return Source(str(folder))
    if folder.exists():
        raise ModelError(f"model {model!r} is a file; give the folder that holds config.json and the tokenizer.")
    name, _, revision = model.partition("@")
    if not _HUB_NAME.fullmatch(name):
        parent = next(p for p in folder.absolute().parents if p.is_dir())
        raise ModelError(
            f"model {model!r}: no such folder ({_listing(parent)}), and not a name on the Hub "
            "('org/name' or 'org/name@revision'); check the path (in a recipe './NAME' is relative to the recipe's own "
            "folder, from Python to the working directory)."
        )
    return Source(name, _resolve(name, revision or "main", asked=model))


def identify(model: str, *, weights: bool = True) -> dict[str, str]:
    """Return what identifies the model, as JSON: ``{"digest": …}`` of a folder, ``{"model": …, "revision": …}`` of the
    Hub.

    The digest (128-bit blake2b over file names and contents) covers the tokenizer files, ``config.json`` and, if
    ``weights``, the safetensors files; other files (a README, optimizer states) do not matter.  Files are streamed,
    about 1 s per GB, and each is read once per process while its size and modification time stay the same.

    Raises
    ------
    ModelError
        As ``locate``.
    """
    source = locate(model, weights=weights)
    if source.revision is not None:
        return {"model": source.name, "revision": source.revision}
    digest = hashlib.blake2b(digest_size=16)
    for name, path in _files(Path(source.name), weights=weights):
        digest.update(f"{name}\0{_file_digest(path)}\n".encode())
    return {"digest": digest.hexdigest()}


def width(model: str) -> int:
    """Return the width of the model's hidden states, from its config.json; loads no weights.

    Raises
    ------
    ModelError
        If the model cannot be found, or its config.json does not say.
    """
    config = _config(model)
    for part in (config, config.get("text_config") or {}):
        for key in ("hidden_size", "n_embd", "d_model"):
            if isinstance(part.get(key), int):
                return int(part[key])
    raise ModelError(f"model {model!r}: its config.json names no hidden_size; found {', '.join(sorted(config)[:12])}.")


def context(model: str) -> int | None:
    """Return the longest sequence that the model reads, in tokens, from its config.json; None where that sets no limit.

    Raises
    ------
    ModelError
        If the model cannot be found.
    """
    config = _config(model)
    for part in (config.get("text_config") or {}, config):
        for key in ("max_position_embeddings", "n_positions"):
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


def _config(model: str) -> dict[str, Any]:
    source = locate(model)
    folder = Path(source.name)
    if source.revision is not None:
        hub = require("huggingface_hub", extra="lm", for_=f"the Hub model {model!r}")
        folder = Path(hub.hf_hub_download(source.name, "config.json", revision=source.revision)).parent
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {model!r}: its config.json cannot be read: {error}") from error
    return config if isinstance(config, dict) else {}


_digests: dict[tuple[str, int, int], str] = {}  # (path, size, mtime_ns) → digest


def _file_digest(path: Path) -> str:
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return _digests[key]


def _files(folder: Path, *, weights: bool) -> list[tuple[str, Path]]:
    patterns = ("config.json", *_TOKENIZER_FILES, *(_WEIGHT_FILES if weights else ()))
    found = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(found.items())


def _check_folder(folder: Path, *, weights: bool) -> None:
    """Raise ModelError unless the folder holds what is needed."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise ModelError(f"model folder {str(folder)!r} has no tokenizer.json; {_listing(folder)}.{_deeper(folder)}")
    if not weights:
        return
    if not (folder / "config.json").is_file():
        advice = _deeper(folder)
        if (folder / "adapter_config.json").is_file():
            advice = " It is a PEFT adapter: merge it into its base model first (merge_and_unload, save_pretrained)."
        raise ModelError(f"model folder {str(folder)!r} has no config.json; {_listing(folder)}.{advice}")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"model folder {str(folder)!r} holds pickled weights only ({', '.join(pickles[:3])}); loading a "
                "pickle can run any code, so curate reads safetensors only: convert them once with save_pretrained()."
            )
        raise ModelError(f"model folder {str(folder)!r} has no *.safetensors; {_listing(folder)}.")


def _listing(folder: Path) -> str:
    """Return "it holds a, b, c and 4 more" for an error message."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    if not names:
        return f"{str(folder)!r} is empty"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{str(folder)!r} holds {', '.join(names[:6])}{more}"


def _deeper(folder: Path) -> str:
    """Return a hint where a folder below is a model: a checkpoint, or a snapshot of the Hub's cache."""
    below = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json"))
    return f" Did you mean {str(below[0])!r}?" if below else ""


def _resolve(name: str, revision: str, *, asked: str) -> str:
    """Return the commit of a Hub model: from the Hub, or from the local cache when offline or out of reach."""
    hub = require("huggingface_hub", extra="lm", for_=f"the Hub model {asked!r}")
    trouble = "HF_HUB_OFFLINE is set"
    if not hub.constants.HF_HUB_OFFLINE:
        try:
            return hub.HfApi().model_info(name, revision=revision, timeout=10).sha
        except hub.errors.RevisionNotFoundError as error:
            raise ModelError(f"model {asked!r}: the Hub has {name!r}, but no revision {revision!r} of it.") from error
        except hub.errors.RepositoryNotFoundError as error:
            raise ModelError(
                f"model {asked!r}: no folder of that name, and the Hub has no such model, or it is private; "
                "check the spelling, or log in with `hf auth login`."
            ) from error
        except hub.errors.HfHubHTTPError as error:
            raise ModelError(f"model {asked!r}: the Hub refuses it: {error}") from error
        except Exception as error:  # no network: whichever HTTP library the Hub client of the day uses
            trouble = f"the Hub cannot be reached ({type(error).__name__})"
    for file in ("config.json", "tokenizer_config.json"):
        cached = hub.try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
    raise ModelError(
        f"model {asked!r}: no folder of that name; {trouble}, and the local cache ({hub.constants.HF_HUB_CACHE}) lacks "
        f"it; give a folder, or fetch it where there is a network: hf download {name}."
    )
