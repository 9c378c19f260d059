"""One run: its curves, confusions, routes, example images, stages and machine."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from moist.config.systems import system_of
from moist.errors import MoistError, first_line
from moist.reporting.report.axes import Scale, axes
from moist.reporting.report.markup import (
    Markup,
    command,
    el,
    figure,
    join,
    paragraph,
    path,
    section,
    shortened,
    table,
    text,
)
from moist.reporting.report.verdict import title_of
from moist.reporting.run_tables import format_latency, timed_rows
from moist.reporting.terminal import duration
from moist.results.report import Report
from moist.serving.inspection import Example, Group, Inspection, inspect, learning_curves
from moist.store.calls import Backend
from moist.store.keys import SHORT
from moist.store.objects import Damaged
from moist.store.runs import Run

MOST_CLASSES = 20
"""More classes are not shown as a matrix, but by the most frequent confusions."""
MOST_ROWS = 100
"""Classes in the map from classes to students."""
MOST_CONFUSIONS = 15


def model_sections(run: Run, store: Backend) -> list[Markup]:
    """Return the sections of a run's model; what is no longer stored, a sentence says."""
    return [
        _accuracies(run),
        _curves(run, store),
        _map(run.report),
        _routing(run.report),
        *_inspected(run, store),
        _stages(run, store),
    ]


def machine_section(runs: Sequence[Run]) -> Markup:
    """Name the machines that measured the runs' latencies, and moist's version."""
    names = dict.fromkeys(
        f"{m.device}; {m.threads} thread{'' if m.threads == 1 else 's'}; torch {m.torch};"
        f" {m.system}"
        for m in (run.report.machine for run in runs)
    )
    versions = ", ".join(dict.fromkeys(run.moist for run in runs))
    items = [el("p", name) for name in names] or [el("p", "No run is on record any more.")]
    return section("Machine", *items, *([el("p", f"moist {versions}")] if versions else []))


def _gone(error: MoistError) -> Markup:
    return el("p", f"Not available: {first_line(error)}.", class_="gone")


def _accuracies(run: Run) -> Markup:
    rows = [
        [
            name,
            f"{100 * row.accuracy:.2f}",
            "-" if row.val_accuracy is None else f"{100 * row.val_accuracy:.2f}",
            f"{row.mflops:.4g}",
            f"{row.params / 1e6:.3f}",
            format_latency(row.latency_ms["batch_1"], (row.latency_spread or {}).get("batch_1"))
            if row.latency_ms
            else "-",
        ]
        for name, row in timed_rows(run.report, run.config).items()
    ]
    n = f"n = {run.report.n_test} test and {run.report.n_val} validation images"
    return section(
        "The model beside its baselines",
        table(["model", "test %", "val %", "MFLOPs", "params M", "ms, batch 1"], rows),
        command(run.command),
        note=f"Run {run.key[:SHORT]}: {title_of(run)}; {n}. A multiply-add is one FLOP.",
    )


def _curves(run: Run, store: Backend) -> Markup:
    title = "Learning curves"
    try:
        found = learning_curves(store, run)
    except MoistError as error:
        return section(title, _gone(error))
    order = list(system_of(run.config).trains)
    stages = sorted(found, key=lambda name: _place(order, name.split()[0]))
    figures = []
    for name in stages:
        validated = "val_accuracy" in found[name][0]
        field = "val_accuracy" if validated else "loss"
        scale = 100 if validated else 1
        values = [(epoch, scale * row[field]) for epoch, row in enumerate(found[name], 1)]
        label = "validation accuracy, %" if validated else "training loss"
        figures.append(el("div", el("h3", name), _curve(values, label), class_="small"))
    return section(title, el("div", *figures, class_="columns"))


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _curve(values: Sequence[tuple[float, float]], label: str) -> Markup:
    heights = [value for _, value in values]
    room = 0.06 * (max(heights) - min(heights)) or 1.0
    x = Scale(min(values[0][0], 1), max(values[-1][0], 2), 38, 380)
    y = Scale(min(heights) - room, max(heights) + room, 150, 24)
    end = text(x(values[-1][0]), y(heights[-1]) - 7, f"{heights[-1]:.3g}", "on end")
    parts = [*axes(x, y, "epoch", label, few=True)]
    parts.append(path([(x(at), y(value)) for at, value in values], "frontier"))
    drawing = el("svg", join([*parts, end]), viewBox="0 0 390 192", role="img", aria_label=label)
    return drawing


