"""One row, as a file has it → conversations, or the reason why it is none.

Content is never changed: white space stays, and emptiness is judged without it.  What is accepted is what every common
trainer and chat template takes: an optional system turn; then user and assistant turns in alternation, where tool turns
may follow an assistant turn and lead to the next one; an assistant turn at the end.  A row that differs is rejected
with a word of ``REASONS`` and with what was found, never repaired by leaving something out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from curate.connectors.formats import printable

if TYPE_CHECKING:
    from curate.connectors.recognised import Recognised
    from curate.connectors.source import Source

REASONS: dict[str, str] = {
    "bad-tool-call": "a tool call is no JSON object with a name",
    "bad-tools": "the tools column is no JSON list of objects",
    "empty-prompt": "a user turn holds nothing but white space, or there is no prompt",
    "empty-response": "an assistant turn holds nothing but white space, and calls no tool",
    "invalid-csv": "cells and quotes do not follow RFC 4180",
    "invalid-escape": "a JSON string holds a backslash escape that does not exist",
    "invalid-json": "the record, or a list spelt in a text column, is no valid JSON",
    "invalid-utf8": "a text holds bytes that are no UTF-8, or half of a surrogate pair",
    "mixed-training": "parts of one turn are marked partly to be trained on and partly not",
    "no-id": "the id column is empty",
    "no-messages": "the column of turns holds no list",
    "no-response": "the conversation does not end with an assistant turn, or none of them may be trained on",
    "not-text-part": "a turn holds an image, audio or another part that is no text, or a column called images does",
    "role-order": "turns are not in the order system, user, assistant (tool, assistant), user, …",
    "too-long": "more characters than max_chars, or a line of more than 64 MiB",
    "too-many-columns": "a CSV record has more cells than the header",
    "unknown-role": "a turn's role is none of those known",
    "unreadable": "the connector of a third party could not read the record",
    "unreadable-rest": "from here on the file is damaged, and was left out on request (broken: keep)",
    "wrong-type": "a field holds something else than what was asked",
}
"""Every reason that a rejected row can have."""

ROLE_WORDS: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_CALL_WORDS = ("function_call", "tool_call")
_TRAIN_WORDS = ("train", "weight", "loss_weight", "loss")
_THINKING_WORDS = ("thinking", "reasoning_content", "reasoning")
MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
"""A row with something in one of these cannot be trained on as text alone."""
_MEDIA = frozenset(MEDIA_COLUMNS)
_NAMES_OF_PARTS = ("text", "value", "content")

Messages = list[dict[str, Any]]


class RejectedError(Exception):
    """A row, or one response of it, that is no example."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Normaliser:
    """Turns the rows of one source into conversations.

    ``drop_nulls`` says that nested objects come from Arrow, which fills the keys that an object lacks with nulls: these
    are taken out of tools and tool calls again, so that Parquet and JSON give the same example.

    Where answers are not asked for (``Recognised.unanswered``), a conversation may also end with the user's turn, user
    turns may follow one another, and a blank answer at the end counts as none.
    """

    def __init__(self, source: Source, recognised: Recognised, *, drop_nulls: bool = False) -> None:
        self.max_chars = math.inf if source.max_chars is None else source.max_chars
        self.drop_nulls = drop_nulls
        columns = recognised.columns
        self.columns = columns
        self.many = "responses" in columns
        self.answered = "response" in columns or "chosen" in columns
        self.unanswered = recognised.unanswered

    def parts(self, row: Mapping[str, Any]) -> list[tuple[int, Any]]:
        """Return (part, response) for each response of a row; (-1, None) for a row that holds one.

        Raises
        ------
        RejectedError
            If the row as a whole is no example.
        """
        if not _MEDIA.isdisjoint(row):
            for column in MEDIA_COLUMNS:
                if row.get(column):
                    raise RejectedError("not-text-part", f"column {column!r} is not empty")
        if not self.many:
            return [(-1, None)]
        responses = self._responses(row)
        return list(enumerate(responses)) if len(responses) > 1 else [(-1, responses[0])]

    def conversation(self, row: Mapping[str, Any], response: Any = None) -> tuple[Messages, str | None]:
        """Return (messages, tools) of a row, with one of the responses that ``parts`` gave.

        Raises
        ------
        RejectedError
        """
        return self._with(row, response) if self.many else self._one(row)

    def _one(self, row: Mapping[str, Any]) -> tuple[Messages, str | None]:
        if "chosen" in self.columns:
            return self._preferred(row)
        if self.answered:
            return self._with(row, row.get(self._column("response")))
        if "messages" not in self.columns:  # prompts, and no answers to them
            return self._finish(self._context(row), row)
        turns = self.turns(row.get(self._column("messages")), self._column("messages"))
        return self._finish(self._system(row, turns) + turns, row)

    def _preferred(self, row: Mapping[str, Any]) -> tuple[Messages, str | None]:
        chosen = row.get(self._column("chosen"))
        if isinstance(chosen, list) and chosen and _word_of(chosen[0]) in ("user", "system"):  # the whole conversation
            turns = self.turns(chosen, self._column("chosen"))
            return self._finish(self._system(row, turns) + turns, row)
        return self._with(row, chosen)

    def _with(self, row: Mapping[str, Any], response: Any) -> tuple[Messages, str | None]:
        """Return the row's context followed by one response."""
        turns = self._context(row)
        if response is None:
            if self.unanswered:
                return self._finish(turns, row)
            raise RejectedError("no-response", "the response is missing")
        if isinstance(response, str):
            turns.append({"role": "assistant", "content": response})
        elif isinstance(response, list | Mapping):
            turns += self.turns(response if isinstance(response, list) else [response], "response")
        else:
            raise RejectedError("wrong-type", f"response: text or turns were asked, {kind(response)} was found")
        return self._finish(turns, row)

    def _responses(self, row: Mapping[str, Any]) -> list[Any]:
        column = self.columns["responses"]
        if isinstance(column, list):
            return [row.get(c) for c in column]
        value = parsed(row.get(column), column)
        if value is None or value == []:
            if self.unanswered:
                return [None]
            raise RejectedError("no-response", f"{column}: no response")
        if not isinstance(value, list):
            raise RejectedError("wrong-type", f"{column}: a list of responses was asked, {kind(value)} was found")
        # {"response": ..., "score": ...} and the like: the text of each
        return [_text_of_candidate(v) for v in value]

    def _column(self, role: str) -> str:
        return self.columns[role]  # type: ignore[return-value]

    def _text(self, row: Mapping[str, Any], role: str) -> str | None:
        column = self.columns.get(role)
        value = row.get(column) if isinstance(column, str) else None
        if value is not None and not isinstance(value, str):
            raise RejectedError("wrong-type", f"{column}: text was asked, {kind(value)} was found")
        return value

    def _system(self, row: Mapping[str, Any], turns: Messages) -> Messages:
        text = self._text(row, "system")
        if text is None or not text.strip():
            return []
        if turns and turns[0]["role"] == "system":
            if turns[0]["content"] == text:
                return []
            raise RejectedError("role-order", f"a system turn, and another text in column {self.columns['system']!r}")
        return [{"role": "system", "content": text}]

    def _context(self, row: Mapping[str, Any]) -> Messages:
        turns: Messages = []
        if "history" in self.columns:
            column = self._column("history")
            pairs = parsed(row.get(column), column)
            if not isinstance(pairs, list | None):
                raise RejectedError("wrong-type", f"{column}: a list of pairs was asked, {kind(pairs)} was found")
            for pair in pairs or []:
                if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
                    raise RejectedError("wrong-type", f"{column}: pairs of texts were asked, {kind(pair)} was found")
                turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        if "messages" in self.columns:
            turns += self.turns(row.get(self._column("messages")), self._column("messages"))
        elif "prompt" in self.columns:
            column = self._column("prompt")
            prompt, more = row.get(column), self._text(row, "input")
            if isinstance(prompt, list):
                turns += self.turns(prompt, column)
                if more and more.strip():
                    raise RejectedError("wrong-type", f"{column}: turns, and text in {self.columns['input']!r} besides")
            elif prompt is None or isinstance(prompt, str):
                texts = [t for t in (prompt, more) if t is not None and t.strip()]
                if not texts:
                    raise RejectedError(
                        "empty-prompt", f"{column}: {'missing' if prompt is None else 'nothing but white space'}"
                    )
                turns.append({"role": "user", "content": "\n\n".join(texts)})
            else:
                raise RejectedError("wrong-type", f"{column}: text was asked, {kind(prompt)} was found")
        return self._system(row, turns) + turns

    # -- turns ---------------------------------------------------------------------------------------------------------

    def turns(self, value: Any, column: str) -> Messages:
        """Return a list of turns of any known spelling as messages."""
        value = parsed(value, column)
        if not isinstance(value, list):
            raise RejectedError("no-messages", f"{column}: a list of turns was asked, {kind(value)} was found")
        turns: Messages = []
        calls_only = False  # whether the last turn is a function_call turn: a second one joins it
        for i, item in enumerate(value):
            if isinstance(item, str):
                turns.append({"role": ("user", "assistant")[i % 2], "content": item})
                calls_only = False
                continue
            if not isinstance(item, Mapping):
                raise RejectedError("wrong-type", f"{column}: turn {i}: an object was asked, {kind(item)} was found")
            turn, is_call = self._turn(item, i)
            if is_call and calls_only:
                turns[-1]["tool_calls"] = _dump(json.loads(turns[-1]["tool_calls"]) + json.loads(turn["tool_calls"]))
            else:
                turns.append(turn)
            calls_only = is_call
        return turns

    def _turn(self, item: Mapping[str, Any], i: int) -> tuple[dict[str, Any], bool]:
        word = item.get("role")
        if word is None:
            word = item.get("from")
        role = ROLE_WORDS.get(word) if isinstance(word, str) else None
        if role is None:
            role = ROLE_WORDS.get(word.strip().lower()) if isinstance(word, str) else None
            if role is None:
                found = (
                    repr(word)[:60] if word is not None else f"none among {', '.join(map(str, item))[:80] or 'no keys'}"
                )
                raise RejectedError("unknown-role", f"turn {i}: role {printable(found)}")
        content = item.get("content")
        if content is None:
            content = item.get("value")
            if content is None:
                content = item.get("text")
        if len(item) == 2 and isinstance(content, str) and word not in _CALL_WORDS:  # nothing else to look at
            return {"role": role, "content": content}, False
        turn: dict[str, Any] = {"role": role}
        calls: list[Any] = []
        train = _train_of(item, i)
        if isinstance(word, str) and word.strip().lower() in _CALL_WORDS:
            turn["content"] = ""
            turn["tool_calls"] = _dump(_calls(content, i))
            is_call = True
        else:
            is_call = False
            if isinstance(content, list):
                content, thinking, calls, flags = _parts(content, i)
                if thinking is not None:
                    turn["thinking"] = thinking
                if len(flags) > 1:
                    raise RejectedError("mixed-training", f"turn {i}: some parts are to be trained on, some are not")
                train = flags.pop() if flags else train
            elif content is not None and not isinstance(content, str):
                raise RejectedError("wrong-type", f"turn {i}: text was asked, {kind(content)} was found")
            given = self._tool_calls(item, i)
            if given is not None:
                turn["tool_calls"] = given
            elif calls:
                turn["tool_calls"] = _dump(calls)
            turn["content"] = content or ""
            if turn.get("tool_calls") and role != "assistant":
                raise RejectedError("bad-tool-call", f"turn {i}: a {role} turn calls tools")
        for field in ("name", "tool_call_id"):
            value = item.get(field)
            if value is not None:
                if not isinstance(value, str):
                    raise RejectedError("wrong-type", f"turn {i}: {field}: text was asked, {kind(value)} was found")
                turn[field] = value
        for field in _THINKING_WORDS:
            value = item.get(field)
            if value is not None and "thinking" not in turn:
                if not isinstance(value, str):
                    raise RejectedError("wrong-type", f"turn {i}: {field}: text was asked, {kind(value)} was found")
                turn["thinking"] = value
        if train is not None and train != (role == "assistant"):  # what the role says anyway is not written down
            turn["train"] = train
        return turn, is_call

    def _tool_calls(self, item: Mapping[str, Any], i: int) -> str | None:
        value = item.get("tool_calls")
        if value is None or value == [] or value == "":
            value = item.get("function_call")
            if value is None:
                return None
            value = [value]
        if isinstance(value, str):
            try:
                calls = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise RejectedError("bad-tool-call", f"turn {i}: tool_calls: {error}") from None
            if isinstance(calls, list):
                if calls:
                    _check_calls(calls, i)
                return value if calls else None
            value = calls
        if self.drop_nulls:
            value = _without_nulls(value)
        return _dump(_check_calls(value if isinstance(value, list) else [value], i))

    # -- the whole conversation ----------------------------------------------------------------------------------------

    def _finish(self, turns: Messages, row: Mapping[str, Any]) -> tuple[Messages, str | None]:
        if self.unanswered and turns and turns[-1]["role"] == "assistant" and _says_nothing(turns[-1]):
            turns = turns[:-1]
        check(turns, self.max_chars, unanswered=self.unanswered)
        tools = None
        column = self.columns.get("tools")
        if isinstance(column, str) and row.get(column) is not None:
            tools = self._tools(row[column], column)
        return turns, tools

    def _tools(self, value: Any, column: str) -> str | None:
        spelt = None
        if isinstance(value, str):
            if not value.strip():
                return None
            try:
                spelt, value = value, json.loads(value)
            except (ValueError, RecursionError) as error:
                raise RejectedError("bad-tools", f"{column}: {error}") from None
        if value is None or value == []:
            return None
        if isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
            if spelt is not None:
                return _valid(spelt, column)
        elif isinstance(value, Mapping):
            value = [value]
        elif isinstance(value, list) and all(isinstance(v, str) for v in value):
            try:
                value = [json.loads(v) for v in value]
            except (ValueError, RecursionError) as error:
                raise RejectedError("bad-tools", f"{column}: {error}") from None
        if not (isinstance(value, list) and all(isinstance(v, Mapping) for v in value)):
            raise RejectedError("bad-tools", f"{column}: a list of tool schemas was asked, {kind(value)} was found")
        return _valid(_dump(_without_nulls(value) if self.drop_nulls and spelt is None else value), column)


