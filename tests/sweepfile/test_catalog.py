"""The sweep files that come with moist: listed, described, and found after an installation."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moist.sweepfile.catalog import catalog, comment

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").iterdir()), ids=lambda path: path.name)
def test_a_sweep_file_begins_with_its_question_cost_and_expected_answer(path):
    text = path.read_text()
    first = text[: text.index("\nprogram:")].splitlines()
    assert path.suffix == ".yaml" and all(line.startswith("#") for line in first)
    words = [
        line[2 : line.index(":")] for line in first if line[2:].startswith(("Que", "Cos", "Exp"))
    ]
    assert words == ["Question", "Cost", "Expect"]
    found = comment(path)
    assert "?" in found["Question"] and all(found.values())


def test_a_comment_ends_at_an_empty_line_and_with_the_first_key(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("# Question: is it\n# so?\n# Cost: 1 min\n#\n# note\nk: 1\n# Expect: no\n")
    assert comment(path) == {"Question": "is it so?", "Cost": "1 min", "Expect": ""}


def test_the_catalog_has_every_file():
    found = catalog()
    assert [Path(one.path) for one in found] == sorted((ROOT / "sweeps").glob("*.yaml"))
    assert all((one.name, *comment(Path(one.path)).values())
               == (one.name, one.question, one.cost, one.expect) for one in found)  # fmt: skip


@pytest.mark.slow
def test_an_installed_wheel_has_the_sweep_files(tmp_path):
    built = subprocess.run(
        ["uv", "build", "--wheel", "--out-dir", tmp_path, ROOT], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere.mkdir()

    def moist(*words: str) -> str:
        code = f"import sys; sys.path.insert(0, {str(installed)!r}); import moist.cli.main as m"
        code += f"; assert m.__file__.startswith({str(installed)!r}), m.__file__; m.main()"
        command = [sys.executable, "-c", code, *words]
        ran = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    listed = json.loads(moist("sweep", "list", "--json"))
    assert [one["name"] for one in listed] == [one.name for one in catalog()]
    assert all(Path(one["path"]).is_relative_to(installed) for one in listed)
    paper = moist("config", "@paper")
    assert paper == moist("config", "@sweeps/paper.yaml") and "temperature: 5.0" in paper
    assert "joint.objective: hierarchical" in moist("config", "@shared_trunk")
    assert moist("sweep", "check", "width").startswith("width: 1 parameter,")
    rehearsed = moist("sweep", "optuna", "quickstart", "--dry-run", "--home", str(tmp_path / "h"))
    assert "16 trials to run" in rehearsed
    assert list(elsewhere.iterdir()) == []
