"""The section on rounds of refinement: what stands in its tables, and when there is none."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from curate.report.blocks import Chart, Section, Share, Table, Text
from curate.report.page import render
from curate.report.sections import refinement
from curate.report.view import View


def step(clusters: int = 3, **changes: Any) -> dict[str, Any]:
    rest = [0.1 / (clusters - 2)] * (clusters - 2)
    rounds = [
        {"weights": [1 / clusters] * clusters, "chosen": [2] * clusters, "asked": 4, "answered": 3},
        {"weights": [0.8, *rest, 0.1], "chosen": [4, *[0] * (clusters - 2), 2]},
    ]
    rounds[0]["score"] = [1.5, *[None] * (clusters - 2), -0.25]
    learner = {
        "identity": {"judge": "perplexity"},
        "rounds": [{"rows": 6, "trained_on": 5, "loss": 1.25, "unanswered": {"longer than <b>512</b>": 1}}],
    }
    account = {"sizes": [10] * clusters, "rounds": rounds}
    return {"name": "diverse", "use": "iterative-kmq", "account": account, "learner": learner, **changes}


def made(*steps: dict[str, Any]) -> list[Section]:
    ledger = pl.DataFrame({"decision": ["kept"], "chars": [1]})
    manifest = {"name": "t", "select": list(steps)}
    return refinement.sections(View(manifest=manifest, recipe="", ledger=ledger, columns={}, values={}.__getitem__))


def tables(section: Section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


def test_rounds_and_clusters() -> None:
    (section,) = made({"name": "1-random", "use": "random"}, step())
    assert section.title == "Rounds of refinement"
    rounds, clusters = tables(section)
    first, last = rounds.rows
    assert first == [1, 6, 3, pytest.approx(3.0), 5, 1.25, 4, 3, pytest.approx(0.625)]
    assert last[:3] == [2, 6, 2] and 1.5 < last[3] < 2.5 and last[4:] == [None] * 5
    assert clusters.columns == [
        *("", "rows of the pool", "share", "chosen, round 1", "chosen, round 2", "S, round 1", "weight"),
    ]
    grown = clusters.rows[0]
    assert grown[0] == "cluster 0" and grown[1] == 10 and isinstance(grown[2], Share)
    assert grown[2].value == pytest.approx(1 / 3) and grown[4].value == pytest.approx(4 / 6)
    assert grown[5] == "+1.500" and grown[6].value == pytest.approx(0.8755, abs=1e-3)
    assert [row[0] for row in clusters.rows] == ["cluster 0", "cluster 1", "cluster 2"] and clusters.rows[1][5] is None
    texts = [block.text for block in section.blocks if isinstance(block, Text)]
    assert "by the perplexity of the model that was trained" in texts[0]
    assert texts[1] == "Round 1: 1 row told nothing: 1 × longer than <b>512</b>."
    (chart,) = [block for block in section.blocks if isinstance(block, Chart)]
    page = render("t", "", [section], counts={})
    assert chart.table is not None and "longer than &lt;b&gt;512" in page


def test_of_many_clusters_both_ends_are_listed() -> None:
    (section,) = made(step(clusters=100))
    _, clusters = tables(section)
    assert len(clusters.rows) == 40 and clusters.rows[0][0] == "cluster 0" and clusters.rows[-1][0] == "cluster 98"
    assert any("60 clusters between them not shown." in b.text for b in section.blocks if isinstance(b, Text))
    assert render("t", "", [section], counts={})


def test_clusters_that_were_given_keep_their_names() -> None:
    one = step()
    one["account"]["clusters"] = ["7", "12", "99"]
    (section,) = made(one)
    assert [row[0] for row in tables(section)[1].rows] == ["cluster 7", "cluster 12", "cluster 99"]


def test_two_such_steps_and_none() -> None:
    assert [s.title for s in made(step(), step(name="again"))] == [
        "Rounds of refinement: diverse",
        "Rounds of refinement: again",
    ]
    assert made({"name": "1-kmq", "use": "kmq", "account": {"quota": {}}}, {"name": "2", "use": "top-k"}) == []


def test_rounds_that_were_learned_from_by_other_means() -> None:
    """Without a learner's account, as where a selection was made from Python."""
    one = step()
    del one["learner"]
    (section,) = made(one)
    assert tables(section)[0].rows[0][4:6] == [None, None]
    (empty,) = made(step(account={"sizes": [], "rounds": []}))
    assert [type(block) for block in empty.blocks] == [Text]
