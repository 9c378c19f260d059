"""The README's commands run as written, from its first to its last.

They run in a folder that has what they name: `sweeps/` and images. The sweep files there, and the
one that `moist init` writes, train an epoch or a few of each stage and four trials, or five where
the README says more. `moist run` and `moist.run` are given the same few epochs and teacher.
"""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import forked
import numpy as np
import pytest
import yaml
from PIL import Image
from readme import README, ROOT, blocks, commands
from shell import of_nobody
from tiny import TINY

SHORT = [*(word for word in TINY if not word.startswith("@")), "teacher.arch=resnet8"]

ELSEWHERE = {
    "moist browse": "a terminal's own screen: tests/tracking/test_upload.py",
    "moist sweep wandb": "needs a server: tests/agents/test_agents.py",
    "moist sync": "needs a server: tests/tracking/test_upload.py",
    "moist pareto --wandb": "needs a server: tests/tracking/test_wandb_results.py",
    "data.name=cifar10": "downloads CIFAR-10",
    "teacher.arch=torchvision:resnet50": "minutes for its latencies: tests/nets/test_zoo.py",
    "--devices cuda:0,cuda:1": "needs two GPUs",
    "sbatch": "needs SLURM",
    "s3://": "needs an S3 server: tests/test_two_homes.py",
    "--engine ray": "needs a Ray cluster: tests/study/test_executors.py",
    "postgresql://": "needs a PostgreSQL server: tests/study/test_postgres.py",
    "moist bench all": "takes 15 minutes: tests/bench/test_bench.py",
    "analysis.experiments repeat": "trains on CIFAR-10: tests/analysis/test_experiments.py",
    "pytest": "this is one of them",
}
"""Parts of commands that do not run here, and why."""


def lines() -> Iterator[str]:
    """The README's commands, without what surrounds those of moist."""
    for language, block in blocks(README):
        for line in block.splitlines() if language == "sh" else ():
            yield from commands(line) or [line]


def left_out(line: str) -> bool:
    return any(part in line for part in ELSEWHERE)


def test_only_commands_of_the_readme_are_left_out():
    assert [part for part in ELSEWHERE if not any(part in line for line in lines())] == []


def shorten(path: Path, trials: int = 4) -> None:
    """Let a sweep file train an epoch or a few of each stage, and few trials."""
    content = yaml.safe_load(path.read_text())
    constants = dict(word.split("=") for word in SHORT)
    content["parameters"] |= {key: {"value": value} for key, value in constants.items()}
    content["run_cap"] = trials
    path.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's sweep files, short ones, and its images."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    for name in ("quickstart", "sound", "short"):
        shorten(folder / "sweeps" / f"{name}.yaml")
    random = np.random.RandomState(0)
    for name in ("cat", "dog", "elk"):
        (folder / "IMAGES" / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.randint(256, size=(20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "IMAGES" / name / f"{i}.png")
    Image.fromarray(pixels).save(folder / "photo.jpg")
    return folder


@pytest.mark.slow
def test_the_commands_run_one_after_another_and_then_the_program(clone):
    env = of_nobody(clone / "user", WANDB_MODE="offline")
    assert len([*lines()]) > 30
    for line in lines():
        if left_out(line):
            continue
        _, *words = shlex.split(line.replace("--trials 40", "--trials 5"))
        if "KEY" in words:
            runs = forked.moist("runs", "--json", env=env, cwd=clone)
            words[words.index("KEY")] = json.loads(runs.stdout)[-1]["key"]
        words += SHORT if words[0] == "run" and "@" not in line else []
        done = forked.moist(*words, env=env, cwd=clone)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if words[0] == "init":
            shorten(clone / words[-1], trials=2)
    (program,) = [block for language, block in blocks(README) if language == "python"]
    program = program.replace("moist.run(k", f"moist.run(*{SHORT}, k").replace("=16", "=5")
    done = forked.run(["-c", program], env=env, cwd=clone)
    assert done.returncode == 0, done.stderr
    accuracy, mflops, key, _ = done.stdout.split()
    assert 0 < float(accuracy) <= 1 and float(mflops) > 0 and len(key) == 32
