r"""Asking a model in conversations: which of some options it would answer with, or texts.

    P(o) = exp ℓ_o / Σ_o' exp ℓ_o',     ℓ_o = log p(o | prompt),     mass = Σ_o exp ℓ_o

Probabilities are read at the place where the model's answer begins: a model that would refuse, loop or answer in prose
has a small ``mass`` there, and its preference among the options is still told.  The alternative, ``read="samples"``, is
for servers that give no log-probabilities of a prompt: answers are drawn, and each is read as an option or not at all.
Which of the two is used is asked for and never chosen here.

Options as tokens.  A tokenizer may join an option with what stands before it ("Answer: A" has the token " A").  So
prompt and option are cut where the tokens of all the options begin to differ, and both are what the tokenizer makes of
the whole text.  Where the tokens of one option begin another's ("1" and "10"), each is followed by the end of its turn.

Special tokens.  Text of a conversation that spells one ("<|im_end|>") is shown with a space in it ("< |im_end|>"), so
that no text can end its turn.  Where a template's marks are plain text that many texts may hold ("Answer:", "[/INST]"),
only the fence says where a text ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from curate.exceptions import InputError, ModelError
from curate.models import backends
from curate.models.backends import Backend
from curate.models.base import CausalLM, DType, Generation, Sampling
from curate.models.jinja import TemplateRefusal
from curate.models.loading import check, load, release
from curate.models.template import Encoder, Kind, load_tokenizer

T = TypeVar("T")
Conversation = Sequence[Mapping[str, Any]]
Ids = NDArray[np.int32]
Read = Literal["probabilities", "samples"]

_TAIL = 8
"""Tokens before an option that are tokenised with it: more than any pre-tokenizer looks back."""
_TEXTS = ("content", "thinking", "tool_calls")
"""What a turn says, by the names of its fields."""
_LETTERS = 16
"""Tokens of an answer that is to name an option."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands in the place of an answer that there is none of."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a model makes of the options of one conversation."""

    probabilities: NDArray[np.float64]
    """(m,) of each option, among the options."""
    mass: float
    """Probability of the options together, of all that an answer could have begun with; of samples the share that could
    be read."""
    tokens: int
    """Of the prompt."""


class Asker:
    """A model, its template, and how its answers are read.

    Parameters
    ----------
    model, backend, dtype, device, batch_tokens : as of ``curate.models.load``.
    template : as of ``curate.models.encoder``.
    read : how options are read: from "probabilities" of their tokens, or from "samples".
    samples : answers that are drawn for each conversation with ``read="samples"``, at temperature 1.
    seed : of these draws; each conversation has a stream of its own.
    limit : longest prompt in tokens; by default what the model's context leaves.
    lm : the model, where it is loaded already; ``model`` then names its tokenizer.

    Raises
    ------
    ModelError
        If model, tokenizer or backend cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        backend: Backend = "transformers",
        template: Kind = "auto",
        dtype: DType = "auto",
        device: str = "auto",
        batch_tokens: int | None = None,
        read: Read = "probabilities",
        samples: int = 8,
        seed: int = 0,
        limit: int | None = None,
        lm: CausalLM | None = None,
    ) -> None:
        self.read, self.samples, self.seed, self.limit = read, samples, seed, limit
        tokenizer = load_tokenizer(model)
        self._encoder = Encoder(tokenizer, template=template)
        self._texts = _Texts(self._encoder, tokenizer.added_tokens_decoder)
        self._own = lm is None
        self._lm: CausalLM | None = lm or load(
            model, dtype=dtype, device=device, batch_tokens=batch_tokens, backend=backend
        )

    @property
    def lm(self) -> CausalLM:
        """The model.  ModelError once it is closed."""
        if self._lm is None:
            raise ModelError("the asker is closed.")
        return self._lm

    def options(
        self, conversations: Sequence[Conversation], options: Sequence[str] | Sequence[Sequence[str]]
    ) -> list[Choice | Refused]:
        """Return what the model makes of the options of each conversation, in order; or why it cannot be asked.

        Parameters
        ----------
        conversations : messages, the last of which is not the model's.
        options : two or more texts, for all the conversations or for each its own.

        Raises
        ------
        InputError
            If options are fewer than two, empty, or equal as tokens.
        """
        same = all(isinstance(option, str) for option in options)
        each: list[tuple[str, ...]] = [tuple(its) for its in options]
        if same:
            each = [tuple(map(str, options))] * len(conversations)
        for its in set(each):
            if len(its) < 2 or len(set(its)) < len(its) or not all(its):
                raise InputError(f"options {list(its)}: two or more distinct texts were asked.")
        if self.read == "samples":
            return self._sampled(conversations, each)
        opened = [self._texts.opened(conversation, direct=True) for conversation in conversations]
        own = [its for text, its in zip(opened, each, strict=True) if isinstance(text, str)]
        cut = _of_able(opened, lambda texts: self._texts.cut(texts, own))
        asked = [row if isinstance(row, Refused) else self._fitting(row, row[0], max(map(len, row[1]))) for row in cut]

        def choices(rows: list[tuple[Ids, list[Ids]]]) -> list[Choice | Refused]:
            found = self.lm.option_logprobs([prompt for prompt, _ in rows], [its for _, its in rows])
            return [
                _unanswered(prompt) if logprobs is None else _choice(logprobs, prompt.size)
                for (prompt, _), logprobs in zip(rows, found, strict=True)
            ]

        return _of_able(asked, choices)

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[list[Generation] | Refused]:
        """Return ``sampling.n`` answers to each conversation, in order; or why it cannot be asked."""
        return [its if isinstance(its, Refused) else its[1] for its in self._write(conversations, sampling)]

    def answer(
        self, conversations: Sequence[tuple[Conversation, str | None]], sampling: Sampling
    ) -> list[list[Generation] | Refused]:
        """Return ``sampling.n`` answers to each conversation, with its tools (JSON), as a training would show them.

        Turns are whole messages, tool calls included.  The prompt ends where the first token of a finished answer
        begins, after an empty thinking where the template writes one; of the answers nothing else is left out.
        """
        opened = [self._texts.opened(messages, tools, direct=True) for messages, tools in conversations]
        begun = _of_able(opened, self._texts.begun)
        out: list[list[Generation] | Refused] = []
        found = self._on([its if isinstance(its, Refused) else its[0] for its in begun], sampling)
        for start, its in zip(begun, found, strict=True):
            if isinstance(its, Refused):
                out.append(its)
            else:
                out.append([replace(one, text=one.text.removeprefix(start[1])) for one in its[1]])
        return out

    def _write(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Any]:
        """Return (prompt, answers) of each conversation, or why there are none."""
        opened = [self._texts.opened(conversation, direct=False) for conversation in conversations]
        return self._on(_of_able(opened, lambda texts: [ids for ids, _ in self._texts.tokens(texts)]), sampling)

    def _on(self, prompts: Sequence[Ids | Refused], sampling: Sampling) -> list[Any]:
        """Return (prompt, answers) of each prompt, or why there are none."""
        prompts = [ids if isinstance(ids, Refused) else self._fitting(ids, ids, 1) for ids in prompts]

        def write(able: list[Ids]) -> list[tuple[Ids, list[Generation]] | Refused]:
            found = self.lm.generate(able, sampling)
            return [_unanswered(ids) if its is None else (ids, its) for ids, its in zip(able, found, strict=True)]

        return _of_able(prompts, write)

    def _sampled(self, conversations: Sequence[Conversation], each: Sequence[Sequence[str]]) -> list[Choice | Refused]:
        sampling = Sampling(max_tokens=_LETTERS, temperature=1.0, n=self.samples, seed=self.seed)
        out: list[Choice | Refused] = []
        for options, found in zip(each, self._write(conversations, sampling), strict=True):
            if isinstance(found, Refused):
                out.append(found)
                continue
            prompt, answers = found
            named = [named_option(answer.text, options) for answer in answers]
            counts = np.array([named.count(option) for option in options], dtype=np.float64)
            if counts.any():
                out.append(Choice(counts / counts.sum(), float(counts.sum()) / len(named), prompt.size))
            else:
                begun = " ".join(answers[0].text.split())[:40]
                out.append(Refused(f"none of {len(named)} sampled answers names an option; one begins {begun!r}"))
        return out

    def _fitting(self, row: T, prompt: Ids, room: int) -> T | Refused:
        """Return the row, or why its prompt is too long to be followed by ``room`` tokens."""
        size, context = prompt.size, self.lm.context
        if self.limit is not None and size > self.limit:
            return Refused(f"a prompt of {size} tokens is longer than max_tokens={self.limit}")
        if context is not None and size + room > context:
            return Refused(f"a prompt of {size} tokens leaves no room for an answer in the context of {context}")
        return row

    def describe(self) -> dict[str, str]:
        """Return what produced the answers: backend, type, device, template, and how options are read."""
        drawn = f"{self.samples} sampled answers"
        out = {"template": self._encoder.kind, "options": drawn if self.read == "samples" else "their probabilities"}
        if not self._texts.shows_system:
            out["system turn"] = "put before the first user turn"
        return {**self.lm.describe(), **out}

    def close(self) -> None:
        """Give the model back; closing twice is free."""
        if self._lm is not None and self._own:
            release(self._lm)
        self._lm = None


