"""What was run: costs of each stage, versions, sources, the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curate.report.blocks import Block, Code, Facts, Section, Table
from curate.report.text import redact

if TYPE_CHECKING:
    from curate.report.view import View


def sections(view: View) -> list[Section]:
    manifest = view.manifest
    costs: list[Block] = []
    rows: list[list[Any]] = []
    for name, stage in manifest.get("stages", {}).items():
        seconds = stage.get("seconds_of_work")
        speed = stage["rows"] / seconds if seconds else None
        fit = stage.get("seconds_of_fit")
        made = stage["use"], stage["rows"], stage["unscored"], stage.get("tokens"), fit, seconds
        rows.append([name, *made, speed and round(speed)])
    if rows:
        columns = [
            "stage",
            "uses",
            "rows",
            "without a score",
            "tokens",
            "seconds of fitting",
            "of work",
            "rows a second",
        ]
        costs.append(Table("Scoring", columns, rows))
    steps = [
        [s["name"], s["use"], s.get("score"), s.get("budget"), s["in"], s["kept"], s.get("tokens"), s.get("threshold")]
        for s in view.steps
    ]
    if steps:
        columns = ["step", "uses", "by", "budget", "rows in", "kept", "tokens kept", "threshold"]
        costs.append(Table("Selection", columns, steps))
    facts: list[tuple[str, Any]] = [
        ("run", view.name),
        ("curate", manifest.get("curate")),
        ("Python", manifest.get("python")),
        *manifest.get("packages", {}).items(),
        ("seed", str(manifest.get("seed"))),
        ("started", manifest.get("started")),
        ("finished", manifest.get("finished")),
    ]
    if manifest.get("limit"):
        facts.append(("rehearsal of", f"the first {manifest['limit']:,} rows"))
    sources = "\n".join(redact(str(text)) for text in manifest.get("sources", []))
    record: list[Block] = [Facts(facts)]
    if sources:
        record.append(Code(sources, "Sources, as they were recognised"))
    record.append(Code(redact(view.recipe), "Recipe"))
    return [*([Section("Costs", costs)] if costs else []), Section("Recipe and versions", record)]
