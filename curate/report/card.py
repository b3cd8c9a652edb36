"""The dataset card: facts about a result → Markdown with the Hub's YAML metadata on top.

Pure: facts in, text out.  Nothing is invented.  A licence is what the rows or the recipe state, kept apart by source; a
language, an evaluation, a citation stands there if it is known.  Whatever comes from data is shown as text: no row,
source or column can add a heading, a link or an HTML tag to the card.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from curate.report.text import cut, redact, visible

MOST_ROWS = 100
"""Lines of a table at most; the others are summed up in its last line."""

_IDENTIFIERS = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m
    bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
    cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3
    lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unlicense
    wtfpl zlib
"""
LICENCES = frozenset(_IDENTIFIERS.split())
"""The identifiers that the Hub knows (its documentation's page "Licenses"); anything else is "other" with a name."""

_NOT_STATED = ("", "unknown", "none", "null", "n/a", "na", "-", "?", "not stated", "unspecified", "other")
_SIZES = [(10**power, f"{low}<n<{high}") for power, low, high in (
    (4, "1K", "10K"), (5, "10K", "100K"), (6, "100K", "1M"), (7, "1M", "10M"), (8, "10M", "100M"), (9, "100M", "1B"),
    (10, "1B", "10B"), (11, "10B", "100B"), (12, "100B", "1T"),
)]  # fmt: skip


@dataclass(frozen=True)
class SourceFacts:
    """What became of one source's rows, and under which licences and in which languages the kept ones are."""

    name: str
    read: int
    """Rows that became examples, copies included."""
    kept: int
    licences: dict[str, int] = field(default_factory=dict)
    """Licence as stated → kept rows; "" for rows of which nothing is stated."""
    languages: dict[str, int] = field(default_factory=dict)
    """Language as stated → kept rows; "" likewise."""


@dataclass(frozen=True)
class Config:
    """One configuration of the dataset: a table that a reader can load."""

    name: str
    split: str
    path: str
    """Glob of its files in the repository."""
    about: str


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says."""

    name: str
    rows: int
    curate: str
    """Version that made it."""
    split: str
    columns: dict[str, str]
    """Column → type, of the default config."""
    stages: list[tuple[str, int, str]]
    """(what, rows, note) in order, from rows read to rows kept."""
    sources: list[SourceFacts]
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason → rows."""
    methods: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(name in the recipe, word, reference)."""
    origins: list[str] = field(default_factory=list)
    """USER/NAME of the Hub's datasets that rows come from."""
    evaluation: list[dict[str, Any]] = field(default_factory=list)
    """Results as flat records, one a line."""
    limit: int | None = None
    """For a rehearsal: how many rows were read at most."""


