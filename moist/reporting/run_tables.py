"""A run's report as tables on stdout. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from moist.config.systems import system_of
from moist.errors import as_typed
from moist.reporting.terminal import between, counted, duration, print_table
from moist.results.expected import Expected, total
from moist.results.report import IN_TORCH, STEADY, Deferral, Measures, Report, times_of
from moist.store.comparison import Difference, differing, value
from moist.store.keys import SHORT

if TYPE_CHECKING:
    from moist.data.survey import Survey
    from moist.store.calls import Call
    from moist.store.runs import Run


def print_runs(runs: Sequence[Run]) -> None:
    """Print recorded runs, one a row, with the parameters in which they differ."""
    names = differing(runs)
    rows = [
        [
            run.key[:SHORT],
            run.created[:16].replace("T", " "),
            f"{100 * run.report.accuracy:.2f}" + (" (oracle)" if run.report.upper_bound else ""),
            "-" if (val := run.report.val_accuracy) is None else f"{100 * val:.2f}",
            f"{run.report.mflops:.4g}",
            " ".join(f"{name}={value(run, name)}" for name in names) or "(defaults)",
        ]
        for run in runs
    ]
    if rows:
        what = "parameters" if len(runs) == 1 else "parameters that differ"
        print_table("", ["run", "created (UTC)", "test %", "val %", "MFLOPs", what], rows)


FIGURES = (
    "loss",
    "ece",
    "mflops",
    "mmacs",
    "params",
    "bytes",
    "latency_ms.",
    "clusters_k",
    "seconds",
    "machine.",
)
"""Beginnings of the figures that are compared in print, beside accuracies; `--json` has all."""


def print_difference(found: Difference) -> None:
    """Print in which parameters, figures and stages two runs differ."""
    heads = ["", *(key[:SHORT] for key in found.runs)]
    figures = {
        name: pair
        for name, pair in found.figures.items()
        if name.startswith(FIGURES) or name.endswith("accuracy")
    }
    tables = {"parameters": found.parameters, "figures": figures, "stages": found.stages}
    for title, pairs in tables.items():
        if pairs:
            rows = [[name, *map(_compared, pair)] for name, pair in pairs.items()]
            print_table(f"{title} that differ", heads, rows)
        else:
            print(f"no {title} differ")
    print(fill(f"stages shared: {', '.join(found.shared) or 'none'}", WIDTH))


def _compared(found: Any) -> str:
    """Format a value, or the keys of a stage's outputs, for comparison."""
    if isinstance(found, tuple):
        return " ".join(key[:SHORT] for key in found) or "-"
    return f"{found:.5g}" if isinstance(found, float) else "-" if found is None else str(found)


def print_plan(calls: Sequence[Call]) -> None:
    """Print the stages that a run would call, and how long those to compute are expected to take.

    A range comes from this machine's records of stages of the same kind.
    """
    rows = [
        [
            call.stage,
            call.key[:SHORT],
            "pull" if call.origin else "reuse" if call.reused else "compute",
            _time(call),
            str(call.expected.records) if call.expected else "-",
        ]
        for call in {call.key: call for call in calls}.values()
    ]
    print_table("", ["stage", "key", "plan", "time", "records"], rows)
    missing = [call for call in calls if not call.reused]
    estimate = f", {expected_time(missing, total(missing))}" if missing else ""
    print(f"{len(missing)} of {counted(len(calls), 'stage')} to compute{estimate}")
    if pulled := [call for call in calls if call.origin]:
        print(f"{len(pulled)} to pull from {pulled[0].origin}")


def _time(call: Call) -> str:
    """Say how long a stage took, or will take."""
    if call.seconds is not None:
        return f"took {duration(call.seconds)}"
    return between(call.expected.low, call.expected.high) if call.expected else UNCOMPARED


UNCOMPARED = "no comparable run yet"