class _Texts:
    """Conversations as the texts and tokens that a model reads."""

    def __init__(self, coder: Encoder, added: Mapping[int, Any]) -> None:
        self._encoder = coder
        marks = [t.content for t in added.values() if t.special or re.fullmatch(r"<.+>|\[.+\]", t.content)]
        self._marks = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")
        self._special = np.array([i for i, t in added.items() if t.special], dtype=np.int64)
        self._known: dict[str, str | None] = {}
        self._tails: dict[tuple[str, tuple[str, ...]], list[Ids]] = {}
        try:
            probe = coder.opened([{"role": "system", "content": "ProbeOfTheSystem"}, {"role": "user", "content": "?"}])
            self.shows_system = "ProbeOfTheSystem" in probe
        except TemplateRefusal:
            self.shows_system = False
        """Whether the template has a place for a system turn; else it goes before the first user turn."""

    def opened(self, conversation: Conversation, tools: str | None = None, *, direct: bool) -> str | Refused:
        """Return the text up to where the answer begins."""
        turns = []
        try:
            for i, turn in enumerate(conversation):
                texts = {part: self._harmless(turn[part], f"message {i} spells") for part in _TEXTS if turn.get(part)}
                turns.append({**turn, **texts})
            tools = self._harmless(tools, "tools spell") if tools else None
            user = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), 0)
            if turns and turns[0]["role"] == "system" and user and not self.shows_system:
                turns[user]["content"] = f"{turns[0]['content']}\n\n{turns[user]['content']}"
                del turns[0]
            return self._encoder.opened(turns, tools, direct=direct)
        except TemplateRefusal as refusal:
            return Refused(str(refusal))

    def _harmless(self, text: str, who: str) -> str:
        """Return a text that no special token stands in.  TemplateRefusal where there is none."""
        try:
            text.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
        except UnicodeEncodeError:
            raise TemplateRefusal("not valid Unicode: half a surrogate pair") from None
        broken = self._without_special(text)
        if broken is None:
            raise TemplateRefusal(f"{who} a special token that a space does not break")
        return broken

    def _without_special(self, text: str) -> str | None:
        """Return the text with a space in every special token that it spells; None where that does not help."""
        if text not in self._known:
            if len(self._known) > 256:  # instructions come again and again, rows do not
                self._known.clear()
            self._known[text] = self._broken(text)
        return self._known[text]

    def _broken(self, text: str) -> str | None:
        for _ in range(100):  # breaking one may spell another
            found = self._marks.search(text)
            if found is None:
                break
            token = found.group()
            text = text.replace(token, f"{token[0]} {token[1:]}")
        ((ids, _),) = self._encoder.tokens([text])  # a normalizer may make one of other characters
        return None if np.isin(ids[self._encoder.bos :], self._special).any() else text

    def tokens(self, texts: Sequence[str]) -> list[tuple[Ids, list[tuple[int, int]]]]:
        """Return ids and characters of each token."""
        return self._encoder.tokens(texts)

    def begun(self, texts: Sequence[str]) -> list[tuple[Ids, str]]:
        """Return what stands before the first token of an answer, and how the text of an answer that begins there does.

        A tokenizer joins the space behind "Answer:" with the word after it: so does the model that writes this word.
        """
        out = []
        for text, (ids, offsets) in zip(texts, self.tokens([text + "A" for text in texts]), strict=True):
            first = next(i for i, (_, end) in enumerate(offsets) if end > len(text))
            out.append((ids[: ids.size - len(offsets) + first], text[offsets[first - 1][1] if first else 0 :]))
        return out

    def cut(self, texts: Sequence[str], options: Sequence[tuple[str, ...]]) -> list[tuple[Ids, list[Ids]]]:
        """Return prompt and options of each text as tokens."""
        firsts = self.tokens([text + its[0] for text, its in zip(texts, options, strict=True)])
        out = []
        for text, its, (ids, offsets) in zip(texts, options, firsts, strict=True):
            # What stands before an option is the same in all rows, as a rule: its tokens are looked up, if they agree.
            begin = next((i for i, (_, end) in enumerate(offsets) if end > len(text)), len(offsets) - 1)
            start = offsets[max(0, begin - _TAIL)][0]
            tail = text[start:]
            if (tail, its) not in self._tails:
                if len(self._tails) > 4096:
                    self._tails.clear()
                self._tails[tail, its] = self._ends(tail, its)
            ends = self._tails[tail, its]
            known = _common(ends)
            closing = len(ends[0]) - known
            if known < 2 or not np.array_equal(ids[ids.size - closing - 2 : ids.size], ends[0][known - 2 :]):
                ends = self._ends(text, its)
                known = _common(ends)
                ids, closing = ends[0], len(ends[0]) - known
            out.append((ids[: ids.size - closing], [end[known:] for end in ends]))
        return out

    def _ends(self, text: str, options: tuple[str, ...]) -> list[Ids]:
        """Return the tokens of a text with each option, closed by the end of turn where one begins another."""
        ends = [ids for ids, _ in self.tokens([text + option for option in options])]
        if any(len(a) <= len(b) and np.array_equal(a, b[: len(a)]) for a in ends for b in ends if a is not b):
            close = self._encoder.end_of_turn
            ends = [ids for ids, _ in self.tokens([text + option + close for option in options])]
            if not close or len({ids.tobytes() for ids in ends}) < len(ends):
                raise InputError(
                    f"options {list(options)}: some begin with all the tokens of another, and the template does not "
                    "tell how a turn ends; take options of which none begins with another (letters)."
                )
        return ends


