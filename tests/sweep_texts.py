"""The text of sweep files, from lines of entries."""

import re
from pathlib import Path

HEAD = """\
program: moist
method: random
command: ["${env}", moist, run, "${args_no_hyphens}"]
"""
ACCURACY = "{name: objective/accuracy, goal: maximize}"
MFLOPS = "{name: objective/mflops, goal: minimize}"
CUSTOM = "custom\nscheduler: {engine: ax}\n"
ROUTER = "router: {values: [cnn, linear]}\n"
WIDTHS = f"{ROUTER}routing.widths: {{values: ['64', '32'], when: {{router: linear}}}}"


def written(folder: Path, entries: str, head: str = HEAD) -> Path:
    """Write a sweep file whose entries are lines of `KEY: {...}`; return its path."""
    lines = "".join(f"  {line}\n" for line in entries.splitlines())
    (folder / "some.yaml").write_text(f"{head}parameters:\n{lines}")
    return folder / "some.yaml"


def begins(message: str, line: str) -> bool:
    """Return whether a text begins with a line, in which `...` stands for anything."""
    return re.match(".*".join(map(re.escape, line.split("..."))), message) is not None
