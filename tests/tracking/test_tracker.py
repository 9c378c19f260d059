"""Runs told to W&B as trainings and studies tell them: what arrives, and what trouble costs."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from shell import MAIN, searched
from tracked import FIRST
from wandb_standin import Client, Server

from moist.config import Config
from moist.config.systems import epochs_of
from moist.tracking.files import history, read
from moist.tracking.journal import offsets

PATIENCE = 300.0
TINY = [
    "data.name=digits", "teacher.arch=resnet8", "teacher.epochs=2", "student.channels=8,16",
    "hidden_width=8", "k=2", "router=linear", "distill.epochs=3", "routing.epochs=2",
    "joint.epochs=4", "latency.repeats=10", "latency.seconds=0.01",
]  # fmt: skip
SWEEP = searched("random", 2, 3, 2, 4, width=[64, 32, 8])


def environment(home: Path, **more: str) -> dict[str, str]:
    """A machine where nobody has an account, and where nothing is set."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("WANDB")}
    alone = {"HOME": str(home), "MOIST_HOME": str(home / "moist"), "OMP_NUM_THREADS": "1"}
    return {**kept, **alone, **more}


def moist(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *words], capture_output=True, text=True, timeout=PATIENCE,
        stdin=subprocess.DEVNULL, env=environment(home, **more),
    )  # fmt: skip


def fail(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one run was trained, and told in files."""
    home = tmp_path_factory.mktemp("home")
    said = moist(home, "run", *TINY)
    assert said.returncode == 0, said.stderr
    assert "tracking: offline, in " in said.stderr and "no W&B account" in said.stderr
    return home


@pytest.mark.slow
def test_a_run_without_an_account_is_told_in_files_whole(home):
    (run,) = read(home / "moist", fail)
    assert (run.state, run.exit_code, run.job_type) == ("finished", 0, "run")
    assert run.config["joint.epochs"] == 4 and run.config["hidden_width"] == 8
    shown = json.loads(moist(home, "show", "last", "--json").stdout)[0]
    summary = run.summary
    assert summary["trial/key"] == shown["key"] and summary["trial/state"] == "COMPLETE"
    assert summary["objective/accuracy"] == shown["val_accuracy"]
    assert summary["objective/mflops"] == shown["mflops"]
    assert summary["test/accuracy"] == shown["accuracy"]
    assert {summary[f"stages/{stage}"] for stage in shown["stage_seconds"]} == {"computed"}
    steps = {}
    for row in history(run.paths, fail):
        stage = next(name.partition("/")[0] for name in row if name.endswith("/epoch"))
        assert {f"{stage}/{name}" for name in ("loss", "lr", "images_per_second")} <= row.keys()
        steps[row["_step"]] = (stage, row[f"{stage}/epoch"])
    expected = [
        (stage, epoch)
        for stage, epochs in zip(epochs_of(Config()), (2, 3, 2, 4), strict=True)
        for epoch in range(1, epochs + 1)
    ]
    assert steps == dict(enumerate(expected, 1))


@pytest.mark.slow
def test_what_is_reused_is_told_so_and_the_same_config_is_the_same_run(home):
    assert moist(home, "run", *TINY, "-q").stderr == ""
    (run,) = read(home / "moist", fail)
    assert len(run.paths) == 2
    states = {name: v for name, v in run.summary.items() if name.count("/") == 1}
    assert {v for name, v in states.items() if name.startswith("stages/")} == {"reused"}


def test_rows_have_the_steps_of_all_stages_before():
    assert [*offsets(Config()).values()] == [0, 12, 42, FIRST]


@pytest.mark.slow
def test_a_run_that_fails_says_why_and_one_that_is_stopped_that_it_was(home):
    failing = moist(home, "run", *TINY, "teacher.weights=/nowhere.safetensors")
    assert failing.returncode == 2
    run = read(home / "moist", fail)[-1]
    assert (run.state, run.exit_code, run.summary["trial/state"]) == ("failed", 1, "FAIL")
    assert run.summary["trial/reason"].removeprefix("ConfigError: ") in failing.stderr
    assert "`/nowhere.safetensors`" in run.summary["trial/reason"]

    words = ["run", *TINY, "joint.epochs=5000"]
    with training(home, *words) as going:
        trained(home)
        going.send_signal(signal.SIGTERM)
        said = going.stderr.read().decode()
    assert going.returncode == 143 and "terminated; what is finished is kept" in said
    run = read(home / "moist", fail)[-1]
    assert (run.state, run.exit_code, run.summary["trial/state"]) == ("failed", 130, "KILLED")
    epochs = [row["train_jointly/epoch"] for row in history(run.paths, fail)]
    assert len(epochs) >= 9 and epochs == [*range(1, len(epochs) + 1)]


def training(home: Path, *words: str, **more: str) -> subprocess.Popen[bytes]:
    """A command that trains; what others left half trained is gone."""
    shutil.rmtree(home / "moist" / "partial", ignore_errors=True)
    return subprocess.Popen([*MAIN, *words], env=environment(home, **more), stderr=subprocess.PIPE)


def trained(home: Path, epochs: int = 10) -> None:
    """Wait until joint training has come so far."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(FileNotFoundError):  # what is finished meanwhile
            states = [*(home / "moist").glob("partial/*/step-*.safetensors")]
            if any(int(path.name.split("-")[1]) >= epochs for path in states):
                return
    raise AssertionError("it does not train")


@pytest.mark.slow
def test_a_training_outlives_the_process_that_tells_of_it(home):
    words = ["run", *TINY, "joint.epochs=300", "seed=1"]
    with training(home, *words) as going:
        trained(home)
        (core,) = (
            one for one in psutil.Process(going.pid).children() if "wandb-core" in one.name()
        )
        core.kill()
        said = going.stderr.read().decode()
    assert going.returncode == 0
    assert "warning: tracking stopped" in said or "wandb's own process has ended" in said


@pytest.mark.slow
def test_a_server_that_goes_costs_seconds_and_the_rest_is_sent_later(wandb_server, home, tmp_path):
    online = {**Client(wandb_server, tmp_path).environment, "WANDB_MODE": "online"}
    where = {k: v for k, v in online.items() if k.startswith("WANDB")}
    words = ["run", *TINY, "joint.epochs=60", "seed=2"]
    with training(home, *words, **where) as going:
        trained(home)
        with wandb_server.down():
            said = going.stderr.read().decode()
            going.wait(PATIENCE)
    assert going.returncode == 0
    assert "does not answer any more; `moist sync` uploads the rest later" in said
    sent = moist(home, "sync", "--json", **where)
    assert sent.returncode == 0, sent.stderr
    run = next(run for run in wandb_server.runs.values() if run.config["joint.epochs"] == 60)
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps)) and run.history[-1]["train_jointly/epoch"] == 60
    assert run.summary["trial/state"] == "COMPLETE"


