r"""Conversations as token ids, with a mask of the tokens that are in the loss.

Two templates:

* ``chat``: the tokenizer's own chat template, exactly as training would apply it.
* ``plain``: GRAPE's ``Question: {x}\nAnswer: {y}`` (Zhang et al. 2025), for base models without a chat template.
  Generalised here to any conversation: one paragraph per message, ``{system}``, ``Tools: {json}``, ``Question:
  {user}``, ``Answer: {assistant}`` and ``Tool: {result}``, one newline between them; an assistant turn is its thinking,
  its content and its tool calls (JSON), those that are there on lines of their own, followed by the end-of-sequence
  token.

What is in the loss: the text of the assistant turns and the token that ends each, minus turns with ``train=False`` and,
with ``turns="last"``, minus all turns but the last.  GRAPE leaves open whether the end token counts in |y|; trainers
put it in the loss, so it counts here.

Where the assistant's text lies comes from the template and never from a search for the text:

* A template with ``{% generation %}`` blocks says so itself.  Where its blocks stop short of the end-of-turn token
  (some do), they are extended over it.
* Otherwise by prefixes.  Let f be the template and m the conversation.  Turn i begins after f(m[:i], with generation
  prompt) and ends where f(m[:i+1]) ends, less the whitespace after the end-of-turn token.  Each must be a beginning of
  f(m).  Templates that show a turn differently once others follow (thinking dropped, or an empty one put into the last
  turn) break the second condition; such a turn ends at the first end-of-turn token after its beginning, provided that
  no text of the turn spells that token and that the next turns stand between it and the next answer.  A row where even
  that does not hold is null with that reason, rather than labelled wrongly.

A token is scored if it holds any character of such a span.  A template's own special tokens are the only ones: chat
text is encoded without adding any (no second BOS), plain text gets a BOS if the tokenizer would add one, and a row
whose text spells one ("<|im_end|>" in a question about templates) is null with that reason, unless ``special_text``
says "read": the tokenizer reads another conversation than the one that was written.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curate._imports import require
from curate.example import chat
from curate.exceptions import ModelError
from curate.models.identity import locate
from curate.models.jinja import JinjaTemplate, TemplateRefusal

Kind = Literal["auto", "chat", "plain"]
Turns = Literal["all", "last"]
SpecialText = Literal["drop", "read"]
Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One conversation as the model reads it."""

    ids: NDArray[np.int32]
    """(T,) token ids; empty where there is a reason."""
    mask: NDArray[np.bool_]
    """(T,) True where a token is in the loss."""
    reason: str | None = None
    """Why the row has no encoding."""
    header: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    """(T,) True at the tokens of what opens an assistant turn in the loss ("<|im_start|>assistant", "Answer:")."""
    bos: int = 0
    """Number of tokens at the beginning that the tokenizer puts before any text: 1 or 0."""

    def alone(self) -> EncodedRow | None:
        """Return the response without its prompt: [BOS], then each turn in the loss after its header.

        The tokens are the row's own, so that both losses of IFD are means over the same tokens.  None where nothing
        stands before a turn's first token, so that nothing would predict it.
        """
        keep = self.header | self.mask
        keep[: self.bos] = True
        ids, mask = self.ids[keep], self.mask[keep]
        return None if mask[:1].any() else EncodedRow(ids, mask)


def encoder(
    model: str, *, template: Kind = "auto", turns: Turns = "all", special_text: SpecialText = "drop"
) -> Encoder:
    """Return the encoder of a model's tokenizer.  Reads the tokenizer only, never the weights.

    Raises
    ------
    ModelError
        If the model cannot be found, has no fast tokenizer, or lacks the chat template that was asked for.
    """
    return Encoder(load_tokenizer(model), template=template, turns=turns, special_text=special_text)


