"""Real drivers and workers that are killed: a study loses nothing and continues."""

import itertools
import os
import random
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from driving import Driving, records, start, sweep, trials
from optuna.artifacts import get_all_artifact_meta
from optuna.samplers import RandomSampler
from tiny import searched
from toy import FAIL, WAIT, Start, attempts, ref, search

from moist.errors import StoreError
from moist.interrupts import JOB
from moist.store.maintenance import entries, verify
from moist.store.objects import ObjectStore
from moist.study.doctor import examine
from moist.study.ledger import opened
from moist.study.samplers import suggest
from moist.study.spec import sweep_of
from moist.study.storage import load

SWEEP = searched("random", width="values: [8, 32]", teacher=3, distill=6, routing=3, joint=6)
KILLS = 20
COMMITS = (13, 19)
"""Commits of the database until a driver is killed: a resumed driver makes 12 before its first
trial, and 3 for each trial."""


def kill(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def hold(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.suspend()


def busy(driving: Driving, home: Path, chance: random.Random) -> list[psutil.Process]:
    """Wait for a random moment; return the workers that have begun to work."""
    end = time.monotonic() + chance.uniform(0.0, 0.1)

    def seen() -> list[psutil.Process]:
        begun = {attempt["worker"] for attempt in attempts(home)}
        return [worker for worker in driving.workers() if worker.pid in begun]

    return driving.until(lambda: time.monotonic() > end and seen())


def unsettled(home: Path, study: str = "toy") -> list[str]:
    named = ref(home, study)
    return [found.problem for found in examine(named, *load(named))]


def stored(home: Path) -> dict[str, str]:
    """Return when each stage's output was stored."""
    return {entry.key: entry.created for entry in entries(ObjectStore(home))}


def amid(driving: Driving, keys: set[str]) -> psutil.Process | None:
    """Find a worker that holds the lock of one of these stages."""
    for worker in driving.workers():
        with suppress(psutil.NoSuchProcess):
            if keys & {Path(file.path).stem for file in worker.open_files()}:
                return worker
    return None


@pytest.mark.slow
def test_a_study_killed_twenty_times_ends_with_every_trial_complete_and_none_run_twice(tmp_path):
    chance, kills = random.Random(0), dict.fromkeys(("worker", "driver", "both", "held"), 0)
    what = Start(tmp_path, trials=64, workers=2)
    stamps: dict[str, str] = {}
    driving = start(what)
    while sum(kills.values()) < KILLS:
        whom = chance.choice([*kills])
        workers = busy(driving, tmp_path, chance)
        if whom == "worker":
            kills[whom] += kill(chance.choice(workers))
            continue
        for worker in workers:
            {"both": kill, "held": hold, "driver": lambda _: None}[whom](worker)
        driving.kill()
        kills[whom] += 1
        stamps = records(tmp_path) | stamps
        driving = start(what)
    assert driving.finish() == 0, driving.text
    found = trials(tmp_path)
    assert [trial.state for trial in found] == ["complete"] * what.trials
    assert len({str(trial.params) for trial in found}) == what.trials
    assert all(kills.values()) and stamps.items() <= records(tmp_path).items()
    assert unsettled(tmp_path) == []


@pytest.mark.slow
def test_a_sequential_study_killed_at_every_phase_of_a_trial_equals_an_unbroken_one(tmp_path):
    whole, broken, script = tmp_path / "whole", tmp_path / "broken", {6: FAIL}
    for home in (whole, broken):
        home.mkdir()
    assert start(Start(whole, trials=15, script=script)).finish() == 0
    kills, chance = 0, random.Random(0)
    moments = itertools.chain((2, 5, 8, 11), iter(lambda: chance.randint(*COMMITS), None))
    while code := start(Start(broken, trials=15, script=script, kill_at=next(moments))).finish():
        assert code == -signal.SIGKILL
        kills += 1
    found = [(t.number, t.state, t.params, t.values) for t in trials(broken)]
    assert found == [(t.number, t.state, t.params, t.values) for t in trials(whole)]
    assert kills > 8 and any("reused the run" in (t.reason or "") for t in trials(broken))


def test_queued_points_outlive_a_driver_that_is_lost_while_it_starts_them(tmp_path):
    points = [{"k": k, "hidden_width": 8, "temperature": 2.0} for k in (2, 3)]
    search(Start(tmp_path, trials=1))
    study = ref(tmp_path)
    spec, _ = load(study)
    with opened(study, spec) as lost:
        lost.enqueue(points)
        lost.study.ask().suggest_categorical("k", (2, 3, 4, 5))  # and no further
    with opened(study, spec) as ledger:
        ledger.requeue_unfinished()
        ledger.enqueue(points)
    found = search(Start(tmp_path, trials=3))
    assert [(one.number, one.state) for one in found] == [(i, "complete") for i in range(3)]
    assert [one.params for one in found[1:]] == points


@pytest.mark.parametrize("step", ["fail", "_retry"])
@pytest.mark.parametrize("then", ["requeue_unfinished", "unfinished"])
def test_an_interrupted_requeue_queues_each_trial_once(tmp_path, monkeypatch, step, then):
    """Another requeue comes next, or a driver."""
    search(Start(tmp_path, trials=1))
    study = ref(tmp_path)
    spec, _ = load(study)
    with opened(study, spec) as lost:
        lost.ask(RandomSampler(), partial(suggest, sweep_of(spec, "toy")), {})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with opened(study, spec) as ledger, pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(ledger, step, killed)
        ledger.requeue_unfinished()
    with opened(study, spec) as ledger:
        getattr(ledger, then)()
    again = then == "requeue_unfinished" or step == "fail"
    assert [(t.state, t.retry_of) for t in trials(tmp_path)] == [
        ("complete", None),
        *([("failed", None), ("waiting", 1)] if again else [("running", None)]),
    ]


def test_a_trials_files_are_attached_once_though_its_driver_was_killed_before_it_ended_the_trial(
    tmp_path,
):
    search(Start(tmp_path, trials=1))
    study = ref(tmp_path)
    spec, _ = load(study)
    (tmp_path / "report.md").write_text("found")
    with opened(study, spec) as ledger:
        number, _ = ledger.ask(RandomSampler(), partial(suggest, sweep_of(spec, "toy")), {})
        for _ in range(2):
            ledger.annotate(number, "note", [tmp_path / "report.md"])
        shown = get_all_artifact_meta(ledger.study.trials[number], storage=ledger.storage)
    assert [meta.filename for meta in shown] == ["report.md"]


def test_a_trial_whose_files_can_not_be_attached_ends_the_driver_and_is_not_trained_again(
    tmp_path,
):
    (tmp_path / "artifacts").symlink_to("/proc")  # a folder in which no file can be made
    with pytest.raises(StoreError, match=f"can't write in `{tmp_path}`"):
        search(Start(tmp_path, trials=1))
    assert [trial.state for trial in trials(tmp_path)] == ["running"]
    (tmp_path / "artifacts").unlink()
    [found] = search(Start(tmp_path, trials=1))
    assert found.state == "complete" and len(attempts(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", JOB)
def test_a_signal_to_all_processes_of_a_job_ends_it_in_order_and_costs_no_attempt(
    number, tmp_path
):
    what = Start(tmp_path, trials=4, workers=2, script={2: WAIT, 3: WAIT})
    driving = start(what)
    driving.until(lambda: len(attempts(tmp_path)) == 4)
    os.killpg(driving.pid, number)
    assert driving.finish() == 128 + number, driving.text
    assert [trial.state for trial in trials(tmp_path)] == ["complete"] * 2 + ["running"] * 2
    (tmp_path / "go").touch()
    assert start(what).finish() == 0
    assert [(t.state, t.attempts) for t in trials(tmp_path)] == [("complete", ())] * 4


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_a_start_ends_it_in_order(tmp_path):
    chance = random.Random(0)
    for moment in (*(chance.uniform(0.0, 0.8) for _ in range(5)), None):
        driving = start(Start(tmp_path, trials=1000, workers=2))
        end = driving.until(lambda driving=driving: "driving" in driving.text and time.monotonic())
        if moment is None:  # at the latest when a trial has begun
            driving.until(lambda: attempts(tmp_path))
        else:
            driving.until(lambda end=end + moment: time.monotonic() > end)
        os.killpg(driving.pid, signal.SIGINT)
        assert driving.finish() == 130, driving.text
        assert "Traceback" not in driving.text
    assert {trial.attempts for trial in trials(tmp_path)} == {()}


@pytest.mark.slow
def test_work_survives_the_server_that_forks_workers(tmp_path):
    driving = start(Start(tmp_path, trials=4, workers=2, script={0: WAIT, 1: WAIT}))
    driving.until(lambda: len(attempts(tmp_path)) == 2)
    server = driving.workers()[0].parent()
    assert server is not None
    server.kill()
    (tmp_path / "go").touch()
    assert driving.finish() == 0, driving.text
    assert [(t.state, t.attempts) for t in trials(tmp_path)] == [("complete", ())] * 4


@pytest.mark.slow
def test_a_sweep_of_the_command_line_killed_and_interrupted_goes_on_with_what_is_stored(tmp_path):
    file, home = tmp_path / "small.yaml", tmp_path / "home"
    file.write_text(SWEEP)
    words = [str(file), "--trials", "3", "--workers", "2", "--threads", "1"]
    words += ["--home", str(home)]
    stamps: dict[str, str] = {}

    def midway(stages: int) -> tuple[Driving, psutil.Process]:
        """Drive until that many stages are stored; return the worker amid another, too."""
        driving = sweep(*words)

        def reached() -> psutil.Process | None:
            steps = {path.parent.name for path in home.glob("partial/*/step-*")}
            steps -= (known := stored(home)).keys()
            return amid(driving, steps) if len(known) >= stages else None

        worker = driving.until(reached)
        assert worker is not None
        return driving, worker

    midway(0)[0].kill()
    assert verify(ObjectStore(home)) == []
    stamps |= stored(home)
    interrupted, _ = midway(len(stamps) + 2)
    os.killpg(interrupted.pid, signal.SIGINT)
    assert interrupted.finish() == 130
    assert interrupted.text.endswith(f"continue with\n  moist sweep optuna {' '.join(words)}\n")
    assert verify(ObjectStore(home)) == []
    stamps |= stored(home)
    resumed, worker = midway(len(stamps) + 2)
    worker.kill()
    assert resumed.finish() == 0, resumed.text
    assert verify(ObjectStore(home)) == [] and not list((home / "partial").iterdir())
    assert stamps.items() <= stored(home).items()
    found = trials(home, "small")
    assert [trial.state for trial in found] == ["complete"] * 3
    assert sum(len(trial.attempts) for trial in found) == 1
    assert unsettled(home, "small") == []
