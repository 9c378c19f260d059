"""Real processes, really killed: what they leave behind, and that the next run continues it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import MOIST, Forked

from moist.config.overrides import parse
from moist.env import Env
from moist.pipeline import stages
from moist.results.report import Report
from moist.store.maintenance import entries, verify
from moist.store.objects import ObjectStore
from moist.store.plan import Plan

pytestmark = pytest.mark.slow
SWEEPS = Path(__file__).parents[1] / "sweeps"
EPOCHS = 20
CONFIG = [
    f"@{SWEEPS / 'tiny.yaml'}", "precision=float32", "teacher.epochs=4", "distill.views=30",
    *(f"{section}.epochs={EPOCHS}" for section in ("distill", "routing", "joint")),
    "student.batch_norm=true", "latency.repeats=10", "latency.seconds=0.01",
]  # fmt: skip
"""Many small steps, so that every stage has a middle."""

LONG = ("train_teacher", "teacher_logits", "distill_student", "pretrain_router", "train_jointly")


def start(home: Path) -> Forked:
    """Start `moist run`."""
    return Forked([*MOIST, "run", *CONFIG, "--json", "--threads", "1", "--home", home])


def finished(process: Forked) -> tuple[Report, list[str]]:
    """Wait for the report; return it, and the stages that this process computed."""
    assert process.wait() == 0, process.err
    lines = [line for line in process.err.splitlines() if "computed in" in line]
    found = json.loads(process.out)
    report = Report.model_validate({name: found[name] for name in Report.model_fields})
    return report, [line.split()[0] for line in lines]


def killed(process: Forked, reached: Callable[[], bool]) -> None:
    """Kill it as soon as the files show that it has come so far."""
    process.until(reached)
    process.kill()
    assert process.returncode == -signal.SIGKILL


def planned(home: Path) -> dict[str, str]:
    """Key by stage; of what is measured, the last."""
    plan = Plan(home, Env(torch.device("cpu")))
    stages(parse(CONFIG), plan)
    return {call.stage: call.key for call in plan.calls}


def checkpoints(home: Path, key: str) -> list[Path]:
    return list((home / "partial" / key).glob("step-*.safetensors"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, list[str]]:
    """What an undisturbed run reports and computes."""
    return finished(start(tmp_path_factory.mktemp("unbroken")))


def test_a_run_killed_in_every_stage_reports_what_an_unbroken_one_does(tmp_path, unbroken):
    keys = planned(tmp_path)
    killed(start(tmp_path), (tmp_path / "partial").is_dir)
    assert not entries(ObjectStore(tmp_path))
    for stage in LONG:
        key = keys[stage]
        killed(start(tmp_path), lambda key=key: bool(checkpoints(tmp_path, key)))
        assert key not in {entry.key for entry in entries(ObjectStore(tmp_path))}
        assert checkpoints(tmp_path, key)
        assert verify(ObjectStore(tmp_path)) == []
    report, computed = finished(start(tmp_path))
    whole, all_stages = unbroken
    assert report.timeless() == whole.timeless()
    assert computed == all_stages[all_stages.index("train_jointly") :]
    assert not list((tmp_path / "partial").iterdir()) and not list((tmp_path / "tmp").iterdir())


def test_two_runs_of_one_config_at_once_compute_each_stage_once(tmp_path, unbroken):
    pair = [finished(run) for run in (start(tmp_path), start(tmp_path))]
    whole, all_stages = unbroken
    assert sorted(pair[0][1] + pair[1][1]) == sorted(all_stages)
    assert sorted(entry.stage for entry in entries(ObjectStore(tmp_path))) == sorted(all_stages)
    assert [report.timeless() for report, _ in pair] == [whole.timeless()] * 2
    assert pair[0][0].latency_ms == pair[1][0].latency_ms  # even the clock was read once