def load_tokenizer(model: str) -> Any:
    """Return the model's tokenizer (``PreTrainedTokenizerFast``).

    Raises
    ------
    ModelError
    """
    transformers = require("transformers", extra="lm", for_=f"the tokenizer of {model!r}")
    source = locate(model, weights=False)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.name, **source.arguments)
    except Exception as error:  # the library raises whatever the broken file made it trip over
        raise ModelError(f"the tokenizer of {model!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer of {model!r} ({type(tokenizer).__name__}) has no fast version, and only fast ones say "
            "which characters a token holds; save a tokenizer.json beside the model."
        )
    return tokenizer


class Encoder:
    """Messages → token ids and loss mask, many rows at a time.

    Parameters
    ----------
    tokenizer : a fast Hugging Face tokenizer.
    template : "chat", "plain", or "auto": chat if the tokenizer has a template, plain otherwise.
    turns : "all" assistant turns, or the "last" one only.
    special_text : a row whose own text spells a special token: "drop" gives it a reason instead of an encoding; "read"
        reads it as the tokenizer does, as that token, which is what most trainers do.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: Kind = "auto",
        turns: Turns = "all",
        special_text: SpecialText = "drop",
    ) -> None:
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        if template == "chat" and not has_chat:
            raise ModelError(
                f"template 'chat' was asked, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "ask for 'plain' (Question:/Answer:), or save a chat_template.jinja beside it."
            )
        self.kind: Literal["chat", "plain"] = "chat" if has_chat and template != "plain" else "plain"
        """The template in use: what "auto" came to."""
        self.turns = turns
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._bos: list[int] = []
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content]
        refused = sorted(special, key=len, reverse=True) if special_text == "drop" else []
        self._special = re.compile("|".join(map(re.escape, refused)) or r"(?!)")
        # By whether the row has tools: some tokenizers have a template for each.
        self._templates: dict[bool, _Plain | _Chat]
        if self.kind == "chat":
            sources = {b: tokenizer.get_chat_template(None, [{}] if b else None) for b in (False, True)}
            variables = dict(tokenizer.special_tokens_map)
            first = _Chat(JinjaTemplate(sources[False], variables), special)
            self._header = first.header
            same = sources[True] == sources[False]
            self._templates = {
                False: first,
                True: first if same else _Chat(JinjaTemplate(sources[True], variables), special),
            }
            self.source = sources[False] if same else f"{sources[False]}\n{sources[True]}"
            """The template's text."""
        else:
            plain = _Plain(tokenizer.eos_token or "")
            self._header = "Answer: "
            self._templates = {False: plain, True: plain}
            self.source = plain.source
            ids = tokenizer("a")["input_ids"]
            if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]:
                self._bos = [tokenizer.bos_token_id]

    def identity(self) -> dict[str, str]:
        """Return the template in use and a digest of its text, as JSON."""
        return {"template": self.kind, "digest": hashlib.blake2b(self.source.encode(), digest_size=16).hexdigest()}

    def render(self, messages: Messages, tools: str | None = None) -> tuple[str, list[Span]]:
        """Return the text of a conversation and the character spans in the loss.

        Raises
        ------
        TemplateRefusal
            If the row cannot be shown or its spans cannot be told; the message is the row's reason.
        """
        assistant = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not assistant:
            raise TemplateRefusal("no assistant turn")
        counted = assistant if self.turns == "all" else assistant[-1:]
        wanted = [i for i in counted if messages[i].get("train") is not False]
        self._refuse_special(messages, tools)
        turns, schemas = _read(messages, tools)
        return self._templates[bool(schemas)].render(turns, schemas, wanted)

    def opened(self, messages: Messages, tools: str | None = None, *, direct: bool = False) -> str:
        """Return the text of a conversation up to where the model's next turn begins.

        With ``direct`` an answer follows at once, as in a finished turn, without the thinking that some generation
        prompts leave open.

        Raises
        ------
        TemplateRefusal
        """
        turns, schemas = _read(messages, tools)
        return self._templates[bool(schemas)].opened(turns, schemas, direct)

    @property
    def bos(self) -> int:
        """Number of tokens that ``tokens`` puts before a text: 1 or 0."""
        return len(self._bos)

    @property
    def end_of_turn(self) -> str:
        """What the template writes after the text of an assistant turn; "" where it cannot be told."""
        return self._templates[False].end_of_turn

    def tokens(self, texts: Sequence[str]) -> list[tuple[NDArray[np.int32], list[Span]]]:
        """Return the ids (T,) of rendered texts, BOS included, and the characters of each token but the BOS."""
        self._backend.no_truncation()
        self._backend.no_padding()
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(np.array(self._bos + e.ids, dtype=np.int32), e.offsets) for e in encodings]

    def _refuse_special(self, messages: Messages, tools: str | None) -> None:
        """Refuse a row whose own text spells a special token: the tokenizer would end or begin a turn there."""
        for i, message in enumerate(messages):
            for part in ("content", "thinking", "tool_calls"):
                if found := self._special.search(message.get(part) or ""):
                    raise TemplateRefusal(f"message {i} spells the special token {found.group()!r}")
        if found := self._special.search(tools or ""):
            raise TemplateRefusal(f"tools spell the special token {found.group()!r}")

    def encode(self, rows: Sequence[Messages], tools: Sequence[str | None] | None = None) -> list[EncodedRow]:
        """Return one ``EncodedRow`` per row, in order."""
        rendered: list[tuple[str, list[Span]] | str] = []
        for messages, row_tools in zip(rows, tools or [None] * len(rows), strict=True):
            try:
                text, spans = self.render(messages, row_tools)
                text.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
                rendered.append((text, spans))
            except TemplateRefusal as refusal:
                rendered.append(str(refusal))
            except UnicodeEncodeError:
                rendered.append("not valid Unicode: half a surrogate pair")
        # One call for all rows.  Truncation or padding that the tokenizer file sets would shift what is scored.
        self._backend.no_truncation()
        self._backend.no_padding()
        texts = [row[0] for row in rendered if not isinstance(row, str)]
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        out = []
        for row in rendered:
            if isinstance(row, str):
                out.append(EncodedRow(np.empty(0, np.int32), np.empty(0, bool), row))
                continue
            encoding = next(encodings)
            no_bos = np.zeros(len(self._bos), bool)
            mask = np.r_[no_bos, spans_to_mask(encoding.offsets, row[1])]
            mask[:1] = False  # nothing comes before the first token, so nothing predicts it
            opened = [(s - len(self._header), s) for s, _ in row[1] if row[0].endswith(self._header, 0, s)]
            header = np.r_[no_bos, spans_to_mask(encoding.offsets, opened)] & ~mask
            ids = np.array(self._bos + encoding.ids, dtype=np.int32)
            bos = len(self._bos) or int(ids[:1].tolist() == [self._tokenizer.bos_token_id])
            out.append(EncodedRow(ids, mask, None, header, bos))
        return out


