"""What a finished run publishes: its files, and of the texts among them nothing that is nobody's business."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from curate.pipelines.facts import default_config
from curate.pipelines.scored import public_url, write_scored
from curate.pipelines.store import Store
from curate.report.card import CardFacts, Config, card
from curate.report.text import redact

FORMAT = 1
"""Of the manifest's key "push", by which a later push knows what it may replace."""
_ABSOLUTE = re.compile(r"[/~]|[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class File:
    """A file to be in the repository."""

    path: str
    content: Path | bytes = field(repr=False)
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, content: Path | bytes) -> File:
        if isinstance(content, bytes):
            return cls(path, content, len(content), hashlib.sha256(content).hexdigest())
        with content.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return cls(path, content, content.stat().st_size, digest)

    def git_sha1(self) -> str:
        """Return git's name for the content: how the Hub names a file that is not in large-file storage."""
        data = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def published(store: Store, facts: CardFacts, repository: str, with_scores: bool, folder: Path) -> list[File]:
    """Return everything that the repository shall hold; what is not on this machine is put into ``folder``."""
    configs = [default_config(facts, "data")]
    files = [
        File.of(f"data/{name}", _local(store, folder, "dataset", name))
        for name in store.list("dataset")
        if name.endswith(".parquet")
    ]
    recipe, manifest = yaml.safe_load(store.read_bytes("recipe.yaml")), store.read_json("manifest.json")
    if with_scores:
        about = "every input row with its decision, the reason and its scores"
        configs.append(Config("scores", "train", "scores/train-*.parquet", about))
        written = write_scored(store, manifest["stages"], folder / "scores")
        files += [File.of(f"scores/{path.name}", path) for path in written]
    if store.exists("report.html"):
        files.append(File.of("report.html", _without_folders(store.read_bytes("report.html"), [recipe, manifest])))
    told = yaml.safe_dump(public(recipe), sort_keys=False, allow_unicode=True)
    files.append(File.of("README.md", card(facts, configs, repository).encode()))
    files.append(File.of("recipe.yaml", told.encode()))
    names = sorted([*(f.path for f in files), "manifest.json"])
    account = {**public(manifest), "push": {"format": FORMAT, "files": names}}
    files.append(File.of("manifest.json", (json.dumps(account, indent=1, ensure_ascii=False) + "\n").encode()))
    return files


def _local(store: Store, folder: Path, *parts: str) -> Path:
    """Return the path of a run's file on this machine; a remote one is copied."""
    if store.local:
        return Path(store.path(*parts))
    path = folder.joinpath("run", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.fs.get_file(store.path(*parts), str(path))
    return path


def public(value: Any) -> Any:
    """Return JSON without what is nobody's business: the folders of this machine, passwords and tokens in URLs."""
    if isinstance(value, dict):
        return {public(k): public(v) for k, v in value.items()}
    if isinstance(value, list):
        return [public(v) for v in value]
    if not isinstance(value, str):
        return value
    if re.match(r"[a-z][a-z0-9+.]*://\S+\Z", value):
        return redact(public_url(value))
    if _ABSOLUTE.match(value):
        return "…/" + re.split(r"[/\\]", value.rstrip("/"))[-1]
    return redact(value)


def _without_folders(text: bytes, said: Any) -> bytes:
    """Return a page without the folders of this machine that the recipe and the manifest name."""
    for path in sorted(_texts(said), key=len, reverse=True):
        if _ABSOLUTE.match(path) and len(re.findall(r"[/\\]", path)) > 1:
            text = text.replace(path.encode(), public(path).encode())
    return text


def _texts(value: Any) -> set[str]:
    """Return every text in a JSON value."""
    if isinstance(value, dict):
        return {text for item in value.values() for text in _texts(item)}
    if isinstance(value, list):
        return {text for item in value for text in _texts(item)}
    return {value} if isinstance(value, str) else set()
