"""What corrections did, read back: of every row that one saw its action, its rule, the old text and the new."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from curate import answers
from curate.apportion import interleave
from curate.pipelines import corrected
from curate.pipelines.corrected import directories
from curate.pipelines.store import Store
from curate.report.view import Change, Correction
from curate.review import line_of
from curate.seeding import rng_for

if TYPE_CHECKING:
    import polars as pl

    from curate.pipelines.ledger import FinishedRun


def sidecar(store: Store, directory: str, part: str, columns: list[str] | None = None) -> pa.Table | None:
    """Return what a correction did to the rows of one part of the examples; None if it saw none of them."""
    try:
        return store.read_table(*directory.split("/"), part, columns=columns)
    except FileNotFoundError:
        return None


def of_row(store: Store, part: str, id: str) -> list[dict[str, Any]]:
    """Return what each correction that saw a row did to it, in their order.

    Besides the columns of the sidecar: "correction", its name, and "overruled_by", the last one after it that did
    something else; None where it stands.
    """
    out = []
    for name, directory in directories(store).items():
        table = sidecar(store, directory, part)
        if table is not None:
            found = table.filter(pc.equal(table.column("id"), id)).to_pylist()
            out += [{"correction": name, "overruled_by": None, **row} for row in found[:1]]
    for i, change in enumerate(out):
        if change["applied"]:
            change["overruled_by"] = next((c["correction"] for c in reversed(out[i + 1 :]) if c["applied"]), None)
    return out


class Proposals:
    """What corrections would put in the place of answers: what one did, or the single candidate that one refused."""

    def __init__(self, store: Store, stages: dict[str, str]) -> None:
        """``stages`` maps stages to their directories."""
        self.store = store
        self.directories = directories(store)
        self.candidates = {name: _candidates(store, stages, name) for name in self.directories}

    def refused(self, correction: str, part: str, ids: list[str]) -> dict[str, str]:
        """Return id → the candidate that a correction's stage wrote for a row; only where it wrote exactly one."""
        directory = self.candidates[correction]
        table = None if directory is None else sidecar(self.store, directory, part, ["id", "answers"])
        out: dict[str, str] = {}
        if table is not None:
            mine = table.filter(pc.is_in(table.column("id"), pa.array(ids, pa.string())))
            for row in mine.to_pylist():
                written = answers.read(row["answers"]) if row["answers"] else []
                if len(written) == 1 and written[0].text.strip():
                    out[row["id"]] = written[0].text
        return out

    def of(self, part: str, ids: list[str]) -> dict[str, str]:
        """Return id → what the first correction that has something to say would put there."""
        out: dict[str, str] = {}
        for name, directory in self.directories.items():
            table = sidecar(self.store, directory, part, ["id", "new"])
            if table is None:
                continue
            mine = table.filter(pc.is_in(table.column("id"), pa.array(ids, pa.string())))
            new = {row["id"]: row["new"] for row in mine.to_pylist() if row["new"] is not None}
            out = {**self.refused(name, part, mine.column("id").to_pylist()), **new, **out}
        return out


def _candidates(store: Store, stages: dict[str, str], correction: str) -> str | None:
    """Return the directory of the stage that writes a correction's candidates: its own, or one that it names."""
    recipe = yaml.safe_load(store.read_bytes("recipe.yaml")) or {}
    entries = [e for e in recipe.get("correct") or [] if str(e.get("name") or e.get("use")) == correction]
    named = [str(value) for entry in entries for value in entry.values() if isinstance(value, str)]
    for stage in [*(s for s in stages if s.startswith(f"{correction}-")), *(s for s in named if s in stages)]:
        directory = stages[stage]
        parts = [name for name in store.list(directory) if name.endswith(".parquet")]
        if parts and "answers" in store.read_table(*directory.split("/"), parts[0]).column_names:
            return directory
    return None


# -- for the report ----------------------------------------------------------------------------------------------------

