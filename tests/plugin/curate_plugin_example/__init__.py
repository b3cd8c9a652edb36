"""A scorer and a selector outside curate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate import Column, Scorer, Selector
from curate.base import Ranking
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
