"""W&B sweeps of moist's files: the unmodified client's agents, against a stand-in server."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from forked import MOIST, Forked, virtual_environment
from tiny import searched
from wandb_standin import Run, Server

from moist.agents.pool import LAUNCHER, shares
from moist.agents.register import AGENT, registration
from moist.errors import ConfigError
from moist.results import pareto
from moist.results.objectives import DEFAULT, losses, quantities
from moist.store.runs import RunRecords

PATIENCE = 480.0
GRID = searched("grid", joint=4)
"""A sweep whose joint trainings alone are not stored in a trained home."""
PAIR = searched("grid", width="values: [32]", joint=4)
POINTS = {(2, 32), (3, 32)}


class Machine:
    """A machine that knows the stand-in: its environment, and commands run in it."""

    def __init__(self, server: Server, folder: Path, home: Path) -> None:
        self.server, self.folder, self.home = server, folder, home
        self.commands = virtual_environment(folder / "venv")
        self.environment = {
            **os.environ,
            **server.environment(folder),
            "MOIST_HOME": str(home),
            "WANDB_MODE": "online",
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *words: str, **extra: str) -> Forked:
        return Forked(words, cwd=self.folder, env={**self.environment, **extra})

    def run(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        with self.start(*words, **extra) as process:
            code = process.wait(PATIENCE)
            return subprocess.CompletedProcess(words, code, process.out, process.err)

    def moist(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        python = str(self.commands / "python")
        return self.run(
            "-c", f"import sys; sys.executable = {python!r}; {MOIST[1]}", *words, **extra
        )

    def file(self, text: str) -> str:
        path = self.folder / "searched.yaml"
        path.write_text(text)
        return str(path)

    def frontier(self, sweep: str) -> list[tuple[str, dict[str, float]]]:
        """Read a sweep's frontier back from the server: keys and values."""
        said = self.moist("pareto", "--wandb", f"tester/moist/{sweep}", "--json")
        assert said.returncode == 0, said.stderr
        return [(trial["key"], trial["values"]) for trial in json.loads(said.stdout)]


@pytest.fixture
def home(trained: Callable[[], Path]) -> Path:
    """A home with stored stages and no runs."""
    home = trained()
    for name in ("runs", "wandb"):
        shutil.rmtree(home / name)
    return home


@pytest.fixture
def machine(wandb_server: Server, tmp_path: Path, home: Path) -> Machine:
    return Machine(wandb_server, tmp_path, home)


def point(run: Run) -> tuple[int, int]:
    return run.config["k"], run.config["hidden_width"]


def recorded_frontier(home: Path) -> set[str]:
    """Return the keys of the frontier of all recorded runs."""
    runs = RunRecords(home).all()
    front = pareto.front([tuple(losses(quantities(run.report), DEFAULT)) for run in runs])
    return {runs[i].key for i in front}


@pytest.mark.slow
def test_two_agents_run_each_point_once_and_the_frontier_is_read_back(machine):
    said = machine.moist("sweep", "wandb", machine.file(PAIR), "--workers", "2", "--quiet")
    assert said.returncode == 0, said.stderr
    (sweep,) = machine.server.sweeps
    assert f"moist pareto --wandb tester/moist/{sweep}" in said.stdout
    runs = [run for run in machine.server.runs.values() if run.sweep == sweep]
    assert {point(run) for run in runs} == POINTS and len(runs) == len(POINTS)
    for run in runs:
        assert (run.state, run.exit_code) == ("finished", 0)
        assert run.summary["trial/state"] == "COMPLETE"
        assert [row["train_jointly/epoch"] for row in run.history if "objective/accuracy" in row]
    assert {key for key, _ in machine.frontier(sweep)} == recorded_frontier(machine.home)

    # the same file with wandb's own commands: the same runs, all of their stages stored by now
    made = machine.run("-m", "wandb", "sweep", "--project", "moist", machine.file(PAIR))
    assert made.returncode == 0, made.stderr
    (plain,) = set(machine.server.sweeps) - {sweep}
    agent = machine.run("-m", "wandb", "agent", f"tester/moist/{plain}")
    assert agent.returncode == 0, agent.stderr
    again = [run for run in machine.server.runs.values() if run.sweep == plain]
    assert {point(run) for run in again} == POINTS and len(again) == len(POINTS)
    assert {run.summary["stages/train_jointly"] for run in again} == {"reused"}
    assert machine.frontier(plain) == machine.frontier(sweep)


