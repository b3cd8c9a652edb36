"""Datasets of the Hub as sources: ``hf:USER/NAME`` and ``hf://datasets/USER/NAME/…`` become files of one commit.

``hf:USER/NAME[@REVISION][:CONFIG[/SPLIT]]`` means what ``datasets.load_dataset`` would load: the Parquet files that the
card's ``configs`` name, or else those whose names tell their split; where the repository holds no Parquet, what the Hub
itself converted (branch ``refs/convert/parquet``).  Without SPLIT it is "train", or the only one.

A branch moves, so every address is pinned to the commit that the branch stood at when the sources were listed: workers
read what was planned, ``file`` in the ledger says which state of the repository a row is from, and a new commit is a
new input (its rows are read again; scores of rows that stayed the same are found again by content).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from curate import registry
from curate.connectors.hub import api, asking, patiently
from curate.exceptions import SourceError

CONVERTED = "refs/convert/parquet"
_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"hf:(?P<repo>{_NAME})(?:@(?P<revision>[^:]+))?(?::(?P<config>[^/]*)(?:/(?P<split>.+))?)?")
_URL = re.compile(
    r"hf://(?P<kind>datasets/|models/|spaces/|(?!(?:datasets|models|spaces)/))(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?",
    re.DOTALL,
)
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARDED = re.compile(r"data/(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")

Splits = dict[str, list[str]]
"""Split → paths of its files in the repository."""


@dataclass(frozen=True)
class Address:
    """An ``hf://`` URL, taken apart."""

    kind: str
    """"dataset", "model" or "space"."""
    repo: str
    revision: str | None
    path: str

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision}"
        kind = "" if self.kind == "model" else f"{self.kind}s/"
        return f"hf://{kind}{self.repo}{at}" + (f"/{self.path}" if self.path else "")


def address(url: str) -> Address | None:
    """Return the parts of an ``hf://`` URL of a repository; None for a bucket.

    Raises
    ------
    SourceError
        If it is neither.
    """
    if url.startswith("hf://buckets/"):
        return None
    found = _URL.fullmatch(url)
    if found is None:
        raise SourceError(f"{url}: hf://datasets/USER/NAME/PATH was asked, or hf:USER/NAME for a whole dataset.")
    kind = found["kind"].removesuffix("s/") or "model"
    return Address(kind, found["repo"], found["revision"], found["path"] or "")


def unpinned(url: str) -> str:
    """Return an ``hf://`` URL without its revision, and any other path as it is."""
    found = _URL.fullmatch(url) if url.startswith("hf://") else None
    return url if found is None or not found["revision"] else url.replace(f"@{found['revision']}", "", 1)


def dataset_of(path: str) -> str | None:
    """Return USER/NAME of the Hub's dataset that a path is in; None for any other path."""
    found = (_URL if path.startswith("hf://datasets/") else _ID).fullmatch(path)
    return found["repo"] if found else None


def pinned(url: str) -> str:
    """Return an ``hf://`` URL with the commit that its branch stands at now.

    Raises
    ------
    SourceError
        If the repository or the branch is not there, may not be seen, or the Hub cannot be reached.
    """
    at = address(url)
    if at is None:
        return url
    with asking(url, SourceError):
        info = patiently(api().repo_info, at.repo, repo_type=at.kind, revision=at.revision)
    return str(dataclasses.replace(at, revision=info.sha))


def look(url: str) -> None:
    """Ask the Hub for what stands at a pinned URL, and let fsspec remember it.

    Its ``exists`` and ``isdir``, which come next, take every failure for absence; here it is told as what it is.
    """
    import fsspec

    with asking(url, SourceError), contextlib.suppress(FileNotFoundError):
        fs, path = fsspec.url_to_fs(url)
        patiently(fs.info, path)


def files_of(asked: str) -> list[str]:
    """Return the pinned ``hf://`` URLs of the Parquet files that ``hf:USER/NAME…`` means, in order of path.

    Raises
    ------
    SourceError
        As ``pinned``; also if there are several configs or splits and none was said, or none is called as was said, or
        neither the repository nor the Hub's conversion has Parquet files.
    """
    found = _ID.fullmatch(asked)
    if found is None:
        raise SourceError(
            f"{asked}: hf:USER/NAME[@REVISION][:CONFIG[/SPLIT]] was asked, e.g. hf:openai/gsm8k:main/train."
        )
    repo, revision = found["repo"], found["revision"]
    with asking(asked, SourceError):
        info = patiently(api().dataset_info, repo, revision=revision)
    names = [file.rfilename for file in info.siblings or []]
    card = info.card_data.to_dict() if info.card_data else {}
    configs = own_configs(card, names)
    config = _choose(asked, "config", found["config"] or None, list(configs), _default(card, configs))
    splits = configs.get(config, {})
    sha = info.sha
    if not any(name.endswith(".parquet") for files in splits.values() for name in files):
        configs, sha = _converted(asked, repo, revision)
        config = _choose(asked, "config", found["config"] or None, list(configs), "default")
        splits = configs[config]
    split = _choose(asked, "split", found["split"], list(splits), "train")
    chosen = [n for n in splits[split] if n.endswith(".parquet")]
    if not chosen or len(chosen) < len(splits[split]):
        other = next(n for n in splits[split] if not n.endswith(".parquet")) if splits[split] else "no file"
        raise SourceError(
            f"{asked}: the split {split!r} is not Parquet alone (it has {other}); name its files: "
            f"hf://datasets/{repo}/PATH."
        )
    return [str(Address("dataset", repo, sha, name)) for name in chosen]


