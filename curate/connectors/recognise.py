"""What the columns of a source mean: recognised from many rows of every file, or declared in the recipe.

A reading is a schema and the columns that play its roles.  A file whose columns allow exactly one reading is clear;
none or several stop the run at once, with the columns found and the line to add to the recipe.  All files of a source
must have the same reading: files of two schemas belong in two entries of ``sources``.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from curate import registry
from curate.connectors.formats import Broken, Slice, UnreadableError, records_of
from curate.connectors.normalise import ROLE_WORDS, RejectedError, kind, parsed
from curate.connectors.recognised import Mapping_, Recognised
from curate.connectors.source import Source
from curate.exceptions import SchemaError, SourceError

SAMPLE_ROWS = 200

TURNS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction")
RESPONSES = ("response", "completion", "output")
MANY = ("responses", "candidates", "completions", "outputs", "generations")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
SCORES = ("scores", "rewards", "ratings", "generators", "models")
SOURCES = ("source",)
GROUPS = ("group", "category", "task")
_NUMBERED = re.compile(r"(response|answer|output|completion|candidate)[ _-]?(\d+|[a-z])\Z")

# Only for the line that an error proposes.
_LIKE_PROMPT = (
    "prompt",
    "instruction",
    "question",
    "query",
    "user_query",
    "problem",
    "input",
    "context",
    "text",
    "src",
)
_LIKE_RESPONSE = (
    "response",
    "answer",
    "output",
    "completion",
    "chatgpt_response",
    "solution",
    "target",
    "code",
    "summary",
    "sample",
    "label",
)

Reading = tuple[str, Mapping_]
"""(schema, role → column)."""


@dataclass
class _File:
    """The first rows of one file."""

    url: str
    rows: int = 0
    records: int = 0
    first_error: str | None = None
    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, value: Any) -> None:
        self.records += 1
        if not isinstance(value, Mapping):
            self.first_error = self.first_error or (
                str(value) if isinstance(value, Broken) else f"{kind(value)}, where an object was asked"
            )
            return
        self.rows += bool(value)
        for name, cell in value.items():
            self.seen[name] += 1
            if cell is not None:
                self.values.setdefault(name, []).append(cell)

    @property
    def columns(self) -> list[str]:
        return list(self.seen)

    def usual(self) -> list[str]:
        """Columns that at least half of the rows have."""
        return [c for c, n in self.seen.items() if 2 * n >= self.rows]

    def named(self, names: tuple[str, ...]) -> list[str]:
        """Usual columns of one of these names, in any case."""
        return [c for c in self.usual() if str(c).strip().lower() in names]

    def any_of(self, names: tuple[str, ...]) -> list[str]:
        """Columns of one of these names, however rare, in the order of the names."""
        return [c for n in names for c in self.columns if str(c).strip().lower() == n]

    def filled(self, column: Any, *kinds: type) -> bool:
        return bool(self.values.get(column)) and self.mostly(column, *kinds)

    def mostly(self, column: str, *kinds: type) -> bool:
        values = self.values.get(column, [])
        return not values or 2 * sum(isinstance(v, kinds) for v in values) >= len(values)

    def show(self) -> str:
        """Return the columns and what they hold, for an error."""
        shown = (c if len(c) <= 60 else c[:57] + "…" for c in map(str, self.columns[:24]))
        text = ", ".join(f"{s!r} ({_kinds(self.values.get(c, []))})" for s, c in zip(shown, self.columns, strict=False))
        return text + (f" and {len(self.columns) - 24} more" if len(self.columns) > 24 else "")


def recognise(
    slices: list[Slice], source: Source, *, unanswered: bool = False, sample: int = SAMPLE_ROWS
) -> Recognised:
    """Return what the rows of one source mean, from the first ``sample`` rows of each of its files.

    Parameters
    ----------
    slices : the slices of this source, as ``discover`` returns them.
    unanswered : take prompts without answers too; such rows are no examples to train on.

    Raises
    ------
    SchemaError
        If the columns are unknown or ambiguous, a declared column is missing, or files differ in schema.
    SourceError
        If a file cannot be read, or holds no row at all that could be told apart.
    """
    files = list(_samples(slices, source, sample))
    full = [f for f in files if f.rows]
    if not full:
        dead = next((f for f in files if f.records), None)
        if dead is not None:
            raise SourceError(
                f"{dead.url}: none of the first {dead.records} records is a row with named fields; the first: "
                f"{dead.first_error}. Check that the file is what its name says, or say what it is, for example: "
                f"format: csv"
            )
        return Recognised("nothing", {}, name=source.name, files={f.url: 0 for f in files}, unanswered=unanswered)
    _check_declared(full, source)
    readings = [_reading(f, source, unanswered) for f in full]
    _check_same(full, readings)
    schema, columns = readings[0]
    for _, others in readings[1:]:
        columns = columns | others
    taken = {c for column in columns.values() for c in ([column] if isinstance(column, str) else column)}
    seen = list(dict.fromkeys(c for f in full for c in f.columns))
    chosen_source = source.source
    if chosen_source is None and source.name is None:
        chosen_source = _label_column(full, SOURCES, taken)
    group = source.group if source.group is not None else _label_column(full, GROUPS, taken | {chosen_source or ""})
    used = taken | {source.id, chosen_source if source.name is None else None, group}
    notes = []
    own = next((c for c in seen if str(c).lower() == "id" and c not in used), None)
    if source.id is None and own is not None:
        notes.append(f"a column {own!r} is there: add `id: {own}` to name rows by it")
    return Recognised(
        schema,
        columns,
        id=source.id,
        source=chosen_source if source.name is None else None,
        group=group,
        name=source.name,
        extra=tuple(c for c in seen if c not in used),
        files={f.url: f.rows for f in files},
        notes=tuple(notes),
        unanswered=unanswered,
    )


def _samples(slices: list[Slice], source: Source, sample: int) -> Iterator[_File]:
    done: set[str] = set()
    for piece in slices:
        if piece.url in done:
            continue
        done.add(piece.url)
        file = _File(piece.url)
        records = records_of(piece, source)
        try:
            for batch in records:
                for _, value in batch[: sample - file.records]:
                    file.add(value)
                if file.records >= sample:
                    break
        except UnreadableError as error:
            if not file.records and source.broken == "stop":
                raise damaged(piece, error) from error
        finally:
            records.close()  # type: ignore[attr-defined]
        yield file


def damaged(piece: Slice, error: UnreadableError) -> SourceError:
    """Return the stop for a file whose rest cannot be read."""
    return SourceError(
        f"{piece.url}: row {error.row}: {error.detail}. What follows cannot be told apart into rows. Repair the file, "
        f"or add `broken: keep` to this source, to keep the rows before it and list the rest as one rejected row."
    )


# -- one file ----------------------------------------------------------------------------------------------------------


def _reading(file: _File, source: Source, unanswered: bool) -> Reading:
    """Return the schema and the columns of one file."""
    declared = source.mapping
    found = _readings(file, declared, unanswered)
    wanted = source.schema
    if wanted != "auto":
        exact = [r for r in found if r[0] == wanted]
        found = exact or [(wanted, columns) for schema, columns in found if {schema, wanted} in _ALIKE]
    if len(found) == 1:
        return found[0]
    if found:
        shown = "; or ".join(f"{schema} ({', '.join(map(str, _flat(columns)))})" for schema, columns in found)
        lines = "\n".join(
            f"    schema: {schema}" if len({s for s, _ in found}) == len(found) else f"    columns: {_spell(columns)}"
            for schema, columns in found
        )
        raise SchemaError(
            f"{file.url}: the columns can be read in {len(found)} ways: {shown}.\nColumns found: {file.show()}.\n"
            f"Say in the recipe which one is meant; add one of these lines to the source:\n{lines}"
        )
    asked = "no schema fits these columns" if wanted == "auto" else f"the columns are not those of schema {wanted!r}"
    prompts = _picked(declared, "prompt", file.named(PROMPTS))
    if prompts and not _is_headless(file):
        asked += f" (a prompt is there, {prompts[0]!r}, and no response to it)"
    raise SchemaError(f"{file.url}: {asked}.\nColumns found: {file.show()}.\n{_advice(file, declared)}")


_ALIKE = ({"messages", "sharegpt"}, {"alpaca", "prompt-completion"})


def _readings(file: _File, declared: Mapping_, unanswered: bool) -> list[Reading]:
    """Return every way in which the columns can be read."""
    contexts = _contexts(file, declared)
    answers = _answers(file, declared)
    optional: Mapping_ = {}
    for role, names in (("system", SYSTEMS), ("tools", ("tools",)), ("history", ("history",))):
        found = _picked(declared, role, file.any_of(names))
        if found:
            optional[role] = found[0]
    scores = [c for c in _picked(declared, "scores", file.any_of(SCORES)) if file.mostly(c, list)]

    out: list[Reading] = []
    for column in _turn_columns(file, declared):
        if _ends_with_answer(file, column) or not answers:
            out.append(("sharegpt" if _is_sharegpt(file, column) else "messages", {"messages": column}))
        else:
            contexts = [{"messages": column}]  # turns that lack an answer are what the answer belongs to
    for context in contexts:
        for role, answer in answers:
            reading = context | {role: answer}
            if role == "responses" and scores:
                reading["scores"] = scores[0]
            out.append((_schema_of(reading, optional), reading))
    if not contexts:  # pairs that hold their own prompt
        out += [("preference", {role: c}) for role, c in answers if role == "chosen" and file.filled(c, list)]
    if unanswered and not out:
        out = [(_schema_of(context, optional), context) for context in contexts]
    history = optional.pop("history", None)
    for _, columns in out:
        columns |= optional
        if history is not None and "prompt" in columns:
            columns["history"] = history
    return out


def _contexts(file: _File, declared: Mapping_) -> list[Mapping_]:
    """Return the columns that can be what a response answers: a prompt, with or without an input."""
    if "messages" in declared and "prompt" not in declared:
        return []
    out: list[Mapping_] = []
    for prompt in _picked(declared, "prompt", file.named(PROMPTS)):
        if not file.mostly(prompt, str, list):
            continue
        takes_input = "input" in declared or prompt.strip().lower() == "instruction"
        inputs = [c for c in _picked(declared, "input", file.any_of(INPUTS)) if c != prompt] if takes_input else []
        out += [{"prompt": prompt, "input": c} for c in inputs] or [{"prompt": prompt}]
    return out


def _answers(file: _File, declared: Mapping_) -> list[tuple[str, str | list[str]]]:
    """Return (role, column) of all that can be an answer; only what the recipe declares to be one, if it does."""
    found: list[tuple[str, str | list[str]]] = []
    found += [(role, declared[role]) for role in ("response", "responses", "chosen") if role in declared]
    if found:
        return found
    found += [("response", c) for c in file.named(RESPONSES) if _is_response(file, c)]
    lists = [c for c in file.named(MANY) if file.mostly(c, list)]
    found += [("responses", c) for c in lists or _numbered(file)]
    if file.named(("rejected",)):
        found += [("chosen", c) for c in file.named(("chosen",))]
    return found


def _turn_columns(file: _File, declared: Mapping_) -> list[str]:
    if "messages" in declared:
        return [str(declared["messages"])]
    return [] if "prompt" in declared else [c for c in file.named(TURNS) if _is_turns(file, c)]


def _schema_of(reading: Mapping_, optional: Mapping_) -> str:
    if "chosen" in reading:
        return "preference"
    if "responses" in reading:
        return "candidates"
    like_alpaca = str(reading.get("prompt", "")).strip().lower() == "instruction"
    return "alpaca" if like_alpaca or "input" in reading or "history" in optional else "prompt-completion"


def _picked(declared: Mapping_, role: str, found: list[Any]) -> list[Any]:
    return [declared[role]] if role in declared else found


def _numbered(file: _File) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for column in file.usual():
        match = _NUMBERED.match(str(column).strip().lower())
        if match and file.mostly(column, str):
            groups.setdefault(match[1], []).append(column)
    return [sorted(g) for g in groups.values() if len(g) > 1]


def _is_response(file: _File, column: str) -> bool:
    """Whether a column mostly holds what a response can be: text, one turn, or turns."""
    values = file.values.get(column, [])
    like = sum(isinstance(v, str | Mapping) or (isinstance(v, list) and bool(v) and _turn_like(v[0])) for v in values)
    return 2 * like >= len(values)


def _lists(file: _File, column: str) -> list[list[Any]]:
    out = []
    for value in file.values.get(column, []):
        try:
            value = parsed(value, column)
        except RejectedError:
            continue
        if isinstance(value, list) and value:
            out.append(value)
    return out


def _turn_like(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def _is_turns(file: _File, column: str) -> bool:
    lists = _lists(file, column)
    like = sum(_turn_like(v[0]) or isinstance(v[0], str) for v in lists)
    return 2 * like >= max(1, len(file.values.get(column, [])))


def _is_sharegpt(file: _File, column: str) -> bool:
    lists = _lists(file, column)
    return bool(lists) and 2 * sum(
        isinstance(v[0], str) or "from" in v[0] for v in lists if isinstance(v[0], str | Mapping)
    ) >= len(lists)


def _ends_with_answer(file: _File, column: str) -> bool:
    """Whether most conversations of a column of turns end with an assistant turn."""
    lists = _lists(file, column)
    answers = 0
    for turns in lists:
        last = turns[-1]
        if isinstance(last, Mapping):
            word = last.get("role") or last.get("from")
            answers += isinstance(word, str) and ROLE_WORDS.get(word.strip().lower()) == "assistant"
        else:
            answers += len(turns) % 2 == 0
    return 2 * answers >= len(lists)


def _label_column(files: list[_File], names: tuple[str, ...], taken: set[str]) -> str | None:
    """Return the first of these columns that holds text in every file that has it, and is there in one at least."""
    for name in names:
        column = next((c for f in files for c in f.columns if str(c).strip().lower() == name), None)
        if column is None or column in taken:
            continue
        values = [v for f in files for v in f.values.get(column, [])]
        if values and all(isinstance(v, str) for v in values):
            return column
    return None


# -- several files, declared columns, errors ---------------------------------------------------------------------------


def _check_declared(files: list[_File], source: Source) -> None:
    said = [
        (f"columns: {role}", c) for role, cs in source.mapping.items() for c in ([cs] if isinstance(cs, str) else cs)
    ]
    said += [
        (key, c) for key, c in (("id", source.id), ("source", source.source), ("group", source.group)) if c is not None
    ]
    required = (
        "columns: messages",
        "columns: prompt",
        "columns: response",
        "columns: responses",
        "columns: chosen",
        "id",
    )
    for key, column in said:
        lacking = [f for f in files if column not in f.seen]
        if lacking and (key in required or len(lacking) == len(files)):
            at = lacking[0]
            near = registry.nearest(column, [str(c) for c in at.columns]) or "."
            raise SchemaError(
                f"{at.url}: {key} names the column {column!r}, which the file lacks{near} Columns found: {at.show()}."
            )


def _check_same(files: list[_File], readings: list[Reading]) -> None:
    def required(reading: Reading) -> tuple[Any, ...]:
        schema, columns = reading
        main = ("messages", "prompt", "response", "responses", "chosen")
        return schema, *(str(columns.get(role)) for role in main)

    sides: dict[tuple[Any, ...], list[_File]] = {}
    for file, reading in zip(files, readings, strict=True):
        sides.setdefault(required(reading), []).append(file)
    if len(sides) == 1:
        return
    lines = []
    for side, members in sides.items():
        shown = ", ".join(f.url for f in members[:4]) + (f" and {len(members) - 4} more" if len(members) > 4 else "")
        lines.append(f"    {side[0]} ({', '.join(c for c in side[1:] if c != 'None')}): {shown}")
    raise SchemaError(
        f"the {len(files)} files of one source are of {len(sides)} schemas:\n" + "\n".join(lines) + "\n"
        "Give each schema an entry of its own under sources:, with a path that matches only its files."
    )


def _kinds(values: list[Any]) -> str:
    if not values:
        return "empty"
    common = collections.Counter(kind(v).removeprefix("a ").removeprefix("an ") for v in values).most_common(2)
    return " or ".join(word for word, _ in common)


def _flat(columns: Mapping_) -> list[str]:
    return [c for column in columns.values() for c in ([column] if isinstance(column, str) else column)]


def _spell(columns: Mapping_) -> str:
    def word(value: str) -> str:
        plain = re.fullmatch(r"[A-Za-z_][\w-]*", value) and value.lower() not in (
            "yes",
            "no",
            "true",
            "false",
            "null",
            "on",
            "off",
            "y",
            "n",
        )
        return value if plain else "'" + value.replace("'", "''") + "'"

    return (
        "{"
        + ", ".join(
            f"{role}: {'[' + ', '.join(map(word, c)) + ']' if isinstance(c, list) else word(c)}"
            for role, c in columns.items()
        )
        + "}"
    )


def _guess(file: _File, declared: Mapping_) -> str:
    """Return the mapping that an error proposes: what the names suggest, or the first two columns of text."""
    texts = [c for c in file.columns if _all_text(file.values.get(c, []))]
    by_name = {str(c).strip().lower(): c for c in texts}
    prompt = declared.get("prompt") or next((by_name[n] for n in _LIKE_PROMPT if n in by_name), None)
    response = declared.get("response") or next(
        (by_name[n] for n in _LIKE_RESPONSE if n in by_name and by_name[n] != prompt), None
    )
    rest = [
        c for c in texts if c not in (prompt, response) and str(c).lower() not in ("id", "source", "category", "task")
    ]
    prompt = prompt or (rest.pop(0) if rest else "PROMPT_COLUMN")
    if response is None and str(prompt).lower() in PROMPTS:  # prompts without answers: no other column is one
        rest = []
    return _spell({"prompt": prompt, "response": response or (rest[0] if rest else "RESPONSE_COLUMN")})


def _all_text(values: list[Any]) -> bool:
    return all(isinstance(v, str) for v in values) and any(v.strip() for v in values)


def _is_headless(file: _File) -> bool:
    """Whether the first line of a table looks like a row: a name longer than names are."""
    return any(len(str(c)) > 60 for c in file.columns)


def _advice(file: _File, declared: Mapping_) -> str:
    """Return what to add to the recipe."""
    if _is_headless(file):
        names = ["prompt", "response", *(f"column_{i}" for i in range(2, len(file.columns)))][: len(file.columns)]
        said = "The first line looks like a row. If the file has no header line, name its columns:"
        return f"{said}\n    header: [{', '.join(names)}]"
    if len(file.columns) == 1 and (mark := re.search(r"[;|\t]", str(file.columns[0]))):
        said = "The header is one cell. If another character stands between the cells, say it:"
        return f"{said}\n    delimiter: {json.dumps(mark[0])}"
    lists = [c for c, values in file.values.items() if all(isinstance(v, list) for v in values)]
    if file.rows == 1 and lists and len(lists) == len(file.columns):
        said = "The file is one JSON object. If its rows are the elements of one of these lists, say which:"
        return f"{said}\n    records: {lists[0]}"
    line = f"    columns: {_guess(file, declared)}"
    return f"Say in the recipe which column is which; for example, add this line to the source:\n{line}"
