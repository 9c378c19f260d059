"""The picture of a study as a file: the frontier among all trials, as a page, a PNG or an SVG.

plotly and matplotlib are imported when something is drawn, so that nobody else waits for them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from moist.errors import ConfigError
from moist.reporting import page as report_html
from moist.reporting.picture import (
    BEYOND,
    BLUE,
    GREY,
    INK,
    KEPT,
    MEMBERS,
    RED,
    SPREAD,
    Errors,
    Mark,
    Picture,
    columns,
    label,
    picture_of,
)
from moist.results.objectives import Objective
from moist.results.trials import Trial
from moist.store.objects import sync

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

SUFFIXES = (".html", ".png", ".svg")
INCHES, DPI = (9, 6), 200
"""Of a PNG; at 900 pixels of width its text is as large as a page's."""
SETTINGS: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moist",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e3e3",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
"""matplotlib's; an SVG's text stays text, and its ids are the same each time."""


def save_frontier(
    path: Path,
    trials: Sequence[Trial],
    frontier: Sequence[Trial],
    x: Objective,
    y: Objective,
    title: str,
    command: str,
    *,
    errors: Errors | None = None,
    importances: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Draw every complete trial and the frontier's members; the suffix of `path` says how.

    `command` is what repeats it all; `errors` the mean and standard deviation of `y`, as it is
    stored, by a member's number; `importances` the share of each parameter, by objective (only
    pages show them). The file is written whole, or what was there stays. Raises ConfigError when
    nothing can be drawn, or not there.
    """
    kind = _kind(path)
    picture = picture_of(trials, frontier, x, y, errors or {})
    if kind == "html":
        content = report_html.page(picture, title, command, importances or {}).encode()
    else:
        content = _drawn(picture, title, command, kind)
    _write(path, content)


def check_suffix(path: Path | None) -> None:
    """Raise ConfigError, before anything is computed for it, for a file that can't be drawn."""
    if path is not None:
        _kind(path)


def _kind(path: Path) -> str:
    """What the suffix asks for, if the folder is there."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ConfigError(
            f"can't draw `{path}`: its name ends in none of {', '.join(SUFFIXES)}",
            "for example: frontier.html",
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"can't write `{path}`: there is no folder `{path.parent}`", "create it first"
        )
    return kind[1:]


def _write(path: Path, content: bytes) -> None:
    """Put a file in place whole, or leave what was there."""
    tmp = path.with_name(f".{uuid4().hex}.tmp")
    try:
        tmp.write_bytes(content)
        sync(tmp)
        os.replace(tmp, path)
    except OSError as error:
        raise ConfigError(
            f"can't write `{path}`: {error.strerror}", "name another file"
        ) from error
    finally:
        with suppress(OSError):
            tmp.unlink()


def _drawn(picture: Picture, title: str, command: str, kind: str) -> bytes:
    """The bytes of a PNG or an SVG; the same for the same picture."""
    content = BytesIO()
    metadata = {"Title": title, "Description": command}
    with _matplotlib() as drawing:
        figure = drawing(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, picture)
        axes.set_title(title, loc="left", pad=24, parse_math=False, wrap=True)
        axes.annotate(
            picture.said, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points"
        )
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        undated = {"Date": None} if kind == "svg" else {}
        figure.savefig(content, format=kind, dpi=DPI, metadata={**metadata, **undated})
    return content.getvalue()


@contextmanager
def _matplotlib() -> Iterator[type[Drawing]]:
    """matplotlib as it comes, whatever the user's style file says, and silent on stderr.

    It logs that it builds its font cache, and warns of a letter that its font lacks: that one is
    a box in a PNG, while an SVG's reader has fonts of their own.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib
        from matplotlib.figure import Figure as Drawing

        with matplotlib.rc_context(), warnings.catch_warnings():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(SETTINGS)
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            yield Drawing
    finally:
        logger.setLevel(level)


def _draw(axes: Axes, picture: Picture) -> None:
    def dots(marks: Sequence[Mark], name: str, **look: Any) -> None:
        if marks:
            axes.scatter([m.x for m in marks], [m.y for m in marks], label=name, **look)

    dots(picture.kept, KEPT, s=36, color=BLUE, alpha=0.55, linewidths=0)
    dots(picture.beyond, BEYOND, s=36, color=GREY, marker="x")
    axes.plot(*columns(picture.steps, 2), color=RED)
    dots(picture.members, MEMBERS, s=60, color=RED, marker="D", zorder=3)
    if picture.spreads:
        x, mean, sd = columns(picture.spreads, 3)
        axes.errorbar(x, mean, sd, fmt="_", color=INK, capsize=3, label=SPREAD, zorder=4)
    if ticks := picture.ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlabel=label(picture.x), ylabel=label(picture.y), xmargin=0.08)
    _number(axes, picture)


def _number(axes: Axes, picture: Picture) -> None:
    """The members' numbers beside them, each moved on until it covers no other (in points)."""
    vertical, across = picture.free
    right, up = 1 if across == "right" else -1, 1 if vertical == "top" else -1
    placed: list[tuple[float, float]] = []
    wide = 7.5 * max((len(str(mark.trial.number)) for mark in picture.members), default=0)
    for mark in picture.members:
        at = axes.transData.transform((mark.x, mark.y)) * 72 / axes.figure.dpi
        spot = at[0] + 6 * right, at[1] + 6 * up
        while any(abs(spot[0] - x) < wide and abs(spot[1] - y) < 12 for x, y in placed):
            spot = spot[0], spot[1] + 12 * up
        placed.append(spot)
        axes.annotate(
            str(mark.trial.number), (mark.x, mark.y), spot - at, textcoords="offset points",
            ha="left" if right == 1 else "right", va="bottom" if up == 1 else "top", weight="bold",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.7},
        )  # fmt: skip
