"""Chat templates: rendered as Transformers renders them, with the generation spans as character offsets.

``apply_chat_template`` is not used for two reasons.  It gives the loss mask in tokens, from which neither the turn that
a span belongs to nor an end-of-turn token just outside it can be told.  And its ``strftime_now`` writes today's date
into the prompts of several model families, so that a row scored tomorrow would get another score; here the date is
fixed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from curate._imports import require
from curate.exceptions import ModelError

DATE = datetime(2024, 7, 26)
"""The day it is in a template that asks.  Llama 3 templates fall back to this one themselves."""

# Noncharacters: Unicode keeps them for a program's own use, so text that means something does not hold them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")


class TemplateRefusal(Exception):
    """The template cannot show a row (its own ``raise_exception``, or an error in it); the message is the row's
    reason."""


class JinjaTemplate:
    """One compiled chat template.

    Parameters
    ----------
    source : the Jinja text.
    variables : what the template sees besides the conversation: ``bos_token`` and the like.

    Raises
    ------
    ModelError
        If the text is not valid Jinja.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self.source = source
        self.variables = dict(variables)
        self._compiled = _compile(source)
        self.marks_generation = re.search(r"\{%-?\s*generation\s*[+-]?%\}", source) is not None
        """Whether the template says itself, by ``{% generation %}``, what the model writes."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text and the character spans (start, end) of its generation blocks, in order.

        Raises
        ------
        TemplateRefusal
        """
        try:
            marked = self._compiled.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            )
        except Exception as error:  # a template is foreign code: any error in it is a fact about the row
            raise TemplateRefusal(f"chat template: {str(error)[:200] or type(error).__name__}") from error
        return _unmark(marked)


def _unmark(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Take the marks out of a rendered text; return it with the spans that they enclosed."""
    if _OPEN not in marked and _CLOSE not in marked:
        return marked, []
    pieces = _MARKS.split(marked)
    kinds = _MARKS.findall(marked)
    if kinds != [_OPEN, _CLOSE] * (len(kinds) // 2):  # nested blocks, or text that holds a noncharacter
        raise TemplateRefusal("chat template: generation blocks overlap, or the text holds U+FDD0 or U+FDD1")
    ends, at = [], 0
    for piece in pieces:
        at += len(piece)
        ends.append(at)
    return "".join(pieces), [(ends[i], ends[i + 1]) for i in range(0, len(kinds), 2)]


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> Any:
    jinja2 = require("jinja2", extra="lm", for_="a chat template")
    ext = require("jinja2.ext", extra="lm", for_="a chat template")
    sandbox = require("jinja2.sandbox", extra="lm", for_="a chat template")
    nodes = jinja2.nodes

    class Generation(ext.Extension):  # type: ignore[name-defined, misc]
        """``{% generation %}…{% endgeneration %}``: a scope whose output stands between two marks."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            mark = [nodes.Output([nodes.TemplateData(m)]) for m in (_OPEN, _CLOSE)]
            return nodes.Scope([mark[0], *body, mark[1]]).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(  # Jinja's own escapes <, > and & for HTML
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    # A template comes with a model, from anyone: it runs in the sandbox.
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: DATE.strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the tokenizer's chat template is not valid Jinja: line {error.lineno}: {error}") from error
