"""Draw the figures in analysis/figures from the runs in analysis/results.

    uv run python -m analysis.figures

frontier.svg has accuracy over multiply-adds. A point is a setting: the mean over its seeds ± the
standard deviation. A model that defers has a curve, by its threshold; its cost is the mean over
the test images. paper.svg is the paper's Figure 3: accuracy by number and by width of students.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from analysis.experiments import FASTNET, PLAN, ROOT, Experiment
from analysis.rows import Row, settings
from moist.disk import write_atomically
from moist.reporting.frontier_plot import COLOURS, GREY, INK
from moist.reporting.matplotlib_figure import content, new_figure
from moist.results.aggregate import Spread, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = ROOT / "analysis" / "figures" / "frontier.svg"
PUBLISHED = {
    "ResNet-8": (12.50, 87.86),
    "ShuffleNetV2-x0.5": (10.90, 90.13),
    "MobileNetV2-x0.5": (27.97, 92.88),
    "ResNet-20": (40.81, 92.60),
}
"""MMACs and test % as published, of 200 epochs or more: github.com/chenyaofo/pytorch-cifar-models,
and ResNet-8 of github.com/D-X-Y/AutoDL-Projects. Most chose the epoch by test images."""
SWEEPS = FIGURE.with_name("paper.svg")
WIDTHS = {
    2: 27.93, 4: 64.64, 8: 73.11, 16: 80.11, 32: 80.30, 64: 81.99, 128: 82.49, 256: 83.90,
    512: 84.45, 1024: 85.17, 2048: 85.31, 4096: 84.96,
}  # fmt: skip
"""Test % of the paper's mixture by its students' width, from its authors' logs."""
INCHES = (8, 5)
TITLE = "Mean ± one standard deviation over seeds; x: published"


class Point(NamedTuple):
    """A setting of an experiment; `curve` has pairs of MMACs and test % if its model defers.

    It is that of the first seed.
    """

    name: str
    mmacs: float
    percent: Spread
    curve: Sequence[tuple[float, float]]


def points(experiment: Experiment) -> Iterator[Point]:
    """Yield the settings of an experiment that have runs."""
    for name, runs in settings(experiment.done()).items():
        rows = [*runs.values()]
        mmacs = spread([float(row["mmacs"]) for row in rows])
        percent = spread([100 * float(row["accuracy"]) for row in rows])
        value = " ".join(word.partition("=")[2] for word in name.split())
        yield Point(value or experiment.name, mmacs.mean, percent, _curve(rows[0]))


def _curve(row: Row) -> list[tuple[float, float]]:
    found = json.loads(row.get("deferral.curve") or "[]")
    return [(one["mmacs"], 100 * one["accuracy"]) for one in found]


def draw(plan: Sequence[Experiment] = PLAN, path: Path = FIGURE) -> None:
    """Draw the experiments that distill the best teacher, and published figures."""
    with new_figure(INCHES) as figure:
        axes = figure.add_subplot()
        for name, (mmacs, percent) in PUBLISHED.items():
            axes.plot(mmacs, percent, "x", color=GREY)
            _label(axes, name, mmacs, percent, GREY)
        shown = [one for one in plan if one.teacher == FASTNET and one.done()]
        for experiment, colour in zip(shown, COLOURS, strict=False):
            found = [*points(experiment)]
            if len(found) == 1:  # the legend names it
                _mark(axes, found[0], colour, f"{experiment.name} (n={found[0].percent.n})")
                continue
            for number, point in enumerate(found):
                _mark(axes, point, colour, "" if number else experiment.name)
                label = f"{point.name} (n={point.percent.n})"
                _label(axes, label, point.mmacs, point.percent.mean, INK)
        axes.set_xscale("log")
        ticks = [1, 2, 5, 10, 20, 50]
        axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
        axes.minorticks_off()
        axes.set(
            xlim=(1, 80),
            xlabel="million multiply-adds an image (convolutions and linear layers)",
            ylabel="CIFAR-10 test images classified right, %",
        )
        axes.set_title(TITLE, loc="left")
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        write_atomically(path, content(figure, TITLE, "python -m analysis.figures", "svg"))


def draw_paper(plan: Sequence[Experiment] = PLAN, path: Path = SWEEPS) -> None:
    """Draw accuracy by number of students and by width; nothing before the first of these runs."""
    panels = {
        "paper_k": ("number of students", {}),
        "paper_width": ("width of the hidden layer (x: the authors')", WIDTHS),
    }
    shown = {one.name: one for one in plan if one.name in panels and one.done()}
    if not shown:
        return
    with new_figure(INCHES) as figure:
        for axes, (name, experiment) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
        ):
            label, theirs = panels[name]
            found = {int(one.name): one for one in points(experiment) if one.name != "auto"}
            axes.plot([*theirs], [*theirs.values()], "x", color=GREY)
            axes.errorbar(
                [*found],
                [one.percent.mean for one in found.values()],
                [one.percent.sd for one in found.values()],
                fmt="o-",
                color=COLOURS[0],
                capsize=3,
            )
            axes.set(xlabel=label, ylabel="CIFAR-10 test images classified right, %")
            if theirs:
                axes.set_xscale("log", base=2)
        write_atomically(
            path, content(figure, "The paper's Figure 3", "python -m analysis.figures", "svg")
        )


def _mark(axes: Axes, point: Point, colour: str, legend: str) -> None:
    if point.curve:
        axes.plot(*zip(*point.curve, strict=True), color=colour, linewidth=1, alpha=0.6)
    style = {"fmt": "o", "color": colour, "capsize": 3}
    axes.errorbar(point.mmacs, point.percent.mean, point.percent.sd, label=legend or None, **style)


def _label(axes: Axes, text: str, x: float, y: float, colour: str) -> None:
    axes.annotate(
        text, (x, y), (6, -4), textcoords="offset points", color=colour, fontsize="small"
    )


if __name__ == "__main__":
    draw()
    draw_paper()
