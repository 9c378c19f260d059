"""One contract for all executors: what they run, hand on, lose, cancel and leave behind."""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import forked
import psutil
import pytest
import toy
from clusters import Cluster
from driving import sweep
from driving import trials as driven
from tiny import searched
from toy import DIE, FAIL, PATIENCE, WAIT, Do, Script, Toy, attempts, epochs, numbers

from moist.config import Config
from moist.errors import ConfigError
from moist.store.maintenance import entries, verify
from moist.store.objects import ObjectStore
from moist.store.runs import RunRecords
from moist.study.cluster import SETTINGS, Ray, Share, connect
from moist.study.events import Completed, EpochDone, Event, Failed, Lost
from moist.study.executor import Executor, Task
from moist.study.inline import Inline
from moist.study.workers import Pool, Slot

LOCAL = partial(Pool, preload=toy.PRELOAD)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patched, Cluster(patched) as started:
        connect(started.address)  # before Ray is imported, as Ray then reads its settings
        import ray

        yield started
        ray.shutdown()


RAY = pytest.param("ray", marks=pytest.mark.slow)
APART = pytest.mark.parametrize("run", ["local", RAY], indirect=True)
"""Executors whose tasks are in other processes."""


@pytest.fixture(params=["inline", "local", RAY])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Script], Executor]:
    """An executor of a script's tasks, in a home of its own."""
    engines = {"inline": Inline, "local": LOCAL, "ray": Ray}
    if request.param == "ray":
        request.getfixturevalue("cluster")

    def made(script: Script) -> Executor:
        slots = [Slot("cpu", 1) for _ in range(1 if request.param == "inline" else 2)]
        return engines[request.param](Toy(tmp_path, script, stage="toy"), slots, tmp_path / "logs")

    return made


def test_without_ray_its_engine_is_refused_with_the_command_that_installs_it(monkeypatch):
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray, which is not installed") as refused:
        connect(None)
    assert refused.value.hint == "`pip install 'moist[ray]'`"


def test_a_share_fits_on_a_node_as_often_as_its_scarcest_resource_allows():
    assert Share(2, 0.5).fits({"CPU": 16, "GPU": 2}) == 4
    assert Share(2, 0.5).fits({"CPU": 6, "GPU": 8}) == 3
    assert Share(1, 0).fits({"CPU": 6, "GPU": 8}) == 6 and Share(1, 1).fits({"CPU": 6}) == 0
    assert str(Share(2, 0.5)) == "2 CPUs and 0.5 GPUs" and str(Share()) == "1 CPU"


def task(number: int) -> Task:
    return Task(number, Config(hidden_width=number + 1), "moist run")


def until(executor: Executor, kind: type[Event], count: int = 1) -> list[Event]:
    """All events, up to the wait that brings the last of ``count`` of that kind."""
    found: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while sum(isinstance(event, kind) for event in found) < count:
        assert time.monotonic() < deadline, found
        found += executor.wait(0.1)
    return found


def test_events_come_in_order_and_end_in_the_result(run, tmp_path):
    with run({0: epochs("toy", 0.25, 0.5)}) as executor:
        executor.submit(task(0))
        found = until(executor, Completed)
    assert [type(event).__name__ for event in found] == [
        "StageStarted", "EpochDone", "EpochDone", "StageFinished", "Completed"
    ]  # fmt: skip
    assert {event.number for event in found} == {0}
    assert found[-1].report == toy.report(task(0).config)
    assert found[-1].curves == {"toy": [0.25, 0.5]}


def test_as_many_tasks_run_at_once_as_there_is_capacity_for(run, tmp_path):
    with run({number: WAIT for number in range(3)}) as executor:
        workers = executor.capacity().workers
        for number in range(workers):
            executor.submit(task(number))
        assert toy.until(lambda: len(attempts(tmp_path)) == workers)
        (tmp_path / "go").touch()
        until(executor, Completed, workers)


def test_an_error_is_handed_on_with_its_lines_and_the_next_task_runs(run, tmp_path):
    with run({0: FAIL}) as executor:
        executor.submit(task(0))
        [failed] = [event for event in until(executor, Failed) if isinstance(event, Failed)]
        assert failed.error == "ValueError: no such" and "in act" in "\n".join(failed.lines)
        executor.submit(task(1))
        until(executor, Completed)
    assert numbers(tmp_path) == [0, 1]


def test_a_task_whose_device_fails_is_lost(run, tmp_path):
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    with run({0: (Do("raise", broken),)}) as executor:
        executor.submit(task(0))
        assert until(executor, Lost)[-1].reason == f"its device failed: RuntimeError: {broken}"


def test_a_task_that_is_cancelled_is_heard_of_no_more_and_leaves_room(run, tmp_path):
    script = {0: [*epochs("toy", 0.25), *WAIT, *epochs("toy", 0.5)]}
    with run(script) as executor:
        executor.submit(task(0))
        until(executor, EpochDone)
        (tmp_path / "go").touch()  # `inline` ends with its next event
        executor.cancel(0)
        for number in range(1, 1 + executor.capacity().workers):
            executor.submit(task(number))
        found = until(executor, Completed)
        assert not any(isinstance(e, Completed) and e.number == 0 for e in found)


