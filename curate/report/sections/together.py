"""How the scores go together: rank correlations among them, with length and with loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curate.numerics.correlation import spearman
from curate.report.blocks import Block, Section, Table, Text
from curate.report.charts import correlations
from curate.report.text import plural
from curate.seeding import rng_for

if TYPE_CHECKING:
    from curate.report.view import View

SAMPLE = 50_000
"""Rows that the correlations are of at most: a standard error below 0.005."""
COLUMNS = 14
NEAR = 0.9
"""|ρ| from which a score is nearly another one."""
CHARACTERS = "characters"
_LOSSES = ("loss", "mean_logprob", "perplexity")


def sections(view: View) -> list[Section]:
    columns = {name: view.values(name) for name in view.columns} | _combinations(view)
    columns = {name: x for name, x in columns.items() if np.isfinite(x).any()}
    if not columns:
        return []
    columns[CHARACTERS] = view.pool["chars"].to_numpy().astype(np.float64)
    names = _chosen(view, list(columns))
    n = view.pool.height
    rows = np.arange(n)
    if n > SAMPLE:
        seed = int(view.manifest.get("seed", 0))
        rows = np.sort(rng_for(seed, "report", "together").permutation(n)[:SAMPLE])
    rho, counts = spearman(np.stack([columns[name][rows] for name in names], axis=1))
    of = f"a draw of {SAMPLE:,} of {plural(n, 'row')}" if n > SAMPLE else plural(n, "row")
    told = (
        f"Spearman's rank correlations over {of}, of each pair over the rows that have both numbers; “{CHARACTERS}” is "
    )
    told += "the length of the whole conversation."
    if len(names) < len(columns):
        told += f" {plural(len(columns) - len(names), 'other score')} not shown."
    blocks: list[Block] = [Text(warning) for warning in _warnings(view, names, rho, counts)]
    blocks += [Text(told), correlations("rank correlations", names, rho, table=_table(names, rho))]
    return [Section("How the scores go together", blocks)]


def _combinations(view: View) -> dict[str, NDArray[np.float64]]:
    """Return what steps judged by and no file of scores has: of each row the number that it was judged by last."""
    import polars as pl

    judged = view.pool["score_name"].cast(pl.String)
    found = sorted(set(judged.unique().drop_nulls()) - set(view.columns))
    score = view.pool["score"].to_numpy()
    return {name: np.where((judged == name).fill_null(False).to_numpy(), score, np.nan) for name in found}


def _chosen(view: View, names: list[str]) -> list[str]:
    """Return at most ``COLUMNS`` names: what steps went by, losses, lengths, the first of each stage, the others."""
    bases = {step.get("score") for step in view.steps}
    firsts = {name.partition(".")[0]: name for name in reversed(list(view.columns))}.values()

    def rank(name: str) -> int:
        ranks = (name in bases, is_loss(name), name == CHARACTERS or is_length(view, name), name in firsts, True)
        return ranks.index(True)

    kept = set(sorted(names, key=rank)[:COLUMNS])
    return [name for name in names if name in kept]


def is_loss(name: str) -> bool:
    """Whether a column is the loss of the response, or grows and falls with it alone."""
    return name.partition(".")[2] in _LOSSES


def is_length(view: View, name: str) -> bool:
    """Whether a column counts the tokens, words or characters of a response or a conversation."""
    column = name.partition(".")[2]
    return name in view.columns and (
        view.columns[name].unit == "tokens" or column in ("response_chars", "response_words")
    )


def _warnings(view: View, names: list[str], rho: NDArray[np.float64], counts: NDArray[np.int64]) -> list[str]:
    """Say of each score that a step went by whether it is nearly a loss or a length."""
    out = []
    at = {name: i for i, name in enumerate(names)}
    for basis in dict.fromkeys(step.get("score") for step in view.steps):
        if basis not in at or is_loss(basis) or is_length(view, basis):
            continue
        for kind, alike in (
            ("loss", [n for n in names if is_loss(n)]),
            ("length", [*(n for n in names if is_length(view, n)), CHARACTERS]),
        ):
            found = [(abs(rho[at[basis], at[name]]), name) for name in alike if name in at]
            strength, name = max((f for f in found if f[0] >= NEAR), default=(0.0, ""))
            if strength:
                value = rho[at[basis], at[name]]
                out.append(
                    f"The selection by “{basis}” is nearly a filter by {kind}: it orders rows as “{name}” does, "
                    f"{'the same way round' if value > 0 else 'the other way round'} "
                    f"(Spearman {value:.2f} over {plural(int(counts[at[basis], at[name]]), 'row')})."
                )
    return out


def _table(names: list[str], rho: NDArray[np.float64]) -> Table:
    rows = [
        [name, *(None if np.isnan(v) else round(float(v), 3) for v in line)]
        for name, line in zip(names, rho, strict=True)
    ]
    return Table("Spearman's ρ", ["", *names], rows, folded=True)