def check(turns: Messages, max_chars: float, *, unanswered: bool = False) -> None:
    """Raise ``RejectedError`` unless the turns can be trained on or, if ``unanswered``, ask something."""
    if not turns:
        raise RejectedError("no-response", "no turns")
    before = ""
    chars = 0
    trained = False
    for i, turn in enumerate(turns):
        role, content = turn["role"], turn["content"]
        if role == "user":
            if before == "tool" or (before == "user" and not unanswered):
                raise RejectedError("role-order", f"turn {i}: user after {before}")
            if not content or content.isspace():
                raise RejectedError("empty-prompt", f"turn {i}: user: nothing but white space")
        elif role == "assistant":
            if before not in ("user", "tool"):
                raise RejectedError("role-order", f"turn {i}: assistant {'after ' + before if before else 'first'}")
            if _says_nothing(turn):
                raise RejectedError("empty-response", f"turn {i}: assistant: nothing but white space")
            trained = trained or turn.get("train") is not False
        elif role == "tool":
            if before not in ("assistant", "tool"):
                raise RejectedError("role-order", f"turn {i}: tool {'after ' + before if before else 'first'}")
        elif before:
            raise RejectedError("role-order", f"turn {i}: system after {before}")
        before = role
        chars += len(content)
        _check_text(content, i, "content")
        if len(turn) > 2:
            for field in ("name", "tool_calls", "tool_call_id", "thinking"):
                if turn.get(field):
                    _check_text(turn[field], i, field)
    if before != "assistant" and not (unanswered and before in ("user", "tool")):
        raise RejectedError("no-response", f"the last turn is {before}")
    if not trained and not unanswered:
        raise RejectedError("no-response", "no assistant turn may be trained on")
    if chars > max_chars:
        raise RejectedError("too-long", f"{chars:,} characters; max_chars is {max_chars:,}")


