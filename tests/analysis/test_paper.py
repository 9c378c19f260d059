"""The paper's table and claims are judged by what its runs and its models' costs say."""

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import paper
from analysis.experiments import PLAN, Experiment

PLANNED = {one.name: one for one in PLAN}
values = st.lists(st.floats(-50, 50), min_size=1, max_size=5)


def written(folder: Path, name: str, rows: list[dict[str, object]]) -> Experiment:
    """Write rows as those of an experiment."""
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return replace(PLANNED[name], results=folder)


def row(point: str, percent: float, **more: object) -> dict[str, object]:
    return {
        "point": point,
        "accuracy": percent / 100,
        "loss": 0.5,
        "baselines.student.accuracy": 0.79,
        "baselines.student.loss": 0.6,
        "baselines.teacher.accuracy": 0.84,
        "baselines.teacher.loss": 0.4,
        "sent": json.dumps({"cat": [9, 1], "dog": [0, 10]}),
        **more,
    }


@given(values, st.floats(-50, 50), st.floats(0, 50))
def test_a_claim_is_judged_by_the_mean_and_two_standard_errors(found, nothing, above):
    claimed = nothing + above
    error = 2 * (statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0)
    verdict = paper.judged(found, claimed, nothing)
    if verdict == paper.HOLDS:
        assert statistics.fmean(found) + error >= claimed
    else:
        assert statistics.fmean(found) + error < claimed
        assert (verdict == paper.IN_KIND) == (statistics.fmean(found) - error > nothing)


def test_the_papers_counts_are_those_of_its_conventions_and_moist_counts_the_router():
    costs = paper.Runs(()).costs
    for line in paper.LINES:
        assert f"{float(costs[line.model]['trace_mflops']):.2f}" == f"{line.mflops:.2f}"
    assert paper.trace("student")[1] == pytest.approx(float(costs["student"]["trace_mflops"]))
    assert paper.trace("cnn")[1] == paper.trace("student")[1]
    for model, router in (("cnn", 6.226), ("linear", 0.402), ("oracle", 0.0)):
        counted = float(costs[model]["mflops"]) - float(costs["student"]["mflops"])
        assert counted == pytest.approx(router, abs=1e-3)
        assert paper.cost(paper.network(model), paper.SHAPE).mflops == float(
            costs[model]["mflops"]
        )


def test_the_table_and_the_claims_are_those_of_the_runs(tmp_path):
    mixtures = [
        row(f"router={router} seed={seed}", percent + seed)
        for router, percent in (("cnn", 81.0), ("linear", 80.5), ("transformer", 81.2))
        for seed in range(3)
    ]
    widths = [row("hidden_width=1024 seed=0", 82.0), row("hidden_width=256 seed=0", 81.0)]
    counts = [row(f"k={k} seed=0", 80 + (k == 4) + (k == 3) * 0.9) for k in range(2, 7)]
    counts.append(row("k=auto seed=0", 99.0))
    sizes = [row(f"routing.widths={n} seed=0", 80 + n, params=100 * n) for n in range(8)]
    plan = [
        written(tmp_path, "paper_table", mixtures),
        written(tmp_path, "paper_oracle", [row("seed=0", 85.0)]),
        written(tmp_path, "paper_width", widths),
        written(tmp_path, "paper_k", counts),
        written(tmp_path, "paper_router", sizes),
    ]
    text = paper.section(plan)
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    found = {line[0]: line[1:] for line in cells}
    assert found["MoIST, CNN router"][6:9] == ["82.00 ± 1.00", "0.5000", "3"]
    assert found["ResNet-18 teacher"][6:9] == ["84.00", "0.4000", "3"]
    assert found["conceptual 100 % router (an upper bound)"][6] == "85.00"
    claims = [found[claim.text] for claim in paper.CLAIMS]
    assert [verdict for _, verdict in claims] == [
        paper.IN_KIND,  # 3 points above the student, where the paper has 4.73
        paper.FAILS,  # 2 points below the teacher
        paper.IN_KIND,
        paper.HOLDS,
        paper.IN_KIND,  # the oracle's 85 %
        paper.IN_KIND,  # k=3 is 0.1 points below k=4, and `auto` is no number
        paper.FAILS,  # width 1024 is below the teacher
        paper.IN_KIND,  # the transformer is 0.2 points above the CNN
        paper.FAILS,  # larger routers are better
    ]
    assert claims[0][0] == "3.00 ± 0.58 (SE) points, n = 3"
    assert found["cat"] == ["9", "1"] and found["dog"] == ["0", "10"]


def test_a_claim_without_runs_has_no_verdict(tmp_path):
    plan = [replace(one, results=tmp_path) for one in PLAN]
    claims = [*paper.claims(paper.Runs(plan, tmp_path / "none.csv"))][2:]
    assert len(claims) == len(paper.CLAIMS)
    assert all(line.endswith("| no runs yet |  |") for line in claims)
