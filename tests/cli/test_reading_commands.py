"""Whoever only asks needs no lock, no table and no folder, and changes nothing."""

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import forked
import pytest
from PIL import Image
from shell import Said
from tiny import STUDY, TINY
from toy import ref

from moist.study.ledger import opened
from moist.study.storage import load

OTHER = 1234
"""A user who owns nothing."""
AS_OTHER = f"""
import codecs, contextlib, io, json, os, pickle, sys
codecs.lookup("utf-8-sig")  # other users may be unable to read the library of root's Python
os.setgroups([]); os.setgid({OTHER}); os.setuid({OTHER})
from moist.cli.main import main
ended = []
for words in pickle.loads(bytes.fromhex(sys.argv[1])):
    sys.argv = ["moist", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            ended.append([words, end.code or 0, err.getvalue()])
print(json.dumps(ended))
"""


def reading(folder: Path) -> list[list[str]]:
    """List every command that only reads a home or a study in it."""
    image, file = folder / "image.png", folder / "four.yaml"
    Image.new("L", (8, 8), 3).save(image)
    file.write_text(STUDY)
    images = folder / "images"
    for split, name, number in product(("train", "test"), "ab", range(4)):
        path = images / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    ours = ["data.name=folder", f"data.root={images}"]
    lines = [
        "pareto four", "pareto four --hypervolume", "pareto four --csv", "best four", "table four",
        "sweep status four", "sweep doctor four", f"sweep optuna {file} --dry-run", "runs",
        "studies", "show last", f"predict last {image}", "cache ls", "cache verify",
        "sync --dry-run", "diff last last", "runs --study four",
    ]  # fmt: skip
    new = ["sweep", "optuna", file, "--study", "new", "--dry-run", *ours, "k=2"]
    return [*map(str.split, lines), ["plan", *TINY], ["plan", *TINY, *ours], list(map(str, new))]


@pytest.fixture
def shared(trained: Callable[[], Path]) -> Iterator[Path]:
    """A home that all may read and none but root may write, in a folder that all may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user, who may read a home and not write it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        home = shutil.copytree(trained(), folder / "home", symlinks=True)
        for path in (home, *home.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o555 if path.is_dir() else 0o444)
        yield home


def as_other(home: Path, commands: list[list[str]]) -> list[tuple[list[str], int, str]]:
    """Run commands as another user, without a home folder, in one process."""
    words = pickle.dumps([[*command, "--home", str(home)] for command in commands]).hex()
    done = forked.run(["-c", AS_OTHER, words], env={**os.environ, "HOME": "/nowhere"}, cwd="/")
    if "PermissionError" in done.stderr or "No module" in done.stderr:
        pytest.skip(f"another user can't import moist: {done.stderr.splitlines()[-1]}")
    return json.loads(done.stdout or pytest.fail(done.stderr))


def state(home: Path) -> dict[Path, tuple[int, int]]:
    """Return the files and folders of a home, and when each was written."""
    return {one: (one.lstat().st_mtime_ns, one.lstat().st_size) for one in home.rglob("*")}


@pytest.mark.slow
def test_another_user_reads_a_home_that_only_its_owner_may_write(shared: Path) -> None:
    before, commands = state(shared), reading(shared.parent)
    ended = as_other(shared, commands)
    assert len(ended) == len(commands)
    assert [one for one in ended if one[1] != 0] == []
    assert state(shared) == before


@pytest.mark.slow
def test_another_user_reads_a_study_while_its_driver_writes_it(shared: Path) -> None:
    study = ref(shared, "four")
    spec, _ = load(study)
    with opened(study, spec) as ledger:
        ledger.study.set_user_attr("written", True)
        assert (shared / "studies.db-wal").stat().st_size > 0
        for words, code, err in as_other(
            shared, [["pareto", "four"], ["sweep", "status", "four"]]
        ):
            assert code == 0, (words, err)


@pytest.mark.slow
def test_no_reading_command_creates_a_folder(tmp_path: Path, capsys) -> None:
    missing = tmp_path / "missing"
    for words in reading(tmp_path):
        said = Said(capsys, *words, "--home", missing)
        assert "Traceback" not in said.err
        assert not missing.exists(), words


def test_a_database_without_tables_has_no_study_and_gets_no_tables(tmp_path: Path, capsys) -> None:
    (tmp_path / "studies.db").touch()
    said = Said(capsys, "pareto", "four", "--home", tmp_path)
    assert said.code == 2 and "no study `four`" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["studies.db"]
    assert (tmp_path / "studies.db").stat().st_size == 0
