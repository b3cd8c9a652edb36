"""The pool in two dimensions: kept over dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curate.report.blocks import Chart, Section
from curate.report.charts import values
from curate.report.text import percent

if TYPE_CHECKING:
    from curate.report.view import View


def sections(view: View) -> list[Section]:
    drawn = view.pool_map
    if drawn is None:
        return []
    kept, dropped = int(drawn.kept.sum()), int((~drawn.kept).sum())
    xy = np.round((drawn.xy - drawn.xy.mean(axis=0)) / max(float(np.abs(drawn.xy).max()), 1e-12), 4)
    layers = []
    for what, mask, opacity in (("dropped", ~drawn.kept, 0.5), ("kept", drawn.kept, 0.75)):
        rows = [
            {"x": float(xy[i, 0]), "y": float(xy[i, 1]), "tip": f"{what}, {drawn.labels[i]}"}
            for i in np.flatnonzero(mask).tolist()
        ]
        axis = {"axis": None, "type": "quantitative", "scale": {"zero": False, "nice": False}}
        if rows:
            layers.append(
                {
                    "data": values(rows),
                    "mark": {"type": "circle", "color": f"var(--{what})", "opacity": opacity, "size": 22},
                    "encoding": {
                        "x": {"field": "x", **axis},
                        "y": {"field": "y", **axis},
                        "description": {"field": "tip"},
                    },
                }
            )
    note = (
        f"{kept:,} of {drawn.of_kept:,} kept and {dropped:,} of {drawn.of_dropped:,} dropped rows, drawn by the seed. "
        f"The axes are the two main axes (PCA) of {drawn.stage!r} over {drawn.fitted_on:,} rows of the pool; they hold "
        f"{percent(drawn.explained[0])} and {percent(drawn.explained[1])} of the variance, so rows that lie together "
        "here may lie apart in full."
    )
    alt = f"Map of {kept:,} kept points over {dropped:,} dropped ones; no order or number can be read off it."
    chart = Chart(
        "Kept over dropped",
        {"height": 600, "layer": layers},
        alt,
        None,
        note,
        key=("kept", "dropped"),
        wide=True,
        scales=True,
    )
    return [Section("Map of the pool", [chart])]
