"""A store that machines share: what one computes the others pull, and never damaged."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from s3 import BUCKET, serving
from test_store import Recorder, logits, note, times

from moist.env import Env
from moist.errors import ConfigError
from moist.stages import stage
from moist.store import artifacts, checkpoint, remote, store
from moist.store.calls import StageCall
from moist.store.plan import Plan
from moist.store.remote import Remote, Unreachable, connected
from moist.store.store import Store

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serving() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty store."""
    if request.param == "folder":
        return f"file://{tmp_path}/shared"
    host = "memory:/" if request.param == "memory" else request.getfixturevalue("s3")
    return f"{host}/{next(NUMBERS)}"


class Machine:
    """A machine with a home of its own, and its connection to the shared store."""

    def __init__(self, home: Path, url: str) -> None:
        self.seen = Recorder()
        self.env = Env(torch.device("cpu"), self.seen)
        self.remote = Remote(url)
        self.remote.check(write=True)
        self.store = Store(home, self.env, remote=self.remote)

    def logits(self, log: Path, seed: int = 3) -> torch.Tensor:
        return self.store.call(logits, seed=seed, log=str(log)).value.train_VNC


def key_of(log: Path, seed: int = 3) -> str:
    return StageCall(logits, {"seed": seed, "log": str(log)}).key


def files(url: str, key: str) -> dict[str, str]:
    """The paths of an object's files in the store, by what they are called in a home."""
    one = Remote(url)
    paths = one.fs.ls(f"{one.root}/objects/{key[:2]}/{key}", detail=False)
    return {Path(path).name.partition("-")[0].partition(".")[0]: path for path in paths}


def test_what_one_machine_computed_another_pulls(url, tmp_path):
    log = tmp_path / "log"
    first, second = (Machine(tmp_path / name, url) for name in "ab")
    plan = Plan(tmp_path / "b", second.env, remote=Remote(url))
    assert not plan.resolve(StageCall(logits, {"seed": 3, "log": str(log)})).reused
    value = first.logits(log)
    assert torch.equal(second.logits(log), value) and times(log) == 1
    (call,) = second.store.calls
    assert call.reused and call.origin == second.remote.shown
    assert second.seen.events == [("reused", "logits")] and not second.seen.warnings
    plan = Plan(tmp_path / "c", second.env, remote=Remote(url))
    assert plan.resolve(StageCall(logits, {"seed": 3, "log": str(log)})) == call
    assert torch.equal(Machine(tmp_path / "b", url).logits(log), value) and times(log) == 1


def damage(url: str, key: str, what: str, other: str) -> None:
    fs, paths = Remote(url).fs, files(url, key)
    path = paths["manifest" if what.startswith("manifest") else "tensors"]
    data = fs.cat_file(path)
    if what.endswith("missing"):
        fs.rm_file(path)
        return
    if what.endswith("of another key"):
        data = fs.cat_file(files(url, other)["manifest"])
    changed = {"cut": data[:-9], "longer": data + b"\0", "flipped": data[:-1] + b"\1"}
    fs.pipe_file(path, changed.get(what.rpartition(" ")[2], data))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("tensors cut", "tensors.safetensors: "),
        ("tensors longer", "tensors.safetensors: more than the "),
        ("tensors flipped", "tensors.safetensors: checksum differs"),
        ("tensors missing", "tensors.safetensors: missing"),
        ("manifest cut", "manifest.json: not readable"),
        ("manifest of another key", "manifest.json: belongs to another key"),
    ],
)
def test_what_is_damaged_in_the_store_is_not_used_and_is_repaired(what, reason, url, tmp_path):
    log = tmp_path / "log"
    first = Machine(tmp_path / "a", url)
    first.logits(log, seed=4)
    value = first.logits(log)
    damage(url, key_of(log), what, other=key_of(log, 4))
    second = Machine(tmp_path / "b", url)
    assert torch.equal(second.logits(log), value) and times(log) == 3
    (warning,) = second.seen.warnings
    assert f"in `{second.remote.shown}` is damaged ({reason}" in warning
    assert warning.endswith("; computing it again")
    third = Machine(tmp_path / "c", url)
    assert torch.equal(third.logits(log), value) and times(log) == 3
    assert not third.seen.warnings


@pytest.mark.parametrize("name", ["code.pkl", "../../../escaped.json", "manifest.json"])
def test_only_json_and_safetensors_in_the_objects_own_folder_are_read(name, url, tmp_path):
    log = tmp_path / "log"
    first = Machine(tmp_path / "a", url)
    first.logits(log)
    manifest = first.remote.manifest(key := key_of(log))
    odd = manifest.model_copy(
        update={"files": {**manifest.files, name: manifest.files["artifact.json"]}}
    )
    first.remote.fs.pipe_file(files(url, key)["manifest"], odd.to_bytes())
    second = Machine(tmp_path / "b", url)
    second.logits(log)
    assert f"it names a file `{name}`" in second.seen.warnings[0] and times(log) == 2