REPLACED, REFUSED = 30, 12
"""Changes that a report shows of a correction: made, and not made."""
_LOOKED_AT = 10
"""Times as many rows that may have a refused candidate are looked up: not all of them have one."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a correction says of the rows that it saw, (m,) arrays."""

    at: NDArray[np.int64]
    """Places in the pool."""
    part: NDArray[np.int64]
    """Numbers of the parts that they are from."""
    action: list[str | None]
    applied: NDArray[np.bool_]
    rule: NDArray[np.int64]
    """Index into ``rules``."""
    rules: list[str]
    confidence: NDArray[np.float64]
    threshold: float | None
    model: str | None
    prompt: str | None


def corrections(run: FinishedRun, ledger: pl.DataFrame, seed: int, *, shown: bool = True) -> list[Correction]:
    """Return what each correction of a finished run did: counts of all its rows, texts of a few if they are shown.

    Which rows are shown is drawn by content and seed.
    """
    import polars as pl

    places = directories(run.store)
    if not places:
        return []
    index = run.index
    decision = ledger["decision"].slice(0, index.rows).cast(pl.String).to_numpy()[index.pool]
    read = {name: _rows(run, directory) for name, directory in places.items()}
    later = np.zeros(index.n, dtype=bool)
    stands: dict[str, NDArray[np.bool_]] = {}
    for name, rows in reversed(read.items()):
        stands[name] = rows.applied & ~later[rows.at]
        later[rows.at[rows.applied]] = True
    proposals = Proposals(run.store, run.stages)
    accounts = {step["name"]: step for step in run.manifest.get("select", [])}
    out = []
    for name, rows in read.items():
        replaced = stands[name] & np.array([what == "replace" for what in rows.action], dtype=bool)
        made: list[Change] = []
        refused: list[Change] = []
        if shown:
            order = np.argsort(rng_for(seed, "report", "corrections", name).random(index.n)[rows.at], kind="stable")
            made = _made(run, places[name], rows, order[replaced[order]][:REPLACED], decision)
            refused = _refused(run, proposals, name, rows, order[~rows.applied[order]], decision)
        counts: Counter[tuple[str, str, str]] = Counter()
        for i, (what, applied, holds) in enumerate(zip(rows.action, rows.applied, stands[name], strict=True)):
            done = "" if not applied else str(what) if holds else "overruled"
            counts[rows.rules[rows.rule[i]], done, decision[rows.at[i]]] += 1
        out.append(
            Correction(
                name=name,
                use=str(accounts.get(name, {}).get("use", name)),
                model=rows.model,
                prompt=rows.prompt,
                threshold=rows.threshold,
                counts=counts,
                confidence=rows.confidence,
                replaced=replaced,
                made=made,
                refused=refused,
            )
        )
    return out


