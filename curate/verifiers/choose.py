"""Which verifier fits the rows of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from curate.exceptions import InputError
from curate.numerics.agreement import normalised
from curate.verifiers.base import Item, Verifier
from curate.verifiers.code import Code, suite_of
from curate.verifiers.exact import Exact
from curate.verifiers.number import Number
from curate.verifiers.option import Option
from curate.verifiers.sandbox import Limits

Name = Literal["number", "option", "exact", "code", "none"]
VERIFIERS: tuple[Name, ...] = ("code", "option", "number", "exact")
"""In the order in which they are tried; "none" for no verification."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The verifier of a task, and why it is that one."""

    name: str
    """One of ``VERIFIERS``, or "none"."""
    why: str
    rows: int
    """How many rows it can verify."""
    of: int


def make(name: str, *, run_code: bool = False, limits: Limits | None = None) -> Verifier | None:
    """Return the verifier of a name; None for "none".

    Raises
    ------
    InputError
        If there is none of that name.
    """
    made: dict[str, Verifier | None] = {
        "code": Code(run_code, limits or Limits()),
        "option": Option(),
        "number": Number(),
        "exact": Exact(),
        "none": None,
    }
    if name not in made:
        raise InputError(f"verifier {name!r} was asked; there are {', '.join(VERIFIERS)} and none.")
    return made[name]


def verifier_of(items: Sequence[Item], name: str | None = None) -> Chosen:
    """Return the verifier that fits the rows of a task.

    The first of these that fits more than half of the rows; rows that it does not fit are not verified, and counted:

    1. code: the row's data holds tests;
    2. option: the reference is a letter that was offered, or one of True/False, Yes/No;
    3. number: the reference ends in "####" or a box with a number, or is a number;
    4. exact: the reference has at most six words, and they come from few labels (no more than half as many as rows),
       or nine in ten have at most three words, or the data lists "references", as sets of short answers do.

    Where none fits more than half, none is chosen, and ``why`` says what fitted how many.

    Parameters
    ----------
    name : the one to take, whatever fits.
    """
    n = len(items)
    if name is not None:
        verifier = make(name, run_code=True)
        fits = 0 if verifier is None else sum(verifier.refusal(item) is None for item in items)
        return Chosen(name, "asked for", fits, n)
    counts = {name: sum(_fits(name, item) for item in items) for name in VERIFIERS}
    for name in VERIFIERS:
        if 2 * counts[name] > n and (name != "exact" or _are_answers(items)):
            return Chosen(name, f"{_WHY[name]} in {counts[name]:,} of {n:,} rows", counts[name], n)
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return Chosen("none", f"no verifier fits more than half of {n:,} rows ({told or 'none fits any'})", 0, n)


_WHY = {
    "code": "tests",
    "option": "the reference is an option",
    "number": "the reference is a number",
    "exact": "the reference is short",
}


def _are_answers(items: Sequence[Item]) -> bool:
    """Whether short references are answers to be hit, and not short pieces of prose."""
    short = [normalised(item.references[0]) for item in items if _fits("exact", item)]
    terse = sum(len(text.split()) <= 3 for text in short)
    listed = sum("references" in item.data for item in items)
    return 2 * len(set(short)) <= len(short) or 10 * terse >= 9 * len(items) or 2 * listed > len(items)


def _fits(name: str, item: Item) -> bool:
    if name == "code":
        return bool(suite_of(item.data))
    verifier = make(name)
    assert verifier is not None
    return verifier.refusal(item) is None