def test_machines_that_compute_the_same_key_differently_leave_one_whole_object(
    url, tmp_path, monkeypatch
):
    log = tmp_path / "log"
    first, second = (Machine(tmp_path / name, url) for name in "ab")
    with monkeypatch.context() as apart:
        apart.setattr(Remote, "push", lambda *_: None)
        first.logits(log)
        apart.setattr(torch, "randn", torch.rand)
        second.logits(log)
    written: list[str] = []
    write = Remote._write

    def between(self: Remote, path: str, content: object) -> None:
        """Let the second machine write everything while the first is about to commit."""
        if path.endswith("manifest.json") and not written:
            written.append(path)
            second.remote.push(second.store.objects, key_of(log))
        write(self, path, content)

    monkeypatch.setattr(Remote, "_write", between)
    first.remote.push(first.store.objects, key_of(log))
    assert written
    assert torch.equal(Machine(tmp_path / "c", url).logits(log), first.logits(log))
    assert times(log) == 2


def test_an_outage_is_a_warning_and_what_was_computed_meanwhile_is_shared_later(
    tmp_path, monkeypatch
):
    log, shared = tmp_path / "log", tmp_path / "shared"
    first = Machine(tmp_path / "a", str(shared))
    shared.rename(tmp_path / "gone")
    for seed in (3, 4):
        first.logits(log, seed)
    assert first.seen.warnings == [
        f"can't reach the store `{shared}`: No such file or directory; going on without it: what"
        " is computed stays in the home folder"
    ]
    (tmp_path / "gone").rename(shared)
    assert Machine(tmp_path / "b", str(shared)).remote.manifest(key_of(log, 4)) is None
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    again = Machine(tmp_path / "a", str(shared))
    for seed in (3, 4):
        again.logits(log, seed)
        Machine(tmp_path / "b", str(shared)).logits(log, seed)
    assert times(log) == 2


def test_whoever_may_not_write_to_a_store_still_pulls(tmp_path, monkeypatch):
    log = tmp_path / "log"
    Machine(tmp_path / "a", f"{tmp_path}/shared").logits(log)

    def refused(self: Remote, path: str, content: object) -> None:
        with self._reaching():
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Remote, "_write", refused)
    second = Machine(tmp_path / "b", f"{tmp_path}/shared")
    second.logits(log)
    second.logits(log, seed=4)
    assert times(log) == 2
    assert "Permission denied; going on without it" in second.seen.warnings[0]


@stage(version=1)
def steps(env: Env, *, log: str, stop: str = "") -> artifacts.Logits:
    """Take four steps, each on disk; end by a signal after the second if `stop` is a folder."""
    found = checkpoint.load(env.checkpoints, env.progress.warned)
    done, total = found if found else (0, torch.zeros(2))
    for step in range(done, 4):
        note(log)
        total = total + step
        checkpoint.save(env.checkpoints, total, step + 1)
        env.advanced(step + 1, 4)
        if step == 1 and not Path(log).with_name("stopped").exists():
            Path(log).with_name("stopped").touch()
            raise KeyboardInterrupt
    return artifacts.Logits(total)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_stage_that_a_signal_ended_continues_in_another_home(damaged, url, tmp_path):
    log = tmp_path / "log"
    first, second = (Machine(tmp_path / name, url) for name in "ab")
    with pytest.raises(KeyboardInterrupt):
        first.store.call(steps, log=str(log))
    key = StageCall(steps, {"log": str(log)}).key
    fs, folder = first.remote.fs, f"{first.remote.root}/partial/{key}"
    about = json.loads(fs.cat_file(f"{folder}/newest.json"))
    if damaged:
        fs.pipe_file(f"{folder}/{about['file']}", b"\0" * about["bytes"])
    value = second.store.call(steps, log=str(log)).value
    assert value.train_VNC.tolist() == [6.0, 6.0]
    assert times(log) == (6 if damaged else 4)
    assert second.store.calls[0].seconds > about["seconds"] or damaged
    assert not fs.find(folder)


def test_checkpoints_are_copied_while_a_stage_runs(url, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARE_EVERY", 0.0)
    log, first = tmp_path / "log", Machine(tmp_path / "a", url)
    monkeypatch.setattr(Remote, "drop_checkpoint", lambda *_: None)
    (tmp_path / "stopped").touch()
    first.store.call(steps, log=str(log))
    found = first.remote.fs.find(f"{first.remote.root}/partial")
    assert sorted(Path(path).name[:5] for path in found) == ["newes", "step-"]


def test_a_store_that_can_not_be_used_is_named_without_its_password(tmp_path):
    with pytest.raises(Unreachable, match=r"can't reach the store `.*deep/er`: No such file"):
        connected(f"{tmp_path}/deep/er")
    for bad, message in {
        "foo://x": "Protocol not known: foo",
        "gs://bucket/x": "needs a package",
        "s3://me:s3cret@bucket": "has credentials",
        "sftp://me:s3cret@host/x": "needs a package",
    }.items():
        with pytest.raises(ConfigError, match=message) as caught:
            connected(bad)
        assert "s3cret" not in str(caught.value)
    (tmp_path / "moist.json").write_text("{}")
    with pytest.raises(Exception, match="is not a store of this version"):
        connected(str(tmp_path))