def _map(report: Report) -> Markup:
    title = "Classes and students"
    if not report.sent:
        return section(title, el("p", "This model routes no images, so there is no such map."))
    own = {name: j for j, names in enumerate(report.clusters) for name in names}
    order = sorted(report.sent, key=lambda name: own.get(name, -1))
    rows = [
        [count / max(1, sum(report.sent[name])) for count in report.sent[name]]
        for name in order[:MOST_ROWS]
    ]
    columns = [f"student {j}" for j in range(len(rows[0]))]
    marked = {(i, own[name]) for i, name in enumerate(order[:MOST_ROWS]) if name in own}
    shown = [[_percent(share) for share in row] for row in rows]
    more = f" The first {MOST_ROWS} of {len(order)} classes." if len(order) > MOST_ROWS else ""
    return section(
        title,
        _matrix(order[:MOST_ROWS], columns, rows, shown, marked),
        note="Share of each class's test images that goes to each student, in per cent; outlined:"
        f" the student of the class's cluster.{more}",
    )


def _routing(report: Report) -> Markup:
    title = "Routing confusion"
    if not report.sent:
        return section(title, el("p", "This model routes no images."))
    k = len(report.clusters)
    counts = report.routed()
    rows = [[count / max(1, sum(row)) for count in row] for row in counts]
    shown = [[str(count) if count else "" for count in row] for row in counts]
    heads = [f"{j}: {', '.join(names)}" for j, names in enumerate(report.clusters)]
    diagonal = {(i, i) for i in range(k)}
    accuracy = "" if report.routing_accuracy is None else f"{100 * report.routing_accuracy:.1f} %"
    oracle = report.baselines.oracle
    bound = (
        f" With every image routed to its cluster the accuracy would be"
        f" {100 * oracle.accuracy:.1f} %, an upper bound."
        if oracle
        else ""
    )
    columns = [f"student {j}" for j in range(k)]
    return section(
        title,
        _matrix(heads, columns, rows, shown, diagonal),
        note=f"Test images by the cluster of their class and the student that they went to;"
        f" {accuracy} go to their cluster's student.{bound}",
    )


def _inspected(run: Run, store: Backend) -> list[Markup]:
    confusion, examples = "Class confusion", "Example images"
    try:
        found = inspect(store, run)
    except MoistError as error:
        return [section(confusion, _gone(error)), section(examples, _gone(error))]
    return [section(confusion, *_confusion(found)), _examples(found, run)]


def _confusion(found: Inspection) -> list[Markup]:
    names = found.classes
    if len(names) > MOST_CLASSES:
        wrong = [
            (count, names[i], names[j])
            for i, row in enumerate(found.confusion)
            for j, count in enumerate(row)
            if i != j and count
        ]
        wrong.sort(key=lambda one: -one[0])
        rows = [[label, taken, str(n)] for n, label, taken in wrong[:MOST_CONFUSIONS]]
        said = f"The most frequent of {len(wrong)} confusions of {len(names)} classes."
        return [
            paragraph(said, "note"),
            table(["class", "taken for", "test images"], rows, "texts"),
        ]
    rows_of_shares = [[count / max(1, sum(row)) for count in row] for row in found.confusion]
    shown = [[str(count) if count else "" for count in row] for row in found.confusion]
    diagonal = {(i, i) for i in range(len(names))}
    note = paragraph("Test images by their class (rows) and the predicted one.", "note")
    return [note, _matrix(names, names, rows_of_shares, shown, diagonal)]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share else ""


def _matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float]],
    shown: Sequence[Sequence[str]],
    marked: set[tuple[int, int]],
) -> Markup:
    """Draw cells, darker for a larger share of their row; `marked` are outlined."""

    def drawn(width: int) -> tuple[float, Markup]:
        left = min(max(map(len, rows)) * 7.0 + 14, 0.32 * width)
        cell = min(64.0, (width - left - 2) / len(columns))
        height = min(cell, 30.0)
        tilted = max(map(len, columns)) * 7 > cell
        top = min(90.0, max(map(len, columns)) * 5.4 + 14) if tilted else 22.0
        parts = []
        for j, name in enumerate(columns):
            x = left + cell * (j + 0.5)
            turn = f"rotate(-45 {x:.1f} {top - 6:.1f})" if tilted else None
            name = shortened(name, 100)
            parts.append(
                text(x, top - 6, name, "tick" if tilted else "tick middle", transform=turn)
            )
        for i, name in enumerate(rows):
            y = top + height * i
            label = shortened(name, left - 8)
            parts.append(text(left - 8, y + height / 2 + 4, label, "tick end"))
            for j, share in enumerate(shares[i]):
                box = {"x": left + cell * j + 1, "y": y + 1}
                box |= {"width": cell - 2, "height": height - 2}
                kind = "cell own" if (i, j) in marked else "cell"
                parts.append(el("rect", **box, class_=kind, fill_opacity=0.04 + 0.5 * share))
                if shown[i][j] and cell > 6.4 * len(shown[i][j]) + 4:
                    at = left + cell * (j + 0.5), y + height / 2 + 4
                    parts.append(text(*at, shown[i][j], "value"))
        return top + height * len(rows) + 4, join(parts)

    return figure(drawn, f"{len(rows)} by {len(columns)} matrix")


