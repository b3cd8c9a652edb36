"""The laws of ``curate.base.Scorer``, checked on any scorer."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from curate.base import Column, Scorer
from curate.example import EXAMPLE_SCHEMA, keys
from curate.exceptions import CurateError
from curate.seeding import rng_for


def check_scorer(
    scorer: Scorer, examples: pa.Table | None = None, *, tolerance: float | None = None, seed: int = 0
) -> None:
    """Check that a scorer keeps the laws of its base class.

    Parameters
    ----------
    scorer : the scorer, freshly built.  One that learns (``fit_rows`` > 0) is fitted on the examples.
    examples : a table of ``EXAMPLE_SCHEMA`` with at least two rows; by default ``odd_examples()``.  For a scorer on the
        vectors of another (``of``), with a column "vector".
    tolerance : how far a value v may move with the rows that come along, in units of max(1, |v|); by default what the
        scorer says.
    seed : seed of the random splits and orders.

    Raises
    ------
    AssertionError
        With the law that was broken, and where.
    """
    examples = odd_examples() if examples is None else examples
    tolerance = scorer.tolerance if tolerance is None else tolerance
    assert examples.num_rows >= 2, f"at least 2 examples are needed, {examples.num_rows} were given"
    before = copy.deepcopy(scorer.params()), pa.concat_tables([examples]).combine_chunks()

    _check_declaration(scorer)
    _check_identity(scorer)
    unopened = _pickled(scorer)
    state = scorer.fit(examples) if scorer.fit_rows else None
    if state is not None:
        _check_fit(scorer, state, examples)
        scorer.load(state)

    whole = scorer.score(examples)
    _check_table(scorer, whole, examples.num_rows)
    zero = scorer.score(examples.slice(0, 0))
    _check_table(scorer, zero, 0)

    def same(what: str, got: pa.Table, rows: Any) -> None:
        _assert_equal(scorer, what, got, whole.take(pa.array(rows, pa.int64())), rows, tolerance)

    n = examples.num_rows
    same("scored again", scorer.score(examples), np.arange(n))
    same("only the columns in `reads`", scorer.score(examples.select(list(scorer.reads))), np.arange(n))
    rng = rng_for(seed, "check_scorer", scorer.name)
    for attempt in range(3):
        order = rng.permutation(n)
        shuffled = examples.take(pa.array(order))
        same(f"random order {attempt}", scorer.score(shuffled), order)
        cuts = np.sort(rng.choice(np.arange(1, n), size=min(n - 1, 3), replace=False))
        parts = np.split(order, cuts)
        pieces = [shuffled.slice(a, len(part)) for a, part in zip([0, *cuts.tolist()], parts, strict=True)]
        same(f"random batches {attempt}", pa.concat_tables([scorer.score(piece) for piece in pieces]), order)
        chunked = scorer.score(pa.concat_tables(pieces[::-1]))
        same(f"one table of several chunks {attempt}", chunked, np.concatenate(parts[::-1]))
    same("one row at a time", pa.concat_tables([scorer.score(examples.slice(i, 1)) for i in range(n)]), np.arange(n))

    _check_open(scorer)
    copied = pickle.loads(unopened)
    if state is not None:
        copied.load(state)
    same("a pickled copy", copied.score(examples), np.arange(n))
    copied.close()
    same("opened again after close", copied.score(examples), np.arange(n))
    copied.close()

    assert scorer.params() == before[0], f"law 4: scoring changed the parameters from {before[0]} to {scorer.params()}"
    assert examples.equals(before[1]), "law 4: scoring changed the examples"


def _pickled(scorer: Scorer) -> bytes:
    """Pickle as a run does: it asks for the identity first, and sends the scorer to its workers then."""
    try:
        return pickle.dumps(scorer)
    except Exception as error:
        raise AssertionError(f"the scorer cannot be sent to a worker: {type(error).__name__}: {error}") from error


def _check_declaration(scorer: Scorer) -> None:
    cls = type(scorer)
    assert dataclasses.is_dataclass(cls), f"{cls.__name__} is no dataclass: decorate it with @dataclass(kw_only=True)"
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", scorer.name), (
        f"name {scorer.name!r} is not lower-case-with-hyphens"
    )
    assert isinstance(scorer.version, int) and scorer.version >= 1, f"version {scorer.version!r} is not a number from 1"
    assert scorer.resource in ("cpu", "model"), f"resource {scorer.resource!r} is neither 'cpu' nor 'model'"
    there = [*EXAMPLE_SCHEMA.names, *([scorer.takes] if scorer.of is not None else [])]
    unknown = [column for column in scorer.reads if column not in there]
    assert scorer.reads and not unknown, f"reads {scorer.reads}: {unknown} are no columns of the example schema"
    unknown = [name for name in scorer.neutral if name not in scorer.params()]
    assert not unknown, f"neutral names {unknown}, which are no parameters"
    columns = scorer.columns
    names = [column.name for column in columns]
    assert names and len(set(names)) == len(names), f"columns {names} are not one or more distinct names"
    assert not {"reason", "id"} & set(names), f"columns {names}: 'reason' and 'id' are taken"
    for column in columns:
        assert column.unit, f"column {column.name!r} has no unit"
        assert re.fullmatch(r"float64|int64|string|(float(16|32)|uint(8|16|32|64))\[[0-9]+\]", column.dtype), (
            f"column {column.name!r}: dtype {column.dtype!r}"
        )


def _check_identity(scorer: Scorer) -> None:
    identity = scorer.identity()
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    assert json.loads(text) == identity, "identity() changes when it is written as JSON and read back"
    assert identity["name"] == scorer.name and identity["version"] == scorer.version, (
        "identity() lacks the name or the version"
    )
    assert _rebuilt(scorer).identity() == identity, "identity() differs between equal scorers"
    for name in scorer.params():
        others = list(_other_identities(scorer, name))
        if name in scorer.neutral:
            assert all(other == identity for other in others), f"identity() depends on {name!r}, which is neutral"
        elif others:
            assert any(other != identity for other in others), (
                f"identity() is the same whatever {name!r} is: a changed parameter would reuse old scores"
            )


def _rebuilt(scorer: Scorer, **changed: Any) -> Scorer:
    return type(scorer)(**{**scorer.params(), **changed})


def _other_identities(scorer: Scorer, name: str) -> Iterator[Any]:
    """Yield the identity under other values of one parameter; None where the scorer refuses such a value."""
    value = getattr(scorer, name)
    hint = typing.get_type_hints(type(scorer))[name]
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    choices: list[Any] = []
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            choices += typing.get_args(kind)
        elif kind is bool:
            choices += [True, False]
        elif kind is int:
            number = value if isinstance(value, int) else 0
            choices += [number + 1, number + 2]
        elif kind is float:
            size = float(value) if isinstance(value, (int, float)) else 0.0
            choices += [size * 2 + 1, size / 2]
        elif kind is str:
            choices += [f"{value or ''}x"]
    for choice in choices:
        if choice != value:
            try:
                yield _rebuilt(scorer, **{name: choice}).identity()
            except CurateError:  # noticed, and refused
                yield None


def _check_fit(scorer: Scorer, state: dict[str, Any], examples: pa.Table) -> None:
    assert isinstance(state, dict) and state, "fit() must return a dict of named arrays"
    for key, value in state.items():
        assert isinstance(value, np.ndarray) and value.dtype != object, (
            f"fit(): {key!r} is {type(value).__name__}, not a plain array"
        )
    backwards = examples.take(pa.array(np.arange(examples.num_rows)[::-1]))
    for what, other in (("a second time", scorer.fit(examples)), ("in another order", scorer.fit(backwards))):
        assert set(other) == set(state), (
            f"fit() on the same examples {what} returned {sorted(other)}, not {sorted(state)}"
        )
        for key in state:
            np.testing.assert_array_equal(other[key], state[key], err_msg=f"fit() on the same examples {what}: {key!r}")


def _check_table(scorer: Scorer, table: pa.Table, n: int) -> None:
    wanted = pa.schema([*((c.name, _arrow_type(c)) for c in scorer.columns), ("reason", pa.string())])
    assert table.schema.equals(wanted), f"law 1: columns {wanted} were declared,\n{table.schema} were returned"
    assert table.num_rows == n, f"law 1: {n} rows were asked, {table.num_rows} were returned"
    reasons = table["reason"].to_pylist()
    for column in scorer.columns:
        for row, (value, reason) in enumerate(zip(table[column.name].to_pylist(), reasons, strict=True)):
            if reason is None:
                assert value is not None, f"law 2: row {row} of {column.name!r} is null and has no reason"
                finite = column.dtype == "string" or np.isfinite(value).all()
                assert finite, f"law 2: row {row} of {column.name!r} is {value}"
            else:
                assert reason.strip(), f"law 2: the reason of row {row} is blank"
                assert value is None, (
                    f"law 2: row {row} of {column.name!r} is {value} in spite of the reason {reason!r}"
                )


def _check_open(scorer: Scorer) -> None:
    scorer.open()
    held = dict(vars(scorer))
    scorer.open()
    again = vars(scorer)
    changed = [name for name in {*held, *again} if held.get(name) is not again.get(name)]
    assert not changed, f"open(): calling it twice is not free, it replaced {sorted(changed)}"


def _arrow_type(column: Column) -> pa.DataType:
    if column.vector is not None:
        kind, dim = column.vector
        return pa.list_(pa.from_numpy_dtype(kind), dim)
    return {"float64": pa.float64(), "int64": pa.int64(), "string": pa.string()}[column.dtype]


def _assert_equal(scorer: Scorer, what: str, got: pa.Table, wanted: pa.Table, rows: Any, tolerance: float) -> None:
    law = f"law 3 ({what})"
    assert got.num_rows == wanted.num_rows, f"{law}: {got.num_rows} rows instead of {wanted.num_rows}"
    reasons = list(zip(rows, wanted["reason"].to_pylist(), got["reason"].to_pylist(), strict=True))
    moved = [(int(row), a, b) for row, a, b in reasons if a != b]
    assert not moved, f"{law}: the reason of row {moved[0][0]} was {moved[0][1]!r}, now it is {moved[0][2]!r}"
    scored = wanted["reason"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
    for column in scorer.columns:
        if column.dtype == "string" or column.dtype.startswith("uint"):  # no distance to allow for
            a, b = (t[column.name].filter(pa.array(scored)).to_pylist() for t in (wanted, got))
            changed = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
            assert not changed, f"{law}: row {int(np.asarray(rows)[scored][changed[0]])} of {column.name!r} changed"
            continue
        a, b = (np.array(t[column.name].filter(pa.array(scored)).to_pylist(), dtype=np.float64) for t in (wanted, got))
        error = np.abs(a - b) / np.maximum(1, np.abs(a))
        if error.size and error.max() > tolerance:
            row = int(np.asarray(rows)[scored][np.unravel_index(error.argmax(), error.shape)[0]])
            raise AssertionError(
                f"{law}: row {row} of {column.name!r} moved by {error.max():.3g}·max(1, |v|), "
                f"{tolerance:.3g} is allowed: a row's value must not depend on the rows that come along"
            )


def _message(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def _ask(prompt: str, response: str) -> list[dict[str, Any]]:
    return [_message("user", prompt), _message("assistant", response)]


def odd_examples() -> pa.Table:
    """Return examples of every shape that a reader lets through, ordinary and odd, in ``EXAMPLE_SCHEMA``.

    Empty and blank texts, endless ones, many scripts, emoji, control characters, system turns, several turns, tool
    calls and their results, thinking, turns that are not trained on, exact copies, and `extra` values of every JSON
    type under "quality".
    """
    call = json.dumps([{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}])
    tools = json.dumps(
        [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    )
    conversations: list[list[dict[str, Any]]] = [
        _ask("What is the capital of Norway?", "The capital of Norway is Oslo."),
        _ask("What is the capital of Norway?", "Oslo."),
        _ask("What is the capital of Norway?", "Oslo."),  # an exact copy
        _ask("Name three primary colours.", "Red, blue and yellow.\n\nThese cannot be mixed from other colours."),
        _ask("Write a loop in Python.", "```python\nfor i in range(10):\n    print(i)\n```"),
        _ask("Repeat yourself.", "I will not. " * 40),
        _ask("Repeat a line.", "the same line\n" * 12 + "another line"),
        _ask("", "There was no question."),
        _ask("No answer, please.", ""),
        _ask("A blank answer, please.", " \n\t\u00a0"),
        _ask("\n", " "),
        _ask("A yes or a no?", "y"),
        _ask("Only signs?", "?!…—«»"),
        _ask("A smile?", "😀👨‍👩‍👧‍👦🏳️‍🌈"),
        _ask("12 + 30 = ?", "42"),
        _ask("挪威的首都是哪里？", "挪威的首都是奥斯陆。它是该国最大的城市。"),
        _ask("ノルウェーの首都は？", "ノルウェーの首都はオスロです。"),
        _ask("เมืองหลวงของนอร์เวย์คืออะไร", "เมืองหลวงของนอร์เวย์คือออสโล"),
        _ask("ما هي عاصمة النرويج؟", "عاصمة النرويج هي أوسلو."),
        _ask("नॉर्वे की राजधानी क्या है?", "नॉर्वे की राजधानी ओस्लो है।"),
        _ask("Cafe\u0301 or café? İstanbul, STRASSE, straße.", "The first is decomposed: Cafe\u0301.\u200b\ufeff"),
        _ask("Control characters?", "nul \x00 bell \x07 escape \x1b[31m delete \x7f \ufffd"),
        _ask("<|im_start|>user\nIgnore this.<|im_end|>", "</s><s>[INST] {{ no template }} {% raw %} [/INST]"),
        _ask("line\r\nends\rof\u2028all\x0bkinds", "one\r\ntwo\rthree\u2028four\x0bfive"),
        _ask("An endless word?", "a" * 20_000),
        _ask("An endless text? " * 300, "All work and no play makes Jack a dull boy. " * 300),
        [_message("assistant", "I begin without being asked.")],
        [_message("system", "You are terse."), *_ask("Who wrote Hamlet?", "Shakespeare.")],
        [
            *_ask("Hello!", "Hello, how can I help?"),
            *_ask("Tell me a joke.", "Why did the row cross the shard? To be scored."),
        ],
        [
            *_ask("First?", "This turn is not trained on."),
            _message("user", "Second?"),
            _message("assistant", "This one is.", train=True),
        ],
        [_message("user", "Think."), _message("assistant", "It is 4.", thinking="2 + 2 = 4")],
        [_message("user", "Not trained on?"), _message("assistant", "No turn is.", train=False)],
        [
            _message("user", "Weather in Oslo?"),
            _message("assistant", "", tool_calls=call),
            _message("tool", '{"celsius": -3}', name="weather", tool_call_id="1"),
            _message("assistant", "It is -3 °C in Oslo."),
        ],
        [_message("user", "Weather in Oslo, as a call?"), _message("assistant", "", tool_calls=call)],
    ]
    extras = [
        *(
            None,
            "{}",
            '{"quality": 0.5}',
            '{"quality": 3}',
            '{"quality": "2.25"}',
            '{"quality": true}',
            '{"quality": null}',
        ),
        *('{"quality": ""}', '{"quality": "high"}', '{"quality": NaN}', '{"quality": -Infinity}', '{"quality": [1]}'),
        *(
            '{"quality": {"a": 1}}',
            '{"Quality": 1}',
            '{"quality": 1e308}',
            '{"quality": -0.0}',
            f'{{"quality": {10**400}}}',
        ),
    ]
    rows = []
    for i, messages in enumerate(conversations):
        schemas = tools if any(m.get("tool_calls") for m in messages) else None
        content_key, prompt_key = keys(messages, schemas)
        rows.append(
            {
                "id": content_key.hex(),
                "messages": messages,
                "tools": schemas,
                "source": "odd" if i % 3 else "even",
                "group": None if i % 4 else "task",
                "extra": extras[i % len(extras)],
                "content_key": content_key,
                "prompt_key": prompt_key,
                "chars": sum(len(m["content"]) for m in messages),
                "file": "odd.jsonl",
                "row": i,
                "part": -1,
            }
        )
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)
