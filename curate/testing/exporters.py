"""The laws of ``curate.exporters.base.Exporter``, checked on any format."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.connectors.normalise import RejectedError, check
from curate.example import EXAMPLE_SCHEMA
from curate.exporters.base import Exporter, Facts, Looked
from curate.exporters.calls import comparable
from curate.seeding import rng_for
from curate.testing.scorers import odd_examples


def check_exporter(exporter: Exporter, examples: pa.Table | None = None, *, seed: int = 0) -> None:
    """Check that a format keeps the laws of its base class.

    Parameters
    ----------
    exporter : the format.
    examples : a table of ``EXAMPLE_SCHEMA`` with at least two rows; by default ``odd_examples()``.
    seed : seed of the random splits.

    Raises
    ------
    AssertionError
        With the law that was broken, and where.
    """
    examples = odd_examples() if examples is None else examples
    assert examples.num_rows >= 2, f"at least 2 examples are needed, {examples.num_rows} were given"
    before = copy.deepcopy(exporter.params()), pa.concat_tables([examples]).combine_chunks()
    _check_declaration(exporter)

    looked = exporter.look(examples)
    held = _check_refused(looked, examples.num_rows)
    facts = Facts(looked.has, int(held.sum()))
    whole = exporter.convert(examples, facts)
    assert whole.table.num_rows == held.sum(), (
        f"law 1: {int(held.sum())} rows are not refused, {whole.table.num_rows} came out"
    )
    assert whole.table.schema.equals(exporter.schema(facts)), f"law 3: the table has the columns {whole.table.schema}"
    _check_batches(exporter, examples, facts, whole.table, looked, seed)
    _check_projection(exporter, examples)
    copied = pickle.loads(pickle.dumps(exporter))
    assert copied.convert(examples, facts).table.equals(whole.table), "a pickled copy gives other rows"
    for file in exporter.formats:
        _check_inverse(exporter, examples, held, file)

    assert exporter.params() == before[0], f"law 3: the parameters changed from {before[0]} to {exporter.params()}"
    assert examples.equals(before[1]), "law 3: converting changed the examples"


def _check_declaration(exporter: Exporter) -> None:
    cls = type(exporter)
    assert dataclasses.is_dataclass(cls), f"{cls.__name__} is no dataclass: decorate it with @dataclass(kw_only=True)"
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", exporter.name), (
        f"name {exporter.name!r} is not lower-case-with-hyphens"
    )
    fields = EXAMPLE_SCHEMA.field("messages").type.value_type.names
    known = {*EXAMPLE_SCHEMA.names, *(f"messages.{f}" for f in fields)}
    unknown = [c for c in (*exporter.reads, *exporter.looks) if c not in known]
    assert not unknown, f"reads and looks name {unknown}, which are no columns of the example schema"
    unknown = [f for f in exporter.formats if f not in ("parquet", "jsonl", "jsonl.gz", "jsonl.zst")]
    assert exporter.formats and not unknown, f"formats {exporter.formats}: {unknown} are no kinds of file"


def _check_refused(looked: Looked, n: int) -> np.ndarray:
    """Return (n,) True for the rows that are not refused."""
    refused = looked.refused
    rows = refused.rows
    assert len(refused.reason) == len(refused.detail) == rows.size, "law 1: a reason and a detail for each refused row"
    assert (np.diff(rows) > 0).all() and (rows >= 0).all() and (rows < n).all(), (
        f"law 1: refused rows are ascending numbers below {n}, each once; found {rows.tolist()}"
    )
    blank = [int(r) for r, word in zip(rows, refused.reason, strict=True) if not word.strip()]
    assert not blank, f"law 1: rows {blank} are refused without a reason"
    held = np.ones(n, dtype=bool)
    held[rows] = False
    return held


def _check_batches(
    exporter: Exporter, examples: pa.Table, facts: Facts, whole: pa.Table, looked: Looked, seed: int
) -> None:
    n = examples.num_rows
    told = zip(looked.refused.reason, looked.refused.detail, strict=True)
    refusals = dict(zip(looked.refused.rows.tolist(), told, strict=True))
    rng = rng_for(seed, "check_exporter", exporter.name)
    splits = [np.sort(rng.choice(np.arange(1, n), size=min(n - 1, 3), replace=False)) for _ in range(3)]
    for cuts in [*splits, np.arange(1, n)]:
        edges = [0, *cuts.tolist(), n]
        parts = [examples.slice(a, b - a) for a, b in itertools.pairwise(edges)]
        made = [exporter.convert(part, facts) for part in parts]
        together = pa.concat_tables([m.table for m in made])
        assert together.equals(whole), f"law 2: cut at {cuts.tolist()}, the rows differ from those of one batch"
        found = {
            start + int(row): (word, detail)
            for start, m in zip(edges, made, strict=False)
            for row, word, detail in zip(m.refused.rows, m.refused.reason, m.refused.detail, strict=True)
        }
        assert found == refusals, f"law 2: cut at {cuts.tolist()}, other rows are refused, or for other reasons"


def _check_projection(exporter: Exporter, examples: pa.Table) -> None:
    """A look at the columns in ``looks`` says what a look at all of them says, of rows that a reader lets through."""
    examples = examples.filter(pa.array([_readable(m) for m in examples.column("messages").to_pylist()]))
    fields = [c.partition(".")[2] for c in exporter.looks if c.startswith("messages.")]
    names = list(dict.fromkeys(c.partition(".")[0] for c in exporter.looks))
    less = examples.select(names)
    if fields:
        rows = [[{f: turn[f] for f in fields} for turn in row] for row in examples.column("messages").to_pylist()]
        kind = EXAMPLE_SCHEMA.field("messages").type.value_type
        schema = pa.list_(pa.struct([kind.field(f) for f in kind.names if f in fields]))
        less = less.set_column(names.index("messages"), "messages", pa.array(rows, schema))
    a, b = exporter.look(examples), exporter.look(less)
    assert a.has == b.has, f"looks: with all columns {sorted(a.has)} occur, with these {sorted(b.has)}"
    assert a.refused.rows.tolist() == b.refused.rows.tolist(), "looks: with these columns, other rows are refused"


def _readable(messages: list[dict[str, Any]]) -> bool:
    try:
        check([{k: v for k, v in m.items() if v is not None} for m in messages], math.inf)
    except RejectedError:
        return False
    return True


def _check_inverse(exporter: Exporter, examples: pa.Table, held: np.ndarray, file: str) -> None:
    """What is written is read by curate's own reader as the same conversations."""
    import curate

    wanted = examples.filter(pa.array(held))
    if not wanted.num_rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        made = curate.export(examples, exporter, Path(folder) / "out", file=file, shard_rows=max(1, held.sum() // 2))
        assert made.rows == wanted.num_rows and made.refused == (~held).sum(), (
            f"law 1 ({file}): {held.sum()} rows held and {(~held).sum()} refused; the export says {made.text}"
        )
        pool = curate.read(str(Path(folder) / "out" / "data"))
        rejected = pool.rejected().to_pylist()
        assert not rejected, f"law 4 ({file}): curate's reader rejects a row: {rejected[0]}"
        got = pool.examples()
    assert got.num_rows == wanted.num_rows, f"law 4 ({file}): {wanted.num_rows} rows were written, {got.num_rows} read"
    for i, (a, b) in enumerate(zip(wanted.to_pylist(), got.to_pylist(), strict=True)):
        left, right = (_said(row, exporter) for row in (a, b))
        assert left == right, f"law 4 ({file}): row {i} was\n{left}\nand is read as\n{right}"


def _said(row: dict[str, Any], exporter: Exporter) -> Any:
    messages, tools = comparable(row["messages"], row["tools"])
    if getattr(exporter, "turns", "all") == "last":  # the marks that say so are not the row's own
        messages = [{k: v for k, v in turn.items() if k != "train"} for turn in messages]
    return messages, tools
