"""A run directory → the facts that its dataset card states, and the card itself, ``README.md``.

Licences and languages are read off the kept rows: their own columns first (in ``extra``), then what the recipe declares
of the source that they were read from.  One pass over the parts, in memory of one part.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate import __version__
from curate.connectors.formats import printable
from curate.connectors.hub_datasets import dataset_of
from curate.exceptions import InputError, RunDirectoryError
from curate.fingerprint import fingerprint
from curate.pipelines.store import Store
from curate.report.card import CardFacts, Config, SourceFacts, card

if TYPE_CHECKING:
    import polars as pl

    from curate.base import Parameters
    from curate.pipelines.ingest import Group
    from curate.recipe import Recipe

Declared = dict[str, tuple[str | None, str | None]]
"""File → (licence, language), as the recipe declares them."""

_WORDS = {
    "licences": ("license", "licence", "License", "Licence"),
    "languages": ("language", "lang", "Language", "Lang"),
}
_VERSION = 1


def write_card(store: Store, manifest: Mapping[str, Any], recipe: Recipe, groups: Iterable[Group]) -> None:
    """Write the card of a finished run, ``README.md``, and keep its facts for ``push``; nothing where both are there.

    Raises
    ------
    InputError
        If there is an ``evaluation.json`` that is no list of flat records.
    """
    declared: Declared = {}
    for group in groups:
        for piece in group.slices:
            source = recipe.sources[piece.source]
            if source.license or source.language:
                declared[printable(piece.url)] = (source.license, source.language)
    key = fingerprint(_VERSION, __version__, _mark(store), declared, recipe.document())
    kept = store.read_json(".curate", "card.json")
    if kept is None or kept["key"] != key:
        facts = describe(store, manifest, recipe, declared)
        store.write_json({"key": key, "mark": _mark(store), "facts": dataclasses.asdict(facts)}, ".curate", "card.json")
    facts = facts_of(store)
    store.write_bytes(card(facts, [default_config(facts, "dataset")]).encode(), "README.md")


def facts_of(store: Store) -> CardFacts:
    """Return the facts of a finished run.

    Raises
    ------
    RunDirectoryError
        If there is no finished run.
    InputError
        As ``write_card``.
    """
    kept = store.read_json(".curate", "card.json")
    if kept is None or kept["mark"] != _mark(store):
        raise RunDirectoryError(
            f"{store.root} holds no finished run; run its recipe to the end first: curate run RECIPE --run DIRECTORY."
        )
    said = kept["facts"]
    said["sources"] = [SourceFacts(**s) for s in said["sources"]]
    said["stages"], said["methods"] = [tuple(s) for s in said["stages"]], [tuple(m) for m in said["methods"]]
    return CardFacts(**{**said, "evaluation": _evaluation(store)})


def default_config(facts: CardFacts, folder: str) -> Config:
    """Return the config of the training columns, whose files are in ``folder``."""
    return Config(
        "default", facts.split, f"{folder}/{facts.split}-*.parquet", "the conversations, training columns only"
    )


def describe(store: Store, manifest: Mapping[str, Any], recipe: Recipe, declared: Declared) -> CardFacts:
    """Return the facts of a run that has just been selected and written."""
    rows, decisions = manifest["rows"], manifest["decisions"]
    stages = [("read", rows["input"], "")]
    if rows["examples"] + rows["rejected"] != rows["input"]:
        stages.append(("responses in them", rows["examples"] + rows["rejected"], ""))
    stages += [
        ("rejected", rows["rejected"], "unreadable, or no conversation"),
        ("copies set aside", rows["duplicates"], "the same conversation as an earlier row"),
    ]
    for step in manifest["select"]:
        if step.get("kind") == "correction":
            back = f"; {step['brought_back']:,} rows brought back" if step["brought_back"] else ""
            stages.append((f"corrected by {step['name']}", step["corrected"], f"{step['use']}{back}"))
            if not step["dropped"]:
                continue
        budget = "" if step["budget"] is None else f", budget {step['budget']}"
        stages.append((f"dropped by {step['name']}", step["dropped"], f"{step['use']}{budget}; {step['kept']:,} left"))
    kept = decisions.get("kept", 0) + decisions.get("corrected", 0)
    stages.append(("kept", kept, f"{decisions['corrected']:,} of them corrected" if decisions.get("corrected") else ""))
    parts: dict[str, Parameters] = {f"{n} (scorer)": s for n, s in recipe.scorers.items()}
    parts |= {s.name: s.selector for s in recipe.steps}
    parts |= {c.name: c.corrector for c in recipe.corrections}
    paths = [path for source in recipe.sources for path in source.paths]
    return CardFacts(
        name=recipe.name,
        rows=kept,
        curate=__version__,
        split=recipe.output.split,
        columns={field.name: _kind(field.type) for field in dataset_schema(store)},
        stages=stages,
        sources=_sources(store, declared),
        rejected=dict(manifest["rejected"]),
        methods=[(name, part.name, part.reference) for name, part in parts.items()],
        origins=sorted({found for found in map(dataset_of, paths) if found}),
        limit=manifest["limit"],
    )


def dataset_schema(store: Store) -> pa.Schema:
    """Return the columns of the result's files."""
    first = next(name for name in store.list("dataset") if name.endswith(".parquet"))
    with store.fs.open(store.path("dataset", first), "rb") as handle:
        return pq.read_schema(handle).remove_metadata()


