"""The laws of ``curate.correction.Corrector``, checked on any instance."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from curate import registry
from curate.correction import Corrections, Corrector, answered
from curate.exceptions import InputError
from curate.seeding import rng_for

Evidence = Mapping[str, pa.Table | None]

_MISSING = "made up: nothing was found"


def check_corrector(corrector: Corrector, examples: pa.Table, evidence: Evidence, *, seed: int = 0) -> None:
    """Check that a corrector keeps the laws of its base class.

    Parameters
    ----------
    corrector : the corrector, freshly built.
    examples : a table with "id" and "messages", two rows or more; ``odd_examples()`` will do.
    evidence : role → what its stage found of these rows, with "reason"; as varied as it can be.
    seed : of the random splits and orders.

    Raises
    ------
    AssertionError
        With the law that was broken, and where.
    """
    n = examples.num_rows
    assert n >= 2, f"at least 2 examples are needed, {n} were given"
    before = (
        copy.deepcopy(corrector.params()),
        _copied(examples),
        {k: _copied(v) for k, v in evidence.items() if v is not None},
    )
    _declaration(corrector)

    whole = corrector.correct(examples, evidence)
    _law_1(whole, examples)
    _law_1(corrector.correct(examples.slice(0, 0), _of(evidence, [])), examples.slice(0, 0))

    def same(what: str, got: list[Corrections], rows: Any) -> None:
        _equal(what, [one for part in got for one in _rows(part)], [_rows(whole)[int(i)] for i in rows], rows)

    same("law 2, asked again", [corrector.correct(examples, evidence)], range(n))
    rng = rng_for(seed, "check_corrector", corrector.name)
    for attempt in range(3):
        order = rng.permutation(n)
        same(f"law 2, random order {attempt}", [_some(corrector, examples, evidence, order)], order)
        parts = np.array_split(order, 3)
        same(f"law 2, random batches {attempt}", [_some(corrector, examples, evidence, p) for p in parts], order)
    same("law 2, one row at a time", [_some(corrector, examples, evidence, [i]) for i in range(n)], range(n))

    _law_3(corrector, whole, examples, evidence)
    _law_4(corrector, examples, evidence)
    _refusals(corrector, examples, evidence)

    same("a new object", [type(corrector)(**corrector.params()).correct(examples, evidence)], range(n))
    same("a pickled copy", [pickle.loads(pickle.dumps(corrector)).correct(examples, evidence)], range(n))
    assert corrector.params() == before[0], f"law 5: the parameters {before[0]} are now {corrector.params()}"
    assert examples.equals(before[1]), "law 5: correcting changed the examples"
    changed = [name for name, table in before[2].items() if not table.equals(evidence[name])]
    assert not changed, f"law 5: correcting changed the evidence {changed}"


def _declaration(corrector: Corrector) -> None:
    cls = type(corrector)
    assert dataclasses.is_dataclass(cls), f"{cls.__name__} is no dataclass: decorate it with @dataclass(kw_only=True)"
    name = corrector.name
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name), f"name {name!r} is not lower-case-with-hyphens"
    json.dumps(corrector.identity())  # goes into the fingerprint
    for key, role in cls.roles.items():
        assert key.isidentifier() and key not in corrector.params(), f"role {key!r}: no word, or a parameter too"
        assert key not in ("id", "messages", "answer"), f"role {key!r} is what every row has"
        assert role.scorer in registry.names("scorers"), f"role {key!r}: no scorer is called {role.scorer!r}"
        assert role.of is None or role.of in cls.roles, f"role {key!r} is of {role.of!r}, which is no role"
    bound = corrector.threshold
    assert bound is None or 0 <= bound <= 1, f"threshold {bound} is no confidence"


def _law_1(found: Corrections, examples: pa.Table) -> None:
    n = examples.num_rows
    sizes = {f.name: len(getattr(found, f.name)) for f in dataclasses.fields(found)}
    assert set(sizes.values()) == {n}, f"law 1: {n} rows, and {sizes}"
    assert found.confidence.dtype == np.float64, f"law 1: confidence is {found.confidence.dtype}"
    for i, (action, answer, confidence, rule) in enumerate(_rows(found)):
        where = f"law 1, row {i}"
        assert action in (None, "replace", "keep", "drop"), f"{where}: action {action!r}"
        assert (answer is not None) == (action == "replace"), f"{where}: {action!r}, and the answer {answer!r}"
        assert confidence is None or 0 <= confidence <= 1, f"{where}: confidence {confidence}"
        assert isinstance(rule, str) and rule.strip() and "\n" not in rule, f"{where}: the rule {rule!r}"
        if answer is not None:
            assert answer.strip(), f"{where}: a blank answer"
            assert answer != _answer(examples["messages"][i].as_py()), f"{where}: replaced by what it says already"


def _law_3(corrector: Corrector, first: Corrections, examples: pa.Table, evidence: Evidence) -> None:
    messages = examples["messages"].to_pylist()
    mended = [m if a is None else answered(m, a) for m, a in zip(messages, first.answer, strict=True)]
    at = examples.column_names.index("messages")
    again = examples.set_column(at, "messages", pa.array(mended, examples.schema.field("messages").type))
    second = corrector.correct(again, evidence)
    flips = [i for i, action in enumerate(second.action) if action == "replace"]
    shown = [(first.answer[i], second.answer[i]) for i in flips[:3]]
    assert not flips, f"law 3: a second pass replaces rows {flips[:10]}: {shown}"


def _law_4(corrector: Corrector, examples: pa.Table, evidence: Evidence) -> None:
    given = [name for name in evidence if evidence[name] is not None]
    if not given:
        return
    empty = {name: None if name not in given else _nulled(evidence[name]) for name in evidence}
    found = corrector.correct(examples, empty)
    for i, (action, _, confidence, rule) in enumerate(_rows(found)):
        where = f"law 4, row {i} without any evidence"
        assert action is None and confidence is None, f"{where}: {action!r} with confidence {confidence}"
        if _plain(examples["messages"][i].as_py()):
            assert _MISSING in rule, f"{where}: its rule is {rule!r}, which does not say {_MISSING!r}"
    for name in given:  # part of it is as good as the corrector finds; it may not stumble
        _law_1(corrector.correct(examples, {**evidence, name: _nulled(evidence[name])}), examples)
    for name in set(given) - set(corrector.needed(given)):
        rest = {key: table for key, table in evidence.items() if key != name and corrector.roles[key].of != name}
        _law_1(corrector.correct(examples, rest), examples)


def _refusals(corrector: Corrector, examples: pa.Table, evidence: Evidence) -> None:
    def refuses(what: str, changed: Evidence) -> None:
        try:
            corrector.correct(examples, changed)
        except InputError:
            return
        raise AssertionError(f"{what}: InputError was expected, nothing was raised.")

    for name in corrector.needed(evidence):
        table = evidence[name]
        assert table is not None, f"evidence for {name!r} is needed"
        refuses(f"no evidence for {name!r}", {**evidence, name: None})
        refuses(f"{name!r} one row short", {**evidence, name: table.slice(1)})
        refuses(f"{name!r} without reasons", {**evidence, name: table.drop_columns(["reason"])})
        for column in corrector.roles[name].columns:
            refuses(f"{name!r} without {column!r}", {**evidence, name: table.drop_columns([column])})


def _rows(found: Corrections) -> list[tuple[Any, ...]]:
    """Return what was found of each row, NaN as None."""
    numbers = [None if np.isnan(value) else value for value in found.confidence.tolist()]
    return list(zip(found.action, found.answer, numbers, found.rule, strict=True))


def _equal(what: str, got: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]], rows: Any) -> None:
    assert len(got) == len(wanted), f"{what}: {len(got)} rows of {len(wanted)}"
    for row, a, b in zip(rows, got, wanted, strict=True):
        assert a == b, f"{what}: row {row} was {b}, and is {a}"


def _some(corrector: Corrector, examples: pa.Table, evidence: Evidence, rows: Any) -> Corrections:
    return corrector.correct(examples.take(pa.array(rows, pa.int64())), _of(evidence, rows))


def _of(evidence: Evidence, rows: Any) -> dict[str, pa.Table | None]:
    at = pa.array(rows, pa.int64())
    return {name: None if table is None else table.take(at) for name, table in evidence.items()}


def _nulled(table: pa.Table | None) -> pa.Table:
    assert table is not None
    n = table.num_rows
    columns = {field.name: pa.nulls(n, field.type) for field in table.schema}
    return pa.table({**columns, "reason": pa.array([_MISSING] * n, pa.string())})


def _copied(table: pa.Table) -> pa.Table:
    return pa.Table.from_pylist(table.to_pylist(), table.schema)


def _answer(messages: list[dict[str, Any]]) -> str | None:
    return next((m["content"] for m in reversed(messages) if m["role"] == "assistant"), None)


def _plain(messages: list[dict[str, Any]]) -> bool:
    last = next((m for m in reversed(messages) if m["role"] == "assistant"), None)
    return last is not None and not last.get("tool_calls")
