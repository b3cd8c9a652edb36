"""Benchmarks: rows that the pool must not hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from curate.fingerprint import fingerprint
from curate.pipelines.api import read

if TYPE_CHECKING:
    from curate.recipe import Recipe


@dataclass(frozen=True)
class Benchmarks:
    sets: dict[str, pa.Table]

    @property
    def fingerprint(self) -> str:
        return fingerprint("benchmarks", {n: t.column("id").to_pylist() for n, t in self.sets.items()})


def read_benchmarks(recipe: Recipe) -> Benchmarks:
    sets = {}
    for name, source in recipe.benchmarks.items():
        pool = read(**{key: getattr(source, key) for key in source.__dataclass_fields__})
        sets[name] = pool.examples().select(["id", "messages"])
    return Benchmarks(sets)
