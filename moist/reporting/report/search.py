"""What a search did: hypervolume by trial, parameters, importance, and trials without a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from moist.reporting.frontier_plot import PRINTED, FrontierPlot
from moist.reporting.report.axes import Scale, axes, scale_of
from moist.reporting.report.markup import (
    Markup,
    command,
    el,
    figure,
    join,
    line,
    path,
    section,
    shortened,
    table,
    text,
)
from moist.reporting.study_tables import HEADS, OUTCOMES, format_params, format_quantity
from moist.results import queries
from moist.results.objectives import SPREAD, Objective
from moist.results.trials import Trial

MAX_TICKS = 8
"""An axis with at most this many values has a tick at each."""
MOST_ROWS = 50
"""So many trials without a result are listed."""


def _exact(trial: Trial) -> Trial:
    """Return a trial that ties with no other: each adds to the volume by its own latency."""
    values = {name: value for name, value in trial.quantities.items() if name != SPREAD}
    return trial.model_copy(update={"quantities": values})


def hypervolume_section(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Markup:
    """Draw the volume that the frontier dominates after each trial, up to the worst of all."""
    complete = [_exact(trial) for trial in trials if trial.state == "complete"]
    reference = queries.default_reference(complete, objectives)
    volumes, kept = [], list[Trial]()
    for trial in complete:
        kept = queries.members([*kept, trial], objectives)
        volumes.append(queries.hypervolume(kept, objectives, reference))
    if not volumes[-1]:
        return section("Hypervolume", el("p", "No trial dominates another, so there is none."))
    shares = [volume / volumes[-1] for volume in volumes]
    last = next(i for i, share in enumerate(shares) if share > 1 - 1e-9)

    def drawn(width: int) -> tuple[float, Markup]:
        numbers = [trial.number for trial in complete]
        x = scale_of([0, max(*numbers, 1)], 38, width - 14, log=False, margin=0.01)
        y = Scale(math.floor(10 * shares[0]) * 10 - 1, 101, 144, 26)
        steps = [(x(numbers[0]), y(100 * shares[0]))]
        for number, share in zip(numbers, shares, strict=True):
            steps += [(x(number), steps[-1][1]), (x(number), y(100 * share))]
        grid = axes(x, y, "trial", "share of the final hypervolume, %")
        return 190.0, join([*grid, path([*steps, (x.end, steps[-1][1])], "frontier")])

    bounds = ", ".join(
        f"{format_quantity(name, value)} {HEADS[name]}" for name, value in reference.items()
    )
    return section(
        "Hypervolume",
        figure(drawn, "hypervolume by trial"),
        note=f"The volume that the frontier dominates, up to {bounds}. Trial"
        f" {complete[last].number} was the last to enlarge it.",
    )


def parameters_section(plot: FrontierPlot) -> Markup:
    """Draw each trial as a line through its parameters and its results, members in color."""
    names = dict.fromkeys(name for mark in plot.marks for name in mark.trial.params)
    columns = {name: [mark.trial.params.get(name, "-") for mark in plot.marks] for name in names}
    varied = {name: cells for name, cells in columns.items() if len(set(map(str, cells))) > 1}
    if not varied:
        return Markup("")
    for axis, values in ((plot.x, [m.x for m in plot.marks]), (plot.y, [m.y for m in plot.marks])):
        varied[PRINTED[axis.name].name] = values
    members = {mark.trial.number for mark in plot.members}
    order = sorted(range(len(plot.marks)), key=lambda i: plot.marks[i].trial.number in members)

    def drawn(width: int) -> tuple[float, Markup]:
        gap, parts, places = 62.0, [], []
        for row, (name, cells) in enumerate(varied.items()):
            height = 34 + gap * row
            positions, ticks = _axis(cells, 24, width - 24)
            places.append([(x, height) for x in positions])
            parts.append(line(24, height, width - 24, height, "axis"))
            parts.append(text(0, height - 14, shortened(name, width), "label on"))
            right = -1e9
            for x, label in ticks:
                label = shortened(label, 90)
                if x - right > 6.5 * len(label) + 4:
                    parts.append(text(x, height + 16, label, "tick middle on"))
                    right = x + 3 * len(label)
        lines = []
        for i in order:
            number = plot.marks[i].trial.number
            kind = "line member" if number in members else "line"
            points = [place[i] for place in places]
            lines.append(path(points, kind, data_trial=number))
        return 34 + gap * (len(varied) - 1) + 26, join([*lines, *parts])

    label = "each trial as a line through its parameters and results"
    return section(
        "Parameters", figure(drawn, label),
        note="One line a trial; those of the frontier in color. The chosen one stands out.",
    )  # fmt: skip


def _axis(
    cells: Sequence[object], start: float, end: float
) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the cells' places on an axis, and its ticks; categories are spread evenly."""
    numbers = [float(cell) for cell in cells if isinstance(cell, int | float)]
    if len(numbers) == len(cells) and not any(isinstance(cell, bool) for cell in cells):
        scale = scale_of(numbers, start, end, margin=0.0)
        few = sorted(set(numbers))
        ticks = few if len(few) <= MAX_TICKS else _spaced(scale)
        return [scale(n) for n in numbers], [(scale(t), f"{t:.4g}") for t in ticks]
    texts = sorted(set(map(str, cells)))
    at = {text: start + (end - start) * (i + 0.5) / len(texts) for i, text in enumerate(texts)}
    return [at[str(cell)] for cell in cells], [(at[text], text) for text in texts]


