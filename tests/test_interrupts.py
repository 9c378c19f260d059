"""Signals end a command in order, whatever Python is doing when they come."""

import os
import signal
import weakref

import pytest

from moist.interrupts import ENDING, Interrupted, check, deferred, handled, undeferred


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_raises_where_it_comes_and_has_a_shells_exit_code(number):
    with handled(), pytest.raises(Interrupted) as found:
        os.kill(os.getpid(), number)
    assert found.value.exit_code == 128 + number and found.value.number == number


def test_a_signal_is_left_to_whoever_defers_it_and_a_second_one_is_not():
    with deferred() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupted()
        with pytest.raises(Interrupted) as second:
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted) as first:
            check()
        with pytest.raises(Interrupted), undeferred():
            pytest.fail("what takes long begins after a signal")
    assert (second.value.number, first.value.number) == (signal.SIGINT, signal.SIGUSR1)
    check()  # what comes later is not concerned


def test_what_takes_long_ends_at_the_first_signal_although_it_is_deferred():
    with deferred(), pytest.raises(Interrupted), undeferred():
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_python_ignores_in_a_callback_is_raised_at_the_next_check():
    class Thing:
        pass

    with handled():
        thing = Thing()
        watched = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
        del thing
        assert watched() is None
        with pytest.raises(Interrupted):
            check()


def test_signals_that_were_ignored_stay_ignored_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            os.kill(os.getpid(), signal.SIGHUP)
            check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
