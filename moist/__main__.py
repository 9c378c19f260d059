"""`moist` and `python -m moist`: the command line; signals are handled from the start."""

import atexit
import gc

from moist.interrupts import leave_at_once


def main() -> None:
    """Run the command line."""
    leave_at_once()
    collect_rarely()
    from moist.cli.main import main as run

    run()


def collect_rarely() -> None:
    """Look for garbage seldom, and not at exit: importing torch makes a million objects that stay.

    This saves a fifth of a command's start. Tensors are freed when the last reference goes.
    """
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)


if __name__ == "__main__":
    main()
