"""moist's command as a shell would start it, and sweeps that train in seconds."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from moist.cli.main import main

MAIN = [sys.executable, "-c", "from moist.cli.main import main; main()"]


def searched(
    method: str, teacher: int, distill: int, routing: int, joint: int, width: list[int]
) -> str:
    """A sweep file over k and the hidden width on digits, with so many epochs of each stage."""
    return f"""
program: moist
method: {method}
command: ["${{env}}", moist, run, "${{args_no_hyphens}}"]
parameters:
  data.name: {{value: digits}}
  teacher.arch: {{value: resnet8}}
  teacher.epochs: {{value: {teacher}}}
  student.channels: {{value: "8,16"}}
  router: {{value: linear}}
  distill.epochs: {{value: {distill}}}
  routing.epochs: {{value: {routing}}}
  joint.epochs: {{value: {joint}}}
  latency.repeats: {{value: 10}}
  latency.seconds: {{value: 0.01}}
  k: {{values: [2, 3]}}
  hidden_width: {{values: {width}}}
"""


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
