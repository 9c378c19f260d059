"""Exported files are used without moist, and say what moist does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moist
from moist.env import Env
from moist.serving.export import export_model
from moist.store.runs import RunRecords
from moist.store.store import Store

EXAMPLE = Path(__file__).parents[2] / "analysis" / "onnx_example.py"
ALONE = """
import runpy, sys
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"moist", "torch"} & sys.modules.keys()
"""


def test_an_exported_model_is_used_without_moist_or_torch(trained, tmp_path):
    home, pixels = trained(), np.random.default_rng(0).integers(256, size=(300, 8, 8, 1))
    graph = export_model(Store(home, Env()), RunRecords(home).find("last")).data
    (tmp_path / "model.onnx").write_bytes(graph)
    np.save(tmp_path / "images.npy", pixels.astype(np.uint8))
    code = ALONE.replace("sys.argv[0]", repr(str(EXAMPLE)))
    words = [sys.executable, "-c", code, "model.onnx", "images.npy"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    wanted = moist.load("last", home=home).predict(pixels.astype(np.uint8)).classes
    assert done.stdout.split() == list(wanted)


IN_TORCH = """
import json, sys
sys.modules["moist"] = None  # an import of it fails
import numpy as np, torch
extra = {"classes": ""}
model = torch.export.load("model.pt2", extra_files=extra).module()
for part in torch.split(torch.from_numpy(np.load("images.npy")), 128):
    for row in model(part)["logits"]:
        print(json.loads(extra["classes"])[row.argmax()])
"""


@pytest.mark.slow
def test_a_model_exported_for_torch_is_used_without_moist(trained, tmp_path):
    home, pixels = trained(), np.random.default_rng(0).integers(256, size=(129, 8, 8, 1))
    found = export_model(Store(home, Env()), RunRecords(home).find("last"), "torch-export")
    (tmp_path / "model.pt2").write_bytes(found.data)
    np.save(tmp_path / "images.npy", pixels.astype(np.uint8))
    words = [sys.executable, "-c", IN_TORCH]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    wanted = moist.load("last", home=home).predict(pixels.astype(np.uint8)).classes
    assert done.stdout.split() == list(wanted) and done.stderr == ""