def expected_time(missing: Sequence[Call], whole: Expected | None) -> str:
    """Say how long the missing calls will take in whole, and how many of them are not in it."""
    if whole is None:
        return UNCOMPARED
    text = f"expected to take {between(whole.low, whole.high)}"
    unknown = len({call.key for call in missing if call.expected is None})
    return text + (f" beside {unknown} with {UNCOMPARED}" if unknown else "")


def print_predictions(predictions: Sequence[Mapping[str, Any]]) -> None:
    """Print the classes of images, one a row."""
    if not predictions:
        return
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "image": ("image", str),
        "class": ("class", str),
        "probability": ("probability", "{:.1%}".format),
        "then": ("then", str),
        "expert": ("expert", str),
        "router_confidence": ("router confidence", "{:.1%}".format),
        "deferred": ("deferred", lambda deferred: "yes" if deferred else "no"),
    }
    predictions = [_with_others(row) for row in predictions]
    shown = {name: column for name, column in columns.items() if name in predictions[0]}
    rows = [
        ["-" if row[name] is None else form(row[name]) for name, (_, form) in shown.items()]
        for row in predictions
    ]
    print_table("", [head for head, _ in shown.values()], rows)


def _with_others(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add, as one text, the classes that follow the most probable one, if they were asked for."""
    ranks = [name.removeprefix("class") for name in row if name.startswith("class_")]
    others = [f"{row[f'class{rank}']} {row[f'probability{rank}']:.1%}" for rank in ranks]
    return {**row, "then": ", ".join(others)} if others else row


WIDTH = 80
"""Columns of sentences; commands are not wrapped."""


def print_report(
    report: Report,
    config: Mapping[str, Any],
    command: str,
    computed: Mapping[str, float] | None = None,
) -> None:
    """Print the model beside its baselines, its students, and the command that reproduces it.

    `computed` has the seconds of the stages that the run computed itself, if they are on record.
    """
    print_models(report, config)
    print_times(report, config)
    routed = "deferred test images" if system_of(config).routes_deferred else "test images"
    print_students(report, routed)
    print_classes(report, routed)
    print_routing(report, routed)
    print_deferral(report)
    machine = report.machine
    print(f"n = {report.n_test} test and {report.n_val} validation images")
    if config["teacher.weights"] and report.n_val:
        print("the teacher was supplied: it may have been trained on the validation images")
    stages = ", ".join(f"{name} {duration(s)}" for name, s in report.stage_seconds.items())
    reused = report.seconds - sum(
        (report.stage_seconds if computed is None else computed).values()
    )
    saved = "" if computed is None else f", {duration(max(0.0, reused))} of it saved by reuse"
    print(fill(f"{duration(report.seconds)} to compute{saved}: {stages}", WIDTH))
    threads = counted(machine.threads, "thread")
    print(f"{machine.device}; {threads}, torch {machine.torch}")
    print(as_typed(f"run {report.key[:SHORT]}; reproduce it with\n  {command}"))


def print_routing(report: Report, routed: str) -> None:
    """Print how often images are routed to their cluster, and the accuracy if all were."""
    if report.routing_accuracy is not None and report.baselines.oracle is not None:
        said = (
            f"routing accuracy {report.routing_accuracy:.2%} of the {routed}; accuracy would be"
            f" {report.baselines.oracle.accuracy:.2%} (an upper bound) with each routed to its"
            " cluster"
        )
        print(fill(said, WIDTH))


def print_deferral(report: Report) -> None:
    """Print how many images were deferred, and how to list the other thresholds."""
    if report.deferral is not None:
        chosen = report.deferral.chosen
        print(
            f"deferred {chosen.deferral_rate:.2%} of the test images"
            f" (threshold {chosen.threshold:.4g}, chosen on the validation images:"
            f" {chosen.val_deferral_rate:.2%});"
            f"\n{as_typed(f'other thresholds: moist curve {report.key[:SHORT]}')}"
        )


def print_curve(deferral: Deferral) -> None:
    """Print every deferral threshold, the chosen one marked."""
    rows = [
        [
            ("> " if point.threshold == deferral.chosen.threshold else "")
            + f"{point.threshold:.4g}",
            f"{100 * point.val_deferral_rate:.1f}",
            f"{100 * point.val_accuracy:.2f}",
            f"{100 * point.deferral_rate:.1f}",
            f"{100 * point.accuracy:.2f}",
            f"{point.mflops:.2f}",
            f"{point.mmacs:.2f}",
        ]
        for point in deferral.curve
    ]
    heads = ["threshold", "val deferred %", "val %", "deferred %", "test %", "MFLOPs", "MMACs"]
    print_table("deferral: accuracy and cost at each threshold", heads, rows)


def models(report: Report, config: Mapping[str, Any]) -> dict[str, Measures]:
    """Return the rows of the tables, by name."""
    system, beside = system_of(config), report.baselines
    name = system.title(config, report.k)
    deferral = ""
    if report.deferral is not None:
        second = config["cascade.fallback"]
        deferral = f", deferring to {'two experts' if second == 'none' else second}"
    found = {
        f"{name}{deferral}": report,
        **({name: beside.first} if beside.first and not system.routes_deferred else {}),
        "the mixture merged": beside.mixture,
        "merged, not refined": beside.gathered,
        "single student": None if system.is_student else beside.student,
        f"teacher {config['teacher.arch']}": beside.teacher,
    }
    return {name: row for name, row in found.items() if row is not None}


def print_models(report: Report, config: Mapping[str, Any]) -> None:
    """Print the accuracy of each model, and its cost per image."""
    heads = [
        config["data.name"], "test %", "val %", "loss", "ECE %",
        "MFLOPs", "MMACs", "params M", "MB",
    ]  # fmt: skip
    rows = [
        [
            name,
            f"{100 * row.accuracy:.2f}",
            "-" if row.val_accuracy is None else f"{100 * row.val_accuracy:.2f}",
            f"{row.loss:.4f}",
            f"{100 * row.ece:.2f}",
            f"{row.mflops:.2f}",
            f"{row.mmacs:.2f}",
            f"{row.params / 1e6:.3f}",
            f"{row.bytes / 1e6:.2f}",
        ]
        for name, row in models(report, config).items()
    ]
    print_table("accuracy, and cost per image (a multiply-add is one)", heads, rows)


def print_times(report: Report, config: Mapping[str, Any]) -> None:
    """Print milliseconds per call, and how many times faster than the teacher in the same call."""
    teacher = report.baselines.teacher.latency_ms or {}
    rows, spreads = [], list[float | None]()
    for name, row in timed_rows(report, config).items():
        cells = [name]
        for batch in teacher if row.latency_ms else ():
            if (median := (row.latency_ms or {}).get(batch)) is None:
                cells += ["-"] * 4
                continue
            p95 = (row.latency_p95_ms or {})[batch]
            count = (row.latency_n or {})[batch]
            spread = (row.latency_spread or {}).get(batch)
            shown = format_latency(median, spread)
            times = "-" if name.endswith(IN_TORCH) else f"{teacher[batch] / median:.1f}"
            cells += [shown, f"{p95:.3g}", times, str(count)]
            spreads.append(spread)
        rows += [cells] if row.latency_ms else []
    heads = [
        f"{head}{size}" for size in (1, 256) for head in ("batch ", "p95 ", "x teacher ", "n ")
    ]
    where = "" if report.latency_torch is None else f" in {config['latency.runtime']}"
    print_table(f"milliseconds per call{where} (median), beside the teacher", ["", *heads], rows)
    if note := about_spreads(spreads):
        print(note)


def timed_rows(report: Report, config: Mapping[str, Any]) -> dict[str, Measures]:
    """Return the rows of the tables of times: of the models, and of the model in torch beside
    another runtime."""
    found = models(report, config)
    if (timings := report.latency_torch) is None:
        return found
    name, *others = found
    beside = report.model_copy(update=times_of(timings))
    return {name: report, f"{name}{IN_TORCH}": beside, **{one: found[one] for one in others}}


def format_latency(ms: float, spread: float | None) -> str:
    """Format a latency as `0.52 ±3%`, without the spread if it is unknown."""
    return f"{ms:.3g}" + ("" if spread is None else f" ±{100 * spread:.0f}%")


def about_spreads(spreads: Sequence[float | None]) -> str:
    """Return a line on the spreads of latencies that are unknown or large; empty if none is."""
    if None in spreads:
        return "latencies without ± were measured by an earlier version: their spread is unknown"
    if max((one for one in spreads if one is not None), default=0.0) > STEADY:
        return (
            f"± above {STEADY:.0%}: `latency.seconds` ended first; measure longer, or on an idle"
            " machine"
        )
    return ""


def print_students(report: Report, routed: str) -> None:
    """Print each student's classes and its accuracy on them (the paper's Fig. 2)."""
    rows = []
    for j, classes in enumerate(report.clusters if report.sent else ()):
        got = sum(counts[j] for counts in report.sent.values())
        own = sum(report.sent[name][j] for name in classes)
        rows.append(
            [
                f"{j}: {', '.join(classes)}",
                str(got),
                f"{100 * own / got:.2f}" if got else "-",
                f"{100 * report.per_cluster_routing_accuracy[j]:.2f}",
                f"{100 * report.per_cluster_accuracy[j]:.2f}",
            ]
        )
    heads = ["student and its classes", "images", "precision %", "recall %", "accuracy %"]
    if rows:
        print_table(f"routing and students on the {routed}", heads, rows)
        print_table(
            f"{routed} by the cluster of their class, and the student that each went to",
            ["cluster", *map(str, range(report.k))],
            [[str(j), *map(str, counts)] for j, counts in enumerate(report.routed())],
        )


MAX_CLASSES = 20
"""Reports of more classes print them only with `--json`."""


def print_classes(report: Report, routed: str) -> None:
    """Print the accuracy on each class, then how many of its test images each student got."""
    if len(report.per_class_accuracy) > MAX_CLASSES:
        print(f"({len(report.per_class_accuracy)} classes: each one's figures are in --json)")
        return
    rows = [
        [
            f"{name}",
            f"{100 * accuracy:.2f}",
            f"{100 * report.baselines.student.per_class_accuracy[name]:.2f}",
            f"{100 * report.baselines.teacher.per_class_accuracy[name]:.2f}",
        ]
        for name, accuracy in report.per_class_accuracy.items()
    ]
    print_table(
        "accuracy on each class of the test images",
        ["class", "model %", "single student %", "teacher %"],
        rows,
    )
    if report.sent:
        sent = [[name, *map(str, counts)] for name, counts in report.sent.items()]
        print_table(
            f"{routed} by class, and the student that each went to",
            ["class", *map(str, range(report.k))],
            sent,
        )


def print_survey(found: Survey) -> None:
    """Print what is in a folder of images, and all that is wrong with it."""
    splits = list(dict.fromkeys(split for counts in found.classes.values() for split in counts))
    rows = [
        [name, *(str(counts.get(split, "-")) for split in splits)]
        for name, counts in found.classes.items()
    ]
    if rows:
        print_table("", ["class", *(s if s != "all" else "images" for s in splits)], rows)
    if found.sizes:
        sides = sorted(found.sizes, key=lambda size: math.prod(map(int, size.split("x"))))
        modes = ", ".join(f"{mode} {count}" for mode, count in found.modes.items())
        print(f"{_range(sides)}; modes: {modes}")
    rows = [
        [one.severity, one.what, str(len(one.files)), one.files[0], one.remedy]
        for one in found.findings
    ]
    if rows:
        print_table("", ["", "what", "count", "for example", "what to do"], rows)
    print(found.summary or "a run on this folder is impossible until the errors are corrected")


def _range(sizes: Sequence[str]) -> str:
    if len(sizes) == 1:
        return f"all of {sizes[0]} pixels"
    return f"{len(sizes)} sizes, from {sizes[0]} to {sizes[-1]} pixels"
