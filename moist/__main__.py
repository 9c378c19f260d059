"""`moist` and `python -m moist`: the command line; signals are handled from the start."""

from moist.interrupts import leave_at_once


def main() -> None:
    """Run the command line."""
    leave_at_once()
    from moist.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
