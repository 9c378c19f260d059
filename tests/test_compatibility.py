"""Keys equal those of earlier versions, and a home folder that one of them wrote is usable."""

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from moist.cli.main import cli
from moist.config.overrides import parse
from moist.env import Env
from moist.pipeline import stages
from moist.results.report import Machine
from moist.store.plan import Plan
from moist.systems.outputs import run_key

BEFORE = Path(__file__).with_name("before")
KEYS = json.loads((BEFORE / "keys.json").read_text())
RUNS = json.loads((BEFORE / "runs.json").read_text())


class NamedMachine(Env):
    """An environment on a machine of a fixed name: latencies are keyed on it."""

    def machine(self) -> Machine:
        return Machine(device="cpu", threads=1, torch="2.15.0", system="Linux x86_64")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Unpack a home folder that commit e49c24e wrote."""
    with tarfile.open(BEFORE / "home.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    return tmp_path / "home"


def now(before: object) -> object:
    """Return a record of before under the names that its fields have now."""
    names = {"doubt": "deferral", "asked": "deferral_rate", "val_asked": "val_deferral_rate"}
    if isinstance(before, dict):
        return {names.get(name, name): now(value) for name, value in before.items()}
    return [now(one) for one in before] if isinstance(before, list) else before


def moist(*words: object) -> str:
    """Run a command in this process; return its standard output."""
    result = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("before", KEYS, ids=lambda one: " ".join(one["overrides"]) or "defaults")
def test_run_and_stage_keys_are_those_of_before(before, tmp_path):
    config = parse(before["overrides"])
    plan = Plan(tmp_path, NamedMachine())
    key = run_key(config, stages(config, plan))
    assert {call.key: call.stage for call in plan.calls} == before["stages"]
    assert key == before["run"]


def test_run_records_of_before_are_read_in_full(home):
    found = {run["key"]: run for run in json.loads(moist("runs", "--json", "--home", home))}
    assert found.keys() == {run["key"] for run in RUNS}
    for run in map(now, RUNS):
        assert {name: found[run["key"]][name] for name in run} == run


def test_stage_outputs_of_before_are_reused(home):
    cascade = next(run for run in RUNS if run["doubt"])
    overrides = cascade["command"].split()[2:]
    calls = json.loads(moist("plan", *overrides, "--json", "--home", home))
    assert len(calls) == 14
    assert {call["stage"] for call in calls if not call["reused"]} <= {"measure_latency"}
    image = home.parent / "digit.png"
    from PIL import Image

    Image.new("L", (8, 8), 200).save(image)
    [prediction] = json.loads(moist("predict", cascade["key"], image, "--json", "--home", home))
    assert prediction["class"] in set("0123456789")


def test_a_study_of_before_is_read(home):
    front = json.loads(moist("pareto", "old", "--json", "--home", home))
    assert [trial["number"] for trial in front] == [0]
    status = json.loads(moist("sweep", "status", "old", "--json", "--home", home))
    states = [trial["state"] for trial in status["trials"]]
    assert states == ["complete", "pruned", "failed", "failed", "complete"]


def test_a_study_of_before_is_resumed_from_its_stored_stages(home):
    words = ("--study", "old", "--trials", 3, "--max", "mflops=0.3", "--threads", 1)
    outcome = json.loads(
        moist(
            "sweep", "optuna", BEFORE / "grid.yaml", *words, "--json", "--quiet", "--home", home,
            "--wandb", "off",
        )
    )  # fmt: skip
    states = [trial["state"] for trial in outcome["trials"]]
    assert states[:5] == ["complete", "pruned", "failed", "failed", "complete"]
    assert states.count("complete") == 3
    stored = json.loads(moist("cache", "ls", "--json", "--home", home))
    trained = [entry["stage"] for entry in stored]
    assert trained.count("train_teacher") == trained.count("distill_student") == 1
