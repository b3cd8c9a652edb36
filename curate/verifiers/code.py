"""Whether a program passes the tests that come with its task."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from curate.verifiers.base import Finding, Item, Verifier
from curate.verifiers.sandbox import Limits, run

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_IMPORT = re.compile(r"^(?:from[ \t]+[\w.]+[ \t]+import[ \t]+[\w \t,.*]+|import[ \t]+[\w \t,.]+)$", re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")


@dataclass(frozen=True)
class Code(Verifier):
    """The Python code of the text passes the row's tests, in ``curate.verifiers.sandbox``.

    The tests are the row's "tests" (a text, or a list of them; also "test" and "test_list", as HumanEval and MBPP call
    theirs), run after the code and, between the two, "setup" (or "test_setup_code").  Where the row names an
    "entry_point", ``check(entry_point)`` is called at the end.  Before the code stand the imports that the prompt shows
    in lines of their own.  Outcomes: "pass"; "fail", "timeout", "memory" and "crash", each with its cause.

    Off unless asked: with ``run_code`` False every row is refused.
    """

    name: ClassVar[str] = "code"

    run_code: bool = False
    """Whether code that a model wrote may run on this machine."""
    limits: Limits = field(default_factory=Limits)

    def refusal(self, item: Item) -> str | None:
        if not suite_of(item.data):
            return "no tests"
        return None if self.run_code else "code was not run"

    def _check(self, item: Item, text: str, finished: bool) -> Finding:
        code = code_of(text)
        if not code.strip():
            return Finding(False, "no code")
        imports = "\n".join(line.strip() for line in _IMPORT.findall(item.prompt))
        outcome = run(f"{imports}\n{code}", suite_of(item.data), self.limits)
        told = f"{outcome.result}: {outcome.detail}" if outcome.detail else outcome.result
        return Finding(outcome.result == "pass", told, code)


def suite_of(data: Any) -> str:
    """Return the tests of a row's data as one program; "" where it has none."""
    tests = next((data[key] for key in ("tests", "test", "test_list") if data.get(key)), None)
    if isinstance(tests, list):
        tests = "\n".join(test for test in tests if isinstance(test, str))
    if not isinstance(tests, str) or not tests.strip():
        return ""
    setup = next((data[key] for key in ("setup", "test_setup_code") if isinstance(data.get(key), str)), "")
    entry = data.get("entry_point")
    return f"{setup}\n{tests}\n" + (f"check({entry})\n" if isinstance(entry, str) and entry else "")


def code_of(text: str) -> str:
    """Return the code of a text: of its fenced blocks of Python the first that defines something, else the first.

    A block that is cut goes to the end of the text; a text without a block is code itself.
    """
    blocks = [code for language, code in _FENCE.findall(text) if language.lower() in _PYTHON]
    if not blocks:
        return text
    defining = [code for code in blocks if re.search(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]", code, re.MULTILINE)]
    return (defining or blocks)[0]
