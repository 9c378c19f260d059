"""The same against W&B itself: `pytest -m live_wandb`, with WANDB_API_KEY set; skipped without.

Runs go to the project `moist-live-test` of the key's owner, who may delete it afterwards.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import MOIST
from tiny import STUDY, TINY

PROJECT = "moist-live-test"
POINTS = {(2, 4), (2, 32), (3, 4), (3, 32)}
PATIENCE = 900.0

pytestmark = [
    pytest.mark.live_wandb,
    pytest.mark.skipif("WANDB_API_KEY" not in os.environ, reason="needs WANDB_API_KEY"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ, "WANDB_MODE": "online", "WANDB_PROJECT": PROJECT, "MOIST_HOME": str(home),
        "PATH": f"{scripts}:{os.environ['PATH']}",
    }  # fmt: skip


def said(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *MOIST, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sweep_on_the_real_server_gives_each_point_once_and_the_frontier_back(
    environment, tmp_path
):
    path = tmp_path / "live.yaml"
    path.write_text(STUDY)
    out = said(environment, "sweep", "wandb", str(path), "--project", PROJECT, "--workers", "2")
    sweep = out.split()[-1]
    front = json.loads(said(environment, "pareto", "--wandb", sweep, "--json"))
    assert front and all(trial["state"] == "complete" for trial in front)

    import wandb

    runs = wandb.Api().runs(
        sweep.rpartition("/")[0], filters={"sweep": sweep.rpartition("/")[2]}, lazy=False
    )
    assert {(run.config["k"], run.config["hidden_width"]) for run in runs} == POINTS
    assert len(runs) == len(POINTS)


def test_what_was_kept_offline_arrives_once(environment):
    said({**environment, "WANDB_MODE": "offline"}, "run", *TINY, "hidden_width=8")
    first = json.loads(said(environment, "sync", "--json"))
    assert first
    assert json.loads(said(environment, "sync", "--json")) == []
