"""A study's HTML report: one file that needs no network, with every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from moist.reporting import plotly_figures
from moist.reporting.frontier_plot import COLOURS, INK, FrontierPlot
from moist.reporting.terminal import SHORT
from moist.results.trials import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MIN_TRIALS = 10
"""Complete trials below which the importance of a parameter means nothing."""

HEADS = (
    "trial", "parameters", "validation %", "test %", "MFLOPs (a multiply-add is one)",
    "latency, ms (batch 1)", "key",
)  # fmt: skip
FONT = "DejaVu Sans, Verdana, sans-serif"
STYLE = f"""
body {{ max-width: 900px; margin: 2em auto; padding: 0 1em; background: white; color: {INK};
       font: 15px/1.45 {FONT} }}
h1 {{ font-size: 1.4em }} h2 {{ font-size: 1.1em; margin-top: 2em }}
h1, h2, td:nth-child(2), pre {{ overflow-wrap: anywhere }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px }}
th, td {{ padding: .3em .6em; border-bottom: 1px solid #ccc; text-align: right;
         vertical-align: top }}
td:nth-child(2), th:nth-child(2) {{ text-align: left }}
pre {{ padding: .8em; background: #f3f3f3; white-space: pre-wrap }}
"""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline';"
    " img-src data: blob:"
)
"""Allows the page to run its own scripts, and to load nothing. plotly's parallel coordinates are
drawn by WebGL programs that it generates as text, hence `eval`."""

CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
"""No link to plotly's website, and no button that uploads a figure there."""


def page(
    plot: FrontierPlot, title: str, command: str, importances: Mapping[str, Mapping[str, float]]
) -> str:
    """Return the whole page. Importances are left out while there are too few trials for them."""
    frontier = _figure(plotly_figures.scatter(plot), "frontier")
    sections = {
        "Frontier": f"<p>{escape(plot.caption)}</p>\n{frontier}",
        "Its members": _table([mark.trial for mark in plot.members]),
        "Reproduce it with": f"<pre><code>{escape(command)}</code></pre>",
    }
    if (lines := plotly_figures.parallel_coordinates(plot)) is not None:
        sections["Parameters"] = _figure(lines, "parameters", 480)
    if importances and len(plot.marks) >= MIN_TRIALS:
        bars = plotly_figures.importance_bars(importances)
        sections["Importance of the parameters"] = _figure(bars, "importances", 380)
    return _document(title, sections)


def _document(title: str, sections: Mapping[str, str]) -> str:
    from plotly.offline import get_plotlyjs

    body = "\n".join(f"<h2>{head}</h2>\n{html}" for head, html in sections.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def _figure(figure: Figure, name: str, height: int = 520) -> str:
    """Return the HTML of a figure; `name` is its id."""
    font = {"color": INK, "family": FONT, "size": 13}
    figure.update_layout(template="plotly_white", height=height, colorway=COLOURS, font=font)
    html: str = figure.to_html(
        config=CONFIG,
        include_plotlyjs=False,
        full_html=False,
        default_height=f"{height}px",
        div_id=name,
    )
    return html


def _table(members: Sequence[Trial]) -> str:
    """List the members, one a row: parameters, results, and the key of the run's record."""
    if not members:
        return "<p>no trial is within every limit</p>"
    rows = [_row("th", HEADS)] + [_row("td", _cells(trial)) for trial in members]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _cells(trial: Trial) -> list[str]:
    found = trial.quantities
    numbers = (
        (found.get("accuracy"), 100, ".2f"),
        (trial.reported.get("accuracy"), 100, ".2f"),
        (found.get("mflops"), 1, ".4g"),
        (found.get("latency_ms"), 1, ".3g"),
    )
    return [
        str(trial.number),
        " ".join(f"{name}={value}" for name, value in trial.params.items()),
        *("-" if value is None else format(unit * value, form) for value, unit, form in numbers),
        (trial.key or "-")[:SHORT],
    ]
