"""The command that trains a teacher alone and keeps its weights."""

import runpy
from pathlib import Path

import torch
from click.testing import CliRunner
from tiny import TINY

from moist.config.overrides import parse
from moist.env import Env
from moist.pipeline import stages
from moist.stages.teacher import WeightsFile, load_teacher
from moist.store.store import Store

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "analysis" / "teacher.py"))


def test_a_teacher_is_kept_as_float16_and_loads_as_the_one_that_a_run_has(trained, tmp_path):
    home, path = trained(), tmp_path / "weights" / "teacher.safetensors"
    words = [*TINY, "--home", str(home), "--device", "cpu", "-o", str(path)]
    result = CliRunner().invoke(SCRIPT["main"], words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    store = Store(home, Env(torch.device("cpu")))
    out = stages(parse(TINY), store)
    assert all(call.reused for call in store.calls if call.stage == "train_teacher")
    teacher, found = out.models.teacher.value, out.evaluations["teacher"].value
    assert f"validation {found.val_accuracy:.2%} (n={found.n_val}), test" in result.stdout
    assert f"epoch 1  loss {teacher.history[0]['loss']:.5g}" in result.stdout
    kept = load_teacher(store.env, data=out.data.value, arch="resnet8", weights=WeightsFile(path))
    for name, tensor in teacher.state.items():
        if tensor.is_floating_point():
            assert torch.equal(kept.state[name], tensor.half().float())
