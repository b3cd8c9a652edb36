"""Finds scorers, selectors, correctors, connectors and exporters by the word that recipes use.

Built-in parts are listed here by import path, so that listing them imports nothing.  Other packages add theirs through
the entry-point groups ``curate.scorers``, ``curate.selectors``, ``curate.correctors``, ``curate.connectors`` and
``curate.exporters``; a built-in word cannot be taken over.
"""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from curate.exceptions import CurateError, InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Kind = Literal["scorers", "selectors", "correctors", "connectors", "exporters"]

BUILT_IN: dict[str, dict[str, str]] = {
    "scorers": {
        "likelihood": "curate.scorers.likelihood:TargetLikelihood",
        "grape": "curate.scorers.grape:GRAPE",
        "ifd": "curate.scorers.ifd:IFD",
        "donod": "curate.scorers.donod:DONOD",
        "response-entropy": "curate.scorers.entropy:ResponseEntropy",
        "hidden-states": "curate.scorers.hidden_states:HiddenStates",
        "nuclear-norm": "curate.scorers.nuclear_norm:NuclearNorm",
        "gradients": "curate.scorers.gradients:Gradients",
        "attribution": "curate.scorers.attribution:Attribution",
        "dsir": "curate.scorers.dsir:DSIR",
        "bm25": "curate.scorers.bm25:BM25",
        "contamination": "curate.scorers.contamination:Contamination",
        "clusters": "curate.scorers.clusters:Clusters",
        "samples": "curate.scorers.samples:Samples",
        "candidates": "curate.scorers.candidates:Candidates",
        "consistency": "curate.scorers.consistency:Consistency",
        "self-reflection": "curate.scorers.self_reflection:SelfReflection",
        "judge": "curate.scorers.judge:Judge",
        "verdict": "curate.scorers.verdict:Verdict",
        "equivalence": "curate.scorers.equivalence:Equivalence",
        "length": "curate.scorers.length:Length",
        "text-heuristics": "curate.scorers.text_heuristics:TextHeuristics",
        "column": "curate.scorers.column:ColumnValue",
        "language": "curate.scorers.language:Language",
        "label": "curate.scorers.label:Label",
        "text-digest": "curate.scorers.text_digest:TextDigest",
        "minhash": "curate.scorers.minhash:MinHash",
        "hashed-ngrams": "curate.scorers.hashed_ngrams:HashedNgrams",
        "minilm": "curate.scorers.minilm:MiniLM",
        "sentence": "curate.scorers.sentence:Sentence",
    },
    "selectors": {
        "top-k": "curate.selectors.top_k:TopK",
        "threshold": "curate.selectors.threshold:Threshold",
        "quantile": "curate.selectors.threshold:Quantile",
        "random": "curate.selectors.random:Random",
        "sample": "curate.selectors.sample:Sample",
        "longest": "curate.selectors.longest:Longest",
        "best-per-prompt": "curate.selectors.best_per_prompt:BestPerPrompt",
        "kmq": "curate.selectors.kmq:KMQ",
        "iterative-kmq": "curate.selectors.iterative_kmq:IterativeKMQ",
        "k-center": "curate.selectors.k_center:KCenter",
        "repr-filter": "curate.selectors.repr_filter:ReprFilter",
        "less": "curate.selectors.less:LESS",
        "bids": "curate.selectors.bids:BIDS",
        "round-robin": "curate.selectors.round_robin:RoundRobin",
        "exact-duplicates": "curate.selectors.exact_duplicates:ExactDuplicates",
        "near-duplicates": "curate.selectors.near_duplicates:NearDuplicates",
        "sem-dedup": "curate.selectors.sem_dedup:SemDeDup",
        "facility-location": "curate.selectors.facility_location:FacilityLocation",
        "log-det": "curate.selectors.log_det:LogDet",
        "mig": "curate.selectors.mig:MIG",
    },
    "correctors": {
        "auto-correct": "curate.correctors.auto_correct:AutoCorrect",
        "rewrite": "curate.correctors.rewrite:Rewrite",
        "s3ft": "curate.correctors.s3ft:S3FT",
        "label-verification": "curate.correctors.label_verification:LabelVerification",
        "majority-vote": "curate.correctors.majority_vote:MajorityVote",
        "review": "curate.correctors.review:Review",
    },
    "connectors": {
        "parquet": "curate.connectors.parquet:Parquet",
        "jsonl": "curate.connectors.jsonl:JSONLines",
        "json": "curate.connectors.json_document:JSONDocument",
        "csv": "curate.connectors.delimited:CSV",
        "tsv": "curate.connectors.delimited:TSV",
    },
    "exporters": {
        "trl": "curate.exporters.trl:TRL",
        "axolotl": "curate.exporters.axolotl:Axolotl",
        "llama-factory": "curate.exporters.llama_factory:LlamaFactory",
        "open-instruct": "curate.exporters.open_instruct:OpenInstruct",
        "alpaca": "curate.exporters.alpaca:Alpaca",
        "sharegpt": "curate.exporters.sharegpt:ShareGPT",
        "preference": "curate.exporters.preference:Preference",
    },
}