def own_configs(card: Mapping[str, Any], names: Iterable[str]) -> dict[str, Splits]:
    """Return config → split → files, as the card says, or as the names tell where it says nothing."""
    data = sorted(n for n in names if _is_data(n))
    said = card.get("configs") or []
    out: dict[str, Splits] = {}
    for entry in said if isinstance(said, list) else []:
        if not isinstance(entry, Mapping) or "config_name" not in entry:
            continue
        folder = str(entry.get("data_dir") or "").strip("./")
        patterns = entry.get("data_files")
        if patterns is None:
            inside = [n for n in data if n.startswith(f"{folder}/")] if folder else data
            out[str(entry["config_name"])] = splits_by_name(inside)
        else:
            prefix = f"{folder}/" if folder else ""
            out[str(entry["config_name"])] = {
                split: sorted({n for p in paths for n in _matches(prefix + p, data)})
                for split, paths in _patterns(patterns).items()
            }
    return out or {"default": splits_by_name(data)}


def splits_by_name(names: Iterable[str]) -> Splits:
    """Return split → files by what their names tell, as ``datasets`` does.

    By ``data/SPLIT-00000-of-00001…`` if there is one; else by the folder's name, else by the file's, that holds a word
    such as "train", "dev" or "test"; else all is "train".
    """
    data = sorted(names)
    out: Splits = {}
    for name in data:
        if sharded := _SHARDED.fullmatch(name):
            out.setdefault(sharded["split"], []).append(name)
    if out:
        return out
    for part in (lambda name: name.split("/")[:-1], lambda name: name.split("/")[-1:]):
        for split, words in _SPLIT_WORDS.items():
            for name in data:
                if any(_says(piece, words) for piece in part(name)):
                    out.setdefault(split, []).append(name)
        if out:
            return out
    return {"train": data} if data else {}


def _says(piece: str, words: tuple[str, ...]) -> bool:
    """Whether a name holds one of the words, set off by anything but a letter."""
    return any(re.search(rf"(?:^|[-._ 0-9]){word}(?:[-._ 0-9]|$)", piece) for word in words)


def _is_data(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith((".", "_")) for part in parts)
    return not hidden and parts[-1] not in ("README.md", "LICENSE", "LICENSE.md", "dataset_infos.json")


def _patterns(said: Any) -> dict[str, list[str]]:
    """Return split → glob patterns, of any form that a card may give them."""
    if isinstance(said, str):
        return {"train": [said]}
    if isinstance(said, Mapping):
        return {str(k): [str(p) for p in (v if isinstance(v, list) else [v])] for k, v in said.items()}
    out: dict[str, list[str]] = {}
    for item in said if isinstance(said, list) else []:
        split, paths = (item.get("split"), item.get("path")) if isinstance(item, Mapping) else ("train", item)
        out.setdefault(str(split), []).extend(str(p) for p in (paths if isinstance(paths, list) else [paths]))
    return out


def _matches(pattern: str, names: list[str]) -> list[str]:
    from fsspec.utils import glob_translate

    pattern = pattern.removeprefix("./")
    if pattern in names:
        return [pattern]
    whole = re.compile(glob_translate(pattern))
    below = re.compile(glob_translate(f"{pattern.rstrip('/')}/**"))
    return [n for n in names if whole.match(n)] or [n for n in names if below.match(n)]


def _default(card: Mapping[str, Any], configs: Mapping[str, Splits]) -> str:
    said = card.get("configs") or []
    marked = [str(c["config_name"]) for c in said if isinstance(c, Mapping) and c.get("default")]
    return marked[0] if marked and marked[0] in configs else "default"


def _choose(asked: str, what: str, said: str | None, known: list[str], default: str) -> str:
    if said is None:
        if default in known:
            return default
        if len(known) == 1:
            return known[0]
        shown = ", ".join(known[:20]) or "none"
        where = "hf:USER/NAME:CONFIG" if what == "config" else "hf:USER/NAME:CONFIG/SPLIT"
        raise SourceError(f"{asked}: this dataset has {len(known)} {what}s ({shown}); say which: {where}.")
    if said not in known:
        near = registry.nearest(said, known)
        raise SourceError(f"{asked}: no {what} is called {said!r}{near} It has: {', '.join(known[:20]) or 'none'}.")
    return said


def _converted(asked: str, repo: str, revision: str | None) -> tuple[dict[str, Splits], str]:
    """Return config → split → files of the Hub's own conversion, and the commit it stands at."""
    if revision is not None:
        raise SourceError(
            f"{asked}: there are no Parquet files at {revision!r}, and the Hub converts the main branch alone; name "
            f"the files: hf://datasets/{repo}@{revision}/PATH."
        )
    with asking(f"{asked}: it has no Parquet files, and its conversion ({CONVERTED})", SourceError):
        info = patiently(api().dataset_info, repo, revision=CONVERTED)
    out: dict[str, Splits] = {}
    for name in sorted(file.rfilename for file in info.siblings or []):
        parts = name.split("/")
        if len(parts) >= 3 and name.endswith(".parquet"):
            out.setdefault("/".join(parts[:-2]), {}).setdefault(parts[-2], []).append(name)
    if not out:
        raise SourceError(
            f"{asked}: neither the repository nor {CONVERTED} has Parquet files; name its files: "
            f"hf://datasets/{repo}/PATH."
        )
    partial = [
        f"{config}/{split}" for config, splits in out.items() for split in splits if split.startswith("partial-")
    ]
    if partial:
        raise SourceError(
            f"{asked}: the Hub converted only the first part of it ({', '.join(partial[:5])}); name its own files: "
            f"hf://datasets/{repo}/PATH."
        )
    return out, str(info.sha)
