"""Rows and evidence, written as short as can be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from curate.correction import Corrections, Corrector
from curate.example import EXAMPLE_SCHEMA
from curate.seeding import rng_for
from tests.conftest import conversation

MESSAGES = EXAMPLE_SCHEMA.field("messages").type


def examples_of(*answers: str | list[dict[str, Any]]) -> pa.Table:
    """Return a row for each answer, to one question; or for each conversation."""
    told = [conversation("What is it?", a) if isinstance(a, str) else a for a in answers]
    ids = [f"row-{i}" for i in range(len(answers))]
    return pa.table([ids, told], schema=pa.schema([EXAMPLE_SCHEMA.field("id"), EXAMPLE_SCHEMA.field("messages")]))


def stored(*texts: str, finished: bool = True) -> str:
    return json.dumps([{"text": text, "finished": finished} for text in texts], ensure_ascii=False)


def evidence_of(*rows: Any, **types: pa.DataType) -> pa.Table:
    """Return what a stage found: of each row its values by column, or (a text) the reason that it has none.

    ``types`` : its columns, in order.
    """
    columns = {
        name: pa.array([None if isinstance(row, str) else row[at] for row in rows], kind)
        for at, (name, kind) in enumerate(types.items())
    }
    return pa.table({**columns, "reason": pa.array([r if isinstance(r, str) else None for r in rows], pa.string())})


def wrote(*rows: Any) -> pa.Table:
    """Return a stage that wrote: a list of texts or what stands in the column, in a tuple; else the reason."""
    told = [(stored(*row),) if isinstance(row, list) else row for row in rows]
    return evidence_of(*told, answers=pa.string())


def verdicts(*rows: Any) -> pa.Table:
    """Return a stage of verdicts: (winner, confidence), or the reason."""
    told = [row if isinstance(row, str) else (row[1], row[0]) for row in rows]
    return evidence_of(*told, confidence=pa.float64(), winner=pa.string())


def checks(*rows: Any, name: str = "equivalent") -> pa.Table:
    """Return a stage whose first column is a number: that number, or the reason."""
    return evidence_of(
        *[row if isinstance(row, str) else (row, "x") for row in rows], **{name: pa.float64(), "more": pa.string()}
    )


def shown(found: Corrections) -> list[tuple[Any, ...]]:
    """Return (action, answer, confidence, rule) of each row, NaN as None."""
    numbers = [None if value != value else value for value in found.confidence.tolist()]
    return list(zip(found.action, found.answer, numbers, found.rule, strict=True))


def told_by(corrector: Corrector, examples: pa.Table, **evidence: pa.Table | None) -> list[tuple[Any, ...]]:
    return shown(corrector.correct(examples, evidence))


def varied(corrector: Corrector, examples: pa.Table, seed: int = 0) -> Mapping[str, pa.Table]:
    """Return evidence of all kinds for every role: of rows with their own answer, others, none, cut, blank, refused."""
    messages = examples["messages"].to_pylist()
    own = [next((m["content"] for m in reversed(row) if m["role"] == "assistant"), "") for row in messages]
    out = {}
    for name, role in corrector.roles.items():
        rng = rng_for(seed, "evidence", name)
        texts = [
            "It is 42.",
            "Final answer: 42",
            "Oslo",
            "So.\nFinal answer: Oslo",
            " 7 ",
            "",
            " \n",
            "\\boxed{7}",
            "42",
        ]
        columns: dict[str, list[Any]] = {column: [] for column in (*(role.columns or ("value",)), "reason")}
        for i in range(examples.num_rows):
            refused = rng.random() < 0.1
            columns["reason"].append("a prompt that is too long" if refused else None)
            for column in columns:
                if column == "reason":
                    continue
                picked = [[*texts, own[i]][j] for j in rng.integers(0, len(texts) + 1, size=rng.integers(0, 7))]
                drawn = {
                    "answers": json.dumps([{"text": t, "finished": bool(rng.random() < 0.8)} for t in picked]),
                    "winner": ["candidate", "answer", "tie", "neither", "none"][min(4, int(rng.integers(0, 8)) // 2)],
                    "confidence": [0.0, 0.3, 0.5, 0.8, 0.81, 1.0][rng.integers(0, 6)],
                    "value": [0.0, 0.5, 0.51, 1.0][rng.integers(0, 4)],
                }[column]
                columns[column].append(None if refused else drawn)
        types = {"answers": pa.string(), "winner": pa.string(), "confidence": pa.float64(), "value": pa.float64()}
        types["reason"] = pa.string()
        out[name] = pa.table({column: pa.array(values, types[column]) for column, values in columns.items()})
    return out