def card(facts: CardFacts, configs: list[Config], repo: str | None = None) -> str:
    """Return the card of a dataset: YAML metadata between two lines ``---``, then Markdown.

    ``repo`` is USER/NAME where the dataset goes; None for the card in a run directory, which is loaded by its path.
    """
    head = yaml.safe_dump(metadata(facts, configs), sort_keys=False, allow_unicode=True, width=1000)
    body = [
        f"# {plain(facts.name)}",
        _summary(facts),
        "## Load it",
        _usage(configs, repo),
        "## Rows, stage by stage",
        _stages(facts),
        "## Sources",
        _sources(facts),
        "## Licences",
        _licences(facts),
        *_languages(facts),
        *_methods(facts),
        *_evaluation(facts),
        "## How to make it again",
        "`recipe.yaml` is the whole recipe, `manifest.json` has versions, seeds and counts. "
        f"Made with curate {plain(facts.curate)}.",
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(body) + "\n"


# -- metadata ----------------------------------------------------------------------------------------------------------


def metadata(facts: CardFacts, configs: list[Config]) -> dict[str, Any]:
    """Return the YAML metadata of a card; only keys of which something is known."""
    out: dict[str, Any] = {"pretty_name": _word(facts.name)}
    out |= licence_metadata(total(facts, "licences"))
    if codes := sorted(c for c in {language_code(word) for word in total(facts, "languages")} if c):
        out["language"] = codes
    out["size_categories"] = [size_category(facts.rows)]
    out["task_categories"] = ["text-generation"]
    if facts.origins:
        out["source_datasets"] = sorted(set(facts.origins))
    out["tags"] = ["curate"]
    out["configs"] = [
        {
            "config_name": config.name,
            "data_files": [{"split": config.split, "path": config.path}],
            **({"default": True} if i == 0 and len(configs) > 1 else {}),
        }
        for i, config in enumerate(configs)
    ]
    return out


def total(facts: CardFacts, what: str) -> Counter[str]:
    """Return licence (or language) → kept rows, over all sources, under one spelling; "" for not stated."""
    out: Counter[str] = Counter()
    for source in facts.sources:
        for word, rows in getattr(source, what).items():
            out[licence(word) if what == "licences" else _word(word)] += rows
    return out


def licence(stated: str) -> str:
    """Return a licence under the Hub's identifier if that is only a matter of spelling, else as it was stated.

    ``"Apache 2.0"`` → ``apache-2.0``, ``"CC-BY-SA 4.0"`` → ``cc-by-sa-4.0``; what states nothing (``"n/a"``) → ``""``.
    """
    text = _word(stated)
    if text.lower() in _NOT_STATED:
        return ""
    spelt = re.sub(r"[\s_]+", "-", re.sub(r"(?i)^the\s+|[\s-]+licen[cs]e$", "", text).lower())
    return spelt if spelt in LICENCES else text


def licence_metadata(licences: dict[str, int]) -> dict[str, Any]:
    """Return ``license`` (and ``license_name``) for rows under these licences ("" is not stated).

    One that the Hub knows is itself; one that it does not is "other" under its name; several, or one and rows of which
    nothing is known, are "other" under the name "mixed"; nothing known at all is "unknown".
    """
    stated = [word for word, rows in licences.items() if rows]
    if len(stated) > 1:
        return {"license": "other", "license_name": "mixed"}
    if not stated or not stated[0]:
        return {"license": "unknown"}
    if stated[0] in LICENCES:
        return {"license": stated[0]}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+]+", "-", stated[0].lower()).strip("-.") or "custom"}


def language_code(stated: str) -> str | None:
    """Return the ISO 639 code in "en", "EN" or "en-US"; None for anything that is no code ("English")."""
    found = re.fullmatch(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9-_]+)?", stated.strip())
    return found[1].lower() if found else None


def size_category(rows: int) -> str:
    """Return the Hub's word for a number of rows: "n<1K", "1K<n<10K", …"""
    if rows < 1_000:
        return "n<1K"
    return next((word for limit, word in _SIZES if rows < limit), "n>1T")


# -- body --------------------------------------------------------------------------------------------------------------


def _summary(facts: CardFacts) -> str:
    read = facts.stages[0][1] if facts.stages else 0
    columns = ", ".join(f"{code(name)} ({plain(kind)})" for name, kind in facts.columns.items())
    text = f"{facts.rows:,} conversations for supervised fine-tuning, chosen from {read:,} rows. Columns: {columns}."
    if facts.limit is not None:
        text += f"\n\n**A rehearsal**: only the first {facts.limit:,} rows of the sources were read."
    return text


def _usage(configs: list[Config], repo: str | None) -> str:
    where = repo or "PATH/OF/THE/RUN"
    lines = ["from datasets import load_dataset", ""]
    for i, config in enumerate(configs):
        name = f', "{config.name}"' if i else ""
        lines.append(f'{config.name if i else "data"} = load_dataset("{where}"{name}, split="{config.split}")')
    about = "\n".join(f"- `{config.name}`: {config.about}" for config in configs)
    return "```python\n" + "\n".join(lines) + "\n```\n\n" + about


def _stages(facts: CardFacts) -> str:
    rows = [(plain(what), f"{n:,}", plain(note)) for what, n, note in facts.stages]
    text = _table(("stage", "rows", ""), rows, "l r l")
    if facts.rejected:
        reasons = ", ".join(f"{plain(reason)} {n:,}" for reason, n in facts.rejected.items())
        text += f"\n\nRejected because: {reasons}."
    return text


def _sources(facts: CardFacts) -> str:
    ordered = sorted(facts.sources, key=lambda s: (-s.kept, s.name))
    rows = [
        (plain(s.name), f"{s.read:,}", f"{s.kept:,}", _stated(s.licences) if s.kept else "–")
        for s in ordered[:MOST_ROWS]
    ]
    rest = ordered[MOST_ROWS:]
    if rest:
        read, kept = sum(s.read for s in rest), sum(s.kept for s in rest)
        rows.append((f"{len(rest):,} more sources", f"{read:,}", f"{kept:,}", "see below"))
    return _table(("source", "rows", "kept", "licence of the kept rows, as stated"), rows, "l r r l")


