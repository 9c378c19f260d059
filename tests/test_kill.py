"""Real processes, really killed: what they leave behind, and that the next run continues it."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from moist.cli.main import main
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
PATIENCE = 240.0
CONFIG = [
    f"@{SWEEPS / 'tiny.yaml'}", "teacher.epochs=4", "distill.views=30",
    *(f"{section}.epochs={EPOCHS}" for section in ("distill", "routing", "joint")),
    "student.batch_norm=true", "latency.repeats=10", "latency.seconds=0.01",
]  # fmt: skip
"""Many small steps, so that every stage has a middle."""

LONG = ("train_teacher", "teacher_logits", "distill_student", "pretrain_router", "train_jointly")

SERVER = multiprocessing.get_context("forkserver")
"""Forks fresh processes from one that has imported all: most of a tiny run is imports."""
SERVER.set_forkserver_preload(
    ["moist.pipeline", "moist.cli.main", "sklearn.cluster", "torch._dynamo"]
)


def moist(home: Path, said: Path, words: list[str]) -> None:
    """The command line with its output in files, in a process of its own."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said.with_suffix(f".{name}"), os.O_CREAT | os.O_WRONLY), number)
    sys.argv = ["moist", *words, "--home", str(home)]
    main()


@dataclass(frozen=True)
class Running:
    """`moist run` at work."""

    process: Any
    said: Path

    def finish(self) -> tuple[Report, list[str]]:
        """The report, and the stages that this process computed."""
        self.process.join(PATIENCE)
        err = self.said.with_suffix(".err").read_text()
        assert self.process.exitcode == 0, err
        lines = [line for line in err.splitlines() if "computed in" in line]
        report = Report.model_validate_json(self.said.with_suffix(".out").read_text())
        return report, [line.split()[0] for line in lines]

    def kill_once(self, reached: Callable[[], bool]) -> None:
        """SIGKILL as soon as the files say so."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if not self.process.is_alive() or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"it never got there: {self.said.with_suffix('.err').read_text()}")
            time.sleep(0.001)
        self.process.kill()
        self.process.join(PATIENCE)
        assert self.process.exitcode == -signal.SIGKILL


def start(home: Path) -> Running:
    said = home.with_name(f"{home.name}-{uuid4().hex}")
    words = ["run", *CONFIG, "--json", "--threads", "1"]
    process = SERVER.Process(target=moist, args=(home, said, words))
    process.start()
    return Running(process, said)


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
    return start(tmp_path_factory.mktemp("unbroken")).finish()


def test_a_run_killed_in_every_stage_reports_what_an_unbroken_one_does(tmp_path, unbroken):
    keys = planned(tmp_path)
    start(tmp_path).kill_once((tmp_path / "partial").is_dir)
    assert not entries(ObjectStore(tmp_path))
    for stage in LONG:
        key = keys[stage]
        start(tmp_path).kill_once(lambda key=key: bool(checkpoints(tmp_path, key)))
        assert key not in {entry.key for entry in entries(ObjectStore(tmp_path))}
        assert checkpoints(tmp_path, key)
        assert verify(ObjectStore(tmp_path)) == []
    report, computed = start(tmp_path).finish()
    whole, all_stages = unbroken
    assert report.timeless() == whole.timeless()
    assert computed == all_stages[all_stages.index("train_jointly") :]
    assert not list((tmp_path / "partial").iterdir()) and not list((tmp_path / "tmp").iterdir())


def test_two_runs_of_one_config_at_once_compute_each_stage_once(tmp_path, unbroken):
    pair = [run.finish() for run in (start(tmp_path), start(tmp_path))]
    whole, all_stages = unbroken
    assert sorted(pair[0][1] + pair[1][1]) == sorted(all_stages)
    assert sorted(entry.stage for entry in entries(ObjectStore(tmp_path))) == sorted(all_stages)
    assert [report.timeless() for report, _ in pair] == [whole.timeless()] * 2
    assert pair[0][0].latency_ms == pair[1][0].latency_ms  # even the clock was read once
