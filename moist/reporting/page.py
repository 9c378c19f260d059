"""The page of a study: one HTML file that needs no network, with everything in it escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from moist.reporting import charts
from moist.reporting.picture import COLOURS, INK, Picture
from moist.reporting.terminal import SHORT
from moist.results.trials import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ENOUGH = 10
"""Complete trials before the importance of a parameter means anything."""

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
"""What a browser lets the page do: run its own scripts, and load nothing from anywhere. plotly's
parallel coordinates are drawn by WebGL programs that it puts together as text, hence `eval`."""

CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
"""No link to plotly's makers, nor the button that uploads a figure to them."""


def page(
    picture: Picture, title: str, command: str, importances: Mapping[str, Mapping[str, float]]
) -> str:
    """The whole page. Importances are left out while there are too few trials for them."""
    counts, frontier = escape(picture.said), _chart(charts.scatter(picture), "frontier")
    sections = {
        "Frontier": f"<p>{counts}</p>\n{frontier}",
        "Its members": _table([mark.trial for mark in picture.members]),
        "Repeat it with": f"<pre><code>{escape(command)}</code></pre>",
    }
    if (lines := charts.parallel(picture)) is not None:
        sections["Parameters"] = _chart(lines, "parameters", 480)
    if importances and len(picture.marks) >= ENOUGH:
        bars = charts.bars(importances)
        sections["Importance of the parameters"] = _chart(bars, "importances", 380)
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


def _chart(figure: Figure, name: str, height: int = 520) -> str:
    """A figure that draws itself; `name` is its id."""
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
    """One row a member: what it is, what it reached, and the key that its run is kept under."""
    if not members:
        return "<p>no trial keeps every limit</p>"
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