@APART
def test_what_trials_print_is_in_a_file(run, tmp_path):
    with run({0: FAIL}) as executor:
        executor.submit(task(0))
        until(executor, Failed)
    assert "ValueError: no such" in (tmp_path / "logs" / "00000.txt").read_text()


@APART
def test_a_killed_worker_loses_its_trial_alone(run, tmp_path):
    with run({0: DIE, 1: WAIT}) as executor:
        executor.submit(task(1))
        executor.submit(task(0))
        [lost] = [event for event in until(executor, Lost) if isinstance(event, Lost)]
        assert lost.number == 0
        (tmp_path / "go").touch()
        assert until(executor, Completed)[-1].number == 1


@APART
def test_tasks_on_the_drivers_machine_are_paused_and_go_on(run, tmp_path):
    """Those that the driver has not heard of yet, too."""
    with run({0: WAIT, 1: WAIT}) as executor:
        for number in range(2):
            executor.submit(task(number))
        assert toy.until(lambda: len(attempts(tmp_path)) == 2)
        workers = [psutil.Process(one["worker"]) for one in attempts(tmp_path)]
        with executor.paused():
            assert toy.until(lambda: {one.status() for one in workers} == {"stopped"})
            (tmp_path / "go").touch()
        until(executor, Completed, 2)


@APART
def test_no_task_outlives_its_executor(run, tmp_path):
    with run({0: WAIT}) as executor:
        executor.submit(task(0))
        assert toy.until(lambda: bool(attempts(tmp_path)))
    worker = attempts(tmp_path)[0]["worker"]
    assert toy.until(lambda: not psutil.pid_exists(worker))
    assert executor.wait(0.0) == []


# studies


SWEEP = searched("random", k="values: [2, 3, 4, 5]", width="values: [4, 6, 8, 12, 16, 24, 32]")


def sweep_on(engine: str, folder: Path, *words: object) -> list[str]:
    """The words of a sweep of `SWEEP`, in a home of its own."""
    (folder / "small.yaml").write_text(SWEEP)
    common = [folder / "small.yaml", "--engine", engine, "--home", folder / engine, "--quiet"]
    return [*map(str, [*common, "--threads", "1", "--wandb", "off", *words])]


@pytest.mark.slow
def test_a_sequential_study_finds_the_same_with_every_executor(cluster, tmp_path):
    found = []
    for engine in ("inline", "local", "ray"):
        where = ["--address", cluster.address] if engine == "ray" else []
        words = sweep_on(engine, tmp_path, "--trials", 4, "--workers", 1, "--json", *where)
        done = json.loads(forked.moist("sweep", "optuna", *words).stdout)
        trials = [(t["number"], t["params"], t["key"], exact(t["values"])) for t in done["trials"]]
        found.append((done["frontier"], trials))
    assert found[0] == found[1] == found[2] and len(found[0][1]) == 4


def exact(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name != "latency_ms"}


def tasks() -> list[psutil.Process]:
    """List Ray's workers that run a trial."""
    named = psutil.process_iter(["cmdline"])
    return [one for one in named if (one.info["cmdline"] or [""])[0] == "ray::run_on_node"]


def each(processes: list[psutil.Process], action: str) -> None:
    """Call a method of each process that has not ended meanwhile."""
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            getattr(one, action)()


@pytest.mark.slow
def test_a_study_survives_the_loss_of_a_worker_a_node_and_its_driver(cluster, tmp_path):
    words = sweep_on("ray", tmp_path, "--trials", 24, "--address", cluster.address)
    home, stamps = tmp_path / "ray", {}

    def held(records: int) -> list[psutil.Process]:
        """Stop more trials than a node has, so that none ends before it is killed."""
        if len(RunRecords(home).all()) >= records:
            each(tasks(), "suspend")
            if len(found := tasks()) > 2:
                return found
            each(found, "resume")
        return []

    driving = sweep(*words)
    driving.until(lambda: held(4))
    tasks()[0].kill()
    each(tasks(), "resume")
    driving.until(lambda: held(8))
    cluster.remove()
    each(tasks(), "resume")
    driving.until(lambda: len(RunRecords(home).all()) >= 12)
    stamps = {entry.key: entry.created for entry in entries(ObjectStore(home))}
    driving.kill()
    assert driving.out == ""
    resumed = sweep(*words)
    assert resumed.finish() == 0, resumed.text
    found = driven(home, "small")
    assert [trial.state for trial in found] == ["complete"] * 24
    attempts = [trial.attempts for trial in found if trial.attempts]
    # That a node died Ray may learn after its workers: then it says that these crashed.
    lost = re.findall(r"\w+Error", str(attempts))
    assert len(lost) >= 2 and {*lost} <= {"WorkerCrashedError", "NodeDiedError"}
    assert max(map(len, attempts)) <= 2  # a trial may be lost with its worker, then with a node
    stored = {entry.key: entry.created for entry in entries(ObjectStore(home))}
    assert stamps.items() <= stored.items()  # nothing was computed again after the kill
    runs = RunRecords(home).all()
    computed = Counter(run.artifacts[stage] for run in runs for stage in run.computed or ())
    assert len(computed) > 24 and set(computed.values()) == {1}
    assert verify(ObjectStore(home)) == [] and not list((home / "partial").iterdir())
