"""Commands in messages are those that work for whoever reads them."""

import sys

import pytest
from shell import Said

from moist.errors import as_typed

TEXT = """no runs yet; `moist run` makes one
hint: its report: moist show last
  moist best four --max mflops=1
Usage: moist run [OPTIONS]
study `four` was not made by moist at all; /x/moist/y moist.toml"""


@pytest.mark.parametrize(
    ("uv", "argv", "start"),
    [("1", "/x/bin/moist", "uv run moist"), (None, "/x/bin/moist", "moist"),
     (None, "/x/moist/__main__.py", "python -m moist"), ("1", "/x/__main__.py", "uv run moist")],
)  # fmt: skip
def test_commands_are_printed_as_this_process_was_started(monkeypatch, uv, argv, start):
    monkeypatch.setattr(sys, "argv", [argv, "runs"])
    if uv:
        monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", uv)
    lines = as_typed(TEXT).splitlines()
    commands = ["run", "show last", "best four --max mflops=1", "run [OPTIONS]"]
    assert all(f"{start} {words}" in line for words, line in zip(commands, lines[:4], strict=True))
    assert lines[4] == TEXT.splitlines()[4] and as_typed(as_typed(TEXT)) == as_typed(TEXT)


def test_errors_and_hints_of_a_command_say_uv_run_where_it_was_typed(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    for words in (["runs"], ["show", "last"], ["studies"], ["show"], ["run", "--dry-run"]):
        said = Said(capsys, *words, *([] if words == ["show"] else ["--home", tmp_path])).err
        assert "uv run moist " in said and "moist " not in said.replace("uv run moist", "")
