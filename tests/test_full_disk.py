"""A home on a disk that becomes full, then read-only, in mid-sweep: nothing is lost."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import moist
from tiny import STUDY

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1.2 MB: half of what the study of four trials needs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1200k", "moist", folder]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("only root may mount a file system, and not in every container")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)


def test_a_sweep_on_a_disk_that_is_full_or_read_only_ends_in_order_and_continues(disk, tmp_path):
    file = tmp_path / "four.yaml"
    file.write_text(STUDY)
    home = disk / "home"
    words = ["sweep", "optuna", file, "--home", home, "--threads", 1]
    full = moist(*words)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert "No space left on device" in full.stderr or "disk is full" in full.stderr
    remount(disk, "size=100m")
    assert moist("sweep", "retry", "four", "--home", home).returncode == 0
    remount(disk, "ro")
    refused = moist(*words)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert (
        f"can't write in `{home}`: Read-only file system\nhint: choose another" in refused.stderr
    )
    remount(disk, "rw")
    done = moist(*words)
    assert done.returncode == 0, done.stderr
    status = moist("sweep", "status", "four", "--home", home, "--json")
    states = [trial["state"] for trial in json.loads(status.stdout)["trials"]]
    assert states.count("complete") == 4 and {*states} <= {"complete", "failed"}
    assert moist("cache", "verify", "--home", home).returncode == 0
