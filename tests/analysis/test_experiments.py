"""The command behind the tables trains what is missing, once, and keeps a row of each run."""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import click
import forked
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from tiny import EPOCHS, TINY

from analysis import figures, rows, tables
from analysis.experiments import PLAN, Experiment, Teacher, Trainer
from analysis.step_profile import kind_of
from moist.store.runs import RunRecords
from moist.sweepfile import catalog


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write 40 training and 10 test images of three digits."""
    digits = load_digits()
    for digit in "012":
        of_digit = digits.images[digits.target == int(digit)][:50]
        for number, image in enumerate(of_digit):
            folder = tmp_path / "images" / ("train" if number < 40 else "test") / digit
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15.9).astype("uint8")).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("experiment", PLAN, ids=lambda one: one.name)
def test_an_experiment_is_a_sweep_file_whose_rows_are_its_points(experiment: Experiment) -> None:
    assert experiment.sweep in {entry.name for entry in catalog()}
    points = experiment.configs()
    assert len({str(config) for config in points.values()}) == len(points) > 0
    assert {row["point"] for row in experiment.done()} <= points.keys()


@pytest.mark.slow
def test_only_runs_without_a_row_are_trained(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked.server()
    commands = forked.virtual_environment(tmp_path / "venv")
    monkeypatch.setattr(sys, "executable", str(commands / "python"))
    epochs = (f"{section}.epochs=1" for section in EPOCHS)
    settings = (*epochs, "latency.seconds=0.01", "precision=float32")
    teacher = Teacher("resnet8", (*TINY, *settings))
    experiment = Experiment(
        "tiny", 0.0, "tiny", settings, (0, 1), teacher, results=tmp_path / "results"
    )
    trainer = Trainer(images, tmp_path / "home", 2, 1, "float32", weights=tmp_path / "weights")
    weights = trainer.teach(teacher)
    assert weights.exists()
    trainer.train([replace(experiment, seeds=(1,))])
    [first] = experiment.done()
    assert first["point"] == "seed=1"
    trainer.train([experiment])
    rows = experiment.done()
    assert rows[0] == first
    assert [row["point"] for row in rows] == ["seed=1", "seed=0"]
    records = {run.key: run for run in RunRecords(tmp_path / "home").all()}
    for row in rows:
        run = records[row["key"]]
        assert float(row["accuracy"]) == run.report.accuracy
        assert row["created"] == run.created
        assert run.config["teacher.weights"] == str(weights)
        assert not [value for value in row.values() if str(tmp_path) in value]
    assert experiment.missing() == {}
    check_table(experiment)
    committed, config = experiment.committed(["seed=1"])
    assert committed == rows[::-1]
    again = Trainer(images, tmp_path / "empty", 1, 1, "float32", weights=tmp_path / "weights")
    assert again.run(config, weights).report.accuracy == float(first["accuracy"])
    with pytest.raises(click.UsageError, match=r"asked for seed=2.*\n  seed=1\n  seed=0"):
        experiment.committed(["seed=2"])


def check_table(experiment: Experiment) -> None:
    """Check the table of one setting with two runs against these."""
    one, two = sorted(experiment.done(), key=lambda row: row["point"])
    found = tables.table(experiment).splitlines()
    head, _, line = [row.strip("|").split("|") for row in found if row.startswith("|")]
    row = {name.strip(): value.strip() for name, value in zip(head, line, strict=True)}
    assert row["n"] == "2" and row["runs"] == f"{one['key'][:8]} {two['key'][:8]}"
    found_mean, found_sd = map(float, row["test %"].split(" ± "))
    accuracies = [float(one["accuracy"]), float(two["accuracy"])]
    assert found_mean == pytest.approx(50 * sum(accuracies), abs=0.005)
    assert found_sd == pytest.approx(100 * statistics.stdev(accuracies), abs=0.005)
    runs = {0: one, 1: two}
    for run in runs.values():
        assert rows.unpacked(run).mean() == pytest.approx(float(run["accuracy"]))
    assert rows.difference(runs, runs) == "+0.00 ± 0.00 (seeds) ± 0.00 (images)"


def drawn(right: list[bool]) -> dict[str, str]:
    accuracy = str(sum(right) / len(right))
    bits = rows.packed(np.array(right))
    return {"accuracy": accuracy, "right": bits, "n_test": str(len(right))}


pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40)


@given(pairs)
def test_runs_are_compared_image_by_image(found: list[tuple[bool, bool]]) -> None:
    one, other = (drawn([*rights]) for rights in zip(*found, strict=True))
    assert rows.unpacked(one).tolist() == [first for first, _ in found]
    n, won = len(found), sum(a and not b for a, b in found)
    lost = sum(b and not a for a, b in found)
    variance = (won + lost - (won - lost) ** 2 / n) / (n - 1)  # of McNemar's table
    text = rows.difference({0: one}, {0: other, 1: other})
    mean, error = text.removesuffix(" (images)").split(" ± ")
    assert float(mean) == pytest.approx(100 * (won - lost) / n, abs=0.006)
    assert float(error) == pytest.approx(100 * (variance / n) ** 0.5, abs=0.006)


def test_seeds_are_paired_and_runs_without_images_have_no_error_over_them() -> None:
    runs = {seed: {"accuracy": str(0.8 + seed / 100)} for seed in range(3)}
    worse = {seed: {"accuracy": str(0.7 + seed / 50)} for seed in range(4)}
    assert rows.difference(runs, worse) == "+9.00 ± 0.58 (seeds)"
    assert rows.difference({0: runs[0]}, worse) == "+10.00"
    assert rows.difference({5: runs[0]}, worse) == ""


@pytest.mark.parametrize(
    ("accuracy", "close"), [(0.83, True), (0.779, False), (0.781, True), (0.841, False)]
)
def test_a_repeated_run_is_within_three_deviations(accuracy: float, close: bool) -> None:
    committed = [{"accuracy": text} for text in ("0.80", "0.81", "0.82")]
    text, found = rows.beside(accuracy, committed)
    assert text.startswith("committed 81.00 ± 1.00 % of the test images (n = 3), repeated ")
    assert text.endswith(f"repeated {100 * accuracy:.2f} %: {100 * accuracy - 81:+.2f} points")
    assert found is close


def test_one_committed_run_has_no_deviation() -> None:
    text, found = rows.beside(0.9, [{"accuracy": "0.8"}])
    assert text.endswith("80.00 % of the test images (n = 1), repeated 90.00 %: +10.00 points")
    assert found


def test_the_committed_tables_are_those_of_the_committed_runs(tmp_path: Path) -> None:
    tables.write(path=tmp_path / "TABLES.md")
    assert tables.TABLES.read_text() == (tmp_path / "TABLES.md").read_text()


def test_the_frontier_is_drawn_of_the_runs(tmp_path: Path) -> None:
    points = [f"residual_{n}mf" for n in (2, 7)]
    with (tmp_path / "drawn.csv").open("w") as file:
        file.write("point,accuracy,mmacs,deferral.curve\n")
        for seed in range(2):
            for n, arch in enumerate(points):
                row = [f"student.arch={arch} seed={seed}", 0.8 + n / 10 + seed / 100, 2 + 5 * n]
                file.write(",".join(map(str, [*row, ""])) + "\n")
    experiment = Experiment("drawn", 0.0, "residual", results=tmp_path)
    [small, large] = figures.points(experiment)
    assert [small.name, small.mmacs, small.percent.n] == ["residual_2mf", 2, 2]
    assert large.percent.mean == pytest.approx(90.5)
    figures.draw([experiment], tmp_path / "frontier.svg")
    drawn = (tmp_path / "frontier.svg").read_text()
    assert all(f"{name} (n=2)" in drawn for name in points) and "ShuffleNetV2-x0.5" in drawn


def test_the_papers_sweeps_are_drawn_once_there_are_runs(tmp_path: Path) -> None:
    plan = [replace(one, results=tmp_path) for one in PLAN]
    figures.draw_paper(plan, tmp_path / "paper.svg")
    assert not (tmp_path / "paper.svg").exists()
    (tmp_path / "paper_k.csv").write_text(
        "point,accuracy,mmacs\nk=2 seed=0,0.8,13\nk=3 seed=0,0.81,13\nk=auto seed=0,0.82,13\n"
    )
    figures.draw_paper(plan, tmp_path / "paper.svg")
    drawn = (tmp_path / "paper.svg").read_text()
    assert "number of students" in drawn and "hidden layer" not in drawn
    (tmp_path / "paper_width.csv").write_text(
        "point,accuracy,mmacs\nhidden_width=8 seed=0,0.7,6\n"
    )
    figures.draw_paper(plan, tmp_path / "paper.svg")
    assert "hidden layer" in (tmp_path / "paper.svg").read_text()


def test_operators_are_counted_by_kind() -> None:
    names = ["aten::mkldnn_convolution", "aten::native_batch_norm", "aten::addmm", "aten::copy_"]
    assert [*map(kind_of, names)] == ["convolutions", "batch norm", "linear layers", "other"]
