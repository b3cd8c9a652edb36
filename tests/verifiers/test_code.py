"""Code out of texts, tests out of rows, and the two together."""

from __future__ import annotations

import json
import os

import pytest

from curate.verifiers import Code, Item, Limits, verifier_of
from curate.verifiers.code import code_of, suite_of

ADD = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ADD, ADD),
        (f"Here it is:\n```python\n{ADD}```\nDone.", ADD),
        (f"```\n{ADD}```", ADD),
        (f"```py\n{ADD}", ADD),  # cut before the fence was closed
        (f"```bash\npip install x\n```\nthen\n```python\n{ADD}```\n```python\nprint(add(1, 2))\n```", ADD),
        (f"```python\nprint(1)\n```\n```python\n{ADD}```", ADD),  # what defines something comes first
        ("```python\nx = 1\n```", "x = 1\n"),
        (f"```python title=a.py\n{ADD}```", ADD),
        ("```json\n{}\n```", "```json\n{}\n```"),  # no Python: the text as it is, which will not run
    ],
)
def test_code_is_taken_out_of_its_fence(text, code):
    assert code_of(text) == code


def test_tests_in_the_shapes_of_the_data_sets():
    assert suite_of({"tests": ["assert 1", "assert 2"], "setup": "x = 1"}) == "x = 1\nassert 1\nassert 2\n"
    assert suite_of({"test_list": ["assert 1"], "test_setup_code": "import re"}) == "import re\nassert 1\n"
    human = {"test": "def check(c):\n    assert c(1, 2) == 3\n", "entry_point": "add"}
    assert suite_of(human).endswith("check(add)\n")
    assert suite_of({"tests": "check(add)", "entry_point": None}) == "\ncheck(add)\n"
    for none in ({}, {"tests": ""}, {"tests": []}, {"tests": 3}, {"tests": None}):
        assert suite_of(none) == ""


def row(**meta: object) -> Item:
    messages = [{"role": "user", "content": "Add.\n\nfrom typing import List\n\ndef add(a, b):"},
                {"role": "assistant", "content": ADD}]  # fmt: skip
    return Item.of(messages, json.dumps({"meta": json.dumps(meta)}))


def test_code_is_not_run_unless_asked():
    it = row(tests=["assert add(1, 2) == 3"])
    assert verifier_of([it]).name == "code"
    finding = Code().check(it, "import os\nos._exit(0)")
    assert (finding.correct, finding.outcome, finding.found) == (None, "code was not run", None)
    assert Code(run_code=True).check(row(), ADD).outcome == "no tests"


@pytest.mark.skipif(os.name != "posix", reason="POSIX limits")
def test_code_is_right_by_its_tests():
    it = row(tests=["assert add(1, 2) == 3"])
    code = Code(run_code=True, limits=Limits(seconds=1))
    assert code.check(it, f"```python\n{ADD}```").outcome == "pass"
    assert code.check(it, "def add(a: List[int], b):\n    return a + b").correct  # the prompt's imports stand before it
    wrong = code.check(it, "def add(a, b):\n    return a - b")
    assert (wrong.correct, wrong.outcome) == (False, "fail: tests: AssertionError:")
    assert code.check(it, "  ").outcome == "no code"
    assert code.check(it, "while True: pass").outcome == "timeout: its CPU seconds ran out"
    assert code.check(it, "I cannot do that.").outcome.startswith("fail: program: SyntaxError")
    # What the docstring owns up to: a program may fool tests that share its interpreter.
    fooled = "class Any:\n    def __eq__(self, other): return True\ndef add(a, b): return Any()"
    assert code.check(it, fooled).correct