@pytest.mark.slow
def test_optuna_searches_two_objectives_and_conditions_within_the_budget(machine):
    text = GRID.replace("method: grid", "method: custom").replace(
        "{values: [4, 32]}", "{min: 4, max: 64}"
    )
    text += "  routing.widths: {values: ['16', '8'], when: {k: 3}}\n"
    text += "scheduler: {engine: optuna}\nmetrics:\n"
    text += "  - {name: objective/accuracy, goal: maximize}\n"
    text += "  - {name: objective/mflops, goal: minimize}\n"
    said = machine.moist("sweep", "wandb", machine.file(text), "--count", "3", "--workers", "2")
    assert said.returncode == 0, said.stderr
    (sweep,) = machine.server.sweeps
    ended = [run for run in machine.server.runs.values() if run.state == "finished" and run.sweep]
    assert len(ended) == 3 and len({point(run) for run in ended}) == 3
    assert all({"objective/accuracy", "objective/mflops"} <= run.summary.keys() for run in ended)
    widths = {run.config["k"]: run.config["routing.widths"] for run in ended}
    assert widths.get(2, "128,64") == "128,64"  # the default: it was not drawn
    assert widths.get(3, "8") in {"16", "8"}
    assert machine.frontier(sweep)


GOOD = """
import wandb
with wandb.init() as run:
    for _ in range(2):
        run.log({"objective/accuracy": 1.0})
"""


@pytest.mark.slow
def test_a_run_stopped_by_hyperband_ends_cleanly_with_all_its_rows(machine):
    text = GRID.replace("{values: [2, 3]}", "{value: 2}").replace(
        "{values: [4, 32]}", "{value: 4}"
    )
    text = text.replace("joint.epochs: {value: 4}", "joint.epochs: {value: 5000}")
    text += "metric: {name: objective/accuracy, goal: maximize}\n"
    text += "early_terminate: {type: hyperband, max_iter: 4, s: 1, eta: 2}\n"
    made = machine.moist("sweep", "wandb", machine.file(text), "--register-only")
    assert made.returncode == 0, made.stderr
    (sweep,) = machine.server.sweeps
    better = machine.run("-c", GOOD, WANDB_SWEEP_ID=sweep, WANDB_PROJECT="moist")
    assert better.returncode == 0, better.stderr
    said = machine.moist("sweep", "wandb", "--sweep", f"tester/moist/{sweep}", "--quiet")
    assert said.returncode == 0, said.stderr
    good, stopped = machine.server.runs.values()
    assert good.sweep == stopped.sweep == sweep
    assert (stopped.exit_code, stopped.summary["trial/state"]) == (0, "PRUNED")
    rows = [row["train_jointly/epoch"] for row in stopped.history if "objective/accuracy" in row]
    assert 2 <= len(rows) < 5000 and rows == [*range(1, len(rows) + 1)]


@pytest.mark.slow
def test_without_a_server_a_sweep_is_rejected_at_once_with_a_hint(machine):
    with machine.server.down():
        said = machine.moist("sweep", "wandb", machine.file(GRID), WANDB_MODE="")
    assert said.returncode == 2
    assert "W&B sweeps need its server, but runs are kept in files: 127.0.0.1" in said.stderr
    assert "moist sweep optuna" in said.stderr
    said = machine.moist("sweep", "wandb", machine.file(GRID), WANDB_MODE="offline")
    assert said.returncode == 2 and "WANDB_MODE" in said.stderr
    assert machine.server.sweeps == {}


@pytest.mark.slow
def test_a_registered_sweep_is_joined_by_machines_that_share_stages_in_a_store(machine):
    said = machine.moist(
        "sweep", "wandb", machine.file(GRID), "k=2", "--register-only", "--project", "other"
    )
    (sweep,) = machine.server.sweeps.values()
    assert f"wandb agent tester/other/{sweep.name}" in said.stdout
    assert sweep.config["parameters"]["k"] == {"value": 2}
    assert machine.server.runs == {}
    join = "sweep", "wandb", "--sweep", f"tester/other/{sweep.name}", "--count", "1"
    for number in (1, 2):  # two machines, each with a home of its own, and one store
        empty = {"MOIST_HOME": str(machine.folder / f"home{number}")}
        said = machine.moist(*join, "--store", str(machine.folder / "store"), **empty)
        assert said.returncode == 0, said.stderr
    first, second = machine.server.runs.values()
    assert {run.project for run in (first, second)} == {"other"} and first.config["k"] == 2
    taught = [run.summary["stages/train_teacher"] for run in (first, second)]
    assert taught == ["computed", "reused"] and point(first) != point(second)