def _read(messages: Messages, tools: str | None) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Return turns and tools as a template reads them.  TemplateRefusal where they are not JSON."""
    try:
        return chat(messages), (json.loads(tools) if tools else None) or None
    except ValueError as error:
        raise TemplateRefusal("tools or tool_calls are not JSON") from error


def spans_to_mask(offsets: Sequence[Span], spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Return which tokens hold a character of any span.

    Parameters
    ----------
    offsets : (start, end) characters of each token, in order; tokens of one character cut into bytes share its offsets.
    spans : (start, end) characters; an empty span holds none.

    Returns
    -------
    bool array (T,)
    """
    mask = np.zeros(len(offsets), dtype=bool)
    if not len(offsets):
        return mask
    table = np.fromiter(itertools.chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets)).reshape(-1, 2)
    ends = np.maximum.accumulate(table[:, 1])
    # Some tokenizers leave a token's leading space out of its offsets; it still begins where the one before it ended.
    starts = np.minimum(table[:, 0], np.r_[0, ends[:-1]])
    for start, end in spans:
        if start < end:
            mask[np.searchsorted(ends, start, side="right") : np.searchsorted(starts, end, side="left")] = True
    return mask


class _Plain:
    """GRAPE's plain template, for any conversation."""

    source = "plain-1"  # raised whenever the text below changes: it is part of the scores' fingerprint

    def __init__(self, eos: str) -> None:
        self._eos = eos

    @property
    def end_of_turn(self) -> str:
        return self._eos

    def opened(self, turns: Messages, tools: list[Any] | None, direct: bool) -> str:
        return self.render(turns, tools, ())[0] + "\nAnswer: "

    def render(self, turns: Messages, tools: list[Any] | None, wanted: Sequence[int]) -> tuple[str, list[Span]]:
        pieces: list[str] = [f"Tools: {json.dumps(tools, ensure_ascii=False)}\n"] if tools else []
        spans: list[Span] = []
        at = sum(map(len, pieces))
        before = {"system": "", "user": "Question: ", "assistant": "Answer: ", "tool": "Tool: "}
        for i, turn in enumerate(turns):
            head = before[turn["role"]]
            if turn["role"] == "assistant":
                calls = turn.get("tool_calls")
                parts = [turn.get("thinking"), turn["content"], calls and json.dumps(calls, ensure_ascii=False)]
                body = "\n".join(part for part in parts if part) + self._eos
                if i in wanted:
                    spans.append((at + len(head), at + len(head) + len(body)))
            else:
                body = turn["content"]
            pieces.append(f"{head}{body}\n")
            at += len(pieces[-1])
        return "".join(pieces)[:-1], spans