def _examples(found: Inspection, run: Run) -> Markup:
    groups = [_group(group, run.report) for group in found.groups]
    sure = any(e.confidence is not None for g in found.groups for e in _all(g))
    note = "Drawn at random from the test images (seed 0)"
    note += "; in per cent: the router's confidence." if sure else "."
    return section("Example images", *groups, note=note)


def _all(group: Group) -> tuple[Example, ...]:
    return group.examples_right + group.examples_wrong


def _group(group: Group, report: Report) -> Markup:
    total = group.right + group.wrong
    name = "All images" if not report.sent else "Not routed"
    if group.expert is not None:
        own = report.clusters[group.expert] if group.expert < len(report.clusters) else ()
        name = f"Student {group.expert}: {', '.join(own)}" if own else f"Student {group.expert}"
    parts = [el("h3", name, el("small", f" {group.right} of {total} right"))]
    for kind, examples in (("right", group.examples_right), ("wrong", group.examples_wrong)):
        if examples:
            strip = [_example(one, kind) for one in examples]
            parts.append(el("div", el("span", kind, class_="kind"), *strip, class_="strip"))
    return el("div", *parts, class_="group")


def _example(one: Example, kind: str) -> Markup:
    encoded = base64.b64encode(one.png).decode()
    said = one.label if kind == "right" else f"{one.label}, taken for {one.predicted}"
    caption = one.label if kind == "right" else f"{one.label} → {one.predicted}"
    sure = "" if one.confidence is None else f"{100 * one.confidence:.0f} %"
    image = el("img", src=f"data:image/png;base64,{encoded}", alt=f"a test image: {said}")
    lines = [el("span", caption), *([el("span", sure, class_="sure")] if sure else [])]
    return el("div", image, *lines, class_=f"example {kind}")


def _stages(run: Run, store: Backend) -> Markup:
    title = "Stages"
    seconds, computed = run.report.stage_seconds, run.computed
    created = {stage: _created(store, keys) for stage, keys in run.artifacts.items()}
    stages = sorted(seconds, key=lambda stage: (created.get(stage, ""), stage))
    most = max(seconds.values(), default=0.0) or 1.0

    def drawn(width: int) -> tuple[float, Markup]:
        left, parts = 138.0, []
        room = width - left - 118
        for i, stage in enumerate(stages):
            y, total = 4 + 24.0 * i, seconds[stage]
            here = total if computed is None else computed.get(stage, 0.0)
            parts.append(text(left - 8, y + 12, stage, "tick end"))
            for part, kind in ((total, "bar reused"), (here, "bar")):
                if part:
                    wide = max(1.5, room * part / most)
                    parts.append(el("rect", x=left, y=y, width=wide, height=15, class_=kind))
            label = duration(total) + ("" if here else " reused")
            parts.append(text(left + max(1.5, room * total / most) + 6, y + 12, label, "tick"))
        return 24.0 * len(stages) + 8, join(parts)

    return section(title, figure(drawn, "seconds by stage"), note=_stages_note(run))


def _stages_note(run: Run) -> str:
    total = run.report.seconds
    if run.computed is None:
        return f"{duration(total)} to compute; what was reused is not on record."
    here = sum(run.computed.values())
    return (
        f"{duration(total)} of stages, in the order of their computation: {duration(here)}"
        f" computed for this run, {duration(max(0.0, total - here))} saved by reuse (outlined)."
    )


def _created(store: Backend, keys: Sequence[str]) -> str:
    """Return when the last of a stage's outputs was stored; empty if none is."""
    found = []
    for key in keys:
        try:
            manifest = store.objects.manifest(key)
        except Damaged:
            continue
        found += [manifest.created] if manifest else []
    return max(found, default="")
