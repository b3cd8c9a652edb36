"""A scorer, a selector and a corrector outside curate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate import Column, Corrector, Scorer, Selector
from curate.base import Ranking
from curate.correction import Corrections, Role
from curate.example import prompt_and_response


@dataclass(kw_only=True)
class Vowels(Scorer):
    """Share of vowels in the response."""

    name = "vowels"

    vowels: str = "aeiou"
    """The letters that count."""

    @property
    def columns(self):
        return (Column("share", "share of characters"),)

    def _score(self, examples):
        shares, reasons = [], []
        for messages in examples["messages"].to_pylist():
            _, response = prompt_and_response(messages)
            shares.append(sum(c in self.vowels for c in response) / len(response) if response else None)
            reasons.append(None if response else "no response text")
        return {"share": shares, "reason": reasons}


@dataclass(kw_only=True)
class EveryOther(Selector):
    """Rows 0, 2, 4, …, then rows 1, 3, 5, …"""

    name = "every-other"
    x_name = "nothing"

    def _rank(self, inputs, k):
        rows = np.arange(inputs.n)
        return Ranking(order=np.concatenate([rows[::2], rows[1::2]]))


@dataclass(kw_only=True)
class FullStop(Corrector):
    """An answer that has letters ends with a full stop."""

    name = "full-stop"
    roles = {"vowels": Role("vowels", ("share",))}

    def _correct(self, rows):
        shares = [row["vowels"]["share"] for row in rows]
        ended = [row["answer"].rstrip().removesuffix(".") + "." for row in rows]
        replaced = [s is not None and new != row["answer"] for s, new, row in zip(shares, ended, rows, strict=True)]
        return Corrections(
            action=["replace" if it else None for it in replaced],
            answer=[new if it else None for new, it in zip(ended, replaced, strict=True)],
            confidence=np.array([np.nan if s is None else s for s in shares]),
            rule=[row["vowels"]["reason"] or "it ends with a full stop" for row in rows],
        )