_CONTRACT = {
    "scorers": "curate.base:Scorer",
    "selectors": "curate.base:Selector",
    "correctors": "curate.correction:Corrector",
    "connectors": "curate.base:Connector",
    "exporters": "curate.exporters.base:Exporter",
}


@cache
def _plugins(kind: Kind) -> dict[str, list[EntryPoint]]:
    """Return what other packages offer: each word with the entry points that claim it.  Imports none of them."""
    from importlib.metadata import entry_points  # costs a few hundredths of a second; built-in words do without

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=f"curate.{kind}"):
        found.setdefault(entry.name, []).append(entry)
    return found


def names(kind: Kind) -> list[str]:
    """Return the words known for a kind, built-in and from plugins, sorted."""
    return sorted({*BUILT_IN[kind], *_plugins(kind)})


def nearest(word: str, known: list[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known word, or a full stop: the end of a sentence either way."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def find(kind: Kind, word: str) -> Any:
    """Return the class behind a word.

    Raises
    ------
    InputError
        If nothing goes by that word (the message has the nearest one and the whole list), if two packages claim it, or
        if the package that offers it cannot be loaded or offers something else.
    """
    if word in BUILT_IN[kind]:
        module, _, attribute = BUILT_IN[kind][word].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if word in _plugins(kind):
        return _load(kind, _plugins(kind)[word])
    known = names(kind)
    raise InputError(f"no {kind[:-1]} is called {word!r}{nearest(word, known) or '.'} Known: {', '.join(known)}.")


def _load(kind: Kind, entries: list[EntryPoint]) -> type:
    entry = entries[0]
    where = f"{entry.value!r} of the package {entry.dist.name if entry.dist else '?'!r}"
    if len(entries) > 1:
        claims = ", ".join(sorted(repr(e.value) for e in entries))
        raise InputError(
            f"the {kind[:-1]} {entry.name!r} is offered by {len(entries)} packages: {claims}; uninstall all but one."
        )
    try:
        found = entry.load()
    except CurateError:  # a missing optional package, said by the plugin itself
        raise
    except Exception as error:  # whatever a stranger's module does when it is imported
        raise InputError(
            f"the {kind[:-1]} {entry.name!r} is {where}, which cannot be loaded: {type(error).__name__}: {error}; "
            f"repair or uninstall that package."
        ) from error
    module, _, attribute = _CONTRACT[kind].partition(":")
    contract = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, contract)):
        raise InputError(
            f"the {kind[:-1]} {entry.name!r} is {where}, which is no subclass of curate.{contract.__name__}."
        )
    name = getattr(found, "name", None)
    if name != entry.name:
        raise InputError(
            f"the {kind[:-1]} {entry.name!r} is {where}, whose class calls itself {name!r}; the two must agree."
        )
    return found
