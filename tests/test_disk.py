"""Files are written whole or not at all, and a lock has one holder."""

import os
import platform
import signal
import sys
import threading
from pathlib import Path

import forked
import pytest
from disks import largest_file

from moist.disk import (
    expanded,
    install,
    is_locked,
    locked,
    locked_if_free,
    scratch,
    this_process,
    write_atomically,
)
from moist.errors import ConfigError, StoreError

TIMEOUT = 60.0


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("~nosuchuser/x", "there is no user `nosuchuser`"),
        ("x" * 300, "File name too long"),
        ("loop/x", "Too many levels of symbolic links"),
        ("a\0b", r"`data.root=a\\0b` has a zero byte"),
        ("caf\udce9", "has bytes that are not UTF-8"),
    ],
    ids=["of nobody", "long", "loop", "zero byte", "latin-1"],
)
def test_a_path_that_can_be_none_is_an_error_that_shows_what_was_written(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=reason) as error:
        expanded(Path(path), "data.root=")
    assert str(error.value).startswith("`data.root=") and error.value.hint


def test_a_home_is_expanded_and_a_missing_file_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded(Path("~/none")) == tmp_path / "none"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user without an account")
def test_a_user_without_an_account_and_home_is_told_to_set_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HOME")
    os.setresuid(54321, 0, 0)
    try:
        with pytest.raises(ConfigError, match=r"HOME is not set, nor has the user one\nhint: set"):
            expanded(Path("~/.moist"))
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"new" * 2000):
        write_atomically(path, content, durable)
        assert path.read_bytes() == content
    with largest_file(1000), pytest.raises(OSError, match="too large"):
        write_atomically(path, b"x" * 2000, durable)
    assert path.read_bytes() == b"new" * 2000
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_is_installed_whole_and_never_over_another(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    install(tmp_path / "one", tmp_path / "there")
    with pytest.raises(OSError, match="not empty"):
        install(tmp_path / "two", tmp_path / "there")
    assert (tmp_path / "there" / "file").read_text() == "one"


def test_a_file_that_does_not_reach_the_disk_is_not_installed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # the kernel has no disk to write it to, so flushing it fails
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # else opening it to read waits
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            install(tmp_path / "pipe", tmp_path / "there")
    finally:
        os.close(writer)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_scratch_file_is_gone_unless_it_was_renamed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), scratch(tmp_path) as tmp:
        tmp.touch()
        raise ValueError("no")
    with scratch(tmp_path) as tmp:
        tmp.touch()
        install(tmp, tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_lock_is_waited_for_and_the_wait_is_reported_once_with_its_holder(
    tmp_path: Path,
) -> None:
    path, reported, entered, said = tmp_path / "folder" / "lock", threading.Event(), [], []

    def warn(message: str) -> None:
        said.append(message)
        reported.set()

    def wait() -> None:
        with locked(path, "its end", warn, notice=0.0):
            entered.append(True)

    with locked(path, "no holder", said.append, notice=0.0):
        thread = threading.Thread(target=wait)
        thread.start()
        assert reported.wait(TIMEOUT) and entered == []
        with locked_if_free(path) as free, locked_if_free(path, timeout=0.01) as later:
            assert (free, later, is_locked(path)) == (False, False, True)
        reported.clear()
        assert not reported.wait(0.5)  # two more attempts
    thread.join(TIMEOUT)
    assert said == [f"waiting for its end: {this_process()} holds `{path}`"]
    assert entered == [True] and not is_locked(path)
    with locked_if_free(path) as free:
        assert free


def test_to_see_whether_a_file_is_locked_creates_none(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "lock") and [*tmp_path.iterdir()] == []


WITHOUT_FLOCK = """
import ctypes, platform, struct, sys
from pathlib import Path
number = {"x86_64": 73, "aarch64": 32}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50026), (0x06, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
from moist.disk import is_locked, locked
path = Path(sys.argv[1])
print(is_locked(path), flush=True)
with locked(path, "its end", print, notice=0.0):
    pass
"""
"""The kernel refuses flock, as many file systems do, with ENOSYS."""


def test_where_there_are_no_locks_an_old_lock_file_is_named_and_ctrl_c_ends_the_wait(
    tmp_path: Path,
) -> None:
    if platform.machine() not in {"x86_64", "aarch64"} or sys.platform != "linux":
        pytest.skip("the kernel's filter of system calls is needed, and known, on Linux only")
    path = tmp_path / "old.lock"
    path.touch()
    with forked.Forked(["-c", WITHOUT_FLOCK, str(path)]) as waiting:
        waiting.until(lambda: "waiting" in waiting.out)
        waiting.signal(signal.SIGINT)
        assert waiting.wait() == -signal.SIGINT
    held, said, *_ = waiting.out.splitlines()
    assert held == "False"
    assert said.startswith(f"waiting for its end: another process holds `{path}`, which may be")


def test_a_lock_that_cannot_be_created_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for take in (locked, locked_if_free):
        with pytest.raises(StoreError, match=r"(?s)can't write in.*--home DIR"):
            with take(tmp_path / "file" / "lock"):
                raise AssertionError("it was taken")
