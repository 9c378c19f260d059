"""Where stages compute: what a busy machine means for threads."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
def test_several_threads_are_told_of_cores_that_others_keep_busy() -> None:
    with busy():
        said = make_env(Silent(), "cpu", threads=2).crowding()
        assert said is not None and f"2 threads on {CORES} cores" in said
        assert make_env(Silent(), "cpu", threads=1).crowding() is None


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0, 64))
def test_threads_are_warned_about_when_they_and_others_need_more_than_the_cores(
    threads: int, cores: int, busy: float
) -> None:
    said = crowded(threads, busy, cores)
    assert (said is None) == (threads + busy < cores + 0.5)
    assert said is None or f"{threads} threads on {cores} cores" in said


@pytest.mark.usefixtures("with_threads")
def test_workers_whose_threads_outnumber_the_cores_are_told() -> None:
    torch.set_num_threads(2)
    said = Env(CPU).crowding(workers=CORES)
    assert said is not None and f"{2 * CORES} threads on {CORES} cores" in said
