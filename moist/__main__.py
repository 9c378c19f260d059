"""`python -m moist`: the command line."""

from moist.cli.main import main

if __name__ == "__main__":
    main()
