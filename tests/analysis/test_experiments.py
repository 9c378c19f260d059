"""The command behind the tables trains what is missing, once, and keeps a row of each run."""

import sys
from dataclasses import replace
from pathlib import Path

import forked
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny import EPOCHS, TINY

from analysis.experiments import PLAN, Experiment, Trainer
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
    experiment = Experiment(
        "tiny", 0.0, "tiny", settings, (0, 1), teacher="resnet8", results=tmp_path / "results"
    )
    trainer = Trainer(images, tmp_path / "home", 2, 1, "float32", weights=tmp_path / "weights")
    weights = trainer.teacher("resnet8", (*TINY, *settings))
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