def _says_nothing(turn: Mapping[str, Any]) -> bool:
    return (not turn["content"] or turn["content"].isspace()) and not turn.get("tool_calls")


def kind(value: Any) -> str:
    """Return what a value is, in the words of JSON."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    return f"a {type(value).__name__}"


def _check_text(text: str, i: int, field: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half of a surrogate pair (U+{code:04X})"
        raise RejectedError("invalid-utf8", f"turn {i}: {field}: {what} at character {error.start}") from None


def _valid(text: str, column: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RejectedError("invalid-utf8", f"{column}: no UTF-8 at character {error.start}") from None
    return text


def parsed(value: Any, column: str) -> Any:
    """Return a list that a text column (of CSV, say) spells as JSON; anything else as it is."""
    if isinstance(value, str):
        if not value.strip():
            return None
        if value.lstrip()[:1] == "[":
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise RejectedError("invalid-json", f"{column}: {error}") from None
    return value


def _word_of(turn: Any) -> str | None:
    if isinstance(turn, str):
        return "user"
    if not isinstance(turn, Mapping):
        return None
    word = turn.get("role") if turn.get("role") is not None else turn.get("from")
    return ROLE_WORDS.get(word.strip().lower()) if isinstance(word, str) else None


def _text_of_candidate(value: Any) -> Any:
    """Return the text of ``{"response": text, "score": 3}``; anything else as it is."""
    if isinstance(value, Mapping) and _word_of(value) is None:
        for key in ("response", "text", "completion", "output", "content", "answer"):
            if isinstance(value.get(key), str):
                return value[key]
    return value


def _train_of(item: Mapping[str, Any], i: int) -> bool | None:
    for word in _TRAIN_WORDS:
        value = item.get(word)
        if value is not None:
            if not isinstance(value, bool | int | float):
                raise RejectedError(
                    "wrong-type", f"turn {i}: {word}: true, false or a number was asked, {kind(value)} was found"
                )
            return value > 0
    return None


def _parts(parts: list[Any], i: int) -> tuple[str, str | None, list[Any], set[bool]]:
    """Return (text, thinking, tool calls, training marks) of typed parts; texts are joined with nothing between."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    flags: set[bool] = set()
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RejectedError("wrong-type", f"turn {i}: a part: an object was asked, {kind(part)} was found")
        word = part.get("type", "text")
        value = next(
            (part[k] for k in (word, *_NAMES_OF_PARTS) if isinstance(k, str) and part.get(k) is not None), None
        )
        if word in ("tool_call", "function_call"):
            calls += _calls(value, i)
            continue
        if word not in ("text", "input_text", "output_text", "thinking", "reasoning"):
            raise RejectedError("not-text-part", f"turn {i}: a part of type {printable(repr(word)[:60])}")
        if not isinstance(value, str):
            raise RejectedError("wrong-type", f"turn {i}: a part: text was asked, {kind(value)} was found")
        (thoughts if word in ("thinking", "reasoning") else texts).append(value)
        flag = _train_of(part, i)
        if flag is not None:
            flags.add(flag)
    return "".join(texts), "".join(thoughts) if thoughts else None, calls, flags