def _spaced(scale: Scale) -> list[float]:
    """Return both ends of an axis, and round values between."""
    room = 0.08 * abs(scale.end - scale.start)
    inner = [
        tick for tick in scale.ticks(5) if scale.start + room < scale(tick) < scale.end - room
    ]
    return [scale.low, *inner, scale.high]


def importance_section(
    importances: Mapping[str, Mapping[str, float]], complete: int, enough: int
) -> Markup:
    """Draw how much each parameter matters for each objective, from `complete` trials."""
    if not importances:
        few = f"It is estimated from {enough} complete trials or more, and there are {complete}."
        return section("Importance of the parameters", el("p", few))
    drawings = []
    for objective, shares in importances.items():
        order = sorted(shares, key=lambda name: -shares[name])
        rows = [(name, shares[name]) for name in order]
        drawings.append(el("h3", PRINTED[objective].name if objective in PRINTED else objective))
        drawings.append(figure(partial(_bars, rows), objective))
    note = (
        f"Each parameter's share in what sets the best of n = {complete} trials apart (Optuna's"
        " PED-ANOVA). Costs are left out: they follow from the architecture alone."
    )
    return section("Importance of the parameters", *drawings, note=note)


def _bars(rows: Sequence[tuple[str, float]], width: int) -> tuple[float, Markup]:
    left = min(200.0, 0.36 * width)
    parts = []
    for i, (name, share) in enumerate(rows):
        y = 6 + 24.0 * i
        room = width - left - 50
        parts.append(text(left - 8, y + 12, shortened(name, left - 8), "tick end"))
        parts.append(
            el("rect", x=left, y=y, width=max(1.0, room * share), height=15, class_="bar")
        )
        parts.append(text(left + room * share + 6, y + 12, f"{100 * share:.0f} %", "tick"))
    return 24.0 * len(rows) + 8, join(parts)


def unfinished_section(trials: Sequence[Trial]) -> Markup:
    """List the trials without a result and why: failed, pruned, or rejected before training."""
    found = [trial for trial in trials if trial.state in {"failed", "pruned"}]
    waiting = [trial for trial in trials if trial.state in {"running", "waiting"}]
    note = f"{len(found)} of {len(trials)} trials have no result"
    note += f", {len(waiting)} more are not finished." if waiting else "."
    rows = []
    for trial in found[:MOST_ROWS]:
        rejected = trial.state == "pruned" and not trial.seconds and not trial.curves
        state = OUTCOMES["screened"] if rejected else trial.state
        reason = (trial.reason or "no reason is on record").strip()
        rows.append([str(trial.number), state, reason, format_params(trial.params)])
    more = len(found) - MOST_ROWS
    tail = [el("p", f"and {more} more", class_="note")] if more > 0 else []
    parts = [table(["trial", "state", "reason"], rows, "texts")] if rows else []
    return section("Failed, pruned and rejected trials", *parts, *tail, note=note)


def reproduce_section(words: str) -> Markup:
    """Give the command that made the study."""
    return section("Reproduce it with", command(words))
