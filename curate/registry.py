"""Finds scorers, selectors, correctors and connectors by the word that recipes use.

Built-in parts are listed here by import path, so that listing them imports nothing.  Other packages add theirs through
the entry-point groups ``curate.scorers``, ``curate.selectors``, ``curate.correctors`` and ``curate.connectors``; a
built-in word cannot be taken over.
"""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from curate.exceptions import InputError

Kind = Literal["scorers", "selectors", "correctors", "connectors"]

BUILT_IN: dict[str, dict[str, str]] = {
    "scorers": {
        "likelihood": "curate.scorers.likelihood:TargetLikelihood",
        "length": "curate.scorers.length:Length",
        "text-heuristics": "curate.scorers.text_heuristics:TextHeuristics",
        "column": "curate.scorers.column:ColumnValue",
        "hashed-ngrams": "curate.scorers.hashed_ngrams:HashedNgrams",
        "minilm": "curate.scorers.minilm:MiniLM",
    },
    "selectors": {
        "top-k": "curate.selectors.top_k:TopK",
        "threshold": "curate.selectors.threshold:Threshold",
        "quantile": "curate.selectors.threshold:Quantile",
        "random": "curate.selectors.random:Random",
        "longest": "curate.selectors.longest:Longest",
        "best-per-prompt": "curate.selectors.best_per_prompt:BestPerPrompt",
        "kmq": "curate.selectors.kmq:KMQ",
    },
    "correctors": {},
    "connectors": {},
}


@cache
def _plugins(kind: Kind) -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=f"curate.{kind}") if e.name not in BUILT_IN[kind]}


def names(kind: Kind) -> list[str]:
    """Return the words known for a kind, built-in and from plugins, sorted."""
    return sorted({*BUILT_IN[kind], *_plugins(kind)})


def nearest(word: str, known: list[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known word, or an empty string."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def find(kind: Kind, word: str) -> type:
    """Return the class behind a word.

    Raises
    ------
    InputError
        If nothing goes by that word; the message has the nearest one and the whole list.
    """
    if word in BUILT_IN[kind]:
        module, _, attribute = BUILT_IN[kind][word].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if word in _plugins(kind):
        return _plugins(kind)[word].load()
    known = names(kind)
    raise InputError(f"no {kind[:-1]} is called {word!r}{nearest(word, known)} Known: {', '.join(known)}.")