@pytest.fixture(scope="module")
def study(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of which the driver was killed once."""
    path = tmp_path_factory.mktemp("files") / "six.yaml"
    path.write_text(SWEEP)
    words = ["sweep", "optuna", str(path), "--trials", "3", "--max", "mflops=0.043", "-q"]
    said = moist(home, *words)
    assert said.returncode == 0, said.stderr
    return path


def of_study(home: Path, job_type: str) -> list:
    return [run for run in read(home / "moist", fail) if run.job_type == job_type]


@pytest.mark.slow
def test_a_study_has_a_run_for_each_trial_and_one_of_its_own(home, study):
    status = json.loads(moist(home, "sweep", "status", "six", "--json").stdout)
    trials = {trial["number"]: trial for trial in status["trials"]}
    runs = {run.config["trial"]: run for run in of_study(home, "trial")}
    assert runs.keys() == trials.keys()
    states = {"complete": "COMPLETE", "pruned": "PRUNED"}
    for number, run in runs.items():
        trial = trials[number]
        assert (run.group, run.exit_code) == ("six", 0)
        assert run.summary["trial/state"] == states[trial["state"]]
        assert {name: run.config[name] for name in run.config["params"]} == trial["params"]
        assert run.summary.get("trial/key") == trial["key"]
        assert run.summary.get("objective/accuracy") == trial["values"].get("accuracy")
    assert "pruned" in {trial["state"] for trial in trials.values()}
    (own,) = of_study(home, "study")
    assert own.group == "six" and own.summary["trials/complete"] == 3
    assert {"trials.nrows", "pareto._type", "parameters._type"} <= own.summary.keys()
    assert own.summary["trials.nrows"] == len(trials)


@pytest.mark.slow
def test_a_study_that_goes_on_goes_on_in_the_same_runs(home, study):
    before = {run.id for run in of_study(home, "trial")}
    said = moist(home, "sweep", "optuna", str(study), "--trials", "4", "-q")
    assert said.returncode == 0, said.stderr
    after = {run.id: run for run in of_study(home, "trial")}
    assert before < after.keys() and len({one.partition("-")[0] for one in after}) == 1
    (own,) = of_study(home, "study")
    assert own.summary["trials/complete"] == 4 and len(own.paths) == 2


@pytest.mark.slow
def test_passwords_and_keys_are_in_no_file_of_a_run(home, study):
    secret = "s3cr3t-of-mine"
    url = f"sqlite:///{home}/other.db?password={secret}"
    words = ["sweep", "optuna", str(study), "--trials", "1", "--storage", url, "-q"]
    said = moist(home, *words, WANDB_API_KEY="k" * 40, WANDB_MODE="offline")
    told = b"".join(path.read_bytes() for path in (home / "moist" / "wandb").rglob("*.wandb"))
    assert b"--storage" in told or said.returncode
    assert secret.encode() not in told and b"k" * 40 not in told
    assert secret not in said.stdout + said.stderr


@pytest.mark.slow
def test_stop_in_the_dashboard_prunes_a_trial_and_not_the_study(
    wandb_server: Server, home, study, tmp_path
):
    online = {**Client(wandb_server, tmp_path).environment, "WANDB_MODE": "online"}
    where = {k: v for k, v in online.items() if k.startswith("WANDB")}
    path = tmp_path / "long.yaml"
    path.write_text(SWEEP.replace("joint.epochs: {value: 4}", "joint.epochs: {value: 4000}"))
    with training(home, "sweep", "optuna", str(path), "-q", **where) as going:
        trained(home)
        first = next(iter(wandb_server.runs.values()))
        wandb_server.stop_run(first.entity, first.project, first.name)
        end = time.monotonic() + PATIENCE
        while first.summary.get("trial/state") != "PRUNED":
            assert time.monotonic() < end and going.poll() is None
        going.send_signal(signal.SIGINT)
        going.stderr.read()
    assert going.returncode == 130
    status = json.loads(moist(home, "sweep", "status", "long", "--json").stdout)
    stopped, *others = status["trials"]
    assert (stopped["state"], stopped["reason"]) == ("pruned", "somebody stopped it")
    assert all(trial["state"] == "running" for trial in others)
