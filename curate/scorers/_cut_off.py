"""Whether a response breaks off, told from its text alone.

Wrong alarms cost good candidates, so a text is only called cut off on evidence of its own: a code block or a JSON value
that is left open, or a last sentence without an end in a text whose other sentences have theirs.  Headlines, poems,
lists without full stops, one-word answers, formulas, and scripts without a full stop all end as they go on, and pass.

Rules, in this order; the first that applies decides:

1. **Code block.**  The lines that begin with ``` (or ~~~) do not pair up: a fence closes the last one of its kind that
   is at most as long.  One that is left open: cut off, unless the last line ends a sentence (the text began within
   code).  A text whose last line is a bare fence is whole.
2. **JSON.**  The text begins with ``{`` or ``[{``, and a JSON parser runs out of text: cut off.
3. **Last line**, of the lines with visible characters.  Take its last visible character.  A sentence's end, a closing
   bracket, a quotation mark, a digit, a symbol, anything but those of 4: whole.
4. It is a letter (or an accent on one), a comma, or an opening bracket:

   * a heading, a table's row, a line set in by four spaces or a tab (code), a line that ends in an address (``/``,
     ``@``, ``www.``) or a hashtag, one of the two lines after a short one that ends with a comma (a signature),
     fewer than ``WORDS`` words: whole;
   * ``SENTENCES`` sentences or more end within the line, and at least ``WORDS`` words follow the last end: cut off;
   * of the earlier lines of its kind (items of a list, or other lines outside code), ``LINES`` or more and nine in ten
     end with a sentence's end; lines that end with a colon and lines of fewer than ``WORDS`` words do not count: cut
     off.
"""

from __future__ import annotations

import json
import re
import unicodedata

WORDS, SENTENCES, LINES = 4, 2, 3

_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
_ITEM = re.compile(r"\s*(?:[-*+•·–]|\(?\d{1,3}[.):]|\(?[A-Za-z][.)])\s")
# Not after a single letter or digit ("J. Smith", "2. Then"), a doctor or a mister.
_STOP = re.compile(r"(?<!\b[A-Za-z0-9])(?<!\b[DM]r)[.!?…]+[\"'”’»)\]*_]*(?=\s)|[。！？｡]+[”’」』）]*|[؟۔।॥។։]+")
_BLANK = " \t\r\n\f\v\u00a0\u3000\ufe0f"  # the last one asks for an emoji in colour
_CLOSERS = "\"'”’»)]*_`」』）"
_ADDRESS = re.compile(r"(?:\S*(?:/|@|www\.)|#)\S*\Z")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def cut_off(text: str) -> str | None:
    """Return how a text shows that it breaks off; None where it does not, or has nothing visible."""
    visible = text.rstrip(_BLANK)
    outside, is_open = _without_code(visible)
    last = visible.rpartition("\n")[2]
    if _FENCE.fullmatch(last) and not last.strip("`~ "):
        return None
    if is_open:
        return None if _ends_sentence(last) else "a code block is left open"
    if text.lstrip().startswith(("{", "[{")) and _json_runs_out(text):
        return "a JSON value is left open"
    lines = [stripped for line in outside if (stripped := line.rstrip(_BLANK))]
    if not lines or not _goes_on(lines[-1]) or _signs(lines):
        return None
    return "the last sentence has no end, unlike those before it" if _others_end(lines) else None


def _without_code(text: str) -> tuple[list[str], bool]:
    """Return the lines outside of code blocks, and whether a block is open at the end."""
    outside: list[str] = []
    fence = ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
        elif found and "`" not in found[2]:
            fence = found[1]
        else:
            outside.append(line)
    return outside, bool(fence)


def _json_runs_out(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())
    except (ValueError, RecursionError):  # a number too long to convert; nested beyond reason
        return False
    return False


def _goes_on(line: str) -> bool:
    """Whether the last character of a line is one that no sentence, list or formula stops at on purpose."""
    last = line[-1]
    category = unicodedata.category(last)
    if not (category[0] in "LM" or category == "Ps" or last in ",،，、"):
        return False
    aside = line.lstrip().startswith(("#", "|")) or (line.startswith(("    ", "\t")) and not _ITEM.match(line))
    return not (aside or _ADDRESS.search(line) or _words(line) < WORDS)


def _signs(lines: list[str]) -> bool:
    """Whether the last line is a name under a closing formula."""
    return any(line.endswith((",", "，")) and _words(line) <= WORDS for line in lines[-3:-1])


def _others_end(lines: list[str]) -> bool:
    """Whether the sentences before the last, in its line or in lines of its kind, have an end."""
    *before, last = lines
    item = _ITEM.match(last)
    body = last[item.end() :] if item else last  # the point of "10. " ends no sentence
    ends = [found.end() for found in _STOP.finditer(body)]
    if len(ends) >= SENTENCES and _words(body[ends[-1] :]) >= WORDS:
        return True
    alike = [
        line
        for line in before
        if bool(_ITEM.match(line)) == bool(item) and line[-1] not in ":：" and _words(line) >= WORDS
    ]
    stops = sum(map(_ends_sentence, alike))
    return stops >= LINES and stops >= 0.9 * len(alike)


def _ends_sentence(line: str) -> bool:
    return bool(_STOP.search(f"{line.rstrip(_CLOSERS)[-1:]} "))


def _words(text: str) -> int:
    """Count words; two letters of a script that writes none apart count as one."""
    wide = len(_WIDE.findall(text))
    return len(_WIDE.sub(" ", text).split()) + (wide + 1) // 2
