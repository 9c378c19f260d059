"""Random commands on random and damaged files: an answer or an error, never a traceback.

Half a minute of it is part of `pytest --all`, the same commands each time. For new ones:

    MOIST_FUZZ_SECONDS=1200 MOIST_FUZZ_SEED=1 uv run pytest -n 0 tests/test_fuzz.py::test_commands
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from PIL import Image
from tiny import STUDY, TINY

from moist.cli.main import main
from moist.config.schema import keys

SECONDS = float(os.environ.get("MOIST_FUZZ_SECONDS", "30"))
FIRST_SEED = int(os.environ.get("MOIST_FUZZ_SEED", "0"))
MOST_SECONDS = 120
"""For one command; none of these needs more than a few."""
SILENCE = 5.0
"""Seconds of computing after which a command has printed something, however busy the machine."""

HOSTILE = [
    "", " ", "0", "-1", "nan", "inf", "1e400", "0x10", "1_000", "None", "null", "[1,2", "1 2",
    "(8)", "a" * 300, "../..", "~nobody/x", "~", "@", "=", "💥", "e\u0301", "\udce9", "{}",
    "!!float 1", "on",
]  # fmt: skip
VALUES = {
    name: [str(value) for value in spec.get("enum", [])] + [str(spec["default"])]
    for name, spec in keys().items()
}
CHEAP = {
    "k": ["1", "2", "4", "auto", "11"],
    "router": ["linear", "cnn", "oracle", "shared"],
    "system": ["moist", "student", "ensemble", "ones"],
    "joint.objective": ["hierarchical", "routed", "students_only", "em", "switch", "noisy_topk"],
    "joint.mask_students": ["true", "false"],
    "distill.loss": ["kd", "dkd", "dist"],
    "data.val_fraction": ["0", "0.1", "0.5"],
    "mixture.top": ["1", "2"],
    "cascade.fallback": ["none", "teacher"],
    "hidden_width": ["1", "32", "70000"],
    "temperature": ["0.5", "4", "0"],
    "distill.lr": ["1e-3", "10"],
    "student.batch_norm": ["true", "false"],
    "seed": ["0", "1"],
}
"""Values, some of them invalid, with which a tiny run takes a second or two."""
READING = [
    ["runs"], ["runs", "--json"], ["runs", "--csv"], ["show", "last"], ["show", "last", "--json"],
    ["best", "four"], ["best", "four", "--max", "mflops=0.05"], ["pareto", "four", "--json"],
    ["pareto", "four"], ["table", "four"], ["table", "four", "--csv"], ["sweep", "status", "four"],
    ["sweep", "doctor", "four"], ["cache", "ls"], ["cache", "verify"], ["curve", "last"],
    ["pareto", "none"], ["cache", "gc", "--max-bytes", "1MB"], ["config", "--keys"],
]  # fmt: skip
FILES = {
    "image": "1.png", "upper": "2.PNG", "cut": "3.png", "empty": "4.png", "text": "5.jpg",
    "store": ".DS_Store", "movie": "6.mp4", "notes": "notes.txt", "deep": "in/here/7.png",
    "loop": "loop", "nowhere": "8.png", "latin": "\udce9.png",
}  # fmt: skip
CLASSES = ["a", "b", "c d", "#x=1", "é", unicodedata.normalize("NFD", "é"), ".hidden", "字"]


class Commands(RuleBasedStateMachine):
    """A home folder, images and sweep files that are changed between commands."""

    trained: Path

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.home = self.folder / "home"
        shutil.copytree(self.trained / "moist", self.home, symlinks=True)
        self.answers: dict[tuple[str, ...], Any] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def moist(self, *words: object) -> tuple[int, str]:
        """Run a command; return its exit code and standard output."""
        located = (
            []
            if words[0] == "config" or words[:2] in {("sweep", "check"), ("data", "check")}
            else ["--home", self.home]
        )
        given = ["moist", *map(str, (*words, *located))]
        note(f"{given}")
        printed = [time.process_time()]
        out, err = Clocked(printed), Clocked(printed)
        with (
            replaced_argv(given),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                signal.alarm(MOST_SECONDS)
                main()
            except SystemExit as end:
                code = end.code
            finally:
                signal.alarm(0)
        note(f"exit code {code}\n{err.getvalue()}")
        silences = [b - a for a, b in pairwise([*printed, time.process_time()])]
        assert max(silences) < SILENCE, silences
        assert code in {0, 1, 2}, code
        assert "Traceback" not in err.getvalue()
        if code == 2:
            assert "rror: " in err.getvalue() or "Usage: " in err.getvalue()
        return int(code), out.getvalue()

    @rule(words=st.sampled_from(READING))
    def read(self, words: list[str]) -> None:
        code, out = self.moist(*words)
        if "--json" in words and code == 0:
            json.loads(out)

    @rule(what=st.sampled_from(["four", "last"]))
    def report(self, what: str) -> None:
        """A page is made, whatever of its sections is damaged."""
        path = self.folder / "report.html"
        code, _ = self.moist("report", what, "-o", path)
        assert code != 0 or "</html>" in path.read_text()

    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        """Any key with any text: the config that is understood is printed and read back."""
        names = data.draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=3))
        words = [
            f"{name}={data.draw(st.sampled_from([*VALUES[name], *HOSTILE]))}" for name in names
        ]
        code, out = self.moist("config", *words, "--json")
        if code == 0:
            [values] = json.loads(out)
            file = self.folder / "printed.yaml"
            _, text = self.moist("config", *words)
            file.write_text(text, errors="surrogateescape")
            again, out = self.moist("config", f"@{file}", "--json")
            assert again == 0 and json.loads(out) == [values]
            self.moist("plan", *words)

    @rule(data=st.data())
    def train(self, data: st.DataObject) -> None:
        """A tiny run gives what it gave before, whatever was damaged since."""
        names = data.draw(st.lists(st.sampled_from(sorted(CHEAP)), max_size=2, unique=True))
        words = tuple(f"{name}={data.draw(st.sampled_from(CHEAP[name]))}" for name in names)
        code, out = self.moist("run", *TINY, *words, "--json")
        if code == 0:
            found = timeless(json.loads(out))
            assert self.answers.setdefault(words, found) == found
            shown, out = self.moist("show", found["key"], "--json")
            assert shown == 0
            values = json.loads(self.moist("config", *TINY, *words, "--json")[1])[0]
            assert json.loads(out)["config"] == values

    @rule(
        where=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(["cut", "flip", "empty", "delete", "text"]),
    )
    def damage(self, where: float, how: str) -> None:
        """Change a file of the home folder."""
        files = sorted(path for path in self.home.rglob("*") if path.is_file())
        if not files:
            return
        path = files[int(where * len(files))]
        content = path.read_bytes()
        note(f"{how} {path}")
        path.unlink()
        if how == "delete":
            return
        middle = len(content) // 2
        flipped = content[:middle] + bytes(b ^ 0x41 for b in content[middle : middle + 1])
        path.write_bytes(
            {
                "cut": content[:middle],
                "flip": flipped + content[middle + 1 :],
                "empty": b"",
                "text": b"<html>not found</html>",
            }[how]
        )

    @rule(data=st.data())
    def folder_of_images(self, data: st.DataObject) -> None:
        """A run reads every image of a folder, or says what is wrong with it."""
        root = self.folder / "images"
        shutil.rmtree(root, ignore_errors=True)
        classes = data.draw(
            st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique=True)
        )
        kinds = st.lists(st.sampled_from(sorted(FILES)), max_size=3)
        tests = 0
        for split in ("train", "test"):
            for name in classes:
                for number in range(6 if split == "train" else 2):
                    draw(root / split / name / f"{number}0.png", 40 * number)
                    tests += split == "test" and name[0] != "."
                for kind in data.draw(kinds):
                    tests += add(root / split / name, kind) and split == "test" and name[0] != "."
        tiny = [word for word in TINY if not word.startswith("data.name")]
        words = ["data.name=folder", f"data.root={root}", "k=1"]
        code, out = self.moist("run", *tiny, *words, "--json")
        if code == 0:
            assert json.loads(out)["n_test"] == tests
            assert self.moist("data", "check", root, "--json")[0] == 0

    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        """A sweep file that passes the check is one that starts."""
        content = yaml.safe_load(STUDY)
        parameters = content["parameters"]
        for _ in range(data.draw(st.integers(0, 3))):
            name = data.draw(st.sampled_from([*sorted(CHEAP), "data.root", "nothing", "k.x"]))
            entry = data.draw(ENTRIES)
            parameters[name] = entry
        for name, value in data.draw(
            st.dictionaries(st.sampled_from(HEADS), VALUE, max_size=1)
        ).items():
            content[name] = value
        file = self.folder / "sweep.yaml"
        file.write_text(yaml.safe_dump(content), errors="surrogateescape")
        code, _ = self.moist("sweep", "check", file)
        started, _ = self.moist(
            "sweep", "optuna", file, "--dry-run", "--study", "new", "--trials", 2
        )
        assert (code == 0) == (started == 0)


VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.floats(), st.sampled_from(HOSTILE),
    st.lists(st.one_of(st.integers(0, 9), st.sampled_from(["cnn", "linear", ""])), max_size=3),
)  # fmt: skip
WHEN = st.dictionaries(st.sampled_from(["k", "router"]), VALUE)
DISTRIBUTION = st.sampled_from(["uniform", "log_uniform_values", "q_uniform", "normal"])
ENTRIES = st.one_of(
    VALUE,
    st.fixed_dictionaries({"value": VALUE}),
    st.fixed_dictionaries({"values": VALUE}, optional={"when": WHEN}),
    st.fixed_dictionaries({"min": VALUE, "max": VALUE}, optional={"distribution": DISTRIBUTION}),
)
HEADS = [
    "method", "metric", "metrics", "run_cap", "command", "program", "parameters", "name", "x",
    "early_terminate",
]  # fmt: skip


class Clocked(io.StringIO):
    """A stream that records the computing time at which something is written to it."""

    def __init__(self, printed: list[float]) -> None:
        super().__init__()
        self.printed = printed

    def write(self, text: str) -> int:
        self.printed.append(time.process_time())
        return super().write(text)


@contextlib.contextmanager
def replaced_argv(given: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, given
    try:
        yield
    finally:
        sys.argv = before


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without what is measured anew in another home."""
    clocks = ("latency", "seconds", "stage_seconds", "machine", "created", "computed")
    kept = {name: value for name, value in report.items() if not name.startswith(clocks)}
    baselines = {
        name: row and {k: v for k, v in row.items() if not k.startswith(clocks)}
        for name, row in kept["baselines"].items()
    }
    return {**kept, "baselines": baselines}


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path, "PNG")


def add(folder: Path, kind: str) -> bool:
    """Add a file to a class folder; return whether it is an image that can be read."""
    path = folder / FILES[kind]
    if path.exists() or path.is_symlink():
        return False
    if kind == "loop":
        path.symlink_to(folder)
    elif kind == "nowhere":
        path.symlink_to(folder / "gone.png")
    elif kind in {"image", "upper", "deep", "latin", "cut"}:
        draw(path, 100)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:30])
        return kind != "cut"
    else:
        path.write_bytes(b"" if kind == "empty" else b"some text")
    return False


@pytest.mark.slow
def test_commands(trained_once: Path) -> None:
    Commands.trained = trained_once
    for module in (
        "moist.cli.main",
        "moist.pipeline",
        "moist.study.search",
        "moist.reporting.plots",
    ):
        import_module(module)  # a command's first seconds are those of its imports
    few = settings(
        max_examples=1, stateful_step_count=12, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    ends, number = time.monotonic() + SECONDS, FIRST_SEED
    while time.monotonic() < ends:
        run_state_machine_as_test(seed(number)(Commands), settings=few)
        number += 1
    assert number > FIRST_SEED
