"""A page: sections made into one HTML file that needs nothing else.

Every text passes through Jinja's autoescape, and before it through ``visible``; SVG comes from ``charts.draw``, which
refuses what runs or loads.  The page's own script and style are named by their digests in its Content-Security-Policy,
so that nothing else in it can run, and nothing can be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from curate.report import charts
from curate.report.blocks import Chart, Section, Shade, Share, Text
from curate.report.text import brief, number, percent, signed, visible
from curate.report.view import DECISIONS


def render(
    title: str,
    summary: str,
    sections: Sequence[Section],
    *,
    counts: Mapping[str, int] | None = None,
    made: str = "",
    problems: list[str] | None = None,
) -> str:
    """Return the page.

    Parameters
    ----------
    title, summary : the heading, and the sentence below it.
    sections : in the order of the page; those of one title share an anchor's stem.
    counts : rows by decision, for the bar and the numbers at the top.
    made : what made the page, for its last line.
    problems : takes a sentence for each section that cannot be shown, which then says so on the page.  Without it the
        first such section raises.

    Raises
    ------
    InputError
        If a chart cannot be drawn, and no ``problems`` are taken.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("curate.report", "page"),
        autoescape=True,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, percent=percent, signed=signed, brief=brief)
    environment.tests["share"] = lambda cell: isinstance(cell, Share)
    environment.tests["shade"] = lambda cell: isinstance(cell, Shade)
    environment.tests["numeric"] = lambda cell: (
        isinstance(cell, (int, float, Share, Shade)) and not isinstance(cell, bool)
    )
    environment.globals.update(drawn=_drawn)
    style, script = _asset("page.css"), _asset("page.js")
    shown = [
        (anchor, section, _shown(environment, anchor, section, problems)) for anchor, section in _anchored(sections)
    ]
    return environment.get_template("page.html.j2").render(
        title=title,
        summary=summary,
        sections=shown,
        counts=[(word, (counts or {})[word]) for word in DECISIONS if (counts or {}).get(word)],
        total=sum((counts or {}).values()),
        made=made,
        # Text of ours, not of the data: set in as it is, because its digest stands in the policy.
        style=Markup(style),
        script=Markup(script),
        policy="; ".join(
            [
                "default-src 'none'",
                f"style-src '{_digest(style)}'",
                f"script-src '{_digest(script)}'",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
    )


def _shown(environment: Any, anchor: str, section: Section, problems: list[str] | None) -> Any:
    """Return a section as HTML."""
    from markupsafe import Markup

    template = environment.get_template("section.html.j2")
    try:
        return Markup(template.render(anchor=anchor, section=section))
    except Exception as error:  # what another package made: a chart that loads something, a row too short
        if problems is None:
            raise
        problems.append(f"the section {section.title!r} could not be shown: {type(error).__name__}: {error}")
        return Markup(template.render(anchor=anchor, section=Section(section.title, [Text(problems[-1])])))


def _asset(name: str) -> str:
    return files("curate.report").joinpath("page", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _visible(value: Any) -> Any:
    """Show every text and number of the template; what is markup already was made visible when it was drawn."""
    if hasattr(value, "__html__"):
        return value
    return visible(value) if isinstance(value, str) else number(value) if isinstance(value, (int, float)) else value


def _drawn(chart: Chart) -> list[tuple[str, Any]]:
    """Return (CSS class, SVG) of each drawing of a chart."""
    from markupsafe import Markup

    if not chart.wide:
        sizes = [("one", charts.NARROW)]
    elif chart.scales:
        sizes = [("scaled", charts.WIDE)]
    else:
        sizes = [("broad", charts.WIDE), ("slim", charts.NARROW)]
    return [(name, Markup(charts.draw(chart.spec, width))) for name, width in sizes]


def _anchored(sections: Sequence[Section]) -> list[tuple[str, Section]]:
    """Give each section an address of its own."""
    out: dict[str, Section] = {}
    for section in sections:
        anchor, again = section.anchor, 2
        while anchor in out:
            anchor, again = f"{section.anchor}-{again}", again + 1
        out[anchor] = section
    return list(out.items())
