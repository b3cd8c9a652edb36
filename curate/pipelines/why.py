"""One row's whole story: where it came from, what it scored, what was decided, and its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from curate.exceptions import InputError, RunDirectoryError
from curate.pipelines.store import Store


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
    return Story(row, scores, example, copies)


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
