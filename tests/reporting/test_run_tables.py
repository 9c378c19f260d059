"""The tables of a run's report, as `moist show` prints them."""

import re

import pytest

from moist.reporting.run_tables import print_classes, print_report, print_students, print_times
from moist.store.runs import RunRecords


@pytest.fixture(scope="module")
def run(trained):
    return next(run for run in RunRecords(trained()).all() if run.report.sent)


def test_routes_of_many_students_fit_into_80_columns(run, capsys):
    names, k = [f"class {i}" for i in range(10)], 10
    report = run.report.model_copy(
        update={
            "k": k,
            "clusters": tuple((name,) for name in names),
            "sent": {
                name: tuple(100 * (i == j) for j in range(k)) for i, name in enumerate(names)
            },
            "per_cluster_accuracy": (0.5,) * k,
            "per_cluster_routing_accuracy": (0.5,) * k,
            "per_class_accuracy": dict.fromkeys(names, 0.5),
            "baselines": run.report.baselines.model_copy(
                update={
                    name: getattr(run.report.baselines, name).model_copy(
                        update={"per_class_accuracy": dict.fromkeys(names, 0.5)}
                    )
                    for name in ("student", "teacher")
                }
            ),
        }
    )
    print_students(report, "test images")
    print_classes(report, "test images")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines.count("test images by class, and the student that each went to") == 1


def test_a_cluster_has_as_many_routed_images_as_its_classes(run, capsys):
    report = run.report
    for names, counts in zip(report.clusters, report.routed(), strict=True):
        assert sum(counts) == sum(sum(report.sent[name]) for name in names) > 0
    print_report(report, run.config, run.command, {})
    out = capsys.readouterr().out
    assert "test images by the cluster of their class" in out and "saved by reuse" in out
    print_report(report, run.config, run.command)
    assert "saved by reuse" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spread", "cell", "note"),
    [
        ({"batch_1": 0.031, "batch_256": 0.05}, "2.5 ±3%", ""),
        (
            {"batch_1": 0.4, "batch_256": 0.05},
            "2.5 ±40%",
            "± above 5%: `latency.seconds` ended first",
        ),
        (None, "2.5", "their spread is unknown"),
    ],
)
def test_latencies_are_printed_with_their_spread(spread, cell, note, run, capsys):
    ms = {"batch_1": 2.5, "batch_256": 7.0}
    timed = {"latency_ms": ms, "latency_spread": spread, "latency_p95_ms": ms, "latency_n": ms}
    beside = run.report.baselines
    rows = {name: row and row.model_copy(update=timed) for name, row in beside}
    baselines = beside.model_copy(update=rows)
    print_times(run.report.model_copy(update={**timed, "baselines": baselines}), run.config)
    out = capsys.readouterr().out
    assert out.count(f"{cell} ") >= 3
    assert bool(re.search(r"±\d", out)) == (spread is not None)
    assert note in out and bool(note) == ("above 5%" in out or "unknown" in out)