def _rows(run: FinishedRun, directory: str) -> _Rows:
    index = run.index
    columns = ["id", "action", "applied", "rule", "confidence", "threshold", "model", "prompt"]
    tables, at, parts = [], [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for number, part in enumerate(index.parts):
        table = sidecar(run.store, directory, part.name, columns)
        if table is not None and table.num_rows:
            place = index.place[part.start : part.start + part.rows]
            ids = run.store.read_table("examples", part.name, columns=["id"]).column(0).filter(pa.array(place >= 0))
            found = pc.index_in(table.column("id"), ids.combine_chunks()).to_numpy()
            at.append(place[place >= 0][found])
            parts.append(np.full(table.num_rows, number, dtype=np.int64))
            tables.append(table)
    if not tables:
        nothing = np.empty(0)
        return _Rows(at[0], parts[0], [], nothing.astype(bool), at[0], [], nothing, None, None, None)
    table = pa.concat_tables(tables).combine_chunks()
    rule = table.column("rule").combine_chunks().dictionary_encode()
    first = {name: next(iter(pc.drop_null(table.column(name)).to_pylist()), None) for name in columns[5:]}
    return _Rows(
        np.concatenate(at),
        np.concatenate(parts),
        table.column("action").to_pylist(),
        table.column("applied").to_numpy(),
        rule.indices.to_numpy().astype(np.int64),
        rule.dictionary.to_pylist(),
        table.column("confidence").to_numpy(),
        **first,
    )


def _made(
    run: FinishedRun, directory: str, rows: _Rows, chosen: NDArray[np.int64], decision: NDArray[np.object_]
) -> list[Change]:
    """Return changes that were made, given by their numbers among the rows that the correction saw."""
    news: dict[str, str] = {}
    for number in np.unique(rows.part[chosen]).tolist():
        table = sidecar(run.store, directory, run.index.parts[number].name, ["id", "new"])
        assert table is not None
        news |= {row["id"]: row["new"] for row in table.to_pylist() if row["new"] is not None}
    return _changes(run, rows, chosen, decision, news)


def _refused(
    run: FinishedRun,
    proposals: Proposals,
    name: str,
    rows: _Rows,
    others: NDArray[np.int64],
    decision: NDArray[np.object_],
) -> list[Change]:
    """Return candidates that were refused, as evenly as can be over the rules; none where a stage wrote none."""
    if proposals.candidates[name] is None or not others.size:
        return []
    rule = np.unique(rows.rule[others], return_inverse=True)[1]
    others = others[interleave(rule, np.ones(int(rule.max()) + 1))][: _LOOKED_AT * REFUSED]
    texts: dict[str, str] = {}
    for number in np.unique(rows.part[others]).tolist():
        part = run.index.parts[number]
        place = run.index.place[part.start : part.start + part.rows]
        wanted = np.isin(place, rows.at[others[rows.part[others] == number]])
        ids = run.store.read_table("examples", part.name, columns=["id"]).column(0).filter(pa.array(wanted))
        texts |= proposals.refused(name, part.name, ids.to_pylist())
    return _changes(run, rows, others, decision, texts)[:REFUSED]


def _changes(
    run: FinishedRun, rows: _Rows, chosen: NDArray[np.int64], decision: NDArray[np.object_], news: dict[str, str]
) -> list[Change]:
    """Return changes from what the rows say to ``news``, id → text; in the order chosen, those that have news."""
    index = run.index
    out: dict[int, Change] = {}
    for number in np.unique(rows.part[chosen]).tolist():
        part = index.parts[number]
        mine = chosen[rows.part[chosen] == number]
        at = index.pool[rows.at[mine]] - part.start
        held = run.store.read_table("examples", part.name, columns=["id", "messages"]).take(pa.array(at)).to_pylist()
        for i, example in zip(mine.tolist(), held, strict=True):
            line = line_of(example["id"], example["messages"])
            new = news.get(example["id"])
            if line is None or new is None or new == line.answer:
                continue
            sure = float(rows.confidence[i])
            out[i] = Change(
                id=line.id,
                decision=str(decision[rows.at[i]]),
                rule=rows.rules[rows.rule[i]],
                confidence=None if np.isnan(sure) else sure,
                question=line.question or "",
                old=line.answer,
                new=new,
            )
    return [out[i] for i in chosen.tolist() if i in out]


def new_answers(run: FinishedRun, rows: NDArray[np.int64]) -> dict[int, str]:
    """Return reading-order number → the answer that stands in the result, of those rows that a correction changed."""
    out: dict[int, str] = {}
    places = directories(run.store)
    for part in run.index.parts if places else ():
        mine = rows[np.searchsorted(rows, part.start) : np.searchsorted(rows, part.start + part.rows)]
        if not mine.size:
            continue
        ledger = run.store.read_table("decisions", part.name, columns=["id", "decision"])
        news: dict[str, str] = {}
        for directory in places.values():  # a later one overrules an earlier one
            if run.store.exists(*directory.split("/"), part.name):
                news |= corrected.new_answers(run.store, directory, part.name)
        for row, line in zip(mine.tolist(), ledger.take(pa.array(mine - part.start)).to_pylist(), strict=True):
            if line["decision"] == "corrected":
                out[row] = news[line["id"]]
    return out
