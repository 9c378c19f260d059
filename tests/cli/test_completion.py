"""The shell completes what a command takes next."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from moist.cli.completion import Bash
from moist.cli.main import cli


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with two studies and two runs, beside a sweep file and a folder, is the place."""
    for name in ("four", "five"):
        optuna.create_study(storage=f"sqlite:///{tmp_path}/studies.db", study_name=name)
    (tmp_path / "runs").mkdir()
    for key in ("ab12" * 8, "cd34" * 8):
        (tmp_path / "runs" / f"{key}.json").touch()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    monkeypatch.setenv("MOIST_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    found = Bash(cli, {}, "moist", "_MOIST_COMPLETE").complete().splitlines()
    return [one.removeprefix("plain,") for one in found]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("moist run temp", ["temperature="]),
        ("moist run k=2 distill.al", ["distill.alpha="]),
        ("moist run router=li", ["linear"]),  # bash replaces what follows the `=`
        ("moist plan augment.flip=", ["true", "false"]),
        ("moist run k=", ["auto"]),
        ("moist run nokey=", []),
        ("moist run data.root=ru", ["runs/"]),
        ("moist run @mi", ["@mine.yaml"]),
        ("moist run @shared", ["@shared_trunk"]),
        ("moist sweep optuna quick", ["quickstart"]),
        ("moist sweep optuna ", None),
        ("moist sweep optuna mine.yaml hidden_w", ["hidden_width="]),
        ("moist best ", ["five", "four"]),
        ("moist best --storage sqlite:///none.db ", []),
        ("moist best --home nowhere ", []),
        ("moist pareto four fi", ["five"]),
        ("moist runs --study fo", ["four"]),
        ("moist sweep status f", ["five", "four"]),
        ("moist show ", ["last", "ab12ab12", "cd34cd34"]),
        ("moist diff last c", ["cd34cd34"]),
        ("moist rm f", ["five", "four"]),
        ("moist report a", ["ab12ab12"]),
        ("moist stu", ["studies"]),
    ],
)
def test_a_begun_word_is_completed(home, monkeypatch, line, found):
    words = completed(monkeypatch, line)
    if found is None:
        assert {"mine.yaml", "runs/", "quickstart"} <= {*words} and "notes.txt" not in words
    else:
        assert words == found
    assert not (home / "nowhere").exists()


LINES = '"moist run router=li" "moist run temp" "moist best fo"'
IN_SHELLS = {
    "bash --norc": (
        """
    compopt() { echo "$@"; }
    eval "$(_MOIST_COMPLETE=bash_source moist)"
    for COMP_LINE in LINES; do
        COMP_POINT=${#COMP_LINE}; COMPREPLY=(); _moist_completion moist; echo "${COMPREPLY[@]}"
    done""",
        ["linear", "-o nospace", "temperature=", "four"],
    ),
    "zsh -f": (
        """
    compdef() {}
    compadd() { [[ $@[-3] == "" ]] && echo "no space"; echo $completions; }
    eval "$(_MOIST_COMPLETE=zsh_source moist)"
    for line in LINES; do
        words=(${=line}); CURRENT=$#words; _moist_completion
    done""",
        ["router=linear", "no space", "temperature=", "four"],
    ),
    "fish --no-config": (
        """
    _MOIST_COMPLETE=fish_source moist | source
    for line in LINES; complete -C $line; end""",
        ["router=linear", "temperature=", "four"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", IN_SHELLS)
def test_a_shell_completes_with_what_it_evaluates(home, shell):
    program, *options = shell.split()
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}: apt-get install {program}")
    (home / "bin").mkdir()
    start = f"exec {sys.executable} -c 'from moist.__main__ import main; main()' \"$@\"\n"
    (home / "bin" / "moist").write_text(f"#!/bin/sh\n{start}")
    (home / "bin" / "moist").chmod(0o755)
    script, expected = IN_SHELLS[shell]
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [program, *options, "-c", script.replace("LINES", LINES)],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line] == expected
