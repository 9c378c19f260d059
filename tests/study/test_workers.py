"""Workers that are lost, fail or hang: what is retried, where, and with which reason."""

import fcntl
import os
import signal
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
import toy
from driving import PATIENCE, start, trials
from toy import DIE, DIE_ONCE, FAIL, LINGER, WAIT, Do, Start, Toy, attempts, search

from moist.config import Config
from moist.config.overrides import parse
from moist.errors import ConfigError, StageError
from moist.study.events import Event, Failed, Lost, StageStarted, Warned
from moist.study.executor import Task, is_device_error
from moist.study.trainer import Trainer
from moist.study.workers import Pool, Slot

SWEEPS = Path(__file__).parents[2] / "sweeps"
PIPE = 4096
KILLED = "its worker was killed by SIGKILL (out of memory, unless it was sent by hand)"


def waiting(slot: Slot) -> int:
    """Bytes that a worker sent and that were not read."""
    assert slot.connection is not None and slot.process.is_alive()
    count = fcntl.ioctl(slot.connection.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(count, sys.byteorder)


def received(pool: Pool) -> list[Event]:
    """All events until a worker's final one."""
    found: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while pool.busy and time.monotonic() < deadline:
        found += pool.wait(0.1)
    return found


@pytest.mark.slow
def test_a_paused_worker_ends_with_its_driver(tmp_path):
    driving = start(Start(tmp_path, trials=1, script={0: WAIT}))
    driving.until(lambda: attempts(tmp_path))
    driving.workers()[0].suspend()
    driving.kill()


def test_a_trial_whose_worker_is_lost_is_retried_with_the_same_parameters(tmp_path):
    found = search(Start(tmp_path, trials=4, script={1: DIE_ONCE}))
    whole = tmp_path / "whole"
    whole.mkdir()
    undisturbed = search(Start(whole, trials=4))
    assert [one.params for one in found] == [one.params for one in undisturbed]
    assert [one.values for one in found] == [one.values for one in undisturbed]
    assert [one.attempts for one in found] == [(), (f"{KILLED} in toy",), (), ()]
    assert [one["number"] for one in attempts(tmp_path)] == [0, 1, 1, 2, 3]


def test_a_trial_that_is_lost_too_often_fails_and_one_that_raises_fails_at_once_with_its_reason(
    tmp_path,
):
    full = (Do("raise", MemoryError()),)
    script = {1: DIE, 2: FAIL, 3: full, 4: (Do("allocate"),)}
    found = search(Start(tmp_path, trials=3, retries=1, script=script))
    assert [one.state for one in found] == ["complete", *["failed"] * 4, "complete", "complete"]
    dead, wrong, full, big = (str(one.reason) for one in found[1:5])
    assert dead == f"lost 2 times; last: {KILLED} in toy"
    assert wrong.startswith("ValueError: no such\n") and wrong.endswith("[bold]really[/bold]")
    assert "in act" in wrong
    assert full == "lost 2 times; last: out of memory: MemoryError in toy"
    assert "last: out of memory: RuntimeError" in big and "can't allocate memory" in big
    assert [len(one.attempts) for one in found] == [0, 2, 0, 2, 2, 0, 0]
    assert [one["number"] for one in attempts(tmp_path)] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]


def test_a_broken_slot_gets_no_more_once_it_lost_three_trials_and_fails_none(tmp_path):
    found = search(Start(tmp_path, trials=12, workers=2, devices=("broken", "sound")))
    assert [one.state for one in found] == ["complete"] * 12
    lost = [one["number"] for one in attempts(tmp_path) if one["device"] == "broken"]
    assert len(lost) == len(set(lost)) == 3
    assert {one.number for one in found if one.attempts} == set(lost)


def test_a_trial_whose_gpu_fails_is_lost_to_that_slot_and_retried_on_another(tmp_path):
    found = search(Start(tmp_path, trials=12, workers=2, devices=("faulty", "sound")))
    assert [one.state for one in found] == ["complete"] * 12
    lost = [one["number"] for one in attempts(tmp_path) if one["device"] == "faulty"]
    assert len(lost) == len(set(lost)) == 3
    message = "CUDA error: an illegal memory access was encountered"
    reason = f"its device failed: RuntimeError: {message} in toy"
    for trial in found:
        assert trial.attempts == ((reason,) if trial.number in lost else ())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("some driver's words"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (ConfigError("can't compute on `cuda:1`: CUDA error: it is busy or unavailable"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("Expected all tensors to be on the same device, cuda:0 and cpu"), False),
        (ConfigError("can't compute on `cuda:1`: Torch not compiled with CUDA enabled"), False),
    ],
)
def test_a_broken_gpu_is_distinguished_from_an_error_and_from_full_memory(error, expected):
    assert is_device_error(error) is expected


def test_without_a_healthy_slot_a_search_stops_and_continues_once_there_is_one(tmp_path):
    with pytest.raises(StageError, match="no healthy workers left: each lost 3 different trials"):
        search(Start(tmp_path, trials=4, devices=("broken",)))
    assert [one.state for one in trials(tmp_path)] == ["failed", "failed", "running"]
    found = search(Start(tmp_path, trials=4, script={2: DIE_ONCE}))
    assert [one.state for one in found] == ["failed", "failed", *["complete"] * 4]
    assert found[2].attempts == (f"{KILLED} in toy",) * 2


def test_a_worker_killed_in_the_middle_of_an_event_is_lost_like_any_other(tmp_path):
    talk = (Do("wait"), Warned(None, "x" * 10_000_000))
    work = Toy(tmp_path, {0: talk}, stage="toy")
    with Pool(work, [Slot(None, 1)], tmp_path, toy.PRELOAD) as pool:
        pool.submit(Task(0, Config(), "moist run"))
        found: list[Event] = []
        while not found:
            found = pool.wait(PATIENCE)
        (tmp_path / "go").touch()
        slot = pool.slots[0]
        while waiting(slot) < PIPE:  # its word is longer than what a pipe holds
            time.sleep(0.01)
        os.kill(slot.process.pid, signal.SIGKILL)
        slot.process.join()
        assert [*map(type, found + received(pool))] == [StageStarted, Lost]
        assert not pool.busy


def test_a_worker_that_exits_late_does_not_delay_the_next(tmp_path):
    found = search(Start(tmp_path, trials=2, script={0: LINGER}))
    assert [one.state for one in found] == ["complete"] * 2
    assert not (tmp_path / "alone").exists()


def test_an_error_in_training_is_not_a_loss_and_has_its_class_and_hint(tmp_path):
    short = ["teacher.epochs=1", "distill.epochs=1", "distill.views=1", "latency.seconds=0.01"]
    config = parse([f"@{SWEEPS / 'tiny.yaml'}", *short, "teacher.lr=10"])
    with Pool(Trainer(tmp_path), [Slot("cpu", 1)], tmp_path / "logs") as pool:
        pool.submit(Task(0, config, "moist run"))
        last = received(pool)[-1]
    assert isinstance(last, Failed) and not last.out_of_memory
    assert last.error.startswith("StageError: `")
    assert [line.partition(":")[0] for line in last.lines] == ["hint"]
