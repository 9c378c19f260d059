import errno
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from disks import largest_file
from forked import Forked
from hypothesis import given
from hypothesis import strategies as st

from moist.config import ClusterConfig, Config, DistillConfig, TeacherConfig
from moist.disk import UNFINISHED, this_process
from moist.env import Env, Silent
from moist.errors import StageError, StoreError
from moist.results import report
from moist.stages import stage
from moist.store import artifacts, checkpoint
from moist.store.calls import Backend, Ref, StageCall
from moist.store.maintenance import clear, entries, gc, verify
from moist.store.nonblocking import NonBlockingStore
from moist.store.objects import Damaged, Manifest, ObjectStore
from moist.store.plan import Plan
from moist.store.store import Store

TIMEOUT = 120.0


class Recorder(Silent):
    """A Progress that keeps events and warnings."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.warned_once = threading.Event()

    def started(self, stage: str, key: str) -> None:
        self.events.append(("started", stage))

    def finished(self, stage: str, key: str, seconds: float) -> None:
        self.events.append(("finished", stage))

    def reused(self, stage: str, key: str, seconds: float, origin: str = "") -> None:
        self.events.append(("reused", stage))

    def warned(self, message: str) -> None:
        self.warnings.append(message)
        self.warned_once.set()


def env(progress: Silent | None = None) -> Env:
    return Env(torch.device("cpu"), progress or Silent())


def note(log: str) -> None:
    with open(log, "a") as file:
        file.write("computed\n")


def times(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@stage(version=1)
def logits(env: Env, *, seed: int, log: str = "", size: int = 6) -> artifacts.Logits:
    if log:
        note(log)
    generator = torch.Generator().manual_seed(seed)
    return artifacts.Logits(torch.randn(size, generator=generator))


@stage(version=1)
def doubled(env: Env, *, source: artifacts.Logits, log: str = "") -> artifacts.Logits:
    if log:
        note(log)
    return artifacts.Logits(source.train_VNC * 2)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def files_under(home: Path, *names: str) -> list[Path]:
    return [path for name in names for path in (home / name).rglob("*")]


def stored(home: Path, ref: Ref) -> Path:
    return ObjectStore(home).folder(ref.key)


# what is not finite

INFINITE = {"NaN": math.nan, "infinity": -math.inf}


@stage(version=1)
def trains(env: Env, *, bad: str, at: str, distill: DistillConfig) -> object:
    value = INFINITE.get(bad, 1.0)
    if at == "checkpoint":
        checkpoint.save(env.checkpoints, {"module": {"fc.weight": torch.tensor([0, value])}}, 1)
    if at == "record":
        return report.Timing(median=value, p95=value, n=1)
    half = torch.tensor([0, value if at == "tensor" else 1.0]).half()
    spec = artifacts.Spec("cnn", (1, 8, 8), 2, {})
    return artifacts.Student(spec, {"fc.weight": half}, ({"loss": value if at == "row" else 1.0},))


WHERE = {
    "checkpoint": "`module.fc.weight` has {0}",
    "tensor": "`state.fc.weight` has {0}",
    "row": "`history.0.loss` is {1}",
    "record": "`median` is {1}, `p95` is {1}",
}


@pytest.mark.parametrize("bad", INFINITE)
@pytest.mark.parametrize("at", WHERE)
def test_nothing_that_is_not_finite_is_stored_and_the_error_names_it(at, bad, tmp_path):
    store = Store(tmp_path, env())
    with pytest.raises(StageError) as caught:
        store.call(trains, bad=bad, at=at, distill=DistillConfig(lr=2.5))
    found = WHERE[at].format(bad, INFINITE[bad])
    assert str(caught.value) == (
        f"`trains` failed: {found}; nothing was stored\nhint: lower `distill.lr` (it is 2.5)"
    )
    assert not files_under(tmp_path, "objects", "tmp")
    assert not [path for path in files_under(tmp_path, "partial") if path.is_file()]


@stage(version=1)
def load_teacher(env: Env, *, seed: int) -> artifacts.Logits:
    return artifacts.Logits(torch.ones(2))


@stage(version=1)
def overflows(env: Env, *, model: artifacts.Logits) -> artifacts.Logits:
    return artifacts.Logits(model.train_VNC * math.inf)


@pytest.mark.parametrize(
    ("origin", "hint"),
    [
        (load_teacher, "give other weights as `teacher.weights`"),
        (logits, "lower the learning rate of `logits`, whose output it works with"),
    ],
)
def test_a_stage_that_trains_nothing_points_to_what_made_its_input(origin, hint, tmp_path):
    store = Store(tmp_path, env())
    ref = store.call(origin, seed=0)
    with pytest.raises(StageError, match=r"`overflows` failed: `train_VNC` has ") as caught:
        store.call(overflows, model=ref)
    assert caught.value.hint == hint


def test_what_an_earlier_version_stored_with_nan_is_moved_aside_and_computed_again(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as earlier:
        earlier.setattr(artifacts, "not_finite", lambda tensor: "")
        request = StageCall(trains, {"bad": "NaN", "at": "tensor", "distill": DistillConfig()})
        Store(tmp_path, env()).resolve(request)
    with pytest.raises(StoreError, match=r"is damaged \(`state.fc.weight` has NaN\)"):
        Store(tmp_path, env()).load(request.key)
    plan = Plan(tmp_path, env())
    assert not plan.resolve(request).reused
    seen = Recorder()
    with pytest.raises(StageError, match=r"`trains` failed: `state\.fc\.weight` has NaN"):
        Store(tmp_path, env(seen)).resolve(request)
    assert "is damaged (`state.fc.weight` has NaN); moved to " in seen.warnings[0]
    assert request.key not in ObjectStore(tmp_path)


# keys

LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.floats(-1e9, 1e9)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz"), inner, max_size=3),
    max_leaves=6,
)


@stage(version=1)
def anything(env: Env, *, a: object = None, b: object = None, c: object = None) -> None: ...


@given(st.dictionaries(st.sampled_from("abc"), TREES), st.randoms())
def test_the_order_of_inputs_does_not_change_the_key(inputs, random):
    shuffled = list(inputs.items())
    random.shuffle(shuffled)
    assert StageCall(anything, inputs).key == StageCall(anything, dict(shuffled)).key


def changed_leaf(tree, random):
    """Replace one leaf, or an empty branch, of a tree."""
    if isinstance(tree, dict) and tree:
        name = random.choice(sorted(tree))
        return {**tree, name: changed_leaf(tree[name], random)}
    if isinstance(tree, list) and tree:
        place = random.randrange(len(tree))
        return [*tree[:place], changed_leaf(tree[place], random), *tree[place + 1 :]]
    return f"not {tree!r}"


@given(TREES, st.randoms())
def test_any_changed_leaf_changes_the_key(tree, random):
    changed = changed_leaf(tree, random)
    assert StageCall(anything, {"a": tree}).key != StageCall(anything, {"a": changed}).key


def test_a_key_is_the_same_in_every_process_and_release():
    inputs = {"a": (1, 2.5), "b": {"x": None}, "c": "é"}
    assert StageCall(anything, inputs).key == "a01aa4d85349ea1da401305b98355f7a"


def test_an_argument_that_was_added_later_is_part_of_the_key_once_it_is_not_its_default():
    def function(env, *, a): ...

    before = StageCall(stage(1)(function), {"a": 1})

    def function(env, *, a, b=False): ...

    after = stage(1, added=("b",))(function)
    assert StageCall(after, {"a": 1, "b": False}).key == before.key
    assert StageCall(after, {"a": 1, "b": True}).recipe == {"a": 1, "b": True}


def test_a_changed_default_version_or_name_changes_the_key():
    def build(name, version, default):
        def function(env, *, a=default): ...

        function.__name__ = name
        return StageCall(stage(version)(function), {}).key

    keys = [build("s", 1, 0), build("s", 2, 0), build("t", 1, 0), build("s", 1, 3)]
    assert len(set(keys)) == 4
    assert build("s", 1, 3) == build("s", 1, 3)


def test_what_only_says_where_stays_out_of_the_key(tmp_path):
    here, there = TeacherConfig(weights=tmp_path / "a"), TeacherConfig(weights=tmp_path / "b")
    assert StageCall(anything, {"a": here}).key == StageCall(anything, {"a": there}).key
    assert (
        StageCall(anything, {"a": here}).key
        != StageCall(anything, {"a": TeacherConfig(epochs=9)}).key
    )


def test_what_only_says_where_stays_out_of_the_key_of_a_nested_section_too(tmp_path):
    here, there = (Config(teacher=TeacherConfig(weights=tmp_path / name)) for name in "ab")
    assert StageCall(anything, {"a": here}).key == StageCall(anything, {"a": there}).key
    assert StageCall(anything, {"a": here}).key != StageCall(anything, {"a": Config(k=9)}).key


def test_sections_records_references_and_keyed_files_enter_the_key():
    class File:
        key = "0123"

    machine = report.Machine(device="cpu", threads=1, torch="2", system="x")
    recipe = StageCall(
        anything, {"a": (ClusterConfig(), machine), "b": File(), "c": [Ref("45", "s", int)]}
    )
    assert recipe.recipe == {
        "a": [{"method": "kmeans"}, machine.model_dump()],
        "b": {"ref": "0123"},
        "c": [{"ref": "45"}],
    }


@pytest.mark.parametrize(
    "value",
    [Path("x"), {1: 2}, {"ref": "0123"}, object(), float("nan"), float("inf"), torch.ones(1)],
    ids=lambda value: type(value).__name__,
)
def test_an_input_without_a_json_form_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"input `a\.0`"):
        _ = StageCall(anything, {"a": [value]}).key


def test_an_unknown_input_and_an_unmarked_function_are_refused(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'd'"):
        Plan(tmp_path, env()).call(anything, d=1)
    with pytest.raises(TypeError, match="has no version"):
        Plan(tmp_path, env()).call(changed_leaf, tree=1, random=2)


# reuse


def chain(store: Store, log: Path, seed: int = 0) -> Ref[artifacts.Logits]:
    first = store.call(logits, seed=seed, log=str(log))
    return store.call(doubled, source=first, log=str(log))


def test_a_second_run_computes_nothing_and_gives_the_same_value(tmp_path):
    log = tmp_path / "log"
    first = chain(Store(tmp_path / "home", env()), log)
    recorder = Recorder()
    again = Store(tmp_path / "home", env(recorder))
    second = chain(again, log)
    assert times(log) == 2
    assert torch.equal(first.value.train_VNC, second.value.train_VNC)
    assert recorder.events == [("reused", "logits"), ("reused", "doubled")]
    assert all(call.reused and call.seconds > 0 for call in again.calls)


def test_changing_a_late_input_computes_only_what_depends_on_it(tmp_path):
    log, other = tmp_path / "log", tmp_path / "other"
    store = Store(tmp_path / "home", env())
    chain(store, log)
    source = store.call(logits, seed=0, log=str(log))
    store.call(doubled, source=source, log=str(other))
    assert (times(log), times(other)) == (2, 1)
    assert [call.reused for call in store.calls] == [False, False, True, False]


def test_the_same_call_twice_in_a_run_computes_once(tmp_path):
    log = tmp_path / "log"
    for reuse in (True, False):
        store = Store(tmp_path / str(reuse), env(), reuse)
        assert chain(store, log).key == chain(store, log).key
    assert times(log) == 4


def test_a_stage_cannot_change_what_the_next_one_gets(tmp_path):
    @stage(version=1)
    def careless(env, *, source, n):
        before = source.train_VNC.clone()
        source.train_VNC.zero_()
        return artifacts.Logits(before)

    store = Store(tmp_path, env())
    source = store.call(logits, seed=1)
    for n in range(2):
        copy = store.call(careless, source=source, n=n).value
        assert torch.equal(copy.train_VNC, source.value.train_VNC)


def test_references_inside_tuples_and_dicts_arrive_as_values(tmp_path):
    @stage(version=1)
    def total(env, *, parts, named):
        sums = [part.train_VNC.sum() for part in (*parts, *named.values())]
        return {"total": float(sum(sums))}

    store = Store(tmp_path, env())
    refs = [store.call(logits, seed=n) for n in range(3)]
    found = store.call(total, parts=tuple(refs[:2]), named={"x": refs[2]}).value
    assert found == {"total": float(sum(ref.value.train_VNC.sum() for ref in refs))}


def test_a_plan_predicts_what_a_store_computes_and_writes_nothing(tmp_path):
    home, log = tmp_path / "home", tmp_path / "log"

    def plan(reuse: bool = True) -> list[tuple[str, str, bool]]:
        planned = Plan(home, env(), reuse)
        chain(planned, log)
        chain(planned, log, seed=1)
        chain(planned, log, seed=1)
        return [(call.stage, call.key, call.reused) for call in planned.calls]

    def compute(reuse: bool = True) -> list[tuple[str, str, bool]]:
        store = Store(home, env(), reuse)
        for seed in (0, 1, 1):
            chain(store, log, seed)
        return [(call.stage, call.key, call.reused) for call in store.calls]

    expected = plan()
    assert not home.exists() and not log.exists()
    assert compute() == expected
    assert plan() == compute() and all(reused for *_, reused in plan())
    victim = ObjectStore(home).folder(expected[1][1]) / "tensors.safetensors"
    flip(victim, -1)
    expected = plan()
    assert victim.exists() and not expected[1][2]
    assert compute() == expected
    assert plan(reuse=False) == compute(reuse=False)


def test_a_plan_knows_the_cost_of_what_was_computed_before_and_has_no_values(tmp_path):
    Store(tmp_path, env()).call(logits, seed=0)
    recorded = entries(ObjectStore(tmp_path))[0].seconds
    plan = Plan(tmp_path, env())
    plan.call(logits, seed=0)
    ref = plan.call(logits, seed=5)
    assert [call.seconds for call in plan.calls] == [recorded, None]
    with pytest.raises(StoreError, match="only planned"):
        _ = ref.value


def reused(backend: Backend) -> list[bool]:
    backend.call(doubled, source=backend.call(logits, seed=1))
    backend.call(logits, seed=2)
    return [call.reused for call in backend.calls]


def trusting(home: Path, reuse: bool = True) -> Plan:
    return Plan(home, env(), reuse, verify=False)


def test_a_plan_that_trusts_manifests_says_what_a_plan_says_where_all_is_intact(tmp_path):
    assert reused(trusting(tmp_path)) == [False] * 3
    Store(tmp_path, env()).call(logits, seed=1)
    plan, whole = trusting(tmp_path), Plan(tmp_path, env())
    assert reused(plan) == reused(whole) == [True, False, False]
    assert plan.calls == whole.calls
    assert reused(trusting(tmp_path, reuse=False)) == [False] * 3


def test_a_plan_that_trusts_manifests_reads_no_tensors_and_rejects_a_damaged_manifest(tmp_path):
    folder = stored(tmp_path, Store(tmp_path, env()).call(logits, seed=1))
    (folder / "tensors.safetensors").write_bytes(b"")
    assert reused(Plan(tmp_path, env())) == [False] * 3
    assert reused(trusting(tmp_path)) == [True, False, False]
    (folder / "manifest.json").write_bytes(b"{}")
    assert reused(trusting(tmp_path)) == [False] * 3


def test_without_reuse_a_stored_output_is_computed_again_and_replaced(tmp_path):
    log = tmp_path / "log"
    first = Store(tmp_path / "home", env()).call(logits, seed=0, log=str(log))
    before = entries(ObjectStore(tmp_path / "home"))
    again = Store(tmp_path / "home", env(), reuse=False).call(logits, seed=0, log=str(log))
    after = entries(ObjectStore(tmp_path / "home"))
    assert times(log) == 2 and again.key == first.key
    assert [entry.created for entry in after] > [entry.created for entry in before]
    assert torch.equal(first.value.train_VNC, again.value.train_VNC)
    assert not files_under(tmp_path / "home", "tmp", "quarantine")


def test_an_output_stays_stored_if_the_disk_fails_before_it_is_replaced(tmp_path, monkeypatch):
    ref = Store(tmp_path, env()).call(logits, seed=0)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken, pytest.raises(StoreError, match="Input/output error"):
        broken.setattr(os, "fsync", fail)
        Store(tmp_path, env(), reuse=False).call(logits, seed=0)
    assert Store(tmp_path, env()).load(ref.key).train_VNC.equal(ref.value.train_VNC)
    assert not files_under(tmp_path, "tmp", "quarantine")


def test_a_value_deleted_by_another_process_is_computed_again_when_needed(tmp_path):
    log = tmp_path / "log"
    ref = Store(tmp_path / "home", env()).call(logits, seed=0, log=str(log))
    clear(ObjectStore(tmp_path / "home"))
    assert len(ref.value.train_VNC) == 6
    assert times(log) == 2


def test_a_stored_output_is_loaded_by_key_if_it_is_sound(tmp_path):
    store = Store(tmp_path, env())
    ref = store.call(logits, seed=0)
    assert torch.equal(store.load(ref.key).train_VNC, ref.value.train_VNC)
    flip(stored(tmp_path, ref) / "tensors.safetensors", -1)
    with pytest.raises(StoreError, match="checksum differs"):
        store.load(ref.key)
    with pytest.raises(StoreError, match="no stored output `0123`"):
        store.load("0123")


# damage


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x20
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "first byte": lambda path: flip(path, 0),
    "middle byte": lambda path: flip(path, path.stat().st_size // 2),
    "last byte": lambda path: flip(path, -1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", ["artifact.json", "tensors.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_reported_quarantined_and_computed_again(tmp_path, name, damage):
    home, log, recorder = tmp_path / "home", tmp_path / "log", Recorder()
    first = chain(Store(home, env()), log)
    good = first.value.train_VNC.clone()
    DAMAGE[damage](stored(home, first) / name)
    again = chain(Store(home, env(recorder)), log)
    assert torch.equal(again.value.train_VNC, good)
    assert times(log) == 3
    assert len(recorder.warnings) == 1
    assert f"`doubled` {first.key[:8]} is damaged ({name}: " in recorder.warnings[0]
    (moved,) = (home / "quarantine").iterdir()
    assert str(moved) in recorder.warnings[0]
    assert (moved / "reason.txt").read_text().startswith(name)
    assert chain(Store(home, env()), log).key == first.key and times(log) == 3


def test_a_stray_file_in_an_object_is_damage(tmp_path):
    recorder = Recorder()
    ref = Store(tmp_path, env()).call(logits, seed=0)
    (stored(tmp_path, ref) / "extra").touch()
    Store(tmp_path, env(recorder)).call(logits, seed=0)
    assert "extra: not part of it" in recorder.warnings[0]


def test_an_object_under_another_objects_key_is_damage(tmp_path):
    store = Store(tmp_path, env())
    one, other = (store.call(logits, seed=seed) for seed in range(2))
    shutil.rmtree(stored(tmp_path, other))
    shutil.copytree(stored(tmp_path, one), stored(tmp_path, other))
    recorder = Recorder()
    again = Store(tmp_path, env(recorder)).call(logits, seed=1)
    assert "belongs to another key" in recorder.warnings[0]
    assert not torch.equal(again.value.train_VNC, one.value.train_VNC)


@pytest.mark.slow
def test_every_flipped_byte_of_every_file_is_found(tmp_path):
    ref = Store(tmp_path, env()).call(logits, seed=0)
    for path in stored(tmp_path, ref).iterdir():
        good = path.read_bytes()
        for offset in range(len(good)):
            for bit in (0x01, 0x80):
                bad = bytes([good[offset] ^ bit])
                path.write_bytes(good[:offset] + bad + good[offset + 1 :])
                with pytest.raises(Damaged, match=path.name):
                    ObjectStore(tmp_path).check(ref.key)
        path.write_bytes(good)
    assert ObjectStore(tmp_path).check(ref.key) is not None


# failures


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_raises_stores_nothing(tmp_path, error):
    @stage(version=1)
    def failing(env, *, n):
        raise error("no")

    with pytest.raises(error):
        Store(tmp_path, env()).call(failing, n=1)
    assert not entries(ObjectStore(tmp_path))
    assert not files_under(tmp_path, "objects", "tmp")


def test_a_value_that_is_not_an_artifact_is_rejected_and_not_stored(tmp_path):
    @stage(version=1)
    def odd(env, *, n):
        return Recorder() if n else StageCall(odd, {})

    for n in (0, 1):
        with pytest.raises(TypeError):
            Store(tmp_path, env()).call(odd, n=n)
    assert not files_under(tmp_path, "objects", "tmp")


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(tmp_path):
    home, log = tmp_path / "home", tmp_path / "log"
    store = Store(home, env())
    with largest_file(4096), pytest.raises(StoreError, match="moist cache gc"):
        store.call(logits, seed=0, log=str(log), size=100_000)
    assert not files_under(home, "objects", "tmp")
    assert len(store.call(logits, seed=0, log=str(log), size=100_000).value.train_VNC) == 100_000
    assert times(log) == 2


def test_an_object_folder_that_cannot_be_written_is_an_error(tmp_path):
    store = Store(tmp_path, env())
    (tmp_path / "objects").rmdir()
    (tmp_path / "objects").touch()
    with pytest.raises(StoreError, match="can't write in"):
        store.call(logits, seed=0)
    assert not files_under(tmp_path, "tmp")


def test_a_home_that_cannot_be_created_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=r"(?s)can't write in.*--home DIR.*MOIST_HOME"):
            Store(home, env())


# several processes


ROUNDS = 20


def race(folder: str, name: str) -> None:
    """Compute the same stages as another process, each at the same time."""
    folder = Path(folder)
    for seed in range(ROUNDS):
        here, there = (folder / f"{one}{seed}" for one in (name, "ab".replace(name, "")))
        here.touch()
        until(there.exists)
        store, log = Store(folder / "home", env()), str(folder / f"log{seed}")
        ref = store.call(logits, seed=seed, log=log, size=200_000)
        assert len(ref.value.train_VNC) == 200_000


CALL = "import sys; sys.path.insert(0, {!r}); import test_store; test_store.{}(*sys.argv[1:])"


def elsewhere(function: Callable[..., None], *arguments: object) -> Forked:
    """Call a function of this file in another process."""
    return Forked(["-c", CALL.format(str(Path(__file__).parent), function.__name__), *arguments])


def test_two_processes_compute_each_key_exactly_once(tmp_path):
    pair = [elsewhere(race, tmp_path, name) for name in "ab"]
    assert [process.wait() for process in pair] == [0, 0]
    assert [times(tmp_path / f"log{seed}") for seed in range(ROUNDS)] == [1] * ROUNDS
    assert not files_under(tmp_path / "home", "tmp", "quarantine")


@stage(version=1)
def stepping(env: Env, *, steps: int, log: str, stop_at: int) -> artifacts.Clusters:
    """Counts with a checkpoint a step; the first attempt stops halfway, for ever."""
    done, state = checkpoint.load(env.checkpoints, print) or (
        0,
        {"sum": torch.zeros(1), "seen": ()},
    )
    for step in range(done, steps):
        note(log)
        state = {"sum": state["sum"] + step, "seen": (*state["seen"], step)}
        checkpoint.save(env.checkpoints, state, step + 1)
        if step + 1 == stop_at and done == 0:
            Path(log + ".stopped").touch()
            signal.pause()
    assert float(state["sum"]) == sum(state["seen"])
    return artifacts.Clusters(state["seen"], {})


def step_through(home: str, log: str) -> None:
    Store(Path(home), env()).call(stepping, steps=6, log=log, stop_at=4)


def test_a_killed_stage_publishes_nothing_and_continues_from_its_checkpoint(tmp_path):
    home, log = tmp_path / "home", tmp_path / "log"
    with elsewhere(step_through, home, log) as process:
        process.until(Path(f"{log}.stopped").exists)
    assert not files_under(home, "objects", "tmp")
    clusters = Store(home, env()).call(stepping, steps=6, log=str(log), stop_at=4).value
    assert clusters.of_class == (0, 1, 2, 3, 4, 5)
    assert times(log) == 6
    assert not files_under(home, "partial")


def leave(home: Path, key: str, seconds: float) -> Path:
    """Leave checkpoints of a stored output, so many seconds older than it."""
    left = home / "partial" / key / "step-000001-0123456789abcdef.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"state")
    when = ObjectStore(home).folder(key).stat().st_mtime - seconds
    for path in (left, left.parent):
        os.utime(path, (when, when))
    return left


@pytest.mark.parametrize("kind", [Store, NonBlockingStore])
def test_checkpoints_that_outlived_their_stored_output_go_once_it_is_found(tmp_path, kind):
    """Their process was killed once the output was stored, before they were deleted."""
    key = Store(tmp_path, env()).call(logits, seed=0).key
    left = leave(tmp_path, key, seconds=1)
    gone = left.with_name("gone")
    gone.touch()
    gone.unlink()  # or while they were deleted
    with ObjectStore(tmp_path).locked(key):
        kind(tmp_path, env()).call(logits, seed=0)
        assert left.exists()
    kind(tmp_path, env()).call(logits, seed=0)
    assert not files_under(tmp_path, "partial")


def test_checkpoints_of_a_process_that_recomputes_an_output_stay(tmp_path):
    key = Store(tmp_path, env()).call(logits, seed=0).key
    left = leave(tmp_path, key, seconds=-1)
    Store(tmp_path, env()).call(logits, seed=0)
    assert left.exists()


def test_without_reuse_old_checkpoints_of_a_stored_output_are_not_continued(tmp_path):
    seen = []

    @stage(version=1)
    def looks(env: Env) -> artifacts.Clusters:
        seen.append(env.checkpoints.exists())
        return artifacts.Clusters((0,), {})

    key = Store(tmp_path, env()).call(looks).key
    for seconds in (1, -1):
        leave(tmp_path, key, seconds)
        Store(tmp_path, env(), reuse=False).call(looks)
        assert not files_under(tmp_path, "partial")
    assert seen == [False, False, True]


def test_a_process_that_waited_deletes_the_checkpoints_of_the_other(tmp_path):
    home, recorder, log = tmp_path / "home", Recorder(), tmp_path / "log"
    job = {"seed": 0, "log": str(log)}
    key = Store(tmp_path / "other", env()).call(logits, **job).key
    store = Store(home, env(recorder))
    waiter = threading.Thread(target=store.call, args=(logits,), kwargs=job)
    with ObjectStore(home).locked(key):
        waiter.start()
        assert recorder.warned_once.wait(TIMEOUT)
        shutil.copytree(tmp_path / "other" / "objects", home / "objects", dirs_exist_ok=True)
        leave(home, key, seconds=1)
    waiter.join(TIMEOUT)
    assert times(log) == 1
    assert not files_under(home, "partial")


def test_an_output_that_is_cleared_while_it_is_checked_is_computed_again(tmp_path, monkeypatch):
    """Between the reading of its manifest and the listing of its files."""
    Store(tmp_path, env()).call(logits, seed=0)
    read = ObjectStore.manifest

    def read_and_lose(objects: ObjectStore, key: str) -> Manifest | None:
        manifest = read(objects, key)
        monkeypatch.undo()
        clear(ObjectStore(tmp_path))
        return manifest

    monkeypatch.setattr(ObjectStore, "manifest", read_and_lose)
    store = Store(tmp_path, env())
    store.call(logits, seed=0)
    assert [call.reused for call in store.calls] == [False]


def test_a_process_that_waits_for_another_warns_once(tmp_path):
    recorder, log = Recorder(), tmp_path / "log"
    store = Store(tmp_path / "home", env(recorder))
    key = StageCall(logits, {"seed": 0, "log": str(log)}).key
    waiter = threading.Thread(
        target=store.call, args=(logits,), kwargs={"seed": 0, "log": str(log)}
    )
    with ObjectStore(tmp_path / "home").locked(key):
        waiter.start()
        assert recorder.warned_once.wait(TIMEOUT)
        assert times(log) == 0
    waiter.join(TIMEOUT)
    waiting = f"waiting for another process to finish `logits` {key[:8]}: {this_process()} holds"
    assert len(recorder.warnings) == 1 and recorder.warnings[0].startswith(waiting)
    assert times(log) == 1


# maintenance


def filled(home: Path, n: int = 4) -> list[str]:
    """Keys of n objects, least recently used first."""
    store = Store(home, env())
    keys = [store.call(logits, seed=seed).key for seed in range(n)]
    for age, key in enumerate(keys):
        os.utime(ObjectStore(home).folder(key) / "manifest.json", (1e9 + age, 1e9 + age))
    return keys


def test_entries_list_what_is_stored_least_recently_used_first(tmp_path):
    keys = filled(tmp_path)
    Store(tmp_path, env()).call(logits, seed=0)
    listed = entries(ObjectStore(tmp_path))
    assert [entry.key for entry in listed] == [*keys[1:], keys[0]]
    assert all(entry.stage == "logits" and entry.bytes > 100 for entry in listed)
    assert entries(ObjectStore(tmp_path / "nowhere")) == []


def test_gc_drops_the_least_recently_used_and_spares_pinned_and_locked(tmp_path):
    keys = filled(tmp_path)
    before = {entry.key: entry.bytes for entry in entries(ObjectStore(tmp_path))}
    room = before[keys[0]] + before[keys[1]] + before[keys[3]]
    with ObjectStore(tmp_path).locked(keys[1]):
        freed = gc(ObjectStore(tmp_path), room, pinned={keys[0]})
    assert freed == before[keys[2]]
    assert {entry.key for entry in entries(ObjectStore(tmp_path))} == {keys[0], keys[1], keys[3]}
    gc(ObjectStore(tmp_path), 0, pinned={keys[0]})
    assert [entry.key for entry in entries(ObjectStore(tmp_path))] == [keys[0]]


def test_gc_sweeps_what_dead_processes_left_but_not_what_is_fresh_or_locked(tmp_path):
    Store(tmp_path, env())
    download = f"data/downloads/cifar10/{UNFINISHED}"
    for name in (
        "tmp/old", "tmp/new", "partial/old", "partial/new", "partial/held",
        f"{download}old/raw", f"{download}new/raw",
    ):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x").write_bytes(b"12345")
        if "new" not in name:
            for path in (tmp_path / name / "x", tmp_path / name, (tmp_path / name).parent):
                os.utime(path, (1e9, 1e9))
    with ObjectStore(tmp_path).locked("held"):
        assert gc(ObjectStore(tmp_path), 10**9) == 15
    left = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("x")}
    assert left == {"tmp/new", "partial/new", "partial/held", f"{download}new/raw"}


def test_clear_deletes_one_stage_or_everything(tmp_path):
    store = Store(tmp_path, env())
    store.call(doubled, source=store.call(logits, seed=0))
    (tmp_path / "quarantine" / "x").mkdir(parents=True)
    size = {entry.stage: entry.bytes for entry in entries(ObjectStore(tmp_path))}
    assert clear(ObjectStore(tmp_path), "doubled") == size["doubled"]
    assert [entry.stage for entry in entries(ObjectStore(tmp_path))] == ["logits"]
    assert clear(ObjectStore(tmp_path)) == size["logits"]
    assert not entries(ObjectStore(tmp_path))
    assert not files_under(tmp_path, "quarantine", "tmp", "partial")
    assert clear(ObjectStore(tmp_path / "nowhere")) == 0


def test_verify_lists_damaged_objects_and_quarantines_them(tmp_path):
    keys = filled(tmp_path)
    assert verify(ObjectStore(tmp_path)) == []
    flip(ObjectStore(tmp_path).folder(keys[1]) / "tensors.safetensors", -1)
    (ObjectStore(tmp_path).folder(keys[2]) / "manifest.json").unlink()
    assert [entry.stage for entry in entries(ObjectStore(tmp_path))].count("(damaged)") == 1
    assert sorted(verify(ObjectStore(tmp_path))) == sorted(
        [
            (keys[1], "tensors.safetensors: checksum differs"),
            (keys[2], "manifest.json: missing"),
        ]
    )
    assert {entry.key for entry in entries(ObjectStore(tmp_path))} == {keys[0], keys[3]}
    assert verify(ObjectStore(tmp_path)) == []


def test_a_manifest_says_how_its_object_came_about(tmp_path):
    ref = Store(tmp_path, env()).call(logits, seed=3)
    manifest = json.loads((stored(tmp_path, ref) / "manifest.json").read_text())
    assert manifest["recipe"] == {"seed": 3, "log": "", "size": 6}
    assert manifest["stage"] == "logits" and manifest["version"] == 1
    assert manifest["machine"]["torch"] == torch.__version__
    assert manifest["created"].endswith("+00:00")
