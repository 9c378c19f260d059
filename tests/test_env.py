"""The environment of a stage: warnings of a busy machine."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moist import SPINS
from moist.bench.contention import busy, contention, printed
from moist.env import Env, Silent, cores, crowded, make_env

CPU = torch.device("cpu")
CORES = len(cores())


@pytest.fixture
def with_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("with_threads")
def test_several_threads_are_warned_of_cores_that_are_busy() -> None:
    with busy(CORES):
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
    code = "import moist, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    assert printed(code, setting).split() == [spins, "False"]


@pytest.mark.slow
def test_training_is_timed_beside_a_busy_core_and_alone():
    (found,) = contention(rounds=1, threads=1, spins=(SPINS,), steps=1)
    assert f"{SPINS:,} spins moist" in found.measured
    assert found.n == 1 and found.ratio > 0 < found.details["image_ms"]