def _stated(licences: dict[str, int]) -> str:
    """Return a source's licences: its one, or each with its rows."""
    spelt: Counter[str] = Counter()
    for word, n in licences.items():
        spelt[licence(word)] += n
    if len(spelt) <= 1:
        return next((plain(word) for word in spelt if word), "not stated")
    return ", ".join(f"{plain(w) or 'not stated'} ({n:,} rows)" for w, n in sorted(spelt.items(), key=_most))


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _licences(facts: CardFacts) -> str:
    licences = total(facts, "licences")
    stated = {word: n for word, n in licences.items() if n}
    if not any(stated):
        return "**Unknown**: neither the rows nor the recipe state one. Ask the sources before you use or share this."
    if len(stated) == 1:
        return f"All rows are stated to be under {plain(next(iter(stated)))}."
    said = "Licences differ from row to row; each row keeps the terms of its source."
    if stated.get(""):
        said += f" For {stated['']:,} rows **none is stated**: ask their sources before you use or share them."
    rows = []
    for word, n in sorted(stated.items(), key=_most)[:MOST_ROWS]:
        names = [s.name for s in facts.sources if any(licence(w) == word and k for w, k in s.licences.items())]
        shown = ", ".join(plain(name) for name in names[:20]) + (f" and {len(names) - 20:,} more" if names[20:] else "")
        rows.append((plain(word) or "not stated", f"{n:,}", shown))
    if len(stated) > MOST_ROWS:
        rest = sum(n for _, n in sorted(stated.items(), key=_most)[MOST_ROWS:])
        rows.append((f"{len(stated) - MOST_ROWS:,} more", f"{rest:,}", ""))
    disagree = [s for s in facts.sources if len({licence(w) for w, n in s.licences.items() if n}) > 1]
    if disagree:
        shown = ", ".join(plain(s.name) for s in disagree[:20])
        shown += f" and {len(disagree) - 20:,} more" if len(disagree) > 20 else ""
        said += f" Within one and the same source the rows disagree in: {shown}."
    return f"{said}\n\n" + _table(("licence", "rows", "sources"), rows, "l r l")


def _languages(facts: CardFacts) -> list[str]:
    languages = {word: n for word, n in total(facts, "languages").items() if n}
    if not any(languages):
        return []
    ordered = sorted(languages.items(), key=_most)
    shown = [f"{plain(w) or 'not stated'} ({n:,} rows)" for w, n in ordered[:MOST_ROWS]]
    return [
        "## Languages",
        ", ".join(shown) + (f" and {len(ordered) - MOST_ROWS:,} more" if ordered[MOST_ROWS:] else ""),
    ]


def _methods(facts: CardFacts) -> list[str]:
    if not facts.methods:
        return []
    rows = [(plain(name), code(word), _cited(reference)) for name, word, reference in facts.methods]
    return ["## Methods", _table(("in the recipe", "method", "reference"), rows, "l l l")]


def _cited(reference: str | None) -> str:
    """Return a reference with its arXiv number as a link, which the Hub makes a tag of."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", plain(reference or "–"))


def _evaluation(facts: CardFacts) -> list[str]:
    if not facts.evaluation:
        return []
    keys = list(dict.fromkeys(key for record in facts.evaluation for key in record))
    rows = [tuple(plain(_number(record.get(key))) for key in keys) for record in facts.evaluation[:MOST_ROWS]]
    return ["## Evaluation", _table(tuple(plain(key) for key in keys), rows, " ".join("l" * len(keys)))]


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# -- text --------------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Return text that Markdown and HTML show as it is: one line, nothing invisible, at most 200 characters."""
    shown = cut(_word(redact(text)), 200)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", shown)
    return re.sub(r"(?i)\b(https?|ftp|www)(?=[:.])", r"\1&#8203;", shown)  # an address is text, not a link


def code(text: str) -> str:
    """Return text as inline code."""
    return f"`{cut(_word(text), 200).replace('`', 'ˋ').replace('|', '¦')}`"


def _word(text: str) -> str:
    """Return text on one line, with what shows nothing spelt out."""
    return " ".join(visible(str(text)).split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    rule = "|" + "|".join({"l": "---", "r": "---:"}[a] for a in align.split()) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])
