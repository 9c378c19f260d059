"""The environment of a stage: warnings of a busy machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moist.bench.contention import contention
from moist.env import Env, Silent, cores, crowded, make_env

BURN = "print('burning', flush=True)\nwhile True: pass"
CPU = torch.device("cpu")
CORES = len(cores())


@pytest.fixture
def with_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@contextmanager
def busy() -> Iterator[None]:
    """Other work on every core."""
    burning = [
        subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
        for _ in range(CORES)
    ]
    try:
        for one in burning:
            assert one.stdout is not None and one.stdout.readline() == b"burning\n"
        yield
    finally:
        for one in burning:
            one.kill()
            one.communicate()


@pytest.mark.usefixtures("with_threads")
def test_several_threads_are_warned_of_cores_that_are_busy() -> None:
    with busy():
        warning = make_env(Silent(), "cpu", threads=2).crowding()
        assert warning is not None and f"2 threads on {CORES} cores" in warning
        assert make_env(Silent(), "cpu", threads=1).crowding() is None


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0, 64))
def test_threads_are_warned_about_when_they_and_others_need_more_than_the_cores(
    threads: int, cores: int, busy: float
) -> None:
    warning = crowded(threads, busy, cores)
    assert (warning is None) == (threads + busy < cores + 0.5)
    assert warning is None or f"{threads} threads on {cores} cores" in warning


@pytest.mark.usefixtures("with_threads")
def test_workers_whose_threads_outnumber_the_cores_are_warned() -> None:
    torch.set_num_threads(2)
    warning = Env(CPU).crowding(workers=CORES)
    assert warning is not None and f"{2 * CORES} threads on {CORES} cores" in warning


def test_bf16_is_warned_of_on_a_processor_that_emulates_it() -> None:
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    warning = Env(CPU).emulation("bf16")
    assert (warning is None) == supported
    assert warning is None or "precision=float32" in warning
    assert Env(CPU).emulation("float32") is None


@pytest.mark.parametrize(
    ("setting", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_wait_briefly_unless_the_user_says_how(setting, spins):
    others = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    code = "import moist, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=others | setting,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [spins, "False"]


@pytest.mark.slow
def test_training_is_timed_beside_a_busy_core_and_alone():
    found = contention(rounds=1, threads=1)
    assert found["n"] == 1 and all(found[one]["slowdown"] > 0 for one in ("moist", "default"))