def test_the_registered_sweep_is_the_file_with_overrides_and_without_conditions(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(GRID)
    plain = registration(path)
    assert plain.content == yaml.safe_load(GRID) and plain.budget == 4 and not plain.scheduled
    fixed = registration(path, ["k=3", "seed=7"], count=9)
    assert fixed.content["parameters"]["k"] == {"value": 3}
    assert fixed.content["parameters"]["seed"] == {"value": 7}
    assert fixed.budget == 2  # all that is left to try


def test_nested_entries_are_registered_by_the_names_that_moist_run_reads(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(GRID + "  distill: {parameters: {alpha: {values: [0.5, 1]}}}\n")
    found = registration(path).content["parameters"]
    assert found == yaml.safe_load(GRID)["parameters"] | {"distill.alpha": {"values": [0.5, 1]}}


def test_a_registered_sweep_holds_the_values_of_its_recipe_and_needs_no_file_of_this_machine(
    tmp_path,
):
    recipe, path = tmp_path / "recipe.yaml", tmp_path / "a.yaml"
    recipe.write_text("teacher.epochs: 7\nk: 5\nseed: 1\n")
    path.write_text(GRID.replace("moist, run,", 'moist, run, "@recipe.yaml", "seed=2",'))
    found = registration(path, ["latency.repeats=11"]).content
    assert found["command"] == yaml.safe_load(GRID)["command"]
    own = yaml.safe_load(GRID)["parameters"]
    changed = {"seed": {"value": 2}, "latency.repeats": {"value": 11}}
    assert found["parameters"] == own | changed  # the file has epochs and k of its own


def test_agents_need_a_program_and_a_command(tmp_path):
    path = tmp_path / "a.yaml"
    lines = [one for one in GRID.splitlines(keepends=True) if not one.startswith("command:")]
    path.write_text("".join(lines))
    with pytest.raises(ConfigError, match="does not say how W&B's agents start a run") as caught:
        registration(path)
    line = AGENT["command"]
    assert f"add `{line}`;" in caught.value.hint
    path.write_text(f"{line}\n" + "".join(lines))
    assert registration(path).content == yaml.safe_load(GRID)


def test_conditions_are_rejected_if_wandb_itself_searches(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(GRID + "  routing.widths: {values: ['16', '8'], when: {k: 3}}\n")
    with pytest.raises(ConfigError, match=r"does not support the `when` of `routing\.widths`"):
        registration(path)


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("workers", range(1, 5))
def test_runs_are_shared_evenly_among_agents(count, workers):
    found = shares(count, workers)
    assert sum(found) == count and len(found) == workers and max(found) - min(found) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere agents are not bound")
def test_an_agent_does_not_start_if_its_parent_is_gone():
    alive, gone = (
        subprocess.run(
            [sys.executable, "-c", LAUNCHER, str(parent), "--version"],
            capture_output=True,
            text=True,
        )
        for parent in (os.getpid(), 0)
    )  # fmt: skip
    assert alive.returncode == 0 and "wandb, version" in alive.stdout
    assert (gone.returncode, gone.stdout) == (1, "") and "is gone" in gone.stderr


@pytest.mark.slow
def test_a_killed_trials_rows_are_kept_and_uploaded_once_and_its_agent_continues(machine):
    text = GRID.replace("{values: [2, 3]}", "{value: 2}").replace(
        "{values: [4, 32]}", "{value: 32}"
    )
    text = text.replace("joint.epochs: {value: 4}", "joint.epochs: {values: [3000, 4]}")
    machine.run("-m", "wandb", "sweep", "--project", "moist", machine.file(text))
    (sweep,) = machine.server.sweeps
    with machine.start("-m", "wandb", "agent", f"tester/moist/{sweep}") as agent:
        epoch, trial = logged_for_a_second(machine, psutil.Process(agent.pid))
        trial.kill()
        assert agent.wait(PATIENCE) == 0
    killed, after = (run for run in machine.server.runs.values() if run.sweep == sweep)
    assert after.summary["trial/state"] == "COMPLETE"

    sent = machine.moist("sync", "--json")
    assert sent.returncode == 0, sent.stderr
    assert [run["id"] for run in json.loads(sent.stdout)] == [killed.name]
    rows = [row["train_jointly/epoch"] for row in killed.history if "objective/accuracy" in row]
    assert rows == [*range(1, len(rows) + 1)] and len(rows) >= epoch
    assert json.loads(machine.moist("sync", "--json").stdout) == []
    assert [key for key, _ in machine.frontier(sweep)] == [after.summary["trial/key"]]


def logged_for_a_second(machine: Machine, agent: psutil.Process) -> tuple[int, psutil.Process]:
    """Wait for an epoch of joint training that ended a second ago; return it and its process."""
    end = time.monotonic() + PATIENCE
    seen: tuple[float, int] | None = None
    while time.monotonic() < end:
        done = 0
        with suppress(FileNotFoundError):  # what is finished meanwhile
            states = machine.home.glob("partial/*/step-*.safetensors")
            done = max((int(path.name.split("-")[1]) for path in states), default=0)
        if seen is None and done >= 30:  # no other stage has so many
            seen = time.monotonic(), done
        if seen and time.monotonic() - seen[0] > 1.5:
            (trial,) = (one for one in agent.children() if "run" in one.cmdline())
            return seen[1], trial
    raise AssertionError("no epoch of joint training in time")