class _Chat:
    """A tokenizer's chat template, with what a probe of it told about its end of turn and its tool calls."""

    _PROBE = "ProbeOfTheTemplate"

    def __init__(self, template: JinjaTemplate, special: Sequence[str]) -> None:
        self._template = template
        question, answer = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": self._PROBE}
        self.header = ""  # what it writes before the content of a turn: "<|im_start|>assistant\n"
        self._tail = ""  # what it writes after the content of a last turn: "<|im_end|>\n"
        self._outside = ""  # the part of the tail that a generation block leaves out
        try:
            asked, _ = template.render([question])
            text, spans = template.render([question, answer])
            at = text.rfind(self._PROBE)
            if at >= 0:
                self.header = text[len(asked) : at] if text.startswith(asked) else ""
                self._tail = text[at + len(self._PROBE) :]
                self._outside = text[spans[-1][1] :] if spans else self._tail
        except TemplateRefusal:
            pass  # it refuses a plain question and answer: rows then tell their own reasons
        end = re.compile(r"\s*(?:" + "|".join(map(re.escape, special)) + ")") if special else None
        first = [end.match(t) if end else None for t in (self._tail, self._outside)]
        self._end_of_turn = first[0].group() if first[0] else ""
        self._missing_end = first[1].group() if first[1] else ""
        self._arguments_as_objects = self._escapes_arguments(question)

    def _escapes_arguments(self, question: Mapping[str, Any]) -> bool:
        """Whether arguments given as a JSON string come out as a string within a string: the template wants objects.

        OpenAI's format has ``arguments`` as a string.  Some templates print it as it is, others apply ``tojson``.
        """
        call = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": '{"probe": 1}'}}
        try:
            text, _ = self._template.render([question, {"role": "assistant", "content": "", "tool_calls": [call]}])
        except TemplateRefusal:
            return True  # a template that does arithmetic on a mapping
        return r"{\"probe\": 1}" in text

    @property
    def end_of_turn(self) -> str:
        return self._end_of_turn

    def opened(self, turns: Messages, tools: list[Any] | None, direct: bool) -> str:
        self._prepare(turns, tools)
        if direct and self.header:
            return self._template.render(turns, tools)[0] + self.header
        return self._template.render(turns, tools, add_generation_prompt=True)[0]

    def render(self, turns: Messages, tools: list[Any] | None, wanted: Sequence[int]) -> tuple[str, list[Span]]:
        self._prepare(turns, tools)
        text, spans = self._template.render(turns, tools)
        if self._template.marks_generation:
            return text, self._marked(text, spans, turns, wanted)
        return text, [self._between(text, turns, tools, i) for i in wanted]

    def _prepare(self, turns: Messages, tools: list[Any] | None) -> None:
        """Spell turns as this template reads them, in place.  TemplateRefusal where it has no place for all of them."""
        for turn in turns:
            if "thinking" in turn:
                turn["reasoning_content"] = turn["thinking"]  # type: ignore[index]  # the name that most templates read
            if turn.get("tool_calls"):
                # A template that ignores them would leave an empty answer, and its score would be that of nothing.
                if "tool_calls" not in self._template.source:
                    raise TemplateRefusal("the chat template does not show tool calls; use template: plain")
                if self._arguments_as_objects:
                    for call in turn["tool_calls"]:
                        _arguments_to_object(call)
        if tools and "tools" not in self._template.source:
            raise TemplateRefusal("the chat template does not show tools; use template: plain")

    def _marked(self, text: str, spans: list[Span], turns: Messages, wanted: Sequence[int]) -> list[Span]:
        """Return the wanted ones of the template's own spans, each with its end of turn."""
        assistant = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        if len(spans) == len(assistant):
            spans = [span for i, span in zip(assistant, spans, strict=True) if i in wanted]
        elif list(wanted) != assistant or not spans:
            raise TemplateRefusal(
                f"the chat template marks {len(spans)} generation blocks in {len(assistant)} assistant turns"
            )
        missing = self._missing_end
        return [(s, e + len(missing) if text.startswith(missing, e) else e) for s, e in spans]

    def _between(self, text: str, turns: Messages, tools: list[Any] | None, i: int) -> Span:
        """Return the span of turn ``i`` by the prefix method."""
        start = self._start(text, turns, tools, i)
        until = text if i == len(turns) - 1 else self._template.render(turns[: i + 1], tools)[0]
        if self._tail and until.endswith(self._tail):
            until = until.removesuffix(self._tail) + self._end_of_turn
        if text.startswith(until) and len(until) >= start:
            return start, len(until)
        # Shown differently as a last turn: its end is the end-of-turn token, if that can be nothing else.
        later = [k for k in range(i + 1, len(turns)) if turns[k]["role"] == "assistant"]
        end_of_turn = self._end_of_turn.strip()
        if later and end_of_turn and end_of_turn not in json.dumps(turns[i], ensure_ascii=False):
            end = text.find(end_of_turn, start) + len(end_of_turn)
            between = text[end : self._start(text, turns, tools, later[0])]
            if end > start and all(turn["content"].strip() in between for turn in turns[i + 1 : later[0]]):
                return start, end
        raise TemplateRefusal(f"the chat template is not prefix-stable at message {i}")

    def _start(self, text: str, turns: Messages, tools: list[Any] | None, i: int) -> int:
        """Return where the answer of turn ``i`` begins: where its generation prompt ends."""
        before, _ = self._template.render(turns[:i], tools, add_generation_prompt=True)
        if not text.startswith(before):  # some generation prompts go further than the turn does ("<think>")
            before = self._template.render(turns[:i], tools)[0] + self.header
            if not self.header or not text.startswith(before):
                raise TemplateRefusal(f"the chat template is not prefix-stable at message {i}")
        return len(before)


def _arguments_to_object(call: Any) -> None:
    """Parse the arguments of a tool call in place, where they are a JSON object spelt as a string."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            parsed = json.loads(function["arguments"])
        except ValueError:
            return
        if isinstance(parsed, dict):
            function["arguments"] = parsed
