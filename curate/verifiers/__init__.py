"""Whether a text that a model wrote is right, told without a judge: by number, by option, word for word, by tests."""

from __future__ import annotations

from curate.verifiers.base import Finding, Item, Verifier
from curate.verifiers.choose import VERIFIERS, Chosen, verifier_of
from curate.verifiers.code import Code
from curate.verifiers.exact import Exact
from curate.verifiers.number import Number
from curate.verifiers.option import Option
from curate.verifiers.sandbox import Limits

__all__ = [
    "VERIFIERS",
    "Chosen",
    "Code",
    "Exact",
    "Finding",
    "Item",
    "Limits",
    "Number",
    "Option",
    "Verifier",
    "verifier_of",
]