def _common(ends: Sequence[Ids]) -> int:
    """Return how many tokens all of them begin with; at least one is left of each."""
    most = min(map(len, ends)) - 1
    differ = np.any([end[:most] != ends[0][:most] for end in ends], axis=0)
    return int(differ.argmax()) if differ.any() else most


def check_asker(model: str, backend: Backend, *, read: Read | None, caller: str) -> None:
    """Raise unless the backend is there and can give what is asked; ``read`` None where only texts are.

    Raises
    ------
    ModelError
    """
    chosen = backends.spec(backend)
    if not isinstance(chosen, backends.HTTP):
        check(model, backend, caller=caller)
        return
    if read == "probabilities":
        try:
            check(model, backend, caller=caller)
        except ModelError as error:
            if "log-probabilities of a prompt" not in str(error):
                raise
            raise ModelError(f"{error} Or let answers be sampled instead: read: samples.") from None
        return
    from curate.models.http_lm import HTTPLM

    HTTPLM(model, chosen).close()  # asks for the list of models


def named_option(text: str, options: Sequence[str]) -> str | None:
    """Return the option that an answer names in its first line; None where it names none, or anything else with it.

    "B", "(B)", "**B**", "B) because …", "Answer: B." name B; "B cells divide", "4.5" and "4 or 5" name nothing.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    for option in options:
        before = r"[^\w-]{0,4}(?i:(?:the |my )?(?:answer|choice|rating|verdict|option)(?: is)?\W{0,4})?"
        if re.match(rf"{before}{re.escape(option)}(?:[).:*_`\]]+(?!\d)|[.]?$)", line):
            return option
    return None


def _choice(logprobs: NDArray[np.float64], tokens: int) -> Choice | Refused:
    top = float(logprobs.max())
    if not np.isfinite(top):
        return Refused("not a number" if np.isnan(top) else "no option has any probability")
    weights = np.exp(logprobs - top)
    return Choice(weights / weights.sum(), min(1.0, float(np.exp(top) * weights.sum())), tokens)


def _unanswered(prompt: Ids) -> Refused:
    return Refused(
        f"the backend has no answer to a prompt of {prompt.size} tokens: out of memory, or it refuses the row"
    )


def _of_able(rows: Sequence[Any], work: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
    """Return what ``work`` makes of the rows that are not refused, each in its place, among those that are."""
    able = [i for i, row in enumerate(rows) if not isinstance(row, Refused)]
    out = list(rows)
    if able:
        for i, found in zip(able, work([rows[i] for i in able]), strict=True):
            out[i] = found
    return out
