"""HTML and SVG as text that is escaped where it is written, and the document around it.

The figures are SVG that is drawn here: plotly's script alone is 4.5 MB, and it needs a policy
that lets a page run text as code. This page runs one script, named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

VOID = {"br", "img", "input", "meta"}
STYLE, SCRIPT = (Path(__file__).with_name(name).read_text() for name in ("style.css", "script.js"))
WIDE, NARROW = 816, 342
"""The two widths in pixels that figures are drawn in; the style sheet shows one of them."""


class Markup(str):
    """Text that is HTML already; any other text is escaped by `el`."""


def el(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an element. Of attributes, `class_` is `class` and `data_x` is `data-x`."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{given}>" + ("" if tag in VOID else f"{join(children)}</{tag}>"))


def join(parts: Iterable[str]) -> Markup:
    """Return parts of a page as one, those that are no Markup escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def paragraph(sentences: str, class_: str = "") -> Markup:
    """Return sentences whose numbers stay on one line with their units."""
    whole = sentences.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0")
    return el("p", whole, class_=class_ or None)


def section(title: str, *parts: str, note: str = "") -> Markup:
    """Return a section of the page; `note` is a sentence beneath its title."""
    name = title.lower().replace(" ", "-")
    notes = [paragraph(note, "note")] if note else []
    return el("section", el("h2", title), *notes, *parts, id=name)


def figure(
    draw: Callable[[int], tuple[float, Markup]], label: str, role: str = "img", **data: object
) -> Markup:
    """Return a drawing in both widths; `draw(width)` gives its height and its content."""
    drawn = []
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        height, content = draw(width)
        box = f"0 0 {width} {height:.0f}"
        drawn.append(el("svg", content, class_=name, viewBox=box, role=role, aria_label=label))
    return el("figure", *drawn, **data)


def text(x: float, y: float, content: str, class_: str = "", **attributes: object) -> Markup:
    """Return a line of text in a drawing."""
    return el("text", content, x=x, y=y, class_=class_ or None, **attributes)


def shortened(content: str, width: float) -> str:
    """Cut a text to about this width in a drawing."""
    letters = max(1, int(width / 6.8))
    return content if len(content) <= letters else f"{content[: letters - 1]}…"


def line(x1: float, y1: float, x2: float, y2: float, class_: str = "grid") -> Markup:
    """Return a straight line in a drawing."""
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, **attributes: object) -> Markup:
    """Return a line through points in a drawing."""
    steps = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return el("path", d=f"M{steps}", class_=class_, **attributes)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], class_: str = "") -> Markup:
    """Return a table, of class `texts` if it has texts in place of numbers.

    The cells of a row beyond the heads are lines beneath it, in full width.
    """
    bodies = []
    for row in rows:
        cells, below = row[: len(heads)], row[len(heads) :]
        lines = [el("tr", *(el("td", cell) for cell in cells))]
        lines += [
            el("tr", el("td", cell, colspan=len(heads)), class_="below") for cell in below if cell
        ]
        bodies.append(el("tbody", *lines))
    head = el("thead", el("tr", *(el("th", one, scope="col") for one in heads)))
    return el("table", head, *bodies, class_=class_ or None)


def command(words: str) -> Markup:
    """Return a command, broken between its words only; one click selects it all."""
    spans = [el("span", word) for word in words.split(" ")]
    spaced = [part for span in spans for part in (" ", span)][1:]
    return el("pre", el("code", *spaced))


def data(name: str, value: Any) -> Markup:
    """Return values for the page's script, which reads them from the element called `name`."""
    encoded = json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return el("script", Markup(encoded), type="application/json", id=name)


def document(title: str, *parts: str) -> str:
    """Return the whole page, which may run its own style and script and load nothing."""
    policy = (
        f"default-src 'none'; script-src '{_digest(SCRIPT)}'; style-src '{_digest(STYLE)}';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(STYLE)),
    )
    script = el("script", Markup(SCRIPT))
    body = el("body", el("main", el("h1", title), *parts), script)
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _digest(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
