"""moist's command as a shell would start it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from moist.cli.main import main


def of_nobody(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user without an account, whose home folders lie there."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("WANDB")}
    return {**kept, "HOME": str(folder), "MOIST_HOME": str(folder / "moist"), **more}


class Said:
    """What one command printed, and its exit code; the entry point itself, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        before, sys.argv = sys.argv, ["moist", *map(str, words)]
        try:
            with pytest.raises(SystemExit) as exit_:
                main()
        finally:
            sys.argv = before
        self.code = exit_.value.code or 0
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)
