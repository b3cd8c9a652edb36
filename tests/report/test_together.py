"""The sections on how the scores go together, and on length: their numbers, and when they warn."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

import curate.report.sections.together as together
from curate.report.blocks import Chart, Section, Table, Text
from curate.report.sections import length
from curate.report.view import Baseline, ScoreColumn, View

N = 200


def made(scores: dict[str, np.ndarray], *, kept: np.ndarray | None = None, **changes: Any) -> View:
    """A view of ``N`` rows; "combined" among the scores is a combination, which is in the ledger alone."""
    kept = np.arange(N) < 50 if kept is None else kept
    combined = scores.pop("combined", None)
    ledger = pl.DataFrame(
        {
            "decision": np.where(kept, "kept", "dropped"),
            "chars": changes.pop("chars", np.arange(N) + 100),
            "score": np.full(N, np.nan) if combined is None else combined,
            "score_name": [None if combined is None else "combined"] * N,
        },
        schema_overrides={"chars": pl.Int64, "score_name": pl.Categorical},
    )
    units = {"tokens": "tokens", "loss": "nats per token", "mean_logprob": "nats per token"}
    columns = {n: ScoreColumn(n, units.get(n.partition(".")[2], "")) for n in scores}
    return View(
        manifest={"name": "t", "seed": 1, "select": changes.pop("select", [])},
        recipe="",
        ledger=ledger,
        columns=columns,
        values=scores.__getitem__,
        **changes,
    )


def texts(sections: list[Section]) -> list[str]:
    return [b.text for s in sections for b in s.blocks if isinstance(b, Text)]


def chart(sections: list[Section]) -> Chart:
    (found,) = [b for s in sections for b in s.blocks if isinstance(b, Chart)]
    return found


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=N)


def by(score: str) -> list[dict[str, Any]]:
    return [{"name": "1-top-k", "use": "top-k", "score": score}]


# -- how the scores go together --------------------------------------------------------------------------------------


def test_the_matrix_holds_every_pair_and_length() -> None:
    x = np.arange(N, dtype=float)
    found = together.sections(made({"a.up": x, "a.down": -x, "b.gaps": np.where(x < 10, np.nan, x**2)}))
    assert [s.title for s in found] == ["How the scores go together"]
    table = chart(found).table
    assert isinstance(table, Table) and table.columns == ["", "a.up", "a.down", "b.gaps", "characters"]
    assert [row[1:] for row in table.rows] == [[1, -1, 1, 1], [-1, 1, -1, -1], [1, -1, 1, 1], [1, -1, 1, 1]]
    assert texts(found)[0].startswith("Spearman's rank correlations over 200 rows, of each pair over the rows that")


def test_a_selection_that_is_nearly_a_filter_by_loss_or_length_is_told() -> None:
    loss, tokens = noise(0), np.round(np.exp(noise(1)) * 100)
    scores = {"m.loss": loss, "m.tokens": tokens, "m.score": -loss + 0.1 * noise(2), "combined": tokens + noise(3)}
    near_loss = together.sections(made(dict(scores), select=by("m.score"), chars=np.arange(N)[::-1] + 1))
    value = chart(near_loss).table.rows[0][3]  # type: ignore[union-attr]
    assert texts(near_loss)[0] == (
        "The selection by “m.score” is nearly a filter by loss: it orders rows as “m.loss” does, the other way round "
        f"(Spearman {value:.2f} over 200 rows)."
    )
    near_length = together.sections(made(dict(scores), select=by("combined"), chars=np.arange(N)[::-1] + 1))
    assert texts(near_length)[0].startswith(
        "The selection by “combined” is nearly a filter by length: it orders rows as “m.tokens” does, the same way round"
    )


def test_no_warning_below_nine_tenths_nor_where_it_was_asked() -> None:
    loss = noise(0)
    weak = {"m.loss": loss, "m.score": loss + 0.8 * noise(2)}
    rho = chart(together.sections(made(dict(weak)))).table.rows[0][2]  # type: ignore[union-attr]
    assert 0.6 < rho < 0.9 and len(texts(together.sections(made(weak, select=by("m.score"))))) == 1
    same = {"m.loss": loss, "n.mean_logprob": -loss}
    assert len(texts(together.sections(made(same, select=by("n.mean_logprob"))))) == 1  # it is a loss, by its name
    length_itself = {"m.tokens": np.arange(N) + 100.0}
    assert len(texts(together.sections(made(length_itself, select=by("m.tokens"))))) == 1


def test_a_large_pool_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SAMPLE", 60)
    x = noise(0)
    found = together.sections(made({"a.x": x, "a.y": x + noise(1)}))
    assert "over a draw of 60 of 200 rows" in texts(found)[0]
    again = together.sections(made({"a.x": x, "a.y": x + noise(1)}))
    assert chart(found).table == chart(again).table  # drawn by the seed
    monkeypatch.undo()
    assert chart(together.sections(made({"a.x": x, "a.y": x + noise(1)}))).table != chart(found).table


def test_what_matters_stays_when_there_are_many_columns() -> None:
    scores = {f"s{i}.c{j}": noise(10 * i + j) for i in range(5) for j in range(5)}
    scores |= {"z.other": noise(90), "z.loss": noise(91), "z.tokens": noise(92), "z.basis": noise(93)}
    found = together.sections(made(scores, select=by("z.basis")))
    names = chart(found).table.columns[1:]  # type: ignore[union-attr]
    assert len(names) == together.COLUMNS
    assert {"z.basis", "z.loss", "z.tokens", "characters", "z.other", *(f"s{i}.c0" for i in range(5))} <= set(names)
    assert "16 other scores not shown." in texts(found)[0]


def test_scores_that_are_all_null_or_constant() -> None:
    found = together.sections(made({"a.none": np.full(N, np.nan), "a.same": np.ones(N)}))
    table = chart(found).table
    assert isinstance(table, Table) and table.rows == [["a.same", None, None], ["characters", None, 1.0]]
    assert together.sections(made({"a.none": np.full(N, np.nan)})) == []
    assert together.sections(made({})) == []


# -- length ----------------------------------------------------------------------------------------------------------


def test_length_by_hand() -> None:
    """50 rows of 100 kept, 150 of 20 dropped: the mean is 40, and 150% more is kept."""
    kept = np.arange(N) < 50
    chars = np.where(kept, 100, 20)
    short = Baseline("random", "", np.arange(N) >= 150)
    found = length.sections(made({}, kept=kept, chars=chars, baselines=[short]))
    assert texts(found) == [
        "In characters of the conversation: what is kept has 100 on average, 150% more than the pool, 400% more than "
        "“random”."
    ]
    (table,) = [b for b in found[0].blocks if isinstance(b, Table)]
    assert table.rows == [
        ["pool", 200, 40.0, 20.0, 8000, 1.0],
        ["this run", 50, 100.0, 100.0, 5000, 2.5],
        ["random", 50, 20.0, 20.0, 1000, 0.5],
    ]


def test_lengths_that_stages_counted_come_once_and_without_rows_that_lack_them() -> None:
    tokens = np.where(np.arange(N) % 2, 10.0, np.nan)
    scores = {"a.tokens": tokens, "b.tokens": tokens.copy(), "c.loss": noise(0)}
    found = length.sections(made(scores, chars=np.full(N, 7)))
    captions = [b.caption for b in found[0].blocks if isinstance(b, Table)]
    assert captions == ["characters of the conversation", "a.tokens (tokens)"]
    assert texts(found)[1] == (
        "In a.tokens (tokens): what is kept has 10 on average, as many as the pool. 100 rows without it."
    )


def test_nothing_to_say_of_length() -> None:
    assert length.sections(made({}, kept=np.ones(N, dtype=bool))) == []
    assert length.sections(made({}, kept=np.zeros(N, dtype=bool))) == []
