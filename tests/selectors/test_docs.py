"""The examples of docs/selectors.md."""

from __future__ import annotations

import re
from pathlib import Path

from curate.testing import check_selector

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "selectors.md").read_text(encoding="utf-8")


def test_the_examples_give_what_they_say():
    *shown, own = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    compared = 0
    for snippet in shown:
        names: dict[str, object] = {}
        for line in snippet.splitlines():
            code, _, said = line.partition("  # ")
            if said.strip():
                said = said.strip().removesuffix(", in order of choice")
                assert repr(eval(code, names)) == said
                compared += 1
            else:
                exec(code, names)
    assert compared == 6
    exec(own, names)
    check_selector(names["Middle"]())