def _calls(value: Any, i: int) -> list[Any]:
    """Return the calls of a function_call turn (an object or a list, or JSON text of one) in the OpenAI form."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RejectedError("bad-tool-call", f"turn {i}: {error}") from None
    found = value if isinstance(value, list) else [value]
    _check_calls(found, i)
    return [call if "function" in call else {"type": "function", "function": call} for call in found]


def _check_calls(calls: list[Any], i: int) -> list[Any]:
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else call
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            what = f"{kind(function)}{'' if not isinstance(function, Mapping) else ' without a name'}"
            raise RejectedError("bad-tool-call", f"turn {i}: an object with a name was asked, {what} was found")
    if not calls:
        raise RejectedError("bad-tool-call", f"turn {i}: no call")
    return calls


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=plain)


def plain(value: Any) -> Any:
    """Return a value that JSON has no form for (bytes, a date, a decimal) as text."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.hex()
    return str(value)


_encode = json.JSONEncoder(ensure_ascii=False, default=plain, allow_nan=False).encode


def extra_of(row: Mapping[str, Any], used: frozenset[str], part: int, scores: str | None) -> str | None:
    """Return the columns that no role uses as a JSON object; None if all are empty.

    Numbers that JSON lacks (NaN, infinity) become null.  ``scores`` is a column of one value a response: part k keeps
    the k-th.
    """
    left = {k: v for k, v in row.items() if v is not None and k not in used}
    if scores is not None and row.get(scores) is not None:
        value = row[scores]
        one = part >= 0 and isinstance(value, list) and part < len(value)
        left[scores] = value[part] if one else value
    if not left:
        return None
    try:
        text = _encode(left)
    except (ValueError, TypeError, RecursionError):
        text = json.dumps(_plain_json(left, 0), ensure_ascii=False)
    return text if text.isascii() else _ascii_if_needed(text, left)


def _ascii_if_needed(text: str, value: Any) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(_plain_json(value, 0))  # escapes keep half a surrogate pair
    return text


def _plain_json(value: Any, depth: int) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if depth > 100:
        return "…"
    if isinstance(value, Mapping):
        return {str(k): _plain_json(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(v, depth + 1) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else plain(value)