def _mark(store: Store) -> str | None:
    """Return the fingerprint of the selection that stands in the directory; None where none is finished."""
    done = store.read_json(".curate", "done", "select.json")
    return None if done is None else done["fingerprint"]


def _kind(kind: pa.DataType) -> str:
    """Return a type in words: "text", "list of {role, content}"."""
    if pa.types.is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "{" + ", ".join(kind.field(i).name for i in range(kind.num_fields)) + "}"
    return "text" if pa.types.is_string(kind) else str(kind)


def _evaluation(store: Store) -> list[dict[str, Any]]:
    """Return ``evaluation.json``: results that somebody put beside the dataset, as flat records."""
    try:
        found = store.read_json("evaluation.json")
    except ValueError as error:
        raise InputError(f"{store.path('evaluation.json')}: this is no JSON: {error}.") from error
    records = found if isinstance(found, list) else [] if found is None else [found]
    for record in records:
        if not isinstance(record, dict) or any(isinstance(v, dict | list) for v in record.values()):
            raise InputError(
                f"{store.path('evaluation.json')}: a list of flat records was asked, such as "
                f'[{{"benchmark": "…", "score": 0.5}}]; found {cut(record)}.'
            )
    return records


def cut(value: Any) -> str:
    """Return the beginning of a value as JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _sources(store: Store, declared: Declared) -> list[SourceFacts]:
    """Count rows, kept rows, licences and languages of every source."""
    import polars as pl

    read: Counter[str] = Counter()
    words: dict[str, dict[str, Counter[str]]] = {what: defaultdict(Counter) for what in _WORDS}
    for name in store.list("examples"):
        decisions = pl.DataFrame(store.read_table("decisions", name, columns=["source", "decision"]))
        for source, rows in decisions.group_by("source").len().iter_rows():
            read[source] += rows
        part = pl.DataFrame(store.read_table("examples", name, columns=["source", "file", "extra"]))
        kept = part.filter(decisions["decision"].is_in(["kept", "corrected"]))
        for at, what in enumerate(_WORDS):
            said = {file: word for file, pair in declared.items() if (word := pair[at])}
            table = kept.select("source", word=_stated(kept, _WORDS[what], said))
            for source, word, rows in table.group_by("source", "word").len().iter_rows():
                words[what][source][_text(word)] += rows
    out = []
    for source in sorted(read):
        licences, languages = (dict(sorted(words[what][source].items())) for what in _WORDS)
        out.append(SourceFacts(source, read[source], sum(licences.values()), licences, languages))
    return out


def _stated(rows: pl.DataFrame, keys: tuple[str, ...], declared: Mapping[str, str]) -> pl.Series:
    """Return what each row states under one of the keys of ``extra``, else what is declared of its file, else ""."""
    import polars as pl

    own = [pl.lit(None, pl.String)]
    for key in keys:
        if rows["extra"].str.contains(f'"{key}"', literal=True).any():
            found = pl.col("extra").str.json_path_match(f"$.{key}")
            own.append(pl.when(found.str.strip_chars() != "").then(found))
    of_file = (
        pl.col("file").replace_strict(declared, default=None, return_dtype=pl.String) if declared else pl.lit(None)
    )
    return rows.with_columns(word=pl.coalesce(*own, of_file, pl.lit("")))["word"]


def _text(word: str) -> str:
    """Return a stated word; of a JSON list its items."""
    if word.startswith("["):
        try:
            return ", ".join(str(item) for item in json.loads(word))
        except ValueError:
            return word
    return word
