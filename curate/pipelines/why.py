"""One row's whole story: where it came from, what it scored, what was decided, and its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from curate.diff import brief, diff, plain
from curate.exceptions import InputError, RunDirectoryError
from curate.pipelines import audit
from curate.pipelines.store import Store
from curate.report.text import visible


@dataclass(frozen=True)
class Story:
    decision: dict[str, Any]
    """The ledger's row."""
    scores: dict[str, dict[str, Any]]
    """Stage → column → value (and "reason", where it was not scored)."""
    example: dict[str, Any] | None
    """The example, or the rejected row."""
    copies: list[dict[str, Any]]
    """Ledger rows of the exact copies."""
    corrections: list[dict[str, Any]] = field(default_factory=list)
    """What each correction that saw the row did to it, or did not, and why."""


def why(store: Store, wanted: str) -> list[Story]:
    """Return the story of the row with this id (or beginning of an id), or at ``FILE:ROW``.

    Raises
    ------
    RunDirectoryError
        If there is no finished run.
    InputError
        If no row, or more than one id, answers to it.
    """
    if store.read_json(".curate", "run.json") is None:
        raise RunDirectoryError(f"{store.root} is no run of curate; name the directory that 'curate run' filled.")
    names = [n for n in store.list("decisions") if n.endswith(".parquet")]
    if not names:
        raise RunDirectoryError(f"{store.root} holds no decisions yet; run it to the end first.")
    file, _, number = wanted.rpartition(":")
    hits: list[tuple[str, int, dict[str, Any]]] = []
    copies: list[dict[str, Any]] = []
    for name in names:
        table = store.read_table("decisions", name)
        if file and number.isdigit():
            mask = pc.and_(pc.ends_with(table.column("file"), file), pc.equal(table.column("row"), int(number)))
        else:
            mask = pc.fill_null(pc.starts_with(table.column("id"), wanted), False)
        for i in pc.indices_nonzero(mask).to_pylist():
            row = table.slice(i, 1).to_pylist()[0]
            hits.append((name, i, row))
    exact = [h for h in hits if h[2]["id"] == wanted]
    hits = exact or hits
    if not hits:
        raise InputError(
            f"no row answers to {wanted!r} in {store.root}; give an id (or its beginning), or FILE:ROW. Ids stand in "
            "decisions/."
        )
    ids = {h[2]["id"] for h in hits}
    if len(ids) > 1:
        some = ", ".join(sorted(str(i) for i in ids)[:5])
        raise InputError(
            f"{len(ids)} ids begin with {wanted!r}: {some}{', …' if len(ids) > 5 else ''}; give more of it."
        )
    if None not in ids:
        copies = [h[2] for h in hits if h[2]["decision"] == "duplicate"]
        hits = [h for h in hits if h[2]["decision"] != "duplicate"] or hits
    return [_story(store, name, i, row, copies) for name, i, row in hits]


def _story(store: Store, name: str, i: int, row: dict[str, Any], copies: list[dict[str, Any]]) -> Story:
    if row["decision"] == "rejected":
        return Story(row, {}, _row(store, "rejected", name.replace("-rejected", ""), i, row), [])
    example = _row(store, "examples", name, i, row)
    scores: dict[str, dict[str, Any]] = {}
    if row["decision"] != "duplicate":
        for stage, directory in _stages(store).items():
            if store.exists(directory, name):
                table = store.read_table(directory, name)
                found = table.filter(pc.equal(table.column("id"), row["id"]))
                if found.num_rows:
                    values = found.to_pylist()[0]
                    values.pop("id")
                    if values.get("reason") is None:
                        values.pop("reason", None)
                    scores[stage] = values
    changes = [] if row["decision"] == "duplicate" else audit.of_row(store, name, row["id"])
    return Story(row, scores, example, copies, changes)


def _row(store: Store, directory: str, name: str, i: int, row: dict[str, Any]) -> dict[str, Any]:
    """Return what a row of the ledger speaks of; it stands at the same place of its part, unless that was read anew."""
    try:
        found = store.read_table(directory, name).slice(i, 1).to_pylist()
    except FileNotFoundError:
        found = []
    if not found or any(found[0].get(key, row[key]) != row[key] for key in ("id", "file", "row", "part")):
        raise RunDirectoryError(
            f"{store.root}: the sources were read anew after these decisions were made. Run the recipe to its end "
            "first."
        )
    return found[0]


def _stages(store: Store) -> dict[str, str]:
    """Return stage → directory of the scores that the selection in effect was made from."""
    pointer = store.read_json(".curate", "done", "select.json") or {}
    if "stages" in pointer:
        return pointer["stages"]
    stages = (store.read_json("manifest.json") or {}).get("stages", {})
    kinds = {
        s: "features" if store.exists("features", f"{s}-{a['fingerprint']}") else "scores" for s, a in stages.items()
    }
    return {s: f"{kinds[s]}/{s}-{a['fingerprint']}" for s, a in stages.items()}


# -- telling it --------------------------------------------------------------------------------------------------------


def tell(story: Story) -> str:
    """Return a story as lines of text."""
    d = story.decision
    out = [
        f"{d['decision'].upper()}  {d['id'] or '(never became an example)'}",
        f"  from      {d['file']} row {d['row']}" + (f", response {d['part']}" if d["part"] >= 0 else ""),
    ]
    if d["source"]:
        out.append(f"  source    {d['source']}" + (f", group {d['group']}" if d["group"] else ""))
    out.append(f"  decided   by {d['stage']}: {d['reason']}")
    if d["score"] is not None:
        cluster = "" if d["cluster"] is None else f", cluster {d['cluster']}"
        out.append(f"  judged    {d['score_name']} {d['score']:.6g}{_against(d['threshold'])}{cluster}")
    if d["order"] is not None:
        out.append(f"  order     {d['order']:,} (0 was chosen first)")
    if d["duplicate_of"]:
        out.append(f"  same as   {d['duplicate_of']}")
    out += [f"  copy at   {copy['file']} row {copy['row']}" for copy in story.copies]
    for stage, values in story.scores.items():
        told = "  ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        out.append(f"  {stage:<9} {told or 'has a vector'}")
    for change in story.corrections:
        out += _tell_change(change)
    example = story.example or {}
    if "messages" in example:
        if d["decision"] == "corrected":
            out.append("  text      as it was read:")
        for message in example["messages"]:
            calls = f" {message['tool_calls']}" if message.get("tool_calls") else ""
            out.append(f"  [{message['role']}] {message['content']}{calls}")
    elif example:
        out.append(f"  raw       {example.get('raw')}")
    return "\n".join(out)


def _tell_change(change: dict[str, Any]) -> list[str]:
    """Return what a correction did to a row, and the change itself word by word."""
    action = change["action"] or "left to the selection"
    undone = "" if change["applied"] or change["action"] is None else ", not applied"
    if change["overruled_by"]:
        undone = f", overruled by {change['overruled_by']}"
    sure = "" if change["confidence"] is None else f", confidence {change['confidence']:.6g}"
    against = _against(change["threshold"]) if sure else ""
    out = [f"  {change['correction']:<9} {action}{undone}: {change['rule']}{sure}{against}"]
    out += [f"            {key:<7}{visible(change[key])}" for key in ("model", "prompt") if change[key]]
    if change["new"] is not None:
        shown = visible(plain(brief(diff(change["old"], change["new"]))))
        out += [f"            | {line}" for line in shown.split("\n")]
    return out


def _against(threshold: float | None) -> str:
    return "" if threshold is None else f" against {threshold:.6g}"
