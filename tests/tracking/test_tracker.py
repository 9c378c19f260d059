"""Runs logged to W&B by trainings and studies: what arrives, and what failures cost."""

import json
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import forked
import psutil
import pytest
from forked import MOIST, Forked
from shell import of_nobody
from tiny import EPOCHS, TINY, searched
from tracked import FIRST
from wandb_standin import Client, Server

from moist.config import Config
from moist.config.systems import epochs_of
from moist.tracking.files import LoggedRun, history, read
from moist.tracking.journal import offsets

SWEEP = searched("random", width="values: [64, 32, 8]")


def moist(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return forked.moist(*words, env=of_nobody(home, **more))


def fail(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture(scope="module")
def home(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run and a study were trained, and logged in files."""
    home = tmp_path_factory.mktemp("folder") / "home"
    return Path(shutil.copytree(trained_once, home, symlinks=True))


def of_type(home: Path, job_type: str, group: str | None = None) -> list[LoggedRun]:
    found = read(home / "moist", fail)
    return [run for run in found if (run.job_type, run.group) == (job_type, group)]


def test_a_run_without_an_account_is_logged_to_files_whole(trained_once):
    home = trained_once
    (run,) = of_type(home, "run")
    assert (run.state, run.exit_code, run.job_type) == ("finished", 0, "run")
    assert run.config["joint.epochs"] == 3 and run.config["hidden_width"] == 32
    summary = run.summary
    shown = json.loads(moist(home, "show", summary["trial/key"], "--json").stdout)
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
        for stage, epochs in zip(epochs_of(Config()), EPOCHS.values(), strict=True)
        for epoch in range(1, epochs + 1)
    ]
    assert steps == dict(enumerate(expected, 1))


def test_reused_stages_are_logged_as_reused_and_the_same_config_is_the_same_run(home):
    printed = moist(home, "run", *TINY).stderr
    assert "tracking: offline, in " in printed and "no W&B account" in printed
    assert moist(home, "run", *TINY, "-q").stderr == ""
    _, run = of_type(home, "run")  # a copy is another home: it has runs of its own
    assert len(run.paths) == 2
    states = {name: v for name, v in run.summary.items() if name.count("/") == 1}
    assert {v for name, v in states.items() if name.startswith("stages/")} == {"reused"}


def test_rows_have_the_steps_of_all_stages_before():
    assert [*offsets(Config()).values()] == [0, 12, 42, FIRST]


@pytest.mark.slow
def test_a_failed_run_has_its_reason_and_a_stopped_one_was_killed(home):
    failing = moist(home, "run", *TINY, "joint.optimizer=sgd", "joint.lr=10")
    assert failing.returncode == 1
    run = latest(home)
    assert (run.state, run.exit_code, run.summary["trial/state"]) == ("failed", 1, "FAIL")
    message = run.summary["trial/reason"].partition(": ")[2]
    assert message in failing.stderr and "`train_jointly` diverged" in message

    words = ["run", *TINY, "joint.epochs=5000"]
    with training(home, *words) as process:
        trained(home, process)
        process.signal(signal.SIGTERM)
        assert (
            process.wait() == 143
            and "terminated; finished work and checkpoints are kept" in process.err
        )
    run = latest(home)
    assert (run.state, run.exit_code, run.summary["trial/state"]) == ("failed", 130, "KILLED")
    epochs = [row["train_jointly/epoch"] for row in history(run.paths, fail)]
    assert len(epochs) >= 9 and epochs == [*range(1, len(epochs) + 1)]


def latest(home: Path) -> LoggedRun:
    return read(home / "moist", fail)[-1]


def training(home: Path, *words: str, **more: str) -> Forked:
    """Start a command that trains, without checkpoints of earlier ones."""
    shutil.rmtree(home / "moist" / "partial", ignore_errors=True)
    return Forked([*MOIST, *words], env=of_nobody(home, **more))


def trained(home: Path, process: Forked, epochs: int = 10) -> None:
    """Wait until joint training has come so far."""

    def seen() -> bool:
        states = (home / "moist").glob("partial/*/step-*.safetensors")
        with suppress(FileNotFoundError):  # a stage finished meanwhile
            return any(int(path.name.split("-")[1]) >= epochs for path in states)
        return False

    process.until(seen)


@pytest.mark.slow
def test_a_training_outlives_the_process_that_logs_it(home):
    words = ["run", *TINY, "joint.epochs=30", "seed=1"]
    with training(home, *words) as process:
        trained(home, process)
        (core,) = (
            one for one in psutil.Process(process.pid).children() if "wandb-core" in one.name()
        )
        core.kill()
        assert process.wait() == 0
    printed = process.err
    assert "warning: tracking stopped" in printed or "wandb's own process has ended" in printed


@pytest.mark.slow
def test_a_server_that_goes_down_costs_seconds_and_the_rest_is_sent(wandb_server, home, tmp_path):
    online = {**Client(wandb_server, tmp_path).environment, "WANDB_MODE": "online"}
    where = {k: v for k, v in online.items() if k.startswith("WANDB")}
    words = ["run", *TINY, "joint.epochs=30", "seed=2"]
    with training(home, *words, **where) as process:
        trained(home, process)
        with wandb_server.down():
            assert process.wait() == 0
    assert "does not answer any more; `moist sync` uploads the rest later" in process.err
    sent = moist(home, "sync", "--json", **where)
    assert sent.returncode == 0, sent.stderr
    run = next(run for run in wandb_server.runs.values() if run.config["joint.epochs"] == 30)
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps)) and run.history[-1]["train_jointly/epoch"] == 30
    assert run.summary["trial/state"] == "COMPLETE"


@pytest.fixture(scope="module")
def study(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep file of a study of three complete trials, some others pruned by a limit."""
    path = tmp_path_factory.mktemp("files") / "six.yaml"
    path.write_text(SWEEP)
    words = ["sweep", "optuna", str(path), "--trials", "3", "--max", "mflops=0.043", "-q"]
    result = moist(home, *words)
    assert result.returncode == 0, result.stderr
    return path


@pytest.mark.parametrize(
    ("name", "complete"), [("four", 4), pytest.param("six", 3, marks=pytest.mark.slow)]
)
def test_a_study_has_a_run_for_each_trial_and_one_of_its_own(home, name, complete, request):
    if name == "six":
        request.getfixturevalue("study")
    status = json.loads(moist(home, "sweep", "status", name, "--json").stdout)
    trials = {trial["number"]: trial for trial in status["trials"]}
    runs = {run.config["trial"]: run for run in of_type(home, "trial", name)}
    assert runs.keys() == trials.keys()
    states = {"complete": "COMPLETE", "pruned": "PRUNED"}
    for number, run in runs.items():
        trial = trials[number]
        assert (run.group, run.exit_code) == (name, 0)
        assert run.summary["trial/state"] == states[trial["state"]]
        assert {name: run.config[name] for name in run.config["params"]} == trial["params"]
        assert run.summary.get("trial/key") == trial["key"]
        assert run.summary.get("objective/accuracy") == trial["values"].get("accuracy")
    assert ("pruned" in {trial["state"] for trial in trials.values()}) == (name == "six")
    (own,) = of_type(home, "study", name)
    assert own.summary["trials/complete"] == complete
    assert {"trials.nrows", "pareto._type", "parameters._type"} <= own.summary.keys()
    assert own.summary["trials.nrows"] == len(trials)
    shown = next(path for path in own.paths[-1].parent.rglob("verdict_*.html")).read_text()
    assert "the knee of the frontier" in shown and "validation images" in shown


@pytest.mark.slow
def test_a_study_that_is_continued_continues_its_runs(home, study):
    before = {run.id for run in of_type(home, "trial", "six")}
    result = moist(home, "sweep", "optuna", str(study), "--trials", "4", "-q")
    assert result.returncode == 0, result.stderr
    after = {run.id: run for run in of_type(home, "trial", "six")}
    assert before < after.keys() and len({one.partition("-")[0] for one in after}) == 1
    (own,) = of_type(home, "study", "six")
    assert own.summary["trials/complete"] == 4 and len(own.paths) == 2


@pytest.mark.slow
def test_passwords_and_keys_are_in_no_file_of_a_run(home, study):
    secret = "s3cr3t-of-mine"
    url = f"sqlite:///{home}/other.db?password={secret}"
    words = ["sweep", "optuna", str(study), "--trials", "1", "--storage", url, "-q"]
    result = moist(home, *words, WANDB_API_KEY="k" * 40, WANDB_MODE="offline")
    logged = b"".join(path.read_bytes() for path in (home / "moist" / "wandb").rglob("*.wandb"))
    assert b"--storage" in logged or result.returncode
    assert secret.encode() not in logged and b"k" * 40 not in logged
    assert secret not in result.stdout + result.stderr


@pytest.mark.slow
def test_stop_in_the_dashboard_prunes_a_trial_and_not_the_study(
    wandb_server: Server, home, study, tmp_path
):
    online = {**Client(wandb_server, tmp_path).environment, "WANDB_MODE": "online"}
    where = {k: v for k, v in online.items() if k.startswith("WANDB")}
    path = tmp_path / "long.yaml"
    path.write_text(SWEEP.replace("joint.epochs: {value: 3}", "joint.epochs: {value: 4000}"))
    with training(home, "sweep", "optuna", str(path), "-q", **where) as process:
        trained(home, process)
        first = next(iter(wandb_server.runs.values()))
        wandb_server.stop_run(first.entity, first.project, first.name)
        process.until(lambda: first.summary.get("trial/state") == "PRUNED")
        process.signal(signal.SIGINT)
        assert process.wait() == 130
    status = json.loads(moist(home, "sweep", "status", "long", "--json").stdout)
    stopped, *others = status["trials"]
    assert (stopped["state"], stopped["reason"]) == ("pruned", "stopped from the W&B dashboard")
    assert all(trial["state"] == "running" for trial in others)
